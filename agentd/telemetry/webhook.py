"""Sends alerts to the webhook through the link, one after another, and keeps those that wait in a file.

Nothing here is waited for by a validation: what is raised is looked at in memory every second, and disk and network have lanes
of their own in the housekeeping. The link can read, delay and drop an alert; the signature keeps it from making one.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agentd.audit.core import Core
from agentd.base.alerts import ALERTS, WEBHOOK_FAILING, Alert, Severity
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AlertsConfig
from agentd.base.errors import Refused
from agentd.uplink.linkclient import FetchFailed, LinkClient, LinkUnavailable
from common.files import os_problem, write_atomic
from common.redelivery import Attempt, Next
from ipc.errors import LocalProtocolError

from .alertqueue import AlertQueue, Event, Kept, decode_kept
from .webhookkeys import HEADER, WebhookKeys

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0
"""For one request."""
FAILING_S = 3600
"""When the webhook has failed for so long, an alert says so on this machine."""
MAX_FILE_BYTES = 1024 * 1024
NO_KEY = "there is no key to sign with; run 'license-agent-cli webhook-key new' and give the key to the receiver"
TEST = "webhook.test"


class Sender(Protocol):
    """Posts to the webhook; `LinkSender` in the daemon."""

    async def __call__(self, body: bytes, signed: str) -> Attempt:
        """How the attempt ended; raises nothing that the network brings about."""
        ...


class LinkSender:
    """Posts by way of the link, which alone knows where the webhook is.

    Args:
        link: its socket.
        clock: the receiver's certificate is judged by its time.
    """

    def __init__(self, link: LinkClient, clock: Clock) -> None:
        self._link = link
        self._clock = clock

    async def __call__(self, body: bytes, signed: str) -> Attempt:
        """Posts a body, signed already."""
        headers = {"content-type": "application/json", HEADER: signed}
        try:
            async with self._link.session(self._clock.certain(), latest=self._clock.ceiling()) as session:
                reply = await session.fetch("webhook", "POST", "/", body, headers, max_body=0, timeout_s=TIMEOUT_S)
        except (FetchFailed, LinkUnavailable, LocalProtocolError) as error:
            return Attempt(None, str(error))
        if 200 <= reply.status < 300:
            return Attempt(reply.status)
        asked = reply.headers.get("retry-after", "")
        wait = int(asked) if asked.isascii() and asked.isdigit() and len(asked) <= 9 else None
        return Attempt(reply.status, f"the receiver answers {reply.status}", wait)


def read_kept(path: Path) -> Kept:
    """What the file holds; nothing if it is not there or cannot be read, which is logged."""
    try:
        with path.open("rb") as file:
            kept = decode_kept(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        return Kept()
    except OSError as error:
        log.error("%s cannot be read (%s); alerts that waited for the webhook are lost", path, error.strerror)
        return Kept()
    if kept is None:
        log.error("%s is damaged; alerts that waited for the webhook are lost", path)
    return kept or Kept()


def open_queue(path: Path) -> AlertQueue:
    """What waits, as the file holds it."""
    return AlertQueue(read_kept(path), lambda: os.urandom(16).hex())


class Webhook:
    """The webhook of an agent.

    Args:
        core: its audit log knows which alerts are raised.
        config: whether there is one, and for which alerts.
        keys: sign.
        queue: what waits, as `path` holds it.
        path: of the file.
        send: posts.
        over: whether this run knows that an alert is not so.
        draw: random numbers between 0 and 1, for pauses.
    """

    def __init__(
        self,
        core: Core,
        config: AlertsConfig,
        keys: WebhookKeys,
        queue: AlertQueue,
        path: Path,
        send: Sender,
        over: Callable[[Alert], bool],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._core = core
        self._config = config
        self.keys = keys
        self._path = path
        self._send = send
        self._over = over
        self._draw = draw
        self.queue = queue
        self._written = 0
        self._turn = asyncio.Lock()
        self._write_failed = False

    def reconfigure(self, config: AlertsConfig) -> None:
        """Applies a new configuration."""
        self._config = config
        self.queue.hurry()

    @property
    def enabled(self) -> bool:
        """Whether the configuration wants a webhook."""
        return self._config.webhook

    def look(self) -> None:
        """Notes what was raised and what is over; called every second."""
        if not self._config.webhook:
            return
        core, queue, before = self._core, self.queue, self.queue.dropped
        now = core.clock.now()
        queue.look(
            core.audit.raised_alerts, self._over, ALERTS, Severity(self._config.min_severity), now, core.clock.monotonic()
        )
        self._count_dropped(before)

    def _count_dropped(self, before: int) -> None:
        dropped = self.queue.dropped - before
        if dropped:
            self._core.counters.webhook_dropped += dropped
            log.warning("%d alerts were dropped, because too many wait for the webhook", dropped)

    async def keep(self) -> None:
        """Writes the file if something has changed. A disk that fails is logged once, and stops nothing."""
        changes = self.queue.changes
        if changes == self._written:
            return
        data = msgspec.json.format(msgspec.json.encode(self.queue.kept()), indent=1)
        try:
            await asyncio.to_thread(write_atomic, self._path, data, 0o600)
        except OSError as error:
            if not self._write_failed:
                log.error("alerts that wait for the webhook cannot be kept: %s", os_problem(error))
            self._write_failed = True
            return
        self._write_failed = False
        self._written = changes

    async def deliver(self) -> None:
        """Sends the next event if it is time; called every second, and may take as long as a request does."""
        if not self._config.webhook or self._turn.locked():
            return
        event = self.queue.next(self._core.clock.monotonic())
        if event is not None:
            async with self._turn:
                await self._attempt(event)

    async def _attempt(self, event: Event) -> Attempt:
        core, queue = self._core, self.queue
        attempt = await self._ask(event)
        now, before = core.clock.now(), queue.dropped
        verdict = queue.note(event, attempt, now, core.clock.monotonic(), self._draw())
        self._count_dropped(before)
        if attempt.taken:
            core.counters.webhook_delivered += 1
        else:
            core.counters.webhook_failed += 1
            log.warning("an alert did not reach the webhook: %s", attempt.problem)
        if verdict in (Next.DEAD, Next.PAUSE):
            core.audit.record("webhook.dead_letter", "failed", alert=event.alert, alert_id=event.id, text=queue.problem)
        self._judge_itself(now)
        return attempt

    def _judge_itself(self, now: int) -> None:
        audit, since = self._core.audit, self.queue.failing_since
        raised = any(alert is WEBHOOK_FAILING for alert, _ in audit.raised_alerts)
        if since is None and raised:
            audit.clear_alert(WEBHOOK_FAILING, "alerts reach the webhook again")
        elif since is not None and now - since >= FAILING_S and not raised:
            text = f"alerts have not reached the webhook for more than {FAILING_S // 60} minutes: {self.queue.problem}"
            audit.raise_alert(WEBHOOK_FAILING, text, text=text[:500])

    async def _ask(self, event: Event) -> Attempt:
        if not self.keys:
            return Attempt(None, NO_KEY)
        body = event.body(self._core.agent_id)
        return await self._send(body, self.keys.signed(body, self._core.clock.now()))

    async def test(self) -> Attempt:
        """Sends an event of its own at once and says how that ended; it is not tried again.

        Raises:
            Refused: the configuration wants no webhook.
        """
        if not self._config.webhook:
            raise Refused("the configuration has no webhook: set webhook = true in [alerts], then reload")
        now = self._core.clock.now()
        event = Event(
            id=os.urandom(16).hex(), alert=TEST, severity=Severity.LOW, title="A test of the webhook",
            action="Nothing: an administrator asked for it.", state="raised", raised_at=now,
        )  # fmt: skip
        async with self._turn:
            attempt = await self._ask(event)
        if attempt.taken:
            self.queue.hurry()  # what waits goes at once
        return attempt

    def view(self) -> dict[str, Any]:
        """For administrators: keys without what is secret, what waits, and what was put aside."""
        queue = self.queue
        return {
            "enabled": self._config.webhook,
            "min_severity": self._config.min_severity,
            "keys": self.keys.view(),
            "waiting": len(queue.waiting),
            "failing_since": queue.failing_since,
            "problem": queue.problem,
            "dropped": self._core.counters.webhook_dropped,
            "dead_letters": [
                {
                    "id": dead.event.id,
                    "alert": dead.event.alert,
                    "state": dead.event.state,
                    "at": dead.at,
                    "problem": dead.problem,
                }
                for dead in queue.dead
            ],
        }
