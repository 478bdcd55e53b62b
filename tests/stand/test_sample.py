"""Somebody's own POS application: what is missing in it is said before a version is published."""

from pathlib import Path

import pytest

from stand import sample
from stand.programs import StandError


def test_what_is_no_pos_application_is_refused_with_what_to_do(tmp_path: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(StandError, match=text):
            sample.require(tmp_path)

    files = [tmp_path / "bin" / name for name in ("pos", "check")]
    files[0].parent.mkdir()
    for file in files:
        refused(rf"bin/{file.name} does not exist; bin/pos runs until")
        file.write_text("exec sleep 1\n")
        refused(rf"bin/{file.name} is not executable; use 'chmod \+x ")
        file.chmod(0o755)
        refused(rf"bin/{file.name} is no program: a script begins with '#!'")
        file.write_text("#!/bin/sh\nexec sleep 1\n")
    assert sample.require(tmp_path) == tmp_path
    assert sample.require(sample.write(tmp_path / "sample", "1.0", tmp_path, works=True)).name == "sample"
