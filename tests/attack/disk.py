"""A machine whose whole disk (and TPM) can be copied, put back and spoiled, between and during runs of its agent."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from license_agent_client import LicenseClient

from tests.support.daemon import Running
from tests.support.machine import Machine, furnished_machine
from tests.support.waiting import READY_S


@dataclass(frozen=True)
class _File:
    data: bytes
    mode: int
    uid: int


Image = dict[Path, _File]
"""All that a machine keeps: files by path."""


class Disk:
    """One machine and its images.

    Attributes:
        older: version 1 ACTIVE.
        before: version 1 GRACE, 2 ACTIVE; a delivery of 3 is at hand.
        newest: after the next commit: 1 INVALIDATED.
        token: a license under version 2.
        first_token: one under version 1.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        with machine.running():
            machine.give_secret()
            self.first_token = machine.issue()
            with self.client() as client:
                assert client.validate(self.first_token).valid
        self.older = self.image()
        with machine.running():
            machine.give_secret()
            self.token = machine.issue()
            with self.client() as client:
                assert client.validate(self.token).valid
            # Re-issued: so that the license book has something to keep.
            for token in machine.tool("license-server", "reissue", "--agent", "pos-009").split():
                machine.tool("license-agent-cli", "license", "import", "-", stdin=token)
        self.before = self.image()
        self.delivery = machine.root / "delivery-3"
        machine.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(self.delivery))
        with machine.running():
            machine.tool("license-agent-cli", "secrets", "invalidate", "1", "--yes")
        self.newest = self.image()

    def client(self) -> LicenseClient:
        """A till."""
        return LicenseClient(self.machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=self.machine.uid)

    def _directories(self) -> list[Path]:
        machine = self.machine
        return [machine.state, machine.keys, machine.log, machine.config.parent, *([machine.tpm.state] if machine.tpm else [])]

    def image(self) -> Image:
        """A copy of everything."""
        found = {}
        for directory in self._directories():
            for path in directory.iterdir():
                info = path.stat()
                found[path] = _File(path.read_bytes(), info.st_mode & 0o777, info.st_uid)
        return found

    def restore(self, image: Image) -> None:
        """Puts back everything, the TPM's inside too: the machine is as it was."""
        tpm = self.machine.tpm
        if tpm is not None:
            tpm.stop()
        for directory in [*self._directories(), self.machine.run_dir]:
            for path in directory.iterdir():
                path.unlink()
        for path, file in image.items():
            self.put(path, file.data, file.mode, file.uid)
        if tpm is not None:
            tpm.start()

    def put(self, path: Path, data: bytes, mode: int = 0o600, uid: int | None = None) -> None:
        """Writes a file as the agent would own it."""
        path.write_bytes(data)
        path.chmod(mode)
        owner = self.machine.uid if uid is None else uid
        os.chown(path, owner, owner)

    def take_from(self, image: Image, *names: str) -> None:
        """Puts back single files of the store from another time; those that were not there then are removed."""
        for name in names:
            path = self.machine.state / name
            if path in image:
                self.put(path, image[path].data)
            else:
                path.unlink(missing_ok=True)

    def copies(self) -> tuple[Path, Path, Path]:
        """Store, twin and pending file."""
        store = self.machine.store
        return store, store.with_name(store.name + ".twin"), store.with_name(store.name + ".pending")

    def refused(self, *words: str, status: int = 69) -> str:
        """The agent does not start: with this exit status, a message that has these words, and no traceback."""
        found, text = self.machine.run_to_the_end()
        assert_clear(text)
        assert found == status, text
        for word in words:
            assert word in text, text
        return text


def assert_clear(text: str) -> None:
    """What the agent said is for people."""
    assert "Traceback" not in text and 'File "' not in text, text


@contextlib.contextmanager
def disk_of(backend: str) -> Iterator[Disk]:
    """A machine with its images."""
    with furnished_machine(backend) as machine:
        yield Disk(machine)


class Refusing:
    """An agent with its service manager's sockets, which stays up on a spoiled disk and tries again when told to."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._read = 0

    def said(self) -> str:
        """What it has said since the last call."""
        text = self._running.log()
        new, self._read = text[self._read :], len(text)
        return new

    def try_again(self) -> str:
        """It starts once more; returns what it says. It must refuse."""
        self.said()
        self._running.process.send_signal(signal.SIGHUP)
        notice = self._running.notice("READY=1")
        text = self.said()
        assert_clear(text)
        assert "retrying" in notice, f"it has started: {notice}\n{text}"
        assert text.strip(), "it refuses and does not say why"
        return text


@contextlib.contextmanager
def refusing(disk: Disk) -> Iterator[Refusing]:
    """The agent, on a disk that it refuses already."""
    with disk.machine.running(inherited=True) as running:
        agent = Refusing(running)
        agent.try_again()
        yield agent
    for path in disk.machine.run_dir.iterdir():  # inherited sockets are not the agent's to remove
        path.unlink()


def other_machine_id(directory: Path, command: list[str]) -> list[str] | None:
    """The command as it would run on another machine; None where this cannot be played."""
    file = directory / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    play = f'mount --bind "{file}" /etc/machine-id && exec "$@"'
    if os.geteuid() != 0 or shutil.which("unshare") is None or not Path("/etc/machine-id").exists():
        return None
    return ["unshare", "--mount", "sh", "-c", play, "sh", *command]
