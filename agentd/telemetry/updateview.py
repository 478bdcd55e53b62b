"""Renders where updates are, for administrators and for the view of the state."""

from typing import Any

from agentd.base.clock.clock import Clock
from agentd.ota.runner import UpdateRunner
from agentd.ota.table import Step

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
            "sha256": order.sha256,
            "length": order.length,
            "notes": order.notes[:MAX_NOTES_SHOWN],
        },
        "waits": None if waits is None else {"code": waits.code, "text": waits.text, "until": waits.until},
        "problem": runner.problem or None,
        "action": _action(runner),
        "failure": None if failure is None else {"code": failure.code, "text": failure.text},
        "progress": {"done": done, "total": total},
        "running": _running(runner),
        "checked": situation.refreshed or None,
        "metadata_expires": situation.metadata_expires or None,
        "signed": _signed(runner),
        "time": clock.now(),
    }


def updates_view(runner: UpdateRunner | None) -> dict[str, Any] | None:
    """Updates in short, for the view of the state; None where they are not enabled."""
    if runner is None:
        return None
    update, waits = runner.update, runner.waits
    order, failure = update.order, update.failure
    wanted = order is not None and update.step not in (Step.IDLE, Step.LOCKED)
    return {
        "state": update.step.value,
        "running": _running(runner),
        "update": {"product": order.product, "version": order.version, "build_id": order.build_id}
        if order and wanted
        else None,
        "waits": None if waits is None else {"code": waits.code, "text": waits.text, "until": waits.until},
        "paused": runner.situation.paused or None,
        "problem": runner.problem or None,
        "action": _action(runner),
        "attempts": update.attempts,
        "failure": None if failure is None else {"code": failure.code, "text": failure.text},
        "rehearsal_overdue": runner.rehearsal_overdue(),
        "signed": _signed(runner),
    }


def _signed(runner: UpdateRunner) -> dict[str, Any] | None:
    """When the first role of the repository's metadata ends that people sign; None before the repository was read."""
    until, role = runner.situation.signed
    return {"until": until, "role": role} if until else None


def _action(runner: UpdateRunner) -> str | None:
    """What an administrator does about the problem; None where it is not one that hinders."""
    return runner.hindrance.action if runner.problem and runner.hindrance is not None else None


def _running(runner: UpdateRunner) -> list[dict[str, Any]]:
    return [
        {
            "product": product,
            "version": each.version,
            "build_id": each.build_id,
            "in_trial": each.in_trial,
            "previous": each.previous or None,
            **({"problem": each.problem} if each.problem else {}),
        }
        for product, each in sorted(runner.running.items())
    ]
