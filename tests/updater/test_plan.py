"""The plan of a download: every byte is asked for once, and no answer but the right one is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.byteranges import parse_range
from ipc.linkmessages import MAX_ANSWER_BYTES
from ipc.updatermessages import UpdaterCode
from updater.failures import UpdateFailed
from updater.plan import LEAST_PIECE, Plan, piece_for

TAG, OTHER = '"a"', '"b"'


def refused(plan: Plan, status: int, **headers: str) -> str:
    with pytest.raises(UpdateFailed) as caught:
        plan.answered(status, {name.replace("_", "-"): value for name, value in headers.items()})
    return caught.value.code


def half() -> Plan:
    """A plan that asks for bytes 10 to 19 of 30."""
    plan = Plan(30, 10, 10, TAG)
    assert plan.next() is not None
    return plan


@given(st.integers(1, 500), st.integers(1, 100), st.data())
def test_every_byte_is_asked_for_once(length: int, piece: int, data: st.DataObject) -> None:
    done = data.draw(st.integers(0, length))
    plan, covered = Plan(length, piece, done), done
    while ask := plan.next():
        assert ask.part.first == covered and 0 < ask.part.size <= piece
        covered = ask.part.last + 1
        if "range" in ask.headers:
            assert parse_range(ask.headers["range"]) == ask.part
            plan.answered(206, {"etag": TAG, "content-range": f"bytes {ask.part.first}-{ask.part.last}/{length}"})
        else:
            assert ask.part.size == length, "only the whole package is asked for without a range"
            plan.answered(200, {})
        for size in data.draw(st.sampled_from([[ask.part.size], [1] * ask.part.size])):
            plan.received(size)
        plan.ended()
    assert covered == plan.done == length


def test_a_later_part_is_asked_for_on_condition() -> None:
    ask = Plan(30, 10, 10, TAG).next()
    assert ask and ask.headers == {"range": "bytes=10-19", "if-range": TAG}
    for weak in ('W/"a"', "a", "", None):
        ask = Plan(30, 10, 10, weak).next()
        assert ask and ask.headers == {"range": "bytes=10-19"}
    ask = Plan(30, 30).next()
    assert ask and ask.headers == {} and Plan(30, 10, 30).next() is None


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (200, {"etag": TAG}, UpdaterCode.CHANGED),
        (200, {"etag": OTHER}, UpdaterCode.CHANGED),
        (206, {"etag": OTHER, "content_range": "bytes 10-19/30"}, UpdaterCode.CHANGED),
        (206, {"content_range": "bytes 10-19/30"}, UpdaterCode.CHANGED),
        (206, {"etag": TAG, "content_range": "bytes 0-9/30"}, UpdaterCode.CHANGED),
        (206, {"etag": TAG}, UpdaterCode.CHANGED),
        (206, {"etag": TAG, "content_range": "bytes 10-19/31"}, UpdaterCode.LENGTH),
        (206, {"etag": TAG, "content_range": "bytes 10-14/15", "content_length": "5"}, UpdaterCode.LENGTH),
        (206, {"etag": TAG, "content_range": "bytes 10-19/30", "content_length": "1e1"}, UpdaterCode.BAD_RESPONSE),
        (416, {}, UpdaterCode.LENGTH),
        (404, {}, UpdaterCode.STATUS),
        (503, {}, UpdaterCode.STATUS),
    ],
)
def test_another_answer_than_the_part(status: int, headers: dict[str, str], code: UpdaterCode) -> None:
    assert refused(half(), status, **headers) == code


def test_another_answer_than_the_whole_package() -> None:
    def whole() -> Plan:
        plan = Plan(30, 30)
        assert plan.next() is not None
        return plan

    assert refused(whole(), 200, content_length="31") == UpdaterCode.LENGTH
    assert refused(whole(), 206, content_range="bytes 0-29/30") == UpdaterCode.STATUS
    assert refused(whole(), 416) == UpdaterCode.STATUS
    whole().answered(200, {"content-length": "30"})


def test_a_server_without_ranges_is_told_from_a_file_that_changed() -> None:
    plan = Plan(30, 10)
    assert plan.next() is not None
    assert refused(plan, 200) == plan.refused().code == UpdaterCode.NO_RANGES
    assert half().refused().code == UpdaterCode.CHANGED


def test_a_body_that_is_too_long_or_too_short() -> None:
    plan = half()
    plan.answered(206, {"etag": TAG, "content-range": "bytes 10-19/30"})
    plan.received(9)
    with pytest.raises(UpdateFailed) as caught:
        plan.ended()
    assert caught.value.code == UpdaterCode.BAD_RESPONSE
    with pytest.raises(UpdateFailed) as caught:
        plan.received(2)
    assert caught.value.code == UpdaterCode.TOO_LONG and plan.done == 19, "nothing beyond the part counts"


def test_a_part_takes_minutes_not_hours() -> None:
    assert piece_for(None) == piece_for(2**30) == MAX_ANSWER_BYTES
    assert piece_for(1024) == LEAST_PIECE and LEAST_PIECE / 1024 < 3600
    assert piece_for(65536) == 65536 * 600


@pytest.mark.parametrize(("length", "piece", "done"), [(0, 1, 0), (5, 0, 0), (5, 1, 6), (5, 1, -1)])
def test_what_is_no_plan(length: int, piece: int, done: int) -> None:
    with pytest.raises(ValueError, match="no download"):
        Plan(length, piece, done)
