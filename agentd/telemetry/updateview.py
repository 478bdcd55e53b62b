"""Renders where updates are, for administrators and for the view of the state."""

from typing import Any

from agentd.base.clock import Clock
from agentd.ota.runner import UpdateRunner

MAX_NOTES_SHOWN = 4000


def update_view(runner: UpdateRunner | None, clock: Clock) -> dict[str, Any]:
    """Where updates are; `enabled` alone where they are not enabled. Times are seconds since 1970 UTC."""
    if runner is None:
        return {"enabled": False}
    update, waits, situation = runner.update, runner.waits, runner.situation
    order, failure = update.order, update.failure
    done, total = situation.progress
    return {
        "enabled": True,
        "state": update.step.value,
        "paused": situation.paused or None,
        "attempts": update.attempts,
        "retry_at": update.retry_at or None,
        "urgent": update.urgent,
        "rehearsal": update.rehearsal,
        "update": None
        if order is None
        else {
            "product": order.product,
            "version": order.version,
            "build_id": order.build_id,
            "number": order.number,
            "rollout": order.rollout,
            "operator": order.operator,
            "received": order.received,
            "not_after": order.not_after or None,
            "length": order.length,
            "notes": order.notes[:MAX_NOTES_SHOWN],
        },
        "waits": None if waits is None else {"code": waits.code, "text": waits.text, "until": waits.until},
        "problem": runner.problem or None,
        "failure": None if failure is None else {"code": failure.code, "text": failure.text},
        "progress": {"done": done, "total": total},
        "running": [
            {
                "product": product,
                "version": each.version,
                "build_id": each.build_id,
                "in_trial": each.in_trial,
                "previous": each.previous or None,
            }
            for product, each in sorted(runner.running.items())
        ],
        "checked": situation.refreshed or None,
        "metadata_expires": situation.metadata_expires or None,
        "time": clock.now(),
    }
