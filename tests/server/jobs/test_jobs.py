"""Timed work: done by one process at a time, again after a failure or a kill, and never hindered by a wrong clock."""

from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from server.jobs.queue import RETRY_S, Jobs, Plan, Standing
from server.jobs.runner import Runner
from tests.server.atonce import at_once
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

PLAN = Plan("housekeeping", every_s=600, lease_s=1800)
OTHER = Plan("other", every_s=30, lease_s=60)


def jobs_of(server: ServerSide, holder: str = "a", *plans: Plan) -> Jobs:
    return Jobs(server.database, plans or (PLAN,), holder)


def test_a_job_is_due_at_once_and_then_after_its_interval(server: ServerSide) -> None:
    jobs = jobs_of(server)
    assert jobs.claim(NOW) == PLAN
    jobs.finished(PLAN, NOW + 5)
    assert jobs.claim(NOW + 604) is None
    assert jobs.claim(NOW + 605) == PLAN
    assert jobs.standings(NOW + 606) == [Standing("housekeeping", 0, NOW + 5, 0)]


def test_of_many_processes_one_gets_a_job(server: ServerSide) -> None:
    jobs_of(server, "x", OTHER).claim(NOW)  # the table is not empty
    acts: list[Callable[[], Plan | None]] = [
        lambda number=number: jobs_of(server, f"process {number}").claim(NOW)
        for number in range(6)  # type: ignore[misc]
    ]
    with_first_row = [found for found in at_once(acts) if found is not None]
    assert with_first_row == [PLAN]


def test_what_a_killed_process_had_is_due_again_after_its_lease(server: ServerSide) -> None:
    first, second = jobs_of(server, "a"), jobs_of(server, "b")
    assert first.claim(NOW) == PLAN
    assert second.claim(NOW + 1799) is None
    assert second.claim(NOW + 1800) == PLAN
    first.finished(PLAN, NOW + 1801)  # it was only slow: the job is not its own any more
    assert second.standings(NOW + 1802) == [Standing("housekeeping", 0, None, 0)]
    second.finished(PLAN, NOW + 1803)
    assert second.standings(NOW + 1803 + 610) == [Standing("housekeeping", 10, NOW + 1803, 0)]


def test_a_job_that_fails_is_tried_again_soon_and_counted(server: ServerSide) -> None:
    jobs = jobs_of(server, "a", PLAN, OTHER)
    for number in (1, 2):
        claimed = [jobs.claim(NOW + number * 1000) for _ in range(3)]
        assert claimed[2] is None and {PLAN, OTHER} == set(claimed[:2])
        jobs.failed(PLAN, NOW + number * 1000)
        jobs.failed(OTHER, NOW + number * 1000)
        assert jobs.claim(NOW + number * 1000 + OTHER.every_s) == OTHER  # no later than its interval
        jobs.finished(OTHER, NOW + number * 1000 + OTHER.every_s)
    found = {each.name: each for each in jobs.standings(NOW + 2000 + RETRY_S + 5)}
    assert (found["housekeeping"].failures, found["housekeeping"].late_s) == (2, 5)
    assert found["other"].failures == 0


@pytest.mark.parametrize("ahead", [900, 86_400 * 400])
def test_a_wrong_clock_delays_a_job_by_no_more_than_its_interval(server: ServerSide, ahead: int) -> None:
    jobs = jobs_of(server)
    jobs.claim(NOW + ahead)
    jobs.finished(PLAN, NOW + ahead)
    assert jobs.claim(NOW) == PLAN


def test_a_lease_of_a_wrong_clock_ends(server: ServerSide) -> None:
    jobs_of(server, "killed").claim(NOW + 86_400)
    assert jobs_of(server).claim(NOW) == PLAN


def test_a_job_of_a_newer_release_is_left_alone(server: ServerSide) -> None:
    jobs_of(server, "newer", OTHER).claim(NOW)
    assert jobs_of(server).claim(NOW + 10_000) == PLAN
    assert jobs_of(server).claim(NOW + 10_000) is None


def test_the_runner_does_what_is_due_and_one_failure_stops_no_other(
    server: ServerSide, caplog: pytest.LogCaptureFixture
) -> None:
    did: list[tuple[str, int]] = []

    def fails(now: int) -> None:
        did.append(("housekeeping", now))
        raise ValueError("a secret")

    work = {"housekeeping": fails, "other": lambda now: did.append(("other", now))}
    runner = Runner(jobs_of(server, "a", PLAN, OTHER), work, lambda: NOW)
    assert runner.run() == 1
    assert sorted(did) == [("housekeeping", NOW), ("other", NOW)]
    assert "a job failed" in caplog.text and "a secret" not in caplog.text
    assert runner.run() == 0


def test_a_database_that_does_not_answer_ends_no_process(server: ServerSide, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_self: Jobs, _now: int) -> None:
        raise OperationalError("x", {}, Exception())

    monkeypatch.setattr(Jobs, "claim", gone)
    assert Runner(jobs_of(server), {"housekeeping": print}, lambda: NOW).run() == 0
