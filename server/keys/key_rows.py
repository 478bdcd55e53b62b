"""Reads the server's keys from the registry, and opens their private halves.

A kind has one or more keys, in the states of `key_states`: the newest active one is used, retired ones are still accepted, next
ones wait, and ended ones are not accepted.
"""

import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc.jwk import ECKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.keyset import pin_of_jwk
from server.base.errors import RegistryError
from server.registry.cipher import Cipher
from server.registry.models.core import ServerKey, Setting

from .key_states import KeyState
from .pki import pem_of


def live(session: Session, kind: str) -> list[ServerKey]:
    """The keys of a kind that have not ended: the one in use, then the one that waits, then the others, the newest first."""
    query = select(ServerKey).where(ServerKey.kind == kind, ServerKey.state != KeyState.ENDED)
    rows = session.scalars(query.order_by(ServerKey.created_at.desc(), ServerKey.state))
    order = (KeyState.ACTIVE, KeyState.NEXT, KeyState.RETIRED)
    return sorted(rows, key=lambda row: order.index(KeyState(row.state)))


def newest(session: Session, kind: str) -> ServerKey:
    """The key of a kind that is in use.

    Raises:
        RegistryError: the registry has none.
    """
    query = select(ServerKey).where(ServerKey.kind == kind, ServerKey.state == KeyState.ACTIVE)
    row = session.scalars(query.order_by(ServerKey.created_at.desc()).limit(1)).first()
    if row is None:
        raise RegistryError(f"the registry has no {kind} key; run 'license-server init'")
    return row


def issuer_name(session: Session) -> str:
    """What licenses carry as `iss`.

    Raises:
        RegistryError: the registry has no name.
    """
    row = session.get(Setting, "issuer")
    if row is None:
        raise RegistryError("the registry has no issuer name; run 'license-server init'")
    return row.value


def certificate_of(row: ServerKey) -> x509.Certificate:
    """The certificate of a key that has one."""
    return x509.load_pem_x509_certificate((row.certificate or "").encode())


def root_pins(session: Session) -> list[str]:
    """Pins of the roots, the newest first."""
    return [pin_of_row(row) for row in live(session, "root")]


def pin_of_row(row: ServerKey) -> str:
    """The pin of a key: the SHA-256 of its public half."""
    return pin_of_jwk(json.loads(row.public))


def private_jwk(cipher: Cipher, row: ServerKey) -> dict[str, str]:
    """The private JWK of a key.

    Raises:
        RegistryError: the registry does not hold it (a root's), or cannot open it.
    """
    if row.sealed is None:
        raise RegistryError(f"the private half of the {row.kind} key {row.kid} is not in the registry")
    jwk: dict[str, str] = json.loads(cipher.open("server_key", row.kid, "sealed", row.sealed))
    return jwk


def private_key(cipher: Cipher, row: ServerKey) -> ec.EllipticCurvePrivateKey:
    """The private key of a key with a certificate. Raises as `private_jwk`."""
    key: Any = ECKey.import_key({**private_jwk(cipher, row)}).private_key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RegistryError(f"the {row.kind} key {row.kid} has no private half")
    return key


def issuing_ca(cipher: Cipher, session: Session) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA that issues certificates, with its private key."""
    row = newest(session, "issuing-ca")
    return certificate_of(row), private_key(cipher, row)


def operator_ca(cipher: Cipher, session: Session) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA that issues operators' certificates, with its private key."""
    row = newest(session, "operator-ca")
    return certificate_of(row), private_key(cipher, row)


def operator_cas(session: Session) -> str:
    """The CAs that operators' certificates are verified against, in PEM; empty if there are none."""
    return "".join(row.certificate or "" for row in live(session, "operator-ca"))


def client_cas(session: Session) -> str:
    """The issuing CAs and roots that client certificates are verified against, in PEM."""
    return "".join(row.certificate or "" for kind in ("issuing-ca", "root") for row in live(session, kind))


def chain_above(session: Session, row: ServerKey) -> list[str]:
    """The certificates above one, in PEM, up to its root."""
    found: list[str] = []
    certificate = certificate_of(row)
    authorities = session.scalars(select(ServerKey).where(ServerKey.kind.in_(("issuing-ca", "root")))).all()
    by_key_id = {}
    for authority in authorities:
        loaded = certificate_of(authority)
        by_key_id[loaded.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest] = loaded
    while certificate.issuer != certificate.subject:
        wanted = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        above = by_key_id.get(wanted or b"")
        if above is None:
            break
        certificate = above
        found.append(pem_of(certificate))
    return found
