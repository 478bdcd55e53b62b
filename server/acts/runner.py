"""Performs acts: checks role and scope, asks for a second person, and records who did it and why. The only way to an act.

The order within one writing transaction: the idempotency key, the approval, the precondition, the act, the kept reply.
"""

import time
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from server.base.errors import NotAllowed, RegistryError
from server.base.limits import RECORDED_REFUSALS_RATE, Rate, buckets
from server.registry import audit

from . import approvals, replies
from .act import Act, Context, Form, Parts
from .caller import Caller, authorize

RECORDED_REFUSAL_RATE = Rate(1 / 60, 30)
"""Refused acts in the audit, for each account; the others are counted, and the next record says how many."""


class PreconditionFailed(RegistryError):
    """What the caller wants to change is not in the state that they have seen."""


class PreconditionMissing(RegistryError):
    """The caller must say which state they want to change."""


class Runner:
    """Performs acts.

    Args:
        server: its components.
        steady: seconds of a clock that never goes back.
    """

    def __init__(self, server: Parts, steady: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._steady = steady
        self._refusals = buckets(RECORDED_REFUSAL_RATE)
        self._all_refusals = buckets(RECORDED_REFUSALS_RATE)
        self._unrecorded: dict[str, int] = {}

    def perform(
        self,
        act: Act,
        caller: Caller,
        body: Form,
        now: int,
        reason: str = "",
        *,
        idempotency_key: str | None = None,
        if_match: str | None = None,
        approval: str | None = None,
        hand: Callable[[Any], None] = lambda _result: None,
        reached: Callable[[int], None] = lambda _lines: None,
        opening: Callable[[Session], None] = lambda _session: None,
    ) -> Any:
        """Performs an act and returns its result.

        Args:
            act: of the catalog.
            caller: who asks.
            body: of the form `act.body`.
            now: seconds since 1970 UTC.
            reason: why, for the audit.
            idempotency_key: the same request with the same key is performed once, within `replies.KEPT_S`.
            if_match: the tag of the state that the caller wants to change; None if they do not care.
            approval: the id of the approval, for an act that needs one.
            hand: is given the result before the commit: nothing is done if it raises. Acts that are `alone` commit before it.
            reached: see `Context`.
            opening: is given the transaction of a change before anything else: nothing is done if it raises.

        Raises:
            NotAllowed: the caller may not.
            ApprovalNeeded: a second person was asked. Nobody is where it is known already that the act cannot be performed.
            PreconditionFailed: the state is another one.
            PreconditionMissing: the act needs `if_match`.
            RegistryError: the act cannot be performed.
        """
        try:
            authorize(act, caller)
        except NotAllowed as refused:
            self.record_refusal(f"account {caller.account}", now, act=act.name, via=caller.via, text=str(refused)[:200])
            raise
        server = self._server
        if act.reads:
            with server.database.read() as session:
                return act.run(Context(server, session, server.database, caller, now, reason), body)
        if act.match_required and if_match is None and not caller.is_local:
            raise PreconditionMissing("this request needs If-Match with the ETag of what you have read: read it first")
        text = replies.canonical(body)
        digest = replies.digest_of(act.name, text)
        place = None if idempotency_key is None else replies.place_of(caller.account, act.name, idempotency_key)
        needs_approval = act.approval and not caller.is_local and caller.break_glass is None
        if needs_approval and approval is None:
            with server.database.as_operator(caller.audit_fields(reason)).write() as session:
                if act.possible is not None:
                    act.possible(Context(server, session, server.database, caller, now, reason), body)
                asked = approvals.ask(
                    session, act.name, text, digest, reason, caller.account, caller.credential, act.needed, now
                )
            raise approvals.ApprovalNeeded(asked)
        fields = caller.audit_fields(reason, approval if needs_approval else None)
        database = server.database.as_operator(fields)
        with database.write() as session:
            opening(session)
            context = Context(server, session, database, caller, now, reason, reached)
            if place is not None:
                known = replies.kept(session, server.cipher, place, digest, now, begin=not act.alone)
                if known is not None:
                    return TypeAdapter(act.result).validate_json(known)
            if needs_approval and approval is not None:
                approvals.use(session, approval, caller.account, digest, act.needed, now)
            _check_precondition(act, context, body, if_match)
            if caller.break_glass is not None:
                audit.record(session, "admin", "act.performed", "alert", now, act=act.name)
            result = None
            if not act.alone:
                result = act.run(context, body)
                self._keep(session, act, place, digest, result, now)
                hand(result)
        if act.alone:
            result = act.run(context, body)
            hand(result)
            if place is not None:
                with database.write() as session:
                    self._keep(session, act, place, digest, result, now)
        if act.after is not None:
            act.after(server)
        return result

    def _keep(self, session: Session, act: Act, place: str | None, digest: str, result: Any, now: int) -> None:
        if place is not None:
            reply = TypeAdapter(act.result).dump_json(result).decode()
            replies.keep(session, self._server.cipher, place, digest, reply, now)

    def record_refusal(self, actor: str, now: int, **fields: str) -> None:
        """Records a refusal, unless there were too many: then it is counted, and the actor's next record has the number.

        Args:
            actor: `account NAME` or `address IP`.
            now: seconds since 1970 UTC.
            fields: of the record.
        """
        moment = self._steady()
        if not self._refusals.take(actor, moment) or not self._all_refusals.take("", moment):
            if actor in self._unrecorded or len(self._unrecorded) < self._refusals.most:
                self._unrecorded[actor] = self._unrecorded.get(actor, 0) + 1
            return
        more = self._unrecorded.pop(actor, 0)
        counted = {"unrecorded": more} if more else {}
        with self._server.database.write() as session:
            audit.record(session, actor, "act.refused", "refused", now, **fields, **counted)


def _check_precondition(act: Act, context: Context, body: Form, if_match: str | None) -> None:
    if if_match is None or act.present is None or act.etag is None:
        return
    present = act.etag(act.present(context, body))
    if if_match not in (present, "*"):
        raise PreconditionFailed("what you want to change has changed since you read it: read it again, then decide again")
