"""The state as people and tools see it: for `state.json`, `status` and `secrets`. Pure; never a secret in it."""

from typing import Any

from agentd.base.confinement import Confinement
from agentd.licenses.validator import Engine
from agentd.secrets.lifecycle import State, grace_until, valid_until
from agentd.sync.cycle import Contacts
from hwsec.backend import BackendStatus

from .statefile import Kept


def secrets_view(engine: Engine, now: int) -> list[dict[str, Any]]:
    """The versions with states and dates, oldest first."""
    return [
        {
            "version": stored.meta.version,
            "state": engine.state_of(stored, now).value,
            "valid_from": stored.meta.valid_from,
            "valid_until": valid_until(stored.meta, engine.limits),
            "grace_until": grace_until(stored.meta, engine.limits),
            "installed_at": stored.meta.installed_at,
            "invalidated_at": stored.meta.invalidated_at,
        }
        for stored in engine.versions
    ]


def count_states(engine: Engine, now: int) -> tuple[int, int]:
    """How many versions are ACTIVE, and how many GRACE."""
    states = [engine.state_of(stored, now) for stored in engine.versions]
    return states.count(State.ACTIVE), states.count(State.GRACE)


def rotation_view(engine: Engine) -> dict[str, Any]:
    """When the last rotation was and when the next is due."""
    newest = engine.newest
    if newest is None:
        return {"last": None, "next_due": None}
    return {"last": newest.meta.installed_at, "next_due": valid_until(newest.meta, engine.limits)}


def server_view(contacts: Contacts, now: int) -> dict[str, Any]:
    """What there is to say of the server, and of the contacts with it."""
    binding, record, lists = contacts.binding, contacts.record, contacts.revocations
    return {
        "url": binding.url,
        "serial": binding.serial,
        "attestation": binding.attestation,
        "key_set": binding.key_set,
        "key_set_expires": binding.key_set_expires,
        "last_contact": record.last,
        "failures": record.failures,
        "problem": record.problem,
        "next_contact_s": max(int(contacts.wait_s()), 0),
        "rotation": contacts.rotation.step.value,
        "revocations": lists.number,
        "revoked": len(lists.revoked),
        "revocations_until": lists.next_update,
        "revocations_stale": lists.stale(now),
        "certificate_ends": contacts.certificate_ends,
        "held": contacts.held,
    }


def confinement_view(confinement: Confinement) -> dict[str, Any]:
    """What the process has put on itself."""
    return {"exec_forbidden": confinement.exec_forbidden, "landlock_abi": confinement.landlock_abi}


def state_view(engine: Engine, status: BackendStatus, generation: int, kept: Kept, now: int) -> dict[str, Any]:
    """The content of `state.json`."""
    return {
        "agent_id": engine.agent_id,
        "written_at": now,
        "backend": status.name,
        "generation": generation,
        "secrets": secrets_view(engine, now),
        "rotation": rotation_view(engine),
        "degraded": engine.degraded,
        "degraded_since": kept.degraded_since,
        "degraded_held": kept.degraded_held,
        "last_server_contact": kept.last_server_contact,
    }
