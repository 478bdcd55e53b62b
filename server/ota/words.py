"""Names the roles of the update repository, and says how long their metadata lasts. Pure.

root       offline, a threshold of people   which keys the other roles have
targets    offline                          which keys may release; the lowest version of each product
releases   CI's key                         packages that any machine may be ordered to install
candidate  CI's key, or another one         packages on trial
snapshot   online                           which versions of targets, releases and candidate belong together
timestamp  online                           which snapshot is the newest, and that somebody still says so
"""

from server.base.errors import Invalid

DAY_S = 86_400
ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
RELEASES, CANDIDATE = "releases", "candidate"
PACKAGE_ROLES = (RELEASES, CANDIDATE)
"""The roles that name packages, in the order in which a client looks for one."""
SIGNED_ELSEWHERE = (ROOT, TARGETS, *PACKAGE_ROLES)
"""The roles whose keys are never on the server."""
ONLINE = (SNAPSHOT, TIMESTAMP)
"""The roles whose keys the server has."""
LIFETIMES = {
    ROOT: 365 * DAY_S,
    TARGETS: 365 * DAY_S,
    RELEASES: 180 * DAY_S,
    CANDIDATE: 180 * DAY_S,
    SNAPSHOT: 30 * DAY_S,
    TIMESTAMP: 3 * DAY_S,
}
"""How long metadata of a role is valid from the time at which it is made, in seconds."""
RENEW_AHEAD_S = {SNAPSHOT: 15 * DAY_S, TIMESTAMP: 2 * DAY_S}
"""How long before its end the server signs metadata of an online role again."""
WARN_AHEAD_S = {ROOT: 60 * DAY_S, TARGETS: 60 * DAY_S, RELEASES: 30 * DAY_S, CANDIDATE: 30 * DAY_S}
"""How long before its end the server asks for new metadata of a role whose keys it does not have."""
MAX_METADATA_BYTES = 4 * 1024 * 1024
"""Of one metadata file: 1,000 packages with notes of usual length are a quarter of it. A client takes 5,000,000."""
KEEP_VERSIONS = 10
"""Versions of metadata that stay readable for clients that have begun with them. Those of root stay for ever."""


def require_role(role: str) -> None:
    """Returns if a role names packages. Raises Invalid."""
    if role not in PACKAGE_ROLES:
        raise Invalid(f"{role!r} is not a role for packages; the roles are {' and '.join(PACKAGE_ROLES)}")
