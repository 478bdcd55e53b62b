"""Answers every request with one error while the daemon cannot work, so that callers learn why they get no verdict."""

from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import AdminRequest, PosRequest, RequestDecoder, encode_error
from ipc.peer import Peer

from .connection import Connection


class RefusingService:
    """Answers everyone with the same error and says no more than that.

    Args:
        code: AGENT_MISCONFIGURED or UNAVAILABLE.
        text: what to do about it.
    """

    name = "refusing"

    def __init__(self, code: ErrorCode, text: str) -> None:
        self._code = code
        self._text = text
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

    def rejected(self, _peer: Peer, _code: ErrorCode) -> None:
        """There is no log to write to."""

    def handle(self, body: bytes, _connection: Connection) -> bytes:
        """The error, with the request's id where it can be read."""
        request_id = None
        for decoder in self._decoders:
            try:
                request_id = decoder.decode(body).id
            except RemoteProtocolError as error:
                request_id = error.request_id if request_id is None else request_id
        return encode_error(self._code, self._text, request_id)
