"""The real REST interface in front of the real agent, as processes, and a client of it over mutual TLS."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from contracts.admin.adminauth import act_digest, signed_text
from stand.programs import free_ports
from tests.support.adminpki import DAY, Ca, Holder, at, named
from tests.support.daemon import Bench, Running, furnished
from tests.support.otheruser import commands_for
from tests.support.waiting import PAUSE_S, READY_S, wait_until

MANAGE_UID = 64993
START = 1_700_000_000
CA = Ca(start=START, days=7300)


def issued(role: str = "admin", **more: Any) -> Holder:
    """An administrator's certificate, valid for years."""
    return CA.issue(f"the {role}", role=role, start=START, days=7200, **more)


def server_identity() -> Holder:
    """A certificate for 127.0.0.1, which its own key has signed."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named("management of this machine"))
        .issuer_name(named("management of this machine"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at(START))
        .not_valid_after(at(START + 7200 * DAY))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Holder(builder.sign(key, hashes.SHA256()), key)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def problem(self) -> str:
        """The kind of problem."""
        assert self.headers["content-type"] == "application/problem+json", self
        found = self.json
        assert found["status"] == self.status and found["next"] and found["detail"] and found["title"]
        return str(found["type"]).removeprefix("urn:license-agent:problem:")


class Client:
    """An administrator's client: one certificate, and an HTTP connection for each request."""

    def __init__(self, manage: "Manage", holder: Holder | None, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.manage, self.holder = manage, holder
        self.context = ssl.create_default_context(cafile=str(manage.certificate))
        self.context.maximum_version = version
        if holder is not None:
            self.files = manage.write_holder(holder)
            self.context.load_cert_chain(*self.files)

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.manage.port, context=self.context, timeout=READY_S)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given.setdefault("content-type", "application/json")
        connection = self.connect()
        try:
            connection.request(method, path, body=data, headers=given)
            reply = connection.getresponse()
            return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def challenge(self) -> dict[str, Any]:
        answer = self.ask("POST", "/v1/challenges")
        assert answer.status == 201, answer
        return answer.json

    def signed(self, given: dict[str, Any], op: str, params: dict[str, Any], signer: Holder | None = None) -> dict[str, Any]:
        """Members of a request that carries a signature."""
        import base64

        signer = signer or self.holder
        assert signer is not None
        boot, challenge = bytes.fromhex(given["boot_id"]), bytes.fromhex(given["challenge"])
        text = signed_text(given["agent_id"], boot, challenge, act_digest(op, params))
        signature = base64.b64encode(signer.key.sign(text, ec.ECDSA(hashes.SHA256()))).decode()
        found: dict[str, Any] = {"challenge": given["id"], "signature": signature}
        if signer is not self.holder:
            found["certificates"] = [base64.b64encode(signer.der).decode()]
        return found

    def act(self, op: str, params: dict[str, Any] | None = None, given: dict[str, Any] | None = None, **more: Any) -> Answer:
        given = given or self.challenge()
        order = self.signed(given, op, params or {}, more.get("signer"))
        return self.ask("POST", "/v1/acts", {**order, "op": op, "params": params or {}})

    def session(self) -> str:
        answer = self.ask("POST", "/v1/sessions", self.signed(self.challenge(), "session_begin", {}))
        assert answer.status == 201, answer
        return str(answer.json["session"])

    def read(self, path: str, session: str) -> Answer:
        return self.ask("GET", path, license_agent_session=session)


class Manage:
    """The interface's process, which runs as a user of its own."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        self.bench, self.directory = bench, directory
        self.uid = MANAGE_UID if os.geteuid() == 0 else os.geteuid()
        self.commands = commands_for(self.uid)
        self.port = free_ports()
        self.certificate, self.key = directory / "manage-cert.pem", directory / "manage-key.pem"
        self.config, self.log_file = directory / "manage.toml", directory / "manage.log"
        self.admin_ca = bench.config.with_name("admin-ca.pem")
        self._told = 0
        own = server_identity()
        self.certificate.write_bytes(own.pem)
        self.key.write_bytes(own.key_pem)
        self.key.chmod(0o600)
        os.chown(self.key, self.uid, self.uid)
        self.configure()

    def configure(self, listen: str = "", **more: str) -> None:
        port = "" if "port" in listen else f"port = {self.port}\n"
        socket = more.get("socket", str(self.bench.run_dir / "admin.sock"))
        self.config.write_text(
            f'[listen]\n{listen}{port}[tls]\ncertificate = "{self.certificate}"\nkey = "{self.key}"\n'
            f'admin_ca = "{self.admin_ca}"\n[agent]\nsocket = "{socket}"\nuser = {self.bench.uid}\n'
        )
        self.config.chmod(0o644)

    def write_holder(self, holder: Holder) -> tuple[str, str]:
        certificate, key = self.directory / f"{holder.digest[:16]}.pem", self.directory / f"{holder.digest[:16]}.key"
        certificate.write_bytes(holder.pem)
        key.write_bytes(holder.key_pem)
        return str(certificate), str(key)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        program = str(self.commands / "license-agent-manage")
        command = [program, *arguments, "--config", str(self.config)]
        ids: dict[str, Any] = {"user": self.uid, "group": self.uid, "extra_groups": []} if os.geteuid() == 0 else {}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=READY_S, cwd="/", **ids)

    def log(self) -> str:
        return self.log_file.read_text()

    def told(self, *causes: str) -> None:
        """Waits until the log says one of these after what it said when this was asked before."""

        def found() -> bool:
            ends = [end for cause in causes if (end := self.log().find(cause, self._told)) >= 0]
            self._told = min(ends, default=self._told - 1) + 1
            return bool(ends)

        wait_until(found, lambda: f"none of {causes} in {self.log()[self._told :]}")

    @contextlib.contextmanager
    def running(self) -> Iterator["Manage"]:
        ids: dict[str, Any] = {"user": self.uid, "group": self.uid, "extra_groups": []} if os.geteuid() == 0 else {}
        command = [str(self.commands / "license-agent-manage"), "serve", "--config", str(self.config)]
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, self.log_file.open("ab") as log:
            notices.bind(str(path))
            path.chmod(0o666)
            notices.settimeout(PAUSE_S)
            env = {**os.environ, "NOTIFY_SOCKET": str(path)}
            process = subprocess.Popen(command, env=env, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **ids)

            def ready() -> bool:
                with contextlib.suppress(TimeoutError):
                    return b"READY=1" in notices.recv(4096)
                return False

            try:
                wait_until(ready, self.log, lives=lambda: process.poll() is None, pause_s=0)
                yield self
            finally:
                process.terminate()
                assert process.wait(READY_S) == 0
                assert "Traceback" not in self.log()


@contextlib.contextmanager
def managed() -> Iterator[Manage]:
    """An enrolled agent with an admin CA, not running, and the interface in front of it, not running either."""
    with furnished() as bench:
        directory = bench.root / "manage"
        directory.mkdir()
        directory.chmod(0o755)
        bench.write_config()
        text = bench.config.read_text().replace(
            "[management]\nallowed_uids = [", f"[management]\nallowed_uids = [{MANAGE_UID}, "
        )
        bench.write_raw_config(f"{text}[updates]\nenabled = true\n")
        path = bench.config.with_name("admin-ca.pem")
        path.write_bytes(CA.pem)
        path.chmod(0o644)
        yield Manage(bench, directory)


@contextlib.contextmanager
def agent_running(manage: Manage) -> Iterator[Running]:
    """The agent, with a socket that the interface's user may open, as the package's socket unit makes it for the group."""
    with manage.bench.running() as running:
        path = manage.bench.run_dir / "admin.sock"
        os.chown(path, -1, manage.uid)
        path.chmod(0o660)
        yield running


@contextlib.contextmanager
def both() -> Iterator[Manage]:
    """Agent and interface, running."""
    with managed() as manage, agent_running(manage), manage.running():
        yield manage
