"""The judge: each rule of docs/bundle-format.md refuses what breaks it, and a good bundle comes out as it went in."""

import os
import runpy
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.bundle.errors import BundleRefused
from installer.bundle.header import BLOCK, read_header
from installer.bundle.judge import MAX_DEPTH, MAX_ENTRIES, MAX_MANIFEST_BYTES, Judge, read_manifest
from installer.bundle.stream import MAX_END_BYTES
from installer.bundle.unpack import judge_bundle, unpack
from tests.support.bundles import (
    GOOD,
    MTIME,
    Made,
    archive,
    bundle,
    compressed,
    directory,
    link,
    manifest,
    opened,
    version,
)

MAKE_BUNDLE = Path(__file__).parents[2] / "scripts" / "make-bundle"
DEEP = ["/".join(["d"] * depth) for depth in range(1, MAX_DEPTH + 1)]

ALONE = {
    "an absolute path": (Made(b"/etc/passwd"), "an absolute path"),
    "a way up": (Made(b"../out"), "no '..'"),
    "a way up in the middle": (Made(b"a/../../out"), "no '..'"),
    "a way to itself": (Made(b"./a"), "no '.'"),
    "an empty name": (Made(b""), "no empty part"),
    "an empty name in the middle": (Made(b"a//b"), "no empty part"),
    "a prefix that goes up": (Made(b"x", prefix=b".."), "no '..'"),
    "an absolute prefix": (Made(b"x", prefix=b"/etc"), "an absolute path"),
    "a directory that was not named": (Made(b"a/b"), "no member before it"),
    "a newline": (Made(b"a\nb"), "control character"),
    "a name that reads backward": (Made("a\u202eb".encode()), "invisible one"),
    "a backslash": (Made(b"a\\b"), "backslash"),
    "a name in another form": (Made("e\u0301".encode()), "NFC"),
    "a name that is not UTF-8": (Made(b"\xff"), "not UTF-8"),
    "bytes after a name": (Made(b"a\0b"), "bytes after its end"),
    "a slash after a file": (Made(b"a/"), "ends with a slash"),
    "a hard link": (Made(b"a", flag=b"1", target=b"data.txt"), "a hard link"),
    "a character device": (Made(b"a", flag=b"3"), "a character device"),
    "a block device": (Made(b"a", flag=b"4"), "a block device"),
    "a pipe": (Made(b"a", flag=b"6"), "a named pipe"),
    "a contiguous file": (Made(b"a", flag=b"7"), "a contiguous file"),
    "an old member": (Made(b"a", flag=b"\0"), "before 1988"),
    "a sparse file": (Made(b"a", flag=b"S"), "a sparse file"),
    "a pax header": (Made(b"a", flag=b"x"), "a pax header"),
    "a global pax header": (Made(b"a", flag=b"g"), "a global pax header"),
    "a long name": (Made(b"a", flag=b"L"), "a GNU long name"),
    "a long link": (Made(b"a", flag=b"K"), "a GNU long link"),
    "an unknown type": (Made(b"a", flag=b"Z"), "of an unknown type"),
    "setuid": (Made(b"a", mode=b"0004755\0"), "setuid"),
    "setgid": (Made(b"a", mode=b"0002755\0"), "setuid"),
    "sticky": (Made(b"a", mode=b"0001755\0"), "setuid"),
    "a directory with setgid": (Made(b"a", flag=b"5", mode=b"0002755\0"), "setuid"),
    "a mode with a type": (Made(b"a", mode=b"0100644\0"), "mode 100644"),
    "another owner": (Made(b"a", uid=b"0001750\0"), "does not belong to root"),
    "another group": (Made(b"a", gid=b"0001750\0"), "does not belong to root"),
    "an owner's name": (Made(b"a", uname=b"till"), "user name of somebody"),
    "a group's name": (Made(b"a", gname=b"till"), "group name of somebody"),
    "a device number": (Made(b"a", major=b"0000001\0"), "device number"),
    "a minor number": (Made(b"a", minor=b"0000001\0"), "device number"),
    "bytes behind the header": (Made(b"a", rest=b"x" * 12), "are not zero"),
    "content of a directory": (Made(b"a", b"x", flag=b"5"), "has content"),
    "content of a link": (Made(b"a", b"x", flag=b"2", target=b"data.txt"), "has content"),
    "a file with a target": (Made(b"a", target=b"data.txt"), "with a link target"),
    "a link without a target": (Made(b"a", flag=b"2"), "without a link target"),
    "a link out of the bundle": (link("a", "../x"), "stays in the bundle"),
    "an absolute link": (link("a", "/etc/shadow"), "stays in the bundle"),
    "a link that turns": (link("a", "bin/../x"), "'..' only"),
    "a link to itself": (link("a", "."), "'..' only"),
    "a link with an empty part": (link("a", "bin//x"), "'..' only"),
    "a link with a control character": (link("a", "b\x07"), "control character"),
    "a binary size": (Made(b"a", size=b"\x80" + bytes(10) + b"\x05"), "not an octal number"),
    "a negative size": (Made(b"a", size=b"-0000000001\0"), "not an octal number"),
    "a size without an end": (Made(b"a", size=b"000000000001"), "no end"),
    "a size in words": (Made(b"a", size=b"0x10       \0"), "not an octal number"),
    "another magic": (Made(b"a", magic=b"ustar  \0"), "not ustar"),
    "no magic": (Made(b"a", magic=bytes(8)), "not ustar"),
    "a wrong checksum": (Made(b"a", checksum=b"000001\0 "), "checksum"),
    "a padding with content": (Made(b"a", b"x", padding=b"y"), "after its content are not zero"),
}  # fmt: skip
TOGETHER = {
    "the same name twice": ((Made(b"a"), Made(b"a")), "comes twice"),
    "a file for a directory": ((directory("a"), Made(b"a")), "comes twice"),
    "a case clash": ((Made(b"Readme"), Made(b"README")), "only by upper and lower case"),
    "a case clash beyond ASCII": ((Made(b"STRASSE"), Made("straße".encode())), "only by upper and lower case"),
    "a case clash of directories": ((directory("a"), directory("A")), "only by upper and lower case"),
    "a file in a file": ((Made(b"a"), Made(b"a/b")), "is a file"),
    "a file below a link": ((link("a", "bin"), Made(b"a/b")), "is a symbolic link"),
    "a manifest again": ((Made(b"manifest.json", b"{}"),), "comes twice"),
    "too deep": ([*map(directory, DEEP), Made(f"{DEEP[-1]}/x".encode())], f"more than {MAX_DEPTH} names"),
}  # fmt: skip


def refusal(data: bytes) -> str:
    with pytest.raises(BundleRefused) as refused:
        judge_bundle(opened(data))
    return str(refused.value)


@pytest.mark.parametrize("name", ALONE)
def test_a_member_that_breaks_a_rule_is_refused(name: str) -> None:
    member, phrase = ALONE[name]
    assert phrase in refusal(bundle([*GOOD, member]))


@pytest.mark.parametrize("name", TOGETHER)
def test_members_that_do_not_fit_each_other_are_refused(name: str) -> None:
    members, phrase = TOGETHER[name]
    assert phrase in refusal(bundle([*GOOD, *members]))


def test_the_good_members_alone_pass_so_each_refusal_is_the_changed_member_s() -> None:
    judge = judge_bundle(opened(bundle()))
    assert judge.manifest is not None and judge.manifest.version == "1.0"
    assert judge.blocks == 5 * 4096 + 4096  # data.txt takes two


@pytest.mark.parametrize(
    ("first", "phrase"),
    [
        ([], "first member must be the file manifest.json"),
        ([Made(b"manifest.json", flag=b"5")], "first member must be"),
        ([Made(b"manifest.json", b" " * (MAX_MANIFEST_BYTES + 1))], "at most 4096 bytes"),
        ([Made(b"manifest.json", b"no")], "is not a manifest"),
        ([manifest(GOOD, more=1)], "unknown field"),
        ([manifest(GOOD, **{"\x1b[2J\n": 1})], r"unknown field '\x1b[2J\n'"),
        ([manifest(GOOD, v=2)], "is not a manifest"),
        ([manifest(GOOD, product="../pos")], "is not a manifest"),
        ([manifest(GOOD, product="pos\n")], "is not a manifest"),
        ([manifest(GOOD, build_id="a/b")], "is not a manifest"),
        ([manifest(GOOD, entries=MAX_ENTRIES + 1)], "is not a manifest"),
        ([manifest(GOOD, bytes=2**40)], "is not a manifest"),
        ([manifest(GOOD, entries=3)], "more members than the 3"),
        ([manifest(GOOD, entries=5)], "has 4 members"),
        ([manifest(GOOD, bytes=5000)], "more bytes than the 5000"),
        ([manifest(GOOD, bytes=6000)], "manifest.json says 4 with 6000"),
    ],
)
def test_a_manifest_that_is_not_true_is_refused(first: list[Made], phrase: str) -> None:
    assert phrase in refusal(compressed(archive([*first, *GOOD])))


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (b"", "ends before"),
        (b"PK\x03\x04" + bytes(1000), "not zstd"),
        (archive([manifest(GOOD), *GOOD]), "not zstd"),
        (bundle()[:-20], "ends before"),
        (bundle() + b"more", "not zstd"),
        (bundle() + bundle(), "after the end of the archive"),
        (compressed(archive([manifest(GOOD), *GOOD], end=b"")), "ends before its end"),
        (compressed(archive([manifest(GOOD), *GOOD], end=bytes(BLOCK))), "ends before its end"),
        (compressed(archive([manifest(GOOD), *GOOD], end=bytes(MAX_END_BYTES + BLOCK))), "after the end of the archive"),
        (compressed(archive([manifest(GOOD), *GOOD]) + Made(b"late").written()), "after the end of the archive"),
        (compressed(archive([]), None), "the bundle is empty"),
        (compressed(archive([manifest(GOOD), *GOOD]) + bytes(64 * 1024**2), window_log=25), "at most 8 MiB"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_one_whole_bundle_is_refused(data: bytes, phrase: str) -> None:
    assert phrase in refusal(data)


def test_a_bomb_is_refused_at_the_first_byte_beyond_what_its_manifest_says() -> None:
    """A gigabyte of zeros in 32 KB: the header says so, and nothing of it is unpacked."""
    head = manifest([Made(b"a", b"x" * 100)])
    bomb = Made(b"zeros", size=b"%011o\0" % 2**30)
    compressor = zstandard.ZstdCompressor().compressobj()
    data = compressor.compress(archive([head, bomb], end=b""))
    data += b"".join(compressor.compress(bytes(2**20)) for _ in range(64)) + compressor.flush()
    assert len(data) < 32_000
    assert "more bytes than the 100" in refusal(data)


@settings(max_examples=200)
@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_any_block_is_a_header_or_a_refusal(block: bytes) -> None:
    if block == bytes(BLOCK):
        assert read_header(block) is None
        return
    with pytest.raises(BundleRefused):
        read_header(block)  # a checksum that fits by chance is not to be expected


FIELDS = {
    "name": st.binary(max_size=100), "flag": st.sampled_from([b"0", b"2", b"5"]), "target": st.binary(max_size=100),
    "prefix": st.binary(max_size=155), "mode": st.integers(0, 0o777).map(lambda mode: b"%07o\0" % mode),
}  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.fixed_dictionaries(FIELDS), max_size=6))
def test_what_the_judge_admits_stays_within_the_bundle(fields: list[dict[str, bytes]]) -> None:
    judge = Judge()
    head = read_header(manifest(GOOD, entries=100).block())
    assert head is not None
    judge.admit(head)
    judge.manifest = read_manifest(manifest(GOOD, entries=100).data)
    for each in fields:
        try:
            header = read_header(Made(**each).block())  # type: ignore[arg-type]
            entry = judge.admit(header) if header is not None else None
        except BundleRefused:
            continue
        if entry is None:
            continue
        assert entry.parts and not {"", ".", ".."} & set(entry.parts) and "/" not in "".join(entry.parts)
        assert entry.mode in (0o644, 0o755)
        place = os.path.normpath(os.path.join("/top", *entry.parts[:-1], entry.target))
        assert place.startswith("/top/") or place == "/top"


def tree(path: Path) -> dict[str, tuple[int, int, bytes]]:
    """Each name below a directory with its mode, its time and its content or target."""
    found = {}
    for each in sorted(path.rglob("*")):
        info = each.lstat()
        content = b""
        if stat.S_ISLNK(info.st_mode):
            found[str(each.relative_to(path))] = (0, 0, os.fsencode(os.readlink(each)))
            continue
        if stat.S_ISREG(info.st_mode):
            content = each.read_bytes()
        found[str(each.relative_to(path))] = (stat.S_IMODE(info.st_mode), int(info.st_mtime), content)
        assert (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())
    return found


def unpacked(data: bytes, into: Path) -> dict[str, tuple[int, int, bytes]]:
    into.mkdir(mode=0o700)
    directory = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = judge_bundle(opened(data)).manifest
        assert found is not None
        unpack(opened(data), directory, found)
    finally:
        os.close(directory)
    return tree(into)


def test_a_bundle_comes_out_as_it_went_in_with_modes_of_its_own(tmp_path: Path) -> None:
    members = [*GOOD, Made(b"wide", b"x", mode=b"0000777\0"), Made(b"narrow", b"y", mode=b"0000600\0"), Made("Käse".encode())]
    found = unpacked(bundle(members), tmp_path / "slot")
    assert found.pop("manifest.json")[:2] == (0o644, MTIME)
    assert found == {
        "bin": (0o755, MTIME, b""),
        "bin/again": (0, 0, b"../data.txt"),
        "bin/check": (0o755, MTIME, b"#!/bin/sh\n"),
        "data.txt": (0o644, MTIME, b"hello" * 1000),
        "wide": (0o755, MTIME, b"x"),
        "narrow": (0o644, MTIME, b"y"),
        "Käse": (0o644, MTIME, b""),
    }


def test_the_unpacker_follows_no_link_and_writes_over_nothing(tmp_path: Path) -> None:
    """Should the judge let something pass, the unpacker's own calls refuse it: a directory is swapped between two."""
    slot, outside = tmp_path / "slot", tmp_path / "outside"
    slot.mkdir()
    outside.mkdir()
    descriptor = os.open(slot, os.O_RDONLY | os.O_DIRECTORY)
    data = bundle()
    judged = judge_bundle(opened(data)).manifest
    assert judged is not None

    def swap(step: str) -> None:
        if step == "directory: bin":
            (slot / "bin").rmdir()
            (slot / "bin").symlink_to(outside)

    with pytest.raises(OSError):
        unpack(opened(data), descriptor, judged, swap)
    assert list(outside.iterdir()) == []
    with pytest.raises(BundleRefused, match="not empty"):
        unpack(opened(data), descriptor, judged)
    os.close(descriptor)


def test_another_bundle_than_the_judged_one_is_not_unpacked(tmp_path: Path) -> None:
    judged = judge_bundle(opened(version("1.0"))).manifest
    assert judged is not None
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BundleRefused, match="not the one that was judged"):
        unpack(opened(version("2.0")), descriptor, judged)
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == []


def test_what_make_bundle_and_gnu_tar_make_is_a_bundle_with_the_same_content(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "check").write_bytes(b"#!/bin/sh\n")
    (source / "bin" / "check").chmod(0o755)
    (source / "again").symlink_to("bin/check")
    (source / ("d" * 60)).mkdir()
    (source / ("d" * 60) / ("n" * 80)).write_bytes(b"x" * 100)
    made = tmp_path / "pos.tar.zst"
    arguments = [str(source), str(made), "--product", "pos", "--version", "1.2.3", "--build-id", "b7"]
    first = run_make_bundle(arguments)
    again = tmp_path / "again"
    run_make_bundle([arguments[0], str(again), *arguments[2:]])
    assert made.read_bytes() == again.read_bytes()
    assert first == {"product": "pos", "version": "1.2.3", "build_id": "b7", "entries": 5, "bytes": 110}
    content = unpacked(made.read_bytes(), tmp_path / "slot")
    assert content["again"][2] == b"bin/check" and content["bin/check"][0] == 0o755

    (source / "manifest.json").write_bytes((tmp_path / "slot" / "manifest.json").read_bytes())
    with tarfile.open(fileobj=opened(zstandard.ZstdDecompressor().stream_reader(made.read_bytes()).read())) as listed:
        names = listed.getnames()
    command = ["tar", "--format=ustar", "--no-recursion", "--owner=0", "--group=0", "--numeric-owner", "-cf", "-", *names]
    by_tar = subprocess.run(command, cwd=source, check=True, capture_output=True).stdout
    other = unpacked(compressed(by_tar), tmp_path / "other")
    assert {name: row[2] for name, row in other.items()} == {name: row[2] for name, row in content.items()}


def run_make_bundle(arguments: list[str]) -> dict[str, object]:
    made = runpy.run_path(str(MAKE_BUNDLE))["make"](made_options(arguments))
    assert isinstance(made, dict)
    return made


def made_options(arguments: list[str]) -> object:
    return runpy.run_path(str(MAKE_BUNDLE))["parser"]().parse_args(arguments)


def test_make_bundle_says_what_may_not_be_in_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    main = runpy.run_path(str(MAKE_BUNDLE))["main"]
    status = main([str(source), str(tmp_path / "out"), "--product", "pos", "--version", "1", "--build-id", "b"])
    assert status == 1
    assert capsys.readouterr().err == (
        "make-bundle: source/pipe is neither a file, a directory nor a symbolic link; remove it\n".replace(
            "source/pipe", str(source / "pipe")
        )
    )
    assert not (tmp_path / "out").exists()
    assert sys.version_info >= (3, 11)
