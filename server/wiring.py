"""The whole server in one directory: made anew, or opened. Wires the parts; acts are theirs.

DIRECTORY/settings.toml    where the database and the master key are
DIRECTORY/server.db        the registry, where it is SQLite
DIRECTORY/master.key       the master key, where it is a file
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from .agents.enrollment_tokens import EnrollmentTokens
from .agents.registry import Agents
from .base import privatefile
from .base.errors import RegistryError
from .base.settings import DATABASE, MASTER_KEY, SETTINGS, Place, place_of, settings_of
from .keys import datakey, masterkey
from .keys.keyring import LIFETIMES, SIGNING, Keys, certificate_key
from .keys.masterkey import MasterKey
from .keys.pki import make_issuing_ca, make_root, make_server_certificate
from .keys.rootkey import write_root_key
from .licensing.licenses import REVOCATIONS, Licenses
from .licensing.secrets import Secrets
from .registry.audit import COUNTER as AUDIT_COUNTER
from .registry.audit import Audit
from .registry.cipher import KEY_BYTES, Cipher
from .registry.database import Database, sqlite_url
from .registry.models import Counter, Setting

_COUNTERS = ("serial", "key_set", "keys", REVOCATIONS, AUDIT_COUNTER)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new server is to be.

    Attributes:
        issuer: what licenses carry as `iss`.
        names: DNS names and IP addresses of its TLS certificate.
        root_key: where the root's private key goes.
        passphrase: of that file; None leaves it unencrypted.
        interval: seconds between rotations; None for the default.
        grace: seconds after that; None for the default.
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
    audit: Audit
    keys: Keys
    agents: Agents
    enrollment_tokens: EnrollmentTokens
    secrets: Secrets
    licenses: Licenses

    def close(self) -> None:
        """Closes the database."""
        self.database.close()


def open_server(directory: Path, random: Callable[[int], bytes] = os.urandom) -> Server:
    """Opens the server in a directory.

    Raises:
        RegistryError: it cannot be used; the text says what to do.
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
    """The parts of a server over its open database.

    Raises:
        RegistryError: the master key is not the one of this registry.
    """
    with database.reading() as session:
        cipher = Cipher(datakey.opened(session, master))
    audit = Audit(database)
    keys = Keys(database, cipher, audit)
    secrets = Secrets(database, keys, cipher, audit, random)
    return Server(
        place,
        database,
        master,
        cipher,
        audit,
        keys,
        Agents(database, keys, audit),
        EnrollmentTokens(database, cipher, audit),
        secrets,
        Licenses(database, keys, secrets, audit),
    )


def create_server(directory: Path, plan: Plan, now: int, url: str | None = None, master_at: str | None = None) -> None:
    """Makes a new server.

    Args:
        directory: its own.
        plan: what it is to be.
        now: when.
        url: of its database; None for a SQLite file in the directory.
        master_at: where the master key is to be, as in `Place`; None for a file in the directory.

    Raises:
        RegistryError: there is one already, or a part of it cannot be made.
    """
    settings = directory / SETTINGS
    if settings.exists():
        raise RegistryError(f"{settings} exists already; it is not overwritten")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / DATABASE
    if url is None and path.exists():
        raise RegistryError(f"{path} exists already; it is not overwritten")
    place = Place(directory, url or sqlite_url(path.absolute()), masterkey.place_of(master_at or str(directory / MASTER_KEY)))
    master = masterkey.from_credential()
    if master is None:
        if not masterkey.exists(place.master):
            masterkey.make(place.master)
        master = masterkey.of(place.master)
    database = Database(place.url)
    try:
        database.migrate()
        _fill(database, master, plan, now)
        privatefile.create(settings, settings_of(place))
    finally:
        database.close()


def _fill(database: Database, master: MasterKey, plan: Plan, now: int) -> None:
    data_key = os.urandom(KEY_BYTES)
    audit = Audit(database)
    keys = Keys(database, Cipher(data_key), audit)
    with database.transaction() as session:
        datakey.found(session, data_key, master, now)
        session.add(Setting(name="issuer", value=plan.issuer))
        for name, value in (("interval", plan.interval), ("grace", plan.grace)):
            if value is not None:
                session.add(Setting(name=name, value=str(value)))
        session.add_all(Counter(name=name, value=0) for name in _COUNTERS)
        session.flush()
        _make_keys(session, keys, plan, now)
        audit.record("admin", "server.founded", "ok", now, session=session, issuer=plan.issuer)


def _make_keys(session: Session, keys: Keys, plan: Plan, now: int) -> None:
    root_jwk, root_key = certificate_key("root")
    root = make_root(root_key, plan.issuer, now, now + LIFETIMES["root"])
    keys.add(session, "root", root_jwk, now, certificate=root, kept=False)
    ca_jwk, ca_key = certificate_key("issuing-ca")
    ca = make_issuing_ca(ca_key.public_key(), root, root_key, plan.issuer, now, now + LIFETIMES["issuing-ca"])
    keys.add(session, "issuing-ca", ca_jwk, now, certificate=ca)
    tls_jwk, tls_key = certificate_key("tls")
    tls = make_server_certificate(tls_key.public_key(), ca, ca_key, plan.names, now, now + LIFETIMES["tls"])
    keys.add(session, "tls", tls_jwk, now, certificate=tls)
    for kind in SIGNING:
        keys.add(session, kind, certificate_key(kind)[0], now)
    keys.sign_key_set(session, root_key, now)
    write_root_key(plan.root_key, root_key, plan.passphrase)
