"""Says which failures of updater and installer are no failed attempt, and what a person does about them. Pure.

A failed attempt says something about the package, since more than two of them lock updates (OT-07). Who holds a mirror of the
update repository, or fills a disk, must not be able to lock: what they can bring about hinders an update and no more.
"""

from dataclasses import dataclass

UNREACHABLE = "unreachable"
"""The code of an updater, an installer or a network that does not answer."""
DISK = "disk"
"""The code of a disk of this machine that fails."""
NO_ROOM = "no-room"
"""The code of a disk of this machine that is full."""
BUSY = "busy"
"""The code of an installer that waits for somebody else: another program installs packages, or an order is under way."""

_ROOM = (
    "Make room: 'df -h /var/lib /opt' shows how full the disks are, and 'journalctl --vacuum-size=200M' shortens the journal. "
    "The update goes on by itself."
)
_DISK = "Find out what is wrong with the disk: 'journalctl -k' has the kernel's messages. The update goes on by itself."
_MIRROR = (
    "Ask the operator of the update repository: somebody serves other files there than the vendor has signed. Nothing of it is "
    "installed, and the update goes on by itself once the files are right."
)
_STALE = (
    "Ask the operator of the update repository: what it serves is out of date or only half published. The update goes on by "
    "itself."
)
_NETWORK = (
    "Check the connection to the update repository: 'license-agent-cli doctor' looks at it. The update goes on by itself."
)
_WAIT = (
    "Wait, or look at what installs packages on this machine: 'ps -C apt,apt-get,dpkg,unattended-upgr'. The update goes on by "
    "itself."
)

_TRUST = (
    "Correct update-trust.json: the text says what is wrong with it, and 'license-agent-cli doctor' too. The update goes on by "
    "itself."
)
_CONFIGURATION = (
    "Correct installer.toml: the text says where ('license-agent-cli doctor' reads it too). The update goes on by itself."
)
_STATE = (
    "Read the text, and 'journalctl -u license-agent-installer': the installer cannot use its own state. The update goes on by "
    "itself once it can."
)
_PLACE = "Do what the text says to the product's directory, slots or package. The update goes on by itself."
FILES = {
    "trust": _TRUST, "configuration": _CONFIGURATION, "state": _STATE, "machine": _PLACE, "config-not-kept": _PLACE,
}  # fmt: skip
"""What root's own files or the product's places keep from going on: the package is not to blame."""
MACHINE = {NO_ROOM: _ROOM, "no-space": _ROOM, DISK: _DISK, **FILES}
"""What is the machine's own, by code of installer and updater, with what to do. It is no failed attempt from either."""
REPOSITORY = {
    "digest-differs": _MIRROR,
    "length-differs": _MIRROR,
    "damaged": _MIRROR,
    "metadata-malformed": _MIRROR,
    "metadata-too-large": _MIRROR,
    "metadata-not-signed": _MIRROR,
    "metadata-rolled-back": _STALE,
    "metadata-expired": _STALE,
    "metadata-mismatched": _STALE,
    "metadata-missing": _STALE,
    "not-in-repository": _STALE,
    "version-differs": _STALE,
    "build-differs": _STALE,
    "changed": _STALE,
}
"""What a mirror can bring about, with what to do: no failed attempt where the updater says that it comes from there."""
STALE = frozenset(
    {
        "metadata-rolled-back", "metadata-expired", "metadata-mismatched", "metadata-missing", "directive-withdrawn",
        "not-staged", "copy-differs",
    }
)  # fmt: skip
"""What the installer says of a directive that was taken back, of old metadata, which a mirror can show to an updater that has
lost its own, and of a package that the updater has not staged, or has changed: the attempt ends, and does not count."""


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What keeps an update from going on, though nothing is wrong with its package.

    Attributes:
        code: of updater or installer; `UNREACHABLE` if one of them, or the network, does not answer; `BUSY`.
        text: for people.
        since: seconds since 1970 UTC.
        tries: in vain, in a row.
    """

    code: str
    text: str
    since: int
    tries: int = 1

    @property
    def action(self) -> str:
        """What an administrator does about it."""
        if self.code == BUSY:
            return _WAIT
        return MACHINE.get(self.code) or REPOSITORY.get(self.code) or _NETWORK

    def again(self, code: str, text: str) -> "Hindrance":
        """The same one after another try in vain, in the words of that one."""
        return Hindrance(code, text, self.since, self.tries + 1)


PATIENCE_S = 86_400
"""How long a repository may be out of reach before it alarms, seconds."""
SURE = 3
"""After so many tries what will not pass by itself alarms."""


def alarming(found: Hindrance | None, now: int) -> bool:
    """Whether somebody should look at it; `now` in seconds since 1970 UTC."""
    if found is None:
        return False
    if found.code in MACHINE or found.code in REPOSITORY:
        return found.tries >= SURE
    return now - found.since >= PATIENCE_S
