"""Answers every request with one error while the daemon cannot work, so that callers learn why they get no verdict."""

from collections.abc import Callable, Sequence

from ipc.bounds import DEFAULT_RATE_PER_S
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import AdminRequest, PosRequest, Reload, RequestDecoder, encode_error
from ipc.peer import Peer

from .connection import Connection

REASON_CHARS = 360
"""Of a reason; an error's text has room for 500 characters."""


class RefusingService:
    """Answers everyone with the same error and says no more than that.

    Args:
        code: AGENT_MISCONFIGURED or UNAVAILABLE.
        text: what to do about it.
        for_root: the text for root, who may know every reason; None for the same.
        reload: called when root asks for a reload: what makes the daemon try again at once.
    """

    name = "refusing"

    def __init__(
        self, code: ErrorCode, text: str, for_root: str | None = None, reload: Callable[[], None] | None = None
    ) -> None:
        self._code = code
        self._text = text
        self._for_root = text if for_root is None else for_root
        self._reload_now = reload
        self._decoders = (
            RequestDecoder[PosRequest](PosRequest),
            RequestDecoder[AdminRequest](AdminRequest),
        )

    def admits(self, _peer: Peer) -> bool:
        """Everyone: without a configuration there is no allow-list and nothing to protect."""
        return True

    def refused(self, _peer: Peer) -> bool:
        """Nobody is refused."""
        return True

    def connection_limit(self) -> int:
        """Connections that one UID may have."""
        return 64

    def connects_per_s(self) -> int:
        """New connections that one UID may make each second."""
        return DEFAULT_RATE_PER_S

    def skipped(self, _peer: Peer, _times: int, *, admitted: bool) -> None:
        """There is no log to write to."""

    def rejected(self, _peer: Peer, _code: ErrorCode) -> None:
        """There is no log to write to."""

    def reply_to_known(self, _frame: bytes, _peer: Peer, _now: float) -> bytes | None:
        """No request is known by its bytes."""
        return None

    def handle(self, body: bytes, connection: Connection) -> bytes:
        """The error, with the request's id where it can be read."""
        request_id, root = None, connection.peer.uid == 0
        for decoder in self._decoders:
            try:
                request = decoder.decode(body)
                request_id = request.id
            except RemoteProtocolError as error:
                request_id = error.request_id if request_id is None else request_id
            else:
                if isinstance(request, Reload) and root and self._reload_now is not None:
                    self._reload_now()
        return encode_error(self._code, self._for_root if root else self._text, request_id)


def first_of(reasons: Sequence[str]) -> str:
    """The first reason that fits into an error's text, and how many more there are."""
    more = f" (and {len(reasons) - 1} more: license-agent check-config)" if len(reasons) > 1 else ""
    return f"{reasons[0][:REASON_CHARS]}{more}"
