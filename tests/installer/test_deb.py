"""The agent's own package, with the real dpkg in a directory: a trial, the ways back from it, and what may not begin one."""

import fcntl
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from common.files import no_trace
from installer.agentpackage.debfile import BadDeb, Named, named, read_control
from installer.agentpackage.dpkg import LOCK, MAX_OUTPUT_CHARS, DpkgFailed, Status, install_command, last_words, parse_status
from installer.agentpackage.packages import PACKAGE, PackageRefused
from installer.agentpackage.rescue import RESCUE_FILES, SETTLE_S, TIMER, UNITS
from installer.agentpackage.trial import DEADLINE_S
from installer.apply import perform_job
from installer.config import InstallerConfig, ProductConfig, parse_config
from installer.contract import BackendRefused
from installer.jobs import JOB, RESULT, Examine, Restart, Result, Upgrade
from installer.machine import found_product
from installer.programs import Ran
from installer.state import Product, State, Version
from ipc.installermessages import Check
from settings.errors import ConfigError
from tests.support.debs import Box, deb

ROOT = Path(__file__).parents[2]
AGENT = ProductConfig(PACKAGE, "deb", Path("/none"), "license-agent.service", 0, (), 30)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Box:
    box = Box(tmp_path_factory.mktemp("first"))
    box.has("1.0")
    return box


@pytest.fixture
def box(first: Box, tmp_path: Path) -> Box:
    """A machine on which apt has installed 1.0."""
    return first.copy_to(tmp_path / "box")


def stage(box: Box, data: bytes, version: str = "2.0", place: str = "b") -> str:
    """Puts a package in a place, and returns its SHA-256."""
    packages = box.rescue().packages
    packages.put(place, io.BytesIO(data), version)
    kept = packages.kept(place)
    assert kept is not None
    return kept.sha256


def upgraded(box: Box, data: bytes | None = None) -> Check:
    return box.upgrader().install("b", stage(box, deb("2.0") if data is None else data))


# ---- a trial


@pytest.mark.system
def test_a_trial_goes_on_until_it_is_committed_and_the_timer_then_removes_itself(box: Box) -> None:
    assert upgraded(box) == Check(name="install", ok=True, text="")
    assert box.installed() == ("2.0", "2.0")
    assert box.orders == ["daemon-reload", f"start {TIMER}"]
    assert sorted(path.name for path in (box.top / "units").iterdir()) == [*UNITS, "timers.target.wants"]
    assert (box.top / "units/timers.target.wants" / TIMER).read_text() == f"# {TIMER}\n"
    assert "goes on" in box.rescue().tick()
    box.backend().keep("b", no_trace)
    box.now += 2 * DEADLINE_S
    assert "removed" in box.rescue().tick()
    assert [path.name for path in (box.top / "units").rglob("*")] == ["timers.target.wants"]
    assert box.installed() == ("2.0", "2.0")


@pytest.mark.system
def test_the_marker_and_the_way_back_are_on_the_disk_before_dpkg_begins(box: Box) -> None:
    """Asks the scripts of the package: the first of them that dpkg runs."""
    own = box.own
    script = (
        f"preinst\n#!/bin/sh\nset -e\ncd {own}\ntest -s rescue/proving.json\ntest -s packages/a.deb\ntest -s rescue/run\n"
        f"test -L {box.top}/units/timers.target.wants/{TIMER}\n"
    )
    assert upgraded(box, deb("2.0", scripts=(script,))).ok


@pytest.mark.system
def test_scripts_see_no_variable_but_dpkg_s_and_a_plain_umask(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("DPKG_ROOT", "/elsewhere")
    out = box.top / "seen"
    assert upgraded(box, deb("2.0", scripts=(f"postinst\n#!/bin/sh\n(umask; env) >{out}\n",))).ok
    seen = out.read_text().splitlines()
    assert seen[0] == "0022"
    names = {line.partition("=")[0] for line in seen[1:]}
    assert "SECRET" not in names
    assert {name for name in names if not name.startswith("DPKG_")} == {
        "PATH", "LC_ALL", "DEBIAN_FRONTEND", "SYSTEMD_IGNORE_CHROOT", "PWD",
    }  # fmt: skip


@pytest.mark.system
def test_a_configuration_that_was_changed_is_kept_by_the_upgrade_and_restored_by_the_return(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    config = box.config / "config.toml"
    config.write_text("mine = 1\n")
    config.chmod(0o600)
    (box.config / "update-trust.json").write_text("trust 1")
    breaks = f"postinst\n#!/bin/sh\nset -e\ntest mine = $(head -c 4 {config})\necho theirs >{config}\nchmod 644 {config}\n"
    assert upgraded(box, deb("2.0", scripts=(breaks,))).ok
    assert config.read_text() == "theirs\n"
    (box.config / "update-trust.json").write_text("trust 2")
    box.backend().activate("a", no_trace)
    assert box.installed() == ("1.0", "1.0")
    assert (config.read_text(), config.stat().st_mode & 0o777) == ("mine = 1\n", 0o600)
    assert (box.config / "update-trust.json").read_text() == "trust 2"
    assert box.rescue().trial() is None
    # What stood in the way may be an administrator's work.
    assert (box.own / "rescue" / "replaced" / "config.toml").read_text() == "theirs\n"
    assert "put back: config.toml; what was there instead is in " in capsys.readouterr().err


@pytest.mark.system
def test_a_return_to_a_package_that_was_made_here_leaves_the_configuration_to_its_owner(box: Box) -> None:
    """dpkg must not take the owner's file for the package's own: the next upgrade would replace it."""
    config = box.config / "config.toml"
    config.write_text("mine = 1\n")
    sha256 = stage(box, deb("2.0"))
    assert box.upgrader().install("b", sha256).ok
    box.backend().activate("a", no_trace)
    assert box.installed() == ("1.0", "1.0")
    for version in ("3.0", "4.0"):
        sha256 = stage(box, deb(version), version)
        assert box.upgrader().install("b", sha256).ok
        assert (box.installed(), config.read_text()) == ((version, version), "mine = 1\n")
        box.backend().activate("a", no_trace)
    config.unlink()
    box.rescue().packages.file("a").unlink()
    (box.own / "packages/a.json").unlink()
    assert box.upgrader().install("b", stage(box, deb("5.0"), "5.0")).ok, "without the file there is nothing to pack"


# ---- the rescue


@pytest.mark.system
@pytest.mark.parametrize("place", ["b", "a"])
def test_a_version_that_nobody_commits_is_taken_back_and_not_tried_again(box: Box, place: str) -> None:
    if place == "a":
        box.keep("b", "0.9")  # what is kept there is old: the present package is packed anew
        sha256 = box.keep("a", "2.0")
        (box.own / "packages/b.json").unlink()
    else:
        sha256 = stage(box, deb("2.0"))
    assert box.upgrader().install(place, sha256).ok
    box.now += DEADLINE_S
    assert "went back from 2.0 to 1.0" in box.rescue().tick()
    assert box.installed() == ("1.0", "1.0")
    for act in (box.backend().activate, box.backend().keep):
        with pytest.raises(BackendRefused, match="taken back: it was not committed within 15 minutes") as refused:
            act(place, no_trace)  # type: ignore[arg-type]
        assert refused.value.code == "rescued"
    box.backend().activate("b" if place == "a" else "a", no_trace)  # an order to roll back has nothing left to do
    assert box.installed() == ("1.0", "1.0")


@pytest.mark.system
def test_a_package_that_is_prepared_again_may_be_tried_again(box: Box) -> None:
    assert upgraded(box).ok
    box.now += DEADLINE_S
    box.rescue().tick()
    backend = box.backend()
    backend.stage("b", io.BytesIO(deb("2.0")), backend._content("2.0"), no_trace)
    backend.activate("b", no_trace)
    assert box.installed() == ("2.0", "2.0")


@pytest.mark.system
def test_the_copy_works_when_the_new_program_does_not_and_without_libraries(box: Box) -> None:
    assert upgraded(box).ok
    tree = box.own / "rescue/tree"
    program = (
        f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(tree)!r})\n"
        "from pathlib import Path; from installer.agentpackage.rescue import Layout, Rescue\n"
        "from installer.agentpackage.dpkg import Dpkg\n"
        f"layout = Layout(Path({str(box.own)!r}), Path({str(box.config)!r}), Path({str(box.layout.units)!r}), Path('/none'))\n"
        f"dpkg = Dpkg({box.dpkg()._command!r}, Path({str(box.admin)!r}))\n"
        f"print(Rescue(layout, dpkg, now=lambda: {box.now + DEADLINE_S}, boot_id=lambda: 'boot-1').tick())\n"
        "files = {getattr(module, '__file__', None) or '/usr/lib' for module in sys.modules.values()}\n"
        f"assert all(name.startswith((f'/usr/lib', {str(tree)!r})) for name in files), files\n"
    )
    ran = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", program], capture_output=True, text=True, check=False, cwd="/", env={}
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "went back from 2.0 to 1.0" in ran.stdout
    assert box.installed() == ("1.0", "1.0")
    shown = subprocess.run(
        ["/usr/bin/python3", "-IS", str(box.own / "rescue/run"), "--help"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("usage: license-agent-rescue")


def test_the_copy_has_every_file_that_it_imports() -> None:
    """By the import lines, so that a new import is noticed without a machine."""
    for name in RESCUE_FILES:
        for line in (ROOT / name).read_text("utf-8").splitlines():
            if line.startswith(("from common.", "from .")):
                module = line.split()[1]
                beside = f"{Path(name).parent}/{module[1:]}.py"
                path = beside if module.startswith(".") else module.replace(".", "/") + ".py"
                assert path in RESCUE_FILES, (name, line)


@pytest.mark.system
def test_a_return_that_dpkg_fails_is_tried_again_and_cannot_be_called_off(box: Box) -> None:
    assert upgraded(box).ok
    kept = box.rescue().packages.file("a")
    data = kept.read_bytes()
    kept.write_bytes(data[:-1])
    box.now += DEADLINE_S
    with pytest.raises(PackageRefused, match="has the SHA-256"):
        box.rescue().tick()
    assert box.installed() == ("2.0", "2.0")
    kept.write_bytes(data)
    assert "went back" in box.rescue().tick()
    assert box.installed() == ("1.0", "1.0")


@pytest.mark.system
def test_what_a_power_cut_interrupted_and_nobody_repeats_is_taken_back_in_the_next_boot(box: Box) -> None:
    assert upgraded(box).ok
    status = box.admin / "status"
    status.write_text(status.read_text().replace("install ok installed", "install ok half-configured"))
    box.boot, box.now = "boot-2", SETTLE_S - 1
    assert "goes on" in box.rescue().tick()
    with box.rescue().locked():  # it is being repeated
        box.now += 60
        assert "in a minute" in box.rescue().tick()
    assert "dpkg was interrupted" in box.rescue().tick()
    assert box.installed() == ("1.0", "1.0")


# ---- what does not begin, or goes wrong


def locked(box: Box) -> subprocess.Popen[bytes]:
    """Holds dpkg's lock in another process, as apt does; the caller closes its standard input."""
    program = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        ["/usr/bin/python3", "-IS", "-c", program, str(box.admin / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline()
    return holder


@pytest.mark.system
def test_while_another_program_installs_packages_nothing_begins_and_nothing_goes_back(box: Box) -> None:
    sha256 = stage(box, deb("2.0"))
    with locked(box) as holder:
        check = box.upgrader().install("b", sha256)
        assert (check.name, check.ok) == ("busy", False)
        with pytest.raises(BackendRefused) as refused:
            box.backend().activate("b", no_trace)
        assert refused.value.code == "busy"
        assert box.rescue().trial() is None and box.orders == []
        assert holder.stdin is not None
        holder.stdin.close()
    box.backend().activate("b", no_trace)
    box.now += DEADLINE_S
    with locked(box) as holder:
        assert "in a minute" in box.rescue().tick()
        trial = box.rescue().trial()
        assert trial is not None and not trial.going_back
        assert holder.stdin is not None
        holder.stdin.close()
    assert box.installed() == ("2.0", "2.0")


@pytest.mark.system
def test_an_upgrade_that_is_under_way_is_not_disturbed(box: Box) -> None:
    sha256 = stage(box, deb("2.0"))
    with box.rescue().locked():
        assert box.upgrader().install("b", sha256).name == "busy"
        assert "in a minute" in box.rescue().tick()
        with pytest.raises(BackendRefused) as refused:
            box.backend().keep("b", no_trace)
        assert refused.value.code == "busy"


@pytest.mark.system
@pytest.mark.parametrize(
    ("scripts", "text"),
    [
        (("postinst\n#!/bin/sh\nexit 3\n",), "dpkg ended with status 1"),
        (("preinst\n#!/bin/sh\nexit 3\n",), "dpkg ended with status 1"),
        (("postinst\n#!/bin/sh\n[ $1 != configure ] || exec sleep 600\n",), "dpkg did not end within"),
    ],
    ids=["postinst", "preinst", "hangs"],
)
def test_a_package_that_does_not_install_is_taken_back_at_once(box: Box, scripts: tuple[str, ...], text: str) -> None:
    sha256 = stage(box, deb("2.0", scripts=scripts))
    check = box.upgrader(within_s=3.0 if "within" in text else 60.0).install("b", sha256)
    assert not check.ok and check.text.startswith(text) and check.text.endswith("went back to the package before")
    assert box.installed() == ("1.0", "1.0")
    assert box.rescue().trial() is None


SAID = (
    "(Reading database ... \r(Reading database ... 5%\r(Reading database ... 9123 files and directories currently installed.)\n"
    "Unpacking license-agent (2.0) over (1.0) ...\ndpkg: error processing package license-agent (--install):\n"
    " installed license-agent package post-installation script subprocess returned error exit status 1\n"
)


def test_what_dpkg_said_last_is_the_reason_without_what_it_counted() -> None:
    found = last_words(SAID)
    assert found.startswith("Unpacking license-agent (2.0)") and found.endswith("returned error exit status 1")
    assert "\n" not in found and len(found) <= MAX_OUTPUT_CHARS


def test_of_much_that_dpkg_said_the_end_is_the_reason_from_a_whole_word_on() -> None:
    found = last_words(f"{'gearwheel ' * 100}{SAID}")
    assert found.startswith("… ") and found.split()[1] in {"gearwheel", "Unpacking"}
    assert found.endswith("returned error exit status 1") and len(found) <= MAX_OUTPUT_CHARS + 2
    assert last_words("x" * 1000) == f"… {'x' * MAX_OUTPUT_CHARS}", "no word ends"


@pytest.mark.system
def test_a_job_that_is_ordered_again_installs_nothing_again(box: Box) -> None:
    """The agent that dpkg has just started orders what it does not know to be done, while dpkg's scripts still run."""
    runs = box.top / "runs"
    sha256 = stage(box, deb("2.0", scripts=(f"postinst\n#!/bin/sh\necho run >>{runs}\n",)))
    for _ in range(2):
        assert box.upgrader().install("b", sha256).ok
    box.backend().keep("b", no_trace)
    assert box.upgrader().install("b", sha256).ok
    assert runs.read_text() == "run\n" and box.rescue().trial() is None
    box.answers["is-active"] = Ran(3, "failed")
    box.upgrader().install("a", box.rescue().packages.kept("a").sha256)  # type: ignore[union-attr]
    assert box.installed() == ("2.0", "2.0"), "a way back that does not start is none"


@pytest.mark.system
def test_a_file_that_is_not_what_was_judged_is_not_installed(box: Box) -> None:
    stage(box, deb("2.0"))
    check = box.upgrader().install("b", "1" * 64)
    assert not check.ok and "has the SHA-256" in check.text
    assert box.installed() == ("1.0", "1.0") and box.rescue().trial() is None


@pytest.mark.system
def test_without_the_timer_nothing_is_upgraded(box: Box) -> None:
    box.systemd_fails = True
    check = upgraded(box)
    assert not check.ok and "the rescue timer does not start" in check.text
    assert box.installed() == ("1.0", "1.0")
    assert box.rescue().trial() is None


@pytest.mark.system
def test_an_agent_that_is_not_installed_whole_is_not_upgraded(box: Box) -> None:
    status = box.admin / "status"
    status.write_text(status.read_text().replace("install ok installed", "install ok half-configured"))
    check = upgraded(box)
    assert not check.ok and "dpkg --configure -a" in check.text
    with pytest.raises(BackendRefused) as refused:
        box.backend().active()
    assert refused.value.code == "busy"


@pytest.mark.system
def test_what_dpkg_has_noted_and_not_yet_written_into_its_status_file_counts(box: Box) -> None:
    """Asks while a script of the package runs, as the agent does that the script has just started."""
    seen = box.top / "seen"
    asks = f"cp -R {box.admin}/updates {seen}; cp {box.admin}/status {seen}/"
    assert upgraded(box, deb("2.0", scripts=(f"postinst\n#!/bin/sh\n{asks}\n",))).ok
    assert parse_status((seen / "status").read_text(), PACKAGE) == Status("1.0", complete=True), "dpkg itself is behind"
    for note in seen.iterdir():
        if note.name.isdigit():
            (box.admin / "updates" / note.name).write_bytes(note.read_bytes())
    found = box.dpkg().status(PACKAGE)
    assert found is not None and not found.complete
    with pytest.raises(BackendRefused) as refused:
        box.backend().active()
    assert refused.value.code == "busy"


@pytest.mark.system
def test_what_apt_installed_meanwhile_counts_and_is_packed_with_its_scripts(box: Box, tmp_path: Path) -> None:
    known = Product(places={"a": Version(version="1.0", build_id="1.0", sha256="")}, good="a")
    state = State(products={PACKAGE: known})
    assert found_product(PACKAGE, box.backend(), state) == known
    stage(box, deb("1.0"), "1.0", "a")
    box.has("1.5+7~deb12")
    found = found_product(PACKAGE, box.backend(), state)
    assert found.good is not None
    assert found.places[found.good] == Version(version="1.5", build_id="7-deb12", sha256="")
    (box.admin / "info" / f"{PACKAGE}.postinst").write_text("#!/bin/sh\nexit 0\n")
    (box.admin / "info" / f"{PACKAGE}.postinst").chmod(0o755)
    place = "a" if found.good == "b" else "b"
    assert box.upgrader().install(place, stage(box, deb("2.0"), "2.0", place)).ok
    made = tmp_path / "made"
    subprocess.run(["dpkg-deb", "--raw-extract", box.rescue().packages.file(found.good), made], check=True)
    assert sorted(path.name for path in (made / "DEBIAN").iterdir()) == ["conffiles", "control", "md5sums", "postinst"]
    assert (made / "usr/lib/license-agent/version").read_text() == "1.5+7~deb12"
    assert (made / "lib").is_dir() and not (made / "lib").is_symlink()
    assert (made / "lib/systemd/system/license-agent.service").read_text() == "1.5+7~deb12"
    box.backend().activate(found.good, no_trace)
    assert box.installed() == ("1.5+7~deb12", "1.5+7~deb12")


@pytest.mark.system
@pytest.mark.parametrize(
    ("version", "package", "says", "text"),
    [
        ("1.0", PACKAGE, "1.0", "is installed already"),
        ("2.0", "other", "2.0", "the package says that it is other 2.0"),
    ],
)
def test_a_package_that_cannot_be_told_from_this_one_is_refused(
    box: Box, version: str, package: str, says: str, text: str
) -> None:
    backend = box.backend()
    with pytest.raises(BackendRefused, match=text) as refused:
        backend.stage("b", io.BytesIO(deb(version, package)), backend._content(says), no_trace)
    assert refused.value.code == "bundle-refused"


@pytest.mark.system
def test_the_agent_does_not_remove_itself(box: Box) -> None:
    with pytest.raises(BackendRefused, match="does not remove itself"):
        box.backend().deactivate(no_trace)
    assert box.installed() == ("1.0", "1.0")


# ---- the functional check

FINE = Ran(0, '{"verdict": "fine", "findings": []}')
RUNS = Ran(0, "active")


@pytest.mark.system
@pytest.mark.parametrize(
    ("active", "health", "agent", "failed"),
    [
        (RUNS, FINE, "as installed", []),
        (RUNS, Ran(1, '{\n "verdict": "needs_attention"}\n'), "as installed", []),
        (Ran(3, "activating"), FINE, "as installed", ["unit"]),
        (Ran(None, "it did not end"), FINE, "as installed", ["unit"]),
        (RUNS, Ran(2, '{"verdict": "not_working"}'), "as installed", ["health"]),
        (RUNS, Ran(3, '{"verdict": "not_working"}'), "as installed", ["health"]),
        (RUNS, Ran(1, "Traceback (most recent call last):"), "as installed", ["health"]),
        (RUNS, Ran(1, ""), "as installed", ["health"]),
        (RUNS, Ran(0, "{}"), "as installed", ["health"]),
        (RUNS, Ran(0, "[]"), "as installed", ["health"]),
        (RUNS, Ran(None, "/usr/bin/license-agent-cli: No such file or directory"), "as installed", ["health"]),
        (RUNS, FINE, "0.9", ["version"]),
        (RUNS, FINE, None, ["version"]),
    ],
)
def test_a_check_that_cannot_be_made_has_failed(
    box: Box, active: Ran, health: Ran, agent: str | None, failed: list[str]
) -> None:
    box.answers = {"is-active": active, "--json": health}
    box.agent = agent
    checks = box.upgrader().examine()
    assert [check.name for check in checks] == ["unit", "health", "version"]
    assert [check.name for check in checks if not check.ok] == failed


@pytest.mark.system
def test_jobs_are_done_by_root_s_configuration(box: Box) -> None:
    box.answers = {"is-active": RUNS, "--json": FINE}
    directory = box.own / "upgrades"
    configured = InstallerConfig({PACKAGE: AGENT})
    sha256 = stage(box, deb("2.0"))
    jobs = {
        Upgrade(id="0" * 32, product=PACKAGE, place="b", sha256=sha256): [("install", True)],
        Examine(id="1" * 32, product=PACKAGE): [("unit", True), ("health", True), ("version", True)],
        Restart(id="2" * 32, product=PACKAGE): [("job", False)],
        Examine(id="3" * 32, product="pos"): [("configuration", False)],
    }
    for job, found in jobs.items():
        (directory / JOB).write_bytes(msgspec.json.encode(job))
        assert perform_job(directory, lambda: configured, box.upgrader().do)
        result = msgspec.json.decode((directory / RESULT).read_bytes(), type=Result)
        assert (result.id, [(check.name, check.ok) for check in result.checks]) == (job.id, found)
        assert not (directory / JOB).exists()


def test_a_job_that_was_left_meanwhile_is_not_lost(tmp_path: Path) -> None:
    def another(*_: object) -> tuple[Check, ...]:
        (tmp_path / JOB).write_bytes(msgspec.json.encode(Examine(id="1" * 32, product=PACKAGE)))
        return ()

    (tmp_path / JOB).write_bytes(msgspec.json.encode(Examine(id="0" * 32, product=PACKAGE)))
    assert perform_job(tmp_path, lambda: InstallerConfig({PACKAGE: AGENT}), another)
    assert b"1" * 32 in (tmp_path / JOB).read_bytes()


# ---- pure parts

STATUS = """Package: license-agent-manage
Status: install ok installed
Version: 9

Package: license-agent
Status: {}
Conffiles:
 /etc/license-agent/config.toml 0123
Version: 1.0+3~deb12
Description: x
 Version: 7

Package: zsh
Status: install ok installed
Version: 8
"""


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("install ok installed", Status("1.0+3~deb12", True)),
        ("hold ok installed", Status("1.0+3~deb12", False)),
        ("install ok half-configured", Status("1.0+3~deb12", False)),
        ("install reinstreq half-installed", Status("1.0+3~deb12", False)),
        ("install ok triggers-pending", Status("1.0+3~deb12", False)),
        ("deinstall ok config-files", None),
        ("unknown ok not-installed", None),
    ],
)
def test_what_dpkg_knows_of_the_agent(state: str, found: Status | None) -> None:
    assert parse_status(STATUS.format(state), PACKAGE) == found


def test_what_dpkg_does_not_know() -> None:
    assert parse_status("", PACKAGE) is None
    assert parse_status(STATUS.format("install ok installed"), "license") is None


def test_the_command_keeps_what_an_administrator_changed() -> None:
    command = install_command(("/usr/bin/dpkg", "--root=/x"), "/proc/self/fd/7")
    assert command[:2] == ["/usr/bin/dpkg", "--root=/x"] and command[-2:] == ["--install", "/proc/self/fd/7"]
    assert "--force-confold" in command and not {"--force-all", "--force-depends", "--force-bad-verify"} & set(command)


@pytest.mark.parametrize(
    ("debian", "found"),
    [
        ("0.1.0+412.gabc1234~deb12", Named("0.1.0", "412.gabc1234-deb12")),
        ("0.1.0+412.gabc1234+dirty~deb12", Named("0.1.0", "412.gabc1234-dirty-deb12")),
        ("0.2.0", Named("0.2.0", "0.2.0")),
        ("0.2.0~deb13", Named("0.2.0", "0.2.0-deb13")),
        ("1.2.0-rc1+5.gab", Named("1.2.0-rc1", "5.gab")),
    ],
)
def test_a_debian_version_in_the_words_of_a_target(debian: str, found: Named) -> None:
    assert named(debian) == found


@pytest.mark.system
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda data: b"", "no Debian package"),
        (lambda data: b"x" + data[1:], "no Debian package"),
        (lambda data: data[:30], "malformed"),
        (lambda data: data[:140], "shorter"),
        (lambda data: data.replace(b"debian-binary", b"debian-binarx", 1), "format 2"),
        (lambda data: data.replace(b"control.tar.gz", b"control.tar.zz", 1), "-Zgzip"),
        (lambda data: data[:160] + bytes(40) + data[200:], "cannot be read"),
    ],
)
def test_what_is_no_package_is_refused(spoil: Callable[[bytes], bytes], text: str) -> None:
    assert read_control(io.BytesIO(deb("2.0")))["Version"] == "2.0"
    with pytest.raises(BadDeb, match=text):
        read_control(io.BytesIO(spoil(deb("2.0"))))


def controlled(*members: tuple[str, bytes], packed: Callable[[bytes], bytes] = gzip.compress, more: bytes = b"") -> io.BytesIO:
    """A package with nothing but its control archive."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = packed(tar.getvalue()) + more
    parts = {"debian-binary": b"2.0\n", f"control.tar.{'xz' if packed is lzma.compress else 'gz'}": data}
    return io.BytesIO(
        b"!<arch>\n"
        + b"".join(
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n"[: len(part) % 2]
            for name, part in parts.items()
        )
    )


SAYS = b"Package: license-agent\nVersion: 2.0\nArchitecture: all\n"


@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress])
def test_a_control_archive_says_one_thing_and_has_a_bound(packed: Callable[[bytes], bytes]) -> None:
    """What dpkg would install is what was read; a megabyte that becomes gigabytes is not unpacked."""
    good = ("./control", SAYS)
    assert read_control(controlled(("./md5sums", b""), good, packed=packed))["Version"] == "2.0"
    for members, more, text in (
        ((good, ("control", SAYS)), b"", "more than one file 'control'"),
        ((good, ("/control", SAYS)), b"", "more than one"),
        ((good, ("x/../control", SAYS)), b"", "more than one"),
        ((("x", b""),), b"", "no file 'control'"),
        (tuple((f"x{number}", b"") for number in range(70)), b"", "more than 64 members"),
        ((good, ("zeros", bytes(9 * 1024 * 1024))), b"", "more than 8388608 bytes"),
        ((good,), packed(SAYS), "something follows it"),
    ):
        with pytest.raises(BadDeb, match=text):
            read_control(controlled(*members, packed=packed, more=more))


def test_the_configuration_of_the_agent_s_package_has_nothing_to_set() -> None:
    found = parse_config('[product.license-agent]\nbackend = "deb"\n').products[PACKAGE]
    assert (found.backend, found.unit) == ("deb", "license-agent.service")
    for text, problem in (
        ('[product.pos]\nbackend = "deb"\n', "only the agent's own package"),
        ('[product.license-agent]\nbackend = "deb"\nunit = "pos.service"\n', "unit"),
    ):
        with pytest.raises(ConfigError) as refused:
            parse_config(text)
        assert any(problem in each for each in refused.value.problems)


def test_dpkg_that_cannot_be_started_has_failed(tmp_path: Path) -> None:
    box = Box(tmp_path / "box")
    dpkg = type(box.dpkg())(("/usr/bin/does-not-exist",), box.admin)
    with dpkg.locked(), pytest.raises(DpkgFailed, match="does-not-exist"):
        dpkg.install(0)
    descriptor = os.open(box.admin / LOCK, os.O_RDWR)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was released
    os.close(descriptor)
