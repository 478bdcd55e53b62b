"""Makes and opens the online keys of the update repository. They are in the registry, sealed as the server's other keys are.

A key signs as long as a root names it: which keys the registry holds beyond that is no matter. So a new key is made first, then
people sign a root that names it, and when that root is published, the key is in use.
"""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry import audit
from server.registry.cipher import Cipher
from server.registry.models.updates import UpdateKey

from .words import ONLINE

_TABLE, _COLUMN = "update_key", "sealed"


def make(session: Session, cipher: Cipher, role: str, now: int) -> SSlibKey:
    """Makes a key for an online role, and returns its public half.

    Args:
        session: of a writing transaction.
        cipher: seals the private half.
        role: snapshot or timestamp.
        now: seconds since 1970 UTC.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    public = SSlibKey.from_crypto(private.public_key())
    data = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    sealed = cipher.seal(_TABLE, public.keyid, _COLUMN, data)
    session.add(UpdateKey(keyid=public.keyid, role=role, sealed=sealed, created_at=now))
    audit.record(session, audit.ADMIN, "ota.key_made", "ok", now, role=role, keyid=public.keyid)
    return public


def newest(session: Session, cipher: Cipher, role: str, now: int) -> SSlibKey:
    """The newest key of an online role, which is made if there is none. Arguments as in `make`."""
    query = select(UpdateKey).where(UpdateKey.role == role).order_by(UpdateKey.created_at.desc(), UpdateKey.keyid)
    row = session.scalars(query.limit(1)).first()
    return make(session, cipher, role, now) if row is None else _opened(cipher, row).public_key


def listed(session: Session) -> list[tuple[str, str, int]]:
    """Role, key id and time of each key, the newest first."""
    query = select(UpdateKey).order_by(UpdateKey.role, UpdateKey.created_at.desc(), UpdateKey.keyid)
    return [(row.role, row.keyid, row.created_at) for row in session.scalars(query)]


def signers(session: Session, cipher: Cipher) -> dict[str, list[CryptoSigner]]:
    """Every online key, by role.

    Raises:
        RegistryError: one cannot be opened.
    """
    found: dict[str, list[CryptoSigner]] = {role: [] for role in ONLINE}
    for row in session.scalars(select(UpdateKey).order_by(UpdateKey.created_at, UpdateKey.keyid)):
        found[row.role].append(_opened(cipher, row))
    return found


def _opened(cipher: Cipher, row: UpdateKey) -> CryptoSigner:
    key = load_der_private_key(cipher.open(_TABLE, row.keyid, _COLUMN, row.sealed), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RegistryError(f"the {row.role} key {row.keyid} of the update repository has another kind")
    return CryptoSigner(key)
