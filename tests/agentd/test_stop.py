"""A stop during errors of the disk names the file and what to do, and no error without a file's name reads `None`."""

import errno
import os
from pathlib import Path

import pytest

from agentd.audit.file import AuditFile
from agentd.base.errors import StopError
from agentd.main import _explained
from common.files import create, fsync_directory, os_problem, write_atomic


def failing(_descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_fsync_that_fails_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AuditFile(tmp_path / "audit.log")
    file.open()
    monkeypatch.setattr(os, "fsync", failing)
    works = {
        tmp_path / "audit.log": file.sync,
        tmp_path: lambda: fsync_directory(tmp_path),
        tmp_path / ".a.new": lambda: write_atomic(tmp_path / "a", b"x"),
        tmp_path / ".b.new": lambda: create(tmp_path / "b", b"x"),
    }
    for path, work in works.items():
        with pytest.raises(OSError, match="Input/output error") as caught:
            work()
        assert os_problem(caught.value) == f"{path}: Input/output error"
        assert _explained(caught.value) == ([f"{path}: Input/output error"], 1)
    file.close()


def test_an_error_without_a_file_is_no_none() -> None:
    for error in (OSError(errno.EIO, "Input/output error"), OSError("odd"), TimeoutError()):
        assert "None" not in os_problem(error) and "None" not in _explained(error)[0][0]
    assert _explained(StopError("what and what to do")) == (["what and what to do"], 1)
