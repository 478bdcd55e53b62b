"""A secret buffer prints, copies and pickles nothing, keeps out of dumps and swap, and is zeros once it is closed."""

import copy
import ctypes
import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import hwsec.secretmem
from hwsec.errors import SecretMemoryError
from hwsec.secretmem import SecretBuffer, secret_memory_kind

ROOT = Path(__file__).resolve().parents[2]
SECRET = b"Ex0mple-secret-0f-32-bytes-xyz!!"
NO_SUCH_SYSCALL = 100_000
KERNEL_HAS = secret_memory_kind()


@pytest.fixture(params=["memfd_secret", "mlock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    wanted = str(request.param)
    if wanted == "mlock":
        monkeypatch.setattr(hwsec.secretmem, "_SYS_MEMFD_SECRET", NO_SUCH_SYSCALL)
    elif wanted != KERNEL_HAS:
        pytest.skip("this kernel has no memfd_secret(2)")
    assert secret_memory_kind() == wanted
    return wanted


@pytest.fixture
def secret(kind: str) -> SecretBuffer:
    buffer = SecretBuffer(len(SECRET))
    buffer.view[:] = SECRET
    return buffer


def address_of(buffer: SecretBuffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer._map))


def peek(buffer: SecretBuffer) -> memoryview:
    """A look at the same pages that outlives `close`."""
    return memoryview(buffer._map)


# What it is


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("size", [1, 12, 32, 4096, 5000])
def test_a_buffer_starts_with_zeros_and_holds_what_is_written(size: int) -> None:
    with SecretBuffer(size) as buffer:
        assert len(buffer) == len(buffer.view) == size
        assert bytes(buffer.view) == bytes(size)
        buffer.view[:] = os.urandom(size - 1) + b"!"
        assert bytes(buffer.view)[-1:] == b"!"
        with pytest.raises(ValueError):
            buffer.view[:] = bytes(size + 1)


@pytest.mark.usefixtures("kind")
def test_memory_that_is_not_to_be_had_is_a_typed_error() -> None:
    with pytest.raises(SecretMemoryError):
        SecretBuffer(1 << 52)


@pytest.mark.usefixtures("kind")
def test_buffers_do_not_use_up_descriptors() -> None:
    # Each new descriptor gets the lowest free number. What other tests left open may be closed meanwhile, by the garbage
    # collector or a thread that ends, so a mere count would show more than these buffers.
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for _time in range(3):
        buffers = [SecretBuffer(32) for _number in range(5)]
        for buffer in buffers:
            buffer.close()
    assert set(os.listdir("/proc/self/fd")) <= before


# What it does not tell

PRINTS: dict[str, Callable[[SecretBuffer], str]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "format with a width": lambda b: format(b, ">60"),
    "f-string": lambda b: f"{b}",
    "f-string, repr": lambda b: f"{b!r}",
    "f-string, ascii": lambda b: f"{b!a}",
    "f-string, width": lambda b: f"{b:^60}",
    "str.format": "{:x}".format,
    "percent": lambda b: "%s %r" % (b, b),  # noqa: UP031
    "in a container": lambda b: str([b, {"secret": b}]),
    "json with default": lambda b: json.dumps({"secret": b}, default=str),
    "log record": lambda b: logging.LogRecord("x", logging.INFO, "x", 1, "secret %s", (b,), None).getMessage(),
}


@pytest.mark.parametrize("way", PRINTS)
def test_a_secret_prints_only_its_size(secret: SecretBuffer, way: str) -> None:
    told = PRINTS[way](secret)
    assert "secret of 32 bytes" in told
    assert_untold(told)


def assert_untold(told: str | bytes) -> None:
    text = told if isinstance(told, str) else told.decode("latin-1")
    for form in (SECRET.decode(), SECRET.hex(), repr(list(SECRET))[1:-1], SECRET.decode()[:8]):
        assert form not in text


COPIES: dict[str, Callable[[SecretBuffer], object]] = {
    **{f"pickle {protocol}": lambda b, p=protocol: pickle.dumps(b, p) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    "pickle in a list": lambda b: pickle.dumps([b]),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a container": lambda b: copy.deepcopy({"secret": b}),
    "json": json.dumps,
    "json in a container": lambda b: json.dumps([b]),
    "msgspec json": msgspec.json.encode,
    "msgspec msgpack": msgspec.msgpack.encode,
    "bytes": bytes,  # type: ignore[dict-item]
    "iteration": list,  # type: ignore[dict-item]
    "vars": vars,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_secret_cannot_be_copied_or_serialized(secret: SecretBuffer, way: str) -> None:
    with pytest.raises(TypeError) as caught:
        COPIES[way](secret)
    assert_untold(str(caught.value))
    assert bytes(secret.view) == SECRET


def test_an_error_that_carries_a_secret_does_not_tell_it(secret: SecretBuffer) -> None:
    try:
        raise RuntimeError("failed with", secret)
    except RuntimeError as error:
        lines = traceback.TracebackException.from_exception(error, capture_locals=True)
        told = "".join(lines.format())
    assert "secret of 32 bytes" in told
    assert_untold(told)


# How it ends


def test_a_closed_buffer_is_zeros(secret: SecretBuffer) -> None:
    pages = peek(secret)
    assert pages[:32] == SECRET
    secret.close()
    assert bytes(pages) == bytes(len(pages))


def test_leaving_the_block_wipes_also_after_an_error(secret: SecretBuffer) -> None:
    pages = peek(secret)
    with pytest.raises(ZeroDivisionError), secret as same:
        assert same is secret
        raise ZeroDivisionError
    assert bytes(pages) == bytes(len(pages))


def test_wiping_leaves_a_usable_buffer_of_zeros(secret: SecretBuffer) -> None:
    secret.wipe()
    assert ctypes.string_at(address_of(secret), 32) == bytes(32)
    secret.view[:4] = b"more"
    assert ctypes.string_at(address_of(secret), 5) == b"more\0"


def test_a_closed_buffer_cannot_be_read(secret: SecretBuffer) -> None:
    view = secret.view
    secret.close()
    secret.close()
    with pytest.raises(ValueError):
        bytes(view)
    with pytest.raises(ValueError):
        bytes(secret.view)
    with pytest.raises(ValueError):
        secret.wipe()
    assert "secret of 32 bytes" in repr(secret)


def test_a_slice_that_somebody_kept_shows_zeros_and_hinders_no_close(secret: SecretBuffer) -> None:
    kept = secret.view[4:8]
    assert kept == SECRET[4:8]
    secret.close()
    assert bytes(kept) == bytes(4)
    secret.close()
    kept.release()
    secret.close()
    assert secret._map.closed


def test_closing_gives_the_pages_back(kind: str) -> None:
    buffer = SecretBuffer(32)
    address = address_of(buffer)
    gc.collect()
    assert flags_at(address)
    buffer.close()
    assert not flags_at(address) & {"lo"}


# What the kernel keeps


def flags_at(address: int) -> set[str]:
    """VmFlags of the mapping at an address (proc(5), smaps)."""
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            word = line.split(maxsplit=1)[0]
            if not word.endswith(":"):
                first, last = (int(end, 16) for end in word.split("-"))
                inside = first <= address < last
            elif inside and word == "VmFlags:":
                return set(line.split()[1:])
    return set()


def test_the_pages_are_locked_and_left_out_of_dumps(secret: SecretBuffer, kind: str) -> None:
    flags = flags_at(address_of(secret))
    assert {"lo", "dd"} <= flags
    if kind == "mlock":
        assert "dc" in flags, "a forked child would have a copy"


def test_what_the_process_memory_file_shows(secret: SecretBuffer, kind: str) -> None:
    """Also the proof that these tests look at the right place: under mlock the secret is to be seen there, until wiped."""
    address = address_of(secret)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        if kind == "memfd_secret":
            with pytest.raises(OSError):
                os.pread(memory.fileno(), 32, address)
        else:
            assert os.pread(memory.fileno(), 32, address) == SECRET
            secret.wipe()
            assert os.pread(memory.fileno(), 32, address) == bytes(32)


_FORBIDS_DUMPS = """
import ctypes, resource
from hwsec.secretmem import forbid_dumps
get_dumpable = 3
assert ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0) == 1
forbid_dumps()
print(ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))
"""


@pytest.mark.system
def test_a_process_can_forbid_its_dumps() -> None:
    told = subprocess.run([sys.executable, "-c", _FORBIDS_DUMPS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "0 (0, 0)"
