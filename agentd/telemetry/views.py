"""Renders the agent's state for `state.json`, `status` and `secrets`. Pure; never shows a secret."""

from collections.abc import Collection, Iterable
from typing import Any

from agentd.base.alerts import Alert, Severity
from agentd.base.clock.signedtime import Standing
from agentd.base.confinement import ConfinementStatus
from agentd.licenses.holdings import Holdings
from agentd.secrets.lifecycle import State, grace_until, valid_until
from agentd.secrets.ring import SecretRing
from agentd.secrets.store import Store
from agentd.secrets.trusted_time import describe
from agentd.sync.cycle import ContactCycle
from ipc.answers import LicenseReason

from .parts import AgentParts

EXPIRING_S = 14 * 86_400
"""A license that ends within so long is expiring."""


def secrets_view(ring: SecretRing, now: int) -> list[dict[str, Any]]:
    """The versions with states and dates, oldest first."""
    return [
        {
            "version": stored.meta.version,
            "state": ring.state_of(stored, now).value,
            "valid_from": stored.meta.valid_from,
            "valid_until": valid_until(stored.meta, ring.limits),
            "grace_until": grace_until(stored.meta, ring.limits),
            "installed_at": stored.meta.installed_at,
            "invalidated_at": stored.meta.invalidated_at,
        }
        for stored in ring.versions
    ]


def count_states(ring: SecretRing, now: int) -> tuple[int, int]:
    """How many versions are ACTIVE, and how many GRACE."""
    states = [ring.state_of(stored, now) for stored in ring.versions]
    return states.count(State.ACTIVE), states.count(State.GRACE)


def licenses_view(holdings: Holdings, seats: Collection[str], now: int) -> dict[str, Any]:
    """How many licenses the machine holds, and how many valid ones end soon. Seats do not count there: they are renewed."""
    held = [*holdings.at(now).after("")]
    valid = [license for license in held if license.valid]
    ends = [license.expires_at for license in valid if license.license_id not in seats and license.expires_at is not None]
    return {
        "held": len(held),
        "valid": len(valid),
        "suspended": sum(license.reason is LicenseReason.SUSPENDED for license in held),
        "expiring": sum(end - now <= EXPIRING_S for end in ends),
        "next_end": min(ends, default=None),
    }


def alerts_view(alerts: Iterable[tuple[Alert, float]]) -> list[dict[str, Any]]:
    """The alerts that were raised and not cleared, the most severe first, with when each was raised last."""
    ordered = sorted(alerts, key=lambda item: [*Severity].index(item[0].severity))
    return [
        {
            "event": alert.event,
            "severity": alert.severity.value,
            "title": alert.title,
            "action": alert.action,
            "since": int(raised),
        }
        for alert, raised in ordered
    ]


def rotation_view(ring: SecretRing) -> dict[str, Any]:
    """When the last rotation was and when the next is due."""
    newest = ring.newest
    if newest is None:
        return {"last": None, "next_due": None}
    return {"last": newest.meta.installed_at, "next_due": valid_until(newest.meta, ring.limits)}


def server_view(cycle: ContactCycle, now: int) -> dict[str, Any]:
    """The license server and the contacts with it."""
    server, record, lists = cycle.server, cycle.record, cycle.revocations
    return {
        "url": server.url,
        "serial": server.serial,
        "attestation": server.attestation,
        "key_set": server.key_set,
        "key_set_expires": server.key_set_expires,
        "last_contact": record.last,
        "failures": record.failures,
        "problem": record.problem,
        "refused": record.refused,
        "certificate_unknown": record.certificate_unknown,
        "next_contact_s": max(int(cycle.wait_s()), 0),
        "rotation": cycle.rotation.step.value,
        "revocations": lists.number,
        "revoked": len(lists.revoked),
        "revocations_until": lists.next_update,
        "revocations_stale": lists.stale(now),
        "certificate_ends": cycle.certificate_ends,
        "capabilities": list(cycle.capabilities),
        "license_number": cycle.licenses.number,
        "licenses_held": cycle.licenses.held,
        "licenses_suspended": len(cycle.licenses.withheld.suspended),
        "licenses_removed": len(cycle.licenses.withheld.removed),
        "held": cycle.held,
    }


def server_time_view(store: Store) -> dict[str, Any] | None:
    """The server-signed time that was not taken; None where the last one was."""
    found = store.record.unconfirmed
    if found is None:
        return None
    return {
        "standing": found.standing.value,
        "signed": found.time.signed,
        "clock": found.clock,
        "text": describe(found.standing, found.time.signed, found.clock),
        "action": _ACTIONS[found.standing],
    }


_ACTIONS = {
    Standing.PROVISIONAL: "Nothing: the next contact confirms it. Replace the battery of the mainboard if this comes again.",
    Standing.HELD: "Compare both clocks. A contact at least 30 minutes later confirms the server's time or drops it; if the "
    "server is right, 'license-agent-cli clock confirm' does so at once.",
    Standing.BEHIND: "Compare both clocks. If the server is right, use 'license-agent-cli clock challenge' and 'clock reset'.",
}


def confinement_view(confinement: ConfinementStatus) -> dict[str, Any]:
    """What the process may no longer do."""
    return {"exec_forbidden": confinement.exec_forbidden, "landlock_abi": confinement.landlock_abi}


def state_view(parts: AgentParts) -> dict[str, Any]:
    """The content of `state.json`."""
    core, store, kept = parts.core, parts.store, parts.mode.kept
    now = core.clock.now()
    return {
        "agent_id": core.agent_id,
        "written_at": now,
        "backend": store.status.name,
        "generation": store.generation,
        "secrets": secrets_view(store.ring, now),
        "rotation": rotation_view(store.ring),
        "degraded": parts.validator.degraded,
        "degraded_since": kept.degraded_since,
        "degraded_held": kept.degraded_held,
        "last_server_contact": kept.last_server_contact,
    }
