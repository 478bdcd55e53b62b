"""A license server of one release and a device of another, with their own processes, real TLS and a simulated TPM."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stand import setup
from stand.commands import Commands
from stand.main import ROOT_STANDS_IN_UID
from stand.programs import Agent, Service, answers, free_ports, program
from stand.reachable import runnable_by
from stand.setup import Layout
from tests.support.stand import short_directory
from tests.support.waiting import READY_S

ROOT = Path(__file__).resolve().parents[2]
TODAY = Path(sys.executable).parent
"""Where today's commands are."""


def last_release() -> Path:
    """Where the commands of the last release are; installed if they are not."""
    done = subprocess.run([ROOT / "scripts" / "last-release"], capture_output=True, text=True, timeout=READY_S, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def reachable(place: Path, directory: Path, uid: int | None) -> Path:
    """The same commands where that user can run them."""
    if place == TODAY:
        return runnable_by(uid, directory)
    if uid is None or all(parent.stat().st_mode & 0o005 == 0o005 for parent in place.parents):
        return place
    shutil.copytree(place.parent, directory, symlinks=True)
    for command in (directory / "bin").iterdir():
        if command.is_file() and not command.is_symlink() and command.read_bytes().startswith(b"#!"):
            command.write_text(command.read_text().replace(str(place), str(directory / "bin")))
    return directory / "bin"


class _Placed(Commands):
    """Commands of the server are those of one release, the others of another."""

    def __init__(self, device: Path, server: Path) -> None:
        self._device, self._server = device, server

    def _done(self, name: str, arguments: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        command = [program(name, self._server if name == "license-server" else self._device), *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={**os.environ, **env}
        )
        return done.returncode, done.stdout, done.stderr


class Mixed:
    """The two, running and provisioned.

    Args:
        layout: of the files.
        device: where the commands of the device are.
        server: where those of the server are.
        stack: ends the processes.

    Attributes:
        old_device: the device is the last release.
    """

    def __init__(self, layout: Layout, device: Path, server: Path, stack: contextlib.ExitStack) -> None:
        self.layout = layout
        self.old_device = device != TODAY
        uid = ROOT_STANDS_IN_UID if os.geteuid() == 0 else None
        setup.make_directories(layout, uid)
        tpm = setup.start_tpm(layout, uid)
        stack.callback(tpm.stop)
        setup.write_config(layout, "tpm", tpm.tcti, uid, {})
        device = reachable(device, layout.root.parent / "device", uid)
        self.commands = _Placed(device, server)
        setup.found_server(self.commands, layout, None, None)
        port = free_ports()
        url, pin = f"https://127.0.0.1:{port}", self.commands.run("license-server", "root-pin", "--dir", str(layout.server))
        serve = ["serve", "--dir", str(layout.server), "--bind", f"127.0.0.1:{port}", "--ops", f"127.0.0.1:{port + 1}"]
        self.server = Service("license-server", layout.root / "server.log", serve, commands=server)
        stack.callback(self.server.close)
        self.server.start(lambda: answers(port))
        setup.write_link_config(layout, uid, url, pin)
        link_uid = setup.LINK_STANDS_IN_UID if uid is not None else None
        arguments = ["--config", str(layout.link_config), "--idle", "86400"]
        self.link = Service(
            "license-agent-link", layout.root / "link.log", arguments, link_uid, layout.link_socket, uid, device
        )
        stack.callback(self.link.close)
        self.link.start(lambda: True)
        self.agent = Agent(layout.config, layout.run, layout.root / "agent.log", device)
        stack.callback(self.agent.close)
        self.agent.start()
        setup.provision(self.commands, layout, url, pin)

    def serves(self, *arguments: str) -> str:
        """Runs a command of the server."""
        return self.commands.run("license-server", *arguments, env=self.layout.env())

    def asks(self, *arguments: str) -> dict[str, Any]:
        """Runs a command of the agent's administrator."""
        out = self.commands.run("license-agent-cli", "--json", *arguments, env=self.layout.env(), fine=(0, 1, 2))
        found: dict[str, Any] = json.loads(out)
        return found

    def pos(self, place: Path, call: str, *arguments: str) -> Any:
        """What a POS application that has the client library of a release gets.

        Args:
            place: where the Python with that library is.
            call: an expression over `client` and `arguments`, whose value JSON can carry.
            arguments: texts.
        """
        return self._till(place, f"    print(json.dumps({call}))\n", *arguments)

    def pos_error(self, place: Path, call: str) -> str:
        """The name of the error that a POS application gets for a call."""
        caught = "    except Exception as error:\n        print(json.dumps(type(error).__name__))\n"
        name: str = self._till(place, f"    try:\n        {call}\n{caught}    else:\n        sys.exit('no error')\n")
        return name

    def _till(self, place: Path, work: str, *arguments: str) -> Any:
        script = (
            "import json, sys\n"
            "from license_agent_client import LicenseClient\n"
            "path, uid, *arguments = sys.argv[1:]\n"
            f"with LicenseClient(path, deadline=60, agent_uid=int(uid)) as client:\n{work}"
        )
        uid = os.geteuid() or ROOT_STANDS_IN_UID
        command = [str(place / "python"), "-c", script, str(self.agent.pos_path), str(uid), *arguments]
        # Not in the project's directory, whose folders would come before what is installed.
        done = subprocess.run(command, cwd=self.layout.root, capture_output=True, text=True, timeout=READY_S, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextlib.contextmanager
def running_mixed(device: Path, server: Path) -> Iterator[Mixed]:
    """A device of one release and a server of another, for the length of a block.

    Args:
        device: where the commands of the device are.
        server: where those of the server are.
    """
    with short_directory() as directory, contextlib.ExitStack() as stack:
        yield Mixed(Layout(directory / "stand"), device, server, stack)
