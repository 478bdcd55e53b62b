"""The HTTP/1.1 connection of this listener: as strict as that of agents; a malformed request gets hawkBit's error."""

from server.web.transport import ApiProtocol

from .answers import JSON
from .problems import Refused


class DdiProtocol(ApiProtocol):
    """A connection. The arguments are those of `ApiProtocol`."""

    @staticmethod
    def malformed() -> tuple[str, bytes]:
        """Content type and body of the response to a malformed request."""
        return JSON, Refused("malformed", "malformed HTTP request").body()
