"""A registry of release 0.1.0, with rows, audit chain and sealed keys, is migrated and serves: on both databases."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import MetaData, func, insert, select, text

from common.files import write_atomic
from contracts.exchange import Cause, ConfirmRotation, RotateSecret, SecretStatus, purpose_of
from server import wiring
from server.base.settings import SETTINGS, Place, settings_of
from server.licensing.licenses.licenses import Order
from server.registry.database import Database, sqlite_url
from server.registry.migrating import alembic_config
from server.registry.models.core import REVISION, Agent
from server.web.peers import Peer
from tests.server.agentside import AgentSide
from tests.server.devices import Device
from tests.server.exchange.test_checkins import private_jwk
from tests.support.serverside import ServerSide, open_server

FORMER: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "registry-0.1.0.json").read_text("utf-8"))
NOW: int = FORMER["now"]


def fill(database: Database) -> None:
    """Puts the rows into a database of the release's revision."""
    database.make_file()
    with database.engine.connect() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, FORMER["tables"]["alembic_version"][0]["version_num"])
    with database.engine.begin() as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        for table in metadata.sorted_tables:
            rows = FORMER["tables"].get(table.name, [])
            if table.name == "alembic_version" or not rows:
                continue
            values = [{name: _value(value, table.c[name]) for name, value in row.items()} for row in rows]
            connection.execute(insert(table), values)
        if not database.is_sqlite:
            connection.execute(text("SELECT setval(pg_get_serial_sequence('claim', 'id'), max(id)) FROM claim"))


def _value(value: Any, column: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    # SQLite has no type for truth.
    return bool(value) if column.type.python_type is bool and value is not None else value


@pytest.fixture
def server(url: str | None, tmp_path: Path) -> Iterator[ServerSide]:
    directory = tmp_path / "server"
    directory.mkdir(mode=0o700)
    place = Place(directory, url or sqlite_url(directory / "server.db"), str(directory / "master.key"))
    write_atomic(directory / "master.key", base64.b64decode(FORMER["master_key"]), 0o600)
    write_atomic(directory / SETTINGS, settings_of(place))
    database = Database(place.url)
    fill(database)
    database.migrate()
    assert database.revision() == REVISION
    database.close()
    made = open_server(directory)
    yield made
    made.close()


def test_what_was_there_is_there(server: ServerSide) -> None:
    server.keys.check()
    assert server.audit.verify(server.server.cipher.audit_key()) == (len(FORMER["tables"]["audit"]), None)
    assert server.agents.count() == {"active": 2, "factory_only": 1, "revoked": 1, "retired": 0}
    with server.database.read() as session:
        counted = session.execute(select(Agent.status, func.count()).group_by(Agent.status)).all()
    assert server.agents.count() == {"retired": 0} | {str(status): int(count) for status, count in counted}
    assert [row.state for row in server.secrets.listed("pos-000001")] == ["ACTIVE", "PENDING"]
    assert server.licenses.revocations("pos-000001", NOW)[2] == ("pos-000001-0",)


def test_its_agents_go_on(server: ServerSide) -> None:
    exchange = wiring.wire_exchange(server.server)
    agent = AgentSide("pos-000001", None)
    agent.key = private_jwk(Device(1))
    peer = Peer(FORMER["certificates"]["pos-000001"], NOW - 9999, NOW + 9999, "1", "pos-000001", 1)
    check = server.secrets.listed("pos-000001")[0].key_check
    held = {"current_secret_version": 1, "key_check": check, "highest_version": 1, "serial": 1}

    def ask(kind: Any, **fields: Any) -> dict[str, Any]:
        request = agent.request(kind, str(exchange.admit(peer, NOW)), **fields)
        response = exchange.handle(purpose_of(kind), peer, agent.sign(request), NOW)
        assert response.status == 200 and response.reply is not None, response
        part = response.reply.split(".")[1]
        content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return content

    for _ in range(2):
        status = ask(SecretStatus, **held, audit_seq=8, audit_head="cd" * 32)
        assert (status["secret_version"], status["rotate_now"], status["audit_seq"]) == (1, False, 8)
        numbers = {row["name"]: row["value"] for row in FORMER["tables"]["counter"]}
        assert status["revocations"] == numbers["revocations"]  # nobody asks for a list because of the migration
    assert ask(RotateSecret, **held, cause=Cause.DUE)["delivery"]
    newer = server.secrets.listed("pos-000001")[1]
    assert ask(ConfirmRotation, secret_version=2, key_check=newer.key_check)["secret_version"] == 2
    order = Order("new", "shop", ("sales",), {}, NOW, NOW + 9999)
    assert server.licenses.issue("pos-000001", order, NOW)


def test_its_revoked_agent_stays_revoked_and_its_numbers_go_on(server: ServerSide) -> None:
    exchange = wiring.wire_exchange(server.server)
    peer = Peer(FORMER["certificates"]["pos-000004"], NOW - 9999, NOW + 9999, "1", "pos-000004", 4)
    agent = AgentSide("pos-000004", None)
    agent.key = private_jwk(Device(1))
    none = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 4}
    request = agent.sign(agent.request(SecretStatus, "A" * 75, **none))
    assert exchange.handle("secret-status", peer, request, NOW).status == 403
    assert Device(9).come(server, now=NOW).serial == 5
    server.licenses.revoke("pos-000002-1", NOW)
    numbers = [server.licenses.revocations(agent, NOW)[0] for agent in ("pos-000001", "pos-000002")]
    assert numbers[1] > numbers[0]
