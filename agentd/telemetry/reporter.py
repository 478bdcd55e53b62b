"""Brings everything that shows the agent's state up to date: states, mode and alerts in the log, the seal, the files."""

from agentd.audit.checkpoint import Checkpoint
from agentd.secrets.watch import StateWatch

from .alerts import AlertWatch
from .healthwatch import HealthWatch
from .parts import AgentParts
from .publisher import Publisher


class Reporter:
    """Called every second, and after each change.

    Args:
        parts: what is reported on.
        checkpoint: seals the log.
        publisher: writes the files.

    Attributes:
        health: the facts by which the agent's health is judged.
        alerts: knows which alerts are raised.
    """

    def __init__(self, parts: AgentParts, checkpoint: Checkpoint, publisher: Publisher) -> None:
        self._core = parts.core
        self._store = parts.store
        self._states = StateWatch(parts.core, parts.store.ring)
        self.alerts = AlertWatch(parts)
        self.health = HealthWatch(parts)
        self._mode = parts.mode
        self._checkpoint = checkpoint
        self.publisher = publisher

    def note(self) -> None:
        """Logs what time has changed: states, mode, alerts."""
        now = self._core.clock.now()
        self._states.update(now)
        self._mode.update(now)
        self.alerts.update(now)
        self.health.tick()

    async def watch_hardware(self) -> None:
        """Asks the hardware how it is, and alerts if that has changed."""
        self.alerts.hardware(await self._store.refresh_status())

    async def after_change(self) -> None:
        """Logs, seals and writes after a change."""
        self.note()
        await self._checkpoint.make_if_needed()
        await self.publisher.write()

    async def heard_from_server(self) -> None:
        """As `after_change`, once a signed word of the server has reached this machine."""
        self._mode.heard()
        await self.after_change()
