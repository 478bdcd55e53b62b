"""Starts a program with sockets passed as systemd does: `python -m stand.launch NAME:NAME… FD… PROGRAM ARGUMENT …`."""

import fcntl
import os
import sys

_FIRST_FD = 3


def main() -> None:
    """Puts the sockets at 3 and up and becomes the program."""
    names = sys.argv[1].split(":")
    given = [int(number) for number in sys.argv[2 : 2 + len(names)]]
    command = sys.argv[2 + len(names) :]
    # Out of the way first, so that none lands on another.
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 64) for number in given]
    for offset, number in enumerate(high):
        os.dup2(number, _FIRST_FD + offset, inheritable=True)
        os.close(number)
    for number in given:
        if number >= _FIRST_FD + len(given):
            os.close(number)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=":".join(names))
    os.execv(command[0], command)  # noqa: S606 - the caller names the program


if __name__ == "__main__":
    main()
