"""The HTTP/1.1 connection of the operators' listener: as strict as that of agents; a malformed request gets a problem."""

from server.web.transport import ApiProtocol

from .problems import Problem


class OperatorProtocol(ApiProtocol):
    """A connection. The arguments are those of `ApiProtocol`."""

    @staticmethod
    def malformed() -> tuple[str, bytes]:
        """Content type and body of the response to a malformed request."""
        problem = Problem("malformed", "malformed HTTP request")
        return problem.headers()["content-type"], problem.body()
