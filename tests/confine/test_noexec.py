"""The filter against exec: what its program answers to every call, and what the kernel makes of it in real processes."""

import errno
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from confine.errors import ConfineError
from confine.noexec import ALLOW, KILL_PROCESS, MACHINES, REFUSE, X32_BIT, exec_filter
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
OTHERS = {"i386": 0x40000003, "arm": 0x40000028, "riscv64": 0xC00000F3, "nothing": 0, "all bits": 0xFFFFFFFF}


def answer(program: bytes, architecture: int, number: int) -> int:
    """Runs the program as the kernel does (Documentation/networking/filter.rst), on one struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *[0] * 6)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator, place = 0, 0
    for _ in code:  # jumps lead forward only
        operation, if_true, if_false, value = code[place]
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                place += if_true if accumulator == value else if_false
            case 0x35:
                place += if_true if accumulator >= value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"no such operation in this program: {operation:#x}")
    raise AssertionError("the program has no end")


@pytest.mark.parametrize("machine", MACHINES)
def test_of_all_native_calls_only_exec_is_refused(machine: str) -> None:
    known, program = MACHINES[machine], exec_filter(machine)
    refused = {number for number in range(1024) if answer(program, known.architecture, number) != ALLOW}
    assert refused == {known.execve, known.execveat}
    assert {answer(program, known.architecture, number) for number in refused} == {REFUSE}
    assert REFUSE & 0xFFFF == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("other", [*OTHERS.values(), *(known.architecture for known in MACHINES.values())])
def test_any_call_by_the_tables_of_another_architecture_ends_the_process(machine: str, other: int) -> None:
    if other == MACHINES[machine].architecture:
        assert answer(exec_filter(machine), other, 0) == ALLOW
    else:
        answers = {answer(exec_filter(machine), other, number) for number in [*range(1024), X32_BIT, 0xFFFFFFFF]}
        assert answers == {KILL_PROCESS}


def test_every_x32_call_is_refused_on_x86_64_alone() -> None:
    numbers = [*range(X32_BIT, X32_BIT + 1024), 0x7FFFFFFF, 0xFFFFFFFF]
    assert {answer(exec_filter("x86_64"), MACHINES["x86_64"].architecture, number) for number in numbers} == {REFUSE}
    assert answer(exec_filter("x86_64"), MACHINES["x86_64"].architecture, X32_BIT - 1) == ALLOW
    assert {answer(exec_filter("aarch64"), MACHINES["aarch64"].architecture, number) for number in numbers} == {ALLOW}


def test_a_machine_without_numbers_is_a_typed_error() -> None:
    with pytest.raises(ConfineError, match="riscv64"):
        exec_filter("riscv64")


# Real processes

_HEAD = """
import ctypes, errno, os, subprocess, sys, threading
from confine.noexec import MACHINES, forbid_exec
libc = ctypes.CDLL(None, use_errno=True)
TRUE = "/usr/bin/true"

def refused(call):
    try:
        call()
    except PermissionError as error:
        assert error.errno == errno.EPERM, error
        return
    raise SystemExit("it was not refused")

def execve():
    os.execve(TRUE, [TRUE], {})
"""


def run(body: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _HEAD + body], capture_output=True, text=True, timeout=READY_S, check=False, cwd=ROOT
    )


def passes(body: str) -> None:
    done = run(body + "\nprint('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_before_the_filter_exec_works_as_these_tests_do_it() -> None:
    assert run("execve()").returncode == 0
    passes("subprocess.run([TRUE], check=True); assert os.waitpid(os.posix_spawn(TRUE, [TRUE], {}), 0)[1] == 0")


def test_exec_is_refused_in_the_main_thread() -> None:
    passes("forbid_exec(); refused(execve)")


def test_exec_is_refused_in_a_thread_that_was_there_before() -> None:
    passes("""
go, seen = threading.Event(), []
def work():
    go.wait()
    refused(execve)
    seen.append(True)
thread = threading.Thread(target=work)
thread.start()
forbid_exec()
go.set()
thread.join()
assert seen == [True]
for task in os.listdir("/proc/self/task"):
    text = open(f"/proc/self/task/{task}/status").read()
    assert "Seccomp:\\t2\\n" in text and "NoNewPrivs:\\t1\\n" in text
""")


def test_exec_is_refused_in_a_thread_that_is_started_later_and_after_a_fork() -> None:
    passes("""
forbid_exec()
seen = []
thread = threading.Thread(target=lambda: (refused(execve), seen.append(True)))
thread.start(); thread.join()
assert seen == [True]
child = os.fork()
if child == 0:
    refused(execve)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""")


def test_spawned_programs_are_refused() -> None:
    passes("""
forbid_exec()
refused(lambda: subprocess.run([TRUE]))
refused(lambda: subprocess.run([TRUE], close_fds=False))
refused(lambda: os.posix_spawn(TRUE, [TRUE], {}))
assert os.system(TRUE) != 0
""")


def test_a_program_in_memory_is_refused_by_execveat() -> None:
    body = """
place = os.memfd_create("program")
os.write(place, open(TRUE, "rb").read())
arguments, environment = (ctypes.c_char_p * 2)(b"true", None), (ctypes.c_char_p * 1)(None)
def execveat():
    libc.syscall(MACHINES[os.uname().machine].execveat, place, b"", arguments, environment, 0x1000)
    raise OSError(ctypes.get_errno(), "execveat")
"""
    assert run(body + "execveat(); sys.exit(1)").returncode == 0
    passes(body + "forbid_exec(); refused(execveat)")


def test_everything_else_goes_on_and_a_second_call_is_harmless() -> None:
    passes("""
import asyncio, socket, tempfile, uvloop
for _ in range(2):
    forbid_exec()
    async def talk():
        async def answer(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        assert await reader.readline() == b"hello\\n"
        writer.close()
        server.close()
        assert await asyncio.to_thread(os.getpid) == os.getpid()
    uvloop.run(talk())
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    assert libc.syscall(-1) == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS)
    refused(execve)
""")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the foreign call is written for x86_64")
def test_a_call_by_the_i386_table_ends_the_process() -> None:
    body = """
import mmap
area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
area.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid of i386); int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))
"""
    free = run(body + "sys.exit(0 if call() == os.getpid() else 3)")
    if free.returncode != 0:
        pytest.skip("this kernel takes no calls of i386")
    assert run(body + "forbid_exec(); call()").returncode == -31  # SIGSYS


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is of x86_64")
def test_a_call_of_x32_is_refused() -> None:
    passes("""
forbid_exec()
assert libc.syscall(0x40000000 | 39) == -1 and ctypes.get_errno() == errno.EPERM
""")
