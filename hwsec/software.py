"""Implements the backend without a TPM, for machines that have no TPM and whose owner accepts that.

The KEK is PBKDF2-HMAC-SHA256 (RFC 8018, 5.2) over 32 random bytes and the machine id. Key material, anchor and audit value
are in a directory apart from the store. **Anyone who copies the whole disk has both, and nothing here notices an older copy of
the whole disk that was put back**: that is what a TPM is for.
"""

import contextlib
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from common.files import write_atomic

from .backend import (
    DIGEST_BYTES,
    POINT_BYTES,
    Anchor,
    BackendState,
    BackendStatus,
    Certification,
    HardwareClock,
    SoftwareEvidence,
    software_attestation,
    software_evidence,
)
from .bootclock import read_boot_clock
from .errors import (
    AlreadyEnrolled,
    AuditEmpty,
    BackendUnavailable,
    ForeignHardware,
    HwsecError,
    NoEndorsementKey,
    NotEnrolled,
    NvGone,
    OldFormat,
)
from .secretfile import read_secret_file
from .secretmem import SecretBuffer, wipe_bytes
from .vault import SECRET_BYTES, Vault, WrappedSecret, os_random_into

PBKDF2_ITERATIONS = 600_000
"""OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256."""
PBKDF2_FLOOR = 100_000
"""A key file that names fewer iterations has been tampered with."""
PBKDF2_CEILING = 10_000_000
"""Likewise one that names more: the start would take minutes."""


_KEY_FILE_MAX = 64 * 1024
_BLANK = bytes(SECRET_BYTES)
_MATERIAL_MARK = msgspec.msgpack.encode("material") + b"\xc4\x20"  # the name, and the head of 32 bytes (MessagePack bin 8)


# RFC 5915: ECPrivateKey of 32 bytes on P-256, without its public point.
_DER_HEAD = bytes.fromhex("30310201010420")
_DER_TAIL = bytes.fromhex("a00a06082a8648ce3d030107")
_ZERO = (0,) * 32
_ORDER = tuple(bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"))


class _SealedKey(msgspec.Struct, frozen=True):
    """A P-256 key: its scalar under a key derived from the KEK, and its public point."""

    nonce: bytes
    sealed: bytes
    public: bytes


class _KeyFile(msgspec.Struct, frozen=True):
    """`check` is an HMAC over all the rest, under a key derived from the KEK."""

    iterations: int
    salt: bytes
    material: memoryview
    check: bytes
    attestation: _SealedKey
    identity: _SealedKey
    agreement: _SealedKey


class _OldKeyFile(msgspec.Struct, frozen=True):
    """What tells the first format: it had one key."""

    agreement_sealed: bytes


class _StateFile(msgspec.Struct, frozen=True):
    counter: int
    audit: bytes
    anchor: bytes | None
    tag: bytes


class SoftwareBackend:
    """Guards the KEK with files.

    Args:
        directory: for the key material; another directory than the store's.
        machine_id: ties the key to this machine, as far as software can.
        vault: holds the derived KEK in memory.
        iterations: of PBKDF2, for a key that is created.
        clock: the kernel's; tests pass their own.

    Raises:
        ValueError: `iterations` is outside of what `open` accepts.
    """

    name = "software"

    def __init__(
        self,
        directory: Path,
        machine_id: bytes,
        vault: Vault,
        iterations: int = PBKDF2_ITERATIONS,
        *,
        clock: Callable[[], HardwareClock] = read_boot_clock,
    ) -> None:
        if not PBKDF2_FLOOR <= iterations <= PBKDF2_CEILING:
            raise ValueError(f"{iterations} iterations are not between {PBKDF2_FLOOR} and {PBKDF2_CEILING}")
        self._key_path = directory / "software.key"
        self._state_path = directory / "software.anchor"
        self._machine_id = machine_id
        self._vault = vault
        self._iterations = iterations
        self._clock = clock
        self._wrapped: WrappedSecret | None = None
        self._key: _KeyFile | None = None

    def create(self) -> None:
        """Makes key material, the keys and an empty anchor."""
        if self._key_path.exists():
            raise AlreadyEnrolled(f"{self._key_path} exists already: this agent has been initialized")
        with SecretBuffer(SECRET_BYTES) as kek, SecretBuffer(SECRET_BYTES) as material:
            os_random_into(material.view)
            salt = os.urandom(32)
            self._derive(salt, material.view, self._iterations, kek)
            key = _KeyFile(
                iterations=self._iterations,
                salt=salt,
                material=material.view,
                check=b"",
                attestation=_new_key(kek, "attestation"),
                identity=_new_key(kek, "identity"),
                agreement=_new_key(kek, "agreement"),
            )
            key = msgspec.structs.replace(key, check=_check_value(kek, key))
            _cover("agreement")  # the last
            self._wrapped = self._vault.wrap(kek)
            try:
                # The key file comes last: until it is there, an enrolment that was cut can be repeated.
                self._write_state(1, bytes(DIGEST_BYTES), None)
                self._write_key(key)
            except BaseException:
                self._wrapped = None
                raise
            self._key = _without_material(key)

    def _write_key(self, key: _KeyFile) -> None:
        encoded, place = _encoded_without_material(key)
        with SecretBuffer(len(encoded)) as data:
            data.view[:] = encoded
            data.view[place : place + SECRET_BYTES] = key.material
            _write(self._key_path, data.view)

    def open(self) -> None:
        """Derives the KEK, which takes about 0.2 s, and holds the key file against its check value."""
        self.close()
        try:
            buffer = read_secret_file(self._key_path, _KEY_FILE_MAX)
        except FileNotFoundError:
            raise NotEnrolled(f"{self._key_path} does not exist") from None
        except OSError as error:
            raise BackendUnavailable(f"{self._key_path} cannot be read: {error.strerror}") from error
        with buffer:
            key = self._parse_key(buffer)
            self._wrapped = self._open_key(key)
        self._key = _without_material(key)

    def _parse_key(self, buffer: SecretBuffer) -> _KeyFile:
        """The key file; its material is a view of `buffer`, the rest, which is no secret, is copied."""
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.msgpack.decode(buffer.view, type=_KeyFile)
        with contextlib.suppress(msgspec.MsgspecError):
            msgspec.msgpack.decode(buffer.view, type=_OldKeyFile)
            raise OldFormat(
                f"{self._key_path} was written by an earlier version: move it away and initialize this agent again, which "
                "needs new secrets from the server"
            )
        raise NotEnrolled(f"{self._key_path} is damaged: initialize this agent again")

    def _open_key(self, key: _KeyFile) -> WrappedSecret:
        if len(key.material) != SECRET_BYTES:
            raise ForeignHardware(f"{self._key_path} is damaged or was changed: its key material has another size")
        if not PBKDF2_FLOOR <= key.iterations <= PBKDF2_CEILING:
            raise ForeignHardware(
                f"{self._key_path} names {key.iterations} iterations, not between {PBKDF2_FLOOR} and {PBKDF2_CEILING}: "
                "it is damaged or was changed"
            )
        with SecretBuffer(SECRET_BYTES) as kek:
            self._derive(key.salt, key.material, key.iterations, kek)
            if not hmac.compare_digest(_check_value(kek, key), key.check):
                raise ForeignHardware(
                    f"{self._key_path} belongs to another machine (or is damaged): the derived key does not fit"
                )
            return self._vault.wrap(kek)

    def _derive(self, salt: bytes, material: bytes | memoryview, iterations: int, into: SecretBuffer) -> None:
        with SecretBuffer(len(material) + len(self._machine_id)) as password:
            password.view[: len(material)] = material
            password.view[len(material) :] = self._machine_id
            PBKDF2HMAC(hashes.SHA256(), SECRET_BYTES, salt, iterations).derive_into(password.view, into.view)

    def kek(self) -> AbstractContextManager[SecretBuffer]:
        """The derived key, from the vault."""
        return self._vault.open(self._require_wrapped())

    def _require_wrapped(self) -> WrappedSecret:
        if self._wrapped is None:
            raise NotEnrolled("the software backend is not open")
        return self._wrapped

    def _tag(self, counter: int, audit: bytes, anchor: bytes | None) -> bytes:
        with self.kek() as kek, _subkey(kek, "state") as key:
            return _hmac(key, msgspec.msgpack.encode((counter, audit, anchor)))

    def _read_state(self) -> _StateFile:
        self._require_wrapped()
        try:
            state = msgspec.msgpack.decode(_read(self._state_path), type=_StateFile)
        except FileNotFoundError:
            raise NvGone(f"{self._state_path} is gone: put it back, or initialize this agent again") from None
        except msgspec.MsgspecError:
            raise ForeignHardware(f"{self._state_path} is damaged: put it back, or initialize this agent again") from None
        if not hmac.compare_digest(state.tag, self._tag(state.counter, state.audit, state.anchor)):
            raise ForeignHardware(f"{self._state_path} was not written by this agent (its tag is wrong)")
        return state

    def _write_state(self, counter: int, audit: bytes, anchor: bytes | None) -> None:
        state = _StateFile(counter, audit, anchor, self._tag(counter, audit, anchor))
        _write(self._state_path, msgspec.msgpack.encode(state))

    def read_anchor(self) -> tuple[Anchor | None, int]:
        """Anchor and counter, from the tagged file."""
        state = self._read_state()
        return (None if state.anchor is None else Anchor.decode(state.anchor)), state.counter

    def write_anchor(self, anchor: Anchor) -> None:
        """Replaces the anchor in the tagged file."""
        state = self._read_state()
        self._write_state(state.counter, state.audit, anchor.encode())

    def increment(self) -> int:
        """Adds 1 to the counter in the tagged file."""
        state = self._read_state()
        self._write_state(state.counter + 1, state.audit, state.anchor)
        return state.counter + 1

    def read_audit(self) -> bytes:
        """The audit value, from the tagged file."""
        return self._read_state().audit

    def extend_audit(self, head: bytes) -> bytes:
        """As TPM2_NV_Extend does it."""
        state = self._read_state()
        value = hashlib.sha256(state.audit + head).digest()
        self._write_state(state.counter, value, state.anchor)
        return value

    def certify_audit(self, nonce: bytes) -> Certification:
        """`software_attestation`, signed. It proves no more than that the files are this machine's."""
        audit = self.read_audit()
        attested = software_attestation(nonce, audit)
        if audit == bytes(DIGEST_BYTES):
            raise AuditEmpty("nothing has been extended into the audit value yet")
        return Certification(attested, self._sign("attestation", self._require_key().attestation, attested))

    def _require_key(self) -> _KeyFile:
        if self._key is None:
            raise NotEnrolled("the software backend is not open")
        return self._key

    def attestation_public(self) -> bytes:
        """From the key file."""
        return self._require_key().attestation.public

    def identity_public(self) -> bytes:
        """From the key file."""
        return self._require_key().identity.public

    def agreement_public(self) -> bytes:
        """From the key file."""
        return self._require_key().agreement.public

    def sign(self, message: bytes) -> bytes:
        """ECDSA on P-256 (FIPS 186-5, 6.4)."""
        return self._sign("identity", self._require_key().identity, message)

    def _sign(self, purpose: str, key: _SealedKey, message: bytes) -> bytes:
        with self._private(purpose, key) as private:
            r, s = decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    @contextmanager
    def _private(self, purpose: str, key: _SealedKey) -> Iterator[ec.EllipticCurvePrivateKey]:
        try:
            yield self._opened(purpose, key)
        finally:
            _cover(purpose)

    def _opened(self, purpose: str, key: _SealedKey) -> ec.EllipticCurvePrivateKey:
        with self.kek() as kek, SecretBuffer(32) as scalar:
            try:
                with _subkey(kek, purpose) as sealing:
                    AESGCM(sealing).decrypt_into(key.nonce, key.sealed, purpose.encode(), scalar.view)
            except InvalidTag:
                raise ForeignHardware(f"the {purpose} key in {self._key_path} is damaged") from None
            return _private_key(scalar)

    def agree(self, peer_point: bytes) -> SecretBuffer:
        """ECDH on P-256 (SP 800-56A, 5.7.1.2)."""
        key = self._require_key().agreement
        if len(peer_point) != POINT_BYTES or peer_point[0] != 4:
            raise ValueError("not an uncompressed P-256 point")
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), peer_point)
        with self._private("agreement", key) as private:
            shared = private.exchange(ec.ECDH(), peer)
        del private
        buffer = SecretBuffer(32)
        buffer.view[:] = shared
        wipe_bytes(shared)
        return buffer

    def clock(self) -> HardwareClock:
        """Time since the machine was started, with a reset count for this start."""
        return self._clock()

    def random(self, size: int) -> bytes:
        """The kernel's generator."""
        return os.urandom(size)

    def status(self) -> BackendStatus:
        """Always there; but its files may be gone or not its own."""
        state, detail = BackendState.AVAILABLE, "no TPM: keys lie on the disk, a stolen disk is not defended"
        if self._key is not None:
            try:
                self._read_state()
            except HwsecError as error:
                state, detail = error.state, str(error)
        available = state is BackendState.AVAILABLE
        return BackendStatus("software", available, detail, False, state=state, hardware_id=self._hardware_id())

    def measure_hardware_id(self) -> str | None:
        """SHA-256 over machine id and identity key: no hardware speaks for it."""
        return self._hardware_id()

    def endorsement(self) -> None:
        """None: there is no hardware that could have such a key."""

    def evidence(self, nonce: bytes) -> SoftwareEvidence:
        """`software_evidence`, signed."""
        key = self._require_key()
        attested = software_evidence(nonce, key.identity.public, key.agreement.public)
        signature = self._sign("attestation", key.attestation, attested)
        return SoftwareEvidence(key.attestation.public, key.identity.public, key.agreement.public, signature)

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Raises NoEndorsementKey, always."""
        self._require_key()
        raise NoEndorsementKey(
            "the software backend has no endorsement key: a software device is enrolled without a credential"
        )

    def _hardware_id(self) -> str | None:
        if self._key is None:
            return None
        digest = hashlib.sha256(b"license-agent software hardware id")
        for part in (self._machine_id, self._key.identity.public):
            digest.update(len(part).to_bytes(4, "big") + part)
        return digest.hexdigest()

    def close(self) -> None:
        """Forgets the KEK."""
        self._wrapped = self._key = None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BackendUnavailable(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes | memoryview) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise BackendUnavailable(f"{path} cannot be written: {error.strerror}") from error


def _new_key(kek: SecretBuffer, purpose: str) -> _SealedKey:
    nonce = os.urandom(12)
    with SecretBuffer(32) as scalar, _subkey(kek, purpose) as sealing:
        # FIPS 186-5, A.2.2. In secret memory from the beginning, which a key that the library draws is not.
        while not _ZERO < tuple(scalar.view) < _ORDER:
            os_random_into(scalar.view)
        return _SealedKey(
            nonce=nonce,
            sealed=AESGCM(sealing).encrypt(nonce, scalar.view, purpose.encode()),
            public=_private_key(scalar).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
        )


def _cover(purpose: str) -> None:
    """Uses a key and a scalar of nobody's in the same way: what the library has freed without wiping it is overwritten."""
    with SecretBuffer(32) as nothing:
        nothing.view[:] = b"\x01" * 32
        for _time in range(2):
            with _subkey(nothing, purpose) as sealing:
                sealed = AESGCM(sealing).encrypt(bytes(12), nothing.view, purpose.encode())
                AESGCM(sealing).decrypt_into(bytes(12), sealed, purpose.encode(), nothing.view)
            _private_key(nothing)


def _private_key(scalar: SecretBuffer) -> ec.EllipticCurvePrivateKey:
    """The key of a scalar, handed over as a file's content would be: a number of Python's could not be wiped."""
    with SecretBuffer(len(_DER_HEAD) + 32 + len(_DER_TAIL)) as der:
        der.view[: len(_DER_HEAD)] = _DER_HEAD
        der.view[len(_DER_HEAD) : -len(_DER_TAIL)] = scalar.view
        der.view[-len(_DER_TAIL) :] = _DER_TAIL
        return cast(ec.EllipticCurvePrivateKey, load_der_private_key(der.view, None))


def _without_material(key: _KeyFile) -> _KeyFile:
    """What is kept while the backend is open."""
    return msgspec.structs.replace(key, material=memoryview(b""))


def _encoded_without_material(key: _KeyFile) -> tuple[bytes, int]:
    """The encoding with zeros in the place of the material, and that place."""
    encoded = msgspec.msgpack.encode(msgspec.structs.replace(key, material=memoryview(_BLANK)))
    return encoded, encoded.index(_MATERIAL_MARK + _BLANK) + len(_MATERIAL_MARK)


def _check_value(kek: SecretBuffer, key: _KeyFile) -> bytes:
    """HMAC over the encoded file without its check value; the material is never in a copy of the encoding."""
    encoded, place = _encoded_without_material(msgspec.structs.replace(key, check=b""))
    with _subkey(kek, "check") as secret:
        return _hmac(secret, encoded[:place], key.material, encoded[place + len(_BLANK) :])


def _hmac(key: memoryview, *parts: bytes | memoryview) -> bytes:
    mac = HMAC(key, hashes.SHA256())
    for part in parts:
        mac.update(part)
    return mac.finalize()


@contextmanager
def _subkey(kek: SecretBuffer, purpose: str) -> Iterator[memoryview]:
    with SecretBuffer(32) as key:
        HKDF(hashes.SHA256(), 32, salt=None, info=f"license-agent software {purpose}".encode()).derive_into(kek.view, key.view)
        yield key.view
