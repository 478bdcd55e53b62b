"""Wires the agent's components together: the only composition root. Reads disk and hardware, starts nothing.

`assemble` opens what the start needs and runs on the hardware's thread; `connect` adds what contacts the license server.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from audittrail.chain import Chain
from common.files import no_trace, os_problem, write_atomic
from hwsec.backend import Backend
from hwsec.bootclock import read_boot_id
from hwsec.owner import HardwareOwner
from hwsec.store import Loaded
from hwsec.vault import Vault

from . import VERSION
from .admin.access import Access, read_ca_file
from .admin.handlers.access_handlers import AccessHandlers
from .admin.handlers.audit_handlers import AuditHandlers
from .admin.handlers.license_handlers import LicenseHandlers
from .admin.handlers.policy_handlers import PolicyHandlers
from .admin.handlers.secret_handlers import SecretHandlers
from .admin.handlers.server_handlers import ServerHandlers
from .admin.handlers.status_handlers import StatusHandlers
from .admin.handlers.system_handlers import SystemHandlers
from .admin.handlers.update_handlers import UpdateHandlers
from .admin.handlers.webhook_handlers import WebhookHandlers
from .admin.service import Handler
from .audit.checkpoint import Checkpoint
from .audit.coalesced import CoalescedEvents
from .audit.core import Core
from .audit.file import AuditDamaged, AuditFile, End
from .audit.keeper import AuditKeeper, archive_keys
from .audit.log import AuditLog
from .base.clock.clock import Clock
from .base.config.config import Config
from .base.configstatus import ConfigStatus
from .base.confinement import ConfinementStatus
from .base.counters import Counters
from .base.errors import StartError
from .base.hardware import Hardware, read_counters
from .base.statelock import StateInUse, StateLock
from .enrollment.backup import collect
from .licenses.inventory import LicenseInventory
from .licenses.usage import Usage
from .licenses.validator import Validator
from .ota.acts import UpdateActs
from .ota.effects import Machine
from .ota.installerclient import InstallerClient
from .ota.keysets import trusted_hardware, trusted_roots
from .ota.register import Register
from .ota.runner import UpdateRunner
from .ota.settings import settings_of
from .ota.sides import Installer, Updater
from .ota.updaterclient import UpdaterClient
from .pos.service import PosService
from .rotation.runner import RotationRunner
from .secrets.installer import SecretInstaller
from .secrets.lifecycle import Limits
from .secrets.open import check_hardware, load_store, make_backend, make_store, open_backend, renewed
from .secrets.pcr_policy import PcrPolicies
from .secrets.record import AgentRecord, read_record
from .secrets.ring import SecretRing
from .secrets.store import Store
from .secrets.trusted_time import TrustedTime
from .sockets.connection import Hub
from .sync.capabilities import Negotiation
from .sync.configuration import ConfigurationSync
from .sync.cycle import ContactCycle
from .sync.fleetsettings import FleetSettings
from .sync.licenses import LicenseSync
from .sync.mode import Kept, ModeKeeper
from .sync.ota import UpdateSync
from .sync.seats import SeatSync
from .sync.updates import SignedUpdates
from .sync.usage import UsageReports
from .telemetry.backups import BackupWatch
from .telemetry.health import Health, findings
from .telemetry.parts import AgentParts
from .telemetry.publisher import Publisher
from .telemetry.reporter import Reporter
from .telemetry.statefile import Origin, StateFile
from .telemetry.webhook import LinkSender, Sender, Webhook, open_queue
from .telemetry.webhookkeys import WebhookKey, WebhookKeys, open_webhook_keys
from .uplink.certificates import ClientCertificates, OpenedTlsKeys, open_tls_keys
from .uplink.client import ExchangeClient
from .uplink.linkclient import LinkClient
from .uplink.schedule import renewal_policy
from .uplink.transport import LinkTransport, Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What the start found, for the log.

    Attributes:
        loaded: the sealed store, with its repairs.
        audit_end: where the audit log ends.
        inventory_whole: whether the license inventory could be read.
        kept: from the state file.
        kept_from: the file that `kept` was read from.
        state_corrupt: whether the state file existed but was corrupt.
    """

    loaded: Loaded
    audit_end: End
    inventory_whole: bool
    kept: Kept
    kept_from: Origin
    state_corrupt: bool


@dataclass(frozen=True, slots=True)
class Assembled:
    """An agent that was opened and contacts nobody yet."""

    config: Config
    core: Core
    hub: Hub
    store: Store
    time: TrustedTime
    installer: SecretInstaller
    validator: Validator
    usage: Usage | None
    checkpoint: Checkpoint
    keeper: AuditKeeper
    tls: OpenedTlsKeys | None
    webhook_keys: tuple[WebhookKey, ...]
    found: Found
    boot_id: bytes

    def discard(self) -> None:
        """Closes everything unused; runs on the hardware's thread."""
        self.core.hardware.discard()
        self.core.audit.discard()
        if self.usage is not None:
            self.usage.close()


@dataclass(frozen=True, slots=True)
class UpdateParts:
    """What installs updates: who moves one on, what administrators may want, and the register of all."""

    runner: UpdateRunner
    acts: UpdateActs
    register: Register


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent with everything that it runs.

    Attributes:
        assembled: what the start opened.
        parts: what views and handlers read.
        rotation: None for an agent whose secrets are carried by hand.
        reporter: logs, alerts and writes files.
        publisher: writes the files.
        pos: answers POS applications.
        access: decides who may ask for what on the admin socket.
        webhook: sends alerts.
        updates: None where they are not enabled.
    """

    assembled: Assembled
    parts: AgentParts
    rotation: RotationRunner | None
    reporter: Reporter
    publisher: Publisher
    pos: PosService
    access: Access
    webhook: Webhook
    updates: UpdateParts | None = None

    def handlers(self, confinement: ConfinementStatus) -> dict[type, Handler]:
        """What handles each request of administrators."""
        made, parts, updates = self.assembled, self.parts, self.updates
        policies = PcrPolicies(made.core, made.config.policies_dir)
        return {
            **StatusHandlers(parts, self.publisher, self.reporter.health, confinement, self.access, self.pos.holdings).table(),
            **SecretHandlers(made.core, made.installer, made.time, made.validator, self.reporter).table(),
            **LicenseHandlers(parts).table(),
            **AuditHandlers(made.core.audit, made.keeper, made.checkpoint).table(),
            **PolicyHandlers(policies, made.store).table(),
            **ServerHandlers(parts, self.reporter).table(),
            **AccessHandlers(self.access).table(),
            **SystemHandlers(made.boot_id, made.core.clock.monotonic).table(),
            **WebhookHandlers(self.webhook).table(),
            **UpdateHandlers(parts, None if updates is None else (updates.acts, updates.register)).table(),
        }


def lock_state(config: Config) -> StateLock:
    """Keeps other processes off the state directory for as long as this one lives.

    Raises:
        StartError: another process works on it, or it cannot be used.
    """
    _check_directories(config)
    try:
        return StateLock(config.paths.state_dir)
    except StateInUse as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{config.paths.state_dir} cannot be used: {error.strerror}") from None


def limits_of(config: Config) -> Limits:
    """Periods by which the configuration shortens the server's dates."""
    return Limits(config.agent.rotation_interval, config.agent.grace_period)


def assemble(
    config: Config,
    clock: Clock,
    hub: Hub,
    owner: HardwareOwner,
    backend_of: Callable[[Config, Vault], Backend] = make_backend,
) -> Assembled:
    """Opens everything that the start needs; runs on the owner's thread, since the hardware may hang.

    Args:
        config: with the agent's id, unless the device is not an agent yet.
        clock: gets the last server-signed time.
        hub: ends each tick; the audit log is attached to it.
        owner: the hardware's thread.
        backend_of: makes the backend; tests pass one in memory.

    Raises:
        HwsecError: the hardware or the store cannot be used.
        StartError: the audit log, or a directory, cannot be used.
    """
    _check_directories(config)
    boot_id = read_boot_id()
    vault = Vault()
    backend = backend_of(config, vault)
    open_backend(config, backend)
    loaded = load_store(config, backend, vault)
    record = read_record(loaded.contents.sections)
    check_hardware(record, backend)
    if record.time is not None:
        clock.set_anchor(record.time, *read_counters(backend, clock.boot))
    if record.unconfirmed is not None:
        clock.set_unconfirmed(record.unconfirmed.time, clock.boot())
    inventory = LicenseInventory(config.inventory_file)
    inventory_whole = inventory.load()
    kept, kept_from, state_corrupt = StateFile(config.state_file).read()
    audit, end = open_audit(config, clock, hub)
    hardware = Hardware(backend, lambda made, trace: make_store(config, made, vault, trace), renewed, vault, owner)
    core = Core(config.agent.id, clock, audit, hardware, vault, Counters())
    store = Store(core, SecretRing(limits_of(config), record.trust()), loaded, record)
    validator = Validator(core.agent_id, store.ring, vault, inventory, record.revocations, record.withheld)
    validator.refuse_stale_revocations(config.agent.stale_revocations == "refuse")
    validator.ahead = clock.latest() - clock.now()
    time = TrustedTime(core, store)
    return Assembled(
        config=config,
        core=core,
        hub=hub,
        store=store,
        time=time,
        installer=SecretInstaller(core, store, time),
        validator=validator,
        usage=_usage(config, clock),
        # What may be sealed: the values around the log's last checkpoint, or nothing yet.
        checkpoint=Checkpoint(core, tuple(end.checked.values) or (bytes(32),)),
        keeper=AuditKeeper(core, config.audit_log, archive_keys(backend, vault), config.audit),
        tls=_tls_keys(record, backend, vault),
        webhook_keys=_webhook_keys(record, backend, vault),
        found=Found(loaded, end, inventory_whole, kept, kept_from, state_corrupt),
        boot_id=boot_id,
    )


def _usage(config: Config, clock: Clock) -> Usage | None:
    """The usage counters; None if their file cannot be used, which is no reason to leave the shop without verdicts."""
    try:
        return Usage(config.usage_file, config.agent.id, os.urandom, clock.monotonic)
    except OSError as error:
        log.error(
            "usage cannot be counted: %s: %s; free the disk or correct the file's owner", config.usage_file, os_problem(error)
        )
        return None


def _tls_keys(record: AgentRecord, backend: Backend, vault: Vault) -> OpenedTlsKeys | None:
    if record.tls is None:
        return None
    with backend.kek() as kek:
        return open_tls_keys(kek, vault, record.tls)


def _webhook_keys(record: AgentRecord, backend: Backend, vault: Vault) -> tuple[WebhookKey, ...]:
    if not record.webhook_keys:
        return ()
    with backend.kek() as kek:
        return open_webhook_keys(kek, vault, record.webhook_keys)


def connect(
    made: Assembled,
    transport: Transport | None = None,
    trace: Callable[[str], None] = no_trace,
    send: Sender | None = None,
    sides: tuple[Updater, Installer] | None = None,
) -> Agent:
    """Adds what contacts the license server, and what shows and serves the agent.

    Args:
        made: by `assemble`.
        transport: to the server; by default the link. Tests pass one that leads to a server in the same process.
        trace: called after each step of a rotation; a test stops it there.
        send: posts to the webhook; by default by way of the link.
        sides: updater and installer; by default by their sockets.
    """
    config, core, store = made.config, made.core, made.store
    rotation, cycle = None, None
    fleet = FleetSettings(core, config.fleet_file, lambda: store.trust, config)
    fleet.load()
    agent: Agent
    updates = _updates(made, sides, lambda: agent) if config.updates_enabled else None
    if store.record.server is not None and made.tls is not None:
        transport = transport or _link_transport(made)
        certificates = ClientCertificates(core, store, transport, made.tls, lambda: renewal_policy(fleet.effective.config))
        client = ExchangeClient(core, store, transport, certificates)
        rotation = RotationRunner(core, config.rotation_journal, made.installer, made.validator, client, trace)
        signed = SignedUpdates(core, store, made.time, made.validator)
        negotiation = Negotiation(core, store, client)
        licenses = LicenseSync(core, store, made.validator, client)
        usage = UsageReports(core, made.usage, client)
        seats = SeatSync(core, store, made.validator, client, licenses)
        ota = (
            None
            if updates is None
            else UpdateSync(
                core,
                store,
                client,
                updates.runner,
                negotiation,
                partial(trusted_roots, config.update_trust),
                partial(trusted_hardware, config.update_trust),
            )
        )
        cycle = ContactCycle(
            core, client, certificates, rotation, signed, made.checkpoint, negotiation, licenses, seats, usage,
            ConfigurationSync(client, fleet), ota,
        )  # fmt: skip
    mode = ModeKeeper(core, made.validator, cycle, made.found.kept, config.agent)
    status = ConfigStatus(config)
    backups = BackupWatch(status, config.backup_file)
    runner = None if updates is None else updates.runner
    parts = AgentParts(
        core, store, made.validator, cycle, mode, made.hub, status, made.usage, backups=backups, updates=runner, fleet=fleet
    )
    queue = open_queue(config.webhook_file)
    publisher = Publisher(parts, config.metrics_file, StateFile(config.state_file), queue, made.checkpoint)
    reporter = Reporter(parts, made.checkpoint, publisher)
    webhook = Webhook(
        core,
        config.alerts,
        WebhookKeys(core, store, made.webhook_keys),
        queue,
        config.webhook_file,
        send or LinkSender(LinkClient(config.link_socket), core.clock),
        reporter.alerts.over,
    )
    pos = PosService(config.pos, core, made.validator, made.usage, None if runner is None else runner.consent)
    access = make_access(config, core.agent_id, made.boot_id, core.clock, core.audit, store)
    agent = Agent(made, parts, rotation, reporter, publisher, pos, access, webhook, updates)
    return agent


def _updates(made: Assembled, sides: tuple[Updater, Installer] | None, agent: Callable[[], Agent]) -> UpdateParts:
    """What installs updates. It looks at the agent, and the agent has it: `agent` is called once that is whole."""
    config, core = made.config, made.core
    updater, installer = sides or (UpdaterClient(config.updater_socket), InstallerClient(config.installer_socket))

    async def backup() -> str:
        def save() -> None:
            write_atomic(config.updates_backup, collect(config, Path(config.source), VERSION, core.clock.now()))

        await asyncio.to_thread(save)
        return config.updates_backup.name

    def licensed() -> bool:
        held = agent().pos.holdings.at(core.clock.now())
        return any(each.valid for each in held.after(""))

    def health() -> str:
        broken = [each for each in findings(agent().reporter.health.facts()) if each.health is Health.NOT_WORKING]
        return "; ".join(each.text for each in broken)[:300]

    async def withdrawn(number: int) -> bool:
        cycle = agent().parts.cycle
        return cycle is not None and await cycle.withdrawn(number)

    register = Register(config.updates_register, core.audit)
    machine = Machine(updater, installer, register, backup, licensed, health, withdrawn)
    runner = UpdateRunner(core, config.updates_journal, machine, settings_of(config.updates))
    return UpdateParts(runner, UpdateActs(core, runner, updater, installer), register)


def make_access(config: Config, agent_id: str, boot_id: bytes, clock: Clock, audit: AuditLog, store: Store | None) -> Access:
    """Who may do what on the admin socket; reads the admin CA's file. Arguments as for `Access`."""
    policy = config.management.authentication
    access = Access(agent_id, boot_id, partial(read_ca_file, config.admin_ca), policy, clock, audit, store)
    access.look()
    return access


def _link_transport(made: Assembled) -> LinkTransport:
    config, store = made.config, made.store
    server = store.record.server
    url = config.server.url or ("" if server is None else server.url)

    def pins() -> tuple[str, ...]:
        known = store.record.server
        return config.server.cert_pin or (() if known is None else known.pins)

    return LinkTransport(LinkClient(config.link_socket), "server", url, pins, made.core.clock)


def _check_directories(config: Config) -> None:
    for directory in (config.paths.state_dir, config.paths.log_dir):
        if not directory.is_dir():
            raise StartError(f"the directory {directory} does not exist; create it (owner license-agent) or correct [paths]")


def open_audit(config: Config, clock: Clock, hub: Hub) -> tuple[AuditLog, End]:
    """The audit log, attached to the hub, and where it ends.

    Raises:
        StartError: it cannot be used.
    """
    file = AuditFile(config.audit_log)
    try:
        end = file.open()
        coalesced = CoalescedEvents(config.paths.state_dir / "audit.repeats")
    except AuditDamaged as error:
        raise StartError(
            f"the audit log does not verify: {error}; keep it as evidence (move {config.audit_log} aside), then start again"
        ) from None
    except OSError as error:
        raise StartError(f"the audit log cannot be opened: {os_problem(error)}") from None
    hub.log = log = AuditLog(file, Chain(end.seq, end.heads), coalesced, clock, config.audit, hub.schedule)
    return log, end
