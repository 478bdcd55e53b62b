"""Carries one connection of the guest, on standard input and output, to a port of the host's loopback. QEMU starts it for each.

relay.py PORT
"""

import os
import select
import socket
import sys


def main() -> None:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
        watched = {0: sock.fileno(), sock.fileno(): 1}
        while watched:
            ready, _, _ = select.select(list(watched), [], [])
            for source in ready:
                data = os.read(source, 65536)
                target = watched[source]
                if data:
                    while data:
                        data = data[os.write(target, data) :]
                    continue
                del watched[source]
                if target == 1:
                    return
                sock.shutdown(socket.SHUT_WR)


main()
