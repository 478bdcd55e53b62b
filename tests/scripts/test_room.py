"""What the guest's scripts say where a disk is too full for a guest, and that they do not begin there."""

from pathlib import Path

import pytest

from tests.e2e.guest import Guest, GuestError
from tests.e2e.image import Image
from tests.e2e.room import free_mb, main, shortage

TOO_MUCH = 10**9
"""Megabytes that no disk has."""


def test_enough_room_is_no_complaint(tmp_path: Path) -> None:
    assert shortage(tmp_path, 0, "The guest's disk") is None
    assert shortage(tmp_path, free_mb(tmp_path) // 2, "The guest's disk") is None


def test_too_little_room_names_the_folder_and_both_figures(tmp_path: Path) -> None:
    text = shortage(tmp_path, TOO_MUCH, "The guest's disk")
    assert text is not None
    assert text.startswith(f"The guest's disk needs 1000000.0 GB in {tmp_path}, has {free_mb(tmp_path) / 1000:.1f}"[:-2])
    assert "scripts/e2e --dir DIR" in text


def test_a_folder_that_is_yet_to_be_made_has_the_room_of_the_one_above(tmp_path: Path) -> None:
    assert abs(free_mb(tmp_path / "not" / "there") - free_mb(tmp_path)) < 1000


@pytest.mark.parametrize(("needed", "status"), [("0", 0), (str(TOO_MUCH), 1)])
def test_the_script_ends_where_there_is_no_room(
    tmp_path: Path, needed: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), needed, "Preparing the guest"]) == status
    said = capsys.readouterr().err
    assert said.startswith("e2e: Preparing the guest needs ") if status else not said


@pytest.mark.parametrize("arguments", [[], ["here"], ["here", "much", "what"], ["here", "-1", "what"]])
def test_a_call_that_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "room.py DIRECTORY MEGABYTES" in capsys.readouterr().err


def test_a_guest_does_not_boot_where_its_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.e2e.guest.DISK_MB", TOO_MUCH)
    image = Image("bookworm", tmp_path / "rootfs", tmp_path / "vmlinuz", tmp_path / "packages")
    with (
        Guest(image, tmp_path / "run", None) as guest,
        pytest.raises(GuestError, match=r"The guest's disk needs 1000000\.0 GB in .*/run, has \d+\.\d GB"),
    ):
        guest.boot()
    assert not (tmp_path / "run").exists()


def test_a_failure_shows_what_qemu_said_and_the_room_that_is_left(tmp_path: Path) -> None:
    image = Image("bookworm", tmp_path / "rootfs", tmp_path / "vmlinuz", tmp_path / "packages")
    with Guest(image, tmp_path, None) as guest:
        (tmp_path / "qemu.err").write_text("qemu-system-x86_64: the chardev went away\n")
        (tmp_path / "console.log").write_text("critical medium error, dev nvme0n1\n")
        text = str(guest.trouble("It went wrong."))
    assert text.startswith("It went wrong.\nThe end of the guest's console:\n    critical medium error")
    assert "What QEMU said:\n    qemu-system-x86_64: the chardev went away\n" in text
    assert f"\nFree in {tmp_path}: " in text
