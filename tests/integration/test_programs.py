"""What every program of the release does: its version, and its options wherever they are written."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.stand import BIN

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
PROGRAMS = sorted(PYPROJECT["project"]["scripts"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_prints_its_name_and_version(program: str) -> None:
    done = subprocess.run([BIN / program, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{program} {PYPROJECT['project']['version']}\n"), done.stderr


@pytest.mark.parametrize(
    "variants",
    [
        ("license-agent --config /none check-config --json", "license-agent --json check-config --config /none"),
        ("license-agent-cli --json --socket /none status", "license-agent-cli status --socket=/none --json"),
        ("license-agent-cli --socket /none audit tail -n 3", "license-agent-cli audit --socket /none tail -n 3"),
        ("license-server agents list --dir /none --json", "license-server --dir /none --json agents list"),
        ("license-stand down --dir /none", "license-stand --dir /none down"),
        (
            "license-agent-client --socket /none --deadline 0.1 ping",
            "license-agent-client ping --deadline 0.1 --socket /none",
        ),
    ],
    ids=lambda variants: variants[0].split()[0],
)
def test_options_are_taken_before_and_after_the_command(variants: tuple[str, str]) -> None:
    results = []
    for line in variants:
        program, *arguments = line.split()
        done = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, check=False)
        results.append((done.returncode, done.stdout, done.stderr))
    assert results[0] == results[1]
    assert "none" in results[0][1] + results[0][2] and "sage:" not in results[0][2]


@pytest.mark.parametrize(("package", "expected"), [("license-agent", "provision"), ("license-agent-server", "init")])
def test_an_installation_ends_with_the_next_step_and_an_upgrade_says_nothing(package: str, expected: str) -> None:
    script = Path(__file__).parents[2] / "packaging" / "debian" / f"{package}.postinst"
    said = {}
    for arguments in (("configure", ""), ("configure", "0.1.0"), ("abort-upgrade", "0.1.0"), ("triggered", "x")):
        done = subprocess.run(["sh", script, *arguments], capture_output=True, text=True, check=True)
        said[arguments] = done.stdout
    assert f"license-{'agent-cli' if expected == 'provision' else 'server'} {expected}" in said.pop(("configure", ""))
    assert set(said.values()) == {""}
    # What it names must exist: the programs' options, and the page.
    text = script.read_text()
    for page in ("getting-started.md",) if package == "license-agent" else ():
        assert page in text and (Path(__file__).parents[2] / "docs" / page).exists()


def test_a_server_that_was_never_initialized_fails_to_start() -> None:
    unit = (Path(__file__).parents[2] / "systemd" / "license-server.service").read_text()
    # With a condition, systemctl start would exit with 0 and nothing would run (systemd.unit(5)).
    assert "\nAssertPathExists=/var/lib/license-server/settings.toml\n" in unit and "\nCondition" not in unit
