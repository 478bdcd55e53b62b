"""What an agent may ask of all processes together."""

import random
from functools import partial

import pytest
from sqlalchemy import event, text

from server.base.limits import AGENT_RATE
from server.registry.allowance import CLOCK_TOLERANCE_S, KEPT_S, LOT, PROCESS_RATE, SHARED_RATE, Allowance
from server.registry.upkeep.housekeeping import Housekeeping
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.support.serverside import ServerSide


def allowance_of(server: ServerSide) -> Allowance:
    """One that goes by the time that the test gives."""
    return Allowance(server.database, own_clock=False)


LOTS = SHARED_RATE.burst // LOT


def test_with_one_process_an_agent_has_its_whole_rate() -> None:
    assert PROCESS_RATE.burst + SHARED_RATE.burst == AGENT_RATE.burst and SHARED_RATE.burst % LOT == 0


def test_all_processes_together_give_out_so_many_lots(server: ServerSide) -> None:
    processes = [allowance_of(server) for _ in range(6)]
    acts = [partial(each.take_lot, "agent a", NOW) for each in processes]
    assert sum(at_once(acts)) == LOTS
    assert sum(each.take_lot("agent a", NOW + 1) for each in processes) == 0
    assert sum(each.take_lot("agent b", NOW + 1) for each in processes) == LOTS
    assert sum(each.take_lot("agent a", NOW + int(LOT / AGENT_RATE.per_second)) for each in processes) == 1
    assert sum(each.take_lot("agent a", NOW + 1000) for each in processes) == LOTS


def test_a_clock_that_was_wrong_leaves_nobody_without(server: ServerSide) -> None:
    allowance = allowance_of(server)
    assert sum(allowance.take_lot("agent a", NOW + 86_400) for _ in range(6)) == LOTS
    assert not allowance.take_lot("agent a", NOW)
    assert allowance.take_lot("agent a", NOW + int(LOT / AGENT_RATE.per_second))


def test_a_clock_that_goes_to_and_fro_gives_no_more(server: ServerSide) -> None:
    allowance = allowance_of(server)
    for skew in (1, 9, 59):
        name, given = f"agent {skew}", 0
        for second in range(30):
            given += allowance.take_lot(name, NOW + second) + allowance.take_lot(name, NOW + second + skew)
        assert given * LOT <= SHARED_RATE.burst + AGENT_RATE.per_second * (30 + min(skew, 60))


def test_buckets_that_are_full_again_go(server: ServerSide) -> None:
    allowance_of(server).take_lot("agent a", NOW)
    keeping = Housekeeping(server.database, server.server.cipher.audit_key())
    assert "allowance" not in keeping.run(NOW + KEPT_S, confirmed=True).rows
    assert keeping.run(NOW + KEPT_S + 1, confirmed=True).rows["allowance"] == 1


def test_the_clock_that_counts_is_the_databases(server: ServerSide) -> None:
    allowance = Allowance(server.database)
    given = sum(allowance.take_lot("agent a", NOW + each * 1000) for each in range(6))
    assert given == (6 if server.database.is_sqlite else LOTS)  # SQLite's clock is the one of its only process


def by_the_rule(bucket: tuple[float, int] | None, now: int) -> tuple[bool, tuple[float, int]]:
    """What a bucket gives, and what is in it then: the rule that the statements follow."""
    level, at = bucket or (float(SHARED_RATE.burst), now)
    reckoned = now if at > now + CLOCK_TOLERANCE_S else max(at, now)
    level = min(float(SHARED_RATE.burst), level + max(0, reckoned - at) * SHARED_RATE.per_second)
    if level >= LOT:
        return True, (level - LOT, reckoned)
    return False, (level, now) if at > reckoned else bucket or (level, reckoned)


@pytest.mark.parametrize("seed", range(3))
def test_the_statements_follow_the_rule(server: ServerSide, seed: int) -> None:
    allowance, chance = allowance_of(server), random.Random(seed)
    now, bucket = NOW, None
    for _ in range(60):
        now += chance.choice((0, 1, 2, 3, 10, 100, -1, -59, -60, -61, -500))
        given, bucket = by_the_rule(bucket, now)
        assert allowance.take_lot("agent a", now) == given
        with server.database.read() as session:
            found = session.execute(text("SELECT level, at FROM allowance WHERE name = 'agent a'")).one()
        assert tuple(found) == bucket


def test_a_lot_is_taken_without_sqlalchemy(server: ServerSide) -> None:
    allowance, statements = Allowance(server.database), []
    event.listen(server.database.engine, "before_cursor_execute", lambda *each: statements.append(each[2]))
    assert allowance.take_lot("agent a", NOW) and not statements


def test_a_connection_that_was_lost_gives_no_lot_beyond_those_that_there_are(server: ServerSide) -> None:
    allowance, given = allowance_of(server), 0
    for _ in range(LOTS + 2):
        given += allowance.take_lot("agent a", NOW)
        lose_connections(server)
    assert given == LOTS


def lose_connections(server: ServerSide) -> None:
    """Ends the driver's connections from the other side; SQLite's are closed."""
    if server.database.is_sqlite:
        with server.database.driver(writing=False) as pooled:
            assert pooled.dbapi_connection is not None
            pooled.dbapi_connection.close()
        return
    with server.database.write() as session:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        session.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
