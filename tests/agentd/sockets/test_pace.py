"""Who connects too often is closed and counted; another process of the same user, and other users, get in."""

import json
from pathlib import Path

from agentd.audit.coalesced import CoalescedEvents
from agentd.sockets.pace import PROCESSES, ConnectPace
from ipc.bounds import DEFAULT_RATE_PER_S, MIN_CONNECTS_PER_S, UNAUTHORIZED_CONNECTS_PER_S
from ipc.peer import Peer
from tests.agentd.sockets.test_unauthorized import Door


def taken(pace: ConnectPace, peer: Peer, times: int, now: float, *, admitted: bool = True, per_s: int = 200) -> int:
    return sum(pace.take(peer, admitted=admitted, per_s=per_s, now=now) for _ in range(times))


def test_a_till_that_connects_for_each_request_is_not_held_up_before_its_request_would_be() -> None:
    pace = ConnectPace()
    for second in range(10):
        for pid in (10, 11):
            assert taken(pace, Peer(1000, 1000, pid), DEFAULT_RATE_PER_S // 2, float(second)) == DEFAULT_RATE_PER_S // 2
    assert not pace.skipped


def test_a_process_that_floods_leaves_half_to_the_others_of_its_user() -> None:
    pace = ConnectPace()
    assert taken(pace, Peer(1000, 1000, 10), 100_000, 1.0) == 100
    for tenth in range(10):
        now = 1.0 + tenth / 10
        taken(pace, Peer(1000, 1000, 10), 100_000, now)
        assert taken(pace, Peer(1000, 1000, 11), 10, now) == 10
    assert taken(pace, Peer(1001, 1001, 12), 100, 2.0) == 100
    assert pace.skipped[1000, 1000, True] > 1_099_000


def test_a_user_of_many_processes_gets_no_more_than_their_share() -> None:
    pace = ConnectPace()
    assert sum(taken(pace, Peer(1000, 1000, pid), 10, 1.0) for pid in range(5 * PROCESSES)) == 200
    assert taken(pace, Peer(1001, 1001, 1), 100, 1.0) == 100
    assert len(pace._processes.levels) <= PROCESSES


def test_strangers_have_a_pace_of_their_own() -> None:
    pace = ConnectPace()
    assert taken(pace, Peer(4242, 4242, 1), 1000, 1.0, admitted=False) == UNAUTHORIZED_CONNECTS_PER_S
    assert taken(pace, Peer(1000, 1000, 2), 100, 1.0) == 100
    assert pace.skipped == {(4242, 4242, False): 1000 - UNAUTHORIZED_CONNECTS_PER_S}


def test_a_low_rate_of_requests_leaves_the_least_pace() -> None:
    pace = ConnectPace()
    assert sum(taken(pace, Peer(1000, 1000, pid), 100, 1.0, per_s=1) for pid in range(4)) == MIN_CONNECTS_PER_S
    pace.tidy(1e6)
    assert not pace._users.levels and not pace._processes.levels


def test_what_was_skipped_is_counted_and_logged_as_one(tmp_path: Path) -> None:
    door = Door(tmp_path)
    door.knocks(3001, 50)
    door.strangers.skipped(Peer(3001, 3001, 0), 30_000)
    assert door.counters.unauthorized == 30_050
    door.audit.close()
    records = [json.loads(line) for line in door.path.read_bytes().splitlines()]
    assert sum(record.get("count", 1) for record in records if record["event"] == "access.denied") == 30_050
    assert len(records) < 6


def test_many_at_once_are_counted_in_the_table_that_survives(tmp_path: Path) -> None:
    table = CoalescedEvents(tmp_path / "repeats")
    assert table.count("k", 1.8e9, lambda: {"event": "x"}, times=5)
    assert table.count("k", 1.8e9, lambda: {"event": "x"}, times=7)
    table.close()
    found = CoalescedEvents(tmp_path / "repeats")
    assert [repeat.count for repeat in found.recover()] == [12]
    found.close()
