"""Updates on a stand: a vendor's repository over TLS, updater, installer and apply as processes, and a POS that they update.

Server, link and agent are those of the stand. Only systemd is not real: standupdates/system.py does its part, as on a stand.
"""

import contextlib
import json
import os
import pwd
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from installer.bundle.unpack import judge_bundle
from installer.bundle.unpack import unpack as unpack_bundle
from ipc.frames import FrameDecoder
from ipc.installermessages import INSTALLER_MAX_FRAME_BYTES, encode_installer, from_installer_decoder
from ipc.messages import Request
from tests.support.bundles import Made, bundle, directory, opened, program
from tests.support.pki import DAY, SERVER, make
from tests.support.servertool import Done, license_server
from tests.support.stand import Stand
from tests.support.tlspeer import Exchange, TlsPeer
from tests.support.waiting import READY_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
HARDWARE, PRODUCT = "till-mk1", "pos"
POS_USER = "games"
"""Whom the POS runs as where the test is root: a user that every Debian has, and that owns nothing."""
_POS = b"""#!/bin/sh
cp version "$1/runs"
exec sleep 1000
"""
_CHECK = b"""#!/bin/sh
cmp -s version "$1/runs" || { echo "another version runs"; exit 1; }
"""
_BAD_CHECK = b"""#!/bin/sh
echo "no printer"
exit 1
"""


def pos_bundle(version: str, data: Path, *, works: bool = True, check_s: int = 0) -> bytes:
    """A version of the sample POS: it says which one runs, and its health command looks at that, after some seconds."""
    check = (_CHECK if works else _BAD_CHECK).replace(b"#!/bin/sh\n", b"#!/bin/sh\nsleep %d\n" % check_s)
    place = str(data).encode()
    members = [
        directory("bin"),
        program("bin/check", check.replace(b"$1", place)),
        program("bin/pos", _POS.replace(b"$1", place)),
        program("bin/says", f"#!/bin/sh\nprintf 'pos %s\\n' {version}\n".encode()),
        Made(b"version", version.encode()),
    ]
    return bundle(members, version=version, build_id=f"b{version}")


class Vendor:
    """The keys and the repository of a vendor, by the commands of `license-server`.

    Args:
        place: the vendor's directory, which does not exist yet.
        server: directory of the license server.
    """

    def __init__(self, place: Path, server: Path) -> None:
        self.place, self.server = place, server
        place.mkdir(mode=0o700)
        self._number = 0
        for name in ("root", "targets", "ci"):
            self.run("new-key", self._key(name))
        first = self.place / "first"
        keys = ("--root-key", self._pub("root"), "--threshold", 1, "--targets-key", self._pub("targets"))
        self.run("init", *keys, "--release-key", self._pub("ci"), "--floor", f"{PRODUCT}=1.0", "--out", first, at_server=True)
        for name in ("root", "targets", "ci"):
            self.run("sign", first, "--key", self._key(name), "--yes")
        self.run("publish", first, at_server=True)

    def _key(self, name: str) -> Path:
        return self.place / f"{name}.key"

    def _pub(self, name: str) -> Path:
        return self.place / f"{name}.key.pub"

    def run(self, *arguments: object, at_server: bool = False) -> Done:
        where = ("--dir", str(self.server)) if at_server else ()
        done = license_server("ota", *map(str, arguments), *where, env={})
        assert done.returncode == 0, done
        return done

    def publish(self, version: str, package: bytes) -> str:
        """Publishes a package as a release; returns its path in the repository."""
        self._number += 1
        file, out = self.place / f"{PRODUCT}-{version}.tar.zst", self.place / f"submission-{self._number}"
        file.write_bytes(package)
        says = ("--product", PRODUCT, "--version", version, "--build-id", f"b{version}", "--hardware", HARDWARE)
        where = ("--repository", self.repository, "--role", "releases", "--key", self._key("ci"), "--out", out)
        self.run("add", file, *says, *where)
        self.run("publish", out, at_server=True)
        return f"{PRODUCT}/{file.name}"

    @property
    def repository(self) -> Path:
        return self.server / "updates"

    @property
    def root(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.repository / "metadata" / "1.root.json").read_bytes())
        return found

    def file_of(self, path: str) -> Path:
        """Where the repository has a package."""
        product, _, name = path.partition("/")
        (found,) = (self.repository / "targets" / product).glob(f"*.{name}")
        return found


class UpdatedStand:
    """A stand whose agent installs updates; it ends what it started when it is closed.

    Attributes:
        vendor: signs and publishes.
        data: where the POS writes.
        forge: takes the path of a file and its bytes; what it returns is served.
        head: takes the path of a file; it is served with this status and these headers.
    """

    def __init__(self, stand: Stand, place: Path, updates: str = "") -> None:
        self.stand, self.place = stand, place
        self.info = stand.info
        self.etc = Path(self.info["config"]).parent
        self.run_dir = Path(self.info["link_socket"]).parent
        self.core_uid = int(self.info["agent_uid"])
        self.honest()
        self._ends = contextlib.ExitStack()
        try:
            self._begin(updates)
        except BaseException:
            self._ends.close()
            raise

    def _begin(self, updates: str) -> None:
        uid = os.geteuid()
        self.pos_uid = pwd.getpwnam(POS_USER).pw_uid if uid == 0 else uid
        self.pos, self.data = self.place / "pos", self.place / "data"
        self.staged, self.own = self.place / "updater", self.place / "installer"
        for path, mode in ((self.pos, 0o755), (self.data, 0o755), (self.staged, 0o700), (self.own, 0o700)):
            path.mkdir(mode=mode)
        os.chown(self.data, self.pos_uid, -1)
        for name in ("work", "jobs"):
            (self.own / name).mkdir(mode=0o700)
        self.vendor = Vendor(self.place / "vendor", Path(self.info["env"]["LICENSE_SERVER_DIR"]))
        self._write_configuration(self._serve(), updates)
        self._start("updater")
        self._start("installer")
        self._ends.callback(_end, self._program("system"))

    def honest(self) -> None:
        """Has the repository serve what it holds."""
        self.forge: Callable[[str, bytes], bytes] = lambda _path, data: data
        self.head: Callable[[str], str] = lambda _path: "200 OK"

    def close(self) -> None:
        self._ends.close()

    # What root's files and systemd would be

    def _serve(self) -> str:
        """Serves the repository; returns what link.toml says of it."""
        now = int(time.time())
        ca = make("root", authority=True, begins=now - DAY, ends=now + 30 * DAY)
        leaf = make("updates", ca, begins=now - DAY, ends=now + 30 * DAY, hosts=["127.0.0.1"], usage=SERVER)
        (self.place / "peer").mkdir()
        peer = self._ends.enter_context(TlsPeer(self.place / "peer", leaf, self._answer))
        return (
            f'\n[updater]\nuser = {os.geteuid()}\n[upstream.ota]\nurl = "https://127.0.0.1:{peer.port}"\npins = ["{ca.pin}"]\n'
        )

    def _answer(self, exchange: Exchange) -> None:
        while request := exchange.request():
            path = request.split(b" ")[1].decode().lstrip("/")
            file = self.vendor.repository / path
            if not file.is_file():
                exchange.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            data = self.forge(path, file.read_bytes())
            exchange.send(f'HTTP/1.1 {self.head(path)}\r\nETag: "1"\r\nContent-Length: {len(data)}\r\n\r\n'.encode() + data)

    def _write_configuration(self, ota: str, updates: str) -> None:
        trust = {
            "v": 1, "agent_id": self.info["agent_id"], "hardware": HARDWARE, "license_roots": [self.info["root_pin"]],
            "tuf_root": self.vendor.root,
        }  # fmt: skip
        product = (
            f'[product.{PRODUCT}]\nbackend = "slots"\ndirectory = "{self.pos}"\nunit = "pos.service"\n'
            f'user = {self.pos_uid}\nhealth = ["bin/check"]\nversion = ["bin/says"]\n'
        )
        for name, text in (("update-trust.json", json.dumps(trust)), ("installer.toml", product)):
            (self.etc / name).write_text(text)
            (self.etc / name).chmod(0o644)
        for name, text in (("link.toml", ota), ("config.toml", updates)):
            with (self.etc / name).open("a") as file:
                file.write(text)
        link = self.info["link_pid"]
        os.kill(link, signal.SIGTERM)
        wait_until(lambda: self.stand.info["link_pid"] not in (0, link), "the link was not started again")
        self.tool("license-stand", "restart", "--dir", str(self.stand.root))

    def _start(self, name: str) -> None:
        """Starts a program on a socket that only the core may use."""
        path = self.run_dir / f"{name}.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o600)
            os.chown(path, self.core_uid, -1)
            listener.listen()
            self._ends.callback(_end, self._program(name, listener))

    def _program(self, name: str, listener: socket.socket | None = None) -> "subprocess.Popen[bytes]":
        numbers = [] if listener is None else [listener.fileno()]
        options = {
            "core_uid": self.core_uid, "trust": str(self.etc / "update-trust.json"), "config": str(self.etc / "installer.toml"),
            "owner": os.geteuid(), "link": self.info["link_socket"], "link_uid": _uid_of(self.stand.info["link_pid"]),
            "staged": str(self.staged), "own": str(self.own), "start": False,
        }  # fmt: skip
        launch = ["-m", "stand.launch", name, *map(str, numbers), sys.executable] if numbers else []
        with (self.place / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *launch, "-m", "standupdates", name, json.dumps(options)],
                pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip

    # What is done on it

    def tool(self, name: str, *arguments: str, fine: tuple[int, ...] = (0,)) -> str:
        """What a command says."""
        done = self.stand.run(name, *arguments)
        assert done.returncode in fine, f"{name} {arguments}: {done} {self.logs()}"
        return done.stdout

    def cli(self, *arguments: str, fine: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """What `license-agent-cli` says."""
        found: dict[str, Any] = json.loads(self.tool("license-agent-cli", "--json", *arguments, fine=fine))
        return found

    def assign(self, path: str, *more: str) -> None:
        """Orders the agent to install a package, without notice."""
        done = license_server("ota", "assign", self.info["agent_id"], path, "--notice", "0", *more, env=self.info["env"])
        assert done.returncode == 0, done

    def withdraw(self) -> None:
        """Takes back what the agent is ordered to install."""
        done = license_server("ota", "withdraw", self.info["agent_id"], env=self.info["env"])
        assert done.returncode == 0, done

    def have_server_say(self, number: int, **columns: object) -> None:
        """Changes what the license server believes of a directive, as who holds the server can."""
        names = ", ".join(f"{name} = ?" for name in columns)
        with contextlib.closing(sqlite3.connect(self.vendor.server / "server.db", timeout=READY_S)) as registry, registry:
            done = registry.execute(f"UPDATE update_directive SET {names} WHERE number = ?", (*columns.values(), number))
            assert done.rowcount == 1, number

    def bundle(self, path: str, out: Path) -> None:
        """Makes the bundle of a package that the agent is ordered to install, as for a memory stick."""
        done = license_server(
            "ota", "bundle", self.info["agent_id"], path, "--for-days", "3", "--out", str(out), env=self.info["env"]
        )
        assert done.returncode == 0, done

    def hand_root_over(self) -> None:
        """Gives the license server another root, which signs for a new rotation key; update-trust.json has the former."""
        (former,) = (self.vendor.server / "offline").glob("*.key")
        root = self.place / "next-root.key"
        for kind, *keys in (("root", "--root-key", former, "--new-root-key", root), ("rotation", "--root-key", root)):
            done = license_server("keys", "rotate", kind, *map(str, keys), env=self.info["env"])
            assert done.returncode == 0, done

    def ordered(self) -> dict[str, Any]:
        """What the server says of the newest directive."""
        done = license_server("ota", "status", self.info["agent_id"], "--json", env=self.info["env"])
        assert done.returncode == 0, done
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def install_by_hand(self, version: str) -> None:
        """Unpacks a version as an administrator does on a new machine, and starts it."""
        package = opened(pos_bundle(version, self.data))
        slot = self.pos / "slots" / "a"
        slot.mkdir(parents=True)
        manifest = judge_bundle(package).finish()
        number = os.open(slot, os.O_RDONLY | os.O_DIRECTORY)
        unpack_bundle(package, number, manifest, lambda _step: None)
        os.close(number)
        (self.pos / "current").symlink_to("slots/a")
        job = {"v": 1, "id": "0" * 32, "kind": "restart", "product": PRODUCT}
        (self.own / "jobs" / "job.new").write_text(json.dumps(job))
        (self.own / "jobs" / "job.new").rename(self.own / "jobs" / "job.json")
        wait_until(lambda: self.runs() == version, lambda: f"the POS does not run: {self.logs()}")

    def journal(self) -> dict[str, Any]:
        """Where the update is, as the agent keeps it."""
        file = Path(self.info["state_dir"]) / "ota.json"
        found: dict[str, Any] = json.loads(file.read_bytes())["update"] if file.exists() else {"done": 0}
        return found

    def update(self, version: str, package: bytes) -> dict[str, Any]:
        """Publishes and orders a version, and waits until the agent has ended with it; returns its line of the register."""
        before = self.journal().get("done", 0)
        self.assign(self.vendor.publish(version, package))
        self.cli("ota", "check")
        wait_until(lambda: self.journal().get("done", 0) > before, lambda: f"the update does not end: {self.logs()}")
        (line,) = self.cli("ota", "history", "--count", "1")["entries"]
        assert line["version"] == version, line
        self.cli("ota", "check")  # the server learns how it ended
        return dict(line)

    def runs(self) -> str:
        """The version that the POS's process says it is."""
        found = self.data / "runs"
        return found.read_text() if found.exists() else ""

    def logs(self) -> str:
        files = [*self.place.glob("*.log"), Path(self.info["agent_log"]), Path(self.info["link_log"])]
        return "\n".join(f"== {file.name}\n{file.read_text('utf-8', 'replace')[-3000:]}" for file in files)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The audit log's records of a kind."""
        lines = Path(self.info["audit_log"]).read_text().splitlines()
        return [record for record in map(json.loads, lines) if record.get("event") == kind]

    def as_core(self, order: Request) -> Any:
        """What the installer answers to a captured core."""
        message = encode_installer(order)
        script = (
            "import socket,sys,os\n"
            "sock = socket.socket(socket.AF_UNIX)\nsock.connect(sys.argv[1])\nsock.sendall(bytes.fromhex(sys.argv[2]))\n"
            "while data := sock.recv(65536): sys.stdout.buffer.write(data)\n"
        )
        other = self.core_uid if self.core_uid != os.geteuid() else None
        done = subprocess.run(
            ["/usr/bin/python3", "-c", script, str(self.run_dir / "installer.sock"), message.hex()],
            user=other, group=other, extra_groups=None if other is None else [], cwd="/", capture_output=True, check=True,
            timeout=READY_S,
        )  # fmt: skip
        frames = FrameDecoder(INSTALLER_MAX_FRAME_BYTES).receive_data(done.stdout)
        return from_installer_decoder().decode(frames[-1])


def _uid_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(READY_S)
