"""Answers ordinary check-ins with few statements, and leaves everything else to `service`.

An ordinary check-in is an authentic, fresh request of an active agent with a certificate that it has used before, about which
nothing is new: no refusal, no repetition, no contradiction. Nearly all requests of a fleet are that. For all others `answer`
returns None and has changed nothing, and `service` handles the request from the beginning: it is the rule, this is a shortcut.
A test gives both the same requests, and compares replies and registries.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType
from sqlalchemy.exc import SQLAlchemyError

from contracts.exchange import REQUEST_ID, REQUEST_TYPE, SecretStatus, StatusReply, purpose_of
from server.agents.clones import contradictions
from server.agents.registry import ACTIVE, CLOCK_TOLERANCE_S, announces_sync, counts
from server.agents.seen import went_back
from server.base.refused import RequestRefused
from server.keys.keyring import Keyring
from server.licensing.secrets.secrets import outlook
from server.registry.prepared import (
    CERTIFICATE,
    KEEP_REPLY,
    LOCK_AGENT,
    NOTE_CONTACT,
    STANDING,
    DriverBusy,
    Prepared,
    Row,
    Statements,
)
from server.web.peers import Peer

from .content import Reader, next_contact
from .kept_replies import MAX_KEPT, SHORT_KEPT_S, KeptReplies
from .requests import NotAuthentic, NotReadable, parse_signed, require_authentic

_PURPOSE = purpose_of(SecretStatus)


class _NotOrdinary(Exception):
    """`service` has to look."""


@dataclass(slots=True)
class _Agent:
    """The row that is locked, in the order of `LOCK_AGENT`."""

    agent_id: str
    status: str
    identity_key: str | None
    urgent: bool
    last_seen: int | None
    audit_seq: int | None
    audit_head: str | None
    seen_version: int | None
    seen_at: int | None
    audit_turns: int
    halted_at: int | None
    revocations: int | None
    capabilities: str | None
    license_changes: int | None


@dataclass(slots=True)
class _Version:
    """A secret version, in the order of `STANDING`."""

    version: int
    state: str
    key_check: str
    valid_until: int


class CheckIns:
    """The ordinary check-ins.

    Args:
        prepared: the statements.
        keyring: signs replies.
        replies: seals those that are kept.
        random: returns this many random bytes.
    """

    def __init__(self, prepared: Prepared, keyring: Keyring, replies: KeptReplies, random: Callable[[int], bytes]) -> None:
        self._prepared = prepared
        self._keyring = keyring
        self._replies = replies
        self._random = random
        self._reader = Reader(keyring.challenge_key)

    def answer(self, peer: Peer, text: str, now: int) -> str | None:
        """The signed reply, committed; None if this is no ordinary check-in, or the database failed before a change.

        Args:
            peer: the client certificate, within its dates.
            text: the JWS.
            now: seconds since 1970 UTC.

        Raises:
            SQLAlchemyError: the database failed, and what was written may be there or not.
            ClockNotTrusted: nothing must be signed now.
        """
        try:
            header, content = parse_signed(text)
            request = self._reader.read(content, _PURPOSE, peer.agent_id, peer.fingerprint, now)
        except (NotReadable, RequestRefused):
            return None
        if not isinstance(request, SecretStatus) or not REQUEST_ID.fullmatch(request.request_id):
            return None
        written = False
        try:
            with self._prepared.write() as statements:
                agent, reply = self._decide(statements, peer, (header, text), request, now)
                signed = self._keyring.sign_reply(reply)
                written = True
                self._write(statements, agent, request.request_id, text, signed, now)
        except _NotOrdinary:
            return None
        except SQLAlchemyError as problem:
            if written or isinstance(problem, DriverBusy):
                raise
            return None  # a connection that was lost since it was last used; `service` gets another one
        return signed

    def counts(self, peer: Peer, now: int) -> bool:
        """Whether a client certificate is an active agent's and counts. If not, `service` has to find out why."""
        try:
            with self._prepared.read() as statements:
                found = statements.rows(CERTIFICATE, now + CLOCK_TOLERANCE_S, peer.fingerprint)
        except SQLAlchemyError:
            return False
        if not found:
            return False
        status, halted_at, state, used_at, last_use = found[0]
        return status == ACTIVE and counts(state, used_at, last_use, halted_at)

    def _decide(
        self, statements: Statements, peer: Peer, signed: tuple[dict[str, Any], str], request: SecretStatus, now: int
    ) -> tuple[_Agent, StatusReply]:
        row = statements.lock(LOCK_AGENT, peer.fingerprint)
        agent = None if row is None else _Agent(*row)
        if agent is None or agent.agent_id != peer.agent_id or agent.status != ACTIVE or agent.halted_at is not None:
            raise _NotOrdinary
        try:
            require_authentic(*signed, REQUEST_TYPE, agent.agent_id, json.loads(agent.identity_key or "{}"))
        except (NotReadable, NotAuthentic):
            raise _NotOrdinary from None
        rows = statements.rows(
            STANDING, now + CLOCK_TOLERANCE_S, request.request_id, request.current_secret_version, peer.fingerprint
        )
        _require_ordinary(rows, agent)
        return agent, self._reply(agent, rows, peer, request, now)

    def _reply(self, agent: _Agent, rows: list[Row], peer: Peer, request: SecretStatus, now: int) -> StatusReply:
        versions = [_Version(*row[7:]) for row in rows if row[7] is not None]
        held = (request.current_secret_version, request.key_check, request.highest_version)
        newest = max((version.version for version in versions), default=0)
        version, rotate_now = outlook(versions, newest, bool(agent.urgent), held, now)
        report = self._reader.report(request, peer.fingerprint)
        if report is None or contradictions(agent, report, now):
            raise _NotOrdinary
        if report.audit is not None:
            if went_back(agent, *report.audit):
                raise _NotOrdinary
            agent.audit_seq, agent.audit_head = report.audit
        license_number: int | UnsetType = UNSET
        if request.license_number is not UNSET:
            license_number = max(agent.license_changes or 0, rows[0][6] or 0)
        elif announces_sync(agent.capabilities):
            raise _NotOrdinary
        agent.last_seen = now
        return StatusReply(
            secret_version=version,
            rotate_now=rotate_now,
            revocations=max(agent.revocations or 0, rows[0][5] or 0),
            key_set=self._keyring.key_set_number(),
            next_contact_s=next_contact(self._random),
            audit_seq=agent.audit_seq,
            license_number=license_number,
            agent_id=agent.agent_id,
            request_id=request.request_id,
            issued_at=now,
        )

    def _write(self, statements: Statements, agent: _Agent, request_id: str, text: str, signed: str, now: int) -> None:
        seen: tuple[Any, ...] = (
            agent.last_seen, agent.audit_seq, agent.audit_head, agent.seen_version, agent.seen_at, agent.audit_turns,
        )  # fmt: skip
        statements.write(NOTE_CONTACT, *seen, agent.agent_id)
        digest, sealed = hashlib.sha256(text.encode()).hexdigest(), self._replies.sealed(agent.agent_id, request_id, signed)
        statements.write(KEEP_REPLY, agent.agent_id, request_id, digest, sealed, now, now + SHORT_KEPT_S)


def _require_ordinary(rows: list[Row], agent: _Agent) -> None:
    """Raises _NotOrdinary unless the certificate counts and was used before, and the request is new and has room."""
    if not rows:
        raise _NotOrdinary
    state, used_at, last_use, kept, kept_already = rows[0][:5]
    ordinary = used_at is not None and counts(state, used_at, last_use, agent.halted_at)
    if not ordinary or kept_already or kept >= MAX_KEPT:
        raise _NotOrdinary
