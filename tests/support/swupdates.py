"""SWUpdate, as Debian has it, and images for it: signed, with one file that is put into the machine."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_until

_SW_DESCRIPTION = """software =
{{
    version = "{version}";
    hardware-compatibility: [ "1.0" ];
    files: (
        {{
            filename = "pos.txt";
            path = "{target}";
            sha256 = "{sha256}";
        }}
    );
}}
"""
_SETTINGS = """globals :
{{
    verbose = true;
    loglevel = 5;
    public-key-file = "{certificate}";
}};
suricatta :
{{
    tenant = "default";
    id = "{device}";
    url = "{url}";
    cafile = "{root}";
    retry = 2;
    retrywait = 1;
    polldelay = 1;
    {credential}
}};
identify : (
    {{ name = "pos.version"; value = "{version}"; }},
    {{ name = "hw"; value = "pos-x200"; }}
);
"""


def free_port() -> int:
    """A port of loopback where nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(directory: Path, name: str) -> tuple[Path, Path]:
    """A vendor's key for images, and its certificate, as SWUpdate wants them: for S/MIME."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "30",
         "-subj", f"/CN={name}", "-addext", "extendedKeyUsage=emailProtection", "-addext", "keyUsage=digitalSignature"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def make_image(directory: Path, version: str, target: Path, key: tuple[Path, Path], content: bytes = b"") -> Path:
    """An image that puts a file at `target`: its description, the description's signature (CMS), and the file, in a cpio."""
    work = directory / f"image-{version}"
    work.mkdir()
    data = content or f"pos {version}\n".encode()
    (work / "pos.txt").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    (work / "sw-description").write_text(_SW_DESCRIPTION.format(version=version, target=target, sha256=sha256))
    subprocess.run(
        ["openssl", "cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-signer", key[1], "-inkey", key[0],
         "-outform", "DER", "-nosmimecap", "-binary"],
        check=True, capture_output=True, cwd=work,
    )  # fmt: skip
    made = directory / f"pos-{version}.swu"
    # SWUpdate reads the description first, then its signature.
    names = ("sw-description", "sw-description.sig", "pos.txt")
    made.write_bytes(b"".join(_member(name, (work / name).read_bytes()) for name in names) + _member("TRAILER!!!", b""))
    return made


def _member(name: str, data: bytes) -> bytes:
    """A member of a cpio in the format `crc`, which SWUpdate checks."""
    mode, links, checksum = 0o100644, 1, sum(data) & 0xFFFFFFFF
    numbers = (1, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, checksum)
    head = b"070702" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


@dataclass
class SwUpdate:
    """A machine with SWUpdate.

    Attributes:
        directory: its own.
        device: its id.
        url: of the listener.
        root: file with the server's root certificate.
        certificate: of who signs images.
        credential: lines of its settings: a token, or certificate and key.
        version: that runs.
    """

    directory: Path
    device: str
    url: str
    root: Path
    certificate: Path
    credential: str
    version: str = "2.0"

    @property
    def installed(self) -> Path:
        """The file that images put into the machine."""
        return self.directory / "pos.txt"

    @property
    def log(self) -> str:
        path = self.directory / "swupdate.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @contextlib.contextmanager
    def running(self, *suricatta: str) -> Iterator["subprocess.Popen[bytes]"]:
        """The process, from one start of the machine to the next.

        Args:
            suricatta: further arguments of its client for hawkBit: `-c 2` after a restart into what was installed.
        """
        runtime = self.directory / "run"
        runtime.mkdir(parents=True, exist_ok=True)
        settings = self.directory / "swupdate.cfg"
        settings.write_text(
            _SETTINGS.format(
                certificate=self.certificate, device=self.device, url=self.url, root=self.root, credential=self.credential,
                version=self.version,
            )
        )  # fmt: skip
        client = " ".join(["-t default", f"-i {self.device}", f"-u {self.url}", *suricatta])
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(runtime), "TMPDIR": str(runtime)}
        with (self.directory / "swupdate.log").open("ab") as log:
            process = subprocess.Popen(
                ["swupdate", "-v", "-m", "-f", str(settings), "-H", "pos-x200:1.0", "-k", str(self.certificate), "-u", client],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, env=environment, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            # Its parts are processes of the same group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait_for(self, text: str) -> None:
        """Waits until the log has a text."""
        wait_until(lambda: text in self.log, lambda: f"SWUpdate never said {text!r}: {self.log[-6000:]}")
