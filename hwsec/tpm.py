"""The TPM 2.0 backend. The only file that touches tpm2_pytss.

Every command that carries a secret runs in an HMAC session that is salted with the SRK and encrypts the first parameter in
both directions (TPM 2.0 Library, Part 1, 19.4 and 21), so that a tapped bus shows neither. Parts and sections named here are
those of the TPM 2.0 Library Specification, revision 1.59.

Layout: the KEK and the key-agreement key are children of the SRK, kept as blobs in a file; three NV indices hold the anchor
(ordinary), the commit counter (counter) and the audit value (extend). Their auth values are derived from the KEK.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .backend import ANCHOR_BYTES, DIGEST_BYTES, POINT_BYTES, Anchor, BackendStatus
from .errors import AlreadyEnrolled, BackendUnavailable, ForeignHardware, HwsecError, NotEnrolled
from .files import write_atomic
from .secretmem import SecretBuffer
from .vault import SECRET_BYTES

T = TypeVar("T")

SRK_HANDLE = 0x81000001  # TCG TPM v2.0 Provisioning Guidance, 7.8
NV_BASE = 0x018A6E00
"""First of three NV indices in the owner's range (Part 2, 13.2; Registry of Reserved TPM Handles)."""
_NV_ANCHOR, _NV_COUNTER, _NV_AUDIT = 1, 2, 3

# Response codes (Part 2, 6.6.3). Format-one codes carry the number of the handle, parameter or session: masked out.
_RC_NV_UNINITIALIZED = 0x14A
_FMT1_MASK = 0xBF
_RC_HANDLE = 0x8B
_RC_INTEGRITY = 0x9F
_RC_ECC_POINT = 0xA7
_RC_SIZE = 0x95
_RC_VALUE = 0x84
_RC_REFERENCES = range(0x910, 0x91F)  # a handle or session that is no longer there: the TPM has been reset
_RC_SESSION_HANDLE = 0x98B  # the same, in format one

_LAYER_MASK = 0xFF0000
_TPM_LAYERS = (0x000000, 0x0B0000, 0x0C0000)  # tss2_common.h: the TPM, and the resource managers of kernel and user space

_CHECKSUM_BYTES = 32
_HKDF_MAX = 255 * 32  # RFC 5869, 2.3


class _Blob(msgspec.Struct, frozen=True):
    private: bytes
    public: bytes


class _Objects(msgspec.Struct, frozen=True):
    """What the file of sealed objects holds, after its SHA-256. None of it is secret without this TPM.

    The checksum tells a broken copy from its whole twin; against an attacker the TPM itself checks what it loads.
    """

    srk_name: bytes
    kek: _Blob
    agreement: _Blob


def _library() -> Any:
    # The library logs every refusal to stderr by itself; ours are typed errors.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise BackendUnavailable(
            f"the TPM library cannot be loaded ({error}); install tpm2-pytss (the extra 'tpm') and Debian's libtss2, "
            "or set [tpm] enabled = false to work without a TPM"
        ) from None
    return tpm2_pytss


def preload_library() -> None:
    """Imports the TPM library now; that it is missing is told when it is used."""
    with contextlib.suppress(BackendUnavailable):
        _library()


class TpmBackend:
    """Guards the KEK in a TPM 2.0.

    Args:
        tcti: how to reach the TPM, as tpm2-tss writes it: `device:/dev/tpmrm0`, `swtpm:host=127.0.0.1,port=2321`.
        objects: the file for the sealed objects; a twin stands beside it.
        nv_base: three NV indices from here on are ours.
    """

    name = "tpm"

    def __init__(self, tcti: str, objects: Path, nv_base: int = NV_BASE) -> None:
        self._tcti = tcti
        self._path = objects
        self._twin = objects.with_name(objects.name + ".twin")
        self._nv_base = nv_base
        self._t: Any = None
        self._esys: Any = None
        self._srk: Any = None
        self._session: Any = None
        self._objects: _Objects | None = None
        self._nv: dict[int, Any] = {}
        self._writes = 0

    # Connection

    def _connect(self) -> Any:
        if self._esys is not None:
            return self._esys
        t = self._t = _library()
        try:
            esys = t.ESAPI(self._tcti)
        except (RuntimeError, ValueError) as error:  # TSS2_Exception is a RuntimeError
            raise BackendUnavailable(
                f"no TPM answers at {self._tcti} ({error}); is it enabled in the firmware, and may this user open it "
                "(group tss)?"
            ) from None
        self._esys = esys
        try:
            if not self._tcti.startswith("device:"):
                self._flush_leftovers()
            self._srk = self._find_srk()
            # Before the session: who could decrypt its salt, on the bus or in this TPM's place, would read all that passes.
            if self._objects is not None and self._salt_key_name(self._srk) != self._objects.srk_name:
                raise ForeignHardware(
                    "the sealed objects belong to another TPM (or to this one before it was cleared): its storage root key "
                    "has another name; initialize this agent anew, which needs new secrets from the server"
                )
            self._session = self._salted_session()
        except BaseException:
            self._disconnect()
            raise
        return esys

    def _flush_leftovers(self) -> None:
        """Clears what a killed process left in a TPM without a resource manager, of which we are the only user."""
        t = self._t
        for first in (t.TPM2_HC.HMAC_SESSION_FIRST, t.TPM2_HC.TRANSIENT_FIRST):
            for handle in self._handles_from(first):
                self._flush(self._handle_object(handle))

    def _handles_from(self, first: int) -> list[int]:
        found = self._run(lambda e: e.get_capability(self._t.TPM2_CAP.HANDLES, first, 64))[1]
        return [int(handle) for handle in found.data.handles]

    def _handle_object(self, handle: int) -> Any:
        return self._run(lambda e: e.tr_from_tpmpublic(handle))

    def _flush(self, handle: Any) -> None:
        self._run(lambda e: e.flush_context(handle))

    def _find_srk(self) -> Any:
        """The persistent SRK, or the one of the template: whichever was pinned at enrolment, if both are there."""
        pinned = None if self._objects is None else self._objects.srk_name
        try:
            persistent = self._run(lambda e: e.tr_from_tpmpublic(SRK_HANDLE))
        except _TpmRefusal as refusal:
            if refusal.code & _FMT1_MASK != _RC_HANDLE:
                raise
            return self._create_srk()
        if pinned is None or self._salt_key_name(persistent) == pinned:
            return persistent
        # Somebody made a persistent key after our enrolment.
        try:
            primary = self._create_srk()
        except _TpmRefusal:
            return persistent
        if self._salt_key_name(primary) == pinned:
            return primary
        self._flush(primary)
        return persistent

    def _create_srk(self) -> Any:
        t = self._t
        attributes = (
            t.TPMA_OBJECT.FIXEDTPM
            | t.TPMA_OBJECT.FIXEDPARENT
            | t.TPMA_OBJECT.SENSITIVEDATAORIGIN
            | t.TPMA_OBJECT.USERWITHAUTH
            | t.TPMA_OBJECT.NODA
            | t.TPMA_OBJECT.RESTRICTED
            | t.TPMA_OBJECT.DECRYPT
        )
        template = t.TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=attributes)
        return self._run(lambda e: e.create_primary(None, template))[0]

    def _salt_key_name(self, key: Any) -> bytes:
        """Name (Part 1, 16) of the public key to which ESYS will encrypt a session's salt.

        It is computed from the copy that ESYS holds: a name, or a public area, asked of the TPM once more could be
        answered by somebody else on the bus.
        """
        data = bytes(self._run(lambda e: e.tr_serialize(key)))
        # Serialized are the handle (4), the name (2 + n), the kind of resource (4) and the public area.
        start = 10 + int.from_bytes(data[4:6], "big")
        public, used = self._unmarshal(self._t.TPM2B_PUBLIC, data[start:])
        if start + used != len(data):
            raise BackendUnavailable("this version of the TPM library keeps its keys in a form that is not known here")
        return bytes(public.get_name())

    def _unmarshal(self, kind: Any, data: bytes) -> tuple[Any, int]:
        try:
            value, used = kind.unmarshal(data)
        except self._t.TSS2_Exception:
            raise ForeignHardware(f"{self._path} holds what no TPM has made") from None
        return value, int(used)

    def _salted_session(self) -> Any:
        t = self._t
        symmetric = t.TPMT_SYM_DEF(
            algorithm=t.TPM2_ALG.AES,
            keyBits=t.TPMU_SYM_KEY_BITS(sym=128),
            mode=t.TPMU_SYM_MODE(sym=t.TPM2_ALG.CFB),
        )
        session = self._run(
            lambda e: e.start_auth_session(self._srk, t.ESYS_TR.NONE, t.TPM2_SE.HMAC, symmetric, t.TPM2_ALG.SHA256)
        )
        attributes = t.TPMA_SESSION.CONTINUESESSION | t.TPMA_SESSION.ENCRYPT | t.TPMA_SESSION.DECRYPT
        self._run(lambda e: e.trsess_set_attributes(session, attributes))
        return session

    def _run(self, command: Callable[[Any], T]) -> T:
        """Runs one command; what the TPM refuses becomes `_TpmRefusal`, what does not reach it BackendUnavailable."""
        if self._esys is None:
            raise BackendUnavailable(f"the connection to the TPM at {self._tcti} is broken")
        try:
            return command(self._esys)
        except self._t.TSS2_Exception as error:
            code = int(error.rc)
            if code & _LAYER_MASK in _TPM_LAYERS:
                if code & 0xFFF in _RC_REFERENCES or code & 0xFFF == _RC_SESSION_HANDLE:
                    self._abandon()
                    raise BackendUnavailable(f"the TPM at {self._tcti} has been reset: {error}") from None
                raise _TpmRefusal(code, f"the TPM refused a command: {error}") from None
            self._abandon()
            raise BackendUnavailable(f"the TPM at {self._tcti} does not answer: {error}") from None

    def _abandon(self) -> None:
        """Forgets a broken connection; the next command makes a new one."""
        esys, self._esys = self._esys, None
        self._nv.clear()
        self._srk = self._session = None
        if esys is not None:
            with contextlib.suppress(Exception):
                esys.close()

    def _disconnect(self) -> None:
        for handle in (self._session, self._srk):
            if handle is not None:
                with contextlib.suppress(HwsecError):  # a persistent SRK is refused, and stays
                    self._flush(handle)
        self._abandon()

    def close(self) -> None:
        """Flushes the session and closes the connection."""
        self._disconnect()
        self._objects = None

    # Enrolment

    def create(self) -> None:
        """Makes KEK, key-agreement key and the three NV indices."""
        if self._path.exists() or self._twin.exists():
            raise AlreadyEnrolled(f"{self._path} exists already: this agent has been initialized")
        self.close()
        self._connect()
        t = self._t
        session = self._session
        sealed = (
            t.TPMA_OBJECT.FIXEDTPM
            | t.TPMA_OBJECT.FIXEDPARENT
            | t.TPMA_OBJECT.NODA
            | t.TPMA_OBJECT.ADMINWITHPOLICY
            | t.TPMA_OBJECT.USERWITHAUTH
        )
        agreement = (
            t.TPMA_OBJECT.FIXEDTPM
            | t.TPMA_OBJECT.FIXEDPARENT
            | t.TPMA_OBJECT.NODA
            | t.TPMA_OBJECT.USERWITHAUTH
            | t.TPMA_OBJECT.SENSITIVEDATAORIGIN
            | t.TPMA_OBJECT.DECRYPT
        )
        with SecretBuffer(SECRET_BYTES) as kek:
            self._random_into(kek.view)
            sensitive = t.TPM2B_SENSITIVE_CREATE(t.TPMS_SENSITIVE_CREATE(data=bytes(SECRET_BYTES)))
            t.types.ffi.memmove(sensitive.sensitive.data._cdata.buffer, kek.view, SECRET_BYTES)
            template = t.TPM2B_PUBLIC.parse("keyedhash", objectAttributes=sealed)
            try:
                private, public, *_ = self._run(lambda e: e.create(self._srk, sensitive, template, session1=session))
            finally:
                self._wipe(sensitive.sensitive.data)
            kek_blob = _Blob(private.marshal(), public.marshal())
            sensitive = t.TPM2B_SENSITIVE_CREATE(t.TPMS_SENSITIVE_CREATE(userAuth=_auth(kek, "agreement")))
            template = t.TPM2B_PUBLIC.parse("ecc256:ecdh", objectAttributes=agreement)
            private, public, *_ = self._run(lambda e: e.create(self._srk, sensitive, template, session1=session))
            objects = _Objects(self._salt_key_name(self._srk), kek_blob, _Blob(private.marshal(), public.marshal()))
            for number, kind, size in (
                (_NV_ANCHOR, t.TPM2_NT.ORDINARY, ANCHOR_BYTES),
                (_NV_COUNTER, t.TPM2_NT.COUNTER, 8),
                (_NV_AUDIT, t.TPM2_NT.EXTEND, DIGEST_BYTES),
            ):
                self._define_nv(number, kind, size, kek)
        data = msgspec.msgpack.encode(objects)
        data = hashlib.sha256(data).digest() + data
        self._objects = objects
        try:
            # A counter can be read only after its first increment (Part 3, 31.3). The files come last: until they are
            # there, an enrolment that was cut can be repeated.
            self.increment()
            write_atomic(self._twin, data)
            write_atomic(self._path, data)
        except BaseException:
            self.close()
            raise

    def _define_nv(self, number: int, kind: Any, size: int, kek: SecretBuffer) -> None:
        t = self._t
        index = self._nv_base + number
        attributes = t.TPMA_NV.AUTHREAD | t.TPMA_NV.AUTHWRITE | t.TPMA_NV.NO_DA | (kind << t.TPMA_NV.TPM2_NT_SHIFT)
        public = t.TPM2B_NV_PUBLIC(
            nvPublic=t.TPMS_NV_PUBLIC(nvIndex=index, nameAlg=t.TPM2_ALG.SHA256, attributes=attributes, dataSize=size)
        )
        # An enrolment that was cut leaves an index behind whose auth nobody knows.
        with contextlib.suppress(_TpmRefusal):
            old = self._run(lambda e: e.tr_from_tpmpublic(index))
            self._run(lambda e: e.nv_undefine_space(old, session1=self._session))
        self._run(lambda e: e.nv_define_space(_auth(kek, f"nv{number}"), public, session1=self._session))

    def open(self) -> None:
        """Reads the sealed objects and holds the SRK against the one they were made under."""
        self.close()
        self._objects = self._load_objects()
        try:
            self._connect()
            self._agreement_point()
        except BaseException:
            self.close()
            raise

    def _load_objects(self) -> _Objects:
        copies = {path: _read(path) for path in (self._path, self._twin)}
        if all(data is None for data in copies.values()):
            raise NotEnrolled(f"{self._path} does not exist: run 'license-agent init' first")
        for data in copies.values():
            objects = None if data is None else _parse_objects(data)
            if data is None or objects is None:
                continue
            for path, found in copies.items():
                if found != data:
                    with contextlib.suppress(OSError):  # a full disk is no reason not to start
                        write_atomic(path, data)
            return objects
        raise NotEnrolled(f"{self._path} and its twin are damaged: initialize this agent anew")

    def _require_objects(self) -> _Objects:
        if self._objects is None:
            raise NotEnrolled("the TPM backend is not open")
        return self._objects

    @contextmanager
    def _loaded(self, blob: _Blob) -> Iterator[Any]:
        private, _ = self._unmarshal(self._t.TPM2B_PRIVATE, blob.private)
        public, _ = self._unmarshal(self._t.TPM2B_PUBLIC, blob.public)
        try:
            handle = self._run(lambda e: e.load(self._srk, private, public, session1=self._session))
        except _TpmRefusal as refusal:
            if refusal.code & _FMT1_MASK == _RC_INTEGRITY:
                raise ForeignHardware("this TPM cannot load the sealed objects: they are damaged or not its own") from None
            raise
        try:
            yield handle
        finally:
            if self._esys is not None:
                self._flush(handle)

    # KEK

    @contextmanager
    def kek(self) -> Iterator[SecretBuffer]:
        """Unseals the KEK (Part 3, 12.7) for the length of the block."""
        blob = self._require_objects().kek
        self._connect()
        t = self._t
        with SecretBuffer(SECRET_BYTES) as buffer:
            with self._loaded(blob) as handle:
                answer = self._run(lambda e: e.unseal(handle, session1=self._session))
                if answer._cdata.size != SECRET_BYTES:
                    raise ForeignHardware("the sealed key has an unexpected size")
                buffer.view[:] = memoryview(t.types.ffi.buffer(answer._cdata.buffer, SECRET_BYTES))
                self._wipe(answer)
            # The TSS keeps its last response; a longer one overwrites it.
            self._run(lambda e: e.get_capability(t.TPM2_CAP.COMMANDS, 0, 200))
            yield buffer

    def _wipe(self, sized: Any) -> None:
        self._t.types.ffi.memmove(sized._cdata.buffer, bytes(SECRET_BYTES), SECRET_BYTES)

    def _random_into(self, view: memoryview) -> None:
        hardware = bytes(self._run(lambda e: e.get_random(32, session1=self._session, session2=self._t.ESYS_TR.NONE)))
        mixer = HKDF(hashes.SHA256(), len(view), salt=os.urandom(32), info=b"license-agent random")
        mixer.derive_into(hardware + os.urandom(32), view)

    def random(self, size: int) -> bytes:
        """TPM and kernel randomness, mixed by HKDF: as good as the better of the two."""
        self._connect()
        mixed = bytearray(size)
        with memoryview(mixed) as view:
            for start in range(0, size, _HKDF_MAX):
                self._random_into(view[start : start + _HKDF_MAX])
        return bytes(mixed)

    # NV

    def _nv_handle(self, number: int) -> Any:
        self._require_objects()
        self._connect()
        if number not in self._nv:
            index = self._nv_base + number
            try:
                handle = self._run(lambda e: e.tr_from_tpmpublic(index))
            except _TpmRefusal as refusal:
                if refusal.code & _FMT1_MASK == _RC_HANDLE:
                    raise ForeignHardware(
                        f"NV index 0x{index:08x} is gone: the TPM was cleared, or the index deleted"
                    ) from None
                raise
            with self.kek() as kek:
                auth = _auth(kek, f"nv{number}")
            self._run(lambda e: e.tr_set_auth(handle, auth))
            self._nv[number] = handle
        return self._nv[number]

    def read_anchor(self) -> tuple[Anchor | None, int]:
        """Reads anchor and counter."""
        index, counter = self._nv_handle(_NV_ANCHOR), self._nv_handle(_NV_COUNTER)
        count = bytes(self._run(lambda e: e.nv_read(counter, 8, 0, counter, session1=self._session)))
        try:
            data = bytes(self._run(lambda e: e.nv_read(index, ANCHOR_BYTES, 0, index, session1=self._session)))
        except _TpmRefusal as refusal:
            if refusal.code & 0xFFF != _RC_NV_UNINITIALIZED:
                raise
            return None, int.from_bytes(count, "big")
        try:
            return Anchor.decode(data), int.from_bytes(count, "big")
        except ValueError:
            raise ForeignHardware("the anchor's NV index holds something else") from None

    def write_anchor(self, anchor: Anchor) -> None:
        """Writes the anchor's NV index (Part 3, 31.7)."""
        index = self._nv_handle(_NV_ANCHOR)
        self._run(lambda e: e.nv_write(index, anchor.encode(), 0, index, session1=self._session))
        self._writes += 1

    def increment(self) -> int:
        """TPM2_NV_Increment (Part 3, 31.8)."""
        counter = self._nv_handle(_NV_COUNTER)
        self._run(lambda e: e.nv_increment(counter, counter, session1=self._session))
        self._writes += 1
        return int.from_bytes(bytes(self._run(lambda e: e.nv_read(counter, 8, 0, counter, session1=self._session))), "big")

    def read_audit(self) -> bytes:
        """Reads the extend index; zeros before its first extension."""
        index = self._nv_handle(_NV_AUDIT)
        try:
            return bytes(self._run(lambda e: e.nv_read(index, DIGEST_BYTES, 0, index, session1=self._session)))
        except _TpmRefusal as refusal:
            if refusal.code & 0xFFF != _RC_NV_UNINITIALIZED:
                raise
            return bytes(DIGEST_BYTES)

    def extend_audit(self, head: bytes) -> bytes:
        """TPM2_NV_Extend (Part 3, 31.9)."""
        before = self.read_audit()
        index = self._nv_handle(_NV_AUDIT)
        self._run(lambda e: e.nv_extend(index, head, index, session1=self._session))
        self._writes += 1
        return hashlib.sha256(before + head).digest()

    # Key agreement

    def _agreement_point(self) -> bytes:
        blob = self._require_objects().agreement
        public, _ = self._unmarshal(self._t.TPM2B_PUBLIC, blob.public)
        point = public.publicArea.unique.ecc
        return b"\x04" + bytes(point.x).rjust(32, b"\0") + bytes(point.y).rjust(32, b"\0")

    def agreement_public(self) -> bytes:
        """The public point, from the public area."""
        return self._agreement_point()

    def agree(self, peer_point: bytes) -> SecretBuffer:
        """TPM2_ECDH_ZGen (Part 3, 14.5); the TPM checks that the point is on the curve."""
        blob = self._require_objects().agreement
        if len(peer_point) != POINT_BYTES or peer_point[0] != 4:
            raise ValueError("not an uncompressed P-256 point")
        self._connect()
        t = self._t
        point = t.TPM2B_ECC_POINT(t.TPMS_ECC_POINT(x=peer_point[1:33], y=peer_point[33:]))
        with self.kek() as kek:
            auth = _auth(kek, "agreement")
        with self._loaded(blob) as handle:
            self._run(lambda e: e.tr_set_auth(handle, auth))
            try:
                answer = self._run(lambda e: e.ecdh_zgen(handle, point, session1=self._session))
            except _TpmRefusal as refusal:
                if refusal.code & _FMT1_MASK not in (_RC_ECC_POINT, _RC_SIZE, _RC_VALUE):
                    raise
                raise ValueError(f"the TPM refused the peer's point ({refusal})") from None
            buffer = SecretBuffer(32)
            x = answer.point.x
            size = x._cdata.size
            buffer.view[32 - size :] = memoryview(t.types.ffi.buffer(x._cdata.buffer, size))
            self._wipe(x)
        self._run(lambda e: e.get_capability(t.TPM2_CAP.COMMANDS, 0, 200))
        return buffer

    # Status

    def status(self) -> BackendStatus:
        """Asks the TPM for its clock, which every TPM can answer."""
        try:
            self._connect()
            time_info = self._run(lambda e: e.read_clock())
            clock = time_info.clockInfo  # lies in time_info's memory
        except HwsecError as error:
            return BackendStatus("tpm", False, str(error), True, self._writes)
        detail = f"TPM 2.0 at {self._tcti}, reset count {clock.resetCount}, restart count {clock.restartCount}"
        return BackendStatus("tpm", True, detail, True, self._writes)


class _TpmRefusal(BackendUnavailable):
    """The TPM answered with an error code (Part 2, 6.6)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _auth(kek: SecretBuffer, purpose: str) -> bytes:
    """Auth value of one of our objects: 32 bytes derived from the KEK, so that only who unseals it can use the object."""
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"license-agent tpm auth {purpose}".encode()).derive(kek.view)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise BackendUnavailable(f"{path} cannot be read: {error.strerror}") from error
        return b""  # a broken block: its twin may be whole


def _parse_objects(data: bytes) -> _Objects | None:
    checksum, body = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if hashlib.sha256(body).digest() != checksum:
        return None
    try:
        return msgspec.msgpack.decode(body, type=_Objects)
    except msgspec.MsgspecError:
        return None
