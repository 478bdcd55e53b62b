"""The real daemon, with one lock against exec alone, and a thread in it that tries to start a program when told to.

locked_daemon.py LOCK [LOCK …]: of "seccomp" and "landlock", the locks that the process puts on itself as it does in production;
those that are not named are left out here, in the test. AppArmor is left out, or not, by the unit.
"""

import ctypes
import errno
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

GO = "/run/license-agent/try-exec"
locks = set(sys.argv[1:])
tree = re.search(r'sys\.path\.insert\(0, "([^"]+)"\)', Path("/usr/bin/license-agent").read_text())[1]
sys.path.insert(0, tree)
sys.argv = ["/usr/bin/license-agent", "run"]

import agentd.base.confinement  # noqa: E402
import agentd.main  # noqa: E402
import agentd.runner  # noqa: E402

if "seccomp" not in locks:
    agentd.main.forbid_exec = lambda: None
if "landlock" not in locks:
    agentd.base.confinement.restrict = lambda rules, *, tcp: None
libc = ctypes.CDLL(None, use_errno=True)


def in_child(start):
    """How starting a program ends, in a child of this thread: it would replace the daemon otherwise."""
    pid = os.fork()
    if pid == 0:
        start()
        os._exit(ctypes.get_errno() or 255)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "done" if code == 0 else errno.errorcode.get(code, str(code))


def by_execve():
    arguments = (ctypes.c_char_p * 2)(b"/bin/true", None)
    libc.execve(b"/bin/true", arguments, None)


def by_execveat():
    descriptor = os.open("/bin/true", os.O_PATH)
    arguments = (ctypes.c_char_p * 2)(b"/bin/true", None)
    libc.syscall(ctypes.c_long(322), descriptor, b"", arguments, None, ctypes.c_long(0x1000))


def try_when_told():
    while not os.path.exists(GO):
        time.sleep(0.2)
    found = {"execve": in_child(by_execve), "execveat": in_child(by_execveat)}
    sys.stderr.write("EXEC " + json.dumps(found) + "\n")


# Landlock refuses to be put on where a second thread runs; the daemon starts its own after that, and this one then too.
real = agentd.runner.Runner._serve


async def serve(self, *arguments):
    threading.Thread(target=try_when_told, daemon=True).start()
    return await real(self, *arguments)


agentd.runner.Runner._serve = serve
agentd.main.entry()
