"""Landlock: the masks of each ABI, and what real processes can still reach under the kernel's own."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from confine import landlock as ll
from confine.basics import basic_rules, python_paths
from confine.landlock import Access, granted, handled_fs, kernel_abi, ruleset_attributes
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
ABI = kernel_abi()
needs_landlock = pytest.mark.skipif(ABI is None, reason="this kernel has no Landlock; scripts/e2e shows it in a guest that has")


# Masks and structures


@pytest.mark.parametrize(("abi", "rights"), [(1, 13), (2, 14), (3, 15), (4, 15), (5, 16), (6, 16)])
def test_every_right_that_the_abi_knows_is_handled(abi: int, rights: int) -> None:
    assert handled_fs(abi) == 2**rights - 1
    assert bool(handled_fs(abi) & ll.REFER) == (abi >= 2)
    assert bool(handled_fs(abi) & ll.TRUNCATE) == (abi >= 3)
    assert bool(handled_fs(abi) & ll.IOCTL_DEV) == (abi >= 5)


@pytest.mark.parametrize(("abi", "size"), [(1, 8), (2, 8), (3, 8), (4, 16), (5, 16), (6, 24)])
@pytest.mark.parametrize("tcp", [False, True])
def test_the_structure_has_the_size_that_the_abi_knows(abi: int, size: int, tcp: bool) -> None:
    data = ruleset_attributes(abi, tcp)
    assert len(data) == size
    fields = struct.unpack(f"<{size // 8}Q", data)
    assert fields[0] == handled_fs(abi)
    assert fields[1:2] == (() if abi < 4 else (0 if tcp else 3,))
    assert fields[2:] == (() if abi < 6 else (3,))


@pytest.mark.parametrize("abi", range(1, 7))
@pytest.mark.parametrize("access", Access)
def test_a_rule_gives_nothing_that_the_abi_or_a_file_does_not_have(abi: int, access: Access) -> None:
    directory, file = granted(access, True, abi), granted(access, False, abi)
    assert directory == access.value & handled_fs(abi)
    assert file & ~(ll.WRITE_FILE | ll.READ_FILE | ll.TRUNCATE | ll.IOCTL_DEV) == 0
    assert file & directory == file != 0
    assert directory & (ll.EXECUTE | ll.MAKE_CHAR | ll.MAKE_BLOCK | ll.MAKE_SYM | ll.MAKE_SOCK | ll.MAKE_FIFO) == 0


def test_the_bits_are_those_of_the_kernels_header() -> None:
    order = (
        "EXECUTE WRITE_FILE READ_FILE READ_DIR REMOVE_DIR REMOVE_FILE MAKE_CHAR MAKE_DIR MAKE_REG MAKE_SOCK MAKE_FIFO "
        "MAKE_BLOCK MAKE_SYM REFER TRUNCATE IOCTL_DEV"
    )
    assert [getattr(ll, name) for name in order.split()] == [1 << bit for bit in range(16)]


def test_the_basic_rules_only_read_and_have_the_interpreters_code() -> None:
    rules = basic_rules()
    assert {rule.access for rule in rules} == {Access.READ}
    assert len({rule.path for rule in rules}) == len(rules)
    for path in (Path(sys.prefix), Path(sys.base_prefix), ROOT):
        assert path in python_paths()
    assert all(rule.path.is_absolute() and rule.path != Path("/") for rule in rules)


# Real processes

_HEAD = """
import asyncio, errno, fcntl, os, signal, socket, sys, tempfile, threading, termios
from pathlib import Path
from confine.basics import basic_rules
from confine.errors import ConfineError
from confine.landlock import NEWEST_ABI, Access, PathRule, kernel_abi, restrict
root = Path(sys.argv[1])
read, write, free = root / "read", root / "write", root / "free"
RULES = [*basic_rules(), PathRule(read, Access.READ), PathRule(write, Access.WRITE)]

def refused(call, *codes):
    try:
        call()
    except OSError as error:
        assert error.errno in (codes or (errno.EACCES,)), error
        return
    raise SystemExit("it was not refused")
"""


def passes(tmp_path: Path, body: str) -> None:
    for name in ("read", "write", "free"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + body + "\nprint('done')", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@needs_landlock
def test_each_access_gives_what_it_says_and_the_rest_is_refused(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
single = root / "single"
single.write_text("old")
old = os.open(free / "file", os.O_RDONLY)
rules = [*RULES, PathRule(single, Access.WRITE), PathRule(Path("/dev/null"), Access.DEVICE)]
rules.append(PathRule(root / "none", Access.READ))
assert restrict(rules, tcp=True) == min(kernel_abi(), NEWEST_ABI)
# read
assert (read / "file").read_text() == "read" and [path.name for path in read.iterdir()] == ["file"]
for call in (
    lambda: (read / "file").write_text("x"), lambda: (read / "new").touch(), lambda: (read / "file").unlink(),
    lambda: (read / "new").mkdir(), lambda: os.symlink("x", read / "new"), lambda: os.mkfifo(read / "new"),
):
    refused(call)
# write
(write / "new").write_text("new")
(write / "new").replace(write / "file")
assert (write / "file").read_text() == "new"
os.truncate(write / "file", 1)
(write / "sub").mkdir()
(write / "file").rename(write / "sub" / "file") if kernel_abi() > 1 else None
(write / "other").touch()
(write / "other").unlink()
refused(lambda: os.symlink("x", write / "link"))
refused(lambda: os.mkfifo(write / "fifo"))
refused(lambda: os.mknod(write / "node", 0o020600, os.makedev(1, 3)), errno.EACCES, errno.EPERM)
refused(lambda: socket.socket(socket.AF_UNIX).bind(str(write / "socket")))
refused(lambda: os.rename(write / "sub", read / "sub"), errno.EACCES, errno.EXDEV)
# a single file
single.write_text("new")
assert single.read_text() == "new"
refused(single.unlink)
# nothing
refused((free / "file").read_text)
refused(lambda: list(free.iterdir()))
refused(lambda: (free / "new").touch())
refused(lambda: os.execve("/usr/bin/true", ["true"], {}))
# what is open stays open; a device
assert os.read(old, 10) == b"free"
os.write(os.open("/dev/null", os.O_RDWR), b"x")
refused(lambda: os.open("/dev/zero", os.O_RDONLY))
""",
    )


@needs_landlock
def test_what_the_programs_do_with_memory_files_sockets_threads_and_modules_goes_on(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
path = str(root / "socket")
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
restrict(RULES, tcp=True)
place = os.memfd_create("key", os.MFD_ALLOW_SEALING)
os.write(place, b"key")
assert open(f"/proc/self/fd/{place}", "rb").read() == b"key"
client = socket.socket(socket.AF_UNIX)
client.connect(path)
with socket.create_server(("127.0.0.1", 0)) as tcp, socket.create_connection(tcp.getsockname()) as peer:
    peer.sendall(b"x")
import wave, pwd
assert pwd.getpwuid(0).pw_name == "root" and os.getrandom(4) and open("/dev/urandom", "rb", 0).read(4)
thread = threading.Thread(target=lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1))
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
thread.start(); thread.join()
os.kill(os.getpid(), 0)
assert seen == [1]
""",
    )


@needs_landlock
def test_a_thread_and_a_child_that_come_later_are_under_the_same_rules(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
restrict(RULES, tcp=True)
seen = []
thread = threading.Thread(target=lambda: (refused((free / "file").read_text), seen.append(1)))
thread.start(); thread.join()
assert seen == [1]
child = os.fork()
if child == 0:
    refused((free / "file").read_text)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""",
    )


@needs_landlock
@pytest.mark.skipif((ABI or 0) < 4, reason=f"this kernel's Landlock (ABI {ABI}) does not know of TCP")
def test_tcp_is_refused_where_it_is_not_wanted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        passes(
            tmp_path,
            f"""
restrict(RULES, tcp=False)
refused(lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]})))
refused(lambda: socket.socket().bind(("127.0.0.1", 0)))
""",
        )


@needs_landlock
@pytest.mark.skipif((ABI or 0) < 6, reason=f"this kernel's Landlock (ABI {ABI}) knows no scopes")
def test_processes_and_abstract_sockets_outside_are_out_of_reach(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        name = f"\0license-agent-test-{os.getpid()}"
        server.bind(name)
        server.listen()
        passes(
            tmp_path,
            f"""
name = {name!r}
socket.socket(socket.AF_UNIX).connect(name)
os.kill({os.getpid()}, 0)
restrict(RULES, tcp=True)
refused(lambda: socket.socket(socket.AF_UNIX).connect(name), errno.EPERM)
refused(lambda: os.kill({os.getpid()}, 0), errno.EPERM)
""",
        )


@needs_landlock
def test_it_comes_too_late_once_there_are_threads(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
go = threading.Event()
thread = threading.Thread(target=go.wait)
thread.start()
try:
    restrict(RULES, tcp=True)
except ConfineError as error:
    assert "2 threads" in str(error)
else:
    raise SystemExit("it was not refused")
go.set(); thread.join()
assert (free / "file").read_text() == "free"
""",
    )


@needs_landlock
def test_a_required_path_that_is_missing_is_an_error_and_nothing_is_restricted(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
try:
    restrict([*RULES, PathRule(root / "none", Access.WRITE, required=True)], tcp=True)
except ConfineError as error:
    assert str(root / "none") in str(error)
else:
    raise SystemExit("it was not refused")
assert (free / "file").read_text() == "free"
""",
    )


@needs_landlock
def test_both_locks_together_and_twice(tmp_path: Path) -> None:
    passes(
        tmp_path,
        """
from confine.noexec import forbid_exec
for _ in range(2):
    forbid_exec()
    restrict(RULES, tcp=True)
refused(lambda: os.execve("/usr/bin/true", ["true"], {}), errno.EPERM)
refused((free / "file").read_text)
""",
    )
