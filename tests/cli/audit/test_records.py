"""A search finds what fits all of its options, in every page of the export, and no record that came after it began."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from agentd.base.alerts import ALERTS, Severity
from cli.agent import Agent
from cli.audit.records import SEVERITIES, SEVERITY_OF, Wanted
from cli.main import main

RECORD: dict[str, Any] = {
    "seq": 1,
    "class": "application",
    "time": "2027-01-15T08:00:00.500000Z",
    "event": "license.validated",
    "outcome": "expired",
    "actor": {"uid": 7, "gid": 7, "pid": 1, "name": "anna", "role": "operator"},
    "license": "shop-1",
}


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Wanted(), True),
        (Wanted(events=("license.*",)), True),
        (Wanted(events=("admin.*", "license.val*")), True),
        (Wanted(events=("license",)), False),
        (Wanted(outcomes=("ok",)), False),
        (Wanted(outcomes=("exp*",), uids=(7,), licenses=("shop-1",)), True),
        (Wanted(uids=(8,)), False),
        (Wanted(names=("anna",)), True),
        (Wanted(names=("bert", "an*")), True),
        (Wanted(names=("bert",)), False),
        (Wanted(licenses=("shop-2",)), False),
        (Wanted(since="2027-01-15T08:00:00"), True),
        (Wanted(since="2027-01-15T08:00:01"), False),
        (Wanted(until="2027-01-15T08:00:00"), False),
        (Wanted(until="2027-01-15T08:00:01"), True),
        (Wanted(severity="low"), False),
        (Wanted(kind="application"), True),
        (Wanted(kind="security"), False),
    ],
)
def test_a_record_must_fit_everything(wanted: Wanted, fits: bool) -> None:
    assert wanted.fits(RECORD) is fits


def test_records_without_an_actor_or_license_fit_only_what_does_not_ask_for_one() -> None:
    bare = {"seq": 1, "class": "security", "time": "2027-01-15T08:00:00.0Z", "event": "agent.started", "outcome": "ok"}
    assert Wanted().fits(bare) and not Wanted(uids=(0,)).fits(bare) and not Wanted(licenses=("x",)).fits(bare)
    assert not Wanted(names=("*a*",)).fits(bare)
    assert not Wanted(uids=(0,)).fits({**bare, "actor": "0"})


def test_a_severity_includes_the_ones_above_it() -> None:
    for number, least in enumerate(SEVERITIES):
        for severity in SEVERITIES:
            record = {**RECORD, "event": "alert.new", "severity": severity}
            assert Wanted(severity=least).fits(record) is (SEVERITIES.index(severity) >= number)
        assert Wanted(severity=least).fits({**RECORD, "severity": "of_a_later_release"})
        assert not Wanted(severity=least).fits(RECORD)


def test_records_of_release_0_1_0_are_found_by_what_they_report() -> None:
    named = {alert.event: alert.severity.value for alert in ALERTS}
    assert SEVERITY_OF.items() <= named.items() and set(SEVERITIES) == {each.value for each in Severity}
    for event, severity in SEVERITY_OF.items():
        assert Wanted(severity=severity).fits({**RECORD, "event": event})
    assert not Wanted(severity="high").fits({**RECORD, "event": "access.denied"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An agent with nine records that sends four a page, and gets a tenth while it is asked."""
    pages: list[int] = []

    def ask(_agent: Agent, op: str, **fields: Any) -> dict[str, Any]:
        if op == "status":
            return {"audit": {"seq": 9}}
        first = max(fields["after_seq"], 0) + 1
        pages.append(fields["after_seq"])
        numbers = range(first, min(first + 4, 11))
        return {"records": [json.dumps({**RECORD, "seq": n, "outcome": "ok" if n % 2 else "expired"}) for n in numbers]}

    monkeypatch.setattr(Agent, "ask", ask)
    return pages


def _numbers(*words: str) -> list[int]:
    done = CliRunner().invoke(main, ["--json", "audit", *words])
    return [json.loads(line)["seq"] for line in done.stdout.splitlines()]


def test_a_search_reads_every_page_to_the_end_of_when_it_began(asked: list[int]) -> None:
    assert _numbers("search") == list(range(1, 10)) and asked == [-1, 4, 8]
    assert _numbers("search", "--outcome", "ok") == [1, 3, 5, 7, 9]
    assert _numbers("search", "--outcome", "ok", "-n", "2") == [7, 9]
    assert _numbers("export", "--after", "7") == [8, 9]
    assert _numbers("export") == list(range(1, 10))


def test_nothing_found_is_a_negative_answer(asked: list[int]) -> None:
    done = CliRunner().invoke(main, ["audit", "search", "--event", "ota.*"])
    assert done.exit_code == 1 and done.stdout == "" and "no record fits" in done.stderr
    assert CliRunner().invoke(main, ["audit", "search", "--uid", "0", "--uid", "nobody-of-that-name"]).exit_code == 2
