"""The rules by which the server trusts its own clock: each situation of a server, and every combination of evidence."""

import itertools

import pytest

from server.base.machineclock import Reading, is_synchronized, read_clocks
from server.base.ownclock import GAP_S, SETTLE_S, STEP_S, Evidence, Finding, Remote, describe, find

DAY = 86_400
SITUATIONS = {
    "it runs": (Evidence(step_s=0.1, gap_s=60), Finding.NO_STEP),
    "a time daemon slews": (Evidence(step_s=STEP_S, gap_s=60), Finding.NO_STEP),
    "resumed with a wrong clock": (Evidence(step_s=400 * DAY, gap_s=400 * DAY, synchronized_s=0), Finding.STEPPED),
    "set back": (Evidence(step_s=-3600, gap_s=-3600), Finding.STEPPED),
    "stepped, the kernel still says synchronized": (
        Evidence(step_s=8 * DAY, gap_s=8 * DAY, synchronized_s=SETTLE_S - 1), Finding.STEPPED,
    ),
    "stepped, and synchronized ever since": (
        Evidence(step_s=7200, gap_s=7200, synchronized_s=SETTLE_S), Finding.SYNCHRONIZED,
    ),
    "started before its time daemon, which then set it right": (
        Evidence(step_s=-6 * DAY, gap_s=-6 * DAY, synchronized_s=0, was_synchronized=False), Finding.SYNCHRONIZED,
    ),
    "set by hand, and never synchronized": (Evidence(step_s=6 * DAY, gap_s=6 * DAY, was_synchronized=False), Finding.STEPPED),
    "stepped, the database agrees": (Evidence(step_s=7200, gap_s=7200, remote=Remote.AGREES), Finding.DATABASE),
    "stepped, the database contradicts": (
        Evidence(step_s=7200, gap_s=7200, synchronized_s=SETTLE_S, remote=Remote.CONTRADICTS), Finding.DATABASE_CONTRADICTS,
    ),
    "new": (Evidence(), Finding.FIRST),
    "off for a month, synchronized": (Evidence(gap_s=30 * DAY, synchronized_s=0), Finding.SYNCHRONIZED),
    "off for a month, the database agrees": (Evidence(gap_s=30 * DAY, remote=Remote.AGREES), Finding.DATABASE),
    "off for a month, accepted": (Evidence(gap_s=30 * DAY, accepted=True), Finding.ACCEPTED),
    "off for a month, nobody knows": (Evidence(gap_s=30 * DAY), Finding.LONG_OFF),
    "off for a week, nobody knows": (Evidence(gap_s=GAP_S), Finding.CONTINUES),
    "restarted without a time daemon": (Evidence(gap_s=120), Finding.CONTINUES),
    "it was ahead, and is synchronized now": (Evidence(gap_s=-8 * DAY, synchronized_s=0), Finding.SYNCHRONIZED),
    "its battery is dead": (Evidence(gap_s=-20_000 * DAY), Finding.BEHIND),
    "an operator overrules the database": (
        Evidence(gap_s=30 * DAY, remote=Remote.CONTRADICTS, accepted=True), Finding.ACCEPTED,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("evidence", "finding"), list(SITUATIONS.values()), ids=list(SITUATIONS))
def test_each_situation_of_a_server(evidence: Evidence, finding: Finding) -> None:
    assert find(evidence) is finding


def test_every_finding_is_one_of_a_situation_and_says_what_to_do() -> None:
    assert {finding for _, finding in SITUATIONS.values()} == set(Finding)
    for evidence, finding in SITUATIONS.values():
        text = describe(finding, evidence)
        assert ("license-server clock accept" in text) is not finding.trusted


STEPS = (None, 0.0, STEP_S, STEP_S + 1, -STEP_S - 1, 400.0 * DAY)
GAPS = (None, 0.0, -STEP_S - 1, GAP_S, GAP_S + 1, 400.0 * DAY)
EVERY = [
    Evidence(*values) for values in itertools.product(STEPS, GAPS, (None, 0.0, SETTLE_S), (True, False), Remote, (True, False))
]


def test_downtime_alone_is_never_an_outage() -> None:
    for evidence in EVERY:
        off = evidence.step_s is None and (evidence.gap_s is None or evidence.gap_s >= 0)
        known = evidence.synchronized_s is not None or evidence.remote is Remote.AGREES or evidence.accepted
        if off and known and evidence.remote is not Remote.CONTRADICTS:
            assert find(evidence).trusted, evidence


def test_nothing_is_signed_after_a_step_unless_somebody_vouches_for_the_clock() -> None:
    for evidence in EVERY:
        if evidence.step_s is None or abs(evidence.step_s) <= STEP_S or not find(evidence).trusted:
            continue
        settled = evidence.synchronized_s is not None and (evidence.synchronized_s >= SETTLE_S or not evidence.was_synchronized)
        assert evidence.accepted or evidence.remote is Remote.AGREES or settled, evidence


def test_an_operator_and_only_an_operator_overrules_everything() -> None:
    assert all(find(evidence).trusted for evidence in EVERY if evidence.accepted)


def test_a_reading_tells_a_step() -> None:
    reading = Reading(1000.0 + 3600, 500.0 + 60, "b")
    assert reading.step_since(1000.0, 500.0) == 3540


def test_this_machine_can_be_read() -> None:
    first, second = read_clocks(), read_clocks()
    assert first.boot_id == second.boot_id and len(first.boot_id) == 36
    assert abs(second.step_since(first.wall, first.boot_s)) < 1 and second.boot_s >= first.boot_s
    assert is_synchronized() in (True, False)
