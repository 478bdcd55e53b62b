"""Machines for the tests: each has one backend, whose hardware outlives the backend objects made for it."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from hwsec.backend import Backend
from hwsec.software import PBKDF2_FLOOR, SoftwareBackend
from hwsec.tpm import TpmBackend
from hwsec.vault import Vault
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice
from tests.support import swtpm
from tests.support.swtpm import Swtpm


class Machine(Protocol):
    """One machine, over any number of runs of the agent."""

    name: str

    def backend(self) -> Backend:
        """A new backend, as after a start of the process; the one made before is closed."""
        ...

    def enroll(self) -> Backend:
        """An open backend of this machine, which was not enrolled before."""
        ...

    def cut(self) -> None:
        """From now on the hardware does not answer."""
        ...

    def mend(self) -> None:
        """It answers again."""
        ...

    def end(self) -> None:
        """Gives everything back."""
        ...


class Naps:
    """A clock that a sleep moves on at once, so that no test waits for a repeated call."""

    def __init__(self) -> None:
        self.slept = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


class MemoryMachine:
    name = "memory"

    def __init__(self, _directory: Path) -> None:
        self.device = MemoryDevice()

    def backend(self) -> MemoryBackend:
        return MemoryBackend(self.device)

    def enroll(self) -> MemoryBackend:
        backend = self.backend()
        backend.create()
        return backend

    def cut(self) -> None:
        self.device.answers = False

    def mend(self) -> None:
        self.device.answers = True

    def end(self) -> None:
        pass


class SoftwareMachine:
    name = "software"

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "keys"
        self.directory.mkdir(parents=True)
        self.key_file = self.directory / "software.key"
        self.anchor_file = self.directory / "software.anchor"
        self._vault = Vault()

    def backend(self, machine_id: bytes = b"machine-1") -> SoftwareBackend:
        return SoftwareBackend(self.directory, machine_id, self._vault, PBKDF2_FLOOR)

    def enroll(self) -> SoftwareBackend:
        backend = self.backend()
        backend.create()
        return backend

    def cut(self) -> None:
        raise NotImplementedError("there is no hardware to cut")

    def mend(self) -> None:
        raise NotImplementedError("there is no hardware to mend")

    def end(self) -> None:
        self._vault.close()


class TpmMachine:
    name = "tpm"

    def __init__(self, directory: Path, enrolled: Path | None = None) -> None:
        """`enrolled` is the directory of such a machine: to enroll is then to become its copy, which is quicker."""
        if not swtpm.available():
            pytest.skip("swtpm is not installed")
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._enrolled = enrolled
        self.objects = directory / "tpm.objects"
        self.twin = directory / "tpm.objects.twin"
        self.swtpm = Swtpm(directory / "chip").start()
        self._last: TpmBackend | None = None
        self.naps = Naps()

    def over(self, tcti: str) -> TpmBackend:
        """A backend with the files of this machine, over another way to a TPM."""
        return TpmBackend(tcti, self.objects, monotonic=self.naps.monotonic, sleep=self.naps.sleep)

    def backend(self) -> TpmBackend:
        # Without a resource manager, a new connection clears what it finds in the TPM.
        if self._last is not None:
            self._last.close()
        self._last = self.over(self.swtpm.tcti)
        return self._last

    def enroll(self) -> TpmBackend:
        if self._enrolled is None:
            backend = self.backend()
            backend.create()
            return backend
        self.swtpm.stop()
        shutil.copytree(self._enrolled, self._directory, dirs_exist_ok=True)
        self.swtpm.start()
        backend = self.backend()
        backend.open()
        return backend

    def cut(self) -> None:
        self.swtpm.stop()

    def mend(self) -> None:
        self.swtpm.start()

    def end(self) -> None:
        if self._last is not None:
            self._last.close()
        self.swtpm.stop()


MACHINES: dict[str, Callable[[Path], Machine]] = {"memory": MemoryMachine, "software": SoftwareMachine, "tpm": TpmMachine}


@pytest.fixture(scope="session")
def enrolled_tpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a machine with an enrolled TPM, switched off."""
    directory = tmp_path_factory.mktemp("enrolled")
    made = TpmMachine(directory)
    try:
        made.enroll()
    finally:
        made.end()
    return directory


@pytest.fixture(params=list(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    made: Machine
    if request.param == TpmMachine.name:
        made = TpmMachine(tmp_path / "machine", request.getfixturevalue("enrolled_tpm"))
    else:
        made = MACHINES[request.param](tmp_path / "machine")
    yield made
    made.end()


@pytest.fixture
def backend(machine: Machine) -> Backend:
    """An enrolled backend on any machine."""
    return machine.enroll()


@pytest.fixture
def software(tmp_path: Path) -> Iterator[SoftwareMachine]:
    made = SoftwareMachine(tmp_path / "machine")
    yield made
    made.end()


@pytest.fixture
def tpm(tmp_path: Path, enrolled_tpm: Path) -> Iterator[TpmMachine]:
    made = TpmMachine(tmp_path / "machine", enrolled_tpm)
    yield made
    made.end()


@pytest.fixture
def vault() -> Iterator[Vault]:
    made = Vault()
    yield made
    made.close()
