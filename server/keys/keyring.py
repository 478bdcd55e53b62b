"""The server's keys and certificates: kept sealed, rotated with an overlap, and used.

Old license, rotation and enrollment keys stay in the key set until their end, so that what they made goes on holding. The
root's private key is never here: what it must sign is signed while the administrator lends it.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.exchange import REPLY_TYPE, RefusalCode, Reply
from contracts.keyset import KEY_SET_TYPE, KeySet, PublicJwk, pin_of, pin_of_jwk, verify_key_set
from contracts.trust import encode_trust
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.registry.audit import Audit
from server.registry.cipher import Cipher
from server.registry.database import Database, next_number, present_number
from server.registry.models import KeySetRow, ServerKey, Setting

from .jose import new_signing_key, public_jwk
from .pki import make_issuing_ca, make_root, make_server_certificate, pem_of, spki_of

DAY = 86_400
LIFETIMES = {
    "root": 3650 * DAY,
    "issuing-ca": 1095 * DAY,
    "tls": 398 * DAY,
    "license": 180 * DAY,
    "rotation": 180 * DAY,
    "enrollment": 365 * DAY,
}
"""How long new keys are used, in seconds. License and rotation keys: at least every six months (OT-10)."""
OVERLAP_S = 90 * DAY
"""How long an old key stays in the key set at the least."""
WARN_S = 30 * DAY
LOOK_AGAIN_S = 1.0
KEY_SET_LIFETIME_S = 365 * DAY
SIGNING = ("license", "rotation", "enrollment")
_ES256, _ECDH = ["ES256"], ["ECDH-ES", "A256GCM"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as administrators see it. Times are seconds since 1970 UTC."""

    kind: str
    kid: str
    state: str
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The keys in use, opened: valid as long as the counter `keys` stands where it stood."""

    number: int
    issuer: str
    license: dict[str, str]
    rotation: dict[str, str]
    rotation_key: Any
    enrollment: tuple[Any, ...]
    key_set: str
    key_set_number: int
    by_root: dict[str, str]


def certificate_key(kind: str) -> tuple[dict[str, str], ec.EllipticCurvePrivateKey]:
    """A fresh P-256 key for a certificate, as a JWK and as a key."""
    jwk = new_signing_key()
    key = ECKey.import_key({**jwk}).private_key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RuntimeError(f"no key for {kind} was made")
    return jwk, key


class Keys:
    """The server's keys.

    Args:
        database: of the registry.
        cipher: opens them.
        audit: records what is done with them.
        monotonic: seconds; what another process has changed is looked for once a second.
    """

    def __init__(
        self, database: Database, cipher: Cipher, audit: Audit, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._audit = audit
        self._monotonic = monotonic
        self._looked = 0.0
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()

    # Use

    @property
    def issuer(self) -> str:
        """What licenses carry as `iss`."""
        return self._now().issuer

    def license_key(self) -> dict[str, str]:
        """The private JWK that signs licenses."""
        return self._now().license

    def rotation_key(self) -> dict[str, str]:
        """The private JWK that signs replies and deliveries."""
        return self._now().rotation

    def trust(self) -> bytes:
        """The trust file for agents that are enrolled by hand."""
        content = self._content()
        lists = [[msgspec.to_builtins(key) for key in keys] for keys in (content.license_keys, content.rotation_keys)]
        return encode_trust(content.issuer, lists[0], lists[1])

    def license_public_keys(self) -> dict[str, dict[str, str]]:
        """The public JWKs that verify licenses, by their ids."""
        return {key.kid: msgspec.to_builtins(key) for key in self._content().license_keys}

    def key_set(self) -> str:
        """The newest key set, signed by the root."""
        return self._now().key_set

    def key_set_of(self, root: str) -> str | None:
        """The newest key set that the root with this pin has signed, for an agent that knows no later root; None if none."""
        return self._now().by_root.get(root)

    def key_set_number(self) -> int:
        """Its number."""
        return self._now().key_set_number

    def _content(self) -> KeySet:
        return verify_key_set(self.key_set(), self.root_pins()).content

    def sign_reply(self, reply: Reply) -> str:
        """The reply as a JWS (ES256) by the rotation key."""
        loaded = self._now()
        header = {"alg": "ES256", "typ": REPLY_TYPE, "kid": public_jwk(loaded.rotation)["kid"]}
        text: str = jws.serialize_compact(header, msgspec.json.encode(reply), loaded.rotation_key, algorithms=_ES256)
        return text

    def open_claim(self, text: str) -> bytes:
        """The content of a claim that was encrypted to one of the enrollment keys.

        Raises:
            RequestRefused: it does not open.
        """
        for key in self._now().enrollment:
            try:
                opened = jwe.decrypt_compact(text, key, algorithms=_ECDH)
            except (JoseError, ValueError, TypeError, KeyError):
                continue
            content: bytes | None = opened.plaintext
            if content is not None:
                return content
        raise RequestRefused(RefusalCode.CLAIM_REFUSED, "the claim does not open with the server's enrollment keys")

    def challenge_key(self) -> bytes:
        """For the HMAC of challenges, 32 bytes."""
        return self._cipher.challenge_key()

    def tls_material(self) -> tuple[str, bytes]:
        """Certificate chain (PEM, the root at its end) and private key (PEM, PKCS #8) of the TLS server."""
        with self._database.reading() as session:
            row = self._newest(session, "tls")
            key = self._private_key(row)
            chain = [row.certificate or "", *self._above(session, row)]
        return "".join(chain), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def client_ca_pem(self) -> str:
        """The certificates that client certificates are checked against: issuing CAs and roots."""
        with self._database.reading() as session:
            rows = [row for kind in ("issuing-ca", "root") for row in self._live(session, kind)]
        return "".join(row.certificate or "" for row in rows)

    def issuing_ca(self, session: Session) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The CA that issues certificates, with its key."""
        row = self._newest(session, "issuing-ca")
        return x509.load_pem_x509_certificate((row.certificate or "").encode()), self._private_key(row)

    def root_pins(self) -> tuple[str, ...]:
        """Pins of the roots, the newest first."""
        with self._database.reading() as session:
            return tuple(self._pins(session))

    def listed(self) -> list[KeyRow]:
        """All keys, by kind, the newest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(ServerKey).order_by(ServerKey.kind, ServerKey.created_at.desc())).all()
        return [KeyRow(row.kind, row.kid, row.state, row.created_at, row.expires_at) for row in rows]

    def expiring(self, now: int, within_days: int = 30) -> list[tuple[str, int]]:
        """Kind and end of the keys in use that end soon, or have ended."""
        ends = [(row.kind, row.expires_at) for row in self.listed() if row.state == "active"]
        return [(kind, end) for kind, end in ends if end - now <= within_days * DAY]

    # Rows

    def _now(self) -> _Loaded:
        known = self._loaded
        if known is not None and self._monotonic() - self._looked < LOOK_AGAIN_S:
            return known
        with self._database.reading() as session:
            number = present_number(session, "keys")
            loaded = self._loaded
            if loaded is None or loaded.number != number:
                loaded = self._load(session, number)
        with self._lock:
            self._loaded, self._looked = loaded, self._monotonic()
        return loaded

    def _load(self, session: Session, number: int) -> _Loaded:
        issuer = session.get(Setting, "issuer")
        newest = session.scalars(select(KeySetRow).order_by(KeySetRow.number.desc()).limit(1)).first()
        if issuer is None or newest is None:
            raise RegistryError("the server has no keys: run 'license-server init'")
        rotation = self._jwk(self._newest(session, "rotation"))
        enrollment = tuple(ECKey.import_key({**self._jwk(row)}) for row in self._live(session, "enrollment"))
        return _Loaded(
            number,
            issuer.value,
            self._jwk(self._newest(session, "license")),
            rotation,
            ECKey.import_key({**rotation}),
            enrollment,
            newest.text,
            newest.number,
            self._by_root(session),
        )

    def _by_root(self, session: Session) -> dict[str, str]:
        sets = session.scalars(select(KeySetRow).order_by(KeySetRow.number))
        return {pin_of_jwk(jws.extract_compact(row.text.encode()).headers()["jwk"]): row.text for row in sets}

    def _live(self, session: Session, kind: str) -> list[ServerKey]:
        query = select(ServerKey).where(ServerKey.kind == kind, ServerKey.state != "ended")
        return list(session.scalars(query.order_by(ServerKey.created_at.desc(), ServerKey.state)))

    def _newest(self, session: Session, kind: str) -> ServerKey:
        query = select(ServerKey).where(ServerKey.kind == kind, ServerKey.state == "active")
        row = session.scalars(query.order_by(ServerKey.created_at.desc()).limit(1)).first()
        if row is None:
            raise RegistryError(f"the server has no {kind} key: run 'license-server init'")
        return row

    def _jwk(self, row: ServerKey) -> dict[str, str]:
        if row.sealed is None:
            raise RegistryError(f"the {row.kind} key {row.kid} is not kept here")
        jwk: dict[str, str] = json.loads(self._cipher.open("server_key", row.kid, "sealed", row.sealed))
        return jwk

    def _private_key(self, row: ServerKey) -> ec.EllipticCurvePrivateKey:
        key = ECKey.import_key({**self._jwk(row)}).private_key
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise RegistryError(f"the {row.kind} key {row.kid} has no private half")
        return key

    def _above(self, session: Session, row: ServerKey) -> list[str]:
        """The certificates between a certificate and its root, the root last."""
        found: list[str] = []
        certificate = x509.load_pem_x509_certificate((row.certificate or "").encode())
        others = session.scalars(select(ServerKey).where(ServerKey.kind.in_(("issuing-ca", "root")))).all()
        by_subject = {}
        for other in others:
            loaded = x509.load_pem_x509_certificate((other.certificate or "").encode())
            identifier = loaded.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
            by_subject[identifier] = loaded
        while certificate.issuer != certificate.subject:
            wanted = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
            above = by_subject.get(wanted or b"")
            if above is None:
                break
            certificate = above
            found.append(pem_of(certificate))
        return found

    def chain_above_agents(self, session: Session) -> tuple[str, ...]:
        """What an agent sends after its own certificate: the issuing CA."""
        return (self._newest(session, "issuing-ca").certificate or "",)

    def _pins(self, session: Session) -> list[str]:
        return [_pin(row) for row in self._live(session, "root")]

    # Rotation

    def add(
        self,
        session: Session,
        kind: str,
        jwk: dict[str, str],
        now: int,
        *,
        certificate: x509.Certificate | None = None,
        until: int | None = None,
        kept: bool = True,
    ) -> ServerKey:
        """A new key in use; those of its kind before it are retired. It is tried before it is kept.

        Args:
            session: a transaction.
            kind: see `LIFETIMES`.
            jwk: private.
            now: it is used from then on.
            certificate: for it, if it has one.
            until: its end; by its kind if None.
            kept: whether its private half is kept here.
        """
        _try(kind, jwk, certificate)
        public = public_jwk(jwk)
        for row in self._live(session, kind):
            if row.state == "active":
                row.state = "retired"
                row.expires_at = max(row.expires_at, now + OVERLAP_S)
            elif row.expires_at <= now:
                row.state = "ended"
        sealed = self._cipher.seal("server_key", public["kid"], "sealed", json.dumps(jwk).encode()) if kept else None
        row = ServerKey(
            kid=public["kid"],
            kind=kind,
            state="active",
            public=json.dumps(public),
            sealed=sealed,
            certificate=None if certificate is None else pem_of(certificate),
            created_at=now,
            expires_at=now + LIFETIMES[kind] if until is None else until,
        )
        session.add(row)
        next_number(session, "keys")
        return row

    def sign_key_set(self, session: Session, root_key: ec.EllipticCurvePrivateKey, now: int) -> int:
        """Makes and keeps a key set of the keys as they are; returns its number.

        Args:
            session: a transaction.
            root_key: private key of a root that agents trust.
            now: when.
        """
        issuer = session.get(Setting, "issuer")
        if issuer is None:
            raise RegistryError("the server has no name: run 'license-server init'")
        root_jwk = _public_of(root_key)
        pins = self._pins(session)
        if pin_of_jwk(root_jwk) not in pins:
            raise RegistryError("that is not the key of a root of this server: 'license-server keys list' names them")
        authorities = [row.certificate or "" for row in (*self._live(session, "issuing-ca"), *self._live(session, "root"))]
        content = KeySet(
            number=next_number(session, "key_set", now),
            issuer=issuer.value,
            issued_at=now,
            expires=now + KEY_SET_LIFETIME_S,
            certificates=tuple(authorities[:8]),
            roots=tuple(pins[:4]),
            license_keys=tuple(_public(row) for row in self._live(session, "license")),
            rotation_keys=tuple(_public(row) for row in self._live(session, "rotation")),
            enrollment_keys=tuple(_public(row) for row in self._live(session, "enrollment")),
        )
        header = {"alg": "ES256", "typ": KEY_SET_TYPE, "jwk": root_jwk}
        text = jws.serialize_compact(header, msgspec.json.encode(content), ECKey.import_key(root_key), algorithms=_ES256)
        verify_key_set(text, tuple(pins), above=content.number - 1)
        session.add(KeySetRow(number=content.number, text=text, expires_at=content.expires))
        next_number(session, "keys")
        return content.number

    def rotate(self, kind: str, now: int, root_key: ec.EllipticCurvePrivateKey | None, names: tuple[str, ...] = ()) -> str:
        """A new key of a kind; returns its id.

        Args:
            kind: see `LIFETIMES`; a root is rotated by `rotate_root`.
            now: when.
            root_key: of the root; not needed for `tls`.
            names: of the server, for `tls`; those of the present certificate if empty.

        Raises:
            RegistryError: the root's key is missing or another one.
        """
        if kind != "tls" and root_key is None:
            raise RegistryError(f"a new {kind} key must be signed by the root: name its key with --root-key")
        with self._database.transaction() as session:
            kid = self._make(session, kind, now, root_key, names)
            if kind != "tls" and root_key is not None:
                self.sign_key_set(session, root_key, now)
            self._audit.record("admin", "keys.rotated", "ok", now, session=session, kind=kind, kid=kid)
        self._check_use()
        return kid

    def _make(
        self, session: Session, kind: str, now: int, root_key: ec.EllipticCurvePrivateKey | None, names: tuple[str, ...]
    ) -> str:
        jwk, key = certificate_key(kind)
        until = now + LIFETIMES[kind]
        if kind in SIGNING:
            return self.add(session, kind, jwk, now).kid
        if kind == "issuing-ca" and root_key is not None:
            root = self._root_of(session, root_key)
            until = min(until, int(root.not_valid_after_utc.timestamp()))
            issuer = session.get(Setting, "issuer")
            made = make_issuing_ca(key.public_key(), root, root_key, "" if issuer is None else issuer.value, now, until)
            return self.add(session, kind, jwk, now, certificate=made, until=until).kid
        if kind == "tls":
            ca, ca_key = self.issuing_ca(session)
            until = min(until, int(ca.not_valid_after_utc.timestamp()))
            wanted = names or self._present_names(session)
            made = make_server_certificate(key.public_key(), ca, ca_key, wanted, now, until)
            return self.add(session, kind, jwk, now, certificate=made, until=until).kid
        raise RegistryError(f"{kind} is no kind of key: {', '.join(LIFETIMES)}")

    def _present_names(self, session: Session) -> tuple[str, ...]:
        certificate = x509.load_pem_x509_certificate((self._newest(session, "tls").certificate or "").encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return tuple(str(name.value) for name in names)

    def _root_of(self, session: Session, root_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        wanted = pin_of_jwk(_public_of(root_key))
        for row in self._live(session, "root"):
            if _pin(row) == wanted:
                return x509.load_pem_x509_certificate((row.certificate or "").encode())
        raise RegistryError("that is not the key of a root of this server: 'license-server keys list' names them")

    def rotate_root(
        self, now: int, old_key: ec.EllipticCurvePrivateKey, keep: Callable[[ec.EllipticCurvePrivateKey], None]
    ) -> str:
        """A new root: the old one signs a key set that names both. Returns the new pin.

        Args:
            now: when.
            old_key: of the present root.
            keep: puts the new private key where the administrator wants it, before anything is committed.
        """
        with self._database.transaction() as session:
            self._root_of(session, old_key)
            jwk, key = certificate_key("root")
            issuer = session.get(Setting, "issuer")
            until = now + LIFETIMES["root"]
            made = make_root(key, "" if issuer is None else issuer.value, now, until)
            self.add(session, "root", jwk, now, certificate=made, until=until, kept=False)
            self.sign_key_set(session, old_key, now)
            keep(key)
            self._audit.record("admin", "keys.rotated", "ok", now, session=session, kind="root", pin=pin_of(spki_of(made)))
        return pin_of(spki_of(made))

    def end(self, kid: str, now: int, root_key: ec.EllipticCurvePrivateKey) -> None:
        """Takes a retired key out of the key set at once: what it has signed is refused from an agent's next contact on.

        Raises:
            RegistryError: there is no such key, it is still in use, or it is not one of the key set.
        """
        with self._database.transaction() as session:
            row = session.get(ServerKey, kid)
            if row is None or row.kind not in (*SIGNING, "root"):
                raise RegistryError(f"the key set has no key {kid!r}: 'license-server keys list' names them")
            if row.state == "active":
                raise RegistryError(f"the key {kid} is in use: 'license-server keys rotate {row.kind}' makes another one first")
            row.state, row.sealed = "ended", None
            session.flush()
            self.sign_key_set(session, root_key, now)
            self._audit.record("admin", "keys.ended", "ok", now, session=session, kind=row.kind, kid=kid)
        self._check_use()

    def _check_use(self) -> None:
        """OP-05: what was rotated is used once, by those who will use it."""
        self._loaded = None
        self._content()
        self.tls_material()


def _public(row: ServerKey) -> PublicJwk:
    return msgspec.convert(json.loads(row.public), PublicJwk)


def _pin(row: ServerKey) -> str:
    return pin_of_jwk(json.loads(row.public))


def _public_of(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    full: dict[str, Any] = ECKey.import_key(key).as_dict(private=False)
    return {name: str(full[name]) for name in ("kty", "crv", "x", "y")}


def _try(kind: str, jwk: dict[str, str], certificate: x509.Certificate | None) -> None:
    """Uses a new key once before anything depends on it (OP-05)."""
    try:
        works = _works(kind, jwk)
    except (JoseError, ValueError):
        works = False
    if not works or (certificate is not None and pin_of(spki_of(certificate)) != pin_of_jwk(public_jwk(jwk))):
        raise RegistryError(f"the new {kind} key does not work; nothing was changed")


def _works(kind: str, jwk: dict[str, str]) -> bool:
    key, probe = ECKey.import_key({**jwk}), b"license-server"
    if kind == "enrollment":
        sealed = jwe.encrypt_compact({"alg": "ECDH-ES", "enc": "A256GCM"}, probe, key, algorithms=_ECDH)
        return jwe.decrypt_compact(sealed, key, algorithms=_ECDH).plaintext == probe
    signed = jws.serialize_compact({"alg": "ES256"}, probe, key, algorithms=_ES256)
    return jws.deserialize_compact(signed, key, algorithms=_ES256).payload == probe
