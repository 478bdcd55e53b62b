"""Answers the requests of agents: who asks, whether it is theirs, whether it was answered before, then the act.

Bytes in, answer out; HTTP is `app.py`'s. Nothing that is not signed by the agent's identity key reaches an act.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from contracts import exchange as forms
from contracts.exchange import REQUEST_ID, REQUEST_TYPE, RefusalCode, Reply, Request, convert, purpose_of
from contracts.jose import MalformedToken
from server.base.refused import RequestRefused
from server.web.peers import Peer
from server.web.responses import PASSING, STATUS_OF, Response, error

from .challenges import is_fresh, new_challenge
from .ports import Agent, AgentStore, LicenseStore, SecretStore, Signer
from .requests import NotAuthentic, NotReadable, open_signed, parse_signed

CONTACT_S = 3600
"""How often an agent is to ask what is new; each time a tenth more or less, so that agents do not come in step."""
DATABASE_RETRY_S = 30

KINDS: dict[str, type[Request]] = {
    purpose_of(kind): kind
    for kind in (
        forms.RotateSecret,
        forms.ConfirmRotation,
        forms.SecretStatus,
        forms.ReissueLicenses,
        forms.ValidateLicense,
        forms.RevocationList,
        forms.RenewCertificate,
    )
}
"""Every request, by its purpose."""


@dataclass(frozen=True, slots=True)
class _Context:
    """One authentic request."""

    agent: Agent
    peer: Peer
    lost: bool
    request_id: str
    now: int

    def head(self) -> dict[str, Any]:
        return {"agent_id": self.agent.agent_id, "request_id": self.request_id, "issued_at": self.now}


class Exchange:
    """The acts behind the agents' endpoints.

    Args:
        keys: signs.
        agents: who is who.
        secrets: secret versions.
        licenses: licenses.
        random: gives that many random bytes.
    """

    def __init__(
        self, keys: Signer, agents: AgentStore, secrets: SecretStore, licenses: LicenseStore, random: Callable[[int], bytes]
    ) -> None:
        self._keys = keys
        self._agents = agents
        self._secrets = secrets
        self._licenses = licenses
        self._random = random
        self._acts: dict[type[Request], Callable[[_Context, Any], Reply]] = {
            forms.RotateSecret: self._rotate,
            forms.ConfirmRotation: self._confirm,
            forms.SecretStatus: self._status,
            forms.ReissueLicenses: self._reissue,
            forms.ValidateLicense: self._validate,
            forms.RevocationList: self._revocations,
            forms.RenewCertificate: self._renew,
        }

    def challenge(self, fingerprint: str, now: int) -> str:
        """A challenge for the holder of that client certificate."""
        return new_challenge(self._keys.challenge_key(), fingerprint, now, self._random(16))

    def stranger(self, peer: Peer, now: int) -> Response | None:
        """What somebody is told whose client certificate counts no more; None for an agent.

        An agent tries a new certificate by asking for a challenge: one that gets it must be good for all else.
        """
        try:
            return None if self._known(peer, now) is not None else _unknown()
        except SQLAlchemyError:
            return error(503, RefusalCode.UNAVAILABLE, "the server's database does not answer", DATABASE_RETRY_S)

    def answer(self, purpose: str, peer: Peer | None, request_text: str, now: int) -> tuple[int, str]:
        """HTTP status and body, as `handle` gives them."""
        answer = self.handle(purpose, peer, request_text, now)
        return answer.status, answer.body()

    def handle(self, purpose: str, peer: Peer | None, request_text: str, now: int) -> Response:
        """Answers one request.

        Args:
            purpose: last part of the path; a key of `KINDS`.
            peer: the client certificate, which the TLS layer has verified; None if there was none.
            request_text: the JWS.
            now: seconds since 1970 UTC.
        """
        try:
            return self._handle(purpose, peer, request_text, now)
        except SQLAlchemyError:
            return error(503, RefusalCode.UNAVAILABLE, "the server's database does not answer", DATABASE_RETRY_S)

    def _known(self, peer: Peer, now: int) -> tuple[Agent, bool] | None:
        """Whose certificate it is, and whether the registry has lost it; None if it counts no more."""
        agent = self._agents.by_certificate(peer.fingerprint)
        if agent is not None:
            return agent, False
        agent = self._agents.by_lost_record(peer)
        if agent is not None:
            return agent, True
        self._agents.missed(peer, now)
        return None

    def _standing(self, peer: Peer) -> bool | None:
        """Whether the registry has lost the certificate (True) or knows it as good (False); None if it counts no more."""
        if self._agents.by_certificate(peer.fingerprint) is not None:
            return False
        return None if self._agents.by_lost_record(peer) is None else True

    def _handle(self, purpose: str, peer: Peer | None, text: str, now: int) -> Response:
        known = None if peer is None else self._known(peer, now)
        if known is None or peer is None:
            return _unknown()
        agent, lost = known
        try:
            content = open_signed(text, REQUEST_TYPE, agent.agent_id, agent.identity_key)
        except NotReadable as problem:
            return error(400, RefusalCode.BAD_REQUEST, f"the request is not of our form: {problem}")
        except NotAuthentic as problem:
            if lost:
                # The agent was provisioned anew since, or that is somebody else.
                self._agents.disputed(peer, now)
                return _unknown()
            return error(403, RefusalCode.BAD_SIGNATURE, f"the request is not authentic: {problem}")
        request_id = content.get("request_id")
        if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
            return error(400, RefusalCode.BAD_REQUEST, "request_id must be 32 characters 0-9 and a-f")
        context = _Context(agent, peer, lost, request_id, now)
        # The same request may come twice at once, over two connections, to two processes; it acts once. What it does and the
        # answer that is kept are there together, or not at all.
        with self._agents.unit(agent.agent_id) as present:
            # Looked at again: the certificate may have ended while others had their turn.
            lost_now = self._standing(peer)
            if present is None or present.identity_key != agent.identity_key or lost_now is None:
                return _unknown()
            return self._once(purpose, replace(context, agent=present, lost=lost_now), content, text)

    def _once(self, purpose: str, context: _Context, content: dict[str, Any], text: str) -> Response:
        agent, digest, fresh = context.agent, hashlib.sha256(text.encode()).hexdigest(), False
        try:
            _check_standing(agent)
            kept = self._agents.answer_of(agent.agent_id, context.request_id)
            if kept is not None:
                if kept[0] != digest:
                    raise RequestRefused(RefusalCode.REPLAYED, "this request id was used for another request")
                return _again(kept[1])
            request = self._read(purpose, context, content)
            fresh = True
            reply = self._acts[type(request)](context, request)
        except RequestRefused as refused:
            reply = _refusal(context, refused)
        if context.lost and fresh:
            # After the act: it locks rows, and the audit's counter must be locked last.
            self._agents.adopt(context.peer, context.now)
        signed = self._keys.sign_reply(reply)
        code = reply.code if isinstance(reply, forms.Refusal) else None
        if code is None or code not in PASSING | {RefusalCode.REPLAYED, RefusalCode.AGENT_REVOKED}:
            self._agents.keep_answer(agent.agent_id, context.request_id, digest, signed, context.now)
        return _answer(signed, reply)

    def _read(self, purpose: str, context: _Context, content: dict[str, Any]) -> Request:
        version = content.get("v")
        if version != forms.EXCHANGE_VERSION or isinstance(version, bool):
            raise RequestRefused(RefusalCode.UNSUPPORTED_VERSION, f"this server speaks version {forms.EXCHANGE_VERSION} only")
        if content.get("agent_id") != context.agent.agent_id or content.get("purpose") != purpose:
            raise RequestRefused(RefusalCode.BAD_REQUEST, "the request is of another agent, or was sent to another endpoint")
        try:
            request: Request = convert(content, KINDS[purpose], "request")
        except MalformedToken as problem:
            raise RequestRefused(RefusalCode.BAD_REQUEST, str(problem)) from None
        if not is_fresh(request.challenge, self._keys.challenge_key(), context.peer.fingerprint, context.now):
            raise RequestRefused(RefusalCode.STALE_CHALLENGE, "the challenge is too old, or not for this client certificate")
        return request

    # The acts

    def _rotate(self, context: _Context, asked: forms.RotateSecret) -> Reply:
        delivery = self._secrets.rotate(
            context.agent.agent_id, asked.current_secret_version, asked.key_check, asked.highest_version, context.now
        )
        return forms.RotateReply(delivery=delivery, **context.head())

    def _confirm(self, context: _Context, asked: forms.ConfirmRotation) -> Reply:
        self._secrets.confirm(context.agent.agent_id, asked.secret_version, asked.key_check, context.now)
        return forms.ConfirmReply(secret_version=asked.secret_version, **context.head())

    def _status(self, context: _Context, asked: forms.SecretStatus) -> Reply:
        agent_id, now = context.agent.agent_id, context.now
        version, rotate_now = self._secrets.status(
            agent_id, asked.current_secret_version, asked.key_check, asked.highest_version, now
        )
        number, _next_update, _revoked = self._licenses.revocations(agent_id, now)
        return forms.StatusReply(
            secret_version=version,
            rotate_now=rotate_now,
            revocations=number,
            key_set=self._keys.key_set_number(),
            next_contact_s=CONTACT_S * 9 // 10 + int.from_bytes(self._random(2), "big") % (CONTACT_S // 5),
            audit_seq=self._agents.saw(agent_id, now, context.peer.fingerprint, asked.audit_seq, asked.audit_head),
            **context.head(),
        )

    def _reissue(self, context: _Context, asked: forms.ReissueLicenses) -> Reply:
        tokens, missing = self._licenses.reissue(context.agent.agent_id, asked.licenses, asked.secret_version, context.now)
        return forms.ReissueReply(tokens=tuple(tokens), missing=tuple(missing), **context.head())

    def _validate(self, context: _Context, asked: forms.ValidateLicense) -> Reply:
        valid, reason, license_id, expires_at = self._licenses.validate(context.agent.agent_id, asked.token, context.now)
        return forms.ValidateReply(valid=valid, reason=reason, license_id=license_id, expires_at=expires_at, **context.head())

    def _revocations(self, context: _Context, _asked: forms.RevocationList) -> Reply:
        number, next_update, revoked = self._licenses.revocations(context.agent.agent_id, context.now)
        return forms.RevocationReply(number=number, next_update=next_update, revoked=tuple(revoked), **context.head())

    def _renew(self, context: _Context, asked: forms.RenewCertificate) -> Reply:
        certificates = self._agents.renew_certificate(context.agent.agent_id, asked.csr, context.now)
        return forms.RenewReply(certificates=tuple(certificates), **context.head())


def _check_standing(agent: Agent) -> None:
    if agent.status == "revoked":
        raise RequestRefused(RefusalCode.AGENT_REVOKED, "this agent is revoked")


def _unknown() -> Response:
    return error(401, RefusalCode.UNKNOWN_AGENT, "no agent is known by this client certificate")


def _refusal(context: _Context, refused: RequestRefused) -> forms.Refusal:
    return forms.Refusal(code=refused.code, text=refused.text[:500], retry_after_s=refused.retry_after_s, **context.head())


def _answer(signed: str, reply: Reply) -> Response:
    if isinstance(reply, forms.Refusal):
        return Response(STATUS_OF[reply.code], signed, reply.code, reply.text, reply.retry_after_s)
    return Response(200, signed)


def _again(signed: str) -> Response:
    """The answer that was kept, with the status that it had."""
    _header, content = parse_signed(signed)
    return _answer(signed, convert(content, forms.AnyReply, "kept reply"))
