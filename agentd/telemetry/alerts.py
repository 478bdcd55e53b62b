"""Raises the alerts that last and clears them: each once, to the journal and the audit log. `base.alerts` lists them."""

from datetime import UTC, datetime
from typing import Any

from agentd.base.alerts import (
    AUDIT_ARCHIVE,
    BACKUP_OVERDUE,
    CLOCK_SUSPECT,
    DEGRADED_LONG,
    FLEET_CONFIGURATION,
    OTA_HINDERED,
    OTA_LOCKED,
    OTA_METADATA_ENDS,
    OTA_REHEARSAL,
    REVOCATIONS_STALE,
    ROTATION_FAILING,
    SECRET_EXPIRED,
    SERVER_REFUSES,
    SERVER_TIME,
    TPM_UNAVAILABLE,
    TPM_UNRELIABLE,
    Alert,
)
from agentd.base.clock.signedtime import Standing
from agentd.ota.hindrances import alarming
from agentd.ota.table import Step
from agentd.secrets.trusted_time import describe
from agentd.sync.degraded import Mode
from hwsec.backend import BackendState, BackendStatus

from .parts import AgentParts

ALERT_FAILURES = 3
"""More failed contacts in a row than this, while a new secret is due, raise an alert."""
ALERT_DEGRADED_S = 86_400
"""Degraded mode that lasts longer raises an alert."""


ARCHIVES_TRIED_S = 900.0
"""By then a run has tried to keep the archives at least once."""


class AlertWatch:
    """Knows which alerts are raised.

    Args:
        parts: what is watched.
    """

    def __init__(self, parts: AgentParts) -> None:
        self._core = parts.core
        self._parts = parts
        self._hardware = parts.store.status
        self._raised: set[Alert] = set()
        self._looked = False
        self._started = parts.core.clock.monotonic()
        self._asked_hardware = False

    @property
    def raised(self) -> tuple[Alert, ...]:
        """The alerts that are raised now."""
        return tuple(sorted(self._raised, key=lambda alert: alert.event))

    def over(self, alert: Alert) -> bool:
        """Whether this run knows that an alert is not so; asked of one that an earlier run has raised, and this one has not."""
        record = None if self._parts.cycle is None else self._parts.cycle.record
        if alert in (ROTATION_FAILING, SERVER_REFUSES):
            # Each run counts failures from zero: only a contact that works says that they are over.
            return record is None or (record.last is not None and record.failures == 0)
        if alert in (TPM_UNAVAILABLE, TPM_UNRELIABLE):
            return self._asked_hardware
        if alert is AUDIT_ARCHIVE:
            return self._core.clock.monotonic() - self._started > ARCHIVES_TRIED_S
        return self._looked

    def update(self, now: int) -> None:
        """Raises and clears by what is so at a time; called every second."""
        self._looked = True
        validator, cycle, mode = self._parts.validator, self._parts.cycle, self._parts.mode.state
        ring = validator.ring
        record = None if cycle is None else cycle.record
        self._set(
            ROTATION_FAILING,
            record is not None and record.failures > ALERT_FAILURES and ring.overdue(now),
            f"more than {ALERT_FAILURES} attempts to get a new secret have failed: {record.problem if record else ''}",
        )
        long = mode.since is not None and now - mode.since > ALERT_DEGRADED_S
        self._set(DEGRADED_LONG, long, "the agent has been in degraded mode for more than 24 hours")
        expired = mode.mode is Mode.EXPIRED
        self._set(SECRET_EXPIRED, expired, "grace of the newest secret has ended and no successor has come")
        stale = validator.revocations.stale(now)
        self._set(REVOCATIONS_STALE, stale, "the revocation list is older than it should be")
        refused = record is not None and record.refused is not None
        words = record.refused if record else ""
        self._set(SERVER_REFUSES, refused, f"the license server refuses this agent: {words}")
        self._look_at_updates(now)
        backups = None if self._parts.backups is None else self._parts.backups.standing(now)
        late = backups is not None and backups.overdue
        self._set(BACKUP_OVERDUE, late, backups.text if backups is not None else "no backups are made by themselves any more")
        problem = "" if self._parts.fleet is None else self._parts.fleet.problem
        self._set(FLEET_CONFIGURATION, bool(problem), problem or "what the fleet sets can be used")
        clock = self._core.clock
        self._change(
            CLOCK_SUSPECT,
            clock.suspect(),
            "the machine's clock is behind a time that has certainly passed, or ahead of what can have passed",
            {"floor": clock.floor},
            {"floor": clock.floor},
        )

        time = self._parts.store.record.unconfirmed
        contradicts = time is not None and time.standing is not Standing.PROVISIONAL
        text = describe(time.standing, time.time.signed, time.clock) if time is not None else "the server's time is settled"
        self._set(SERVER_TIME, contradicts, text)

    def _look_at_updates(self, now: int) -> None:
        updates = self._parts.updates
        hindrance = None if updates is None else updates.hindrance
        what = "it goes on" if hindrance is None else f"{hindrance.text} ({hindrance.code}). {hindrance.action}"
        self._set(OTA_HINDERED, alarming(hindrance, now), f"an update cannot go on: {what}"[:500])
        failure = None if updates is None else updates.update.failure
        locked = updates is not None and updates.update.step is Step.LOCKED
        why = "" if failure is None else failure.text
        self._set(OTA_LOCKED, locked, f"updates are locked: more than two attempts have failed, the last one because {why}")
        ends = None if updates is None else updates.signed_role_ends()
        until, role = (0, "") if ends is None else ends
        what = f"the {role} metadata of the update repository ends on {datetime.fromtimestamp(until, UTC):%Y-%m-%d}"
        self._set(OTA_METADATA_ENDS, ends is not None, what)
        overdue = updates is not None and updates.rehearsal_overdue()
        self._set(OTA_REHEARSAL, overdue, "this test bench has not rehearsed an update for more than a quarter")

    def hardware(self, status: BackendStatus) -> None:
        """Raises or clears by what the hardware says of itself; called every 30 s."""
        self._asked_hardware = True
        was, self._hardware = self._hardware, status
        if status.state is was.state:
            return
        alert = None if status.available else _hardware_alert(status.state)
        for gone in (TPM_UNAVAILABLE, TPM_UNRELIABLE):
            if gone in self._raised and gone is not alert:
                self._raised.discard(gone)
                now = "can be used again" if status.available else f"is {status.state.value}"
                self._core.audit.clear_alert(gone, f"the {status.name} {now}", was=was.state.value)
        if alert is not None:
            self._raised.add(alert)
            text = f"the {status.name} cannot be used ({status.state.value}): {status.detail}"
            self._core.audit.raise_alert(alert, text, state=status.state.value, text=status.detail[:500])

    def _set(self, alert: Alert, on: bool, text: str) -> None:
        self._change(alert, on, text, {"text": text}, {})

    def _change(self, alert: Alert, on: bool, text: str, raised: dict[str, Any], cleared: dict[str, Any]) -> None:
        if on == (alert in self._raised):
            return
        if on:
            self._raised.add(alert)
            self._core.audit.raise_alert(alert, text, **raised)
        else:
            self._raised.discard(alert)
            self._core.audit.clear_alert(alert, text, **cleared)


def _hardware_alert(state: BackendState) -> Alert:
    return TPM_UNRELIABLE if state is BackendState.UNRELIABLE else TPM_UNAVAILABLE
