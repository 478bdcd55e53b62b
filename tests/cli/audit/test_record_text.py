"""A line of the audit log for people names the person, and not only the user."""

from typing import Any

from click.testing import CliRunner

from cli.main import main
from cli.render import record_text

ACTOR: dict[str, Any] = {"uid": 0, "gid": 0, "pid": 9, "role": "admin", "certificate": "ab" * 32, "name": "Ann Keeper"}


def line(**fields: Any) -> str:
    record = {"seq": 1, "time": "2027-01-15T08:00:00.500000Z", "event": "admin.request", "outcome": "ok", **fields}
    return record_text(record)


def test_who_has_shown_a_certificate_is_named() -> None:
    assert "uid=0 pid=9 by=Ann Keeper (admin) op=rotate" in line(actor=ACTOR, op="rotate")
    assert "by=Ann Keeper (break-glass)" in line(actor=ACTOR | {"break_glass": True})
    assert "by=" not in line(actor={"uid": 0, "gid": 0, "pid": 9})


def test_of_a_refused_certificate_the_name_is_shown() -> None:
    assert line(outcome="revoked", shown={"certificate": "ab" * 32, "name": "Vera Look"}).endswith(" shown=Vera Look")


def test_an_outcome_without_a_color_has_no_escape() -> None:
    assert "\x1b" not in line(outcome="begun")


def test_a_time_that_is_none_is_refused_in_words() -> None:
    done = CliRunner().invoke(main, ["audit", "search", "--from", "yesterday"])
    assert done.exit_code == 2
    assert "'yesterday' is not a date or a time in UTC, such as 2027-01-31" in done.output and "%Y" not in done.output
