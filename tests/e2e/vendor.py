"""The vendor of a POS application, on the host: its keys, its packages, and Debian's nginx before its update repository.

Everything is made by `license-server`, examples/release/release and examples/updates/nginx.conf.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.hostserver import PROGRAM, HostServer
from tests.support.waiting import READY_S, answers, wait_until

ROOT = Path(__file__).resolve().parents[2]
HARDWARE, PRODUCT, AGENT = "till-mk1", "pos", "license-agent"
_MAIN = """
daemon off;
user root;
worker_processes 1;
pid {place}/nginx.pid;
error_log {place}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    include {place}/site.conf;
}}
"""


class Vendor:
    """A vendor who has published nothing yet.

    Args:
        place: is emptied; the vendor's keys and packages.
        server: whose repository it publishes to.
        address: by which machines know the web server.
    """

    def __init__(self, place: Path, server: HostServer, address: str) -> None:
        self._place, self._server, self._address = place, server, address
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        self._submissions = 0
        for name in ("root", "targets", "ci"):
            self._program("ota", "new-key", self._key(name))
        first = place / "first"
        keys = ("--root-key", self._public("root"), "--threshold", "1", "--targets-key", self._public("targets"))
        floor = ("--release-key", self._public("ci"), "--floor", f"{PRODUCT}=1.0")
        server.run("ota", "init", *keys, *floor, "--out", str(first))
        for name in ("root", "targets", "ci"):
            self._program("ota", "sign", first, "--key", self._key(name), "--yes")
        server.run("ota", "publish", str(first))
        self._certificates()

    @property
    def repository(self) -> Path:
        """What the web server serves."""
        return self._server.directory / "updates"

    def tree(self, version: str, files: Mapping[str, str]) -> Path:
        """A version as the pipeline has built it: scripts in `bin`, and its number in `version`."""
        tree = self._place / f"tree-{version}"
        for name, text in {**files, "version": version}.items():
            file = tree / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if name.startswith("bin/") else 0o644)
        return tree

    def publish(self, version: str, files: Mapping[str, str]) -> str:
        """Publishes a version as a release; returns its path in the repository."""
        out = self._next()
        _run(
            *(ROOT / "examples/release/release", self.tree(version, files), PRODUCT, version, self.repository),
            *(self._key("ci"), out, HARDWARE),
            env={"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "ROLE": "releases", "BUILD_ID": f"b{version}"},
        )
        self._server.run("ota", "publish", str(out))
        return f"{PRODUCT}/{PRODUCT}-b{version}.tar.zst"

    def allow(self, product: str, floor: str) -> None:
        """Has the offline key say that there is another product, and its lowest version."""
        out = self._next()
        self._server.run("ota", "change-targets", "--floor", f"{product}={floor}", "--out", str(out))
        self._program("ota", "sign", out, "--key", self._key("targets"), "--yes")
        self._server.run("ota", "publish", str(out))

    def publish_deb(self, package: Path, version: str, build_id: str) -> str:
        """Publishes a package of the agent as a release; returns its path in the repository."""
        out = self._next()
        says = ("--product", AGENT, "--kind", "deb", "--version", version, "--build-id", build_id, "--hardware", HARDWARE)
        where = ("--repository", self.repository, "--role", "releases", "--key", self._key("ci"), "--out", out)
        self._program("ota", "add", package, *says, *where)
        self._server.run("ota", "publish", str(out))
        return f"{AGENT}/{package.name}"

    def _next(self) -> Path:
        self._submissions += 1
        return self._place / f"submission-{self._submissions}"

    def package(self, target: str) -> Path:
        """Where the repository has a package."""
        product, _, name = target.partition("/")
        (found,) = (self.repository / "targets" / product).glob(f"*.{name}")
        return found

    def unpacked(self, target: str) -> bytes:
        """A package as a tar archive that is not compressed, for a machine without zstd."""
        command = ("zstd", "-dc", str(self.package(target)))
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=READY_S, check=True).stdout

    def trust(self, agent_id: str) -> bytes:
        """The file update-trust.json for a machine."""
        root = json.loads((self.repository / "metadata" / "1.root.json").read_bytes())
        says = {"v": 1, "agent_id": agent_id, "hardware": HARDWARE, "license_roots": [self._server.run("root-pin")]}
        return json.dumps(says | {"tuf_root": root}).encode()

    def stick(self, agent_id: str, target: str) -> bytes:
        """The bundle of a package that the agent was ordered to install."""
        out = self._place / f"stick-{self._next().name}.bundle"
        self._server.run("ota", "bundle", agent_id, target, "--for-days", "3", "--out", str(out))
        return out.read_bytes()

    @property
    def ca(self) -> bytes:
        """The certificate of the CA that vouches for the web server, PEM."""
        return (self._place / "ca.pem").read_bytes()

    @contextmanager
    def forged(self, target: str) -> Iterator[None]:
        """Somebody who holds the web server serves another package in place of one, as long and with another last byte."""
        file = self.package(target)
        genuine = file.read_bytes()
        file.write_bytes(genuine[:-1] + bytes((genuine[-1] ^ 1,)))
        try:
            yield
        finally:
            file.write_bytes(genuine)

    @contextmanager
    def web(self, port: int) -> Iterator[None]:
        """nginx on a port of loopback, with TLS and Range, from the site that is shipped as an example."""
        site = (ROOT / "examples/updates/nginx.conf").read_text()
        for old, new in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/nginx/updates.", f"{self._place}/updates."),
            ("root /var/lib/license-updates", f"root {self.repository}"),
        ):
            if old not in site:
                raise RuntimeError(f"examples/updates/nginx.conf has no {old!r}")
            site = site.replace(old, new)
        (self._place / "site.conf").write_text(site)
        (self._place / "nginx.conf").write_text(_MAIN.format(place=self._place))
        command = ["/usr/sbin/nginx", "-p", str(self._place), "-e", "stderr", "-c", str(self._place / "nginx.conf")]
        with (self._place / "nginx.err").open("wb") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            wait_until(lambda: answers(port), "nginx does not listen", lives=lambda: process.poll() is None)
            yield
        finally:
            process.terminate()
            process.wait(READY_S)

    def _certificates(self) -> None:
        new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
        ca = ("-CA", self._place / "ca.pem", "-CAkey", self._place / "ca.key")
        usage = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth")
        _run(*new, "-subj", "/CN=CA of updates", "-keyout", self._place / "ca.key", "-out", self._place / "ca.pem",
             "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        _run(*new, *ca, "-subj", "/CN=updates", "-keyout", self._place / "updates.key", "-out", self._place / "updates.pem",
             *usage, "-addext", f"subjectAltName=IP:{self._address}")  # fmt: skip

    def _key(self, name: str) -> Path:
        return self._place / f"{name}.key"

    def _public(self, name: str) -> str:
        return str(self._place / f"{name}.key.pub")

    def _program(self, *arguments: object) -> None:
        _run(PROGRAM, *arguments)


def _run(*command: object, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} on the host: {done.stdout[-500:]}{done.stderr[-500:]}")
