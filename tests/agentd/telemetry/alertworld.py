"""What raises alerts and what tells the webhook of them, with a clock that the test sets. Only the receiver is a list."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.file import AuditFile
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AgentConfig, AlertsConfig, AuditConfig
from agentd.ota.table import Update
from agentd.secrets.record import SealedWebhookKey
from agentd.sync.cycle import ContactRecord
from agentd.sync.mode import Kept, ModeKeeper
from agentd.telemetry.alerts import AlertWatch
from agentd.telemetry.webhook import Webhook, open_queue
from agentd.telemetry.webhookkeys import WebhookKey, WebhookKeys, key_text
from audittrail.chain import Chain
from common.redelivery import Attempt
from hwsec.backend import BackendState, BackendStatus
from hwsec.secretmem import SecretBuffer
from tests.agentd.world import T0, World, core_of

KEY = bytes(range(32))
STATUS = BackendStatus("tpm", True, "", True)


def failing(state: BackendState) -> BackendStatus:
    return BackendStatus("tpm", False, "as the test wants it", True, state=state)


class AlertWorld:
    """One run of an agent, over a directory that outlives it.

    Attributes:
        now: seconds since 1970 UTC; the monotonic clock runs with it.
        received: bodies and headers of what the receiver took.
        answer: what the receiver answers.
    """

    def __init__(self, directory: Path, world: World, now: int = T0, kept: Kept | None = None, **config: Any) -> None:
        self.now = float(now)
        self._began = now - 1000
        self.world = world
        file = AuditFile(directory / "audit.log")
        end = file.open()
        clock = Clock(lambda: self.now, lambda: self.now - self._began)
        repeats = CoalescedEvents(directory / "repeats")
        self.audit = AuditLog(file, Chain(end.seq, end.heads), repeats, clock, AuditConfig(), lambda: None)
        self.core = core_of(clock, self.audit, world.vault)
        self.cycle = SimpleNamespace(record=ContactRecord(), held=False)
        config_of_agent = AgentConfig()
        self.mode = ModeKeeper(self.core, world.validator, self.cycle, kept or Kept(), config_of_agent)  # type: ignore[arg-type]
        store = SimpleNamespace(status=STATUS, record=SimpleNamespace(unconfirmed=None))
        self.updates = SimpleNamespace(
            update=Update(), hindrance=None, rehearsal_overdue=lambda: False, signed_role_ends=lambda: None
        )
        parts = SimpleNamespace(
            core=self.core,
            validator=world.validator,
            cycle=self.cycle,
            mode=self.mode,
            store=store,
            updates=self.updates,
            backups=None,
            fleet=None,
        )
        self.watch = AlertWatch(parts)  # type: ignore[arg-type]
        with SecretBuffer(32) as key:
            key.view[:] = KEY
            sealed = SealedWebhookKey(id="k", created_at=T0, sealed=b"")
            keys = WebhookKeys(self.core, store, (WebhookKey(sealed, world.vault.wrap(key)),))  # type: ignore[arg-type]
            self.key = key_text(key).decode()
        self.received: list[tuple[bytes, str]] = []
        self.answer: Callable[[], Attempt] = lambda: Attempt(204)
        path = directory / "webhook.json"
        settings = AlertsConfig(**{"webhook": True, **config})
        self.webhook = Webhook(self.core, settings, keys, open_queue(path), path, self._take, self.watch.over, draw=lambda: 0.5)

    async def _take(self, body: bytes, signed: str) -> Attempt:
        attempt = self.answer()
        if attempt.taken:
            self.received.append((body, signed))
        return attempt

    def look(self) -> None:
        """What the housekeeping does each second before anything is sent."""
        now = self.core.clock.now()
        self.mode.update(now)
        self.watch.update(now)
        self.webhook.look()

    def waiting(self) -> list[tuple[str, str]]:
        """Alert and state of what waits."""
        return [(event.alert, event.state) for event in self.webhook.queue.waiting]

    def at(self, now: int) -> list[tuple[str, str]]:
        """What has become an event by this time and was not there before."""
        before = {event.id for event in self.webhook.queue.waiting}
        self.now = float(now)
        self.look()
        return [(event.alert, event.state) for event in self.webhook.queue.waiting if event.id not in before]

    def end(self) -> None:
        """Closes what the next run opens again, as a killed process leaves it."""
        self.audit.flush()
        self.audit.discard()
