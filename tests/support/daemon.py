"""A bare daemon for tests: `license-agent` with its own sockets or inherited ones, on the software backend."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.servertool import Done, license_server
from tests.support.stand import BIN, short_directory
from tests.support.waiting import PAUSE_S, READY_S, wait_until

AGENT_UID = 64991


class Bench:
    """A furnished agent that can be started, stopped and spoiled.

    As root it runs as `AGENT_UID`, otherwise as the caller.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uid = AGENT_UID if os.geteuid() == 0 else os.geteuid()
        self.program = [str(BIN / "license-agent")]
        self.config = root / "etc" / "config.toml"
        self.state, self.log, self.run_dir, self.keys = root / "state", root / "log", root / "run", root / "keys"
        self.server = root / "server"
        for directory in (self.state, self.log, self.run_dir, self.keys, root / "etc"):
            directory.mkdir(mode=0o755)
            os.chown(directory, self.uid, self.uid)
        self.write_config()

    def write_config(self, extra: str = "", uids: list[int] | None = None) -> None:
        """Writes a good configuration with something added."""
        allowed = [os.geteuid()] if uids is None else uids
        self.write_raw_config(
            f'[agent]\nid = "pos-009"\n[tpm]\nenabled = false\nfallback_encrypted_storage = "{self.state}/secret.enc"\n'
            f"[pos]\nallowed_uids = {allowed}\n[management]\nallowed_uids = [{os.geteuid()}]\n"
            f'[paths]\nstate_dir = "{self.state}"\nlog_dir = "{self.log}"\n'
            f'run_dir = "{self.run_dir}"\nkey_dir = "{self.keys}"\n' + extra
        )

    def write_raw_config(self, text: str) -> None:
        self.config.write_text(text)
        self.config.chmod(0o600)
        os.chown(self.config, self.uid, self.uid)

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "LICENSE_AGENT_CONFIG": str(self.config),
            "LICENSE_AGENT_SOCKET": str(self.run_dir / "pos.sock"),
            "LICENSE_AGENT_ADMIN_SOCKET": str(self.run_dir / "admin.sock"),
            "LICENSE_SERVER_DIR": str(self.server),
        }

    def tool(self, name: str, *arguments: str, fine: tuple[int, ...] = (0,), stdin: str | None = None) -> str:
        command = [str(BIN / name), *arguments]
        if name == "license-agent-cli":
            command[1:1] = ["--agent-uid", str(self.uid)]
        done: Done | subprocess.CompletedProcess[str]
        if name == "license-server":
            done = license_server(*arguments, env=self.env, stdin=stdin)
        else:
            done = subprocess.run(
                command, env=self.env, capture_output=True, text=True, check=False, timeout=READY_S, input=stdin
            )
        assert done.returncode in fine, f"{name} {arguments}: {done.returncode} {done.stderr}"
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """What `status` says as JSON, however the agent is."""
        found: dict[str, Any] = json.loads(self.tool("license-agent-cli", "--json", "status", fine=(0, 1, 2)))
        return found

    def enroll(self) -> None:
        """Server and agent know each other; the agent has no secret yet."""
        self.tool("license-server", "init")
        self.tool("license-server", "trust", "--out", str(self.root / "trust.json"))
        done = subprocess.run(
            [str(BIN / "license-agent"), "init", "--trust", str(self.root / "trust.json")],
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        (self.root / "request.json").write_text(done.stdout)
        self.tool("license-server", "enroll", "--request", str(self.root / "request.json"))

    def give_secret(self) -> None:
        """A rotation, carried by hand."""
        delivery = self.root / "delivery"
        self.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(delivery))
        self.tool("license-agent-cli", "secrets", "install", str(delivery))

    def issue(self) -> str:
        """A license for a day; when it begins and ends is on standard error, behind it."""
        return self.tool("license-server", "issue", "--agent", "pos-009", "--feature", "f", "--expires", "+1d").splitlines()[0]

    @contextlib.contextmanager
    def running(self, *, inherited: bool = False, watchdog: bool = False) -> Iterator["Running"]:
        """The daemon, for the length of a block; it is ready when the block begins."""
        running = Running(self, inherited, watchdog)
        try:
            running.wait_ready()
            yield running
        finally:
            running.close()

    def run_to_the_end(self) -> tuple[int, str]:
        """Starts it and waits for its end: exit status and what it wrote."""
        done = subprocess.run(
            [str(BIN / "license-agent")], env=self.env, capture_output=True, text=True, check=False, timeout=READY_S
        )
        return done.returncode, done.stderr

    def records(self) -> list[dict]:
        """The audit log's records."""
        return [json.loads(line) for line in (self.log / "audit.log").read_text().splitlines()]


class Running:
    """A daemon's process, with the notices that it sends to its service manager."""

    def __init__(self, bench: Bench, inherited: bool, watchdog: bool) -> None:
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = bench.root / "notify"
        path.unlink(missing_ok=True)
        self.notices.bind(str(path))
        path.chmod(0o666)
        self.notices.settimeout(PAUSE_S)
        self.stderr = bench.root / "stderr"
        self._sockets: list[socket.socket] = []
        env = {**bench.env, "NOTIFY_SOCKET": str(path)}
        if watchdog:
            env["WATCHDOG_USEC"] = "300000"
        command = bench.program
        if inherited:
            for name, mode in (("pos", 0o666), ("admin", 0o600)):
                sock = socket.socket(socket.AF_UNIX)
                place = bench.run_dir / f"{name}.sock"
                place.unlink(missing_ok=True)
                sock.bind(str(place))
                place.chmod(mode)
                sock.listen(64)
                self._sockets.append(sock)
            command = [
                sys.executable,
                "-m",
                "stand.launch",
                "pos:admin",
                *(str(sock.fileno()) for sock in self._sockets),
                *command,
            ]
        self._command, self._env = command, env
        self.stderr.write_bytes(b"")
        self.process = self._launch()

    def _launch(self) -> "subprocess.Popen[bytes]":
        with self.stderr.open("ab") as stderr:
            return subprocess.Popen(
                self._command,
                env=self._env,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                pass_fds=[sock.fileno() for sock in self._sockets],
            )

    def kill_and_restart(self) -> None:
        """Kills it without warning and starts it again, on the same sockets if it inherited them."""
        self.process.kill()
        self.process.wait()
        self.process = self._launch()
        self.wait_ready()

    def notice(self, wanted: str) -> str:
        """Waits for a notice that has this line."""

        def heard() -> str:
            with contextlib.suppress(TimeoutError):
                while True:
                    text = self.notices.recv(4096).decode()
                    if wanted in text.split("\n"):
                        return text
            return ""

        return wait_until(
            heard, lambda: f"no notice {wanted}: {self.log()}", lives=lambda: self.process.poll() is None, pause_s=0
        )

    def wait_ready(self) -> None:
        self.notice("READY=1")

    def log(self) -> str:
        return self.stderr.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for sock in (*self._sockets, self.notices):
            sock.close()


@contextlib.contextmanager
def furnished() -> Iterator[Bench]:
    """An enrolled agent without a secret, not running."""
    with short_directory() as directory:
        bench = Bench(directory)
        bench.enroll()
        yield bench
