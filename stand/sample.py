"""Writes a sample POS application: it says which version runs, and its health command looks whether that is its own."""

import os
import shutil
from pathlib import Path

from .programs import StandError

_POS = """\
#!/bin/sh
# It starts in its slot, and SIGTERM ends it.
cp version '{data}/runs.new'
mv '{data}/runs.new' '{data}/runs'
exec sleep 1000000
"""
_CHECK = """\
#!/bin/sh
# The health command: exit status 0 says that this version works. It may wait a while for what has just been started.
left=200
until cmp -s version '{data}/runs'; do
    left=$((left - 1))
    if [ "$left" -eq 0 ]; then
        echo "another version runs"
        exit 1
    fi
    sleep 0.1
done
"""
_BAD_CHECK = """\
#!/bin/sh
echo "the printer does not answer"
exit 1
"""


NEEDED = "bin/pos runs until SIGTERM ends it, and bin/check exits with 0 if it works"


def write(directory: Path, version: str, data: Path, *, works: bool) -> Path:
    """Writes what the slot will have in it: a POS application `bin/pos`, its health command `bin/check`, and `version`.

    Args:
        directory: is made, or made empty.
        version: of the application.
        data: where it writes, as its user.
        works: whether its health command succeeds.
    """
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "bin").mkdir(parents=True)
    (directory / "version").write_text(f"{version}\n", "ascii")
    for name, text in (("pos", _POS), ("check", _CHECK if works else _BAD_CHECK)):
        file = directory / "bin" / name
        file.write_text(text.replace("{data}", str(data).replace("'", "'\\''")), "utf-8")
        file.chmod(0o755)
    return directory


def require(directory: Path) -> Path:
    """The directory of somebody's own POS application, which has both programs: a version without one is used up in vain.

    Raises:
        StandError: a program is not there, or cannot be started.
    """
    for name in ("bin/pos", "bin/check"):
        file = directory / name
        if not file.is_file():
            raise StandError(f"{file} does not exist; {NEEDED}")
        if not os.access(file, os.X_OK):
            raise StandError(f"{file} is not executable; use 'chmod +x {file}'")
        with file.open("rb") as opened:
            begins = opened.read(4)
        if not begins.startswith((b"#!", b"\x7fELF")):
            raise StandError(f"{file} is no program: a script begins with '#!', for instance with '#!/bin/sh'")
    return directory
