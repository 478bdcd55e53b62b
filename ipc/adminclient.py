"""Sends administrators' requests to the admin socket. A request may change something, so it is never sent twice."""

from collections.abc import Generator
from typing import Any

from .errors import ErrorCode
from .posclient.calls import Answer, Question
from .posclient.client import LicenseClient


class AdminClient(LicenseClient):
    """Asks the agent as an administrator; arguments as for `LicenseClient`."""

    _repeats = False
    _retried_codes: frozenset[ErrorCode] = frozenset()

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request and its reply, without `v` and `id`.

        Raises:
            AgentUnavailable: no answer; whether the request was carried out is not known then.
            AgentRefused: the agent answered with an error.
            UntrustedDaemon: something else than the agent answers at the path.
        """

        def conversation() -> Generator[Question, Answer, dict[str, Any]]:
            answer = yield Question(op, lambda: dict(fields))
            return {name: value for name, value in answer.reply.items() if name not in ("v", "id")}

        return self._hold(conversation())
