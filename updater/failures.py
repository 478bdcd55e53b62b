"""Defines the failure of an order, and which failures are the network's. Nothing here performs IO."""

from ipc.linkmessages import FailCode
from ipc.updatermessages import UpdaterCode

_NETWORK = frozenset(
    {
        UpdaterCode.LINK,
        UpdaterCode.UNREACHABLE,
        UpdaterCode.SLOW,
        UpdaterCode.REDIRECT,
        UpdaterCode.BAD_RESPONSE,
        UpdaterCode.TOO_LONG,
        UpdaterCode.NO_RANGES,
        UpdaterCode.CHANGED,
        UpdaterCode.STATUS,
        UpdaterCode.DAMAGED,
        UpdaterCode.LENGTH,
        UpdaterCode.DIGEST,
        UpdaterCode.EXPIRED,
    }
)
"""Codes of downloads that brought nothing whole, or something else than was signed. They say nothing about the package that the
vendor has signed, so they count as no failed attempt: who holds a mirror must not be able to lock updates."""
_FROM_LINK = {
    FailCode.UNREACHABLE: UpdaterCode.UNREACHABLE,
    FailCode.TIMEOUT: UpdaterCode.UNREACHABLE,
    FailCode.TLS: UpdaterCode.UNREACHABLE,
    FailCode.PIN_MISMATCH: UpdaterCode.UNREACHABLE,
    FailCode.PROXY: UpdaterCode.UNREACHABLE,
    FailCode.TOO_LARGE: UpdaterCode.TOO_LONG,
    FailCode.REDIRECT: UpdaterCode.REDIRECT,
    FailCode.BAD_RESPONSE: UpdaterCode.BAD_RESPONSE,
    FailCode.NOT_ALLOWED: UpdaterCode.LINK,
    FailCode.MALFORMED: UpdaterCode.LINK,
    FailCode.RANGE: UpdaterCode.NO_RANGES,
}


class CoreGone(Exception):
    """The core has closed its connection, or takes nothing: the work ends."""


class UpdateFailed(Exception):
    """An order failed.

    Args:
        code: sent to the core.
        text: the same for people.
        network: as in `ipc.updatermessages.Failure`; None for what the code says.

    Attributes:
        code: as above.
        text: as above.
        network: as above.
    """

    def __init__(self, code: UpdaterCode | str, text: str, network: bool | None = None) -> None:
        super().__init__(text)
        self.code = str(code)
        self.text = text
        self.network = self.code in _NETWORK if network is None else network


def from_link(code: FailCode, text: str) -> UpdateFailed:
    """The failure of an order for a failure of the link."""
    return UpdateFailed(_FROM_LINK[code], text)
