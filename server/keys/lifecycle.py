"""Makes, rotates and ends the server's keys, and signs key sets.

A new key replaces the one in use, or waits for its day (`succession`). The old one stays in the key set until its end, so that
what it signed still verifies. The administrator lends the offline root's private key for each change that the root must sign;
the registry never holds it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.jwk import ECKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from contracts.keyset import KEY_SET_TYPE, KeySet, PublicJwk, pin_of, pin_of_jwk, verify_key_set
from server.base.errors import RegistryError
from server.registry import audit
from server.registry.cipher import Cipher
from server.registry.database import Database, next_number
from server.registry.models.core import KeySetRow, ServerKey

from . import key_rows, trial
from .jose import new_signing_key, public_jwk
from .key_states import KEY_STATES, KeyEvent, KeyState
from .keyring import COUNTER, Keyring
from .pki import make_issuing_ca, make_operator_ca, make_root, make_server_certificate, pem_of, spki_of
from .schedule import Held

DAY = 86_400
LIFETIMES = {
    "root": 3650 * DAY,
    "issuing-ca": 1095 * DAY,
    "tls": 398 * DAY,
    "operator-ca": 1095 * DAY,
    "license": 180 * DAY,
    "rotation": 180 * DAY,
    "enrollment": 365 * DAY,
}
"""How long a new key is used, in seconds. License and rotation keys: at least every six months (OT-10)."""
OVERLAP_S = 90 * DAY
"""How long an old key stays in the key set, at least."""
WARN_S = 30 * DAY
"""How long before its end a key is due for rotation."""
KEY_SET_LIFETIME_S = 365 * DAY
WITHOUT_ROOT = frozenset({"tls", "operator-ca"})
"""Kinds that are replaced without the offline root."""
SIGNING = ("license", "rotation", "enrollment")
"""The kinds whose public halves are in the key set; the others have certificates."""
PREPARED = (*SIGNING, "issuing-ca")
"""The kinds whose keys can be made ahead: the root must sign them, and is offline when they are needed."""
_ES256 = ["ES256"]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as administrators see it. Times are seconds since 1970 UTC."""

    kind: str
    kid: str
    state: str
    created_at: int
    expires_at: int


def held(rows: Iterable[KeyRow]) -> list[Held]:
    """Keys as the schedule needs them."""
    return [Held(row.kind, row.kid, row.state, row.expires_at) for row in rows]


class KeyLifecycle:
    """Changes the server's keys. Each change is one transaction, after which the present keys are used once.

    Args:
        database: the registry's.
        cipher: seals private halves.
        keyring: uses the keys.
    """

    def __init__(self, database: Database, cipher: Cipher, keyring: Keyring) -> None:
        self._database = database
        self._cipher = cipher
        self._keyring = keyring

    # List

    def listed(self) -> list[KeyRow]:
        """All keys, by kind, the newest first."""
        with self._database.read() as session:
            rows = session.scalars(select(ServerKey).order_by(ServerKey.kind, ServerKey.created_at.desc())).all()
        return [KeyRow(row.kind, row.kid, row.state, row.created_at, row.expires_at) for row in rows]

    def expiring(self, now: int, within_days: int = 30) -> list[tuple[str, int]]:
        """Kind and end of the keys in use that end within some days, or have ended."""
        ends = [(row.kind, row.expires_at) for row in self.listed() if row.state == KeyState.ACTIVE]
        return [(kind, end) for kind, end in ends if end - now <= within_days * DAY]

    # Make

    def create(self, session: Session, issuer: str, names: tuple[str, ...], now: int) -> ec.EllipticCurvePrivateKey:
        """Makes all keys of a new server and its first key set. Returns the root's private key, which is kept nowhere.

        Args:
            session: of a writing transaction, in a registry that has its counters and its issuer name.
            issuer: the name of the CAs.
            names: DNS names and IP addresses of the TLS certificate.
            now: seconds since 1970 UTC.
        """
        root_jwk, root_key = _certificate_key("root")
        root = make_root(root_key, issuer, now, now + LIFETIMES["root"])
        self._add(session, "root", root_jwk, now, certificate=root, kept=False)
        ca_jwk, ca_key = _certificate_key("issuing-ca")
        ca = make_issuing_ca(ca_key.public_key(), root, root_key, issuer, now, now + LIFETIMES["issuing-ca"])
        self._add(session, "issuing-ca", ca_jwk, now, certificate=ca)
        tls_jwk, tls_key = _certificate_key("tls")
        tls = make_server_certificate(tls_key.public_key(), ca, ca_key, names, now, now + LIFETIMES["tls"])
        self._add(session, "tls", tls_jwk, now, certificate=tls)
        for kind in SIGNING:
            self._add(session, kind, new_signing_key(), now)
        self._sign_key_set(session, root_key, now)
        return root_key

    # Rotate

    def rotate(
        self,
        kind: str,
        now: int,
        root_key: ec.EllipticCurvePrivateKey | None,
        names: tuple[str, ...] = (),
        actor: str = audit.ADMIN,
    ) -> str:
        """Makes a new key of a kind, puts it in use, and returns its id.

        Args:
            kind: one of `LIFETIMES`, but not `root`: see `rotate_root`.
            now: seconds since 1970 UTC.
            root_key: the root's private key; not needed for `WITHOUT_ROOT`.
            names: DNS names and IP addresses, for `tls`; empty keeps those of the present certificate.
            actor: who does it, as in the audit.

        Raises:
            RegistryError: the root's key is missing, or belongs to another root; or the server's clock may be wrong.
        """
        with self._database.write() as session:
            kid = self.rotate_within(session, kind, now, root_key, names, actor)
        self._keyring.check()
        return kid

    def rotate_within(
        self,
        session: Session,
        kind: str,
        now: int,
        root_key: ec.EllipticCurvePrivateKey | None = None,
        names: tuple[str, ...] = (),
        actor: str = audit.ADMIN,
    ) -> str:
        """As `rotate`, in the transaction of a session. After its commit, `Keyring.check` is due."""
        self._keyring.check_clock()
        if kind not in WITHOUT_ROOT and root_key is None:
            raise RegistryError(f"a new {kind} key must be signed by the root; give the root's key with --root-key")
        kid = self._make(session, kind, now, root_key, names)
        if kind not in WITHOUT_ROOT and root_key is not None:
            self._sign_key_set(session, root_key, now)
        audit.record(session, actor, "keys.rotated", "ok", now, kind=kind, kid=kid)
        return kid

    def require_operator_ca(self, session: Session, now: int) -> None:
        """Makes the operator CA, unless there is one: servers that have no operators have none."""
        if _has_operator_ca(session):
            return
        next_number(session, COUNTER)  # locked, so that two processes do not make one each
        if not _has_operator_ca(session):
            self.rotate_within(session, "operator-ca", now)

    def prepare(self, kinds: Sequence[str], now: int, root_key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
        """Makes keys that wait in the key set until `succession` puts them in use, and returns their ids by kind.

        A kind that has such a key already keeps it. All keys come in one key set.

        Args:
            kinds: of `PREPARED`.
            now: seconds since 1970 UTC.
            root_key: the root's private key.

        Raises:
            RegistryError: the key belongs to another root; or the server's clock may be wrong.
        """
        self._keyring.check_clock()
        kids: dict[str, str] = {}
        with self._database.write() as session:
            for kind in kinds:
                waiting = [row.kid for row in key_rows.live(session, kind) if row.state == KeyState.NEXT]
                if waiting:
                    kids[kind] = waiting[0]
                    continue
                kids[kind] = self._make(session, kind, now, root_key, (), prepared=True)
                audit.record(session, "admin", "keys.prepared", "ok", now, kind=kind, kid=kids[kind])
            self._sign_key_set(session, root_key, now)
        self._keyring.check()
        return kids

    def _make(
        self,
        session: Session,
        kind: str,
        now: int,
        root_key: ec.EllipticCurvePrivateKey | None,
        names: tuple[str, ...],
        *,
        prepared: bool = False,
    ) -> str:
        jwk, key = _certificate_key(kind)
        until = now + LIFETIMES[kind]
        if kind in SIGNING:
            return self._add(session, kind, jwk, now, prepared=prepared).kid
        if kind == "issuing-ca" and root_key is not None:
            root = _root_of(session, root_key)
            until = min(until, int(root.not_valid_after_utc.timestamp()))
            made = make_issuing_ca(key.public_key(), root, root_key, key_rows.issuer_name(session), now, until)
            return self._add(session, kind, jwk, now, certificate=made, until=until, prepared=prepared).kid
        if kind == "operator-ca":
            made = make_operator_ca(key, key_rows.issuer_name(session), now, until)
            return self._add(session, kind, jwk, now, certificate=made, until=until).kid
        if kind == "tls":
            ca, ca_key = key_rows.issuing_ca(self._cipher, session)
            until = min(until, int(ca.not_valid_after_utc.timestamp()))
            made = make_server_certificate(key.public_key(), ca, ca_key, names or _present_names(session), now, until)
            return self._add(session, kind, jwk, now, certificate=made, until=until).kid
        raise RegistryError(f"{kind!r} is not a kind of key; the kinds are {', '.join(LIFETIMES)}")

    def rotate_root(
        self, now: int, old_key: ec.EllipticCurvePrivateKey, keep: Callable[[ec.EllipticCurvePrivateKey], None]
    ) -> str:
        """Makes a new root and returns its pin. The old root signs a key set that names both.

        Args:
            now: seconds since 1970 UTC.
            old_key: the present root's private key.
            keep: called with the new private key before the transaction commits; writes it where the administrator wants it.

        Raises:
            RegistryError: the key belongs to another root; or what `keep` raises.
        """
        self._keyring.check_clock()
        with self._database.write() as session:
            _root_of(session, old_key)
            jwk, key = _certificate_key("root")
            until = now + LIFETIMES["root"]
            made = make_root(key, key_rows.issuer_name(session), now, until)
            self._add(session, "root", jwk, now, certificate=made, until=until, kept=False)
            self._sign_key_set(session, old_key, now)
            keep(key)
            audit.record(session, "admin", "keys.rotated", "ok", now, kind="root", pin=pin_of(spki_of(made)))
        self._keyring.reload()
        return pin_of(spki_of(made))

    # End

    def end(self, kid: str, now: int, root_key: ec.EllipticCurvePrivateKey) -> None:
        """Removes a retired or prepared key from the key set. Agents refuse what it signed from their next contact on.

        Raises:
            RegistryError: the key set has no such key, or the key is still in use.
        """
        self._keyring.check_clock()
        with self._database.write() as session:
            row = session.get(ServerKey, kid)
            if row is None or row.kind not in (*SIGNING, "root"):
                raise RegistryError(f"the key set has no key {kid!r}; 'license-server keys list' lists them")
            if row.state == KeyState.ACTIVE:
                raise RegistryError(f"the key {kid} is in use; run 'license-server keys rotate {row.kind}' first")
            row.state, row.sealed = KeyState.ENDED.value, None
            session.flush()
            self._sign_key_set(session, root_key, now)
            audit.record(session, "admin", "keys.ended", "ok", now, kind=row.kind, kid=kid)
        self._keyring.check()

    # Rows

    def _add(
        self,
        session: Session,
        kind: str,
        jwk: dict[str, str],
        now: int,
        *,
        certificate: x509.Certificate | None = None,
        until: int | None = None,
        kept: bool = True,
        prepared: bool = False,
    ) -> ServerKey:
        """Puts a new key in use and retires those of its kind before it, or keeps it for later. The key is tried first.

        Args:
            session: of a writing transaction.
            kind: one of `LIFETIMES`.
            jwk: private.
            now: seconds since 1970 UTC.
            certificate: for the key, if its kind has one.
            until: its end; None for the lifetime of its kind.
            kept: whether the registry holds its private half.
            prepared: it waits; the one in use stays.
        """
        trial.try_new(kind, jwk, certificate)
        public = public_jwk(jwk)
        for row in key_rows.live(session, kind):
            state = KeyState(row.state)
            if state is KeyState.ACTIVE and not prepared:
                row.state = KEY_STATES.step(state, KeyEvent.REPLACE).value
                row.expires_at = max(row.expires_at, now + OVERLAP_S)
            elif state is KeyState.RETIRED and row.expires_at <= now:
                row.state = KEY_STATES.step(state, KeyEvent.END).value
        sealed = self._cipher.seal("server_key", public["kid"], "sealed", json.dumps(jwk).encode()) if kept else None
        row = ServerKey(
            kid=public["kid"],
            kind=kind,
            state=(KeyState.NEXT if prepared else KeyState.ACTIVE).value,
            public=json.dumps(public),
            sealed=sealed,
            certificate=None if certificate is None else pem_of(certificate),
            created_at=now,
            expires_at=now + LIFETIMES[kind] if until is None else until,
        )
        session.add(row)
        next_number(session, COUNTER)
        return row

    def _sign_key_set(self, session: Session, root_key: ec.EllipticCurvePrivateKey, now: int) -> None:
        """Makes, verifies and keeps a key set of the present keys, signed by a root that agents trust."""
        root_jwk = _public_of(root_key)
        pins = key_rows.root_pins(session)
        if pin_of_jwk(root_jwk) not in pins:
            raise RegistryError(_NOT_A_ROOT)
        authorities = [row.certificate or "" for kind in ("issuing-ca", "root") for row in key_rows.live(session, kind)]
        content = KeySet(
            number=next_number(session, "key_set", now),
            issuer=key_rows.issuer_name(session),
            issued_at=now,
            expires=now + KEY_SET_LIFETIME_S,
            certificates=tuple(authorities[:8]),
            roots=tuple(pins[:4]),
            license_keys=tuple(_public(row) for row in key_rows.live(session, "license")),
            rotation_keys=tuple(_public(row) for row in key_rows.live(session, "rotation")),
            enrollment_keys=tuple(_public(row) for row in key_rows.live(session, "enrollment")),
        )
        header = {"alg": "ES256", "typ": KEY_SET_TYPE, "jwk": root_jwk}
        text = jws.serialize_compact(header, msgspec.json.encode(content), ECKey.import_key(root_key), algorithms=_ES256)
        verify_key_set(text, tuple(pins), above=content.number - 1)
        session.add(KeySetRow(number=content.number, text=text, expires_at=content.expires))
        next_number(session, COUNTER)


_NOT_A_ROOT = "the root key is not that of a root of this server; 'license-server keys list' lists the roots"


def _has_operator_ca(session: Session) -> bool:
    return any(row.state == "active" for row in key_rows.live(session, "operator-ca"))


def _certificate_key(kind: str) -> tuple[dict[str, str], ec.EllipticCurvePrivateKey]:
    """A fresh P-256 key, as a private JWK and as a key."""
    jwk = new_signing_key()
    key = ECKey.import_key({**jwk}).private_key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RuntimeError(f"no {kind} key was made")
    return jwk, key


def _present_names(session: Session) -> tuple[str, ...]:
    certificate = key_rows.certificate_of(key_rows.newest(session, "tls"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def _root_of(session: Session, root_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    wanted = pin_of_jwk(_public_of(root_key))
    for row in key_rows.live(session, "root"):
        if key_rows.pin_of_row(row) == wanted:
            return key_rows.certificate_of(row)
    raise RegistryError(_NOT_A_ROOT)


def _public(row: ServerKey) -> PublicJwk:
    return msgspec.convert(json.loads(row.public), PublicJwk)


def _public_of(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    full: dict[str, Any] = ECKey.import_key(key).as_dict(private=False)
    return {name: str(full[name]) for name in ("kty", "crv", "x", "y")}
