"""The completion files are the same wherever they are made, and a real bash completes with them at a TAB."""

import os
import pty
import re
import select
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.commands import COMMANDS
from cli.main import main as cli
from server.main import main as server
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "packaging" / "completion.py"
BIN = Path(sys.executable).parent
PROGRAMS = {
    name
    for path in (ROOT, ROOT / "packaging" / "client")
    for name in tomllib.loads((path / "pyproject.toml").read_text())["project"]["scripts"]
} - {"license-stand"}
ASKED = {"license-agent-cli", "license-server"}
"""Those that are made with click and complete themselves."""


def make(directory: Path, seed: str = "0") -> dict[str, bytes]:
    """The files that the script writes, run from another directory."""
    command = [sys.executable, str(SCRIPT), str(directory)]
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("share")
    make(made)
    return made


def test_every_program_has_its_files_where_the_shells_look(directory: Path) -> None:
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    expected = {f"bash-completion/completions/{name}" for name in PROGRAMS}
    expected |= {f"zsh/vendor-completions/_{name}" for name in ASKED}
    expected |= {f"fish/vendor_completions.d/{name}.fish" for name in ASKED}
    assert found == expected


def test_they_are_the_same_at_each_run_and_hold_no_path(directory: Path, tmp_path: Path) -> None:
    again = make(tmp_path, seed="1")
    assert again == {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    for name, content in again.items():
        assert content.endswith(b"\n")
        for path in (ROOT, BIN, tmp_path, Path.home()):
            assert str(path).encode() not in content, name


def test_the_shells_find_the_program_that_a_file_is_for(directory: Path) -> None:
    for name in ASKED:
        variable = f"_{name}_COMPLETE".replace("-", "_").upper()
        zsh = (directory / f"zsh/vendor-completions/_{name}").read_text()
        assert zsh.startswith(f"#compdef {name}\n") and f"{variable}=zsh_complete {name})" in zsh
        fish = (directory / f"fish/vendor_completions.d/{name}.fish").read_text()
        assert f"complete --no-files --command {name} " in fish and f"{variable}=fish_complete" in fish


class Bash:
    """An interactive bash with the completion files, on a terminal of its own."""

    def __init__(self, directory: Path, home: Path) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(home)
            environment = {"PATH": f"{BIN}:/usr/bin:/bin", "TERM": "dumb", "HOME": str(home), "LC_ALL": "C.UTF-8"}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        # Columns enough that readline never scrolls a line sideways.
        self._type("stty cols 2000; PS1=; bind 'set enable-bracketed-paste off'\n")
        self._type("""bind -x '"\\C-xq": printf "LINE<%s>\\n" "$READLINE_LINE"'\n""")
        for file in sorted((directory / "bash-completion/completions").iterdir()):
            self._type(f"source '{file}'\n")
        self._type("echo rea''dy\n")
        self._until(r"ready\r?\n")

    def _type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _until(self, pattern: str) -> re.Match[str]:
        seen = ""
        ends = time.monotonic() + READY_S
        while (match := re.search(pattern, seen)) is None:
            assert select.select([self._terminal], [], [], max(0.0, ends - time.monotonic()))[0], seen
            seen += os.read(self._terminal, 65_536).decode()
        return match

    def line_after(self, typed: str, key: str) -> str:
        """The line as it stands after a text and a key."""
        self._type(typed + key + "\x18q")
        line = self._until(r"LINE<(.*?)>\r?\n")[1]
        self._type("\x05\x15")  # to its end, and away with it
        return line

    def completed(self, typed: str) -> str:
        """What a TAB makes of the line."""
        return self.line_after(typed, "\t")

    def offered(self, typed: str) -> list[str]:
        """All that a TAB would offer; readline puts it into the line with M-*."""
        before = typed[: typed.rindex(" ") + 1]
        return self.line_after(typed, "\x1b*").removeprefix(before).split()

    def close(self) -> None:
        os.close(self._terminal)
        os.waitpid(self._pid, 0)


@pytest.fixture(scope="module")
def bash(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bash]:
    home = tmp_path_factory.mktemp("home")
    (home / "policy file.json").write_text("")
    (home / "trust.json").write_text("")
    shell = Bash(directory, home)
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("license-agent-cli se", "license-agent-cli secrets "),
        ("license-agent-cli secrets inv", "license-agent-cli secrets invalidate "),
        ("license-agent-cli --json audit v", "license-agent-cli --json audit verify "),
        ("license-agent-cli policy bind sec", "license-agent-cli policy bind secure-boot "),
        ("license-agent-cli audit verify --arch", "license-agent-cli audit verify --archive-key "),
        ("license-server mas", "license-server master-key "),
        ("license-server keys rotate iss", "license-server keys rotate issuing-ca "),
        ("license-server issue --not", "license-server issue --not-before "),
        ("license-agent che", "license-agent check-config "),
        ("license-agent recover rei", "license-agent recover reinitialize "),
        ("license-agent --config run init --tr", "license-agent --config run init --trust "),
        ("license-agent init --trust tr", "license-agent init --trust trust.json "),
        ("license-agent --config=tr", "license-agent --config=trust.json "),
        ("license-agent recover policy pol", "license-agent recover policy policy\\ file.json "),
        ("license-agent sign-policy --number po", "license-agent sign-policy --number po"),
        ("license-agent-link --ch", "license-agent-link --check "),
        ("license-agent-manage che", "license-agent-manage check-config "),
        ("license-agent-manage serve --config tr", "license-agent-manage serve --config trust.json "),
        ("license-agent-link --config tr", "license-agent-link --config trust.json "),
    ],
)
def test_bash_completes_a_word(bash: Bash, typed: str, line: str) -> None:
    assert bash.completed(typed) == line


def test_bash_offers_every_command(bash: Bash) -> None:
    assert set(bash.offered("license-agent-cli ")) == set(cli.commands)
    assert bash.offered("license-server ") == server.list_commands(None)
    assert set(bash.offered("license-agent ")) - {"-h", "--help", "--version", "--config"} == {*COMMANDS, "run"}


def test_bash_offers_the_options_that_a_command_has(bash: Bash) -> None:
    making = {"--dir", "--hw-id", "--count", "--lifetime", "--factory-only", "--out", "--help"}
    assert set(bash.offered("license-server enrollment-token make --")) == making
    assert set(bash.offered("license-server claim make --")) == making
    assert set(bash.offered("license-agent recover reinitialize --")) == {"--help", "--request-out", "--trust"}
    assert set(bash.offered("license-agent recover policy -")) == {"--help", "-h"}


def test_bash_offers_files_where_a_file_is_due_and_nothing_where_a_number_is(bash: Bash) -> None:
    assert bash.completed("license-agent init --trust ") == "license-agent init --trust "
    assert len(bash.offered("license-agent recover restore ")) == 3  # two files, one of them with a blank in its name
    assert bash.offered("license-agent sign-policy --number ") == []
