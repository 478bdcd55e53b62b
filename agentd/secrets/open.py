"""Opens the backend and the sealed store that the configuration names. Runs on the hardware's thread, since it may hang."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentd.base.config.config import Config
from agentd.base.errors import NotProvisioned, StartError
from agentd.base.identity import traces
from common.files import no_trace
from hwsec.backend import Backend
from hwsec.errors import ForeignHardware, NotEnrolled, OldFormat, StoreMissing
from hwsec.software import SoftwareBackend
from hwsec.store import Loaded, SealedStore
from hwsec.vault import Vault

from .lifecycle import STATE_NUMBERS, State
from .record import AgentRecord

if TYPE_CHECKING:
    from hwsec.tpm import TpmBackend

MACHINE_ID = Path("/etc/machine-id")


def machine_id() -> bytes:
    """What ties the software backend to this machine; empty where there is no /etc/machine-id."""
    try:
        return MACHINE_ID.read_bytes().strip()
    except OSError:
        return b""


def make_backend(config: Config, vault: Vault) -> Backend:
    """The backend that the configuration names, not yet open."""
    if config.tpm.enabled:
        # Half a MiB that an agent without a TPM does without.
        from hwsec.tpm import TpmBackend

        objects = config.paths.state_dir / "tpm.objects"
        return TpmBackend(config.tpm.tcti, objects, config.tpm.nv_base, policies=config.policies_dir)
    return SoftwareBackend(config.paths.key_dir, machine_id(), vault)


def make_store(config: Config, backend: Backend, vault: Vault, trace: Callable[[str], None] = no_trace) -> SealedStore:
    """The sealed store of a backend."""
    return SealedStore(config.store_file, backend, vault, config.agent.id, lambda state: STATE_NUMBERS[State(state)], trace)


def as_tpm(backend: Backend) -> "TpmBackend | None":
    """The backend as what it is, if it is a TPM; asking loads the TPM's modules only where there may be one."""
    if isinstance(backend, SoftwareBackend):
        return None
    from hwsec.tpm import TpmBackend

    return backend if isinstance(backend, TpmBackend) else None


def renewed(backend: Backend) -> Backend:
    """A backend with the settings of one that was abandoned."""
    tpm = as_tpm(backend)
    return backend if tpm is None else tpm.replace()


def open_backend(config: Config, backend: Backend) -> None:
    """Opens a backend.

    Raises:
        NotProvisioned: the device has never been an agent.
        HwsecError: the hardware cannot be used.
    """
    try:
        backend.open()
    except OldFormat:
        raise
    except NotEnrolled as error:
        # What an earlier enrollment has left means damage, not a new device.
        if any(path.exists() for path in traces(config)):
            raise NotEnrolled(
                f"{error}; files of an earlier enrollment exist: restore the missing ones, or run "
                "'license-agent recover reinitialize'"
            ) from None
        raise NotProvisioned(str(error)) from None


def load_store(config: Config, backend: Backend, vault: Vault) -> Loaded:
    """Reads the store.

    Raises:
        NotProvisioned: provisioning was not finished.
        StartError: nothing says whose store it is.
        HwsecError: no copy of it is whole, or the hardware cannot be used.
    """
    if not config.agent.id and config.store_file.exists():
        raise StartError("the store exists and nothing says whose it is: set [agent] id to the agent's id")
    if not config.agent.id:
        raise NotProvisioned("this device has keys and no agent id: its provisioning was not finished")
    try:
        return make_store(config, backend, vault).load()
    except StoreMissing:
        if backend.read_anchor()[0] is not None:
            raise
        raise NotProvisioned("this device has keys and no store yet: its provisioning was not finished") from None


def check_hardware(record: AgentRecord, backend: Backend) -> None:
    """Compares the hardware with the one that this agent was enrolled on (PV-04).

    Raises:
        ForeignHardware: they differ.
    """
    bound = record.hardware_id
    found = backend.measure_hardware_id()
    if bound is not None and found is not None and found != bound:
        raise ForeignHardware(
            f"the hardware id is {found}, this agent was enrolled on {bound}: this is another machine, or the TPM's "
            "endorsement seed was changed; run 'license-agent recover reinitialize'"
        )
