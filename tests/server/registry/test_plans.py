"""Every statement of the running server is served by an index: on PostgreSQL, planned with sequential scans turned off.

What is left as a sequential scan then has no index that serves it, and would read a whole table at a million agents.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from contracts.contact.capabilities import AnnounceCapabilities
from contracts.contact.licensesync import SyncLicenses
from contracts.contact.usage import MeterTotal, ReportUsage
from contracts.exchange import (
    Cause,
    ConfirmRotation,
    ReissueLicenses,
    RenewCertificate,
    Request,
    RevocationList,
    RotateSecret,
    SecretStatus,
    ValidateLicense,
    purpose_of,
)
from server import serving, wiring
from server.agents import retirement
from server.agents.clones import Report
from server.jobs.queue import Jobs
from server.licensing.licenses import replacement, usage
from server.licensing.licenses.licenses import Order
from server.licensing.lists.license_list import Filter, devices, ending, listed
from server.licensing.sales import products
from server.licensing.states.history import history
from server.licensing.states.license_states import State
from server.registry import events
from server.registry.agentcounts import STATUSES
from server.registry.allowance import Allowance
from server.registry.prepared import Statements
from server.web.peers import peer_of
from tests.server.agentside import AgentSide
from tests.server.devices import NOW, Device, der, make_csr
from tests.server.exchange.test_checkins import private_jwk
from tests.server.licensing.selling import Vendor
from tests.support.licensing import suspend, transfer
from tests.support.postgres import Postgres
from tests.support.serverside import Acts, ServerSide, open_server

LARGE = {
    "agent",
    "allowance",
    "audit",
    "certificate",
    "claim",
    "customer",
    "device",
    "device_attribute",
    "device_configuration",
    "device_seen",
    "device_tag",
    "device_version",
    "event",
    "fleet_member",
    "former_license",
    "kept_reply",
    "license",
    "license_change",
    "provision_session",
    "secret",
    "site",
    "trial",
    "usage_counter",
    "usage_day",
}
"""Tables that grow with the fleet or with time; the others have a few rows."""
COUNTED = re.compile(r"^SELECT count\(\*\) AS count_\d+\s+FROM kept_reply$")
"""Housekeeping counts the kept replies every ten minutes: there are at most half a million, and an index alone is read."""


@pytest.fixture
def server(tmp_path: Path, postgres: Postgres) -> Iterator[ServerSide]:
    with postgres.database() as url:
        plan = wiring.Plan("https://license.example", ("localhost",), tmp_path / "root.key", None)
        wiring.create_server(tmp_path / "server", plan, NOW, url)
        made = open_server(tmp_path / "server")
        yield made
        made.close()


@contextmanager
def captured(server: ServerSide) -> Iterator[dict[str, Any]]:
    """The statements that are run, each with the parameters that it had last."""
    found: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        found[statement] = parameters

    real = Statements._cursor

    def note_prepared(self: Statements, statement: str, parameters: tuple[object, ...]) -> Any:
        found[statement.replace("?", "%s")] = parameters
        return real(self, statement, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Statements, "_cursor", note_prepared)
        event.listen(server.database.engine, "before_cursor_execute", note)
        yield found
        event.remove(server.database.engine, "before_cursor_execute", note)


def scans(server: ServerSide, statements: dict[str, Any]) -> list[tuple[str, str]]:
    """Large tables that a statement reads from one end to the other."""
    found = []
    with server.database.engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in statements.items():
            if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement) or COUNTED.match(
                " ".join(statement.split())
            ):
                continue
            one = parameters[0] if isinstance(parameters, list) else parameters
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", one))
            for table in re.findall(r"Seq Scan on (\w+)", plan):
                if table in LARGE:
                    found.append((table, statement))
        connection.rollback()
    return found


def everything(server: ServerSide) -> None:
    """What agents ask, in all its turns, and what the server does beside that."""
    exchange = wiring.wire_exchange(server.server)
    made = Device(1).come(server)
    agent = AgentSide(made.agent_id)
    agent.key = private_jwk(Device(1))
    peer = peer_of(der(made.certificates[0]))
    now = peer.not_before + 4000
    server.secrets.rotate_by_hand(made.agent_id, now)
    server.licenses.issue(made.agent_id, Order("a", "x", ("f",), {}, now, now + 999), now)
    check = server.secrets.listed(made.agent_id)[-1].key_check
    held = {"current_secret_version": 1, "key_check": check, "highest_version": 1, "serial": 1}

    def ask(kind: type[Request], **fields: Any) -> None:
        for text in [agent.sign(agent.request(kind, str(exchange.admit(peer, now)), **fields))] * 2:
            assert exchange.handle(purpose_of(kind), peer, text, now).status in (200, 403, 409)

    ask(SecretStatus, **held)
    ask(SecretStatus, **held, audit_seq=5, audit_head="0" * 64)
    ask(SecretStatus, **held, audit_seq=4, audit_head="0" * 64)
    ask(RotateSecret, **held, cause=Cause.DUE)
    ask(ConfirmRotation, secret_version=2, key_check="A" * 22)
    ask(ReissueLicenses, licenses=("a", "b"), secret_version=1)
    ask(ValidateLicense, token="x.y.z")
    ask(RevocationList)
    ask(RenewCertificate, csr=make_csr(Device(1).tls))
    ask(AnnounceCapabilities, capabilities=("announce-capabilities", "sync-licenses"))
    ask(SecretStatus, **held, license_number=0)
    ask(SecretStatus, **held)
    for number in range(40):
        server.licenses.issue(made.agent_id, Order(f"many-{number}", "x", ("f",), {}, now, now + 999), now)
    suspend(server, "many-0", now)
    transfer(server, "many-1", Device(3).come(server).agent_id, now)
    for known, after in ((0, ""), (1, ""), (now, "present:many-1"), (now, "former:")):
        ask(SyncLicenses, license_number=known, secret_version=1, after=after)
    for amount in (1, 2):
        totals = (MeterTotal(license="many-2", meter="sales", epoch="0f" * 16, total=amount),)
        ask(ReportUsage, totals=totals)
    with server.database.read() as session:
        usage.listed(session, usage.Which(begin=1), None, 9)
        usage.listed(session, usage.Which(license_id="a"), usage.Used(1, "a", "b", "c", 1, None), 9)
        usage.sums(session, usage.Which(), usage.Sum("a", "b", 1, 1, 1), 9)
    server.licenses.revoke("a", now)
    server.clones.observe(made.agent_id, Report(9, now + 5), now + 5)
    server.clones.observe(made.agent_id, Report(1, now + 6), now + 6)
    ask(SecretStatus, **held)
    server.clones.resume(made.agent_id, now)
    other = peer_of(der(Device(2).come(server).certificates[0]))
    with server.database.write() as session:
        session.execute(serving_delete(other.fingerprint))
    assert exchange.refuse_unknown(other, now) is None
    server.agents.set_status(made.agent_id, "revoked", now)
    ask(SecretStatus, **held)
    jobs = Jobs(server.database, (serving.HOUSEKEEPING,), "test")
    Acts(retirement, server.database).retire(made.agent_id, now)
    wiring.housekeeping(server.server).run(now, confirmed=True)
    Allowance(server.database).take_lot("agent a", now)
    jobs.claim(now)
    jobs.finished(serving.HOUSEKEEPING, now)
    serving.facts(server.server, jobs, makes_tls=True)
    with server.database.read() as session:
        events.listed(session, 5, 10)
        events.listed(session, 5, 10, "a")


def serving_delete(fingerprint: str) -> Any:
    """A certificate that a restored registry has lost."""
    from sqlalchemy import delete

    from server.registry.models.core import Certificate

    return delete(Certificate).where(Certificate.fingerprint == fingerprint)


def selling(server: ServerSide) -> None:
    """What operators ask of licenses, customers and products, with every filter."""
    vendor = Vendor(server)
    vendor.sell("x", vendor.agents[0])
    vendor.do("suspend", "x")
    vendor.do("reinstate", "x")
    vendor.do("transfer", "x", vendor.agents[1])
    customers = server.server.customers
    names = {
        "agent_id": vendor.agents[0],
        "customer": "c-1",
        "site": "s-1",
        "policy": "year",
        "product": "till",
        "subject": "c-1",
    }
    with server.database.read() as session:
        for which in (*(Filter(**{name: value}) for name, value in names.items()), *(Filter(state=state) for state in State)):
            listed(session, NOW, after="a", limit=5, which=which)
            ending(session, NOW, NOW, NOW + 10**9, listed(session, NOW, limit=1)[0], 5, which)
        devices(session, NOW, "a", 5)
        history(session, "x", 1, 5)
        customers.listed(session, "a", 5)
        customers.sites(session, "c-1", "a", 5)
        customers.sites(session, None, "a", 5)
        products.products(session, "a", 5)
        products.policies(session, "till", "a", 5)
        products.sets(session, "a", 5)
    with server.database.write() as session:
        customers.erase(session, "c-1", NOW)
        replacement.replace(session, vendor.agents[1], vendor.agents[0], NOW)


def test_no_list_of_the_vendors_reads_a_whole_table(server: ServerSide) -> None:
    with captured(server) as statements:
        selling(server)
    assert sum("FROM license" in statement for statement in statements) > 20
    assert scans(server, statements) == []


def test_no_statement_reads_a_whole_table(server: ServerSide) -> None:
    with captured(server) as statements:
        everything(server)
    assert len(statements) > 60
    assert scans(server, statements) == []


def test_a_statement_without_an_index_would_be_seen(server: ServerSide) -> None:
    without = {"SELECT id FROM agent WHERE backend = %s": ("tpm",)}
    assert scans(server, without) == [("agent", "SELECT id FROM agent WHERE backend = %s")]


LISTS: tuple[dict[str, str], ...] = (
    {"prefix": "pos-0"},
    {"prefix": "pos-0", "after": "pos-000001"},
    *({"status": status} for status in STATUSES),
    *({"status": status, "prefix": "pos-0"} for status in STATUSES),
)


@pytest.mark.parametrize("asked", LISTS, ids=str)
def test_a_page_of_agents_is_read_from_an_index_in_its_order(server: ServerSide, asked: dict[str, str]) -> None:
    """Nothing that is read is thrown away or sorted: the page costs as much as its rows, however many agents there are."""
    with captured(server) as statements:
        server.agents.listed(**asked, limit=500)
    ((statement, parameters),) = ((each, with_) for each, with_ in statements.items() if "FROM agent" in each)
    with server.database.engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")
        connection.exec_driver_sql("SET enable_bitmapscan = off")
        connection.exec_driver_sql("SET enable_sort = off")
        plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters))
        connection.rollback()
    assert "Index Cond" in plan and not re.search(r"Filter|Sort|Seq Scan", plan), plan
