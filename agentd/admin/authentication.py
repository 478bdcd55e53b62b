"""Judges what an administrator signs: the challenge of their connection, the certificate, the signature, the role. Pure.

Numbered in the order of the checks; the first that fails ends the attempt, and any attempt uses the challenge up.

1. a challenge is outstanding on this connection, and not too old
2. there is an admin CA; it has issued the certificate (`chain`), and nobody has revoked it
3. the request inside is one, and its id is that of the request around it
4. the signature covers agent, boot, challenge and request
5. the role of the certificate is enough
6. a break-glass certificate is for this agent, and in use or about to be
"""

from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agentd.base.caller import Caller
from common.plain import msgspec_text
from contracts.admin.adminauth import act_digest, signed_text
from contracts.admin.adminca import AdminCa
from ipc.bounds import ADMIN_CHALLENGE_S, ADMIN_SESSION_S
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.messages import BreakGlassBegin, Request, RequestDecoder, SignableRequest, Signed
from ipc.peer import Peer

from .chain import Administrator, NotIssued, Window, judge
from .roles import RULES, Role

_ES256 = ec.ECDSA(hashes.SHA256())
_decode = RequestDecoder[Request](SignableRequest).decode


class NotAccepted(Exception):
    """A request that is not performed.

    Attributes:
        outcome: for the audit log.
        code: for the peer.
        text: for the peer.
        suspicious: whether somebody may be trying; a certificate that was left out is not.
        wanted: the operation that was signed; empty unless its signature is right.
        shown: whom the certificate names, if the admin CA has issued it. Anyone can show it: its key has signed where `wanted`
            is not empty.
    """

    shown: "Administrator | None" = None

    def __init__(
        self,
        outcome: str,
        text: str,
        code: ErrorCode = ErrorCode.UNAUTHENTICATED,
        *,
        suspicious: bool = True,
        wanted: str = "",
    ) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.text = text
        self.code = code
        self.suspicious = suspicious
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class Session:
    """What a connection may read without further signatures.

    Attributes:
        caller: who has begun it, as a viewer.
        ca: whose certificate it was; another one ends the session.
        digests: of the certificates that were shown; one that is revoked ends it.
        ends: monotonic seconds.
    """

    caller: Caller
    ca: AdminCa
    digests: tuple[str, ...]
    ends: float


@dataclass(slots=True)
class Conversation:
    """What the agent knows of one connection.

    Attributes:
        challenge: the outstanding one.
        made: when it was made, monotonic seconds.
        session: the viewer session.
    """

    challenge: bytes | None = None
    made: float = 0.0
    session: Session | None = None

    def ask(self, challenge: bytes, now: float) -> None:
        """Makes a challenge the outstanding one."""
        self.challenge, self.made = challenge, now

    def take(self, now: float) -> bytes:
        """The outstanding challenge, which is used up by this.

        Raises:
            NotAccepted: there is none, or it is too old.
        """
        challenge, self.challenge = self.challenge, None
        if challenge is None:
            raise NotAccepted("no_challenge", "no challenge is outstanding on this connection: ask for one")
        if now - self.made > ADMIN_CHALLENGE_S:
            raise NotAccepted("old_challenge", f"the challenge is more than {ADMIN_CHALLENGE_S} s old: ask for another")
        return challenge


@dataclass(frozen=True, slots=True)
class Grounds:
    """By what the agent judges.

    Attributes:
        agent_id: the agent's; empty for a device that is not one yet.
        boot_id: the kernel's, 16 bytes.
        ca: whose certificates count; None while none can be used.
        revoked: digests of the certificates that do not count any more, hex.
        window: the time.
        in_use: digests of the break-glass certificates whose time runs.
    """

    agent_id: str
    boot_id: bytes
    ca: AdminCa | None
    revoked: Collection[str]
    window: Window
    in_use: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A request that an administrator has signed.

    Attributes:
        request: to be performed.
        caller: who asks for it.
        administrator: whom the certificate names.
    """

    request: Request
    caller: Caller
    administrator: Administrator


def authenticate(signed: Signed, talk: Conversation, peer: Peer, grounds: Grounds, now: float) -> Authenticated:
    """The request inside `signed`, if the administrator's signature covers it and their role is enough.

    Args:
        signed: as it came.
        talk: of its connection.
        peer: of its connection.
        grounds: by what to judge.
        now: monotonic seconds.

    Raises:
        NotAccepted: it is not to be performed.
    """
    challenge = talk.take(now)
    if grounds.ca is None:
        raise NotAccepted("no_ca", "no certificate counts on this machine: it has no admin CA that can be used")
    try:
        administrator = judge(grounds.ca, signed.certificates, grounds.window)
    except NotIssued as error:
        raise NotAccepted(error.outcome, str(error)) from None
    try:
        request = _signed_by(administrator, signed, challenge, grounds)
        _require_role(administrator, request)
        _require_in_use(administrator, request, grounds)
    except NotAccepted as error:
        error.shown = administrator
        raise
    return Authenticated(request, _caller(peer, administrator, administrator.role), administrator)


def _signed_by(administrator: Administrator, signed: Signed, challenge: bytes, grounds: Grounds) -> Request:
    """The request inside, which this administrator's key has signed."""
    if any(digest in grounds.revoked for digest in administrator.digests):
        raise NotAccepted("revoked", "the certificate is revoked")
    request, digest = _inner(signed)
    text = signed_text(grounds.agent_id, grounds.boot_id, challenge, digest)
    try:
        administrator.key.verify(signed.signature, text, _ES256)
    except InvalidSignature:
        raise NotAccepted(
            "bad_signature",
            "the signature does not cover this agent, this boot, the challenge of this connection and this request",
        ) from None
    return request


def _op(request: Request) -> str:
    return str(type(request).__struct_config__.tag)


def _require_role(administrator: Administrator, request: Request) -> None:
    needed = RULES[type(request)].role
    if administrator.role < needed:
        raise NotAccepted(
            "role",
            f"this needs the role {needed.name.lower()}; the certificate of {administrator.name} has the role "
            f"{administrator.role.name.lower()}",
            ErrorCode.REFUSED,
            wanted=_op(request),
        )


def _require_in_use(administrator: Administrator, request: Request, grounds: Grounds) -> None:
    if administrator.break_glass is None:
        return
    if administrator.break_glass != grounds.agent_id:
        text = f"this break-glass certificate is for the agent {administrator.break_glass}"
        raise NotAccepted("break_glass", text, wanted=_op(request))
    if not isinstance(request, BreakGlassBegin) and administrator.digests[0] not in grounds.in_use:
        text = (
            "this break-glass certificate is not in use: 'license-agent-cli break-glass begin' uses it, once and for 4 hours; "
            "where it was used already, have another one issued"
        )
        raise NotAccepted("break_glass", text, wanted=_op(request))


def _inner(signed: Signed) -> tuple[Request, bytes]:
    """The request inside, and the digest of its act."""
    try:
        request = _decode(signed.request)
        names = [name for name in request.__struct_fields__ if name not in ("v", "id")]
        digest = act_digest(_op(request), {name: getattr(request, name) for name in names})
    except RemoteProtocolError as error:
        raise NotAccepted("bad_request", f"the request inside: {msgspec_text(error.text)}", error.code) from None
    except ValueError as error:
        raise NotAccepted("bad_request", f"the request inside: {error}", ErrorCode.BAD_REQUEST) from None
    if request.id != signed.id:
        raise NotAccepted("bad_request", "the request inside has another id than the one around it", ErrorCode.BAD_REQUEST)
    return request, digest


def _caller(peer: Peer, administrator: Administrator, role: Role) -> Caller:
    return Caller(
        peer.uid,
        peer.gid,
        peer.pid,
        role.name.lower(),
        administrator.digests[0],
        administrator.name,
        administrator.ends,
        administrator.break_glass is not None,
    )


def begin_session(talk: Conversation, found: Authenticated, ca: AdminCa, now: float) -> Session:
    """Lets a connection read from now on, as a viewer whatever the certificate's role is."""
    caller = _caller(found.caller, found.administrator, Role.VIEWER)
    talk.session = Session(caller, ca, found.administrator.digests, now + ADMIN_SESSION_S)
    return talk.session


def in_session(request: type[Request], talk: Conversation, grounds: Grounds, now: float) -> Caller | None:
    """Who may ask for an operation by the session of their connection; None if nobody may."""
    session = talk.session
    if session is None:
        return None
    caller = session.caller
    over = now >= session.ends or caller.ends < grounds.window.earliest or session.ca is not grounds.ca
    over = over or (caller.break_glass and caller.certificate not in grounds.in_use)
    if over or any(digest in grounds.revoked for digest in session.digests):
        talk.session = None
        return None
    return session.caller if RULES[request].role is Role.VIEWER and not RULES[request].anyone else None
