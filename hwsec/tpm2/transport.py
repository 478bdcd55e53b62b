"""Connects to a TPM: its storage root key, and the sessions that are salted with it.

Every command that carries a secret runs in a session that is salted with the SRK and encrypts the first parameter in both
directions (Part 1, 19.6.8 and 21), so that a tapped bus shows neither; the session's HMACs show a changed or repeated answer.

A response code that refuses a command has no HMAC. If the TPM has executed that command after all, session and TPM no longer
agree on the nonce, and nothing works in it any more. So every refusal that the caller has not named ends the connection.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from common.histogram import Histogram

from ..errors import (
    BackendUnavailable,
    ForeignHardware,
    HardwareReset,
    HwsecError,
    LockedOut,
    OutOfSessions,
    UnreliableHardware,
    unsigned,
)
from .codes import ANY, RC_AUTH_FAIL, RC_BAD_AUTH, RC_HANDLE, TpmRefusal, is_from_tpm, is_no_answer, refusal
from .library import library
from .templates import SRK

T = TypeVar("T")

SRK_HANDLE = 0x81000001  # TCG TPM v2.0 Provisioning Guidance, 7.8
AUTH_COVER = b"\x01" * 32
"""An auth value that is nobody's, as long as ours."""


COMMAND_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of the buckets that commands are counted in by their duration, in seconds."""


class Transport:
    """A connection that is made when it is needed, and made again after it broke.

    Args:
        tcti: how to reach the TPM, as tpm2-tss writes it.

    Attributes:
        took: how long each command took.
        generation: counts connections; what was loaded over one is worth nothing over the next.
    """

    def __init__(self, tcti: str) -> None:
        self.tcti = tcti
        self.generation = 0
        self.took = Histogram(COMMAND_BOUNDS)
        self._t: Any = None
        self._esys: Any = None
        self._srk: Any = None
        self._session: Any = None
        self._runner: int | None = None  # the thread that is in the middle of a command
        self._lent: list[Any] = []  # handles whose auth values the library has now
        self._given_up = False
        self._doubtful = False

    @property
    def t(self) -> Any:
        """The TPM library; there is one as soon as there was a connection."""
        return self._t

    @property
    def srk(self) -> Any:
        """The storage root key, parent of all that is ours."""
        return self._srk

    @property
    def session(self) -> Any:
        """The HMAC session of this connection: salted, encrypting in both directions. To be asked for at each command.

        The library takes away the attributes that a command has no use for, and gives them back only if the TPM did not refuse
        (seen with tpm2-tss 3.2.1): after a refusal, what we send next would cross the bus in the clear.
        """
        if self._esys is not None and self._session is not None:
            self._set_attributes(self._session, encrypts=True, audits=False)
        return self._session

    @property
    def witness(self) -> Any:
        """The same session, for a command whose answer holds no secret and is only to be authenticated (Part 1, 17.1)."""
        if self._esys is not None and self._session is not None:
            self._set_attributes(self._session, encrypts=False, audits=True)
        return self._session

    @property
    def given_up(self) -> bool:
        """Whether another connection has taken this one's place."""
        return self._given_up

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._esys is not None

    def connect(self, pinned: bytes | None) -> None:
        """Makes a connection if there is none, or if the last answer over it was doubtful.

        Args:
            pinned: name of the SRK that the agent was enrolled with; None before that.

        Raises:
            BackendUnavailable: no TPM answers.
            ForeignHardware: another one does.
        """
        self._stop_if_given_up()
        if self._doubtful:
            self.disconnect()
        if self._esys is not None:
            return
        t = self._t = library()
        try:
            esys = t.ESAPI(self.tcti)
        except (RuntimeError, ValueError) as error:  # TSS2_Exception is a RuntimeError
            raise BackendUnavailable(
                f"no TPM answers at {self.tcti} ({error}); is it enabled in the firmware, and may this user open it "
                "(group tss)?"
            ) from None
        self._esys = esys
        self.generation += 1
        try:
            if not self.tcti.startswith("device:"):
                self._flush_leftovers()
            self._srk = self._find_srk(pinned)
            # Before the session: who could decrypt its salt, on the bus or in this TPM's place, would read all that passes.
            if pinned is not None and self.salt_key_name(self._srk) != pinned:
                raise unsigned(
                    ForeignHardware(
                        "the sealed objects belong to another TPM (or to this one before it was cleared): its storage root key "
                        "has another name; initialize this agent again, which needs new secrets from the server"
                    )
                )
            self._session = self.start_session(t.TPM2_SE.HMAC)
            self._use_nobodys_auth()
        except BaseException:
            self.disconnect()
            raise

    def _use_nobodys_auth(self) -> None:
        """Has the library compute the first HMAC with an auth value before it gets one of ours.

        Below the library, a copy of an HMAC's key stays in freed memory, where the next HMAC overwrites it; the first copy of a
        process lies elsewhere and stays (seen with Debian 13's tpm2-tss 4.1.3 and OpenSSL 3.5). The TPM refuses the command
        before it creates anything, and does not count that: a hierarchy has no dictionary attack protection (Part 1, 19.8).
        """
        null, template = self._t.ESYS_TR.NULL, self.public_template(SRK)
        with contextlib.suppress(TpmRefusal), self.lend(null, memoryview(AUTH_COVER)):
            self.flush(self.run(lambda e: e.create_primary(None, template, primary_handle=null, session1=self.session), ANY)[0])

    def run(self, command: Callable[[Any], T], refusals: Container[int] = ()) -> T:
        """Runs one command.

        Args:
            command: gets the library's connection.
            refusals: codes that the caller can make something of, though nobody signs them: for these the connection stays.

        Raises:
            TpmRefusal: the TPM refuses. Unless the code is one of `refusals`, the next `connect` makes a fresh connection;
                until then auth values can be covered and handles flushed over this one.
            LockedOut, OutOfSessions: the TPM refuses; the connection stays, so that the TPM can be asked to sign it.
            HardwareReset: sessions or objects are gone; the connection is closed.
            UnreliableHardware: the answer was not genuine; the connection is closed.
            BackendUnavailable: nothing was received; the connection is closed.
        """
        self._stop_if_given_up()
        if self._esys is None:
            raise unsigned(BackendUnavailable(f"the connection to the TPM at {self.tcti} is broken"))
        before, self._runner = self._runner, threading.get_ident()
        began = time.monotonic()
        try:
            return command(self._esys)
        except self._t.TSS2_Exception as error:
            code = int(error.rc)
            if is_from_tpm(code):
                reason = refusal(code, str(error))
                if isinstance(reason, HardwareReset):
                    self.abandon()
                    raise unsigned(HardwareReset(f"the TPM at {self.tcti} has been reset: {error}")) from None
                expected = isinstance(reason, TpmRefusal) and reason.code in refusals
                if not expected and not isinstance(reason, LockedOut | OutOfSessions):
                    self._doubtful = True
                raise reason from None
            if is_no_answer(code):
                self.abandon()
                raise unsigned(BackendUnavailable(f"the TPM at {self.tcti} does not answer: {error}")) from None
            raise self.misfit(str(error)) from None
        finally:
            self._runner = before
            self.took.observe(time.monotonic() - began)

    def misfit(self, text: str) -> UnreliableHardware:
        """Closes the connection, whose answers do not fit together, and returns the error for the caller to raise."""
        self.abandon()
        return unsigned(UnreliableHardware(f"the TPM at {self.tcti} did not answer that, or not to this command: {text}"))

    def flush(self, handle: Any) -> None:
        """TPM2_FlushContext (Part 3, 28.4)."""
        self.run(lambda e: e.flush_context(handle))

    def give_up(self) -> None:
        """No command follows the one that hangs; may be called while another thread is in the middle of it.

        Where handles are shared by all (no resource manager), one that came back late would flush or use what its successor has
        loaded under the same numbers.
        """
        self._given_up = True

    def _stop_if_given_up(self) -> None:
        if self._given_up:
            # Not while another thread is in the middle of a command: the library would be freed under it.
            if self._runner in (None, threading.get_ident()):
                if self._esys is not None:
                    # The last response may hold a key. This names no handle and no session: it disturbs nobody.
                    with contextlib.suppress(Exception):  # whatever it answers, the response before it is overwritten
                        self._esys.get_capability(self._t.TPM2_CAP.COMMANDS, 0, 200)
                self.abandon()
            raise BackendUnavailable(f"the connection to the TPM at {self.tcti} was closed when it hung; there is a new one")

    def abandon(self) -> None:
        """Forgets a broken connection; the next `connect` makes a new one."""
        esys, self._esys = self._esys, None
        lent, self._lent = self._lent, []
        self._srk = self._session = None
        self._doubtful = False
        if esys is not None:
            for handle in lent:  # freed as it is: the library wipes nothing
                with contextlib.suppress(Exception):  # one that is gone already must not keep the others from being covered
                    esys.tr_set_auth(handle, AUTH_COVER)
                    esys.tr_set_auth(handle, None)
            with contextlib.suppress(Exception):  # it is broken, and forgotten in any case
                esys.close()

    def disconnect(self) -> None:
        """Gives back what is loaded, and closes. May be called twice.

        While another thread is in the middle of a command, that one hangs, and nothing may touch what it works with: the
        library would be freed under it. The connection is then only forgotten.
        """
        if self._runner not in (None, threading.get_ident()):
            self._esys = self._srk = self._session = None
            self._lent = []
            return
        for handle in (self._session, self._srk):
            if handle is not None:
                with contextlib.suppress(HwsecError):  # a persistent SRK is refused, and stays
                    self.flush(handle)
        self.abandon()

    # What is loaded

    def _flush_leftovers(self) -> None:
        """Clears what a killed process left in a TPM without a resource manager, of which we are the only user."""
        t = self._t
        for first in (t.TPM2_HC.HMAC_SESSION_FIRST, t.TPM2_HC.TRANSIENT_FIRST):
            for handle in self.handles_from(first):
                self.flush(self.run(lambda e, handle=handle: e.tr_from_tpmpublic(handle)))  # type: ignore[misc]

    def handles_from(self, first: int, witness: Any = None) -> list[int]:
        """Handles of that kind that exist in the TPM, from `first` on (Part 3, 30.2).

        Args:
            first: the lowest.
            witness: a session that authenticates the answer; None where nothing depends on it.
        """
        session = self._t.ESYS_TR.NONE if witness is None else witness
        found = self.run(lambda e: e.get_capability(self._t.TPM2_CAP.HANDLES, first, 254, session1=session))[1]
        return [int(handle) for handle in found.data.handles]

    def public_template(self, area: bytes) -> Any:
        """A TPM2B_PUBLIC of a marshalled TPMT_PUBLIC of our own."""
        return self._t.TPM2B_PUBLIC(publicArea=self._t.TPMT_PUBLIC.unmarshal(area)[0])

    def unmarshal(self, kind: Any, data: bytes) -> Any:
        """A value of the library's type `kind` from bytes of a file.

        Raises:
            ForeignHardware: no TPM has made these bytes. That is so too where the library takes them, but would refuse to send
                the value, or would send something else.
        """
        with contextlib.suppress(self._t.TSS2_Exception):
            value, used = kind.unmarshal(data)
            if used == len(data) and bytes(value.marshal()) == data:
                return value
        raise ForeignHardware("the file of sealed objects holds what no TPM has made: it is damaged")

    # Storage root key

    def _find_srk(self, pinned: bytes | None) -> Any:
        """The persistent SRK, or the one of the template: whichever was pinned at enrolment, if both are there."""
        try:
            persistent = self.run(lambda e: e.tr_from_tpmpublic(SRK_HANDLE), (RC_HANDLE,))
        except TpmRefusal as reason:
            if reason.code != RC_HANDLE:
                raise
            return self._create_srk()
        if pinned is None or self.salt_key_name(persistent) == pinned:
            return persistent
        # Somebody made a persistent key after our enrolment.
        try:
            primary = self._create_srk((RC_AUTH_FAIL, RC_BAD_AUTH))
        except TpmRefusal as reason:
            if reason.code not in (RC_AUTH_FAIL, RC_BAD_AUTH):
                raise
            return persistent
        if self.salt_key_name(primary) == pinned:
            return primary
        self.flush(primary)
        return persistent

    def _create_srk(self, refusals: Container[int] = ()) -> Any:
        template = self.public_template(SRK)
        return self.run(lambda e: e.create_primary(None, template), refusals)[0]

    def salt_key_name(self, key: Any) -> bytes:
        """Name (Part 1, 16) of the public key to which ESYS will encrypt a session's salt."""
        return bytes(self._known_public(key).get_name())

    def srk_is_da_protected(self) -> bool:
        """Whether the SRK is refused while the TPM is locked out; one of our template is not."""
        return not int(self._known_public(self._srk).publicArea.objectAttributes) & int(self._t.TPMA_OBJECT.NODA)

    def _known_public(self, key: Any) -> Any:
        """The public area from the copy that ESYS holds.

        A name, or a public area, asked of the TPM once more could be answered by somebody else on the bus.
        """
        data = bytes(self.run(lambda e: e.tr_serialize(key)))
        # Serialized are the handle (4), the name (2 + n), the kind of resource (4) and the public area.
        start = 10 + int.from_bytes(data[4:6], "big")
        with contextlib.suppress(self._t.TSS2_Exception):
            public, used = self._t.TPM2B_PUBLIC.unmarshal(data[start:])
            if start + used == len(data):
                return public
        raise BackendUnavailable("this version of the TPM library keeps its keys in a form that is not known here")

    # Sessions

    def start_session(self, kind: Any, *, encrypts: bool = True, audits: bool = False) -> Any:
        """A salted session (Part 3, 11.1) that encrypts the first parameter in both directions.

        Args:
            kind: HMAC or policy.
            encrypts: False for one beside another that does: a command takes only one (Part 1, 19.4).
            audits: True for one that authorizes nothing, and is there so that an answer carries an HMAC (Part 1, 17.1).
        """
        t = self._t
        symmetric = t.TPMT_SYM_DEF(
            algorithm=t.TPM2_ALG.AES,
            keyBits=t.TPMU_SYM_KEY_BITS(sym=128),
            mode=t.TPMU_SYM_MODE(sym=t.TPM2_ALG.CFB),
        )
        session = self.run(lambda e: e.start_auth_session(self._srk, t.ESYS_TR.NONE, kind, symmetric, t.TPM2_ALG.SHA256))
        self._set_attributes(session, encrypts=encrypts, audits=audits)
        return session

    def _set_attributes(self, session: Any, *, encrypts: bool, audits: bool) -> None:
        bits = self._t.TPMA_SESSION
        attributes = bits.CONTINUESESSION
        if encrypts:
            attributes |= bits.ENCRYPT | bits.DECRYPT
        if audits:
            attributes |= bits.AUDIT
        self.run(lambda e: e.trsess_set_attributes(session, attributes))

    @contextmanager
    def fresh_session(self, kind: Any, *, encrypts: bool = True, audits: bool = False) -> Iterator[Any]:
        """A salted session for the length of the block."""
        session = self.start_session(kind, encrypts=encrypts, audits=audits)
        try:
            yield session
        finally:
            self.flush_quietly(session)

    def flush_quietly(self, handle: Any) -> None:
        """Gives back what is loaded; where the connection has gone, so has it."""
        if self._esys is not None:
            with contextlib.suppress(BackendUnavailable):
                self.flush(handle)

    # Memory of the library

    @contextmanager
    def lend(self, handle: Any, auth: memoryview) -> Iterator[None]:
        """The library has the auth value of an object for the length of the block.

        A session in which the object is used meanwhile keeps a copy: that is to be covered (`AUTH_COVER`) by a use with
        another value.
        """
        value, lent = self._t.TPM2B_AUTH(bytes(len(auth))), self._lent
        try:
            self.fill(value, auth)
            lent.append(handle)
            self.run(lambda e: e.tr_set_auth(handle, value))
        finally:
            self.wipe(value)
        try:
            yield
        finally:
            if lent is self._lent:  # else the connection has gone, and the value with it
                lent.remove(handle)
                self.run(lambda e: e.tr_set_auth(handle, None))

    def cover(self, handle: Any, command: Callable[[Any], object]) -> None:
        """Overwrites the auth value that the library keeps with a session, beside the session key, until the next one.

        Another value of the same size does it. The TPM refuses it, and does not count that: our objects are NODA, our indices
        NO_DA.

        Args:
            handle: of ours.
            command: uses it in the session.
        """
        if self._esys is not None:
            with contextlib.suppress(BackendUnavailable), self.lend(handle, memoryview(AUTH_COVER)):
                self.run(command, ANY)

    def fill(self, sized: Any, value: memoryview) -> None:
        """Writes into a TPM2B that has this size."""
        self._t.types.ffi.memmove(sized._cdata.buffer, value, len(value))

    def wipe(self, sized: Any) -> None:
        """Overwrites the buffer of a TPM2B."""
        size = int(sized._cdata.size)
        self._t.types.ffi.memmove(sized._cdata.buffer, bytes(size), size)

    def overwrite_response(self) -> None:
        """The library keeps its last response, decrypted in place; a longer one overwrites it."""
        self.run(lambda e: e.get_capability(self._t.TPM2_CAP.COMMANDS, 0, 200))
