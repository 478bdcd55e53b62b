"""The page about testing a till: its till, its tests and its commands are run, where only the client's wheel is installed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from license_agent_client import ErrorCode, LicenseClient, Reason
from license_agent_client.testing import AgentInTest, FakeLicenseAgent

from tests.support.stand import BIN, Stand, running_stand, short_directory
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guides" / "test-your-till.md").read_text("utf-8")
INSTALL, PYTEST, WITH_STAND, REASONS, MACHINE, LANGUAGES = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
TILL, TESTS, FEATURE_TILL, FEATURE_TESTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS = {row[0]: row[3] for row in re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| `(license-stand .+?)` \|$", PAGE, re.MULTILINE)}


ALL = "26 passed"


def shell(command: str, place: Path, status: int = 0, **env: str) -> str:
    """What commands of the page print; they are the page's, as they are."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * READY_S,
    )
    assert done.returncode == status, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def vendor() -> Iterator[Path]:
    """A vendor's directory, after the page's installation. What pip would fetch comes from what scripts/bootstrap has built."""
    with short_directory() as place:
        (wheel,) = (ROOT / "build" / "client").glob("*.whl")
        path = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
        found = str(ROOT / "build" / "wheels" / "dev")
        shell(INSTALL, place, WHEEL=str(wheel), PIP_NO_INDEX="1", PIP_FIND_LINKS=found, PATH=path)
        (place / "till.py").write_text(TILL)
        (place / "test_till.py").write_text(TESTS)
        (place / "feature_till.py").write_text(FEATURE_TILL)
        (place / "test_feature_till.py").write_text(FEATURE_TESTS)
        yield place


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        yield running


def test_the_tests_pass_with_the_fake(vendor: Path) -> None:
    assert ALL in shell(PYTEST, vendor, PATH="/usr/bin:/bin")
    assert ALL in shell(f"{PYTEST.strip()} --license-agent=auto", vendor, PATH="/usr/bin:/bin")


def test_the_tests_pass_with_a_real_agent(vendor: Path) -> None:
    told = shell(WITH_STAND.replace("-q", "-v"), vendor, PATH=f"{BIN}:/usr/bin:/bin")
    assert ALL in told and "license agent: stand" in told


def test_the_test_in_the_clients_readme_passes(vendor: Path) -> None:
    readme = (ROOT / "packaging" / "client" / "README.md").read_text("utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "license_agent.token" in code)
    (vendor / "readme.py").write_text(block)
    assert f"{len(Reason)} passed" in shell(f"{PYTEST.strip()} readme.py", vendor, PATH="/usr/bin:/bin")


def test_a_stand_that_is_not_there_fails_the_tests(vendor: Path) -> None:
    told = shell(WITH_STAND, vendor, 1, PATH="/usr/bin:/bin")
    assert "license-stand is not installed" in told and "skipped" not in told


def test_a_kind_that_does_not_exist_is_refused(vendor: Path) -> None:
    shell(f"{PYTEST.strip()} --license-agent=real", vendor, 4)
    shell(f"{PYTEST.strip()} -o license_agent=real test_till.py", vendor, 1)


def test_the_tests_find_a_till_that_is_wrong(vendor: Path) -> None:
    """Each screen and each rule of the till is needed: without it, a test of the page fails."""
    right = vendor / "till.py"
    try:
        for old, new in (
            ("or verdict.reason in MACHINE", ""),
            ('return Screen(True, "The license agent', 'return Screen(False, "The license agent'),
            ("verdict.valid and verdict.degraded", "False"),
            ("validate_file(self.token_file)", "validate(self.token_file.read_text())"),
        ):
            assert old in TILL
            right.write_text(TILL.replace(old, new))
            assert "failed" in shell(PYTEST, vendor, 1)
    finally:
        right.write_text(TILL)


def test_the_tests_find_a_till_without_a_token_that_is_wrong(vendor: Path) -> None:
    right = vendor / "feature_till.py"
    try:
        for old, new in (
            ("verdict.valid or verdict.reason in MACHINE", "verdict.reason in MACHINE"),
            ("verdict.valid or verdict.reason in MACHINE", "True"),
            ("if verdict.reason == LicenseReason.NO_LICENSE", "if not verdict.valid"),
            ('"hidden" if', '"locked" if'),
            ("except AgentTooOld:", "except ZeroDivisionError:"),
        ):
            assert old in FEATURE_TILL
            right.write_text(FEATURE_TILL.replace(old, new))
            assert "failed" in shell(f"{PYTEST.strip()} test_feature_till.py", vendor, 1)
    finally:
        right.write_text(FEATURE_TILL)


def test_every_reason_has_its_row_and_no_other_has() -> None:
    assert list(ROWS) == [reason.value for reason in Reason]


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_the_command_of_a_row_gives_its_reason(stand: Stand, reason: Reason, tmp_path: Path) -> None:
    token = shell(ROWS[reason.value], tmp_path, STAND=str(stand.root), PATH=f"{BIN}:/usr/bin:/bin").strip()
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        assert client.validate(token).reason is reason


def test_the_commands_by_hand_do_what_they_say(stand: Stand, tmp_path: Path) -> None:
    env = {"STAND": str(stand.root), "PATH": f"{BIN}:/usr/bin:/bin"}
    told = shell(REASONS, tmp_path, **env)
    assert re.findall(r'"reason": "(\w+)"', told) == ["expired", "ok", "revoked", "ok"]
    shell(MACHINE, tmp_path, **env)
    assert stand.process.wait(READY_S) == 0


def test_a_fake_answers_lines(vendor: Path) -> None:
    first, token, *rest = shell(LANGUAGES, vendor).splitlines()
    assert '"socket"' in first and "fake-token." in token and rest == ['{"result": null}'] * 2


def test_the_methods_that_the_page_names_exist() -> None:
    table = PAGE.partition("| | |\n|---|---|\n")[2].partition("\n\n")[0]
    for name in re.findall(r"`(?:license_agent\.|fake_license_agent\.)?([a-z_]+)(?:\(.*?\))?`", table):
        assert hasattr(FakeLicenseAgent, name) or name in ("socket", "is_fake"), name
    assert set(AgentInTest.__abstractmethods__) - {"close"} <= set(re.findall(r"\b([a-z_]+)\(", table))
    for code in re.findall(r"ErrorCode\.(\w+)", PAGE):
        assert code in ErrorCode.__members__
