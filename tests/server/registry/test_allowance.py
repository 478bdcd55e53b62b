"""What an agent may ask of all processes together."""

from functools import partial

from server.base.limits import AGENT_RATE
from server.registry.allowance import KEPT_S, LOT, PROCESS_RATE, SHARED_RATE, Allowance
from server.registry.housekeeping import Housekeeping
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

LOTS = SHARED_RATE.burst // LOT


def test_with_one_process_an_agent_has_its_whole_rate() -> None:
    assert PROCESS_RATE.burst + SHARED_RATE.burst == AGENT_RATE.burst and SHARED_RATE.burst % LOT == 0


def test_all_processes_together_give_out_so_many_lots(server: ServerSide) -> None:
    processes = [Allowance(server.database) for _ in range(6)]
    acts = [partial(each.take_lot, "agent a", NOW) for each in processes]
    assert sum(at_once(acts)) == LOTS
    assert sum(each.take_lot("agent a", NOW + 1) for each in processes) == 0
    assert sum(each.take_lot("agent b", NOW + 1) for each in processes) == LOTS
    assert sum(each.take_lot("agent a", NOW + int(LOT / AGENT_RATE.per_second)) for each in processes) == 1
    assert sum(each.take_lot("agent a", NOW + 1000) for each in processes) == LOTS


def test_a_clock_that_was_wrong_leaves_nobody_without(server: ServerSide) -> None:
    allowance = Allowance(server.database)
    assert sum(allowance.take_lot("agent a", NOW + 86_400) for _ in range(6)) == LOTS
    assert sum(allowance.take_lot("agent a", NOW) for _ in range(6)) == LOTS
    assert not allowance.take_lot("agent a", NOW - 30)


def test_buckets_that_are_full_again_go(server: ServerSide) -> None:
    Allowance(server.database).take_lot("agent a", NOW)
    keeping = Housekeeping(server.database, server.server.cipher.audit_key())
    assert "allowance" not in keeping.run(NOW + KEPT_S, confirmed=True).rows
    assert keeping.run(NOW + KEPT_S + 1, confirmed=True).rows["allowance"] == 1
