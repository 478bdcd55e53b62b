"""Ordinary check-ins: the shortcut replies, and leaves the registry, as the whole exchange would; else it does nothing."""

import itertools
import json
import os
import random
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from contracts.exchange import RotateReply, SecretStatus, StatusReply
from contracts.jose import b64decode
from server import wiring
from server.agents.clones import Report
from server.exchange.checkins import CheckIns
from server.exchange.kept_replies import MAX_KEPT, KeptReplies
from server.exchange.service import Exchange
from server.registry.models.core import Agent, AuditRecord, Certificate, Counter, KeptReply, Secret
from server.registry.prepared import Prepared, Statements
from server.web.peers import Peer
from server.web.responses import Response
from tests.server.agentside import AgentSide, new_id
from tests.server.devices import NOW, Device, fingerprint
from tests.support.serverside import ServerSide

ID = "pos-000001"
CHECK = "A" * 22
HEADS = ("0" * 64, "1" * 64)
TABLES = (Agent, Certificate, Secret, KeptReply, AuditRecord, Counter)


class Shortcut(CheckIns):
    """Counts what it answers."""

    answered = 0

    def answer(self, peer: Peer, text: str, now: int) -> str | None:
        found = super().answer(peer, text, now)
        self.answered += found is not None
        return found


class World:
    def __init__(self, server: ServerSide) -> None:
        self.server = server
        made = Device(1).come(server)
        self.agent = AgentSide(ID)
        self.agent.key = private_jwk(Device(1))
        self.print = fingerprint(made.certificates[0])
        self.peer = Peer(self.print, NOW - 1, NOW + 86_400, "1", ID, 1)
        same = itertools.repeat(b"\1")
        replies = KeptReplies(server.cipher)
        self.replies = replies

        def bytes_of(count: int) -> bytes:
            return next(same) * count

        self.shortcut = Shortcut(Prepared(server.database), server.keys, replies, bytes_of)
        with_shortcut = wiring.wire_exchange(server.server, bytes_of)
        self.whole = Exchange(server.database, server.keys, with_shortcut._stores, bytes_of)
        self.short = Exchange(server.database, server.keys, with_shortcut._stores, bytes_of, self.shortcut)

    def request(self, **changes: Any) -> SecretStatus:
        fields = {"current_secret_version": 1, "key_check": CHECK, "highest_version": 1, "serial": 1}
        challenge = changes.pop("challenge", self.whole.challenge(self.print, NOW))
        made = self.agent.request(SecretStatus, challenge, **{**fields, **changes})
        assert isinstance(made, SecretStatus)
        return made

    def used(self) -> None:
        """The certificate has been used, as after a first contact."""
        self.server.certificates.note_use(ID, self.print, NOW - 100)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        found = {}
        with self.server.database.read() as session:
            for table in TABLES:
                name = table.__tablename__
                order = ", ".join(column.name for column in table.__table__.primary_key)
                found[name] = [dict(row) for row in session.execute(text(f"SELECT * FROM {name} ORDER BY {order}")).mappings()]
        return found

    def restore(self, rows: dict[str, list[dict[str, Any]]]) -> None:
        with self.server.database.write() as session:
            for table in reversed(TABLES):
                session.execute(table.__table__.delete())  # type: ignore[attr-defined]
            for table in TABLES:
                for row in rows[table.__tablename__]:
                    session.execute(table.__table__.insert().values(**row))  # type: ignore[attr-defined]

    def readable(self, rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """The rows with kept replies opened and without what differs from one signature to the next."""
        kept = [{**row, "sealed": None if row["sealed"] is None else self._opened(row)} for row in rows["kept_reply"]]
        # A secret that was made for this request is random.
        secrets = [row if row["sealed"] == b"x" else {**row, "sealed": None, "key_check": ""} for row in rows["secret"]]
        return {**rows, "kept_reply": kept, "secret": secrets}

    def _opened(self, row: dict[str, Any]) -> Any:
        if row["digest"] == "old":
            return bytes(row["sealed"])
        with self.server.database.read() as session:
            kept = self.replies.find(session, row["agent_id"], row["request_id"])
        assert kept is not None and kept.reply is not None
        return _content(kept.reply)


def private_jwk(device: Device) -> dict[str, str]:
    numbers = device.identity.private_numbers()
    from contracts.jose import b64encode

    parts = {"x": numbers.public_numbers.x, "y": numbers.public_numbers.y, "d": numbers.private_value}
    return {"kty": "EC", "crv": "P-256", **{name: b64encode(value.to_bytes(32, "big")) for name, value in parts.items()}}


def _content(reply: str) -> Any:
    header, payload, _signature = reply.split(".")
    return json.loads(b64decode(header)), json.loads(b64decode(payload))


def _said(response: Response) -> Any:
    reply = None if response.reply is None else _content(response.reply)
    return response.status, reply, response.code, response.text, response.retry_after_s


@pytest.fixture
def world(server: ServerSide) -> World:
    return World(server)


def test_an_ordinary_check_in_takes_four_statements_and_no_savepoint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.used()
    ran: list[str] = []
    real = Statements._cursor

    def noted(self: Statements, statement: str, parameters: tuple[object, ...]) -> Any:
        ran.append(statement.split()[0])
        return real(self, statement, parameters)

    monkeypatch.setattr(Statements, "_cursor", noted)
    world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW)  # loads the keys
    ran.clear()
    answer = world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW)
    assert answer.status == 200 and world.shortcut.answered == 2
    assert ran == ["SELECT", "SELECT", "UPDATE", "INSERT"]


@dataclass
class Case:
    """A state of the registry and a request."""

    agent: dict[str, Any]
    certificates: list[dict[str, Any]]
    secrets: list[dict[str, Any]]
    kept: int
    request: dict[str, Any]
    repeated: bool
    forged: bool
    stale: bool


def make_case(rng: random.Random) -> Case:
    """A random one; each part is ordinary most of the time."""

    def maybe(usual: Any, *others: Any) -> Any:
        return usual if rng.random() < 0.92 else rng.choice(others)

    seq = rng.choice([None, 5, 6])
    agent = {
        "status": maybe("active", "revoked", "factory_only"),
        "urgent": maybe(False, True),
        "halted_at": maybe(None, NOW - 50),
        "halt_reason": None,
        "halt_version": maybe(None, 2),
        "audit_seq": seq,
        "audit_head": None if seq is None else rng.choice(HEADS),
        "audit_turns": rng.choice([0, 1, 2]),
        "seen_version": rng.choice([None, 0, 1, 2]),
        "seen_at": rng.choice([None, NOW - 10, NOW + 5]),
        "last_seen": rng.choice([None, NOW - 10, NOW + 5]),
        "capabilities": maybe(None, "", "announce-capabilities sync-licenses"),
        "license_changes": rng.choice([None, 0, NOW - 3]),
    }
    certificates = [
        {"state": maybe("active", "superseded", "revoked"), "issued_at": NOW - 60, "used_at": maybe(NOW - 50, None)},
        {"state": maybe("superseded", "active"), "issued_at": maybe(NOW - 70, NOW + 500),
         "used_at": rng.choice([None, NOW - 55, NOW - 5])},
    ]  # fmt: skip
    states = ["PENDING", "ACTIVE", "GRACE", "ENDED", "DIVERGED", "INVALIDATED"]
    secrets = [
        {"version": number, "state": rng.choice(states), "key_check": rng.choice([CHECK, "B" * 22]),
         "valid_until": NOW + rng.choice([-5, 5]), "grace_until": NOW + rng.choice([-4, 50])}
        for number in range(1, rng.randrange(5))
    ]  # fmt: skip
    audit = rng.choice([None, 4, 5, 6, 7])
    request = {
        "current_secret_version": rng.randrange(4),
        "highest_version": rng.randrange(5),
        "audit_seq": audit,
        "audit_head": None if audit is None else rng.choice(HEADS),
    }
    if rng.random() < 0.5:
        request["license_number"] = rng.choice([0, 5, NOW - 3])
    request["key_check"] = None if request["current_secret_version"] == 0 else CHECK
    kept = maybe(3, MAX_KEPT - 1, MAX_KEPT, MAX_KEPT + 3)
    return Case(agent, certificates, secrets, kept, request, maybe(False, True), maybe(False, True), maybe(False, True))


def put(world: World, case: Case, request_id: str) -> None:
    with world.server.database.write() as session:
        for table in (Secret, KeptReply):
            session.query(table).delete()
        agent = session.get_one(Agent, ID)
        for name, value in case.agent.items():
            setattr(agent, name, value)
        session.query(Certificate).filter(Certificate.fingerprint != world.print).delete()
        first = session.get_one(Certificate, world.print)
        for name, value in case.certificates[0].items():
            setattr(first, name, value)
        session.add(Certificate(fingerprint="cd" * 32, agent_id=ID, number="2", not_after=NOW + 999, **case.certificates[1]))
        for row in case.secrets:
            session.add(Secret(agent_id=ID, sealed=b"x", valid_from=NOW - 99, made_at=NOW - 99, **row))
        for number in range(case.kept):
            name = request_id if case.repeated and number == 0 else f"{number:032x}"
            sealed = world.replies.sealed(ID, name, "a.b.c")
            row = KeptReply(
                agent_id=ID, request_id=name, digest="old", sealed=sealed, kept_at=NOW - number, kept_until=NOW + 99
            )
            session.add(row)


@pytest.mark.parametrize("seed", range(3))
def test_shortcut_and_whole_exchange_agree(world: World, seed: int) -> None:
    rng = random.Random(seed)
    ordinary = 0
    for _ in range(40):
        case, request_id = make_case(rng), new_id()
        put(world, case, request_id)
        challenge = world.whole.challenge(world.print, NOW - 400 if case.stale else NOW)
        request = world.request(challenge=challenge, request_id=request_id, **case.request)
        other = AgentSide(ID).key if case.forged else None
        signed = world.agent.sign(request, key=other)
        before = world.rows()
        expected = _said(world.whole.handle("secret-status", world.peer, signed, NOW))
        after = world.readable(world.rows())
        world.restore(before)
        count = world.shortcut.answered
        found = _said(world.short.handle("secret-status", world.peer, signed, NOW))
        assert found == expected, case
        assert world.readable(world.rows()) == after, case
        ordinary += world.shortcut.answered - count
    assert 3 <= ordinary <= 35


def test_a_request_that_comes_again_gets_the_kept_reply(world: World) -> None:
    world.used()
    signed = world.agent.sign(world.request())
    first = world.short.handle("secret-status", world.peer, signed, NOW)
    again = world.short.handle("secret-status", world.peer, signed, NOW)
    assert (first.status, world.shortcut.answered) == (200, 1) and again.reply == first.reply


def test_a_revoked_agent_is_refused_from_the_next_request_on(world: World) -> None:
    world.used()
    assert world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW).status == 200
    world.server.agents.set_status(ID, "revoked", NOW)
    assert world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW).status == 403
    assert not world.shortcut.counts(world.peer, NOW)


@pytest.mark.system
def test_a_process_that_is_killed_in_the_middle_has_changed_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.used()
    signed, before = world.agent.sign(world.request()), world.rows()
    world.server.database.close()  # no connection is shared with the child
    child = os.fork()
    if child == 0:
        real = Statements.write

        def killed(self: Statements, statement: str, *parameters: object) -> None:
            real(self, statement, *parameters)
            if statement.startswith("INSERT"):
                os.kill(os.getpid(), 9)

        monkeypatch.setattr(Statements, "write", killed)
        world.short.handle("secret-status", world.peer, signed, NOW)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert world.rows() == before
    assert world.short.handle("secret-status", world.peer, signed, NOW).status == 200


def test_connections_that_the_database_has_ended_cost_no_check_in(world: World) -> None:
    world.used()
    assert world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW).status == 200
    if world.server.database.is_sqlite:
        world.server.database.close()  # SQLite never ends one by itself
    else:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        with world.server.database.write() as session:
            end = text(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}")
            assert session.execute(end).scalar_one() >= 1
    answers = [world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert world.shortcut.counts(world.peer, NOW)


def test_a_database_that_fails_at_the_end_is_an_error_and_no_reply(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.used()
    before = world.rows()

    def fails(_self: Statements, _statement: str, *_parameters: object) -> None:
        raise SQLAlchemyError

    monkeypatch.setattr(Statements, "write", fails)
    answer = world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW)
    assert (answer.status, answer.reply) == (503, None)
    assert world.rows() == before


def test_what_the_shortcut_leaves_alone_is_handled_as_ever(world: World) -> None:
    first = world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW)
    assert first.status == 200 and world.shortcut.answered == 0  # the first use of a certificate
    assert world.shortcut.counts(world.peer, NOW)
    world.server.clones.observe(ID, Report(3, NOW + 1), NOW)
    late = world.short.handle("secret-status", world.peer, world.agent.sign(world.request()), NOW)
    assert late.status == 200 and late.reply is not None
    assert msgspec.convert(_content(late.reply)[1], StatusReply) is not None
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(_content(late.reply)[1], RotateReply)
