"""A configuration file is read only if it is a regular one, and what is wrong with it is what was wrong when it was read."""

import os
from pathlib import Path

import pytest

from common.files import OTHERS_WRITE
from settings.errors import ConfigError
from settings.file import read_file

ME = os.geteuid()


def write(directory: Path, data: bytes = b"a = 1\n", mode: int = 0o600) -> Path:
    path = directory / "a.toml"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_file_is_read_with_its_owner_and_mode(tmp_path: Path) -> None:
    path = write(tmp_path, mode=0o640)
    file = read_file(path, 100, "create it")
    path.chmod(0o666)
    path.write_bytes(b"another")
    assert file.text() == "a = 1\n"
    assert file.problems({ME}, OTHERS_WRITE) == []
    (of_mode,) = file.problems({ME})
    assert "has mode 0640" in of_mode
    (of_owner,) = file.problems({ME + 1}, OTHERS_WRITE)
    assert f"belongs to uid {ME}, not to uid {ME + 1}" in of_owner


def test_a_missing_file_is_to_be_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none does not exist; create it \(mode 0600\)$"):
        read_file(tmp_path / "none", 100, "create it (mode 0600)")


def test_a_link_is_followed_only_where_it_may_be(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(write(tmp_path))
    assert read_file(link, 100, "").text() == "a = 1\n"
    with pytest.raises(ConfigError, match="link is not a regular file; put the file itself there"):
        read_file(link, 100, "", follow=False)


@pytest.mark.parametrize("follow", [True, False])
def test_pipes_directories_and_devices_are_refused_at_once(tmp_path: Path, follow: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            read_file(path, 100, "", follow=follow)


def test_a_file_that_may_not_be_read_is_said_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, mode=0o200)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    if ME == 0:
        os.seteuid(54321)  # root reads every file
    try:
        with pytest.raises(ConfigError, match=rf"Permission denied \(it belongs to uid {ME}, its mode is 0200\)"):
            read_file(Path("a.toml"), 100, "")
    finally:
        os.seteuid(ME)


@pytest.mark.parametrize(("data", "text"), [(b"#" * 101, "has more than 100 bytes"), (b"\xff", "is not UTF-8")])
def test_what_is_no_text_is_said_when_the_text_is_wanted(tmp_path: Path, data: bytes, text: str) -> None:
    file = read_file(write(tmp_path, data), 100, "")
    assert file.problems({ME}) == []
    with pytest.raises(ConfigError, match=text):
        file.text()
    assert read_file(write(tmp_path, b"#" * 100), 100, "").text() == "#" * 100
