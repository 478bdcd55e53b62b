"""docs/reference.md has every line of the units' sandbox, and every directory and socket with its owner and mode."""

import re
from configparser import RawConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reference.md").read_text("utf-8")
UNITS = sorted((ROOT / "systemd").glob("*.service"))
# What is no lock: how the service is started, stopped, supervised, and where its things are.
PLAIN = {
    *("Type", "NotifyAccess", "ExecStart", "ExecReload", "Sockets", "Environment", "EnvironmentFile"),
    *("Restart", "RestartSec", "WatchdogSec", "RuntimeMaxSec", "TimeoutStartSec", "TimeoutStopSec"),
    *("StateDirectory", "StateDirectoryMode", "RuntimeDirectory", "RuntimeDirectoryMode"),
}


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def unit(path: Path) -> RawConfigParser:
    """The last value of each key, which is all that is asked for here."""
    parser = RawConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text("utf-8"))
    return parser


def files() -> dict[str, tuple[str, str]]:
    """Mode and owner by path; a name without a directory lies in the directory above it."""
    found: dict[str, tuple[str, str]] = {}
    directory = ""
    for line in section("Files").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) != 4:
            continue
        for name in re.findall(r"`([^`]+)`", cells[0]):
            directory = name if name.startswith("/") and name.endswith("/") else directory
            found[(name if name.startswith("/") else directory + name).rstrip("/")] = (cells[1], cells[2])
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_every_line_of_a_units_sandbox_is_told(path: Path) -> None:
    text = section("The sandbox")
    keys = set(unit(path)["Service"]) - PLAIN
    assert len(keys) > 25
    assert [key for key in sorted(keys) if not re.search(rf"`{key}=", text)] == []


def test_every_service_stands_in_the_table_of_exposures() -> None:
    told = re.findall(r"^\| `([\w@-]+\.service)` \|", section("The sandbox"), re.MULTILINE)
    assert {path.name for path in UNITS} <= set(told)


@pytest.mark.parametrize("name", ["license-agent", "license-server"])
def test_directories_have_owner_and_mode_of_tmpfiles(name: str) -> None:
    lines = (ROOT / "systemd" / f"{name}.tmpfiles").read_text("utf-8").splitlines()
    entries = [line.split() for line in lines if line and not line.startswith("#")]
    assert entries
    for _, path, mode, user, group in entries:
        assert files()[path] == (mode, user if user == group else f"{user}, group {group}"), path


def test_sockets_have_owner_and_mode_of_their_units() -> None:
    for path in (ROOT / "systemd").glob("*.socket"):
        lines = unit(path)["Socket"]
        user, group = lines.get("SocketUser", "root"), lines.get("SocketGroup", "root")
        owner = user if user == group else f"{user}, group {group}"
        assert files()[lines["ListenStream"]] == (lines["SocketMode"], owner), path.name
