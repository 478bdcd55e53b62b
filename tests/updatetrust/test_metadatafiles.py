"""Metadata as files in a directory that somebody else writes: names, bounds, and what is no file."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from updatetrust.metadatafiles import (
    MAX_ROLE_BYTES,
    MAX_ROLES,
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TIMESTAMP_BYTES,
    BadMetadataFiles,
    MetadataFiles,
    parse_names,
    read_files,
)

FILES = MetadataFiles({1: b"r1", 12: b"r12"}, b"ts", b"sn", b"ta", {"releases": b"re", "a/../b c": b"odd"})


def written(directory: Path, named: dict[str, bytes]) -> Path:
    for name, data in named.items():
        (directory / name).write_bytes(data)
    return directory


def test_what_is_written_is_read(tmp_path: Path) -> None:
    named = FILES.by_name()
    assert sorted(named) == sorted(
        ["1.root.json", "12.root.json", "timestamp.json", "snapshot.json", "targets.json", "releases.json",
         "a%2F..%2Fb%20c.json"]
    )  # fmt: skip
    assert parse_names(named) == read_files(written(tmp_path, named)) == FILES


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
def test_the_three_must_be_there(name: str) -> None:
    with pytest.raises(BadMetadataFiles, match=f"{name} is missing"):
        parse_names({key: data for key, data in FILES.by_name().items() if key != name})


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "x.json.tmp",
        "root.json",
        "0.root.json/",
        "a b.json",
        "a%2f.json",
        "a%2.json",
        ".json",
        "a/b.json",
        "x" * 300 + ".json",
    ],
)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(BadMetadataFiles, match="is no file of"):
        parse_names({**FILES.by_name(), name: b""})


@given(st.dictionaries(st.text(min_size=1, max_size=12).filter(lambda name: name.isascii()), st.binary(max_size=4), max_size=3))
def test_any_role_name_is_a_file_name(roles: dict[str, bytes]) -> None:
    named = MetadataFiles({}, b"", b"", b"", roles).by_name()
    assert all("/" not in name for name in named)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("1.root.json", MAX_ROOT_BYTES),
        ("timestamp.json", MAX_TIMESTAMP_BYTES),
        ("snapshot.json", MAX_SNAPSHOT_BYTES),
        ("targets.json", MAX_ROLE_BYTES),
        ("releases.json", MAX_ROLE_BYTES),
    ],
)
def test_a_file_that_is_too_large_is_refused(tmp_path: Path, name: str, limit: int) -> None:
    directory = written(tmp_path, FILES.by_name())
    os.truncate(directory / name, limit)
    read_files(directory)
    os.truncate(directory / name, limit + 1)
    with pytest.raises(BadMetadataFiles, match=f"{name} has more than {limit:,} bytes"):
        read_files(directory)


def test_all_together_have_a_bound(tmp_path: Path) -> None:
    directory = written(tmp_path, FILES.by_name())
    for number in range(8):
        os.truncate(written(directory, {f"r{number}.json": b""}) / f"r{number}.json", MAX_ROLE_BYTES)
    with pytest.raises(BadMetadataFiles, match="have more than"):
        read_files(directory)


def test_too_many_roles_and_too_many_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadMetadataFiles, match="delegated roles"):
        parse_names({**FILES.by_name(), **{f"r{number}.json": b"" for number in range(MAX_ROLES)}})
    directory = written(tmp_path, {f"{number}.root.json": b"" for number in range(1, 300)})
    with pytest.raises(BadMetadataFiles, match="has more than 275 files"):
        read_files(directory)


def test_a_link_a_pipe_a_folder_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "metadata"
    directory.mkdir()
    written(directory, FILES.by_name())
    (secret := tmp_path / "secret").write_bytes(b"secret")
    path = directory / "releases.json"
    for make in (lambda: path.symlink_to(secret), lambda: os.mkfifo(path), path.mkdir):
        path.unlink()
        make()
        with pytest.raises(BadMetadataFiles, match=r"releases\.json"):
            read_files(directory)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
            path.touch()
    with pytest.raises(BadMetadataFiles, match="nowhere"):
        read_files(tmp_path / "nowhere")
