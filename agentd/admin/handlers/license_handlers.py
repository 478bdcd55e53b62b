"""Handles the request that explains why a license is valid or not."""

from typing import Any

from agentd.admin.service import Handler
from agentd.licenses.explanation import explain_license, explain_token
from agentd.telemetry.parts import AgentParts
from agentd.telemetry.views import server_time_view
from ipc.messages import LicenseExplain
from ipc.peer import Peer


class LicenseHandlers:
    """Handles requests about licenses that change nothing.

    Args:
        parts: of the agent.
    """

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {LicenseExplain: self._explain}

    async def _explain(self, request: LicenseExplain, _peer: Peer) -> dict[str, Any]:
        parts, clock = self._parts, self._parts.core.clock
        now, cycle = clock.now(), parts.cycle
        explain = explain_token if request.by == "token" else explain_license
        found = explain(parts.validator, request.subject, now)
        server = None
        if cycle is not None:
            record = cycle.record
            server = {name: getattr(record, name) for name in ("last", "failures", "problem", "refused")}
        return {
            **found,
            "mode": parts.mode.state.mode.value,
            "clock": {
                "machine": int(clock.wall()),
                "suspect": clock.suspect(),
                "server_time": server_time_view(parts.store),
            },
            "server": server,
        }
