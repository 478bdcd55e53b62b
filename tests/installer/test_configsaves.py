"""A product's configuration is put back as it was, what an administrator wrote is kept, and root is led nowhere else."""

import json
import os
import stat
from pathlib import Path

import pytest

from installer.pos import configsaves
from installer.pos.configsaves import SaveRefused, restore, save
from tests.installer.test_backends import Killed, killer


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


@pytest.fixture
def pos(tmp_path: Path) -> Path:
    """A product's configuration."""
    top = tmp_path / "etc" / "pos"
    (top / "conf.d").mkdir(parents=True, mode=0o755)
    (top / "pos.toml").write_text("old = 1\n")
    (top / "pos.toml").chmod(0o640)
    (top / "conf.d" / "till.toml").write_text("till = 7\n")
    (top / "link").symlink_to("pos.toml")
    os.mkfifo(top / "pipe")
    return top


def seen(top: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_text() if stat.S_ISREG(info.st_mode) else ""
        found[str(path.relative_to(top))] = (info.st_mode, content)
    return found


def kept(tmp_path: Path, pos: Path) -> Path:
    saved = tmp_path / "own"
    saved.mkdir(mode=0o700, exist_ok=True)
    save(pos, saved / "pos", os.geteuid())
    return saved / "pos"


def test_what_was_changed_removed_or_replaced_is_as_before_and_named(tmp_path: Path, pos: Path) -> None:
    saved, before = kept(tmp_path, pos), seen(pos)
    assert restore(pos, saved, os.geteuid()) == ""
    (pos / "pos.toml").write_text("new = 2\n")
    (pos / "pos.toml").chmod(0o600)
    (pos / "conf.d" / "till.toml").unlink()
    (pos / "conf.d").rmdir()
    (pos / "link").unlink()
    text = restore(pos, saved, os.geteuid())
    assert seen(pos) == before
    assert text == (
        f"put back in {pos}: conf.d, conf.d/till.toml, link, pos.toml; what was there instead is in {saved / 'replaced'}"
    )
    # What stood in the way may be what an administrator wrote meanwhile: it is kept.
    assert (saved / "replaced" / "pos.toml").read_text() == "new = 2\n"
    assert restore(pos, saved, os.geteuid()) == text, "a repeated order says the same"


def test_a_file_that_came_later_is_left_and_named(tmp_path: Path, pos: Path) -> None:
    saved = kept(tmp_path, pos)
    (pos / "conf.d" / "by\x1bhand.toml").write_text("x")
    assert restore(pos, saved, os.geteuid()) == f"left in {pos}, since it came later: conf.d/by\\x1bhand.toml"
    assert (pos / "conf.d" / "by\x1bhand.toml").exists()


def test_the_next_save_forgets_what_was_kept_aside(tmp_path: Path, pos: Path) -> None:
    saved = kept(tmp_path, pos)
    (pos / "pos.toml").write_text("new = 2\n")
    restore(pos, saved, os.geteuid())
    kept(tmp_path, pos)
    assert not (saved / "replaced").exists() and restore(pos, saved, os.geteuid()) == ""


@pytest.mark.parametrize("at", range(12))
def test_a_kill_at_any_write_leaves_a_return_that_can_be_repeated(tmp_path: Path, pos: Path, at: int) -> None:
    saved, before = kept(tmp_path, pos), seen(pos)
    (pos / "pos.toml").write_text("new = 2\n")
    (pos / "conf.d" / "till.toml").write_text("new = 3\n")
    try:
        restore(pos, saved, os.geteuid(), killer(at))
    except Killed:
        pass
    else:
        assert at > 5
    assert "pos.toml" in restore(pos, saved, os.geteuid())
    assert seen(pos) == before
    assert {path.name: path.read_text() for path in (saved / "replaced").iterdir()} == {
        "pos.toml": "new = 2\n", "conf.d%2Ftill.toml": "new = 3\n",
    }  # fmt: skip


@pytest.mark.parametrize("at", range(4))
def test_a_kill_while_it_is_saved_leaves_one_that_can_be_repeated(tmp_path: Path, pos: Path, at: int) -> None:
    saved = kept(tmp_path, pos)
    (pos / "pos.toml").write_text("newer = 2\n")
    before = seen(pos)
    try:
        save(pos, saved, os.geteuid(), killer(at))
    except Killed:
        save(pos, saved, os.geteuid())
    (pos / "pos.toml").write_text("x")
    restore(pos, saved, os.geteuid())
    assert seen(pos) == before


def test_root_is_not_led_elsewhere(tmp_path: Path, pos: Path) -> None:
    saved, elsewhere = kept(tmp_path, pos), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (pos / "conf.d" / "till.toml").unlink()
    (pos / "conf.d").rmdir()
    (pos / "conf.d").symlink_to(elsewhere)
    with pytest.raises((SaveRefused, NotADirectoryError)):
        restore(pos, saved, os.geteuid())
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("where", ["top", "below", "above"])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, pos: Path, where: str) -> None:
    {"top": pos, "below": pos / "conf.d", "above": pos.parent}[where].chmod(0o777)
    with pytest.raises(SaveRefused, match=r"others could lead root elsewhere; run: chown root .*; chmod go-w "):
        kept(tmp_path, pos)


def test_what_cannot_be_kept_or_put_back_is_said(tmp_path: Path, pos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SaveRefused, match="does not exist, so nothing of"):
        restore(pos, tmp_path / "none", os.geteuid())
    with pytest.raises(SaveRefused, match="correct 'config'"):
        save(pos / "gone", tmp_path / "x", os.geteuid())
    monkeypatch.setattr(configsaves, "MAX_BYTES", 3)
    with pytest.raises(SaveRefused, match="keep the product's data elsewhere"):
        kept(tmp_path, pos)
    monkeypatch.undo()
    saved = kept(tmp_path, pos)
    (saved / "index.json").write_text("{")
    with pytest.raises(SaveRefused, match="is damaged"):
        restore(pos, saved, os.geteuid())


def test_an_index_names_no_path_outside(tmp_path: Path, pos: Path) -> None:
    """Only root writes it, and it is looked at all the same."""
    saved = kept(tmp_path, pos)
    index = json.loads((saved / "index.json").read_bytes())
    (saved / "index.json").write_text(json.dumps([*index, ["file", "../outside", 0o644, 0, 0, ""]]))
    with pytest.raises(SaveRefused, match="is damaged"):
        restore(pos, saved, os.geteuid())
    assert not (pos.parent / "outside").exists()
