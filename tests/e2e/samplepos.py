"""The POS application that the booted guest updates: its programs, its unit, and root's word on what may replace it."""

from dataclasses import dataclass

from tests.e2e.vendor import PRODUCT

SLOTS = "/var/lib/pos"
"""Where it has its versions."""
TRIAL_S, CHECK_S, START_S = 5, 60, 45
"""Seconds: of a trial, of a health command, and that the POS may take to start. An emulated processor is slow."""

POS = """#!/usr/bin/python3 -I
import os, socket
version = open("version").read()
listener = socket.create_server(("127.0.0.1", 7700))
open(os.environ["STATE_DIRECTORY"] + "/started", "w").write(version)
print("POS", version, "sells", flush=True)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    listener.accept()[0].sendall(version.encode())
"""
CHECK = """#!/usr/bin/python3 -I
import os, socket, sys
assert os.getuid() != 0 and os.getcwd().startswith("/var/lib/pos/slots/"), "another user, or another place"
runs = socket.create_connection(("127.0.0.1", 7700)).recv(64).decode()
sys.exit(0 if runs == open("version").read() else "the version that runs is " + runs)
"""
NOT_STARTING = '#!/bin/sh\necho "the database has another form" >&2\nexit 3\n'
NO_PRINTER = '#!/bin/sh\necho "no printer is connected"\nexit 1\n'
HANGING = '#!/bin/sh\necho "waiting for the card terminal"\nexec sleep 1000\n'
GOOD = {"bin/pos": POS, "bin/check": CHECK}
UNIT = f"""[Unit]
Description=Sample POS
StartLimitIntervalSec=0
[Service]
Type=notify
User=till
ExecStart={SLOTS}/current/bin/pos
WorkingDirectory={SLOTS}/current
StateDirectory=pos-data
Restart=on-failure
RestartSec=2s
TimeoutStartSec={START_S}s
[Install]
WantedBy=multi-user.target
"""
PRODUCTS = f"""[product.{PRODUCT}]
backend = "slots"
directory = "{SLOTS}"
unit = "pos.service"
user = "till"
health = ["bin/check"]
timeout_s = {CHECK_S}
"""
SETTINGS = f'\n[updates]\nnotice_h = 0\nconsent = "none"\ntrial_s = {TRIAL_S}\n'


@dataclass(frozen=True)
class Bad:
    """A version that does not work.

    Attributes:
        name: for the report.
        files: what is other than in a good one.
        reason: parts of what the register says of it: the check that failed, and what the log said last.
    """

    name: str
    files: dict[str, str]
    reason: tuple[str, ...]


BAD = (
    Bad("fails its check", {"bin/check": NO_PRINTER}, ("health: 'bin/check' failed", "no printer is connected")),
    Bad("does not start", {"bin/pos": NOT_STARTING}, ("unit: pos.service does not run", "the database has another form")),
    Bad("hangs when it starts", {"bin/pos": HANGING}, ("unit: pos.service does not run", "waiting for the card terminal")),
)
