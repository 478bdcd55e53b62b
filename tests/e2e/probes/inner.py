"""Connects to each socket of the agent; prints JSON: path -> what came of it."""

import errno
import json
import socket
import sys

told = {}
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        try:
            sock.connect(path)
            told[path] = "connected"
        except OSError as error:
            told[path] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(told))
