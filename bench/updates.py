"""Measures a download by link and updater against curl and sha256sum, from the same nginx in the same run."""

import contextlib
import mmap
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipc.frames import FrameDecoder
from ipc.updatermessages import UPDATER_MAX_FRAME_BYTES, Discard, Stage, Staged, encode_updater, from_updater_decoder
from stand.programs import READY_S
from tests.support.link import Link
from tests.support.pki import SERVER, make
from tests.support.swtpm import free_port_pair
from tests.support.updaterepository import DAY, NOW, UpdateRepository

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
_SITE = """
daemon off;
{user}
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate {dir}/server.pem;
        ssl_certificate_key {dir}/server.key;
        location /repo/ {{ alias {dir}/repo/; }}
    }}
}}
"""
_RUN = """
import os, sys
from pathlib import Path
from updater.main import run
from updater.orders import Places
place = Path(sys.argv[2])
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="updater")
me = os.geteuid()
run(me, Places(place / "etc/trust.json", place / "state", place / "link.sock", frozenset({me})), me, 600)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds for one package by each way, and the updater's greatest memory until then, MiB."""

    updater: float
    curl: float
    memory: float


class _Machine:
    """Link and updater, as the caller's own user."""

    def __init__(self, directory: Path, port: int, pin: str, vendor: UpdateRepository) -> None:
        for name in ("state", "etc"):
            (directory / name).mkdir(mode=0o700)
        vendor.trust_file(directory / "etc/trust.json")
        self._path = directory / "updater.sock"
        self._link = Link(directory)
        self._link.core_uid += 1
        self._link.configure(
            f'[updater]\nuser = {os.geteuid()}\n[upstream.ota]\nurl = "https://127.0.0.1:{port}/repo"\npins = ["{pin}"]\n'
        )
        self._link.start()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen()
            command = [sys.executable, "-c", _RUN, str(listener.fileno()), str(directory)]
            self.process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)

    def order(self, order: Any) -> Any:
        """Carries out an order; returns the last answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(READY_S)
            sock.connect(str(self._path))
            sock.sendall(encode_updater(order))
            decoder, last = FrameDecoder(UPDATER_MAX_FRAME_BYTES), None
            while data := sock.recv(65536):
                for frame in decoder.receive_data(data):
                    last = from_updater_decoder().decode(frame)
            return last

    def memory(self) -> float:
        """The greatest resident memory of the updater so far, MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the updater's memory is not known")

    def stop(self) -> None:
        """Ends both."""
        self.process.terminate()
        self.process.wait(READY_S)
        self._link.stop()


@contextlib.contextmanager
def _nginx(directory: Path) -> Iterator[tuple[int, str]]:
    """nginx with the repository in `directory / "repo"`; gives its port and the pin of its CA."""
    port = free_port_pair()
    begins = int(min(time.time(), NOW)) - DAY
    ca = make("root", authority=True, begins=begins, ends=NOW + 3650 * DAY)
    leaf = make("server", ca, begins=begins, ends=NOW + 365 * DAY, hosts=["127.0.0.1"], usage=SERVER)
    (directory / "ca.pem").write_text(ca.chain_pem)
    (directory / "server.pem").write_text(leaf.chain_pem)
    (directory / "server.key").write_bytes(leaf.key_pem)
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(_SITE.format(dir=directory, port=port, user=user))
    process = subprocess.Popen([NGINX, "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")])
    try:
        ends = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError("nginx does not listen")
            time.sleep(0.05)
        yield port, ca.pin
    finally:
        process.terminate()
        process.wait(READY_S)


def measure_download(directory: Path, sizes: list[int], rounds: int) -> dict[int, Measured]:
    """Downloads packages of these sizes by both ways, in turns.

    Args:
        directory: an empty one, with room for three times the largest package.
        sizes: bytes, from the smallest to the largest.
        rounds: of each size; the fastest round of each way counts.
    """
    directory.mkdir()
    found = {}
    with _nginx(directory) as (port, pin):
        for size in sizes:
            place = directory / f"{size}"
            place.mkdir()
            found[size] = _measure_one(place, directory, size, port, pin, rounds)
    return found


def _measure_one(place: Path, served: Path, size: int, port: int, pin: str, rounds: int) -> Measured:
    package = place / "package"
    with package.open("wb") as written:
        block = os.urandom(1024 * 1024)
        for number in range(size // len(block)):
            written.write(number.to_bytes(8, "big") + block[8:])
    with package.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        vendor = UpdateRepository(package=mapped)  # type: ignore[arg-type]  # bytes that need not be in memory
        files = {name: data for name, data in vendor.files.items() if not name.startswith("targets/")}
        order = Stage(v=1, id=1, now=NOW, rate=None, directive=vendor.directive(), key_set=vendor.key_set())
        shutil.rmtree(served / "repo", ignore_errors=True)
        for name, data in files.items():
            (served / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
            (served / "repo" / name).write_bytes(data)
        target = f"targets/pos/{vendor.sha256}.pos-3.2.1.tar"
        (served / "repo" / target).parent.mkdir(parents=True)
        os.link(package, served / "repo" / target)
        machine = _Machine(place, port, pin, vendor)
    url = f"https://127.0.0.1:{port}/repo/{target}"
    ours, floors = [], []
    try:
        for _ in range(rounds):
            began = time.perf_counter()
            answer = machine.order(order)
            ours.append(time.perf_counter() - began)
            if not isinstance(answer, Staged):
                raise RuntimeError(f"the updater did not stage the package: {answer}")
            machine.order(Discard(v=1, id=2, keep=()))
            copy = place / "copy"
            began = time.perf_counter()
            subprocess.run(["curl", "-sS", "--cacert", str(served / "ca.pem"), "-o", str(copy), url], check=True)
            subprocess.run(["sha256sum", str(copy)], check=True, stdout=subprocess.DEVNULL)
            floors.append(time.perf_counter() - began)
            copy.unlink()
        return Measured(min(ours), min(floors), machine.memory())
    finally:
        machine.stop()
