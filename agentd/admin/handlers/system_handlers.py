"""Handles the request that says which program runs: in an agent, and on a device that is not one yet."""

from collections.abc import Callable
from typing import Any

from agentd import VERSION
from agentd.admin.service import Handler
from common.version import BUILD
from ipc.messages import SystemInfo
from ipc.peer import Peer


class SystemHandlers:
    """Handles the request about the running program.

    Args:
        boot_id: the kernel's, 16 bytes.
        monotonic: seconds.
    """

    def __init__(self, boot_id: bytes, monotonic: Callable[[], float]) -> None:
        self._boot_id = boot_id
        self._monotonic = monotonic
        self._started = monotonic()

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {SystemInfo: self._info}

    async def _info(self, _request: SystemInfo, _peer: Peer) -> dict[str, Any]:
        return {
            "agent_version": VERSION,
            "build": BUILD,
            "uptime_s": int(self._monotonic() - self._started),
            "boot_id": self._boot_id,
        }
