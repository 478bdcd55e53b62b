"""Uses the server's keys: signs replies, opens enrollment tokens, gives out the key set and the TLS identity.

The keys in use are held in memory, opened. Another process may replace them (`lifecycle`), so the keyring reads the
registry's counter `keys` once a second. The root's private key is never here.
"""

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

from contracts.contact.capabilities import CAPABILITIES_TYPE, Capabilities
from contracts.contact.configuration import CONFIGURATION_TYPE, Configuration
from contracts.directive import DIRECTIVE_TYPE, Directive
from contracts.exchange import REPLY_TYPE, RefusalCode, Reply
from contracts.jose import b64encode
from contracts.keyset import MAX_KEY_SETS, KeySet, pin_of_jwk, verify_key_set
from contracts.trust import encode_trust
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.registry.cipher import Cipher
from server.registry.database import Database, present_number, require_here
from server.registry.models.core import KeySetRow

from . import es256, key_rows
from .jose import public_jwk

LOOK_AGAIN_S = 1.0
"""How old the keys in memory may be before the counter is read again."""
COUNTER = "keys"
"""The counter that changes with every change of a key or key set."""
_ECDH = ["ECDH-ES", "A256GCM"]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The keys in use, opened; current as long as the counter has `number`."""

    number: int
    issuer: str
    license: dict[str, str]
    rotation: dict[str, str]
    rotation_key: ec.EllipticCurvePrivateKey
    reply_header: str
    capabilities_header: str
    enrollment: tuple[Any, ...]
    key_set: str
    key_set_number: int
    by_root: dict[str, str]
    client_cas: str


class Keyring:
    """The keys in use.

    Args:
        database: the registry's; the keyring reads it in transactions of its own.
        cipher: opens private halves.
        check_clock: raises ClockNotTrusted if nothing must be signed now.
        monotonic: seconds of a clock that never goes back.

    Attributes:
        check_clock: as given. Every method that signs, or gives a key to sign with, calls it first.
    """

    def __init__(
        self,
        database: Database,
        cipher: Cipher,
        check_clock: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.check_clock = check_clock
        self._database = database
        self._cipher = cipher
        self._monotonic = monotonic
        self._looked = 0.0
        self._loaded: _Loaded | None = None
        self._lock = threading.Lock()

    @property
    def issuer(self) -> str:
        """What licenses carry as `iss`."""
        return self._now().issuer

    def license_key(self) -> dict[str, str]:
        """The private JWK that signs licenses. Raises ClockNotTrusted."""
        self.check_clock()
        return self._now().license

    def rotation_key(self) -> dict[str, str]:
        """The private JWK that signs replies and deliveries. Raises ClockNotTrusted."""
        self.check_clock()
        return self._now().rotation

    def license_public_keys(self) -> dict[str, dict[str, str]]:
        """The public JWKs that verify licenses, by key id."""
        return {key.kid: msgspec.to_builtins(key) for key in self._content().license_keys}

    def challenge_key(self) -> bytes:
        """The HMAC key of challenges, 32 bytes."""
        return self._cipher.challenge_key()

    def sign_reply(self, reply: Reply) -> str:
        """Signs a reply with the rotation key: a JWS (ES256). Raises ClockNotTrusted."""
        self.check_clock()
        loaded = self._now()
        return es256.sign(loaded.rotation_key, loaded.reply_header, msgspec.json.encode(reply))

    def sign_capabilities(self, content: Capabilities) -> str:
        """Signs the list of capabilities, as `sign_reply` does. Raises ClockNotTrusted."""
        self.check_clock()
        loaded = self._now()
        return es256.sign(loaded.rotation_key, loaded.capabilities_header, msgspec.json.encode(content))

    def sign_directive(self, content: Directive) -> str:
        """Signs an update directive, as `sign_reply` does. Raises ClockNotTrusted."""
        self.check_clock()
        loaded = self._now()
        header = {"alg": "ES256", "typ": DIRECTIVE_TYPE, "kid": public_jwk(loaded.rotation)["kid"]}
        return es256.sign(loaded.rotation_key, b64encode(msgspec.json.encode(header)), msgspec.json.encode(content))

    def sign_configuration(self, content: Configuration) -> str:
        """Signs what a fleet sets on an agent, as `sign_reply` does. Raises ClockNotTrusted."""
        self.check_clock()
        loaded = self._now()
        header = {"alg": "ES256", "typ": CONFIGURATION_TYPE, "kid": public_jwk(loaded.rotation)["kid"]}
        return es256.sign(loaded.rotation_key, b64encode(msgspec.json.encode(header)), msgspec.json.encode(content))

    def open_enrollment_token(self, text: str) -> bytes:
        """Decrypts what a device has encrypted to one of the enrollment keys.

        Raises:
            RequestRefused: none of the keys opens it.
        """
        for key in self._now().enrollment:
            try:
                opened = jwe.decrypt_compact(text, key, algorithms=_ECDH)
            except (JoseError, ValueError, TypeError, KeyError):
                continue
            content: bytes | None = opened.plaintext
            if content is not None:
                return content
        raise RequestRefused(
            RefusalCode.CLAIM_REFUSED, "the enrollment token cannot be decrypted with the server's enrollment keys"
        )

    # Key set and roots

    def key_set(self) -> str:
        """The newest key set, signed by the root."""
        return self._now().key_set

    def key_set_of(self, root: str) -> str | None:
        """The newest key set that the root with this pin has signed, or None. For an agent that knows no later root."""
        return self._now().by_root.get(root)

    def key_sets(self) -> str:
        """The newest key set, after those that lead to it from former roots; one a line."""
        # In the order of the roots: a later set of the same root takes its place.
        return "\n".join([*self._now().by_root.values()][-MAX_KEY_SETS:])

    def key_set_number(self) -> int:
        """The number of the newest key set."""
        return self._now().key_set_number

    def trust(self) -> bytes:
        """The trust file for agents that are enrolled by hand."""
        content = self._content()
        lists = [[msgspec.to_builtins(key) for key in keys] for keys in (content.license_keys, content.rotation_keys)]
        return encode_trust(content.issuer, lists[0], lists[1])

    def root_pins(self) -> tuple[str, ...]:
        """Pins of the roots, the newest first."""
        with self._database.read() as session:
            return tuple(key_rows.root_pins(session))

    def _content(self) -> KeySet:
        return verify_key_set(self.key_set(), self.root_pins()).content

    # Certificates

    def tls_material(self) -> tuple[str, bytes]:
        """The TLS server's certificate chain (PEM, the root last) and private key (PEM, PKCS #8)."""
        with self._database.read() as session:
            row = key_rows.newest(session, "tls")
            key = key_rows.private_key(self._cipher, row)
            chain = [row.certificate or "", *key_rows.chain_above(session, row)]
        return "".join(chain), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def root_pem(self) -> str:
        """The root certificate that the present TLS certificate comes from: what clients verify the server against."""
        chain = x509.load_pem_x509_certificates(self.tls_material()[0].encode())
        return chain[-1].public_bytes(Encoding.PEM).decode()

    def client_ca_pem(self) -> str:
        """The issuing CAs and roots that client certificates are verified against."""
        with self._database.read() as session:
            return key_rows.client_cas(session)

    def present_client_cas(self) -> str:
        """As `client_ca_pem`, at most `LOOK_AGAIN_S` old: for each request behind a proxy."""
        return self._now().client_cas

    def operator_ca_pem(self) -> str:
        """The CAs that operators' certificates are verified against; empty if there are none."""
        with self._database.read() as session:
            return key_rows.operator_cas(session)

    def operator_ca(self, session: Session) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The CA that issues operators' certificates, with its private key. Raises ClockNotTrusted."""
        self.check_clock()
        return key_rows.operator_ca(self._cipher, session)

    def issuing_ca(self, session: Session) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The CA that issues certificates, with its private key. Raises ClockNotTrusted."""
        self.check_clock()
        return key_rows.issuing_ca(self._cipher, session)

    # Loading

    def reload(self) -> None:
        """Drops the keys in memory, so that the next use loads them."""
        self._loaded = None

    def check(self) -> None:
        """Uses the present keys once, as those do who depend on them (OP-05).

        Raises:
            RegistryError: a key is missing or cannot be opened.
        """
        self.reload()
        self._content()
        self.tls_material()

    def _now(self) -> _Loaded:
        known = self._loaded
        if known is not None and self._monotonic() - self._looked < LOOK_AGAIN_S:
            return known
        with self._database.read() as session:
            require_here(session)
            number = present_number(session, COUNTER)
            loaded = self._loaded
            if loaded is None or loaded.number != number:
                loaded = self._load(session, number)
        with self._lock:
            self._loaded, self._looked = loaded, self._monotonic()
        return loaded

    def _load(self, session: Session, number: int) -> _Loaded:
        newest = session.scalars(select(KeySetRow).order_by(KeySetRow.number.desc()).limit(1)).first()
        if newest is None:
            raise RegistryError("the registry has no key set; run 'license-server init'")
        rotation_row = key_rows.newest(session, "rotation")
        rotation = key_rows.private_jwk(self._cipher, rotation_row)
        header = {"alg": "ES256", "typ": REPLY_TYPE, "kid": public_jwk(rotation)["kid"]}
        other_header = {**header, "typ": CAPABILITIES_TYPE}
        enrollment = [key_rows.private_jwk(self._cipher, row) for row in key_rows.live(session, "enrollment")]
        return _Loaded(
            number,
            key_rows.issuer_name(session),
            key_rows.private_jwk(self._cipher, key_rows.newest(session, "license")),
            rotation,
            key_rows.private_key(self._cipher, rotation_row),
            b64encode(msgspec.json.encode(header)),
            b64encode(msgspec.json.encode(other_header)),
            tuple(ECKey.import_key({**jwk}) for jwk in enrollment),
            newest.text,
            newest.number,
            _by_root(session),
            key_rows.client_cas(session),
        )


def _by_root(session: Session) -> dict[str, str]:
    sets = session.scalars(select(KeySetRow).order_by(KeySetRow.number))
    return {pin_of_jwk(jws.extract_compact(row.text.encode()).headers()["jwk"]): row.text for row in sets}
