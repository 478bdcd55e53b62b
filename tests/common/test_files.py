"""A private file is replaced whole or not at all, with exactly its mode, and through no link that somebody laid."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.files import OTHERS_WRITE, create, file_problems, fsync_directory, write_atomic, write_temporary


class Killed(BaseException):
    """Ends a write where a power cut would."""


@pytest.fixture(params=[True, False], ids=["durable", "view"])
def durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[0o000, 0o022, 0o777], ids="umask {:03o}".format)
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("any_umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_is_exact_whatever_the_umask(tmp_path: Path, durable: bool, mode: int) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"content", mode, durable=durable)
    assert (path.read_bytes(), mode_of(path)) == (b"content", mode)


def test_a_file_is_private_unless_asked_otherwise(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"")
    write_temporary(tmp_path / "other", b"")
    assert mode_of(tmp_path / "file") == mode_of(tmp_path / "other") == 0o600


def test_an_older_file_is_replaced_with_its_mode(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"much longer, older content")
    path.chmod(0o666)
    write_atomic(path, b"new", durable=durable)
    assert (path.read_bytes(), mode_of(path)) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_killed_at_any_step_leaves_the_old_content_or_the_new(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    steps: list[str] = []
    write_atomic(path, b"old", durable=durable, trace=steps.append)
    assert steps == ["file: written", "file: renamed"]
    for step, expected in zip(steps, (b"old", b"new"), strict=True):

        def kill(done: str, at: str = step) -> None:
            if done == at:
                raise Killed

        write_atomic(path, b"old", durable=durable)
        with pytest.raises(Killed):
            write_atomic(path, b"new", durable=durable, trace=kill)
        assert path.read_bytes() == expected
        write_atomic(path, b"next", durable=durable)
        assert path.read_bytes() == b"next"
        assert list(tmp_path.iterdir()) == [path]


def test_what_an_earlier_attempt_left_is_replaced(tmp_path: Path, durable: bool) -> None:
    left = tmp_path / ".file.new"
    left.write_bytes(b"half a file, longer than what comes")
    left.chmod(0o666)
    with left.open("rb") as held_by_a_reader:
        write_atomic(tmp_path / "file", b"new", durable=durable)
        assert held_by_a_reader.read() == b"half a file, longer than what comes"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert mode_of(tmp_path / "file") == 0o600
    assert not left.exists()


@pytest.mark.parametrize("there", [True, False], ids=["target there", "target missing"])
def test_a_symlink_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path, durable: bool, there: bool) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_bytes(b"untouched")
    (tmp_path / ".file.new").symlink_to(victim)
    write_atomic(tmp_path / "file", b"new", durable=durable)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()
    assert victim.exists() == there
    if there:
        assert victim.read_bytes() == b"untouched"


def test_a_hard_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path: Path, durable: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    victim.chmod(0o644)
    os.link(victim, tmp_path / ".file.new")
    write_atomic(tmp_path / "file", b"new", durable=durable)
    assert (victim.read_bytes(), mode_of(victim)) == (b"untouched", 0o644)


def test_a_symlink_in_place_of_the_file_is_replaced(tmp_path: Path, durable: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    path = tmp_path / "file"
    path.symlink_to(victim)
    write_atomic(path, b"new", durable=durable)
    assert not path.is_symlink()
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"untouched")


def test_a_directory_in_the_way_is_an_os_error(tmp_path: Path, durable: bool) -> None:
    (tmp_path / ".file.new").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "file", b"new", durable=durable)
    assert not (tmp_path / "file").exists()


def record_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(f"fsync {kind} of {os.fstat(descriptor).st_size if kind == 'file' else '-'}")
        fsync(descriptor)

    def seen_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    return events


def test_a_durable_write_syncs_the_whole_file_then_renames_then_syncs_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = record_disk(monkeypatch)
    write_atomic(tmp_path / "file", b"0123456789")
    assert events == ["fsync file of 10", "rename", "fsync directory of -"]


def test_a_view_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = record_disk(monkeypatch)
    write_atomic(tmp_path / "file", b"0123456789", durable=False)
    assert events == ["rename"]


def test_only_a_directory_is_synced_as_one(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        fsync_directory(tmp_path / "file")


def test_no_descriptor_stays_open(tmp_path: Path, durable: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _time in range(3):
        write_atomic(tmp_path / "file", b"new", durable=durable)
    (tmp_path / ".file.new").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "file", b"new", durable=durable)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("any_umask")
def test_a_new_file_is_whole_private_and_takes_nobodys_place(tmp_path: Path) -> None:
    path = tmp_path / "key"
    create(path, b"content")
    assert (path.read_bytes(), mode_of(path)) == (b"content", 0o600)
    with pytest.raises(FileExistsError):
        create(path, b"other")
    assert path.read_bytes() == b"content"
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create(tmp_path / "link", b"content")
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        create(tmp_path / "key", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mode", "forbidden", "fix"), [(0o640, 0o077, "chmod 0600"), (0o664, OTHERS_WRITE, "chmod go-w")])
def test_the_problem_names_mode_and_owner_and_how_to_fix_them(tmp_path: Path, mode: int, forbidden: int, fix: str) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    info = path.stat()
    own, other = info.st_uid, info.st_uid + 1
    assert file_problems(path, info, {own}, 0) == []
    of_mode, of_owner = file_problems(path, info, {other}, forbidden)
    assert f"has mode {mode:04o}" in of_mode and of_mode.endswith(f"run: {fix} {path}")
    assert of_owner == f"{path} belongs to uid {own}, not to uid {other}; run: chown {other} {path}"


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (problem,) = file_problems(tmp_path, tmp_path.stat(), set())
    assert "not a regular file" in problem
