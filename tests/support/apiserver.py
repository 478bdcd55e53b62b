"""A license server as a process of its own, made and looked after by its own commands."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jwe
from joserfc.jwk import ECKey

from contracts.jose import b64decode
from contracts.keyset import pin_of
from server.keys.pki import spki_of
from server.licensing.secrets.secrets import key_check
from tests.support.apiclient import Device
from tests.support.serverside import ServerSide, open_server
from tests.support.servertool import license_server
from tests.support.waiting import READY_S, wait_until

COMMAND = Path(sys.executable).with_name("license-server")


class ApiServer:
    """A license server in a directory.

    Args:
        directory: its own.
        unix: serve on this socket instead of TLS on a port of loopback; the user of the tests may connect.
    """

    program: tuple[str | Path, ...] = (COMMAND,)
    """What is started to serve."""

    def __init__(self, directory: Path, unix: Path | None = None) -> None:
        self.directory = directory
        self.unix = unix
        self.proxy_user = str(os.geteuid())
        self.claims: list[str] = []
        self.base = self.ops = self.operators = self.ddi = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory.parent / f"{directory.name}.log"
        with self.server_side() as server_side:
            certificates = x509.load_pem_x509_certificates(server_side.keys.tls_material()[0].encode())
        self.root = certificates[-1].public_bytes(Encoding.PEM).decode()
        self.pins = (pin_of(spki_of(certificates[-1])),)

    @classmethod
    @contextlib.contextmanager
    def made(cls, directory: Path, url: str | None = None, unix: Path | None = None) -> Iterator["ApiServer"]:
        """A new one; stopped at the end."""
        where = [] if url is None else ["--database", url]
        run("init", "--dir", str(directory), "--root-key", str(directory.parent / f"{directory.name}.root"), *where)
        server = cls(directory, unix)
        try:
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def server_side(self) -> Iterator[ServerSide]:
        """Its registry, beside the process."""
        server_side = open_server(self.directory)
        try:
            yield server_side
        finally:
            server_side.close()

    # The process

    def start(self, *options: str, environment: dict[str, str] | None = None) -> None:
        """Starts serving and waits until it does."""
        where = ("--bind", "127.0.0.1:0") if self.unix is None else ("--unix", str(self.unix), "--proxy-user", self.proxy_user)
        begins = len(self.log())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.program, "serve", "--dir", str(self.directory), *where, *options],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | (environment or {}),
            )
        line = self.wait_for('"event":"serving"', begins)
        names = json.loads(line)["listeners"]
        self.base = f"https://{names[0]}"
        self.ops = next((f"http://{name.removeprefix('operators: ')}" for name in names if "operators: " in name), "")
        mine = "operator API: "
        self.ddi = next((f"https://{name.removeprefix('DDI: ')}" for name in names if "DDI: " in name), "")
        self.operators = next((f"https://{name.removeprefix(mine)}/operator/v1" for name in names if mine in name), "")

    def wait_for(self, text: str, after: int = 0) -> str:
        """The newest line of the log, after so many characters, with that text in it, as soon as there is one."""
        process = self._process
        assert process is not None

        def newest() -> str:
            return next((line for line in reversed(self.log()[after:].splitlines()) if text in line), "")

        return wait_until(newest, lambda: f"the server never said {text}: {self.log()}", lives=lambda: process.poll() is None)

    def log(self) -> str:
        return self._log.read_text("utf-8") if self._log.exists() else ""

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def memory(self) -> int:
        """Bytes of memory that are the process's own."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def stop(self) -> int:
        """Stops it, if it runs; returns its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

    def kill(self) -> None:
        """Ends it without warning, if it runs."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()

    # Administrators

    def run(self, *arguments: str) -> str:
        """A command on the server's directory; its output."""
        return run(*arguments, "--dir", str(self.directory))

    def fails(self, *arguments: str) -> str:
        """What a command that fails says."""
        done = subprocess.run(
            [COMMAND, *arguments, "--dir", str(self.directory)], capture_output=True, text=True, timeout=READY_S, check=False
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr

    def claim(self) -> str:
        """A claim for one device."""
        with self.server_side() as server_side:
            text: str = server_side.enrollment_tokens.create(None, False, 3600, int(time.time()))
        self.claims.append(text)
        return text

    def revoke(self, agent_id: str) -> None:
        with self.server_side() as server_side:
            server_side.agents.set_status(agent_id, "revoked", int(time.time()))

    def break_database(self) -> None:
        """Takes the SQLite file away, as a failed disk would."""
        for path in self.directory.glob("server.db*"):
            path.write_bytes(b"\xff" * 4096)

    # What it shows

    def certificate(self) -> bytes:
        """The certificate that it presents to a new connection, DER."""
        host, port = self.base.removeprefix("https://").rsplit(":", 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root)
        with (
            socket.create_connection((host, int(port)), timeout=READY_S) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""


def run(*arguments: str) -> str:
    """A `license-server` command that succeeds; its output. A process of its own where its clock is to be another."""
    if "WRONG_CLOCK" not in os.environ:
        done = license_server(*arguments, env={})
        assert done.returncode == 0, done.stderr
        return done.stdout
    started = subprocess.run(
        [COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=READY_S, check=False
    )
    assert started.returncode == 0, started.stderr
    return started.stdout


def open_delivery(device: Device, delivery: str) -> tuple[int, str]:
    """Version and key check of the secret that was delivered to a device."""
    content = json.loads(b64decode(delivery.split(".")[1]))
    key: ec.EllipticCurvePrivateKey = device.agreement
    opened = jwe.decrypt_compact(content["new_secret_encrypted"], ECKey.import_key(key), algorithms=["ECDH-ES", "A256GCM"])
    assert opened.plaintext is not None
    version = int(content["secret_version"])
    return version, key_check(opened.plaintext, device.agent_id, version)
