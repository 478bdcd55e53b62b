"""Brings about each reason of the POS protocol by what brings it about in a shop, and checks that the agent gives it.

Every token is a new one. Two reasons change the stand for all licenses, `degraded_expired` and `revocations_stale`; any other
reason first puts it back (`usual`).
"""

import time
import uuid
from collections.abc import Callable

from ipc.answers import Reason
from ipc.posclient.client import LicenseClient

from . import acts, setup
from .commands import Commands
from .programs import READY_S, StandError
from .running import POLL_S
from .setup import AGENT_ID, OTHER_AGENT_ID, Layout

SHORT_SECRETS_S = (2, 8, 32)
"""How long a secret lasts that is to end at once, in seconds; the next one where the agent did not get it in time."""
SHORT_LIST_S = 1
"""Likewise a revocation list; an agent takes one that has ended."""
USUAL_LISTS_S = 604_800
"""How long a revocation list lasts otherwise: the server's default."""


def bring_about(layout: Layout, reason: Reason, arguments: tuple[str, ...]) -> str:
    """A token that gets this verdict now.

    Args:
        layout: of a running stand.
        reason: the verdict.
        arguments: further options of `license-server issue`.

    Raises:
        StandError: this stand cannot have it, or the agent gives another verdict.
    """
    usual(layout)
    token = _ACTS[reason](layout, arguments)
    _expect(layout, token, reason)
    return token


def usual(layout: Layout) -> None:
    """Puts the stand back: agent and server run, its own configuration, no degraded mode, a secret that has not ended."""
    info = acts.info_of(layout)
    if not info["agent_pid"]:
        acts.switch_agent(layout, on=True)
    online = info["server_url"] is not None
    if online and not info["server_pid"]:
        acts.switch_server(layout, on=True)
    if online and acts.cli(layout, "degraded", "show")["held"]:
        acts.degrade(layout, on=False)
    if layout.usual_config.exists():
        acts.configure_as_usual(layout)
        Commands(layout.run).run("license-server", "periods", "--revocations", str(USUAL_LISTS_S), env=layout.env())
        if online:
            acts.cli(layout, "contact")
    held = acts.cli(layout, "secrets")["secrets"][-1]
    # The server issues under its newest secret; one that was made by hand may not have reached the agent.
    if held["state"] != "ACTIVE" or held["version"] != acts.server_secrets(layout)[-1]["version"]:
        acts.rotate(layout)


def _expect(layout: Layout, token: str, reason: Reason) -> None:
    """Asks until the agent gives the verdict: some need a second to pass."""
    ends = time.monotonic() + READY_S
    with LicenseClient(layout.run / "pos.sock", deadline=READY_S) as client:
        while (found := client.validate(token).reason) is not reason:
            if time.monotonic() >= ends:
                raise StandError(f"the agent says {found.value}, not {reason.value}: is the stand as another command left it?")
            time.sleep(POLL_S)


def _issued(*dates: str, agent: str = AGENT_ID) -> Callable[[Layout, tuple[str, ...]], str]:
    return lambda layout, arguments: acts.issued(layout, *dates, *arguments, agent=agent)


def _malformed(layout: Layout, arguments: tuple[str, ...]) -> str:
    """The last part is missing, as where the end of a line was not copied."""
    return acts.issued(layout, *arguments).rpartition(".")[0]


def _bad_signature(layout: Layout, arguments: tuple[str, ...]) -> str:
    return setup.tamper(acts.issued(layout, *arguments))


def _unknown_secret(layout: Layout, arguments: tuple[str, ...]) -> str:
    """The server makes a secret that never reaches the agent, and then another that does."""
    delivery = layout.run / "delivery"
    acts.rotate_on_server(layout, delivery)
    delivery.unlink()
    token = acts.issued(layout, *arguments)
    acts.rotate(layout)
    return token


def _secret_invalidated(layout: Layout, arguments: tuple[str, ...]) -> str:
    """A secret of its own is invalidated, so that no other token loses its secret."""
    version = acts.rotate(layout)
    token = acts.issued(layout, *arguments)
    acts.rotate(layout)
    acts.cli(layout, "secrets", "invalidate", str(version), "--yes")
    return token


def _value(arguments: tuple[str, ...], option: str) -> str | None:
    """What an option is given, as `OPTION VALUE` or `OPTION=VALUE`; the last one counts."""
    found = None
    for place, word in enumerate(arguments):
        if word == option:
            found = arguments[place + 1] if place + 1 < len(arguments) else None
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _revoked(layout: Layout, arguments: tuple[str, ...]) -> str:
    license_id = _value(arguments, "--license-id") or f"revoked-{uuid.uuid4()}"
    token = acts.issued(layout, *arguments, "--license-id", license_id)
    acts.revoke(layout, license_id)
    return token


def _degraded_expired(layout: Layout, arguments: tuple[str, ...]) -> str:
    """The newest secret ends after a few seconds, and the server, which has its successor, is out of reach."""
    if acts.info_of(layout)["server_url"] is not None:
        acts.switch_server(layout, on=False)
    _install_short(layout)
    return acts.issued(layout, *arguments)


def _install_short(layout: Layout) -> None:
    """Gives the agent a secret that ends soon: on a slow machine later, since an agent refuses one that has ended already."""
    delivery = layout.run / "delivery"
    for seconds in SHORT_SECRETS_S:
        acts.rotate_on_server(layout, delivery, seconds)
        try:
            acts.cli(layout, "secrets", "install", str(delivery))
        except StandError:
            if seconds == SHORT_SECRETS_S[-1]:
                raise
        else:
            return
        finally:
            delivery.unlink()


def _revocations_stale(layout: Layout, arguments: tuple[str, ...]) -> str:
    """The agent's list ends after a second, no newer one can come, and the configuration says to refuse then."""
    acts.require_server(layout)
    token = acts.issued(layout, *arguments)
    acts.configure(layout, stale_revocations="refuse")
    Commands(layout.run).run("license-server", "periods", "--revocations", str(SHORT_LIST_S), env=layout.env())
    # The agent fetches a list that is new: some license was revoked.
    _revoked(layout, ())
    acts.switch_server(layout, on=False)
    return token


_ACTS: dict[Reason, Callable[[Layout, tuple[str, ...]], str]] = {
    Reason.OK: _issued(),
    Reason.EXPIRED: _issued("--not-before", "-2d", "--expires", "-1d"),
    Reason.NOT_YET_VALID: _issued("--not-before", "+1d"),
    Reason.MALFORMED: _malformed,
    Reason.UNKNOWN_SECRET: _unknown_secret,
    Reason.SECRET_INVALIDATED: _secret_invalidated,
    Reason.BAD_SIGNATURE: _bad_signature,
    Reason.WRONG_AUDIENCE: _issued(agent=OTHER_AGENT_ID),
    Reason.REVOKED: _revoked,
    Reason.DEGRADED_EXPIRED: _degraded_expired,
    Reason.REVOCATIONS_STALE: _revocations_stale,
}

CHANGES_THE_STAND = frozenset({Reason.DEGRADED_EXPIRED, Reason.REVOCATIONS_STALE})
"""Reasons that all licenses of the stand get from then on; `license-stand reason ok` ends that."""
