"""Looks for secrets in the memory of another process, as somebody with its rights could."""

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
_STOP = """
import os

def stop():
    os.write(1, b".")
    os.read(0, 1)
"""


@dataclass(frozen=True)
class Scan:
    """What a process told before each stop, and its memory at that time."""

    told: list[bytes]
    memories: list[bytes]


def memory_of(pid: int) -> bytes:
    """All that the process could have written to, and that its owner can read."""
    areas = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, access, *_rest = line.split()
            if access.startswith("rw"):
                first, last = (int(address, 16) for address in span.split("-"))
                with contextlib.suppress(OSError):  # secret memory
                    areas.append(os.pread(memory.fileno(), last - first, first))
    return b"|".join(areas)


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    if len(data) < size:
        raise EOFError("the process ended early")
    return data


def scan_after_each_stop(script: str, sizes: list[int], *arguments: object) -> Scan:
    """Runs a Python script that calls `stop()` as often as there are sizes.

    Args:
        script: writes secrets to its standard output by os.write, straight from secret memory.
        sizes: how many bytes it writes before each stop.
        arguments: its sys.argv[1:].
    """
    command = [sys.executable, "-c", _STOP + script, *map(str, arguments)]
    told: list[bytes] = []
    memories: list[bytes] = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        for size in sizes:
            told.append(_read_exactly(process.stdout, size))
            assert _read_exactly(process.stdout, 1) == b"."
            memories.append(memory_of(process.pid))
            process.stdin.write(b"x")
    assert process.returncode == 0
    return Scan(told, memories)


def lingering(memory: bytes, secrets: dict[str, bytes]) -> list[str]:
    """Which of the secrets are to be found, whole or by halves, raw or in hex."""
    found = []
    for name, secret in secrets.items():
        half = len(secret) // 2
        forms = {"whole": secret, "first half": secret[:half], "second half": secret[half:], "reversed": secret[::-1]}
        forms["hex"] = secret.hex().encode()
        found += [f"{name}, {form}" for form, data in forms.items() if data in memory]
    return found
