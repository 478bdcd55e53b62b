"""A registry with a large fleet on PostgreSQL: what an operator and Prometheus wait for, and what check-ins cost then.

The rows are made in the database. The plans are PostgreSQL's own choice, with statistics of the whole fleet; a statement that
reads a whole table of the fleet is named.
"""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, text

from contracts.jose import b64encode
from server import wiring
from server.jobs.queue import Jobs
from server.registry import prepared
from server.serving import HOUSEKEEPING, facts

from .largeregistry import large_registry
from .server_load import Load, load_of, make_agents

LARGE = ("agent", "certificate", "secret", "license", "kept_reply", "audit")
_ROWS = {
    "agent": """INSERT INTO agent (id, serial, hw_id, status, attestation, backend, identity_key, agreement_key,
        attestation_key, urgent, created_at, updated_at, last_seen, audit_seq, audit_head, seen_version, seen_at, audit_turns)
        SELECT 'till-' || lpad(n::text, 7, '0'), 1000000 + n, encode(sha256(n::text::bytea), 'hex'),
        CASE WHEN n % 100 = 0 THEN 'revoked' ELSE 'active' END, 'attested', 'tpm', :key, :key, :key,
        false, :now, :now, :now - (n % 1800), n % 500, encode(sha256(n::text::bytea), 'hex'), 1, :now, 0
        FROM generate_series(1, :count) n""",
    "certificate": """INSERT INTO certificate (fingerprint, agent_id, number, state, issued_at, not_after, used_at)
        SELECT encode(sha256(('c' || n)::bytea), 'hex'), 'till-' || lpad(n::text, 7, '0'), to_hex(n),
        CASE WHEN n % 100 = 0 THEN 'revoked' ELSE 'active' END, :now - 86400, :now + 86400 + n % 2000000, :now - 86000
        FROM generate_series(1, :count) n""",
    "secret": """INSERT INTO secret (agent_id, version, state, sealed, key_check, valid_from, valid_until, grace_until, made_at,
        confirmed_at) SELECT 'till-' || lpad(n::text, 7, '0'), 1, 'ACTIVE', sha256(n::text::bytea), 'AAAAAAAAAAAAAAAAAAAAAA',
        :now - 86400, :now + n % 86400, :now + 604800 + n % 86400, :now - 86400, :now - 86400
        FROM generate_series(1, :count) n""",
    "license": """INSERT INTO license (jti, agent_id, claims, secret_version, revoked_at)
        SELECT 'license-' || n, 'till-' || lpad(n::text, 7, '0'), :claims, 1, NULL FROM generate_series(1, :count) n""",
    "kept_reply": """INSERT INTO kept_reply (agent_id, request_id, digest, sealed, kept_at, kept_until)
        SELECT 'till-' || lpad(n::text, 7, '0'), lpad(to_hex(n), 32, '0'), encode(sha256(n::text::bytea), 'hex'),
        sha256(n::text::bytea), :now, :now + 600 FROM generate_series(1, :count, 3) n""",
    "counter": """UPDATE counter SET value = value + CASE name WHEN 'agents.revoked' THEN :count / 100
        ELSE :count - :count / 100 END WHERE name IN ('agents.active', 'agents.revoked')""",
}


@dataclass
class Fleet:
    """What was measured. Times in seconds.

    Attributes:
        times: by what was done.
        load: check-ins of 50 agents among the others.
        scanned: statements whose true plan reads a whole table of the fleet.
        plans: how many statements were planned.
    """

    times: dict[str, float]
    load: Load
    scanned: list[str]
    plans: int


def measure_fleet(directory: Path, count: int) -> Fleet:
    """Measures a registry with so many agents.

    Args:
        directory: for the server's files; it must not exist yet.
        count: agents.
    """
    with large_registry(directory) as registry:
        server = registry.server
        times = {"make the rows": _timed(lambda: _fill(server, count))}
        agents = make_agents(server, 50, 40, directory)
        with _captured(server) as statements:
            _acts(server, times, count)
        statements |= _of_check_ins(count)
        scanned = _scanned(server, statements)
        server.close()
        times |= _commands(registry.command, registry.home, count)
        load = load_of(registry.serve, directory, agents)
    return Fleet(times, load, scanned, len(statements))


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _fill(server: wiring.Server, count: int) -> None:
    point = b64encode(bytes(32))
    key = json.dumps({"kty": "EC", "crv": "P-256", "x": point, "y": point})
    now = int(time.time())
    values = {"count": count, "now": now, "key": key, "claims": json.dumps({"exp": now + 9_000_000})}
    with server.database.write() as session:
        session.execute(text("SET LOCAL synchronous_commit = off"))
        for statement in _ROWS.values():
            names = set(re.findall(r"(?<!:):(\w+)", statement))
            session.execute(text(statement), {name: values[name] for name in names})
    with server.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def _acts(server: wiring.Server, times: dict[str, float], count: int) -> None:
    now, middle = int(time.time()), f"till-{count // 2 + 1:07d}"
    jobs = Jobs(server.database, (HOUSEKEEPING,), "bench")
    times["/metrics"] = _timed(lambda: facts(server, jobs, makes_tls=False))

    def revoke_license() -> None:
        with server.database.write() as session:
            server.licenses.revoke(session, f"license-{count // 2 + 1}", now)

    def revoke_agent() -> None:
        with server.database.write() as session:
            server.agents.set_status(session, middle, "revoked", now)

    times["revoke a license"] = _timed(revoke_license)
    times["revoke an agent"] = _timed(revoke_agent)


def _of_check_ins(count: int) -> dict[str, tuple[object, ...]]:
    """The statements of ordinary check-ins and challenges, for an agent in the middle of the fleet."""
    number, now = count // 2 + 1, int(time.time())
    certificate, agent = hashlib.sha256(f"c{number}".encode()).hexdigest(), f"till-{number:07d}"
    values: dict[str, tuple[object, ...]] = {
        prepared.LOCK_AGENT: (certificate,),
        prepared.STANDING: (now, "0" * 32, 1, certificate),
        prepared.NOTE_CONTACT: (now, 1, "0" * 64, 1, now, 0, agent),
        prepared.KEEP_REPLY: (agent, "0" * 32, "0" * 64, b"", now, now),
        prepared.CERTIFICATE: (now, certificate),
    }
    assert values.keys() == set(prepared.ALL)
    return {statement.replace("?", "%s"): parameters for statement, parameters in values.items()}


def _commands(command: str, home: Path, count: int) -> dict[str, float]:
    """What an operator types: time and, in MiB, the most memory."""
    listed = {
        "agents list --limit 100": ["agents", "list", "--limit", "100"],
        "agents list, all of them": ["agents", "list"],
        "secrets rotate --all": ["secrets", "rotate", "--all"],
    }
    found = {}
    for what, arguments in listed.items():
        began = time.perf_counter()
        done = subprocess.Popen(
            [command, *arguments, "--dir", str(home)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        _pid, status, usage = os.wait4(done.pid, 0)
        assert done.stderr is not None
        said = done.stderr.read()
        done.stderr.close()
        if status != 0:
            raise SystemExit(f"bench: {what}: {said}")
        found[f"{what} ({usage.ru_maxrss / 1024:.0f} MiB)"] = time.perf_counter() - began
    return found


@contextmanager
def _captured(server: wiring.Server) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        found[statement] = parameters

    event.listen(server.database.engine, "before_cursor_execute", note)
    yield found
    event.remove(server.database.engine, "before_cursor_execute", note)


def _scanned(server: wiring.Server, statements: dict[str, Any]) -> list[str]:
    found = []
    with server.database.engine.connect() as connection:
        for statement, parameters in statements.items():
            if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement):
                continue
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
            if any(table in LARGE for table in re.findall(r"Seq Scan on (\w+)", plan)):
                found.append(statement)
        connection.rollback()
    return found
