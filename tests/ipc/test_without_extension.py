"""The client's decoder does the same where msgpack has no compiled extension (ADR 24)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FALLBACK = {**os.environ, "MSGPACK_PUREPYTHON": "1"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=FALLBACK, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.system
def test_the_tests_of_the_decoder_pass_with_the_fallback_in_pure_python() -> None:
    used = run("-c", "import msgpack; print(msgpack.unpackb.__module__, msgpack.Packer.__module__)")
    assert used.stdout.split() == ["msgpack.fallback", "msgpack.fallback"], used
    done = run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/ipc/test_clientwire.py")
    assert done.returncode == 0, done.stdout
