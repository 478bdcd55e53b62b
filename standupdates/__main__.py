"""Becomes the program NAME for `python -m standupdates NAME OPTIONS`. OPTIONS is JSON; a socket comes as from systemd."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any


def _program(name: str) -> Callable[[dict[str, Any]], int] | None:
    # Each imports only what it needs: the updater's user may not be able to read the rest, and a start is to be short.
    match name:
        case "updater":
            from .daemons import updater as found
        case "installer":
            from .daemons import installer as found
        case "system":
            from .system import main as found
        case "webserver":
            from .webserver import main as found
        case "bundle":
            from .bundle import main as found
        case "first":
            from .first import main as found
        case _:
            return None
    return found


def main() -> int:
    """Runs the program that the arguments name; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    program = _program(sys.argv[1]) if len(sys.argv) == 3 else None
    if program is None:
        sys.stderr.write("usage: python -m standupdates updater|installer|system|webserver|bundle|first OPTIONS\n")
        return 2
    return program(json.loads(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
