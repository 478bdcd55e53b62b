"""The form of a bundle: what GNU tar makes of the right files is read, and no other archive."""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.updatermessages import UpdaterCode
from updater.bundle import BLOCK, Bundle, Papers, parse_header
from updater.failures import UpdateFailed

FILES = {"directive.jws": b"a.b.c\n", "key-set.jws": b"d.e.f", "metadata/1.root.json": b"{}", "package": b"p" * 1000}
Change = Callable[[tarfile.TarInfo], None]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[bytes], Bundle]]:
    descriptors: list[int] = []

    def open_bundle(data: bytes) -> Bundle:
        path = tmp_path / f"{len(descriptors)}.bundle"
        path.write_bytes(data)
        descriptors.append(os.open(path, os.O_RDONLY))
        return Bundle(descriptors[-1])

    yield open_bundle
    for descriptor in descriptors:
        os.close(descriptor)


def archive(files: dict[str, bytes], change: Change = lambda _: None, form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def folder(info: tarfile.TarInfo) -> None:
    info.type = tarfile.DIRTYPE


def refused(bundle: Callable[[], Papers]) -> str:
    with pytest.raises(UpdateFailed) as caught:
        bundle()
    assert (caught.value.code, caught.value.network) == (UpdaterCode.BUNDLE, False)
    return caught.value.text


def test_what_gnu_tar_makes_is_read(tmp_path: Path, opened: Callable[[bytes], Bundle]) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for members in (["directive.jws", "key-set.jws", "metadata", "package"], ["./metadata", "./package"]):
        subprocess.run(["tar", "--format=ustar", "-cf", "b", *members], cwd=tmp_path, check=True)
        bundle = opened((tmp_path / "b").read_bytes())
        papers = bundle.papers()
        assert papers.metadata == {"1.root.json": b"{}"} and papers.package_size == 1000
        assert (papers.directive, papers.key_set) == (("a.b.c", "d.e.f") if len(members) == 4 else (None, None))
        assert b"".join(bundle.package(papers)) == FILES["package"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends too early"),
        (b"PK\x03\x04" + bytes(BLOCK), "not a tar archive of the format ustar"),
        (bytes(BLOCK), "no package"),
        (archive(FILES, form=tarfile.GNU_FORMAT), "format ustar"),
        (archive({"metadata/" + "x" * 130 + ".json": b"", **FILES}, form=tarfile.PAX_FORMAT), "neither a file nor a folder"),
        (archive({"package": b""}), "empty or too large"),
        (archive({"../x": b"", **FILES}), "'../x', which no bundle has"),
        (archive({"metadata/../x.json": b"", **FILES}), "which no bundle has"),
        (archive({"metadata/.json": b"", **FILES}), "which no bundle has"),
        (archive({"/etc/passwd": b"", **FILES}), "which no bundle has"),
        (archive({"metadata/\u00e9.json": b"", **FILES}), "not ASCII"),
        (archive({"./metadata/1.root.json": b"", **FILES}), "twice"),
        (archive({"directive.jws": b"x" * 3000, "package": b"p"}), "too large"),
        (archive({"directive.jws": b"\xff", "package": b"p"}), "directive.jws is not ASCII"),
        (archive({f"metadata/{number}.root.json": b"" for number in range(400)}), "too many files"),
        (archive(FILES)[: BLOCK + 100], "ends too early"),
        (b"x" + archive(FILES)[1:], "checksum"),
        (archive(FILES, lambda info: setattr(info, "type", tarfile.SYMTYPE)), "neither a file nor a folder"),
        (archive(FILES, lambda info: setattr(info, "type", tarfile.LNKTYPE)), "neither a file nor a folder"),
        (archive(FILES, lambda info: setattr(info, "type", tarfile.CHRTYPE)), "neither a file nor a folder"),
        (
            archive({"other": b"", "package": b""}, lambda info: setattr(info, "type", tarfile.DIRTYPE)),
            "the folder",
        ),
        (archive({"metadata/": b""}, folder)[:BLOCK] * 5 + archive(FILES), "more than 4 folders"),
        (archive({"metadata/": b"x"}, folder)[: 2 * BLOCK] + archive(FILES), "'metadata/' with content"),
    ],
)
def test_another_archive_is_refused(opened: Callable[[bytes], Bundle], data: bytes, said: str) -> None:
    assert said in refused(lambda: opened(data).papers())


def test_what_ends_too_early_is_noticed_while_it_is_read(opened: Callable[[bytes], Bundle]) -> None:
    bundle = opened(archive(FILES)[:4000])
    papers = bundle.papers()
    assert "ends too early" in refused(lambda: b"".join(bundle.package(papers)) and papers)


def test_what_is_no_file_is_not_read() -> None:
    end, other = os.pipe()
    try:
        assert "not a regular file" in refused(lambda: Bundle(end).papers())
    finally:
        os.close(end)
        os.close(other)


@given(st.binary(max_size=600), st.integers(0, BLOCK))
def test_any_header_is_a_member_or_refused(data: bytes, at: int) -> None:
    good = archive(FILES)[:BLOCK]
    for block in (data, (good[:at] + data + good[at:])[:BLOCK]):
        try:
            parse_header(block)
        except UpdateFailed as failed:
            assert failed.code == UpdaterCode.BUNDLE
