"""Creates or opens the server in a directory, and wires its components. The only place that knows all of them."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from .agents.activation import Activation
from .agents.certificates import ClientCertificates
from .agents.enrollment_tokens import EnrollmentTokens
from .agents.lost_records import LostRecords
from .agents.registry import Agents
from .base import privatefile
from .base.errors import RegistryError
from .base.settings import DATABASE, MASTER_KEY, SETTINGS, Place, place_of, settings_of
from .enrollment.service import Enrollment, Policy
from .exchange.kept_replies import KeptReplies
from .exchange.service import Exchange, Stores
from .keys import datakey, masterkey
from .keys.keyring import COUNTER as KEYS_COUNTER
from .keys.keyring import Keyring
from .keys.lifecycle import KeyLifecycle
from .keys.masterkey import MasterKey
from .keys.rootkey import write_root_key
from .licensing.licenses import REVOCATIONS, Licenses
from .licensing.secrets import Secrets
from .registry import audit
from .registry.cipher import KEY_BYTES, Cipher
from .registry.database import Database, sqlite_url
from .registry.models import Counter, Setting

_COUNTERS = ("serial", "key_set", KEYS_COUNTER, REVOCATIONS, audit.COUNTER)


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
    keys: Keyring
    key_lifecycle: KeyLifecycle
    agents: Agents
    lost_records: LostRecords
    certificates: ClientCertificates
    activation: Activation
    enrollment_tokens: EnrollmentTokens
    secrets: Secrets
    licenses: Licenses

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
        return wire(place, database, masterkey.in_use(place.master), random)
    except BaseException:
        database.close()
        raise


def wire(place: Place, database: Database, master: MasterKey, random: Callable[[int], bytes]) -> Server:
    """Wires the components of a server over its open database.

    Raises:
        RegistryError: the master key is not the one of this registry.
    """
    with database.read() as session:
        cipher = Cipher(datakey.opened(session, master))
    keys = Keyring(database, cipher)
    certificates = ClientCertificates(keys)
    secrets = Secrets(keys, cipher, random)
    return Server(
        place=place,
        database=database,
        master=master,
        cipher=cipher,
        keys=keys,
        key_lifecycle=KeyLifecycle(database, cipher, keys),
        agents=Agents(),
        lost_records=LostRecords(),
        certificates=certificates,
        activation=Activation(certificates),
        enrollment_tokens=EnrollmentTokens(cipher),
        secrets=secrets,
        licenses=Licenses(keys, secrets),
    )


def wire_exchange(server: Server, random: Callable[[int], bytes] = os.urandom) -> Exchange:
    """What answers the agents of an open server."""
    stores = Stores(server.agents, server.lost_records, server.certificates, server.secrets, server.licenses, KeptReplies())
    return Exchange(server.database, server.keys, stores, random)


def wire_enrollment(
    server: Server,
    policy: Policy,
    random: Callable[[int], bytes] = os.urandom,
    steady: Callable[[], float] = time.monotonic,
) -> Enrollment:
    """What provisions devices at an open server."""
    return Enrollment(server.database, server.keys, server.enrollment_tokens, server.activation, policy, random, steady)


def create_server(directory: Path, plan: Plan, now: int, url: str | None = None, master_at: str | None = None) -> None:
    """Creates a server.

    Args:
        directory: for its files; created if missing.
        plan: what it is created with.
        now: seconds since 1970 UTC.
        url: of its database; None for a SQLite file in the directory.
        master_at: where the master key is or will be, as in `Place`; None for a file in the directory.

    Raises:
        RegistryError: there is a server already, or a part of it cannot be created.
    """
    settings = directory / SETTINGS
    if settings.exists():
        raise RegistryError(f"{settings} already exists and is not overwritten")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / DATABASE
    if url is None and path.exists():
        raise RegistryError(f"{path} already exists and is not overwritten")
    place = Place(directory, url or sqlite_url(path.absolute()), masterkey.place_of(master_at or str(directory / MASTER_KEY)))
    master = masterkey.from_credential()
    if master is None:
        if not masterkey.exists(place.master):
            masterkey.make(place.master)
        master = masterkey.of(place.master)
    database = Database(place.url)
    try:
        database.migrate()
        with database.write() as session:
            _fill(session, database, master, plan, now)
        privatefile.create(settings, settings_of(place))
    finally:
        database.close()


def _fill(session: Session, database: Database, master: MasterKey, plan: Plan, now: int) -> None:
    data_key = os.urandom(KEY_BYTES)
    cipher = Cipher(data_key)
    datakey.create(session, data_key, master, now)
    session.add(Setting(name="issuer", value=plan.issuer))
    for name, value in (("interval", plan.interval), ("grace", plan.grace)):
        if value is not None:
            session.add(Setting(name=name, value=str(value)))
    session.add_all(Counter(name=name, value=0) for name in _COUNTERS)
    session.flush()
    root_key = KeyLifecycle(database, cipher, Keyring(database, cipher)).create(session, plan.issuer, plan.names, now)
    write_root_key(plan.root_key, root_key, plan.passphrase)
    audit.record(session, "admin", "server.founded", "ok", now, issuer=plan.issuer)
