"""Answers the signed requests of agents: finds the agent, verifies the request, and acts on each request once.

Text in, response out; `server.api.app` speaks HTTP. The checks, in their order:

1. The client certificate belongs to a registered agent.
2. The agent's identity key has signed the request.
3. The agent is still that agent once its turn has come, and is not revoked.
4. The request id is new. A request that came before gets the reply that it got then, or acts again if its reply is not kept
   (`kept_replies` says which ones are).
5. The request is for this agent and endpoint, of our form, and answers a fresh challenge.

Only then does the act run. The act and the kept reply are one transaction; an act that is refused takes back its own changes.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from msgspec import UNSET, UnsetType
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from contracts import exchange as forms
from contracts.contact.capabilities import AnnounceCapabilities, AnnounceReply
from contracts.contact.configuration import ConfigurationReply, ConfigurationRequest
from contracts.contact.licensesync import SyncLicenses, SyncReply
from contracts.contact.seats import LeaseReply, LeaseSeats
from contracts.contact.updates import UpdatesReply, UpdatesRequest
from contracts.contact.usage import ReportUsage, UsageReply
from contracts.exchange import REQUEST_ID, REQUEST_TYPE, RefusalCode, Reply, Request, convert, purpose_of
from server.agents.certificates import ClientCertificates
from server.agents.clones import Clones
from server.agents.lost_records import LostRecords
from server.agents.registry import REVOKED, AgentRow, Agents
from server.base.refused import RequestRefused
from server.fleet.configuration.contact import Configurations
from server.fleet.devices.registry import Devices
from server.fleet.fleets.rotations import note as note_rotation
from server.fleet.rollouts import contact as rollouts
from server.keys.keyring import Keyring
from server.licensing.licenses.deliveries import Deliveries
from server.licensing.licenses.leases import Leases
from server.licensing.licenses.licenses import Licenses
from server.licensing.licenses.usage import UsageTotals
from server.licensing.secrets.secrets import Secrets
from server.ota.reports import Directives
from server.registry.clockwatch import ClockNotTrusted
from server.registry.database import Database, RegistryMoved
from server.registry.later import Records
from server.web.peers import Peer
from server.web.responses import CLOCK_RETRY_S, DATABASE_DOWN, PASSING, STATUS_OF, Response, error

from .capabilities import CAPABILITIES
from .challenges import new_challenge
from .checkins import CheckIns
from .content import Reader, misdirected, next_contact
from .kept_replies import KEPT_S, LONG, MADE_AGAIN, SHORT_KEPT_S, Kept, KeptReplies
from .requests import NotAuthentic, NotReadable, open_signed, parse_signed

CHECK_IN = purpose_of(forms.SecretStatus)
RENEWAL = purpose_of(forms.RenewCertificate)
"""What a client certificate outside its dates is still good for, besides a challenge."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What requests act on."""

    agents: Agents
    lost: LostRecords
    certificates: ClientCertificates
    secrets: Secrets
    licenses: Licenses
    deliveries: Deliveries
    usage: UsageTotals
    replies: KeptReplies
    clones: Clones
    leases: Leases
    updates: Directives
    devices: Devices
    configurations: Configurations


@dataclass(frozen=True, slots=True)
class _Known:
    """The agent that a client certificate belongs to, and whether the registry has lost the certificate."""

    agent: AgentRow
    lost: bool


@dataclass(frozen=True, slots=True)
class _Context:
    """One authentic request, in its transaction."""

    session: Session
    agent: AgentRow
    peer: Peer
    request_id: str
    now: int

    def head(self) -> dict[str, Any]:
        return {"agent_id": self.agent.agent_id, "request_id": self.request_id, "issued_at": self.now}


class Exchange:
    """The agents' endpoints.

    Args:
        database: the registry's.
        keyring: signs replies.
        stores: what requests act on.
        random: returns this many random bytes.
        checkins: answers the ordinary check-ins, and asks for the ordinary challenges; None leaves all to this class.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        stores: Stores,
        random: Callable[[int], bytes],
        checkins: CheckIns | None = None,
    ) -> None:
        self._checkins = checkins
        self._reader = Reader(keyring.challenge_key)
        self._database = database
        self._keyring = keyring
        self._stores = stores
        self._random = random
        self._acts: dict[type[Request], Callable[[_Context, Any], Reply]] = {
            forms.RotateSecret: self._rotate,
            forms.ConfirmRotation: self._confirm,
            forms.SecretStatus: self._status,
            forms.ReissueLicenses: self._reissue,
            forms.ValidateLicense: self._validate,
            forms.RevocationList: self._revocations,
            forms.RenewCertificate: self._renew,
            AnnounceCapabilities: self._announce,
            SyncLicenses: self._sync,
            LeaseSeats: self._lease,
            ReportUsage: self._usage,
            UpdatesRequest: self._updates,
            ConfigurationRequest: self._configuration,
        }

    def challenge(self, fingerprint: str, now: int) -> str:
        """A challenge for the holder of a client certificate."""
        return new_challenge(self._keyring.challenge_key(), fingerprint, now, self._random(16))

    def refuse_unknown(self, peer: Peer, now: int) -> Response | None:
        """The refusal for a client certificate that is unknown or revoked; None for an agent's.

        An agent tries a new certificate by asking for a challenge: if it gets one, the certificate is good for all requests.
        """
        try:
            if not peer.valid_at(now) and not peer.renewable_at(now):
                return outside_its_dates(peer)
            if self._checkins is not None and self._checkins.counts(peer, now):
                return None
            return None if self._known(peer, now) is not None else _unknown()
        except SQLAlchemyError:
            return DATABASE_DOWN

    def admit(self, peer: Peer, now: int) -> Response | str:
        """A challenge for the holder of a client certificate, or the response that refuses it.

        A certificate that has ended gets a challenge too, and one that begins later gets it beside an error: with status 200,
        an agent that tries a new certificate would believe that it works.
        """
        refused = self.refuse_unknown(peer, now)
        if refused is not None:
            return refused
        text = self.challenge(peer.fingerprint, now)
        return text if now >= peer.not_before else replace(outside_its_dates(peer), challenge=text)

    def handle(self, purpose: str, peer: Peer | None, request_text: str, now: int) -> Response:
        """Answers one request.

        Args:
            purpose: last part of the path; a key of `KINDS`.
            peer: the client certificate that the TLS layer has verified; None if there was none.
            request_text: the JWS.
            now: seconds since 1970 UTC.
        """
        if peer is not None and not peer.valid_at(now) and not (purpose == RENEWAL and peer.renewable_at(now)):
            return outside_its_dates(peer)
        try:
            answer = self._check_in(peer, request_text, now) if purpose == CHECK_IN else None
            return self._handle(purpose, peer, request_text, now) if answer is None else answer
        except SQLAlchemyError:
            return DATABASE_DOWN
        except ClockNotTrusted as problem:
            return error(503, RefusalCode.UNAVAILABLE, str(problem), CLOCK_RETRY_S)
        except RegistryMoved:
            return error(503, RefusalCode.UNAVAILABLE, "the server's registry was moved; an operator has to restart the server")

    def _check_in(self, peer: Peer | None, text: str, now: int) -> Response | None:
        """The response to an ordinary check-in; None for what needs a closer look."""
        if self._checkins is None or peer is None:
            return None
        signed = self._checkins.answer(peer, text, now)
        return None if signed is None else Response(200, signed)

    def _known(self, peer: Peer, now: int) -> _Known | None:
        """The agent of a certificate, before its turn. Notes a certificate of an agent that the registry has lost."""
        with self._database.read() as session:
            known = self._find(session, peer, now)
            lost_agent = known is None and peer.valid_at(now) and self._stores.lost.is_lost_agent(session, peer)
        if lost_agent:
            with self._database.write() as session:
                self._stores.lost.skip_serial(session, peer, now)
        return known

    def _find(self, session: Session, peer: Peer, now: int) -> _Known | None:
        agent = self._stores.agents.by_certificate(session, peer.fingerprint, now)
        if agent is not None:
            return _Known(agent, False)
        if not peer.valid_at(now):
            # Only the registry says that a certificate outside its dates was issued here and is not revoked.
            return None
        agent = self._stores.lost.find(session, peer)
        return None if agent is None else _Known(agent, True)

    def _handle(self, purpose: str, peer: Peer | None, text: str, now: int) -> Response:
        known = None if peer is None else self._known(peer, now)
        if known is None or peer is None:
            return _unknown()
        try:
            content = open_signed(text, REQUEST_TYPE, known.agent.agent_id, known.agent.identity_key)
        except NotReadable as problem:
            return error(400, RefusalCode.BAD_REQUEST, f"malformed request: {problem}")
        except NotAuthentic as problem:
            if known.lost:
                # The agent was provisioned again after the backup, or this is another device.
                if self._stores.lost.is_new_dispute(peer):
                    with self._database.write() as session:
                        self._stores.lost.record_dispute(session, peer, now)
                return _unknown()
            return error(403, RefusalCode.BAD_SIGNATURE, f"the request is not authentic: {problem}")
        request_id = content.get("request_id")
        if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
            return error(400, RefusalCode.BAD_REQUEST, "malformed request: request_id must have 32 characters 0-9 and a-f")
        if misdirected(content, purpose):
            return error(400, RefusalCode.BAD_REQUEST, "the request is for another endpoint")
        # The same request may come twice at once, over two connections, to two processes. It acts once.
        with self._database.write() as session:
            locked = self._stores.agents.lock(session, known.agent.agent_id)
            # Looked up again: the certificate may have been revoked while other requests had their turn.
            present = self._find(session, peer, now)
            if locked is None or present is None or present.agent.identity_key != known.agent.identity_key:
                return _unknown()
            context = _Context(session, present.agent, peer, request_id, now)
            return self._once(purpose, context, content, text, present.lost)

    def _once(self, purpose: str, context: _Context, content: dict[str, Any], text: str, lost: bool) -> Response:
        session, agent, replies = context.session, context.agent, self._stores.replies
        digest, fresh, evidence = hashlib.sha256(text.encode()).hexdigest(), False, None
        kept: Kept | None = None
        try:
            if agent.status == REVOKED:
                raise RequestRefused(RefusalCode.AGENT_REVOKED, f"this agent is {agent.shown_status}")
            kept = replies.find(session, agent.agent_id, context.request_id)
            if kept is not None:
                if kept.digest != digest:
                    raise RequestRefused(RefusalCode.REPLAYED, "this request id was used for another request")
                if kept.reply is not None:
                    return _repeated(kept.reply)
            else:
                replies.require_room(session, agent.agent_id, context.now)
            request = self._reader.read(content, purpose, agent.agent_id, context.peer.fingerprint, context.now)
            fresh = True
            self._stores.certificates.note_use(session, agent.agent_id, context.peer.fingerprint, context.now)
            # Before the act: a second machine gets what a halted agent gets.
            evidence = self._observe(context, request)
            with session.begin_nested():
                reply = self._acts[type(request)](context, request)
        except RequestRefused as refused:
            reply = _refusal(context, refused)
        if lost and fresh:
            # After the act: the act locks rows, and the audit's counter must be locked last.
            self._stores.lost.adopt(session, context.peer, context.now)
            self._stores.certificates.note_use(session, agent.agent_id, context.peer.fingerprint, context.now)
        if evidence is not None:
            self._stores.clones.tell(session, agent.agent_id, evidence, context.now)
        signed = self._keyring.sign_reply(reply)
        code = reply.code if isinstance(reply, forms.Refusal) else None
        if kept is None and (code is None or code not in PASSING | {RefusalCode.REPLAYED, RefusalCode.AGENT_REVOKED}):
            text_kept = None if code is None and purpose in MADE_AGAIN else signed
            kept_s = KEPT_S if purpose in LONG else SHORT_KEPT_S
            replies.keep(session, agent.agent_id, context.request_id, digest, text_kept, context.now, kept_s)
        return _response(signed, reply)

    def _observe(self, context: _Context, request: Request) -> str | None:
        """Compares what the request says with what was reported before; returns what contradicts it, if that is new."""
        report = self._reader.report(request, context.peer.fingerprint)
        if report is None:
            return None
        return self._stores.clones.observe(context.session, context.agent.agent_id, report, context.now)

    # The acts

    def _rotate(self, context: _Context, asked: forms.RotateSecret) -> Reply:
        delivery = self._stores.secrets.rotate(
            context.session,
            context.agent.agent_id,
            asked.current_secret_version,
            asked.key_check,
            asked.highest_version,
            context.now,
        )
        return forms.RotateReply(delivery=delivery, **context.head())

    def _confirm(self, context: _Context, asked: forms.ConfirmRotation) -> Reply:
        refused = self._stores.secrets.confirm(
            context.session, context.agent.agent_id, asked.secret_version, asked.key_check, context.now
        )
        if refused is not None:
            return _refusal(context, refused)
        return forms.ConfirmReply(secret_version=asked.secret_version, **context.head())

    def _status(self, context: _Context, asked: forms.SecretStatus) -> Reply:
        session, agent_id, now = context.session, context.agent.agent_id, context.now
        version, rotate_now = self._stores.secrets.status(
            session, agent_id, asked.current_secret_version, asked.key_check, asked.highest_version, now
        )
        number, _next_update, _revoked = self._stores.licenses.revocations(session, agent_id, now)
        license_number: int | UnsetType = UNSET
        if asked.license_number is UNSET:
            self._stores.agents.asked_as_before(session, agent_id, now)
        else:
            license_number = self._stores.deliveries.number(session, agent_id)
        return forms.StatusReply(
            secret_version=version,
            rotate_now=rotate_now,
            revocations=number,
            key_set=self._keyring.key_set_number(),
            next_contact_s=next_contact(self._random),
            audit_seq=self._stores.agents.saw(session, agent_id, now, asked.audit_seq, asked.audit_head),
            license_number=license_number,
            **context.head(),
        )

    def _reissue(self, context: _Context, asked: forms.ReissueLicenses) -> Reply:
        tokens, missing = self._stores.licenses.reissue(
            context.session, context.agent.agent_id, asked.licenses, asked.secret_version, context.now
        )
        return forms.ReissueReply(tokens=tuple(tokens), missing=tuple(missing), **context.head())

    def _validate(self, context: _Context, asked: forms.ValidateLicense) -> Reply:
        valid, reason, license_id, expires_at = self._stores.licenses.validate(
            context.session, context.agent.agent_id, asked.token, context.now
        )
        return forms.ValidateReply(valid=valid, reason=reason, license_id=license_id, expires_at=expires_at, **context.head())

    def _revocations(self, context: _Context, _asked: forms.RevocationList) -> Reply:
        number, next_update, revoked = self._stores.licenses.revocations(context.session, context.agent.agent_id, context.now)
        return forms.RevocationReply(number=number, next_update=next_update, revoked=tuple(revoked), **context.head())

    def _renew(self, context: _Context, asked: forms.RenewCertificate) -> Reply:
        note_rotation(context.session, context.agent.agent_id)  # before the audit log's counter is locked
        certificates = self._stores.certificates.renew(context.session, context.agent.agent_id, asked.csr, context.now)
        return forms.RenewReply(certificates=tuple(certificates), **context.head())

    def _sync(self, context: _Context, asked: SyncLicenses) -> Reply:
        page = self._stores.deliveries.page(
            context.session, context.agent.agent_id, asked.license_number, asked.secret_version, asked.after, context.now
        )
        return SyncReply(license_number=page.number, changes=page.changes, after=page.after, **context.head())

    def _updates(self, context: _Context, asked: UpdatesRequest) -> Reply:
        session, agent_id, now, records = context.session, context.agent.agent_id, context.now, Records()
        self._database.keep_read(session)
        self._stores.devices.note_contact(session, agent_id, asked.running, asked.hardware, now)
        changed = self._stores.updates.note(session, agent_id, asked, now, records)
        # Between report and answer: what a rollout orders now is in the answer.
        rollouts.after_reports(session, agent_id, changed, now, records)
        rollouts.before_directive(session, agent_id, now, records)
        found = self._stores.updates.answer(session, agent_id, asked, now, records)
        records.write(session)  # last: it locks the log's counter
        return UpdatesReply(directive=found.directive, acknowledged=found.acknowledged, paused=found.paused, **context.head())

    def _configuration(self, context: _Context, asked: ConfigurationRequest) -> Reply:
        found = self._stores.configurations.contact(context.session, context.agent.agent_id, asked, context.now)
        return ConfigurationReply(document=found, **context.head())

    def _usage(self, context: _Context, asked: ReportUsage) -> Reply:
        # A request with another challenge than one of ours does not come this far.
        challenged_at = self._reader.challenged_at(asked, context.peer.fingerprint) or 0
        taken = self._stores.usage.take(context.session, context.agent.agent_id, asked.totals, challenged_at, context.now)
        return UsageReply(behind=taken.behind, refused=taken.refused, **context.head())

    def _lease(self, context: _Context, asked: LeaseSeats) -> Reply:
        found = self._stores.leases.lease(context.session, context.agent.agent_id, asked, context.now)
        return LeaseReply(
            floating=found.floating, seats=found.seats, refused=found.refused, ended=found.ended, **context.head()
        )

    def _announce(self, context: _Context, asked: AnnounceCapabilities) -> Reply:
        self._stores.agents.announced(context.session, context.agent.agent_id, asked.capabilities, context.now)
        return AnnounceReply(capabilities=CAPABILITIES, **context.head())


def outside_its_dates(peer: Peer) -> Response:
    """The response to a certificate that has ended, or begins later."""
    begin, end = (time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at)) for at in (peer.not_before, peer.not_after))
    text = f"the client certificate is not valid before {begin} or after {end}"
    return error(401, RefusalCode.UNKNOWN_AGENT, text)


def _unknown() -> Response:
    return error(401, RefusalCode.UNKNOWN_AGENT, "no agent has this client certificate")


def _refusal(context: _Context, refused: RequestRefused) -> forms.Refusal:
    return forms.Refusal(code=refused.code, text=refused.text[:500], retry_after_s=refused.retry_after_s, **context.head())


def _response(signed: str, reply: Reply) -> Response:
    if isinstance(reply, forms.Refusal):
        return Response(STATUS_OF[reply.code], signed, reply.code, reply.text, reply.retry_after_s)
    return Response(200, signed)


def _repeated(signed: str) -> Response:
    """The response around a kept reply, with the status that it had."""
    _header, content = parse_signed(signed)
    every = forms.AnyReply | AnnounceReply | SyncReply | UsageReply | LeaseReply | UpdatesReply | ConfigurationReply
    return _response(signed, convert(content, every, "kept reply"))
