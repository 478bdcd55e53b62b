"""The TPM 2.0 backend: puts connection, objects, indices, keys and policies together. Parts and sections named here are those
of the TPM 2.0 Library Specification, revision 1.59.

Layout: the KEK and three keys are children of the SRK, kept as blobs in a file; four NV indices hold the anchor (ordinary), the
commit counter (counter), the audit value (extend) and the policy counter (counter).

Auth values: the KEK's is random and lies in the file of objects. From the KEK derive those of anchor, commit counter and audit
value: to touch them, one must have unsealed. Those of the keys and of the policy counter derive from a second random value in
the file, because they must be usable while the KEK is not (docs/adr/0009).
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .backend import (
    ANCHOR_BYTES,
    DIGEST_BYTES,
    POINT_BYTES,
    Anchor,
    BackendState,
    BackendStatus,
    Certification,
    CertifiedKey,
    Endorsement,
    HardwareClock,
    TpmEvidence,
)
from .errors import (
    AuditEmpty,
    ForeignHardware,
    HwsecError,
    LockedOut,
    NotEnrolled,
    NvGone,
    OutOfSessions,
)
from .nv.budget import NvBudget
from .nv.layout import NV_ANCHOR, NV_AUDIT, NV_BASE, NV_COUNTER, NV_POLICY_COUNTER
from .objectfile import Blob, ObjectFile, SealedKek, SealedObjects
from .pcr.policy import NO_BINDING, Binding, check_initialized
from .repetition import Doubts, Repeater, Unsigned
from .secretmem import SecretBuffer, overwrite_freed
from .statements import check_nonce
from .tpm2 import endorsement, facts, keys
from .tpm2.codes import RC_AUTH_CONTEXT, TpmRefusal
from .tpm2.library import preload_library
from .tpm2.nv import NvIndices
from .tpm2.objects import area, create_key, loaded, public_point
from .tpm2.sealer import KekSealer
from .tpm2.templates import AGREEMENT, ATTESTATION, IDENTITY
from .tpm2.transport import SRK_HANDLE, Transport
from .vault import SECRET_BYTES, Vault, os_random_into

T = TypeVar("T")

P = ParamSpec("P")

__all__ = ["NV_BASE", "SRK_HANDLE", "TpmBackend", "preload_library"]

_HKDF_MAX = 255 * 32  # RFC 5869, 2.3
_COUNTER = "policy counter"
REVOCATION_STEP_MAX = 1000
"""Increments of the policy counter in one call: each is a write of NV memory."""
_KEK_INDICES = (NV_ANCHOR, NV_COUNTER, NV_AUDIT)


def _repeated(method: "Callable[Concatenate[TpmBackend, P], T]") -> "Callable[Concatenate[TpmBackend, P], T]":
    """Makes a method start again, over a fresh connection, until an answer of the TPM is authenticated or believed."""

    @wraps(method)
    def call(self: "TpmBackend", /, *args: P.args, **named: P.kwargs) -> T:
        return self._settled(method.__name__, lambda: method(self, *args, **named))

    return call


class TpmBackend:
    """Guards the KEK in a TPM 2.0.

    Args:
        tcti: how to reach the TPM, as tpm2-tss writes it: `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`.
        objects: the file for the sealed objects; a twin is beside it.
        nv_base: four NV indices after it are ours.
        binding: what `create` binds the KEK to. A KEK that exists keeps its binding until `rebind`.
        policies: directory of signed policies (`hwsec.pcr.files`).
        monotonic: seconds of a clock that never goes back, for the budget of NV writes and for repeated calls.
        sleep: waits so many seconds between repeated calls (`hwsec.repetition`).
    """

    name = "tpm"

    def __init__(
        self,
        tcti: str,
        objects: Path,
        nv_base: int = NV_BASE,
        *,
        binding: Binding = NO_BINDING,
        policies: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # Of its own, as everything that `replace` creates: an abandoned call may have it open.
        self._vault = Vault()
        self._tpm = Transport(tcti)
        self._file = ObjectFile(objects, self._vault)
        self._nv_base = nv_base
        self._nv = NvIndices(self._tpm, nv_base, self._vault)
        self._sealer = KekSealer(self._tpm, self._nv, nv_base, policies, self._vault)
        self._wanted = binding
        self._policies = policies
        self._monotonic = monotonic
        self._objects: SealedObjects | None = None
        self._hardware_id: tuple[int, str | None] | None = None
        self._writes = 0
        self._budget = NvBudget(monotonic())
        self._sleep = sleep
        self._repeater = self._make_repeater(Doubts())

    def _make_repeater(self, doubts: Doubts) -> Repeater:
        return Repeater(self._reconnect, lambda: self._tpm.given_up, doubts, self._monotonic, self._sleep)

    def _reconnect(self) -> None:
        """Gives up the connection; the next command makes a fresh one."""
        self._tpm.disconnect()

    def _settled(self, call: str, attempt: Callable[[], T | Unsigned[T]]) -> T:
        """Runs `attempt` until an answer of the TPM is authenticated or believed; raises as `Repeater.settle`."""

        def witnessed() -> T | Unsigned[T]:
            try:
                return attempt()
            except (LockedOut, OutOfSessions) as error:
                if facts.confirms(self._tpm, error):
                    error.unsigned = False
                raise

        return self._repeater.settle(call, witnessed)

    def replace(self) -> "TpmBackend":
        """A new backend with the same settings, not open, for the time after BackendHung.

        It shares nothing with this one, whose abandoned call still holds its connection. This one is not to be used again: when
        the call comes back, it sends nothing more.
        """
        self._tpm.give_up()
        fresh = TpmBackend(
            self._tpm.tcti,
            self._file.path,
            self._nv_base,
            binding=self._wanted,
            policies=self._policies,
            monotonic=self._monotonic,
            sleep=self._sleep,
        )
        fresh._tpm.took = self._tpm.took
        fresh._repeater = fresh._make_repeater(self._repeater.doubts.copy())
        fresh._writes = self._writes
        fresh._budget = copy.copy(self._budget)  # figures only
        return fresh

    @property
    def binding(self) -> Binding:
        """What the KEK is bound to; before there is one, what it will be bound to."""
        return self._wanted if self._objects is None else self._objects.kek.binding

    # Connection

    def _connect(self) -> None:
        self._tpm.connect(None if self._objects is None else self._objects.srk_name)

    def close(self) -> None:
        """Flushes the session and closes the connection; that of a call which hangs in another thread is left to it."""
        self._nv.forget()
        self._tpm.disconnect()
        self._objects = None

    def _wrote(self) -> None:
        self._writes += 1
        self._budget.spend(self._monotonic())

    # Enrolment

    def create(self) -> None:
        """Makes KEK, keys and the four NV indices.

        The files come last: until they are there, an enrolment that was cut can be repeated.
        """
        self._file.require_none()
        self.close()
        try:
            identifier = self._ask_hardware_id()
            self._settled("create", lambda: self._create(identifier))
        except BaseException:
            self.close()
            raise

    def _create(self, identifier: str | None) -> None:
        self.close()
        self._connect()
        with self._fresh_auth() as keys_auth, SecretBuffer(SECRET_BYTES) as kek:
            with _derived(keys_auth, _COUNTER) as counter_auth:
                # First, before an old commit counter is deleted: a counter starts where the highest deleted one ended
                # (Part 3, 31.8), and this one is compared with numbers that the vendor chooses.
                self._nv.define(NV_POLICY_COUNTER, counter_auth)
                self._nv.authorize(NV_POLICY_COUNTER, counter_auth)
                self._wrote()
                self._nv.increment(NV_POLICY_COUNTER)
                self._random_into(kek.view)
                with self._fresh_auth() as kek_auth:
                    sealed = self._sealer.seal(kek, kek_auth, self._wanted, counter_auth)
            objects = SealedObjects(
                srk_name=self._tpm.salt_key_name(self._tpm.srk),
                kek=sealed,
                keys_auth=self._vault.wrap(keys_auth),
                attestation=self._create_key(ATTESTATION, keys_auth, "attestation"),
                identity=self._create_key(IDENTITY, keys_auth, "identity"),
                agreement=self._create_key(AGREEMENT, keys_auth, "agreement"),
                hardware_id=identifier,
            )
            for number in _KEK_INDICES:
                with _derived(kek, f"nv{number}") as auth:
                    self._nv.define(number, auth)
                    self._nv.authorize(number, auth)
        self._objects = objects
        # A counter can be read only after its first increment (Part 3, 31.3).
        self.increment()
        self._file.write(objects)

    def _create_key(self, template: bytes, keys_auth: SecretBuffer, purpose: str) -> Blob:
        with _derived(keys_auth, purpose) as auth:
            return create_key(self._tpm, template, auth)

    @contextmanager
    def _fresh_auth(self) -> Iterator[SecretBuffer]:
        with SecretBuffer(SECRET_BYTES) as auth:
            self._random_into(auth.view)
            yield auth

    @contextmanager
    def _key_auth(self, objects: SealedObjects, purpose: str) -> Iterator[SecretBuffer]:
        """Auth value of a key or of the policy counter."""
        with self._vault.open(objects.keys_auth) as keys_auth, _derived(keys_auth, purpose) as auth:
            yield auth

    def open(self) -> None:
        """Reads the sealed objects and holds the SRK against the one they were made under. Unseals nothing yet."""
        self.close()
        objects = self._objects = self._file.read()

        def attempt() -> None:
            self._connect()
            for blob in (objects.attestation, objects.identity, objects.agreement):
                public_point(self._tpm, blob)

        try:
            self._settled("open", attempt)
        except BaseException:
            self.close()
            raise

    def _require_objects(self) -> SealedObjects:
        if self._objects is None:
            raise NotEnrolled("the TPM backend is not open")
        return self._objects

    # KEK

    @contextmanager
    def kek(self) -> Iterator[SecretBuffer]:
        """Unseals the KEK for the length of the block, in a salted policy session made for this once."""
        objects = self._require_objects()
        with SecretBuffer(SECRET_BYTES) as buffer:

            def attempt() -> None:
                self._connect()
                with self._key_auth(objects, _COUNTER) as counter_auth:
                    self._sealer.unseal(objects.kek, counter_auth, buffer)

            self._settled("kek", attempt)
            yield buffer

    def _random_into(self, view: memoryview) -> None:
        session, none = self._tpm.session, self._tpm.t.ESYS_TR.NONE
        hardware = bytes(self._tpm.run(lambda e: e.get_random(32, session1=session, session2=none)))
        with SecretBuffer(len(hardware) + 64) as drawn:
            drawn.view[: len(hardware)] = hardware
            os_random_into(drawn.view[len(hardware) :])  # of which no copy is anywhere
            HKDF(hashes.SHA256(), len(view), salt=None, info=b"license-agent random").derive_into(drawn.view, view)

    @_repeated
    def random(self, size: int) -> bytes:
        """TPM and kernel randomness, mixed by HKDF: as good as the better of the two."""
        self._connect()
        mixed = bytearray(size)
        with memoryview(mixed) as view:
            for start in range(0, size, _HKDF_MAX):
                self._random_into(view[start : start + _HKDF_MAX])
        return bytes(mixed)

    # Binding

    @_repeated
    def read_pcrs(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Values of the SHA-256 bank by index; what the TPM does not have is left out. Works before the enrolment."""
        wanted = tuple(indices)
        self._connect()
        return self._sealer.read_pcrs(wanted)

    @_repeated
    def policy_number(self) -> int:
        """The policy counter: signed policies with a lower number are refused."""
        objects = self._require_objects()
        self._connect()
        with self._key_auth(objects, _COUNTER) as counter_auth:
            return self._sealer.policy_number(counter_auth)

    @_repeated
    def revoke_policies(self, number: int) -> None:
        """Raises the policy counter to `number`, so that signed policies with a lower one are refused from now on, for ever.

        Raises:
            PcrMismatch: the KEK is bound, and no installed policy with that number fits the present state of the machine: the
                agent would lock itself out. The counter has not been moved.
            ValueError: it is more than `REVOCATION_STEP_MAX` ahead; each step wears the TPM.
        """
        objects = self._require_objects()
        self._connect()
        with self._key_auth(objects, _COUNTER) as counter_auth:
            counter = self._sealer.policy_number(counter_auth)
            if number - counter > REVOCATION_STEP_MAX:
                raise ValueError(f"the policy counter is at {counter}: {number} is more than {REVOCATION_STEP_MAX} ahead")
            if number > counter and objects.kek.binding.policy_key is not None:
                self._sealer.fitting(objects.kek.binding, counter_auth, number)
        with self._nv.together():
            for _step in range(counter, number):
                self._wrote()
                self._nv.increment(NV_POLICY_COUNTER)

    def rebind(self, binding: Binding) -> None:
        """Binds the KEK to something else: unseals it by the present policy, seals it again, replaces file and twin.

        The KEK stays the same, so an old copy of the file goes on opening it by the old policy, on this TPM.

        Raises:
            PcrMismatch, PcrUninitialized: it cannot be unsealed now, or could not be with the new binding. Nothing has changed.
            BackendUnavailable: the disk does not take the file; the old binding or the new one is in force, and both open now.
        """
        objects = self._require_objects()

        def attempt() -> SealedKek:
            with self.kek() as kek, self._fresh_auth() as auth, self._key_auth(objects, _COUNTER) as counter_auth:
                return self._sealer.seal(kek, auth, binding, counter_auth)

        sealed = self._settled("rebind", attempt)
        changed = msgspec.structs.replace(objects, kek=sealed)
        self._file.write(changed)
        self._objects = changed

    # NV

    def _prepare_nv(self, number: int) -> None:
        """Gives the index its auth value, which takes the KEK. One unsealing serves all three."""
        self._require_objects()
        self._connect()
        if self._nv.knows(number):
            return
        with self.kek() as kek:
            for each in _KEK_INDICES:
                try:
                    with _derived(kek, f"nv{each}") as auth:
                        self._nv.authorize(each, auth)
                except NvGone:
                    if each == number:
                        raise

    @_repeated
    def read_anchor(self) -> tuple[Anchor | None, int]:
        """Reads anchor and counter."""
        self._prepare_nv(NV_COUNTER)
        self._prepare_nv(NV_ANCHOR)
        with self._nv.together():
            count, data = self._nv.read_counter(NV_COUNTER), self._nv.read(NV_ANCHOR, ANCHOR_BYTES)
        if data is None:
            return None, count
        try:
            return Anchor.decode(data), count
        except ValueError:
            raise ForeignHardware("the anchor's NV index holds something else") from None

    @_repeated
    def write_anchor(self, anchor: Anchor) -> None:
        """Writes the anchor's NV index."""
        self._prepare_nv(NV_ANCHOR)
        self._wrote()
        self._nv.write(NV_ANCHOR, anchor.encode())

    def increment(self) -> int:
        """Increments the counter's NV index: once, even if the TPM's answer is lost."""
        before: list[int | None] = []

        def attempt() -> int:
            self._prepare_nv(NV_COUNTER)
            with self._nv.together():
                count = self._nv.read_count(NV_COUNTER)
                if not before:
                    before.append(count)
                if count == before[0]:
                    self._wrote()
                    self._nv.increment(NV_COUNTER)
                    count = self._nv.read_counter(NV_COUNTER)
                if count is None:
                    raise ForeignHardware("the commit counter has lost its value: somebody has redefined it")
                return count

        return self._settled("increment", attempt)

    @_repeated
    def read_audit(self) -> bytes:
        """Reads the extend index; zeros before its first extension."""
        self._prepare_nv(NV_AUDIT)
        return self._nv.read(NV_AUDIT, DIGEST_BYTES) or bytes(DIGEST_BYTES)

    def extend_audit(self, head: bytes) -> bytes:
        """Extends the extend index: once, even if the TPM's answer is lost."""
        before: list[bytes] = []

        def attempt() -> bytes:
            self._prepare_nv(NV_AUDIT)
            with self._nv.together():
                value = self.read_audit()
                if not before:
                    before.append(value)
                if value != before[0]:  # by an earlier attempt, or by somebody else: the caller compares
                    return value
                self._wrote()
                self._nv.extend(NV_AUDIT, head)
                return hashlib.sha256(value + head).digest()

        return self._settled("extend_audit", attempt)

    @_repeated
    def certify_audit(self, nonce: bytes) -> Certification:
        """TPM2_NV_Certify of the audit index by the attestation key."""
        objects = self._require_objects()
        check_nonce(nonce)
        self._prepare_nv(NV_AUDIT)
        if self._nv.read(NV_AUDIT, DIGEST_BYTES) is None:
            raise AuditEmpty("nothing has been extended into the audit index yet")
        with self._key_auth(objects, "attestation") as auth, loaded(self._tpm, objects.attestation, auth) as key:
            attested, signature = self._nv.certify(NV_AUDIT, DIGEST_BYTES, key, nonce)
        return Certification(bytes(attested), keys.es256(signature))

    # Keys

    def _point(self, blob: Blob) -> bytes:
        return public_point(self._tpm, blob)  # asks the library only, which is there since `open`

    def attestation_public(self) -> bytes:
        """From the attestation key's public area."""
        return self._point(self._require_objects().attestation)

    def identity_public(self) -> bytes:
        """From the identity key's public area."""
        return self._point(self._require_objects().identity)

    def agreement_public(self) -> bytes:
        """From the key-agreement key's public area."""
        return self._point(self._require_objects().agreement)

    @_repeated
    def sign(self, message: bytes) -> bytes:
        """TPM2_Sign by the identity key."""
        objects = self._require_objects()
        self._connect()
        with self._key_auth(objects, "identity") as auth:
            return keys.sign(self._tpm, objects.identity, auth, message)

    @_repeated
    def agree(self, peer_point: bytes) -> SecretBuffer:
        """TPM2_ECDH_ZGen by the key-agreement key."""
        objects = self._require_objects()
        if len(peer_point) != POINT_BYTES or peer_point[0] != 4:
            raise ValueError("not an uncompressed P-256 point")

        self._connect()
        with self._key_auth(objects, "agreement") as auth:
            return keys.agree(self._tpm, objects.agreement, auth, peer_point)

    # Enrollment with a server

    def endorsement(self) -> Endorsement | None:
        """The endorsement key, derived from its seed, with its certificate from NV."""

        def attempt() -> Endorsement | Unsigned[Endorsement | None] | None:
            self._connect()
            found, signed = endorsement.read_endorsement(self._tpm)
            return found if signed else Unsigned(found)

        return self._settled("endorsement", attempt)

    @_repeated
    def evidence(self, nonce: bytes) -> TpmEvidence:
        """TPM2_Certify of identity and key-agreement key by the attestation key."""
        objects = self._require_objects()
        check_nonce(nonce)

        def certified(purpose: str, blob: Blob) -> CertifiedKey:
            with self._key_auth(objects, purpose) as auth, self._key_auth(objects, "attestation") as signer_auth:
                return keys.certify(self._tpm, blob, auth, objects.attestation, signer_auth, nonce)

        self._connect()
        return TpmEvidence(
            attestation=area(objects.attestation),
            identity=certified("identity", objects.identity),
            agreement=certified("agreement", objects.agreement),
        )

    @_repeated
    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential with the endorsement key and the attestation key."""
        objects = self._require_objects()
        self._connect()
        with self._key_auth(objects, "attestation") as auth:
            return endorsement.activate(self._tpm, objects.attestation, auth, credential_blob, encrypted_secret)

    # Status

    @_repeated
    def clock(self) -> HardwareClock:
        """TPM2_ReadClock."""
        self._connect()
        return facts.read_clock(self._tpm)

    def measure_hardware_id(self) -> str | None:
        """SHA-256 of the endorsement key's public area, derived from the endorsement seed."""

        def attempt() -> str | Unsigned[str | None] | None:
            self._connect()
            identifier, signed = endorsement.hardware_id(self._tpm)
            return identifier if signed else Unsigned(identifier)

        return self._settled("hardware_id", attempt)

    def _ask_hardware_id(self) -> str | None:
        if self._objects is not None:
            return self._objects.hardware_id
        # Derived once for each connection: an RSA endorsement key takes a TPM seconds.
        if self._hardware_id is None or self._hardware_id[0] != self._tpm.generation:
            identifier = self.measure_hardware_id()
            self._hardware_id = self._tpm.generation, identifier
        return self._hardware_id[1]

    def status(self) -> BackendStatus:
        """Asks the TPM for its clock and properties, and whether what is ours is there and could be used. Unseals nothing."""
        state, detail, about, identifier = BackendState.AVAILABLE, "", None, None

        def ask() -> tuple[str, facts.Permanent]:
            self._connect()
            return self._describe(), facts.read_permanent(self._tpm)

        try:
            detail, about = told = self._settled("status", ask)
            identifier = self._ask_hardware_id()
            self._settled("usable", lambda: self._check_usable(told[1]))
        except HwsecError as error:
            state, detail = error.state, str(error)
            if state is BackendState.AVAILABLE:
                state = BackendState.ABSENT
        except Exception as error:  # noqa: BLE001 - a status is asked for in order to learn what is wrong
            state, detail = BackendState.ABSENT, f"the TPM library failed: {error}"
        doubtful = self._repeater.doubts.unreliable
        if state is BackendState.AVAILABLE and doubtful:
            state = BackendState.UNRELIABLE
            detail = f"the TPM's last answers to '{doubtful[0]}' did not fit, on each of several fresh connections"
        return BackendStatus(
            name=self.name,
            available=state is BackendState.AVAILABLE,
            detail=detail,
            protects_stolen_disk=True,
            nv_writes=self._writes,
            state=state,
            binding=self.binding.kind,
            hierarchies_open=() if about is None else about.hierarchies_open,
            lockout_counter=None if about is None else about.lockout_counter,
            hardware_id=identifier,
            nv_budget_left=self._budget.left(self._monotonic()),
            unfitting=self._repeater.doubts.unfitting,
            commands=self._tpm.took,
        )

    def _describe(self) -> str:
        try:
            clock = facts.read_clock(self._tpm)
        except TpmRefusal as reason:
            if reason.code != RC_AUTH_CONTEXT:
                raise
            return f"TPM 2.0 at {self._tpm.tcti}"
        return f"TPM 2.0 at {self._tpm.tcti}, reset count {clock.reset_count}, restart count {clock.restart_count}"

    def _check_usable(self, about: facts.Permanent) -> None:
        """Raises what the next use of the KEK would raise, as far as that can be known without unsealing it."""
        self._connect()
        if about.in_lockout and self._tpm.srk_is_da_protected():
            raise LockedOut(f"the TPM is locked out after {about.lockout_counter} wrong auth values; it recovers with time")
        facts.check_room(self._tpm)
        objects = self._objects
        if objects is None:
            if self._wanted.policy_key is not None:
                check_initialized(self._wanted, self.read_pcrs(self._wanted.pcrs))
            return
        if missing := self._nv.missing():
            # Another TPM has none of them either, and that is the worse news: looked at over a new connection.
            self._tpm.disconnect()
            self._connect()
            names = ", ".join(f"0x{index:08x}" for index in missing)
            raise NvGone(f"NV index {names} is gone: the TPM was cleared, or the index deleted")
        if objects.kek.binding.policy_key is not None:
            with self._key_auth(objects, _COUNTER) as counter_auth:
                self._sealer.fitting(objects.kek.binding, counter_auth)


@contextmanager
def _derived(key: SecretBuffer, purpose: str) -> Iterator[SecretBuffer]:
    """Auth value of one of our objects: 32 bytes."""
    info = f"license-agent tpm auth {purpose}".encode()
    try:
        with SecretBuffer(SECRET_BYTES) as auth:
            HKDF(hashes.SHA256(), SECRET_BYTES, salt=None, info=info).derive_into(key.view, auth.view)
            yield auth
    finally:
        overwrite_freed(SECRET_BYTES)
