"""`status` shows what somebody must look at first, an older agent's reply too, and leaves out what is not known."""

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.agent import Agent
from cli.main import main
from cli.status import status
from cli.status.statustext import status_text, watch_line

NOW = 1_800_000_000
SERVER: dict[str, Any] = {
    "url": "https://server:8443",
    "serial": 1,
    "attestation": "attested",
    "key_set": 1,
    "key_set_expires": NOW,
    "last_contact": NOW,
    "failures": 0,
    "problem": None,
    "next_contact_s": 60,
    "rotation": "idle",
    "revocations": 0,
    "revoked": 0,
    "revocations_until": NOW,
    "revocations_stale": False,
    "certificate_ends": NOW,
    "held": False,
}
OLD: dict[str, Any] = {
    "agent_id": "pos-1",
    "agent_version": "0.1.0",
    "uptime_s": 60,
    "backend": {
        "name": "tpm",
        "available": True,
        "detail": "TPM 2.0",
        "protects_stolen_disk": True,
        "state": "available",
        "binding": "none",
        "nv_writes": 3,
    },
    "secrets": {"active": 1, "grace": 0, "total": 1},
    "rotation": {"last": NOW, "next_due": NOW + 60},
    "degraded_since": None,
    "mode": "online",
    "server": SERVER,
    "clock_suspect": False,
    "time": NOW,
    "validations": 0,
    "validations_failed": 0,
    "unauthorized": 0,
    "audit": {"seq": 1, "failing": False},
    "confinement": {"exec_forbidden": True, "landlock_abi": 6},
}
"""As an agent of release 0.1.0 replies."""
NEW = {
    **OLD,
    "secrets": {**OLD["secrets"], "newest": 7},
    "licenses": {"held": 3, "valid": 2, "suspended": 1, "expiring": 1, "next_end": NOW + 86_400},
    "alerts": [
        {"event": "alert.x", "severity": "high", "title": "The TPM cannot be used", "action": "Look.", "since": NOW - 7200},
    ],
}


def test_a_reply_of_release_0_1_0_is_shown_without_what_it_lacks() -> None:
    text = click.unstyle(status_text(OLD))
    assert "alerts" not in text and "held" not in text and "newest" not in text
    assert "validations  0, of which 0 refused" in text and "TPM\n" in text and "those of release 0.1.0" in text


def test_alerts_come_first_with_severity_and_since_when() -> None:
    text = click.unstyle(status_text(NEW))
    assert text.splitlines()[:2] == ["alerts", "  high  The TPM cannot be used, since 2027-01-15 06:00:00Z (2 h ago)"]
    assert "held         3, of which 2 valid, 1 suspended" in text
    assert "expiring     1 within 14 days, the first at 2027-01-16 08:00:00Z (in 1 d)" in text


def test_degraded_mode_says_since_when_and_by_whom() -> None:
    server = {**SERVER, "held": True}
    text = click.unstyle(status_text({**NEW, "mode": "degraded", "degraded_since": NOW - 60, "server": server}))
    assert "degraded, since 2027-01-15 07:59:00Z (1 min ago), switched on by an administrator" in text


def test_the_tpm_shows_what_weakens_it() -> None:
    backend = {**OLD["backend"], "nv_budget_left": 4, "lockout_counter": 2, "hierarchies_open": ["owner"]}
    text = click.unstyle(status_text({**NEW, "backend": backend}))
    assert "3, 4 left of today's budget" in text and "2 counted by the TPM" in text and "hierarchies owner" in text
    software = click.unstyle(status_text({**NEW, "backend": {**backend, "name": "software", "detail": "no keys"}}))
    assert "NV writes" not in software and "\nbackend\n" in software and "TPM" not in software.replace("The TPM cannot", "")


def test_nothing_is_said_of_what_does_not_exist_yet() -> None:
    assert "update" not in status_text(NEW) and "not built" not in status_text(NEW)


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the agent replies, one after another; then the administrator presses Ctrl-C."""
    waiting: list[dict[str, Any]] = []

    def reply(_agent: Agent, alive_within: float = 0.0) -> dict[str, Any]:
        if not waiting:
            raise KeyboardInterrupt
        return waiting.pop(0)

    monkeypatch.setattr(Agent, "ask_health", reply)
    monkeypatch.setattr(status.time, "sleep", lambda _seconds: None)
    return waiting


FINE = {"health": {"verdict": "fine", "findings": []}}


def _bad(text: str) -> dict[str, Any]:
    finding = {"code": "server_unreachable", "verdict": "needs_attention", "text": text, "action": "Look."}
    return {"health": {"verdict": "needs_attention", "findings": [finding]}}


def test_a_watch_prints_a_line_at_each_change_and_no_other(replies: list[dict[str, Any]]) -> None:
    failing = {**NEW, "server": {**SERVER, "failures": 4}}
    moved = {**NEW, "validations": 9, "uptime_s": 99, "time": NOW + 9}
    replies += [{**NEW, **FINE}, {**moved, **FINE}, {**failing, **_bad("4 failed")}, {**failing, **_bad("5 failed")}]
    done = CliRunner().invoke(main, ["status", "--watch"])
    lines = done.output.splitlines()
    assert len(lines) == 2 and done.exit_code == 1, done.output
    assert "fine: the agent validates licenses; online, secret 7, backend available, 2 of 3 licenses valid" in lines[0]
    assert "needs attention: 4 failed. Look.; online, secret 7" in lines[1] and "contacts fail" in lines[1]
    assert "high alert alert.x" in lines[0]


def test_a_watch_in_json_is_an_object_a_line(replies: list[dict[str, Any]]) -> None:
    silence = {"code": "no_answer", "verdict": "not_working", "text": "gone", "action": ""}
    replies += [{**NEW, **FINE}, {"health": {"verdict": "not_working", "findings": [silence]}}]
    done = CliRunner().invoke(main, ["--json", "status", "--watch"])
    first, second = (json.loads(line) for line in done.output.splitlines())
    assert first["health"]["verdict"] == "fine" and second["state"] == "" and done.exit_code == 3


def test_without_a_license_agent_there_is_no_state_to_watch() -> None:
    assert watch_line({"mode": "unprovisioned"}) == "" and watch_line({}) == ""
    assert "licenses" not in watch_line(OLD)


UPDATES: dict[str, Any] = {
    "state": "window",
    "running": [{"product": "pos", "version": "1.0", "build_id": "b1", "in_trial": False, "previous": None}],
    "update": {"product": "pos", "version": "2.0", "build_id": "b2"},
    "waits": {"code": "window", "text": "the window is closed", "until": NOW},
    "paused": None,
    "problem": None,
    "attempts": 0,
    "failure": None,
    "rehearsal_overdue": False,
}


def test_an_update_is_shown_with_what_it_waits_for() -> None:
    text = click.unstyle(status_text({**NEW, "updates": UPDATES}))
    section = text.split("\nupdates\n")[1].split("\n\n")[0].splitlines()
    assert [" ".join(line.split()) for line in section] == [
        "state window",
        "pos 1.0 (build b1)",
        "update pos 2.0 (build b2)",
        "waits the window is closed, until 2027-01-15 08:00:00Z",
    ]


def test_a_locked_update_says_why_and_a_test_bench_that_it_must_rehearse() -> None:
    locked = {"state": "locked", "update": None, "waits": None, "running": [], "attempts": 3, "rehearsal_overdue": True}
    failure = {"code": "unproved", "text": "the health command failed"}
    text = click.unstyle(status_text({**NEW, "updates": {**UPDATES, **locked, "failure": failure, "paused": "x has paused"}}))
    for row in ("LOCKED", "3 in a row: the health command failed", "rehearsal        OVERDUE", "x has paused"):
        assert row in text, text


def test_an_update_that_is_hindered_says_what_to_do() -> None:
    text = click.unstyle(status_text({**NEW, "updates": {**UPDATES, "problem": "no room (no-room)", "action": "Make room."}}))
    assert [" ".join(line.split()) for line in text.splitlines() if "oom" in line] == [
        "problem no room (no-room)",
        "do Make room.",
    ]


def test_a_machine_without_updates_has_no_section_for_them() -> None:
    assert status_text({**NEW, "updates": None}) == status_text(NEW)
