"""The commands, as people type them: each file beside this one is a session on one stand (see tests/support/session.py)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.outputs import OUTPUTS
from tests.sessions.everycommand import ELSEWHERE, run_every_command
from tests.support.session import fits, parse, play
from tests.support.stand import BIN, Stand, running_stand, short_directory

HERE = Path(__file__).parent
SESSIONS = sorted(HERE.glob("*.txt"))


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        yield running


@pytest.mark.parametrize("file", SESSIONS, ids=lambda file: file.stem)
def test_session(stand: Stand, file: Path, pytestconfig: pytest.Config) -> None:
    tokens = {kind.upper(): token for kind, token in stand.info["tokens"].items()}
    with short_directory() as directory:
        env = {
            **tokens,
            **stand.info["env"],
            "STAND": str(stand.root),
            "URL": stand.info["server_url"],
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
        }
        play(file, env, directory, rewrite=pytestconfig.getoption("--rewrite"))


def test_what_json_prints_fits_the_published_schemas(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After the sessions: it changes the stand.
    done = run_every_command(stand, tmp_path, monkeypatch)
    assert done.problems == [], "correct cli/outputs/, then run scripts/schemas"
    assert done.seen | ELSEWHERE.keys() == OUTPUTS.keys()
    assert not done.seen & ELSEWHERE.keys()


def test_every_command_is_in_a_session() -> None:
    commands = [word for file in SESSIONS for step in parse(file.read_text()) for word in step.command.split()]
    for program in ("license-agent", "license-agent-cli", "license-agent-client", "license-server", "license-stand"):
        assert program in commands


@pytest.mark.parametrize(
    ("expected", "found", "good"),
    [
        ("a\nb", "a\nb", True),
        ("a\nb", "a", False),
        ("a", "a\nb", False),
        ("", "", True),
        ("", "a", False),
        ("a [..] c", "a b c", True),
        ("a [..]c", "a c", True),
        ("a [..] c", "a b\nc", False),
        ("[..]", "a\nb", False),
        ("a\n...", "a\nb\nc", True),
        ("a\n...", "a", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("...", "", True),
        ("a.c", "abc", False),
    ],
)
def test_patterns(expected: str, found: str, good: bool) -> None:
    assert fits(expected.splitlines(), found.splitlines()) is good


def test_a_session_that_differs_fails_and_is_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "session.txt"
    file.write_text("# What it shows.\n$ echo a b; echo; exit 3\na [..]\n\n$ printf '%s\\n' \\\n> x\ny\n")
    env = {"PATH": os.environ["PATH"]}
    with pytest.raises(AssertionError, match=r"(?s)expected\na \[\.\.\]\n\? 0\n--- found\na b\n\? 3"):
        play(file, env, tmp_path)
    play(file, env, tmp_path, rewrite=True)
    assert file.read_text() == "# What it shows.\n$ echo a b; echo; exit 3\na b\n? 3\n\n$ printf '%s\\n' \\\n> x\nx\n"
    play(file, env, tmp_path)
