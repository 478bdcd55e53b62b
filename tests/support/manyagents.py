"""A fleet in the registry, made by statements: as many agents as a test of large lists needs, in seconds."""

import json
from typing import Any

from sqlalchemy import Table, insert

from server.registry import agentcounts
from server.registry.database import Database
from server.registry.models.core import Agent, Base, License, Secret
from server.registry.models.fleets import Device
from tests.server.devices import Device as Machine
from tests.server.devices import public_jwk_of

JWK = json.dumps(public_jwk_of(Machine(1).agreement))
_BATCH = 5000


def agent_id(number: int) -> str:
    return f"pos-{number:06d}"


def make_agents(database: Database, first: int, end: int, now: int) -> None:
    """Adds agents with these numbers, each with a pending secret and a license; every tenth is revoked."""
    for begin in range(first, end, _BATCH):
        numbers = range(begin, min(end, begin + _BATCH))
        rows: dict[type[Base], list[dict[str, Any]]] = {Agent: [], Device: [], Secret: [], License: []}
        for number in numbers:
            name = agent_id(number)
            rows[Agent].append(
                {
                    "id": name,
                    "serial": number + 1,
                    "hw_id": f"{number:064x}",
                    "status": "active" if number % 10 else "revoked",
                    "attestation": "software",
                    "backend": "software",
                    "agreement_key": JWK,
                    "urgent": False,
                    "created_at": now,
                    "updated_at": now,
                    "audit_turns": 0,
                }
            )
            common = {"name": "", "created_at": now, "updated_at": now, "revision": 1}
            rows[Device].append({"id": name, "kind": "agent", **common})
            secret = {"agent_id": name, "version": 1, "state": "PENDING", "sealed": b"x" * 60, "key_check": "c" * 22}
            rows[Secret].append({**secret, "valid_from": now, "valid_until": now + 9, "grace_until": now + 99, "made_at": now})
            claims = {"sub": f"shop {number}", "nbf": now, "exp": now + 99, "features": ["sales"], "metadata": {"shop": "x"}}
            rows[License].append(
                {"jti": f"lic-{number:06d}", "agent_id": name, "claims": json.dumps(claims), "secret_version": 1}
            )
        with database.write() as session:
            for model, values in rows.items():
                table = model.__table__
                assert isinstance(table, Table)
                session.execute(insert(table), values)
            revoked = sum(row["status"] == "revoked" for row in rows[Agent])
            agentcounts.add(session, {"revoked": revoked, "active": len(numbers) - revoked})
