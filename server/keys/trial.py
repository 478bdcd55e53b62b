"""Tries a key before anything depends on it (OP-05)."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.keyset import KeySet, PublicJwk, pin_of, pin_of_jwk, verify_key_set
from server.base.errors import RegistryError
from server.registry.cipher import Cipher
from server.registry.models.core import KeySetRow, ServerKey

from . import key_rows
from .jose import public_jwk
from .pki import spki_of

_ES256, _ECDH = ["ES256"], ["ECDH-ES", "A256GCM"]
_PROBE = b"license-server"


def try_new(kind: str, jwk: dict[str, str], certificate: x509.Certificate | None) -> None:
    """Uses a new key once.

    Args:
        kind: of the key.
        jwk: private.
        certificate: for the key, if its kind has one.

    Raises:
        RegistryError: it does not work, or its certificate is for another key.
    """
    try:
        works = _works(kind, jwk, jwk)
    except (JoseError, ValueError):
        works = False
    if not works or (certificate is not None and pin_of(spki_of(certificate)) != pin_of_jwk(public_jwk(jwk))):
        raise RegistryError(f"the new {kind} key does not work; nothing was changed")


def check(session: Session, cipher: Cipher, row: ServerKey) -> None:
    """Uses a key of the registry once, as the server will, and verifies that as agents will: with the newest key set.

    Raises:
        RegistryError: it cannot be opened, does not work, or the key set does not have it.
    """
    text = session.scalar(select(KeySetRow.text).order_by(KeySetRow.number.desc()).limit(1))
    if text is None:
        raise RegistryError("the registry has no key set; run 'license-server init'")
    content = verify_key_set(text, tuple(key_rows.root_pins(session))).content
    private = key_rows.private_jwk(cipher, row)
    try:
        works = _listed(content, session, row) and _works(row.kind, private, _public_in(content, row) or private)
    except (JoseError, ValueError, KeyError, TypeError):
        works = False
    if not works:
        raise RegistryError(f"the {row.kind} key {row.kid} does not work with the newest key set; nothing was changed")


def lasts(row: ServerKey, now: int) -> bool:
    """Whether a key's certificate is valid now; True for a kind without one."""
    if row.certificate is None:
        return True
    certificate = key_rows.certificate_of(row)
    return certificate.not_valid_before_utc.timestamp() <= now < certificate.not_valid_after_utc.timestamp()


def _listed(content: KeySet, session: Session, row: ServerKey) -> bool:
    """Whether agents can verify what the key signs."""
    if row.kind == "issuing-ca":
        return (row.certificate or "").strip() in {text.strip() for text in content.certificates}
    if row.kind == "operator-ca":
        return True  # agents never see it
    if row.kind == "tls":
        return len(key_rows.chain_above(session, row)) >= 2
    return _public_in(content, row) is not None


def _public_in(content: KeySet, row: ServerKey) -> dict[str, str] | None:
    lists: dict[str, tuple[PublicJwk, ...]] = {
        "license": content.license_keys,
        "rotation": content.rotation_keys,
        "enrollment": content.enrollment_keys,
    }
    for key in lists.get(row.kind, ()):
        if key.kid == row.kid:
            return {"kty": key.kty, "crv": key.crv, "x": key.x, "y": key.y}
    return None


def _works(kind: str, private: dict[str, str], public: dict[str, str]) -> bool:
    key, other = ECKey.import_key({**private}), ECKey.import_key({**public})
    if not isinstance(key.private_key, ec.EllipticCurvePrivateKey):
        return False
    if kind == "enrollment":
        sealed = jwe.encrypt_compact({"alg": "ECDH-ES", "enc": "A256GCM"}, _PROBE, other, algorithms=_ECDH)
        return jwe.decrypt_compact(sealed, key, algorithms=_ECDH).plaintext == _PROBE
    signed = jws.serialize_compact({"alg": "ES256"}, _PROBE, key, algorithms=_ES256)
    return jws.deserialize_compact(signed, other, algorithms=_ES256).payload == _PROBE
