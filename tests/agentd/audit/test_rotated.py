"""A program like logrotate takes the open file away: each finding names the file that it left, and the guide puts it back."""

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.audit.file import AuditDamaged, AuditFile
from audittrail.chain import Chain
from audittrail.check import verify_log
from audittrail.report import Keys
from audittrail.rotated import hint, rotated_copies

GUIDES = Path(__file__).resolve().parents[3] / "docs" / "guides.md"


def copytruncate(log: Path) -> Path:
    copy = log.with_name("audit.log.1")
    shutil.copyfile(log, copy)
    os.truncate(log, 0)
    return copy


def copytruncate_and_compress(log: Path) -> Path:
    copy = copytruncate(log)
    packed = copy.with_name("audit.log.1.gz")
    packed.write_bytes(gzip.compress(copy.read_bytes()))
    copy.unlink()
    return packed


def move(log: Path) -> Path:
    return log.rename(log.with_name("audit.log.1"))


def move_with_date(log: Path) -> Path:
    return log.rename(log.with_name("audit.log-20270115"))


WAYS: list[Callable[[Path], Path]] = [copytruncate, copytruncate_and_compress, move, move_with_date]


def write(file: AuditFile, chain: Chain, count: int) -> None:
    for _ in range(count):
        file.write(chain.append(1.8e9 + chain.seq, 1.0, "admin.request", "ok", {}))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("segments", [0, 1])
def test_the_file_that_was_left_is_named(tmp_path: Path, way: Callable[[Path], Path], segments: int) -> None:
    file, chain, log = AuditFile(tmp_path / "audit.log"), Chain(), tmp_path / "audit.log"
    file.open()
    for _ in range(segments):
        write(file, chain, 3)
        file.rotate(chain.seq + 1)
    write(file, chain, 5)
    left = way(log)
    told = file.look()
    assert told is not None
    assert f"Likely cause: {left.name} lies beside it" in told
    write(file, chain, 4)
    problem = verify_log(log, Keys(), open_end=True).problem
    assert problem is not None
    assert f"Likely cause: {left.name} lies beside it" in problem.text
    assert "Keep logrotate away from the audit log" in problem.text
    # The next segment is named by its first record, so that the file that was taken away has its place.
    segment = file.rotate(chain.seq + 1)
    assert segment.name == f"audit-{3 * segments + 6:012d}.log"
    file.close()
    if segments:
        with pytest.raises(AuditDamaged, match="Likely cause"):
            AuditFile(log).open()


@pytest.mark.system
def test_the_guide_puts_it_back(tmp_path: Path) -> None:
    section = GUIDES.read_text("utf-8").split("## Keep logrotate away from the audit log\n")[1].split("\n## ")[0]
    commands = re.findall(r"^    (.*)$", section, re.MULTILINE)
    assert len(commands) == 5
    file, chain, log = AuditFile(tmp_path / "audit.log"), Chain(), tmp_path / "audit.log"
    file.open()
    write(file, chain, 5)
    copytruncate_and_compress(log)
    file.look()
    write(file, chain, 4)
    file.close()
    assert verify_log(log, Keys(), open_end=True).problem is not None
    aside = tmp_path / "aside"
    aside.mkdir()
    script = "\n".join(["set -e", *commands])
    for theirs, ours in (
        ("/var/log/license-agent", str(tmp_path)),
        ("/root/", str(aside)),
        ("license-agent:license-agent", f"{os.getuid()}:{os.getgid()}"),
    ):
        assert theirs in script
        script = script.replace(theirs, ours)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "audit-000000000001.log", "audit.log"]
    report = verify_log(log, Keys(), open_end=True)
    assert (report.problem, report.found.records) == (None, 9)
    again = AuditFile(log)
    assert again.open().seq == 9
    again.close()


def test_what_is_changed_is_not_blamed_on_a_rotation(tmp_path: Path) -> None:
    file, chain, log = AuditFile(tmp_path / "audit.log"), Chain(), tmp_path / "audit.log"
    file.open()
    write(file, chain, 5)
    file.close()
    log.with_name("audit.log.1").write_bytes(b"")
    log.write_bytes(log.read_bytes().replace(b'"ok"', b'"no"', 1))
    problem = verify_log(log, Keys(), open_end=True).problem
    assert problem is not None
    assert "Likely cause" not in problem.text


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("audit.log.1", True),
        ("audit.log.12.gz", True),
        ("audit.log.2.zst", True),
        ("audit.log-20270115", True),
        ("audit.log-20270115.xz", True),
        ("audit.log.torn", False),
        ("audit.log", False),
        ("audit-000000000001.log", False),
        ("audit.log.bak", False),
        ("other.log.1", False),
    ],
)
def test_names(tmp_path: Path, name: str, is_one: bool) -> None:
    (tmp_path / name).touch()
    assert [path.name for path in rotated_copies(tmp_path / "audit.log")] == ([name] if is_one else [])
    assert bool(hint(tmp_path / "audit.log")) == is_one
    assert hint(tmp_path / "none" / "audit.log") == ""
