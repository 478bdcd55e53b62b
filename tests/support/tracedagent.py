"""The agent's own program, which ends itself with SIGKILL at the step of a rotation that is named in a file.

Run as `python tracedagent.py ARGUMENTS…`, with the file's path in LICENSE_TEST_KILL_AT. It is killed there once: the file is
removed before.
"""

import os
import signal
from functools import partial
from pathlib import Path

from agentd import main, runner

_PLACE = Path(os.environ["LICENSE_TEST_KILL_AT"])


def _reached(step: str) -> None:
    try:
        wanted = _PLACE.read_text()
    except FileNotFoundError:
        return
    if wanted == step:
        _PLACE.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


runner.connect = partial(runner.connect, trace=_reached)

if __name__ == "__main__":
    main.entry()
