"""A token file is replaced by whatever way there is; a crash at any moment leaves the old token or the new one."""

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc.bounds import MAX_TOKEN_CHARS
from ipc.posclient import tokenfile
from ipc.posclient.policy import TokenFileError
from ipc.posclient.tokenfile import TokenFile, token_in

ROOT = Path(__file__).resolve().parents[3]
USER = 54321
SECTOR = 512
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user or mount")


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def shop(socket_dir: Path) -> Path:
    """A directory that every user reaches."""
    directory = socket_dir / "shop"
    directory.mkdir()
    socket_dir.chmod(0o755)
    (directory / "license.token").write_text("old\n")
    return directory


# What a file holds


@pytest.mark.parametrize(
    ("data", "token"),
    [
        (b"token", "token"),
        (b"token\n", "token"),
        (b"\xef\xbb\xbftoken\r\n", "token"),
        (b"\t token \x0b\x0c\r\n\n\n", "token"),
        (b"", ""),
        (b"\xef\xbb\xbf", ""),
        (b"\xef\xbb\xbf\xef\xbb\xbftoken", "\ufffd\ufffd\ufffdtoken"),
        ("token".encode("utf-16"), "\ufffd\ufffdt\0o\0k\0e\0n\0"),
        (b"tok\xe9n", "tok\ufffdn"),
        (b"part\npart\n", "part\npart"),
        (b"a.b\n\nc.d\n", "a.b\n\nc.d"),
        (b"\x1ctoken\x85", "\x1ctoken\ufffd"),
    ],
    ids=repr,
)
def test_a_token_is_found_without_mark_and_white_space(data: bytes, token: str) -> None:
    assert token_in(data) == token


# Crashes while a file is written in place


class Disk:
    """A file's content as the disk has it: what was synchronized, and what came after."""

    def __init__(self, content: bytes) -> None:
        self.durable, self.steps = content, list[tuple[str, int, bytes]]()
        self.images: list[tuple[bytes, list[tuple[str, int, bytes]]]] = []

    def sync(self) -> None:
        self.images.append((self.durable, self.steps))
        self.durable, self.steps = applied(self.durable, self.steps), []


def applied(content: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    for kind, at, data in steps:
        content = content[:at].ljust(at, b"\0") + (b"" if kind == "cut" else data + content[at + len(data) :])
    return content


def torn(durable: bytes, steps: list[tuple[str, int, bytes]], kept: int, lost: set[int]) -> bytes:
    """What a power cut leaves when so many steps began and these sectors of what they wrote never arrived."""
    whole = applied(durable, steps[:kept])
    parts = []
    for sector in range(-(-len(whole) // SECTOR)):
        place = slice(sector * SECTOR, (sector + 1) * SECTOR)
        length = len(whole[place])
        parts.append(durable[place].ljust(length, b"\0")[:length] if sector in lost else whole[place])
    return b"".join(parts)


tokens = st.text("abcXYZ019._-", min_size=1, max_size=40) | st.integers(500, MAX_TOKEN_CHARS).map(lambda size: "n" * size)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tokens.map("o".__add__),
    tokens.map("n".__add__),
    st.sampled_from(["", "\n", "\r\n"]),
    st.data(),
)
def test_a_crash_while_writing_in_place_leaves_one_whole_token(
    shop: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, end: str, data: st.DataObject
) -> None:
    old, new = old[:MAX_TOKEN_CHARS], new[:MAX_TOKEN_CHARS]
    file = shop / "license.token"
    file.write_bytes((old + end).encode())
    disk = Disk(file.read_bytes())
    pwrite, fsync, ftruncate = os.pwrite, os.fsync, os.ftruncate
    with monkeypatch.context() as patch:

        def write(fd: int, content: bytes, at: int) -> int:
            disk.steps.append(("write", at, bytes(content)))
            return pwrite(fd, content, at)

        def sync(fd: int) -> None:
            fsync(fd)
            disk.sync()

        def cut(fd: int, size: int) -> None:
            disk.steps.append(("cut", size, b""))
            ftruncate(fd, size)

        patch.setattr(os, "pwrite", write)
        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "ftruncate", cut)
        directory = os.open(shop, os.O_PATH)
        try:
            tokenfile._in_place(directory, file.name, old, new)
        finally:
            os.close(directory)
    assert file.read_bytes() == disk.durable == f"{new}\n".encode()
    assert len(disk.images) == 3
    for number, (durable, steps) in enumerate(disk.images):
        kept = data.draw(st.integers(0, len(steps)))
        size = len(applied(durable, steps[:kept]))
        lost = data.draw(st.sets(st.integers(0, max(0, size // SECTOR))) | st.just(set(range(size // SECTOR + 1))))
        image = torn(durable, steps, kept, lost)
        # Before the copy is durable either may count; afterwards only the new one does.
        assert token_in(image) in ({old, new} if number == 0 else {new})
        file.write_bytes(image)
        found = TokenFile(file).read()
        assert found == token_in(image)
        assert file.read_bytes().strip() == found.encode(), "what the crash left is completed"


def test_a_disk_that_is_full_leaves_the_old_token(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    directory = os.open(shop, os.O_PATH)
    try:
        with pytest.raises(OSError, match="No space"):
            tokenfile._in_place(directory, "license.token", "old", "new")
    finally:
        os.close(directory)
    assert (shop / "license.token").read_text() == "old\n"


# What is kept


def test_a_symbolic_link_is_followed(shop: Path) -> None:
    link = shop.parent / "link"
    link.symlink_to("shop/license.token")
    TokenFile(link).replace("old", "new")
    assert link.is_symlink()
    assert (shop / "license.token").read_text() == "new\n"
    assert os.listdir(shop) == ["license.token"]


def test_a_file_that_somebody_else_has_replaced_is_left_alone(shop: Path) -> None:
    file = shop / "license.token"
    file.write_text("newest\n")
    TokenFile(file).replace("old", "new")
    assert file.read_text() == "newest\n"


def test_what_is_no_regular_file_is_never_replaced(shop: Path) -> None:
    pipe = shop / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TokenFileError, match="not a regular file"):
        TokenFile(pipe).replace("old", "new")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_root_keeps_owner_and_mode(shop: Path, mode: int) -> None:
    file = shop / "license.token"
    os.chown(file, USER, USER + 1)
    file.chmod(mode)
    TokenFile(file).replace("old", "new")
    info = file.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (USER, USER + 1, mode)
    assert file.read_text() == "new\n"


def test_extended_attributes_are_kept() -> None:
    # In the checkout: a tmpfs in /tmp has no such attributes before Linux 6.6.
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as directory:
        file = Path(directory) / "license.token"
        file.write_text("old\n")
        os.setxattr(file, "user.shop", b"12")
        TokenFile(file).replace("old", "new")
        assert file.read_text() == "new\n"
        assert os.getxattr(file, "user.shop") == b"12"


@as_root
@pytest.mark.parametrize(
    ("directory", "owner", "mode", "replaced"),
    [
        (0o755, USER, 0o600, "in place"),  # root's directory, the till's own file
        (0o755, 0, 0o644, None),
        (0o755, 0, 0o666, "in place"),
        (0o1777, 0, 0o666, "in place"),  # a sticky directory: nobody else's file may be renamed
        (0o777, 0, 0o666, "in place"),  # a rename would change the owner
        (0o777, 0, 0o644, None),
        (0o777, USER, 0o600, "by rename"),
    ],
)
def test_an_unprivileged_user_replaces_what_it_may(
    shop: Path, directory: int, owner: int, mode: int, replaced: str | None
) -> None:
    file = shop / "license.token"
    os.chown(file, owner, owner)
    file.chmod(mode)
    shop.chmod(directory)
    before = file.stat()
    with acting_as(USER):
        if replaced is None:
            with pytest.raises(TokenFileError, match="Permission denied") as caught:
                TokenFile(file).replace("old", "new")
            assert caught.value.filename == str(file)
            assert (directory == 0o777) == ("belongs to uid 0" in str(caught.value))
        else:
            TokenFile(file).replace("old", "new")
    assert file.read_text() == ("old\n" if replaced is None else "new\n")
    after = file.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert (after.st_ino == before.st_ino) == (replaced != "by rename")
    assert os.listdir(shop) == ["license.token"]


@as_root
def test_while_another_process_writes_in_place_it_is_left_alone(shop: Path) -> None:
    file = shop / "license.token"
    os.chown(file, USER, USER)
    with file.open("rb") as other, acting_as(USER):
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TokenFileError, match="another process writes"):
            TokenFile(file).replace("old", "new")
    assert file.read_text() == "old\n"


def test_an_obstacle_is_seen_to_change(shop: Path) -> None:
    file = TokenFile(shop / "license.token")
    before = file.obstacle()
    (shop / "another").touch()
    assert file.obstacle() == before, "what other programs do in the directory is no reason"
    for change in (lambda: shop.chmod(0o711), lambda: (shop / "license.token").chmod(0o601)):
        change()
        now = file.obstacle()
        assert now != before
        before = now


# Mounts, each in a mount namespace of its own

REPLACES = """
import os, sys
from ipc.posclient.policy import TokenFileError
from ipc.posclient.tokenfile import TokenFile
file = TokenFile(sys.argv[1])
user = int(sys.argv[2])
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
try:
    file.replace("old", "new")
except TokenFileError as error:
    sys.exit(error.strerror)
"""


def replace_under(mounts: str, shop: Path, user: int) -> str:
    """Replaces the token in a namespace with these mounts; what went wrong, if anything did."""
    assert shutil.which("unshare"), "unshare is missing: install the Debian package util-linux"
    script = f'set -e; cd "$0"; {mounts}; cd "$1"; exec "$2" -c "$3" "$0/license.token" "$4"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, shop, ROOT, sys.executable, REPLACES, str(user)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr and "mount:" not in done.stderr, done.stderr
    return done.stderr.strip()


@as_root
@pytest.mark.system
@pytest.mark.parametrize("user", [0, USER], ids=["root", "a till's user"])
@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        ("mount --bind ../own license.token", None),
        ("mount --bind . . && mount -o remount,bind,ro . && mount --bind ../own license.token", None),
        ("mount --bind ../own license.token && mount -o remount,bind,ro license.token", "Read-only file system"),
        ("mount --bind . . && mount -o remount,bind,ro .", "Read-only file system"),
    ],
    ids=["a mounted file", "a mounted file in a read-only directory", "a read-only mounted file", "a read-only directory"],
)
def test_a_token_under_a_mount(shop: Path, mounts: str, why: str | None, user: int) -> None:
    own = shop.parent / "own"
    own.write_text("old\n")
    for path in (own, shop / "license.token", shop):
        os.chown(path, user, user)
    before = own.stat()
    said = replace_under(mounts, shop, user)
    assert said.endswith(why) if why else said == "", said
    mounted = "../own" in mounts
    assert own.read_text() == ("new\n" if mounted and why is None else "old\n")
    assert (shop / "license.token").read_text() == "old\n", "what the mount covers, or what is read-only, stays"
    assert (own.stat().st_ino, own.stat().st_mode, own.stat().st_uid) == (before.st_ino, before.st_mode, before.st_uid)
