"""Starts a program with sockets passed as systemd does: `python -m stand.launch POS_FD ADMIN_FD PROGRAM ARGUMENT …`."""

import fcntl
import os
import sys

_FIRST_FD = 3


def main() -> None:
    """Puts the two sockets at 3 and 4 and becomes the program."""
    given = [int(number) for number in sys.argv[1:3]]
    # Out of the way first, so that neither lands on the other.
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 64) for number in given]
    for offset, number in enumerate(high):
        os.dup2(number, _FIRST_FD + offset, inheritable=True)
        os.close(number)
    for number in given:
        if number >= _FIRST_FD + len(given):
            os.close(number)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES="pos:admin")
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - the caller names the program


if __name__ == "__main__":
    main()
