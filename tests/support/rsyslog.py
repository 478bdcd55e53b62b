"""Debian's rsyslog with the configuration that we ship, as a machine's and as a collector's, on loopback."""

import contextlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.waiting import answers, wait_until

STUCK_S = 2.0
"""For how long rsyslogd must wait for its peer's goodbye, and do nothing else, to be taken for stuck."""
READ = {"x86_64": "0"}.get(platform.machine(), "63")
"""The number of read(2): the old one of x86_64, or the one of all later machines."""
RSYSLOGD = shutil.which("rsyslogd") or "/usr/sbin/rsyslogd"
SHIPPED = Path(__file__).resolve().parents[2] / "packaging" / "rsyslog"
COLLECTOR = "collector.example"
"""The name in the collector's certificate, as the shipped configuration has it."""
TLS = "/etc/license-agent-logs"


class Rsyslog:
    """A rsyslogd with a directory of its own.

    Args:
        directory: for its configuration, spool and what it writes.
        shipped: name of the configuration in packaging/rsyslog.
        changes: what the configuration has for this machine: every one must be found in it.
        port: on which it is asked whether it runs; None for a sender.
    """

    def __init__(self, directory: Path, shipped: str, changes: dict[str, str], port: int | None = None) -> None:
        self._directory = directory
        self._port = port
        (directory / "spool").mkdir(parents=True)
        text = (SHIPPED / shipped).read_text("utf-8")
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        # What a distribution's own file has: where state is kept, which socket programs log to, and a rule for everything else.
        self._text = (
            f'global(workDirectory="{directory}/spool")\n'
            f'module(load="imuxsock" sysSock.use="off")\ninput(type="imuxsock" socket="{directory}/log" createPath="on")\n'
            f'{text}\n*.* action(type="omfile" file="{directory}/own.log")\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Where programs log to, as /dev/log."""
        return self._directory / "log"

    @property
    def said(self) -> str:
        """The last that it has said of itself."""
        return (self._directory / "out").read_text("utf-8", "replace")[-2000:]

    def start(self, *, certificate: tuple[str, str] | None = None) -> None:
        """Starts it.

        Args:
            certificate: the file's name in its configuration, and the one to use instead.
        """
        text = self._text if certificate is None else self._text.replace(*certificate)
        conf = self._directory / "rsyslog.conf"
        conf.write_text(text, "utf-8")
        with (self._directory / "out").open("ab") as out:
            words = [RSYSLOGD, "-n", "-iNONE", "-f", str(conf)]
            self._process = process = subprocess.Popen(words, stdout=out, stderr=out)
        ready = self.socket.exists if self._port is None else lambda: answers(self._port)  # type: ignore[arg-type]
        wait_until(ready, lambda: f"rsyslogd does not run: {self.said}", lives=lambda: process.poll() is None)

    def stop(self, *, kill: bool = False) -> None:
        """Ends it, with SIGTERM or SIGKILL.

        The OpenSSL driver of rsyslog 8.2302 closes a connection whose handshake is not over by reading from it, for as long as
        the peer keeps it open: such a daemon has saved its queue, and has nothing left but to be killed, as systemd does after
        90 seconds.

        Raises:
            AssertionError: it does not end, and is not stuck in that way.
        """
        process, self._process = self._process, None
        if process is None:
            return
        (process.kill if kill else process.terminate)()
        since = [time.monotonic()]

        def ended_or_stuck() -> bool:
            if process.poll() is not None:
                return True
            if not _waits_for_its_peer(process.pid):
                since[0] = time.monotonic()
            return time.monotonic() - since[0] > STUCK_S

        try:
            wait_until(ended_or_stuck, lambda: f"rsyslogd does not end: {_state(process.pid)}: {self.said}")
        finally:
            process.kill()
            process.wait()
        self.socket.unlink(missing_ok=True)


def _waits_for_its_peer(pid: int) -> bool:
    """Whether the process has one thread left, and that one is in read(2) of a socket."""
    threads, call, file = _state(pid)
    return threads == 1 and call == READ and file.startswith("socket:")


def _state(pid: int) -> tuple[int, str, str]:
    """How many threads a process has, the system call that its first one is in, and the file of a read; empty if unknown."""
    proc = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        call, *arguments = (proc / "syscall").read_text().split()
        file = os.readlink(proc / "fd" / str(int(arguments[0], 16))) if call == READ else ""
        return len(os.listdir(proc / "task")), call, file
    return 0, "", ""


@contextlib.contextmanager
def pair(directory: Path, tls: Path, log: Path, port: int) -> Iterator[tuple[Rsyslog, Rsyslog]]:
    """A sender for the log in a directory and its collector, neither of them running yet.

    Args:
        directory: for both.
        tls: has ca.pem and the two certificates with their keys.
        log: the directory that the agent writes its log to.
        port: of the collector.
    """
    sender = Rsyslog(
        directory / "machine",
        "license-agent.conf",
        {
            "/var/log/license-agent/": f"{log}/",
            TLS: str(tls),
            f'target="{COLLECTOR}" port="6514"': f'target="127.0.0.1" port="{port}"',
            'resumeInterval="10"': 'resumeInterval="1"',
            'resumeIntervalMax="60"': 'resumeIntervalMax="1"',
        },
    )
    collector = Rsyslog(
        directory / "collector",
        "license-agent-collector.conf",
        {TLS: str(tls), "/var/log/license-agents": str(directory / "collected"), 'port="6514"': f'port="{port}"'},
        port,
    )
    try:
        yield sender, collector
    finally:
        sender.stop()
        collector.stop()
