"""Scripts can tell by the exit status what became of a license: valid, not valid, wrong usage, no answer, refused."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipc.posclient.shell import EXIT_INVALID, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE, EXIT_VALID, main
from tests.ipc.fakeagent import FakeAgent, answers, answers_with, error, frame, success

pytestmark = pytest.mark.system


def run(directory: Path, *arguments: str, act: Any = answers) -> int:
    with FakeAgent(directory / "s", act) as agent:
        return main(["--socket", agent.path, "--deadline", "5", *arguments])


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["validate", "good"], EXIT_VALID),
        (["validate", "bad"], EXIT_INVALID),
        (["validate", "é"], EXIT_USAGE),
        (["validate", "@/no/such/file"], EXIT_USAGE),
        (["refresh", "old"], EXIT_VALID),
        (["refresh", "newest"], EXIT_INVALID),
        (["require", "a"], EXIT_VALID),
        (["require", "a", "--product", "p"], EXIT_VALID),
        (["require", "b"], EXIT_INVALID),
        (["require", ""], EXIT_USAGE),
        (["require", "x" * 65], EXIT_USAGE),
        (["count", "a"], EXIT_VALID),
        (["count", "a", "--amount", "3", "--id", "0f" * 16], EXIT_VALID),
        (["count", "b"], EXIT_INVALID),
        (["consent"], EXIT_VALID),
        (["consent", "ready"], EXIT_VALID),
        (["consent", "busy", "--minutes", "30"], EXIT_VALID),
        (["count", "B"], EXIT_USAGE),
        (["licenses"], EXIT_VALID),
        (["licenses", "--metadata"], EXIT_VALID),
        (["info"], EXIT_VALID),
        (["ping"], EXIT_VALID),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_each_outcome_has_its_exit_status(
    socket_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    assert run(socket_dir, *arguments) == status
    out, err = capsys.readouterr()
    assert bool(out) == (status == EXIT_VALID or arguments in (["validate", "bad"], ["require", "b"], ["count", "b"]))
    assert err.startswith("license-agent-client: ") if not out else err == ""


def test_the_verdict_is_json(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(socket_dir, "validate", "bad")
    told = json.loads(capsys.readouterr().out)
    assert (told["valid"], told["reason"]) == (False, "expired")


@pytest.mark.parametrize("wrong", [["--amount", "0"], ["--amount", "4294967296"], ["--id", "0f"], ["--id", "x" * 32]], ids=str)
def test_a_count_of_another_form_is_wrong_usage(socket_dir: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(socket_dir, "count", "a", *wrong)
    assert ended.value.code == EXIT_USAGE


def test_a_count_is_json(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(socket_dir, "count", "a", "--id", "0f" * 16)
    wanted = {"counted": True, "repeated": False, "reason": "ok", "license_id": "l-1", "count_id": "0f" * 16}
    assert json.loads(capsys.readouterr().out) == wanted


def test_the_licenses_of_the_machine_are_json(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(socket_dir, "require", "a", "--product", "p")
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], found["reason"], found["license_id"], found["product"]) == (True, "ok", "l-1", "p")
    (socket_dir / "s").unlink()
    run(socket_dir, "licenses")
    assert [held["license_id"] for held in json.loads(capsys.readouterr().out)] == ["1", "2", "3"]


@pytest.mark.parametrize("command", ["require a", "licenses"])
def test_an_agent_that_is_too_old_is_a_refusal(socket_dir: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(socket_dir, *command.split(), act=error(5)) == EXIT_REFUSED
    assert "update license-agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["validate good", "validate bad", "refresh old", "require a", "licenses", "info", "watch --for 0"]
)
def test_an_output_that_cannot_be_written_is_named_and_is_no_success(socket_dir: Path, command: str) -> None:
    (socket_dir / "token").write_text("good")
    words = [*command.split(), *([str(socket_dir / "token")] if command.startswith("watch") else [])]
    with FakeAgent(socket_dir / "s", answers) as agent, Path("/dev/full").open("w") as full:
        done = as_process("--socket", agent.path, *words, stdout=full)
    assert (done.returncode, done.stderr) == (
        EXIT_USAGE,
        "license-agent-client: standard output cannot be written: No space left on device\n",
    )


def test_help_that_cannot_be_written_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = as_process("--help", stdout=full)
    assert done.returncode == EXIT_USAGE and done.stderr.count("\n") == 1 and "standard output" in done.stderr
    assert as_process("--help").returncode == 0 and as_process("bake").returncode == EXIT_USAGE


def as_process(*words: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ipc.posclient.shell import entry; entry()", *words]
    streams = {"stdout": subprocess.PIPE, **streams}
    return subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, **streams)


def test_a_token_comes_from_a_file_or_standard_input(
    socket_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = socket_dir / "token"
    file.write_text("old\n")
    assert run(socket_dir, "refresh", f"@{file}") == EXIT_VALID
    (socket_dir / "s").unlink()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfold\r\n")))
    assert run(socket_dir, "refresh", "-") == EXIT_VALID
    assert capsys.readouterr().out == "newer\nnewer\n"


@pytest.mark.parametrize("content", [b"", b"\n", "old".encode("utf-16"), b"\xe9", b"x" * 16_385], ids=repr)
def test_what_a_file_holds_is_malformed_and_no_wrong_usage(
    socket_dir: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    file = socket_dir / "token"
    file.write_bytes(content)
    assert run(socket_dir, "validate", f"@{file}") == EXIT_INVALID
    assert json.loads(capsys.readouterr().out)["reason"] == "malformed"


def test_no_agent_is_told(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(socket_dir / "none"), "--deadline", "0.05", "ping"]) == EXIT_UNAVAILABLE
    assert "no answer" in capsys.readouterr().err


def test_an_untrusted_directory_is_no_answer(socket_dir: Path) -> None:
    socket_dir.chmod(0o777)
    assert run(socket_dir, "ping") == EXIT_UNAVAILABLE


def test_a_refusal_is_told(socket_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(socket_dir, "validate", "good", act=error(7, "not you")) == EXIT_REFUSED
    assert "FORBIDDEN: not you" in capsys.readouterr().err


def test_an_invalid_reply_is_not_taken_for_an_invalid_license(socket_dir: Path) -> None:
    act = answers_with(lambda request: frame({**success(request), "nonce": bytes(16)}))
    assert run(socket_dir, "validate", "good", act=act) == EXIT_REFUSED


@pytest.mark.parametrize("arguments", [[], ["validate"], ["nonsense"], ["--deadline", "x", "ping"]], ids=repr)
def test_wrong_usage_has_its_exit_status(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == EXIT_USAGE
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("deadline", ["nan", "inf", "-1", "0", "soon"])
def test_a_deadline_is_a_number_of_seconds(deadline: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--deadline={deadline}", "ping"])
    assert caught.value.code == 2
    assert "number of seconds" in capsys.readouterr().err
