"""Builds the parts of a daemon from its configuration. Reads disk and hardware, starts nothing."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from audittrail.chain import Chain
from contracts.jose import MalformedToken
from contracts.trust import Trust, parse_trust
from hwsec.backend import Backend
from hwsec.errors import ForeignHardware, NotEnrolled, OldFormat, StoreCorrupt, StoreMissing
from hwsec.files import no_trace
from hwsec.owner import HardwareOwner
from hwsec.software import SoftwareBackend
from hwsec.store import Loaded, SealedStore
from hwsec.tpm import TpmBackend
from hwsec.vault import Vault

from .audit.coalesced import Repeats
from .audit.file import AuditDamaged, AuditFile, End
from .audit.keeper import AuditKeeper, derive_archive_key
from .audit.log import AuditLog
from .base import timeanchor
from .base.clock import Clock
from .base.config import Config
from .base.hardware import Hardware
from .base.identity import FILE_NAME as AGENT_FILE
from .base.statelock import StateInUse, StateLock
from .licenses import revocations
from .licenses.inventory import LicenseBook
from .licenses.validator import Engine
from .rotation.runner import Rotor
from .secrets.installer import (
    SECTION_BINDING,
    SECTION_HARDWARE,
    SECTION_REVOCATIONS,
    SECTION_TIME,
    SECTION_TLS,
    SECTION_TRUST,
    SecretOps,
    read_counters,
)
from .secrets.lifecycle import STATE_NUMBERS, Limits, State
from .sync.cycle import Contacts
from .sync.updates import ServerWord
from .telemetry.metrics import Counters
from .uplink import tlskey
from .uplink.certificates import LoadedKeys, TlsKeys, unseal_key
from .uplink.client import Exchange
from .uplink.linkclient import LinkClient
from .uplink.server_record import Binding
from .uplink.server_record import decode as decode_binding
from .uplink.transport import Carrier

log = logging.getLogger(__name__)

MACHINE_ID = Path("/etc/machine-id")


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


@dataclass(slots=True)
class Parts:
    """What a daemon is made of."""

    config: Config
    clock: Clock
    hardware: Hardware
    loaded: Loaded
    engine: Engine
    audit: AuditLog
    keeper: AuditKeeper
    counters: Counters
    audit_end: End
    book_whole: bool
    binding: Binding | None = None
    tls: LoadedKeys | None = None

    def discard(self) -> None:
        """Gives everything back unused."""
        self.hardware.discard()
        self.audit.discard()


def lock_state(config: Config) -> StateLock:
    """Keeps other processes off the state directory, for as long as this one lives.

    Raises:
        StartError: another one works on it, or it cannot be used.
    """
    _check_directories(config)
    try:
        return StateLock(config.paths.state_dir)
    except StateInUse as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{config.paths.state_dir} cannot be used: {error.strerror}") from None


def machine_id() -> bytes:
    """What ties the software backend to this machine; empty where there is no /etc/machine-id."""
    try:
        return MACHINE_ID.read_bytes().strip()
    except OSError:
        return b""


def make_backend(config: Config, vault: Vault) -> Backend:
    """The backend that the configuration asks for, not yet open."""
    if config.tpm.enabled:
        return TpmBackend(
            config.tpm.tcti, config.paths.state_dir / "tpm.objects", config.tpm.nv_base, policies=policies_path(config)
        )
    return SoftwareBackend(config.paths.key_dir, machine_id(), vault)


def make_store(config: Config, backend: Backend, vault: Vault, trace: Callable[[str], None] = no_trace) -> SealedStore:
    """The sealed store of that backend."""
    return SealedStore(config.store_file, backend, vault, config.agent.id, lambda state: STATE_NUMBERS[State(state)], trace)


def _renewed(backend: Backend) -> Backend:
    return backend.replace() if isinstance(backend, TpmBackend) else backend


def limits_of(config: Config) -> Limits:
    """What the configuration shortens."""
    return Limits(config.agent.rotation_interval, config.agent.grace_period)


def policies_path(config: Config) -> Path:
    """The directory of the signed policies."""
    return config.paths.state_dir / "policies"


def book_path(config: Config) -> Path:
    """The file of the license book."""
    return config.paths.state_dir / "licenses.json"


def assemble(config: Config, clock: Clock, schedule: Callable[[], None], owner: HardwareOwner) -> Parts:
    """Opens everything; to be called on the owner's thread, since the hardware may hang.

    Raises:
        HwsecError: the hardware or the store cannot be used.
        StartError: the audit log, or a directory, cannot be used.
    """
    _check_directories(config)
    vault = Vault()
    backend = make_backend(config, vault)
    _open(config, backend)
    loaded = _load(config, backend, vault)
    trust = _trust(loaded)
    _check_hardware(loaded, backend)
    _set_clock(clock, loaded, backend)
    book = LicenseBook()
    book_whole = book.load(book_path(config))
    engine = Engine(config.agent.id, trust, vault, book, limits_of(config))
    engine.take_over(loaded.contents)
    audit, end = open_audit(config, clock, schedule)
    hardware = Hardware(backend, lambda made, trace: make_store(config, made, vault, trace), _renewed, vault, owner)
    key = derive_archive_key(backend, vault)
    identity, attestation = backend.identity_public(), backend.attestation_public()
    keeper = AuditKeeper(config.audit_log, audit, hardware, key, identity, attestation, clock, config.audit)
    binding, tls = _server(loaded, backend, vault, engine)
    engine.refuse_stale_revocations(config.agent.stale_revocations == "refuse")
    return Parts(config, clock, hardware, loaded, engine, audit, keeper, Counters(), end, book_whole, binding, tls)


def _server(loaded: Loaded, backend: Backend, vault: Vault, engine: Engine) -> tuple[Binding | None, LoadedKeys | None]:
    """What the store holds of the server; nothing for an agent whose secrets are carried by hand."""
    sections = loaded.contents.sections
    try:
        if SECTION_REVOCATIONS in sections:
            engine.revocations = revocations.decode(sections[SECTION_REVOCATIONS])
        if SECTION_BINDING not in sections:
            return None, None
        binding = decode_binding(sections[SECTION_BINDING])
        stored = tlskey.decode(sections[SECTION_TLS])
    except (KeyError, ValueError) as error:
        raise StoreCorrupt(f"the store holds no usable word of the server ({error}); provision this agent anew") from None
    with backend.kek() as kek:
        current = unseal_key(kek, vault, stored.current)
        following = None if stored.following is None else unseal_key(kek, vault, stored.following)
    return binding, LoadedKeys(stored, current, following)


class NotProvisioned(NotEnrolled):
    """The device has never been an agent, or its provisioning was cut off: it waits for one."""


def _open(config: Config, backend: Backend) -> None:
    try:
        backend.open()
    except OldFormat:
        raise
    except NotEnrolled as error:
        # What an earlier enrollment has left is a damage to be told, not a new device.
        if any(path.exists() for path in _traces(config)):
            raise
        raise NotProvisioned(str(error)) from None


def _traces(config: Config) -> list[Path]:
    state, keys = config.paths.state_dir, config.paths.key_dir
    files = (state / "tpm.objects", state / "secrets.store", config.tpm.fallback_encrypted_storage)
    twins = [path.with_name(path.name + ".twin") for path in files]
    return [*files, *twins, keys / "software.key", keys / "software.anchor", state / AGENT_FILE]


def _load(config: Config, backend: Backend, vault: Vault) -> Loaded:
    if not config.agent.id and config.store_file.exists():
        raise StartError("there is a store, and nothing says whose: put the agent's id into [agent] id")
    if not config.agent.id:
        raise NotProvisioned("this device has keys and no agent id: its provisioning was not finished")
    try:
        return make_store(config, backend, vault).load()
    except StoreMissing:
        if backend.read_anchor()[0] is not None:
            raise
        raise NotProvisioned("this device has keys and no store yet: its provisioning was not finished") from None


def _check_hardware(loaded: Loaded, backend: Backend) -> None:
    """Holds the hardware against the one that this agent was enrolled on (PV-04).

    Raises:
        ForeignHardware: it is another one.
    """
    bound = loaded.contents.sections.get(SECTION_HARDWARE)
    found = backend.measure_hardware_id()
    if bound is not None and found is not None and found.encode("ascii") != bound:
        raise ForeignHardware(
            f"the hardware id is {found}, this agent was enrolled on {bound.decode('ascii', 'replace')}: another machine, or "
            "the TPM's endorsement seed was changed; run 'license-agent recover reinitialize'"
        )


def _set_clock(clock: Clock, loaded: Loaded, backend: Backend) -> None:
    data = loaded.contents.sections.get(SECTION_TIME)
    if data is None:
        return  # no server has told the time yet
    try:
        clock.set_anchor(timeanchor.decode(data), *read_counters(backend))
    except ValueError as error:
        raise StoreCorrupt(f"the store holds no usable time ({error}); initialize this agent anew") from None


def _trust(loaded: Loaded) -> Trust:
    try:
        return parse_trust(loaded.contents.sections[SECTION_TRUST])
    except (KeyError, MalformedToken) as error:
        raise StoreCorrupt(f"the store holds no usable trust ({error}); initialize this agent anew") from None


def _check_directories(config: Config) -> None:
    for directory in (config.paths.state_dir, config.paths.log_dir):
        if not directory.is_dir():
            raise StartError(f"the directory {directory} does not exist; create it (owner license-agent) or mend [paths]")


def open_audit(config: Config, clock: Clock, schedule: Callable[[], None]) -> tuple[AuditLog, End]:
    """The audit log, and how it was found.

    Raises:
        StartError: it cannot be used.
    """
    file = AuditFile(config.audit_log)
    try:
        end = file.open()
        repeats = Repeats(config.paths.state_dir / "audit.repeats")
    except AuditDamaged as error:
        raise StartError(
            f"the audit log does not hold: {error}; keep it as evidence (move {config.audit_log} aside), then start again"
        ) from None
    except OSError as error:
        raise StartError(f"the audit log cannot be opened: {error.filename}: {error.strerror}") from None
    return AuditLog(file, Chain(end.seq, end.heads), repeats, clock, config.audit, schedule), end


def sealable(end: End) -> tuple[bytes, ...]:
    """What may be sealed of the log that was found: the values around its last checkpoint, or nothing yet."""
    return tuple(end.checked.values) or (bytes(32),)


def make_contacts(
    parts: Parts, ops: SecretOps, heard: Callable[[], Awaitable[None]], keep_book: Callable[[], Awaitable[None]]
) -> Contacts | None:
    """What keeps in touch with the server; None for an agent whose secrets are carried by hand.

    Args:
        parts: of the daemon.
        ops: commits.
        heard: called after each contact that succeeded.
        keep_book: makes durable what the license book has learned.
    """
    binding, tls = parts.binding, parts.tls
    if binding is None or tls is None:
        return None
    config, engine, vault = parts.config, parts.engine, parts.hardware.vault
    word = ServerWord(ops, engine, parts.clock, parts.audit, binding)
    configured = config.server.cert_pin

    def pins() -> tuple[str, ...]:
        return configured or word.binding.pins

    carrier = Carrier(LinkClient(config.link_socket), "server", config.server.url or binding.url, pins, parts.clock)
    certificates = TlsKeys(
        engine.agent_id, tls.stored, tls.current, tls.following, carrier, ops, vault, parts.audit, parts.clock
    )
    exchange = Exchange(engine.agent_id, lambda: engine.trust, parts.hardware, parts.clock, carrier, lambda: certificates.ends)
    rotor = Rotor(config.rotation_journal, ops, engine, vault, exchange, parts.audit, parts.clock, binding.serial, keep_book)
    return Contacts(
        engine.agent_id,
        exchange,
        certificates,
        rotor,
        engine,
        word,
        parts.audit,
        parts.clock,
        parts.counters,
        lambda: ops.sealed_head,
        heard,
    )
