"""A change of the verdict is one line, at once; what stays as it is says nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipc.answers import Reason, Verdict
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused, AgentUnavailable, TokenFileError
from ipc.posclient.shell import EXIT_INVALID, EXIT_UNAVAILABLE, EXIT_USAGE, EXIT_VALID, main
from ipc.posclient.shellwatch import Found, as_json, as_text, watch
from tests.ipc.fakeagent import FakeAgent, answers
from tests.support.waiting import READY_S

OK = Verdict(valid=True, reason=Reason.OK, expires_at=1_800_000_000, secret_state="ACTIVE")
GRACE = Verdict(valid=True, reason=Reason.OK, expires_at=1_800_000_000, secret_state="GRACE", reissue_due=True)
EXPIRED = Verdict(valid=False, reason=Reason.EXPIRED)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def seen(*answers_: Found, every: float = 5.0, length: float = 100.0) -> tuple[list[Found], Found, float]:
    waiting, reported, clock = list(answers_), list[Found](), Time()
    last = watch(
        lambda: waiting.pop(0) if len(waiting) > 1 else waiting[0],
        reported.append,
        every=every,
        length=length,
        clock=clock.clock,
        sleep=clock.sleep,
    )
    return reported, last, clock.now


def test_only_changes_are_reported() -> None:
    reported, last, took = seen(OK, OK, GRACE, GRACE, GRACE, EXPIRED, OK)
    assert reported == [OK, GRACE, EXPIRED, OK]
    assert (last, took) == (OK, 100.0)


def test_one_failure_in_two_texts_is_reported_once() -> None:
    first, second = AgentUnavailable("no answer within 2 s"), AgentUnavailable("no answer within 3 s")
    refused, forbidden = AgentRefused(ErrorCode.INTERNAL, "x"), AgentRefused(ErrorCode.FORBIDDEN, "x")
    assert seen(first, second, refused, forbidden, OK)[0] == [first, refused, forbidden, OK]


def test_the_last_pause_ends_with_the_time() -> None:
    assert seen(OK, every=30.0, length=70.0)[2] == 70.0
    assert seen(OK, every=30.0, length=0.0)[2] == 0.0


def test_a_line_for_people_and_one_for_programs() -> None:
    assert as_text(GRACE, 0) == "1970-01-01T00:00:00Z  valid  expires 2027-01-15T08:00:00Z  secret GRACE  reissue due"
    assert as_text(EXPIRED, 0) == "1970-01-01T00:00:00Z  not valid: expired"
    assert as_text(AgentRefused(ErrorCode.FORBIDDEN, "no\x1b[31m"), 0) == "1970-01-01T00:00:00Z  refused: FORBIDDEN: no?[31m"
    line = json.loads(as_json(EXPIRED, 5.5))
    assert (line["time"], line["verdict"]["reason"], line["error"]) == (5, "expired", None)
    line = json.loads(as_json(TokenFileError(2, "No such file or directory", "x"), 5.5))
    assert (line["verdict"], line["error"]["kind"]) == (None, "TokenFileError")


@pytest.mark.system
@pytest.mark.parametrize(
    ("content", "status"), [("good", EXIT_VALID), ("bad", EXIT_INVALID), ("", EXIT_INVALID), (None, EXIT_USAGE)]
)
def test_the_exit_status_is_that_of_the_last_verdict(socket_dir: Path, content: str | None, status: int) -> None:
    file = socket_dir / "license.token"
    if content is not None:
        file.write_text(content)
    with FakeAgent(socket_dir / "s", answers) as agent:
        assert main(["--socket", agent.path, "watch", str(file), "--for", "0"]) == status


@pytest.mark.system
def test_without_an_agent_there_is_no_answer(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = socket_dir / "license.token"
    file.write_text("good")
    arguments = ["--socket", str(socket_dir / "none"), "--deadline", "0.05", "watch", str(file), "--for", "0", "--json"]
    assert main(arguments) == EXIT_UNAVAILABLE
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "AgentUnavailable"


@pytest.mark.system
def test_a_reader_gets_each_line_at_once_and_an_interrupt_ends_it(socket_dir: Path) -> None:
    file = socket_dir / "license.token"
    file.write_text("good")
    with FakeAgent(socket_dir / "s", answers) as agent:
        command = [sys.executable, "-m", "license_agent_client", "--socket", agent.path, "--deadline", str(READY_S)]
        process = subprocess.Popen(
            [*command, "watch", "--every", "0.05", "--json", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},
            # A shell that runs the tests in the background has them, and their children, ignore the interrupt.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["verdict"]["valid"] is True
            file.write_text("bad")
            assert json.loads(process.stdout.readline())["verdict"]["reason"] == "expired"
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(READY_S)
        assert status == EXIT_INVALID
        assert process.stdout.read() == ""
        process.stdout.close()


@pytest.mark.system
def test_inspect_shows_what_the_token_says_and_what_the_agent_says(
    socket_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "eyJraWQiOiJwb3MtMDAxLzMifQ..a.b.c"
    with FakeAgent(socket_dir / "s", answers) as agent:
        assert main(["--socket", agent.path, "inspect", token]) == EXIT_VALID
    told = json.loads(capsys.readouterr().out)
    assert (told["token"]["agent_id"], told["token"]["secret_version"]) == ("pos-001", 3)
    assert (told["agent"]["agent_id"], told["verdict"]["valid"], told["agent_error"]) == ("pos-1", True, None)
    began = time.monotonic()
    assert main(["--socket", str(socket_dir / "none"), "--deadline", "0.05", "inspect", token]) == EXIT_VALID
    told = json.loads(capsys.readouterr().out)
    assert told["agent"] is told["verdict"] is None and "no answer" in told["agent_error"]
    assert time.monotonic() - began < READY_S
    assert main(["--socket", str(socket_dir / "none"), "--deadline", "0.05", "inspect", "nonsense"]) == EXIT_INVALID
