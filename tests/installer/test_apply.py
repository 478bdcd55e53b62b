"""The apply service and the health check: a job is done by root's configuration, and a check that cannot be made has failed."""

import os
import pwd
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from installer.apply import perform
from installer.config import InstallerConfig, ProductConfig
from installer.jobs import JOB, RESULT, Examine, Job, Restart, Result
from installer.pos.poscheck import main as poscheck
from installer.programs import MAX_OUTPUT_CHARS, Ran, run
from ipc.installermessages import Check
from settings.errors import ConfigError

ROOT = Path(__file__).parents[2]
ID = "0" * 32
POS = ProductConfig("pos", "slots", Path("/var/lib/pos"), "pos.service", 1001, ("bin/check", "--quick"), 30)


NO_LOG = {"--sync": Ran(0, ""), "show": Ran(0, ""), "--quiet": Ran(0, ""), "reset-failed": Ran(0, ""), "stop": Ran(0, "")}


def config() -> InstallerConfig:
    return InstallerConfig({"pos": POS})


def done(directory: Path, job: Job | bytes, answers: dict[str, Ran]) -> tuple[Check, ...] | None:
    """Does a job and returns its result's checks."""
    (directory / JOB).write_bytes(job if isinstance(job, bytes) else msgspec.json.encode(job))
    perform(directory, config, lambda command, _within_s: {**NO_LOG, **answers}[command[1]])
    assert not (directory / JOB).exists()
    if not (directory / RESULT).exists():
        return None
    result = msgspec.json.decode((directory / RESULT).read_bytes(), type=Result)
    assert result.id == ID
    return result.checks


def test_without_a_job_nothing_is_done(tmp_path: Path) -> None:
    assert perform(tmp_path, config, lambda *_: Ran(1, ""))
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_a_form_that_other_kinds_fit_into(tmp_path: Path) -> None:
    assert msgspec.json.decode(msgspec.json.encode(Restart(id=ID, product="pos"))) == {
        "v": 1, "id": ID, "kind": "restart", "product": "pos",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ran", "text"),
    [
        (Ran(1, "Job for pos.service\nfailed."), "pos.service did not restart: Job for pos.service failed."),
        (
            Ran(None, "/usr/bin/systemctl did not end within 120 s"),
            "pos.service did not restart: /usr/bin/systemctl did not end",
        ),
        (Ran(5, ""), "pos.service did not restart"),
    ],
)
def test_a_restart_that_fails_is_said(tmp_path: Path, ran: Ran, text: str) -> None:
    checks = done(tmp_path, Restart(id=ID, product="pos"), {"restart": ran})
    assert checks is not None and len(checks) == 1 and not checks[0].ok
    assert checks[0].text.startswith(text)


@pytest.mark.parametrize(
    ("active", "health", "ok"), [(0, 0, [True, True]), (3, 0, [False, True]), (0, 1, [True, False]), (0, None, [True, False])]
)
def test_every_check_has_its_own_end(tmp_path: Path, active: int, health: int | None, ok: list[bool]) -> None:
    answers = {"is-active": Ran(active, ""), "start": Ran(health, "")}
    checks = done(tmp_path, Examine(id=ID, product="pos"), answers)
    assert checks is not None and [check.ok for check in checks] == ok


@pytest.mark.parametrize(("states", "ok"), [([0, 0], True), ([0, 3], False), ([3, 0], False), ([3, 3], False)])
def test_a_unit_that_its_health_command_ends_does_not_prove(tmp_path: Path, states: list[int], ok: bool) -> None:
    left = iter(states)

    def run(command: list[str], _within_s: float) -> Ran:
        if command[1] == "is-active":
            return Ran(next(left), "")
        return NO_LOG.get(command[1], Ran(0, ""))

    (tmp_path / JOB).write_bytes(msgspec.json.encode(Examine(id=ID, product="pos")))
    assert perform(tmp_path, config, run)
    checks = msgspec.json.decode((tmp_path / RESULT).read_bytes(), type=Result).checks
    assert [(check.name, check.ok) for check in checks] == [("unit", ok), ("health", True)]


@pytest.mark.parametrize(
    ("answers", "wrote"),
    [
        ({}, ""),
        ({"--quiet": Ran(0, "no printer\n\x1b[31mred")}, ", and wrote last: no printer | [31mred"),
        ({"--quiet": Ran(0, "x" * 5000)}, f", and wrote last: {'x' * 100}"),
        ({"--quiet": Ran(1, "Failed to open the journal")}, ""),
        (
            {"--sync": Ran(1, ""), "show": Ran(1, "Failed to connect"), "--quiet": Ran(0, "no printer")},
            ", and wrote last: no printer",
        ),
    ],
)
def test_what_was_written_last_is_in_the_reason(tmp_path: Path, answers: dict[str, Ran], wrote: str) -> None:
    start = Ran(1, 'Job for it failed.\nSee "systemctl status it" and "journalctl -xeu it" for details.')
    checks = done(tmp_path, Examine(id=ID, product="pos"), {"is-active": Ran(3, "failed"), "start": start} | answers)
    assert checks is not None and [check.text for check in checks] == [
        f"pos.service does not run{wrote}: failed",
        f"'bin/check --quick' failed{wrote}; see: journalctl -u license-agent-pos-check@pos.service: Job for it failed.",
    ]


def test_lines_of_this_start_count_and_only_without_one_those_of_the_start_before(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], _within_s: float) -> Ran:
        asked.append(command)
        if command[1] == "show":
            return Ran(0, "4f2a")
        if command[1] == "--quiet":
            return Ran(0, "" if command[-1].startswith("_SYSTEMD_INVOCATION_ID=") else "no printer")
        return Ran(3 if command[1] == "is-active" else 0, "")

    (tmp_path / JOB).write_bytes(msgspec.json.encode(Examine(id=ID, product="pos")))
    assert perform(tmp_path, config, run)
    assert b"pos.service does not run, and wrote last: no printer" in (tmp_path / RESULT).read_bytes()
    assert [command[-1] for command in asked if command[1] == "--quiet"] == [
        "_SYSTEMD_INVOCATION_ID=4f2a", "_SYSTEMD_UNIT=pos.service",
    ]  # fmt: skip
    assert not any("reset-failed" in command for command in asked), "the check succeeded"


@pytest.mark.parametrize(("status", "stopped"), [(None, True), (1, False), (0, False)])
def test_a_health_command_that_does_not_end_is_ended_with_its_unit(
    tmp_path: Path, status: int | None, *, stopped: bool
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], _within_s: float) -> Ran:
        asked.append(command[1:])
        return Ran(status, "") if command[1] == "start" else NO_LOG.get(command[1], Ran(0, ""))

    (tmp_path / JOB).write_bytes(msgspec.json.encode(Examine(id=ID, product="pos")))
    assert perform(tmp_path, config, run)
    # Before its log and its failure are read: it adds nothing to either afterward.
    unit = "license-agent-pos-check@pos.service"
    changed = [command for command in asked if command[0] in ("start", "stop", "reset-failed")]
    end = [["stop", "--", unit]] if stopped else []
    assert changed == [["start", "--", unit], *end, *([] if status == 0 else [["reset-failed", "--", unit]])]


def test_the_profile_lets_the_apply_service_end_what_it_has_started() -> None:
    profile = (ROOT / "apparmor/license-agent-apply").read_text()
    # What is started with "ix" stays in the profile, and a profile without a rule may not even signal itself.
    assert re.search(r"^  \S*bin/systemctl mrix,$", profile, re.MULTILINE)
    rule = re.search(r"^  signal \(([^)]*)\) set=\(([^)]*)\) peer=license-agent-apply,$", profile, re.MULTILINE)
    assert rule is not None
    assert (set(rule[1].split(", ")), rule[2]) == ({"send", "receive"}, "kill")


def test_a_product_or_a_configuration_that_is_gone_is_a_failed_check(tmp_path: Path) -> None:
    checks = done(tmp_path, Restart(id=ID, product="kds"), {})
    assert checks is not None and [(check.ok, check.text) for check in checks] == [
        (False, "installer.toml has no [product.kds]")
    ]

    def refused() -> InstallerConfig:
        raise ConfigError(["installer.toml: it is wrong"])

    (tmp_path / JOB).write_bytes(msgspec.json.encode(Restart(id=ID, product="pos")))
    assert perform(tmp_path, refused, lambda *_: Ran(0, ""))
    assert b"it is wrong" in (tmp_path / RESULT).read_bytes()


@pytest.mark.parametrize(
    "job", [b"", b"{}", b'{"v":1,"id":"x","kind":"restart","product":"pos"}', b'{"kind":"shell","command":"sh"}', b"x" * 20_000]
)
def test_a_job_that_cannot_be_read_is_removed_and_nothing_is_done(tmp_path: Path, job: bytes) -> None:
    assert done(tmp_path, job, {}) is None


def test_a_kill_before_the_result_leaves_the_job(tmp_path: Path) -> None:
    (tmp_path / JOB).write_bytes(msgspec.json.encode(Restart(id=ID, product="pos")))

    def killed(*_: object) -> Ran:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(tmp_path, config, killed)
    assert (tmp_path / JOB).exists() and not (tmp_path / RESULT).exists()


@pytest.mark.system
def test_a_program_is_run_with_a_bound_and_without_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert run(["/usr/bin/env"], 10.0) == Ran(0, "PATH=/usr/bin:/bin\nLC_ALL=C.UTF-8\nSYSTEMD_IGNORE_CHROOT=1")
    assert run(["/usr/bin/sleep", "60"], 0.1).status is None
    assert run(["/usr/bin/does-not-exist"], 1.0) == Ran(None, "/usr/bin/does-not-exist: No such file or directory")


def test_of_what_a_program_writes_a_bound_is_kept() -> None:
    """A product can write an entry of hundreds of megabytes to the journal, and journalctl repeats it."""
    tracemalloc.start()
    try:
        found = run(["/usr/bin/head", "--bytes=30000000", "/dev/zero"], 60.0)
        assert found == Ran(0, "\0" * MAX_OUTPUT_CHARS)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    # Endless output is no way around the time either.
    assert run(["/usr/bin/cat", "/dev/zero"], 0.2) == Ran(None, "/usr/bin/cat did not end within 0.2 s")


CHECK = """#!/bin/sh
echo "$(id -u):$(id -G):$(pwd -P):$USER:$SECRET:$1"
exit 7
"""


def product(tmp_path: Path, uid: int, script: str = CHECK, timeout_s: int = 30, health: str = "bin/check") -> Path:
    """Writes a product and its configuration."""
    slot = tmp_path / "slots" / "a"
    (slot / "bin").mkdir(parents=True)
    (slot / "bin" / "check").write_text(script)
    (slot / "bin" / "check").chmod(0o755)
    (tmp_path / "current").symlink_to("slots/a")
    file = tmp_path / "installer.toml"
    file.write_text(
        f'[product.pos]\nbackend = "slots"\ndirectory = "{tmp_path}"\nunit = "pos.service"\nuser = {uid}\n'
        f'health = ["{health}", "--quick"]\ntimeout_s = {timeout_s}\n'
    )
    file.chmod(0o644)
    return file


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from pathlib import Path; from installer.pos.poscheck import main; "
        f"sys.exit(main(['pos'], Path({str(file)!r}), ({os.geteuid()},)))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT, env={"SECRET": "x", "HOME": "/"}
    )


@pytest.mark.root
@pytest.mark.system
def test_the_health_command_runs_as_the_product_s_user_in_its_slot(tmp_path: Path) -> None:
    """In directories that the user can enter: pytest's own are root's."""
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(0o755)
    nobody = pwd.getpwnam("daemon")
    ended = checked(product(tmp_path, nobody.pw_uid))
    assert ended.returncode == 7, ended
    assert ended.stdout == f"{nobody.pw_uid}:{nobody.pw_gid}:{tmp_path}/slots/a:daemon::--quick\n"


@pytest.mark.root
@pytest.mark.system
def test_a_health_command_that_hangs_is_ended_by_its_alarm(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(0o755)
    ended = checked(product(tmp_path, pwd.getpwnam("daemon").pw_uid, "#!/bin/sh\nexec sleep 600\n", timeout_s=1))
    assert ended.returncode == -14, ended


@pytest.mark.parametrize(("section", "uid", "status"), [("pos", 3_999_999_999, 69), ("kds", 1, 78)])
def test_a_health_command_that_cannot_run_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, uid: int, status: int
) -> None:
    file = product(tmp_path, uid)
    assert poscheck([section], file, (os.geteuid(),)) == status
    assert capsys.readouterr().err.startswith("license-agent-pos-check: ")
