"""The first line of `status`, the line of `healthcheck`, and their exit status."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import click
import pytest

from cli import health
from cli.agent import ADMIN_DEADLINE_S, Agent, NotPermitted
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused, AgentUnavailable

LOG = {"code": "a", "verdict": "needs_attention", "text": "the log is full", "action": "Make room."}
DEAD = {"code": "b", "verdict": "not_working", "text": "grace has ended.", "action": ""}


@pytest.mark.parametrize(
    ("verdict", "findings", "status", "line", "lines"),
    [
        ("fine", [], 0, "fine: the agent validates licenses", None),
        ("needs_attention", [LOG], 1, "needs attention: the log is full. Make room.", None),
        (
            "not_working",
            [DEAD, LOG],
            2,
            "not working: grace has ended (1 more: license-agent-cli status)",
            "not working: grace has ended\n  also: the log is full. Make room.",
        ),
        ("of_a_later_release", [LOG], 1, "of a later release: the log is full. Make room.", None),
    ],
)
def test_verdicts(verdict: str, findings: list[dict[str, str]], status: int, line: str, lines: str | None) -> None:
    found: dict[str, Any] = health.health_of({"health": {"verdict": verdict, "findings": findings}})
    assert health.exit_status(found) == status
    assert _plain(health.line(found)) == line
    assert _plain(health.lines(found)) == (lines or line)


def test_no_verdict_is_never_fine() -> None:
    older = health.health_of({"agent_id": "pos-1", "mode": "online"})
    assert health.exit_status(older) == 1 and "older release" in health.line(older)
    silent = health.of_silence(AgentUnavailable("nobody answers"))
    assert health.exit_status(silent) == 3 and "not working" in health.line(silent) and "nobody answers" in health.line(silent)
    broken = health.of_refusal(AgentRefused(ErrorCode.AGENT_MISCONFIGURED, "its configuration is refused"))
    assert broken is not None and health.exit_status(broken) == 2
    assert _plain(health.line(broken)) == "not working: its configuration is refused"
    assert health.of_refusal(AgentRefused(ErrorCode.FORBIDDEN, "not you")) is None


@pytest.mark.system
def test_an_agent_that_is_stopped_while_its_socket_is_held_is_told_soon(socket_dir: Path) -> None:
    path = socket_dir / "admin.sock"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen()
        began = time.monotonic()
        found = health.health_of(Agent(str(path), False, None).ask_health(alive_within=0.2))
    assert 0.15 < time.monotonic() - began < ADMIN_DEADLINE_S / 2
    assert health.exit_status(found) == 3 and "no answer" in found["findings"][0]["text"]


def _plain(text: str) -> str:
    return click.unstyle(text)


def test_a_user_who_may_not_ask_learns_nothing_of_the_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "admin.sock"
    path.touch()
    monkeypatch.setattr(os, "access", lambda *_args: False)
    with pytest.raises(NotPermitted, match="run this as root, or add the user to the group"):
        Agent(str(path), False, None).ask_health()
    assert Agent(str(tmp_path / "none"), False, None).ask_health()["health"]["findings"][0]["code"] == "no_answer"
