"""Creates or opens the server in a directory, and wires its components. The only place that knows all of them."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from common.files import write_atomic

from .accounts.accounts import COUNTER as ACCOUNTS_COUNTER
from .agents.activation import Activation
from .agents.certificates import ClientCertificates
from .agents.clones import Clones
from .agents.enrollment_tokens import EnrollmentTokens
from .agents.lost_records import LostRecords
from .agents.registry import Agents
from .agents.retirement import MOST_AGENTS, remove_retired
from .base.errors import RegistryError
from .base.settings import MASTER_KEY, ROOT_KEY, SETTINGS, Place, new_place, place_of, settings_of
from .enrollment.service import Enrollment, Policy
from .exchange.checkins import CheckIns
from .exchange.kept_replies import KeptReplies
from .exchange.service import Exchange, Stores
from .fleet.configuration.contact import Configurations
from .fleet.ddi.actions import COUNTER as DDI_ACTIONS
from .fleet.devices.registry import Devices
from .fleet.fleets.rotations import COUNTER as CERTIFICATE_ROTATIONS
from .fleet.monitoring import retention as monitoring
from .fleet.monitoring.alerts import COUNTERS as ALERTS
from .keys import datakey, key_rows, masterkey
from .keys.keyring import COUNTER as KEYS_COUNTER
from .keys.keyring import Keyring
from .keys.lifecycle import KeyLifecycle
from .keys.masterkey import MasterKey
from .keys.masterkey_rotation import locked
from .keys.rootkey import NewRootKey
from .keys.succession import Succession
from .licensing.licenses.deliveries import Deliveries
from .licensing.licenses.leases import Leases
from .licensing.licenses.licenses import REVOCATIONS, REVOCATIONS_BASE, Licenses, renumber_revocations
from .licensing.licenses.usage import UsageTotals
from .licensing.sales import seats
from .licensing.sales.customers import Customers
from .licensing.secrets.secrets import Secrets
from .licensing.states import changes
from .notify.webhooks import Webhooks
from .ota.reports import Directives
from .registry import audit, events
from .registry.agentcounts import STATUSES
from .registry.cipher import KEY_BYTES, Cipher
from .registry.clockwatch import ClockWatch
from .registry.database import Database, begin_use
from .registry.models.core import OLDEST_PROGRAM, Counter, Setting
from .registry.prepared import Prepared
from .registry.upkeep import backup
from .registry.upkeep.backup import Summary
from .registry.upkeep.housekeeping import Chore, Housekeeping

_COUNTERS = (
    "serial", "key_set", KEYS_COUNTER, REVOCATIONS, REVOCATIONS_BASE, changes.BASE, audit.COUNTER, events.COUNTER,
    ACCOUNTS_COUNTER, DDI_ACTIONS, CERTIFICATE_ROTATIONS, *ALERTS, *(f"agents.{status}" for status in STATUSES),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new server is created with.

    Attributes:
        issuer: what licenses carry as `iss`.
        names: DNS names and IP addresses of its TLS certificate.
        root_key: path of the file that the root's private key is written to.
        passphrase: encrypts that file; None leaves it unencrypted.
        interval: seconds between rotations; None for the default.
        grace: seconds of grace after that; None for the default.
    """

    issuer: str
    names: tuple[str, ...]
    root_key: Path
    passphrase: bytes | None
    interval: int | None = None
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """An open server."""

    place: Place
    database: Database
    master: MasterKey
    cipher: Cipher
    clock: ClockWatch
    keys: Keyring
    key_lifecycle: KeyLifecycle
    succession: Succession
    agents: Agents
    lost_records: LostRecords
    certificates: ClientCertificates
    activation: Activation
    enrollment_tokens: EnrollmentTokens
    secrets: Secrets
    licenses: Licenses
    deliveries: Deliveries
    leases: Leases
    clones: Clones
    customers: Customers
    webhooks: Webhooks

    def close(self) -> None:
        """Closes the database."""
        self.database.close()


def open_server(directory: Path, random: Callable[[int], bytes] = os.urandom) -> Server:
    """Opens the server in a directory.

    Raises:
        RegistryError: it cannot be opened; the text says what to do.
    """
    place = place_of(directory)
    database = Database(place.url)
    try:
        database.ready()
        begin_use(database)
        return wire(place, database, masterkey.in_use(place.master), random)
    except BaseException:
        database.close()
        raise


def wire(
    place: Place, database: Database, master: MasterKey, random: Callable[[int], bytes], clock: ClockWatch | None = None
) -> Server:
    """Wires the components of a server over its open database.

    Args:
        place: where its data is.
        database: open.
        master: its master key.
        random: gives that many random bytes.
        clock: says whether the server may sign; None for one that watches the clock of this machine.

    Raises:
        RegistryError: the master key is not the one of this registry.
    """
    with database.read() as session:
        cipher = Cipher(datakey.opened(session, master))
    clock = ClockWatch(database) if clock is None else clock
    keys = Keyring(database, cipher, clock.check)
    certificates = ClientCertificates(keys)
    secrets = Secrets(keys, cipher, random)
    licenses = Licenses(keys, secrets)
    lifecycle = KeyLifecycle(database, cipher, keys)
    return Server(
        place=place,
        database=database,
        master=master,
        cipher=cipher,
        clock=clock,
        keys=keys,
        key_lifecycle=lifecycle,
        succession=Succession(database, cipher, keys, lifecycle),
        agents=Agents(),
        lost_records=LostRecords(),
        certificates=certificates,
        activation=Activation(certificates),
        enrollment_tokens=EnrollmentTokens(cipher),
        secrets=secrets,
        licenses=licenses,
        deliveries=Deliveries(licenses, secrets),
        leases=Leases(licenses, secrets),
        clones=Clones(),
        customers=Customers(cipher, random),
        webhooks=Webhooks(cipher),
    )


def housekeeping(server: Server) -> Housekeeping:
    """What removes the rows of an open server that nothing needs any more."""
    chores = (
        Chore("agent", remove_retired, size=1, most=MOST_AGENTS),
        Chore("seat", seats.remove_ended),
        Chore("fleet_observation", monitoring.remove_observations),
        Chore("fleet_alert", monitoring.remove_alerts),
    )
    return Housekeeping(server.database, server.cipher.audit_key(), chores)


def wire_exchange(server: Server, random: Callable[[int], bytes] = os.urandom) -> Exchange:
    """What answers the agents of an open server."""
    replies = KeptReplies(server.cipher)
    stores = Stores(
        server.agents,
        server.lost_records,
        server.certificates,
        server.secrets,
        server.licenses,
        server.deliveries,
        UsageTotals(),
        replies,
        server.clones,
        server.leases,
        Directives(server.keys),
        Devices(),
        Configurations(server.keys),
    )
    checkins = CheckIns(Prepared(server.database), server.keys, replies, random)
    return Exchange(server.database, server.keys, stores, random, checkins)


def wire_enrollment(
    server: Server,
    policy: Policy,
    random: Callable[[int], bytes] = os.urandom,
    steady: Callable[[], float] = time.monotonic,
) -> Enrollment:
    """What provisions devices at an open server."""
    return Enrollment(server.database, server.keys, server.enrollment_tokens, server.activation, policy, random, steady)


def create_server(
    directory: Path,
    plan: Plan,
    now: int,
    url: str | None = None,
    master_at: str | None = None,
    operator: dict[str, str] | None = None,
) -> bool:
    """Creates a server. Returns False if an earlier run had created it, and this one only put its root key in place.

    The registry's commit is what makes a server. Before it, a run that fails removes what it has made, and one that was killed
    leaves nothing that another run would not replace. After it, only the root key's file has to get its name.

    Args:
        directory: for its files; created if missing.
        plan: what it is created with.
        now: seconds since 1970 UTC.
        url: of its database; None for a SQLite file in the directory.
        master_at: where the master key is or will be, as in `Place`; None for a file in the directory.
        operator: who creates it, as in `Database`.

    Raises:
        RegistryError: there is a server already, or a part of it cannot be created.
    """
    place = new_place(directory, url, masterkey.place_of(master_at or str(directory / MASTER_KEY)))
    root_key = NewRootKey(plan.root_key, plan.passphrase, directory)
    database = Database(place.url)
    database.operator = operator or {}
    try:
        with ExitStack() as made:
            if not directory.exists():
                directory.mkdir(mode=0o700, parents=True)
                made.callback(_remove_directory, directory)
            with locked(directory):
                if (directory / SETTINGS).exists() and _is_created(directory, root_key):
                    root_key.put()
                    made.pop_all()
                    return False
                root_key.check()
                _create(place, database, plan, root_key, now, made)
                made.pop_all()
                root_key.put()
                return True
    finally:
        database.close()


def restore_server(
    directory: Path,
    path: Path,
    now: int,
    url: str | None = None,
    master_at: str | None = None,
    operator: dict[str, str] | None = None,
    *,
    check: bool = False,
) -> Summary:
    """Fills the empty registry of a server from a backup.

    Everything is checked before anything is written; the registry's commit is the last step but one, the settings come first.
    A run that was killed can be repeated.

    Args:
        directory: of the server; created if missing.
        path: the backup.
        now: seconds since 1970 UTC.
        url: of the database; None for the one of the settings, or else a SQLite file in the directory.
        master_at: where the master key is; None for the place of the settings, or else a file in the directory.
        operator: who restores it, as in `Database`.
        check: only examine the backup, and whether the master key opens it.

    Raises:
        RegistryError: the backup cannot be used, the master key is not the one that it needs, or there is a registry already.
    """
    known = place_of(directory) if (directory / SETTINGS).exists() else None
    place = known or new_place(directory, url, str((directory / MASTER_KEY).absolute()))
    if known is not None and url is not None:
        place = replace(place, url=url, stored_url=None)
    if master_at is not None:
        place = replace(place, master=masterkey.place_of(master_at))
    summary = backup.examine(path)
    master = masterkey.in_use(place.master)
    backup.check_mac(path, Cipher(datakey.opened_from(datakey.parsed(summary.data_key), master)).backup_key())
    if check:
        return summary
    database = Database(place.url)
    database.operator = operator or {}
    try:
        if not database.is_empty() and _has_server(database):
            if not _is_restored(database, summary):
                raise RegistryError(
                    f"{database.name} has a registry, which is not overwritten: move it away first, or name another database"
                )
            database.migrate()  # a run was killed between its commit and this
            return summary
        if not database.is_empty() and database.revision() != summary.revision:
            raise RegistryError(
                f"{database.name} has tables of revision {database.revision()}, the backup {summary.revision}: "
                "remove them, or name an empty database"
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(directory):
            database.migrate(summary.revision)
            if known != place:
                write_atomic(directory / SETTINGS, settings_of(place))
            fields = {"made_at": summary.made_at, "sha256": summary.digest}

            def also(session: Session) -> None:
                renumber_revocations(session, now)
                changes.renumber(session, now)
                audit.record(session, "admin", "registry.restored", "ok", now, **fields)

            backup.fill(database, path, summary, also)
            database.migrate()
    finally:
        database.close()
    return summary


def _is_restored(database: Database, summary: Summary) -> bool:
    with database.read() as session:
        last = audit.tail(session, 1)
    return bool(last) and last[0].event == "registry.restored" and last[0].fields.get("sha256") == summary.digest


def _is_created(directory: Path, root_key: NewRootKey) -> bool:
    """Whether an interrupted run has created the server of this directory, except for the file of its root key.

    Raises:
        RegistryError: the server is complete, or it cannot be found out what is there.
    """
    known = Database(place_of(directory).url)
    try:
        if known.is_empty():
            raise RegistryError(
                f"{directory / SETTINGS} exists, but the database that it names is empty: restore a backup, "
                f"or, for a new server, remove {directory / SETTINGS} and run this command again"
            )
        if not _has_server(known):
            return False
        with known.read() as session:
            pin = key_rows.root_pins(session)[0]
        if root_key.left_by(pin):
            return True
        raise RegistryError(f"{directory / SETTINGS} already exists and is not overwritten: the directory has a server")
    except SQLAlchemyError:
        raise RegistryError(
            f"{directory / SETTINGS} already exists and is not overwritten, and its database does not answer"
        ) from None
    finally:
        known.close()


def _has_server(database: Database) -> bool:
    with database.read() as session:
        return session.get(Setting, datakey.NAME) is not None


def _create(place: Place, database: Database, plan: Plan, root_key: NewRootKey, now: int, made: ExitStack) -> None:
    """Makes master key, registry and settings; `made` undoes each, unless the registry may have committed."""
    if not database.is_empty() and _has_server(database):
        raise RegistryError(
            f"{database.name} already has a server, which is not overwritten; name another directory or database"
        )
    undo = made.enter_context(ExitStack())
    sqlite = Path(database.url.database) if database.is_sqlite and database.url.database else None
    if sqlite is not None and not sqlite.exists():
        for name in (sqlite, *(sqlite.with_name(sqlite.name + end) for end in ("-wal", "-shm"))):
            undo.callback(name.unlink, missing_ok=True)
        undo.callback(database.close)
    master = masterkey.from_credential()
    if master is None:
        if not masterkey.exists(place.master):
            masterkey.make(place.master)
            undo.callback(masterkey.remove, place.master)
        master = masterkey.of(place.master)
    database.migrate()
    settings = place.directory / SETTINGS
    undo.callback(settings.unlink, missing_ok=True)
    undo.callback(root_key.discard)
    try:
        with database.write() as session:
            root_key.write(_fill(session, database, master, plan, now))
            write_atomic(settings, settings_of(place))
    except BaseException:
        if not _certainly_without_server(database):
            undo.pop_all()
        raise
    undo.pop_all()


def _certainly_without_server(database: Database) -> bool:
    """False also if the database does not tell: a commit may have reached it although its answer did not come."""
    try:
        return not _has_server(database)
    except SQLAlchemyError:
        return False


def _remove_directory(directory: Path) -> None:
    with suppress(OSError):
        (directory / ROOT_KEY).parent.rmdir()
    with suppress(OSError):
        directory.rmdir()


def _fill(session: Session, database: Database, master: MasterKey, plan: Plan, now: int) -> ec.EllipticCurvePrivateKey:
    """Fills the registry; returns the root's private key."""
    data_key = os.urandom(KEY_BYTES)
    cipher = Cipher(data_key)
    datakey.create(session, data_key, master, now)
    session.add(Setting(name="issuer", value=plan.issuer))
    session.add(Setting(name="oldest_program", value=OLDEST_PROGRAM))
    for name, value in (("interval", plan.interval), ("grace", plan.grace)):
        if value is not None:
            session.add(Setting(name=name, value=str(value)))
    session.add_all(Counter(name=name, value=0) for name in _COUNTERS)
    session.flush()
    root_key = KeyLifecycle(database, cipher, Keyring(database, cipher)).create(session, plan.issuer, plan.names, now)
    audit.record(session, "admin", "server.founded", "ok", now, issuer=plan.issuer)
    return root_key
