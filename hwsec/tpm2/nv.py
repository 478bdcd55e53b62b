"""Our NV indices: anchor (ordinary), commit counter and policy counter (counter), audit value (extend).

All are written and read by an auth value of their own, never by the owner, and count no failures (NO_DA).
"""

import contextlib
from typing import Any

from ..backend import ANCHOR_BYTES, DIGEST_BYTES
from ..errors import ForeignHardware, NvGone
from ..nvlayout import NV_ANCHOR, NV_AUDIT, NV_COUNTER, NV_POLICY_COUNTER
from .codes import RC_AUTH_FAIL, RC_BAD_AUTH, RC_HANDLE, RC_NV_UNINITIALIZED, TpmRefusal
from .transport import Transport

_COUNTER_BYTES = 8
NUMBERS = (NV_ANCHOR, NV_COUNTER, NV_AUDIT, NV_POLICY_COUNTER)


class NvIndices:
    """Four NV indices over one connection at a time.

    Args:
        tpm: the connection.
        base: the indices follow this number.
    """

    def __init__(self, tpm: Transport, base: int) -> None:
        self._tpm = tpm
        self._base = base
        self._handles: dict[int, Any] = {}
        self._generation = -1

    def _known(self) -> dict[int, Any]:
        if self._generation != self._tpm.generation or not self._tpm.connected:
            self._handles.clear()
            self._generation = self._tpm.generation
        return self._handles

    def forget(self) -> None:
        """Forgets handles and auth values."""
        self._handles.clear()

    def missing(self) -> list[int]:
        """Those of our indices that are not in the TPM."""
        there = self._tpm.handles_from(self._base)
        return [self._base + number for number in NUMBERS if self._base + number not in there]

    def define(self, number: int, auth: bytes) -> None:
        """Makes an index anew (TPM2_NV_DefineSpace: Part 3, 31.3) in the place of what is there.

        An enrolment that was cut leaves an index behind whose auth nobody knows.
        """
        tpm, t = self._tpm, self._tpm.t
        index = self._base + number
        kind, size = {
            NV_ANCHOR: (t.TPM2_NT.ORDINARY, ANCHOR_BYTES),
            NV_COUNTER: (t.TPM2_NT.COUNTER, _COUNTER_BYTES),
            NV_AUDIT: (t.TPM2_NT.EXTEND, DIGEST_BYTES),
            NV_POLICY_COUNTER: (t.TPM2_NT.COUNTER, _COUNTER_BYTES),
        }[number]
        attributes = t.TPMA_NV.AUTHREAD | t.TPMA_NV.AUTHWRITE | t.TPMA_NV.NO_DA | (kind << t.TPMA_NV.TPM2_NT_SHIFT)
        public = t.TPM2B_NV_PUBLIC(
            nvPublic=t.TPMS_NV_PUBLIC(nvIndex=index, nameAlg=t.TPM2_ALG.SHA256, attributes=attributes, dataSize=size)
        )
        self._known().pop(number, None)
        with contextlib.suppress(TpmRefusal):
            old = tpm.run(lambda e: e.tr_from_tpmpublic(index))
            tpm.run(lambda e: e.nv_undefine_space(old, session1=tpm.session))
        tpm.run(lambda e: e.nv_define_space(auth, public, session1=tpm.session))

    def knows(self, number: int) -> bool:
        """Whether the auth value of the index has been set over this connection."""
        return number in self._known()

    def handle(self, number: int) -> Any:
        """The handle of an index that has been authorized."""
        return self._known()[number]

    def authorize(self, number: int, auth: bytes) -> None:
        """Sets the auth value of an index. Once for a connection: the library keeps each handle that it is asked for.

        Raises:
            NvGone: it is not there.
        """
        index = self._base + number
        try:
            handle = self._tpm.run(lambda e: e.tr_from_tpmpublic(index))
        except TpmRefusal as reason:
            if reason.code == RC_HANDLE:
                raise self._gone(number) from None
            raise
        self._tpm.run(lambda e: e.tr_set_auth(handle, auth))
        self._known()[number] = handle

    def _gone(self, number: int) -> NvGone:
        self._known().pop(number, None)
        return NvGone(f"NV index 0x{self._base + number:08x} is gone: the TPM was cleared, or the index deleted")

    def _run(self, number: int, command: Any) -> Any:
        """Runs a command on an index that has been authorized."""
        handle = self.handle(number)
        try:
            return self._tpm.run(lambda e: command(e, handle))
        except TpmRefusal as reason:
            if reason.code == RC_HANDLE:
                raise self._gone(number) from None
            if reason.code in (RC_BAD_AUTH, RC_AUTH_FAIL):
                raise ForeignHardware(
                    f"NV index 0x{self._base + number:08x} has another auth value than ours: somebody has made it anew"
                ) from None
            raise

    def read(self, number: int, size: int) -> bytes | None:
        """TPM2_NV_Read (Part 3, 31.13); None if it has never been written."""
        session = self._tpm.session
        try:
            return bytes(self._run(number, lambda e, handle: e.nv_read(handle, size, 0, handle, session1=session)))
        except TpmRefusal as reason:
            if reason.code != RC_NV_UNINITIALIZED:
                raise
            return None

    def read_counter(self, number: int) -> int:
        """The value of a counter; it can be read after its first increment."""
        value = self.read(number, _COUNTER_BYTES)
        if value is None:
            raise ForeignHardware(f"NV index 0x{self._base + number:08x} has never been incremented: it is not ours")
        return int.from_bytes(value, "big")

    def write(self, number: int, data: bytes) -> None:
        """TPM2_NV_Write (Part 3, 31.7)."""
        session = self._tpm.session
        self._run(number, lambda e, handle: e.nv_write(handle, data, 0, handle, session1=session))

    def increment(self, number: int) -> None:
        """TPM2_NV_Increment (Part 3, 31.8)."""
        session = self._tpm.session
        self._run(number, lambda e, handle: e.nv_increment(handle, handle, session1=session))

    def extend(self, number: int, data: bytes) -> None:
        """TPM2_NV_Extend (Part 3, 31.9)."""
        session = self._tpm.session
        self._run(number, lambda e, handle: e.nv_extend(handle, data, handle, session1=session))

    def certify(self, number: int, size: int, key: Any, nonce: bytes) -> tuple[Any, Any]:
        """TPM2_NV_Certify (Part 3, 31.16) by a loaded signing key; two handles want two sessions."""
        tpm, t = self._tpm, self._tpm.t
        scheme = t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL)  # the key's own
        with tpm.fresh_session(t.TPM2_SE.HMAC, encrypts=False) as second:
            answer: tuple[Any, Any] = self._run(
                number,
                lambda e, handle: e.nv_certify(
                    key, handle, nonce, scheme, size, 0, handle, session1=tpm.session, session2=second
                ),
            )
        return answer
