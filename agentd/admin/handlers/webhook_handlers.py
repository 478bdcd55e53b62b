"""Handles requests about the webhook that alerts go to: its keys, a test, its dead letters."""

from typing import Any

from agentd.admin.service import Handler
from agentd.audit.log import actor
from agentd.telemetry.webhook import Webhook
from ipc.messages import WebhookKeyEnd, WebhookKeyNew, WebhookRetry, WebhookStatus, WebhookTest
from ipc.peer import Peer


class WebhookHandlers:
    """Handles requests about the webhook."""

    def __init__(self, webhook: Webhook) -> None:
        self._webhook = webhook

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            WebhookStatus: self._status,
            WebhookKeyNew: self._new,
            WebhookKeyEnd: self._end,
            WebhookTest: self._test,
            WebhookRetry: self._retry,
        }

    async def _status(self, _request: WebhookStatus, _peer: Peer) -> dict[str, Any]:
        return self._webhook.view()

    async def _new(self, _request: WebhookKeyNew, peer: Peer) -> dict[str, Any]:
        key_id, key = await self._webhook.keys.new(actor(peer))
        return {"key_id": key_id, "key": key, "keys": len(self._webhook.keys.view())}

    async def _end(self, request: WebhookKeyEnd, peer: Peer) -> dict[str, Any]:
        ended = await self._webhook.keys.end(request.key, actor(peer))
        return {"key_id": ended, "keys": len(self._webhook.keys.view())}

    async def _test(self, _request: WebhookTest, _peer: Peer) -> dict[str, Any]:
        attempt = await self._webhook.test()
        return {"taken": attempt.taken, "status": attempt.status, "problem": attempt.problem}

    async def _retry(self, _request: WebhookRetry, _peer: Peer) -> dict[str, Any]:
        return {"revived": self._webhook.queue.revive(), "waiting": len(self._webhook.queue.waiting)}
