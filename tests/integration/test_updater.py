"""The updater's own process with the real link and a real TLS server: what is fetched, and what an attack gains."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.byteranges import parse_range
from ipc.frames import FrameDecoder
from ipc.messages import Request
from ipc.updatermessages import (
    UPDATER_MAX_FRAME_BYTES,
    Describe,
    Description,
    Discard,
    Failure,
    Progress,
    Stage,
    Staged,
    TakeBundle,
    UpdaterCode,
    encode_updater,
    from_updater_decoder,
)
from tests.support.link import Link
from tests.support.pki import SERVER, make
from tests.support.stand import short_directory
from tests.support.tlspeer import Exchange, TlsPeer
from tests.support.updaterepository import DAY, NOW, UpdateRepository
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system

LINK_UID = 64990
ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import logging, os, sys
from pathlib import Path
from updater.main import run
from updater.orders import Places
number, place, link_uid, idle_s = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
if number != 3:
    os.dup2(number, 3, inheritable=True)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="updater")
logging.basicConfig(level=logging.INFO)
me = os.geteuid()
places = Places(place / "etc/trust.json", place / "state", place / "link/link.sock", frozenset({me}))
sys.exit(run(me, places, link_uid, idle_s))
"""


class Server:
    """Serves the repository's files over TLS, and spoils one answer if a test wants it.

    Attributes:
        spoil: changes the answer to a request for a package: takes head and body.
        asked: the heads of requests for packages.
    """

    def __init__(self, vendor: UpdateRepository) -> None:
        self._vendor = vendor
        self.spoil: Callable[[Exchange, str, bytes], None] | None = None
        self.asked: list[str] = []

    def __call__(self, exchange: Exchange) -> None:
        while request := exchange.request():
            head = request.partition(b"\r\n\r\n")[0].decode()
            path = head.split(" ")[1].removeprefix("/repo/")
            data = self._vendor.files.get(path)
            if data is None:
                exchange.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            wanted = re.search(r"(?im)^range: (.*?)\r?$", head)
            part = parse_range(wanted[1]) if wanted else None
            status, more = "200 OK", ""
            if part is not None:
                status, more = "206 Partial Content", f"Content-Range: bytes {part.first}-{part.last}/{len(data)}\r\n"
                data = data[part.first : part.last + 1]
            if path.startswith("targets/"):
                self.asked.append(head)
            answer = f'HTTP/1.1 {status}\r\nETag: "v1"\r\nContent-Length: {len(data)}\r\n{more}\r\n'
            if path.startswith("targets/") and self.spoil is not None:
                self.spoil(exchange, answer, data)
                return
            exchange.send(answer.encode() + data)


class Machine:
    """Link and updater of a machine.

    Attributes:
        server: the update repository's.
        process: the updater's.
    """

    def __init__(self, directory: Path, vendor: UpdateRepository, server: Server, link: Link, log: Path) -> None:
        self.directory, self.vendor, self.server, self.link, self.log = directory, vendor, server, link, log
        self.path = directory / "updater.sock"
        with socket.socket(socket.AF_UNIX) as listener, log.open("wb") as file:
            listener.bind(str(self.path))
            listener.listen()
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(listener.fileno()), str(directory), str(link.uid), str(READY_S)],
                pass_fds=[listener.fileno()],
                stderr=file,
                cwd=ROOT,
            )

    def order(self, order: Request, *descriptors: int) -> tuple[Any, list[Progress]]:
        """The answer, and the progress before it."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(READY_S)
            sock.connect(str(self.path))
            socket.send_fds(sock, [encode_updater(order)], descriptors) if descriptors else sock.sendall(encode_updater(order))
            decoder, found = FrameDecoder(UPDATER_MAX_FRAME_BYTES), []
            while data := sock.recv(65536):
                found += [from_updater_decoder().decode(frame) for frame in decoder.receive_data(data)]
        assert found, self.log.read_text()
        return found[-1], found[:-1]

    def stage(self) -> Any:
        return self.order(
            Stage(v=1, id=1, now=NOW, rate=None, directive=self.vendor.directive(), key_set=self.vendor.key_set())
        )[0]

    @property
    def package(self) -> Path:
        return self.directory / "state" / "staged" / self.vendor.sha256 / "package"

    @property
    def half(self) -> int:
        return (self.directory / "state" / "partial" / f"{self.vendor.sha256}.part").stat().st_size


@pytest.fixture(scope="module")
def vendor() -> UpdateRepository:
    return UpdateRepository(package=os.urandom(300_000))


@pytest.fixture(scope="module")
def machine(vendor: UpdateRepository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One updater for all tests of the file: it starts and confines itself once."""
    ca = make("root", authority=True, begins=NOW - DAY, ends=NOW + 3650 * DAY)
    leaf = make("server", ca, begins=NOW - DAY, ends=NOW + 365 * DAY, hosts=["127.0.0.1"], usage=SERVER)
    server = Server(vendor)
    with short_directory() as directory, TlsPeer(tmp_path_factory.mktemp("peer"), leaf, server) as peer:
        place = directory / "link"
        place.mkdir(mode=0o755)
        (directory / "state").mkdir(mode=0o700)
        (directory / "etc").mkdir()
        vendor.trust_file(directory / "etc/trust.json")
        if os.geteuid() == 0:
            os.chown(place, LINK_UID, LINK_UID)
        link = Link(place, LINK_UID if os.geteuid() == 0 else None)
        link.core_uid += 1
        link.configure(
            f"[updater]\nuser = {os.geteuid()}\n"
            f'[upstream.ota]\nurl = "https://127.0.0.1:{peer.port}/repo"\npins = ["{ca.pin}"]\n'
        )
        link.start()
        machine = Machine(directory, vendor, server, link, tmp_path_factory.mktemp("log") / "updater.log")
        try:
            yield machine
        finally:
            machine.process.terminate()
            machine.process.wait(READY_S)
            link.stop()


@pytest.fixture(autouse=True)
def fresh(machine: Machine) -> Iterator[None]:
    """Each test begins with an empty directory and an honest server."""
    yield
    machine.server.spoil = None
    machine.server.asked.clear()
    machine.order(Discard(v=1, id=9, keep=()))


def _cut(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(answer.encode() + data[:200_000])


def test_what_breaks_off_goes_on_and_is_staged(machine: Machine) -> None:
    machine.server.spoil = _cut
    failed = machine.stage()
    assert isinstance(failed, Failure) and (failed.code, failed.network) == (UpdaterCode.BAD_RESPONSE, True)
    had = machine.half
    assert 0 < had <= 200_000
    machine.server.spoil = None
    staged = machine.stage()
    assert isinstance(staged, Staged), staged
    assert f"range: bytes={had}-299999" in machine.server.asked[-1].lower() and 'if-range: "v1"' in machine.server.asked[-1]
    assert machine.package.read_bytes() == machine.vendor.package
    described, _ = machine.order(Describe(v=1, id=2))
    assert isinstance(described, Description) and described.staged == (machine.vendor.sha256,)
    assert not any(path.is_symlink() for path in machine.directory.rglob("*"))


def _redirect(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")


def _endless(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while exchange.pause(0):
        exchange.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")


def _other(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(answer.encode() + b"!" + data[1:])


def _longer(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data) + 1}\r\n\r\n".encode() + data + b"!")


@pytest.mark.parametrize(
    ("spoil", "codes", "network"),
    [
        (_redirect, {UpdaterCode.REDIRECT}, True),
        (_endless, {UpdaterCode.TOO_LONG}, True),
        (_longer, {UpdaterCode.TOO_LONG}, True),
        (_other, {UpdaterCode.DIGEST}, True),
    ],
)
def test_a_hostile_server_gets_nothing_staged(
    machine: Machine, spoil: Callable[[Exchange, str, bytes], None], codes: set[str], network: bool
) -> None:
    machine.server.spoil = spoil
    failed = machine.stage()
    assert isinstance(failed, Failure) and failed.code in codes and failed.network is network, failed
    assert not machine.package.exists()
    assert machine.half <= len(machine.vendor.package)


def _whole(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: 5\r\n\r\nwhole')


def _other_part(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(b'HTTP/1.1 206 P\r\nETag: "v1"\r\nContent-Range: bytes 0-4/300000\r\nContent-Length: 5\r\n\r\nother')


def _other_etag(exchange: Exchange, answer: str, data: bytes) -> None:
    exchange.send(answer.replace('"v1"', '"v2"').encode() + data)


@pytest.mark.parametrize("spoil", [_whole, _other_part, _other_etag])
def test_another_file_in_the_middle_is_noticed_and_the_half_dropped(
    machine: Machine, spoil: Callable[[Exchange, str, bytes], None]
) -> None:
    machine.server.spoil = _cut
    machine.stage()
    assert machine.half > 0
    machine.server.spoil = spoil
    failed = machine.stage()
    assert isinstance(failed, Failure) and (failed.code, failed.network) == (UpdaterCode.CHANGED, True), failed
    assert machine.half == 0


def test_a_bundle_needs_no_link(machine: Machine, tmp_path: Path) -> None:
    descriptor = os.open(machine.vendor.bundle(tmp_path / "update.bundle"), os.O_RDONLY)
    machine.link.stop()
    try:
        staged, progress = machine.order(TakeBundle(v=1, id=3, directive=None, key_set=None, now=NOW), descriptor)
    finally:
        os.close(descriptor)
        machine.link.start()
    assert isinstance(staged, Staged), staged
    assert progress[-1].done == progress[-1].total == len(machine.vendor.package) == machine.package.stat().st_size


def test_the_process_is_confined(machine: Machine) -> None:
    wait_until(lambda: "confined: no program can be started" in machine.log.read_text(), machine.log.read_text)
    status = Path(f"/proc/{machine.process.pid}/status").read_text()
    assert re.search(r"(?m)^NoNewPrivs:\s1$", status) and re.search(r"(?m)^Seccomp:\s2$", status)
