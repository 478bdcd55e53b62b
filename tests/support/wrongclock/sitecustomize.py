"""Shifts a process's wall clock, and no other, by the seconds in the file that WRONG_CLOCK names. Python imports it first."""

import os
import time
from pathlib import Path

_true = time.time
_file = Path(os.environ["WRONG_CLOCK"])


def _wrong() -> float:
    return _true() + float(_file.read_text() or 0)


time.time = _wrong
