"""Defines and uses our NV indices: anchor (ordinary), commit counter and policy counter (counter), audit value (extend).

All are written and read by an auth value of their own, never by the owner, and count no failures (NO_DA). The TPM library has
an auth value only while a command runs; else it rests in the vault.
"""

import contextlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..backend import ANCHOR_BYTES, DIGEST_BYTES
from ..errors import ForeignHardware, NvGone, unsigned
from ..nv.layout import NV_ANCHOR, NV_AUDIT, NV_COUNTER, NV_POLICY_COUNTER
from ..secretmem import SecretBuffer
from ..vault import Vault, WrappedSecret
from .codes import ANY, RC_AUTH_FAIL, RC_BAD_AUTH, RC_HANDLE, RC_NV_UNINITIALIZED, TpmRefusal
from .transport import AUTH_COVER, Transport

_COUNTER_BYTES = 8
NUMBERS = (NV_ANCHOR, NV_COUNTER, NV_AUDIT, NV_POLICY_COUNTER)


class NvIndices:
    """Four NV indices over one connection at a time.

    Args:
        tpm: the connection.
        base: the indices follow this number.
        vault: holds their auth values.
    """

    def __init__(self, tpm: Transport, base: int, vault: Vault) -> None:
        self._tpm = tpm
        self._base = base
        self._vault = vault
        self._handles: dict[int, tuple[Any, WrappedSecret]] = {}
        self._generation = -1
        self._depth = 0
        self._used: Any = None  # the last one used in the connection's session, which has its auth value

    def _known(self) -> dict[int, tuple[Any, WrappedSecret]]:
        if self._generation != self._tpm.generation or not self._tpm.connected:
            self._handles.clear()
            self._used = None
            self._generation = self._tpm.generation
        return self._handles

    def forget(self) -> None:
        """Forgets handles and auth values."""
        self._handles.clear()

    def missing(self) -> list[int]:
        """Those of our indices that are not in the TPM: its authenticated word.

        Raises:
            UnreliableHardware: it refuses to say.
        """
        try:
            there = self._tpm.handles_from(self._base, self._tpm.witness)
        except TpmRefusal as reason:
            raise self._tpm.misfit(str(reason)) from None
        return [self._base + number for number in NUMBERS if self._base + number not in there]

    def define(self, number: int, auth: SecretBuffer) -> None:
        """Defines an index again (TPM2_NV_DefineSpace: Part 3, 31.3) in the place of what is there.

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
        if index in tpm.handles_from(self._base, tpm.witness):
            old = tpm.run(lambda e: e.tr_from_tpmpublic(index, session1=tpm.session))
            tpm.run(lambda e: e.nv_undefine_space(old, session1=tpm.session))
        value = t.TPM2B_AUTH(bytes(len(auth)))
        try:
            tpm.fill(value, auth.view)
            handle = tpm.run(lambda e: e.nv_define_space(value, public, session1=tpm.session))
        finally:
            tpm.wipe(value)
        # The library keeps the auth value with the new handle, and in the arguments of its last TPM2_NV_DefineSpace. One more,
        # which the TPM refuses because the index is there, overwrites these.
        tpm.run(lambda e: e.tr_set_auth(handle, None))
        with contextlib.suppress(TpmRefusal):
            tpm.run(lambda e: e.nv_define_space(AUTH_COVER, public, session1=tpm.session), ANY)

    def knows(self, number: int) -> bool:
        """Whether the index has been authorized over this connection."""
        return number in self._known()

    def authorize(self, number: int, auth: SecretBuffer) -> None:
        """Sets the auth value of an index. Once for a connection: the library keeps each handle that it is asked for.

        Raises:
            NvGone: it is not there.
        """
        tpm, index = self._tpm, self._base + number
        try:
            # In the session: with the name of an earlier answer, the TPM would refuse every command on this index.
            handle = tpm.run(lambda e: e.tr_from_tpmpublic(index, session1=tpm.session), (RC_HANDLE,))
        except TpmRefusal as reason:
            if reason.code != RC_HANDLE:
                raise
            if index not in self.missing():
                raise tpm.misfit("it hides an NV index that is there") from None
            raise self._gone(number) from None
        self._known()[number] = handle, self._vault.wrap(auth)

    def _gone(self, number: int) -> NvGone:
        self._known().pop(number, None)
        return NvGone(f"NV index 0x{self._base + number:08x} is gone: the TPM was cleared, or the index deleted")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commands of the block are covered once, at its end, instead of one by one."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._known()
            if not self._depth and self._used is not None:
                used, self._used = self._used, None
                self._cover(used)

    def _cover(self, handle: Any, session: Any = None) -> None:
        tpm = self._tpm
        tpm.cover(handle, lambda e: e.nv_read(handle, 8, 0, handle, session1=tpm.session if session is None else session))

    @contextmanager
    def lent(self, number: int) -> Iterator[Any]:
        """The handle of an index that has been authorized; the TPM library has its auth value for the length of the block.

        Raises:
            NvGone, ForeignHardware: a command of the block has shown that it is not there, or not ours.
        """
        with self.together():
            handle, wrapped = self._known()[number]
            self._used = handle
            with self._vault.open(wrapped) as auth, self._tpm.lend(handle, auth.view):
                auth.wipe()  # the library has it now
                try:
                    yield handle
                except TpmRefusal as reason:
                    if reason.code == RC_HANDLE:
                        raise unsigned(self._gone(number)) from None
                    if reason.code in (RC_BAD_AUTH, RC_AUTH_FAIL):
                        text = (
                            f"NV index 0x{self._base + number:08x} has another auth value than ours: somebody has redefined it"
                        )
                        raise unsigned(ForeignHardware(text)) from None
                    raise

    def _run(self, number: int, command: Any, refusals: Container[int] = ()) -> Any:
        """Runs a command on an index that has been authorized."""
        with self.lent(number) as handle:
            return self._tpm.run(lambda e: command(e, handle), refusals)

    def _is_written(self, number: int) -> bool:
        """Whether an index that has been authorized was ever written: the TPM's authenticated word."""
        handle, tpm = self._known()[number][0], self._tpm
        try:
            public = tpm.run(lambda e: e.nv_read_public(handle, session1=tpm.session))[0].nvPublic
        except TpmRefusal as reason:
            raise tpm.misfit(str(reason)) from None
        return bool(int(public.attributes) & int(tpm.t.TPMA_NV.WRITTEN))

    def read(self, number: int, size: int) -> bytes | None:
        """TPM2_NV_Read (Part 3, 31.13); None if it has never been written."""
        session = self._tpm.session
        read = partial(self._run, number, refusals=(RC_NV_UNINITIALIZED,))
        try:
            return bytes(read(lambda e, handle: e.nv_read(handle, size, 0, handle, session1=session)))
        except TpmRefusal as reason:
            if reason.code != RC_NV_UNINITIALIZED:
                raise
            if self._is_written(number):
                raise self._tpm.misfit("it says that an NV index has never been written, which has been") from None
            return None

    def read_count(self, number: int) -> int | None:
        """The value of a counter; None before its first increment (Part 3, 31.3)."""
        value = self.read(number, _COUNTER_BYTES)
        return None if value is None else int.from_bytes(value, "big")

    def read_counter(self, number: int) -> int:
        """The value of a counter of ours, which was incremented when it was made."""
        count = self.read_count(number)
        if count is None:
            raise ForeignHardware(f"NV index 0x{self._base + number:08x} has never been incremented: it is not ours")
        return count

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
        with tpm.fresh_session(t.TPM2_SE.HMAC, encrypts=False) as second, self.lent(number) as handle:
            try:
                answer: tuple[Any, Any] = tpm.run(
                    lambda e: e.nv_certify(key, handle, nonce, scheme, size, 0, handle, session1=tpm.session, session2=second)
                )
            finally:
                self._cover(handle, second)
        return answer
