"""Rows that nothing needs any more go, in batches, on both databases; nothing else goes, whatever the clock says."""

import pytest
from sqlalchemy import func, select, text

from server.accounts.roles import Role
from server.acts import approvals
from server.base.errors import RegistryError
from server.exchange.kept_replies import SHORT_KEPT_S
from server.licensing.secrets.secret_states import State
from server.registry import audit
from server.registry.models.core import AuditRecord, Base, Certificate, EnrollmentToken, KeptReply, Secret
from server.registry.models.operators import OperatorReply
from server.registry.upkeep import housekeeping
from server.registry.upkeep.housekeeping import APPROVALS_KEPT_S, MAX_STEP_S, REPLIES_NEEDED_S, SECRET_IN_USE, Housekeeping
from server.registry.upkeep.retention import DAY_S, Retention, retention, set_retention
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

ID = "pos-000001"
DAYS = Retention()


def count(server: ServerSide, table: type[Base]) -> int:
    with server.database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def house(server: ServerSide) -> Housekeeping:
    return Housekeeping(server.database, server.cipher.audit_key())


def clean(server: ServerSide, now: int) -> dict[str, int]:
    """A run at a time that the operator vouches for."""
    return house(server).run(now, confirmed=True).rows


def verified(server: ServerSide) -> tuple[int, str | None]:
    found: tuple[int, str | None] = server.audit.verify(server.cipher.audit_key())
    return found


def test_what_other_rooms_say_is_what_housekeeping_goes_by() -> None:
    assert REPLIES_NEEDED_S == SHORT_KEPT_S and State.ACTIVE.value == SECRET_IN_USE


def test_expired_rows_go_and_others_stay(server: ServerSide) -> None:
    Device(1).come(server)
    server.secrets.rotate_by_hand(ID, NOW, 3600, 3600)
    server.secrets.rotate_by_hand(ID, NOW + DAY_S, 3600, 3600)
    server.replies.keep(ID, "0" * 32, "digest", "reply", NOW)
    unused = server.enrollment_tokens.create(None, False, 3600, NOW)
    attempt = server.enrollment_tokens.use(unused, Device(2).hw_id, NOW)
    server.enrollment_tokens.start_attempt("aa" * 16, attempt, b"{}", b"n" * 32, None, NOW)
    before = {table: count(server, table) for table in (Certificate, EnrollmentToken, KeptReply, Secret)}
    assert clean(server, NOW) == {}
    assert {table: count(server, table) for table in before} == before
    assert clean(server, NOW + 5 * DAY_S) == {"kept_reply": 1, "provision_session": 1, "secret (destroyed)": 1}
    assert clean(server, NOW + DAYS.enrollment_tokens * DAY_S + 3601) == {"claim": 2, "event": 1}
    assert clean(server, NOW + (DAYS.secrets + 2) * DAY_S) == {"secret": 1}
    assert [row.version for row in server.secrets.listed(ID)] == [2], "new versions follow the newest, which stays"
    assert clean(server, NOW + (30 + DAYS.certificates) * DAY_S - 1) == {}
    assert clean(server, NOW + (30 + DAYS.certificates) * DAY_S) == {"certificate": 1}
    assert clean(server, NOW + 10_000 * DAY_S).keys() <= {"audit"}
    assert server.secrets.listed(ID)[-1].version == 2


def test_many_rows_go_in_batches(server: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 7)
    with server.database.write() as session:
        for number in range(40):
            server.within(session).replies.keep("pos-1", f"{number:032x}", "digest", None, NOW)
    transactions: list[int] = []
    write = server.database.write
    monkeypatch.setattr(server.database, "write", lambda: (transactions.append(1), write())[1])
    assert clean(server, NOW + 3 * DAY_S) == {"kept_reply": 40}
    assert len(transactions) >= 6


def test_replies_of_all_agents_have_a_bound(server: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "MAX_REPLIES_IN_ALL", 10)
    with server.database.write() as session:
        for number in range(30):
            server.within(session).replies.keep(f"pos-{number}", "0" * 32, "digest", None, NOW + number)
    assert clean(server, NOW + 30) == {}, "a request that is fresh could act twice"
    assert clean(server, NOW + 30 + SHORT_KEPT_S) == {"kept_reply": 20}
    assert server.replies.find("pos-29", "0" * 32) is not None and server.replies.find("pos-0", "0" * 32) is None


def test_a_clock_that_is_wrong_for_a_while_removes_next_to_nothing(server: ServerSide) -> None:
    Device(1).come(server)
    server.replies.keep(ID, "0" * 32, "digest", "reply", NOW)
    keeper = house(server)
    assert keeper.run(NOW).rows == {}
    for number in range(3):
        assert keeper.run(NOW + 4000 * DAY_S + number).rows == {}
    assert keeper.run(NOW + 60).rows == {}, "the clock is right again"
    server.replies.keep(ID, "1" * 32, "digest", "reply", NOW)
    assert keeper.run(NOW + 4000 * DAY_S).rows == {}
    now = NOW + 60
    while count(server, KeptReply):
        now += MAX_STEP_S
        keeper.run(now + 4000 * DAY_S)
    assert now - NOW >= 46 * 3600


def test_a_first_run_with_a_wrong_clock_removes_nothing(server: ServerSide) -> None:
    Device(1).come(server)
    assert house(server).run(NOW + 4000 * DAY_S).rows == {}


# Audit


def written(server: ServerSide, records: int, now: int) -> None:
    with server.database.write() as session:
        for number in range(records):
            audit.record(session, "admin", "probe", "ok", now, number=number)


def test_the_chain_verifies_from_where_retention_has_cut_it(server: ServerSide) -> None:
    written(server, 150, NOW)
    written(server, 50, NOW + DAYS.audit * DAY_S)
    whole = verified(server)
    assert whole == (201, None)
    assert clean(server, NOW + DAYS.audit * DAY_S) == {}
    removed = clean(server, NOW + DAYS.audit * DAY_S + 1)
    assert removed == {"audit": 151}
    assert verified(server) == (202, None)
    assert server.audit.tail(1)[0].event == "audit.removed"
    assert clean(server, NOW + DAYS.audit * DAY_S + 2) == {}
    written(server, 3, NOW + DAYS.audit * DAY_S)
    assert verified(server) == (205, None)


def test_a_removal_that_is_cut_off_in_the_middle_leaves_a_chain_that_verifies(server: ServerSide) -> None:
    written(server, 150, NOW)
    with server.database.write() as session:
        last = audit.announce_removal(session, NOW + 1, NOW + 2, server.cipher.audit_key())
    assert last == 151
    for left in (100, 51, 0):
        with server.database.write() as session:
            audit.remove_announced(session, last, 51 if left else 1000)
        assert verified(server) == (152, None), left


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DELETE FROM audit WHERE seq <= 160", "record 152 is missing"),
        ("DELETE FROM audit WHERE seq = 155", "record 155 is missing"),
        ("DELETE FROM audit WHERE seq = 171", "record 171 is missing"),
        ("UPDATE audit SET outcome = 'x' WHERE seq = 152", "record 152 was changed"),
        ("UPDATE audit SET fields = replace(fields, '151', '161') WHERE seq = 172", "record 1 is missing"),
    ],
)
def test_what_was_removed_without_a_word_is_missing(server: ServerSide, statement: str, found: str) -> None:
    written(server, 150, NOW)
    written(server, 20, NOW + DAYS.audit * DAY_S)
    assert clean(server, NOW + DAYS.audit * DAY_S + 1) == {"audit": 151}
    assert verified(server) == (172, None)
    with server.database.write() as session:
        session.execute(text(statement))
    assert verified(server)[1] == found


def test_the_end_of_the_chain_cannot_be_cut_off(server: ServerSide) -> None:
    written(server, 5, NOW)
    with server.database.write() as session:
        session.execute(text("DELETE FROM audit WHERE seq = 6"))
    assert verified(server) == (5, "record 6 is missing")


def test_few_records_are_not_worth_a_removal(server: ServerSide) -> None:
    assert clean(server, NOW + 5000 * DAY_S) == {}
    assert count(server, AuditRecord) == 1


# Settings


def test_the_retention_can_be_changed_within_bounds(server: ServerSide) -> None:
    with server.database.write() as session:
        assert retention(session) == DAYS
        set_retention(session, {"audit": 0, "secrets": 7}, NOW)
        assert retention(session) == Retention(audit=0, secrets=7)
    written(server, 150, NOW)
    assert "audit" not in clean(server, NOW + 9000 * DAY_S)
    for changes in ({"certificates": 400}, {"enrollment_tokens": 0}, {"secrets": 40_000}):
        with server.database.write() as session, pytest.raises(RegistryError, match="are kept from"):
            set_retention(session, changes, NOW)


def test_replies_and_approvals_of_operators_go_when_their_time_is_over(server: ServerSide) -> None:
    with server.database.write() as session:
        for number, until in enumerate((NOW, NOW + 1)):
            session.add(OperatorReply(id=f"{number}", digest="d", sealed=b"x", kept_until=until))
        for number, end in enumerate((NOW - APPROVALS_KEPT_S, NOW - APPROVALS_KEPT_S + 1)):
            begun, roles = end - approvals.LASTS_S, frozenset({Role.ADMINISTRATOR})
            asked = approvals.ask(session, "agents.revoke_many", "{}", f"{number}", "", "olga", "c", roles, begun)
            assert asked.expires_at == end
    removed = clean(server, NOW)
    assert (removed["operator_reply"], removed["approval"]) == (1, 1)
    with server.database.read() as session:
        assert [row.id for row in session.scalars(select(OperatorReply))] == ["1"]
