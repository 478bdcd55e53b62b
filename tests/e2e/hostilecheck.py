"""A health command that attacks from inside its sandbox, in a version that vendor and server have signed.

It runs as the product's user in license-agent-pos-check@.service. It must do no harm to the machine, to the agent's secrets, to
other hosts, or to the next version's check.
"""

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.updates import Till

CHECK_UNIT = "license-agent-pos-check@pos"
DAEMON, PREFIX = "hostile-daemon", "TRIED "
PLACES = ("/var/lib/pos-data", "/home/till", "/srv/open")
"""Where the product's user may write outside of the sandbox."""
STUBBORN_S = 20
"""What the health command may take while it does not end by itself, seconds."""

TRY = f'''#!/usr/bin/python3 -I
import ctypes, errno, json, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def write(path):
    with open(path, "w") as file:
        file.write("hostile")
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def connect(*address):
    with socket.create_connection(address, 5):
        pass
def dial(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
def unshare():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")
attempts = {{
    "write the product's data": lambda: write("/var/lib/pos-data/hostile"),
    "write to its home": lambda: write("/home/till/hostile"),
    "read its home": lambda: read("/home/till/secret"),
    "write where everybody may": lambda: write("/srv/open/hostile"),
    "connect to another host": lambda: connect("10.0.2.101", 9999),
    "connect to the license server": lambda: connect("10.0.2.100", 8443),
    "speak on D-Bus": lambda: dial("/run/dbus/system_bus_socket"),
    "make a user namespace": unshare,
    "become root": lambda: os.setuid(0),
    "write into its slot": lambda: write("hostile"),
    "read the sealed store": lambda: read("/var/lib/license-agent/secrets.store"),
    "read what the installer keeps": lambda: read("/var/lib/license-agent-installer/state.json"),
    "read config.toml": lambda: read("/etc/license-agent/config.toml"),
    "open the TPM": lambda: read("/dev/tpmrm0"),
    "speak with the installer": lambda: dial("/run/license-agent/installer.sock"),
    "speak with the link": lambda: dial("/run/license-agent/link.sock"),
    "administer the agent": lambda: dial("/run/license-agent/admin.sock"),
}}
def tried(attempt):
    try:
        attempt()
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"
print("{PREFIX}" + json.dumps({{name: tried(attempt) for name, attempt in attempts.items()}}), flush=True)
'''
FREE = (
    "write the product's data",
    "write to its home",
    "read its home",
    "write where everybody may",
    "connect to another host",
    "connect to the license server",
    "speak on D-Bus",
)
"""What the product's user can do outside of the sandbox, so that it is the sandbox which refuses it."""
SLEEP = f'os.execv(sys.executable, [sys.executable, "-Ic", "import time; time.sleep(1e6)", "{DAEMON}"])'
STAY = f"""
if os.fork() == 0: # in a session of its own, where no signal that can be ignored ends it
    os.setsid()
    for number in set(signal.valid_signals()) - {{signal.SIGKILL, signal.SIGSTOP}}:
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    {SLEEP}
"""
ATTACKS = TRY + STAY
"""Tries everything, leaves a process behind, and says that all is well."""
STUBBORN = f"""#!/usr/bin/python3 -I
import os, signal, sys
{STAY}
for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("the check does not end", flush=True)
{SLEEP}
"""
"""Takes no notice of the end of its time."""
REFUSALS = {"EPERM", "EACCES", "EROFS", "ENOENT", "ETIMEDOUT"}


def attacks(till: "Till", version: str) -> None:
    """A version whose check attacks, and says that all is well while a process of it goes on: that is no success."""
    left = " ".join(f"{place}/hostile" for place in PLACES)
    till.sh(
        "install -d -m 1777 /srv/open && install -d -o till -g till /home/till"
        " && echo private >/home/till/secret && chown till: /home/till/secret"
    )
    till.guest.put(TRY.encode(), "/srv/attempts", 0o755)
    free = _tried(till.out("cd /srv && ./attempts", user="till"))
    till.check("outside of the sandbox much of it succeeds", all(free[name] == "done" for name in FREE), free)
    till.sh(f"rm -f {left}")
    line = till.update(version, {"bin/check": ATTACKS})
    # The process that it leaves has to be ended by force, and so the check has failed.
    till.same("a version whose check attacks, and leaves a process, is taken back", "rolled-back", line["outcome"])
    caged = _tried(till.out(f"journalctl --sync; journalctl -b -u {CHECK_UNIT} -o cat --no-pager | grep -a '^{PREFIX}'"))
    till.same("each attempt was made", list(free), list(caged))
    for name, found in caged.items():
        till.check(f"the check cannot {name}", found in REFUSALS, f"outside {free[name]}, inside {found}")
    found = till.out(f"ls {left} /var/lib/pos/slots/*/hostile 2>/dev/null || true")
    till.same("it has left no file", "", found)
    _nothing_runs(till)


def stays(till: "Till", version: str) -> None:
    """A version whose check does not end: it is ended by force and taken back, and no later check joins its run."""
    before = till.runs()
    toml = "/etc/license-agent/installer.toml"
    till.sh(f"cp -p {toml} /root/ && sed -i 's/^timeout_s = .*/timeout_s = {STUBBORN_S}/' {toml}")
    line = till.update(version, {"bin/check": STUBBORN})
    till.sh(f"cat /root/installer.toml >{toml}")
    till.same("a version whose check does not end is taken back", "rolled-back", line["outcome"])
    till.check("the register says why", "health: 'bin/check' failed" in line["reason"], line["reason"])
    till.check("and what it wrote last", "the check does not end" in line["reason"], line["reason"])
    _nothing_runs(till)
    till.same("its unit is at rest", "inactive", till.out(f"systemctl is-active {CHECK_UNIT}", check=False))
    till.same("the version before runs", before, till.runs())


def _nothing_runs(till: "Till") -> None:
    till.same("no process of the check is left", "", till.out("pgrep -af '[h]ostile-daemon' || true"))


def _tried(text: str) -> dict[str, str]:
    found = re.search(rf"{PREFIX}(\{{.*\}})", text)
    if found is None:
        raise AssertionError(f"no attempts were told by: {text[-500:]}")
    told: dict[str, str] = json.loads(found[1])
    return told
