"""Usage that is counted at the till arrives at the server once: whatever is lost, comes again or is stopped on the way."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.licenses.usage import Counting
from agentd.uplink.transport import Response
from contracts.contact.capabilities import ANNOUNCE
from contracts.contact.configuration import CONFIGURATION
from contracts.contact.licensesync import SYNC
from contracts.contact.usage import REPORT
from server.exchange import capabilities as server_side
from server.exchange import service
from server.licensing.licenses import usage
from server.licensing.licenses.licenses import Order
from server.licensing.licenses.usage import Which
from tests.agentd.sync.test_licenses import audited
from tests.support.pair import AGENT, LICENSE, START, Pair, prepare

_ids = itertools.count(1)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("usage"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    contact(made)
    yield made
    made.close()


def contact(pair: Pair) -> list[str]:
    """One contact, which succeeds; what it asked."""
    pair.clock.seconds += 2
    before = len(pair.wire.seen)
    failed = pair.contact()
    assert failed is None, failed
    return [each for each in pair.wire.seen[before:] if each != CONFIGURATION]  # which is asked at each contact


def count(pair: Pair, amount: int = 1, license_id: str = LICENSE, count_id: int | None = None) -> Counting:
    counters = pair.agent.agent.assembled.usage
    assert counters is not None
    used = (next(_ids) if count_id is None else count_id).to_bytes(16, "big")
    return (counters.known("sales", amount, used) or counters.count(license_id, "sales", amount, used)).how


def test_what_the_server_does_not_know_yet_is_in_the_metrics(pair: Pair) -> None:
    def metric() -> bool:
        return b"license_agent_usage_counters_unreported 1" in pair.agent.agent.publisher.render_metrics()

    assert not metric()
    count(pair)
    assert metric()
    contact(pair)
    contact(pair)
    assert not metric()


def told(pair: Pair) -> int:
    """What the server knows."""
    with pair.server.server_side.database.read() as session:
        return sum(row.amount for row in usage.sums(session, Which(), None, 99))


def test_a_contact_reports_what_was_counted_and_one_without_news_nothing(pair: Pair) -> None:
    assert REPORT not in contact(pair)
    count(pair, 3)
    count(pair, 4)
    assert contact(pair)[-1] == REPORT and told(pair) == 7
    assert REPORT not in contact(pair)
    count(pair)
    assert REPORT in contact(pair) and told(pair) == 8


def test_a_restarted_agent_reports_once_what_the_server_may_know(pair: Pair) -> None:
    count(pair, 3)
    contact(pair)
    pair.restart_agent()
    count(pair, 2)
    contact(pair)
    assert told(pair) == 5 and REPORT not in contact(pair)


def test_counts_of_a_long_time_offline_arrive(pair: Pair) -> None:
    pair.wire.cut = True
    for _ in range(3):
        count(pair, 5)
        pair.clock.seconds += 3600
        assert pair.contact() is not None
        pair.restart_agent()
    pair.wire.cut = False
    contact(pair)
    assert told(pair) == 15


FATES = ["request_lost", "reply_lost", "duplicated", "delayed", "replayed", "before", "acted", "kept", None]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(FATES), st.booleans()), min_size=1, max_size=5))
def test_whatever_happens_to_a_report_each_usage_is_told_once(pair: Pair, days: list[tuple[int, str | None, bool]]) -> None:
    contact(pair)
    before = told(pair)
    for amount, fate, restarts in days:
        count(pair, amount)
        if fate in ("before", "acted", "kept"):
            pair.wire.fate.server_stops = REPORT, fate
        elif fate is not None:
            pair.wire.fate.message = REPORT, fate
        pair.clock.seconds += 2
        # A report of before that arrives only now may stop the server in the middle of something else.
        pair.contact()
        pair.wire.fate.message = pair.wire.fate.server_stops = None
        if restarts:
            pair.restart_agent()
    contact(pair)
    contact(pair)
    assert told(pair) - before == sum(amount for amount, _fate, _restarts in days)
    assert [each for each in pair.server.server_side.audit.tail(100) if each.event == "alert.usage_went_back"] == []


def test_an_older_disk_is_an_alert_and_counts_go_on_in_another_epoch(pair: Pair) -> None:
    file = pair.config.usage_file
    count(pair, 3)
    contact(pair)
    old = file.read_bytes()
    count(pair, 4)
    contact(pair)
    pair.agent.end()
    file.write_bytes(old)
    pair.restart_agent()
    count(pair, 1)
    contact(pair)
    assert told(pair) == 7
    (alert,) = [each for each in pair.server.server_side.audit.tail(100) if each.event == "alert.usage_went_back"]
    assert (alert.fields["total"], alert.fields["before"], alert.outcome) == (4, 7, "alert")
    assert [each["outcome"] for each in audited(pair, "usage.reported")] == ["behind"]
    count(pair, 5)
    contact(pair)
    assert told(pair) == 12


def test_usage_of_a_license_of_others_is_refused_once_and_logged(pair: Pair) -> None:
    count(pair, 3, "somebody else's")
    contact(pair)
    assert told(pair) == 0 and REPORT not in contact(pair)
    assert [each["outcome"] for each in audited(pair, "usage.reported")] == ["refused"]


def test_a_server_that_does_not_know_the_request_is_not_asked(
    copy: Callable[[Path], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def knows(*names: str) -> None:
        for module in (server_side, service):
            monkeypatch.setattr(module, "CAPABILITIES", names)

    knows(ANNOUNCE, SYNC)
    pair = copy(tmp_path / "pair")
    try:
        asyncio.run(pair.agent.cycle._negotiation.forget(REPORT))
        contact(pair)
        count(pair, 3)
        assert REPORT not in contact(pair)
        knows(ANNOUNCE, SYNC, REPORT)
        pair.restart_agent()
        assert contact(pair)[-1] == REPORT and told(pair) == 3
    finally:
        pair.close()


JUNK = [
    Response(404, b'{"error": {"code": "not_found", "text": "there is no such path"}}'),
    Response(503, b"", 60.0),
    Response(200, b""),
    Response(200, b"\xff"),
    Response(200, b'{"reply": "a.b.c"}'),
    Response(200, b'{"reply": null}'),
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: f"{junk.status} {junk.body[:20]!r}")
def test_a_contact_succeeds_whatever_answers_the_report(pair: Pair, junk: Response) -> None:
    count(pair, 3)
    real = pair.wire._ask
    pair.wire._ask = lambda name, text: junk if name == REPORT else real(name, text)  # type: ignore[method-assign]
    contact(pair)
    pair.wire._ask = real  # type: ignore[method-assign]
    contact(pair)
    assert told(pair) == 3


def test_a_license_that_the_server_gives_allows_the_meter(pair: Pair) -> None:
    order = Order("metered", "shop", ("meter:sales",), {}, START, START + 300 * 86_400)
    pair.server.server_side.licenses.issue(AGENT, order, pair.server.now)
    contact(pair)
    assert count(pair, 3, "metered") is Counting.COUNTED
    asyncio.run(pair.agent.agent.assembled.usage.sync())  # type: ignore[union-attr]
    contact(pair)
    with pair.server.server_side.database.read() as session:
        (row,) = usage.listed(session, Which(license_id="metered"), None, 9)
    assert (row.amount, row.agent_id, row.day) == (3, AGENT, pair.server.now // 86_400)
