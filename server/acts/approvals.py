"""Lets a second person approve one exact act, before the first one performs it.

An approval is bound to the digest of the act's name and body, and to its requester. It is used once, and it ends. The approver
is another account with another credential, may perform the act too, and no other account has made or changed it within a day:
otherwise an administrator would make the second person for the occasion, or have that done by a third one made for it. What the
approver has said counts as long as they could say it: not once the account, its role or what it signed in with has ended.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.accounts import accounts, breakglass, signin
from server.accounts.roles import Role, admits
from server.base.errors import Conflict, NotAllowed, NotFound, RegistryError
from server.registry import audit
from server.registry.models.operators import Account, Approval

LASTS_S = 24 * 3600
"""How long an approval may be given, and used."""
NEW_S = 24 * 3600
"""An account that another one has made or changed within this time cannot approve."""
OPEN, APPROVED, REFUSED, USED, EXPIRED = "open", "approved", "refused", "used", "expired"


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """An approval. Times are seconds since 1970 UTC; `body` is canonical JSON."""

    approval_id: str
    act: str
    body: str
    digest: str
    reason: str
    state: str
    requester: str
    approver: str | None
    created_at: int
    expires_at: int
    decided_at: int | None


class ApprovalNeeded(RegistryError):
    """The act needs a second person's approval; this one was asked for.

    Attributes:
        approval: what the second person is asked.
    """

    def __init__(self, approval: ApprovalRow) -> None:
        super().__init__(
            f"{approval.act} needs a second person: let another account approve {approval.approval_id}, then send the same "
            "request again with that approval"
        )
        self.approval = approval


def row_of(row: Approval, now: int) -> ApprovalRow:
    """The approval, detached from its session; `expired` once its time is over."""
    state = EXPIRED if row.state in (OPEN, APPROVED) and row.expires_at <= now else row.state
    return ApprovalRow(
        row.id, row.act, row.body, row.digest, row.reason, state, row.requester, row.approver, row.created_at,
        row.expires_at, row.decided_at,
    )  # fmt: skip


def ask(
    session: Session,
    act: str,
    body: str,
    digest: str,
    reason: str,
    requester: str,
    credential: str,
    needed: frozenset[Role],
    now: int,
) -> ApprovalRow:
    """Asks for an approval; the same request again finds the one that is open, or given already and counts.

    Args:
        session: of a writing transaction.
        act: its name.
        body: canonical JSON, for the approver to read.
        digest: of act and body.
        reason: why, for the approver to read.
        requester: the account that wants to perform it.
        credential: what it signed in with.
        needed: the roles that the act needs.
        now: seconds since 1970 UTC.
    """
    mine = (Approval.requester == requester, Approval.digest == digest, Approval.state.in_((OPEN, APPROVED)))
    row = session.scalars(select(Approval).where(*mine, Approval.expires_at > now).limit(1).with_for_update()).first()
    if row is not None and row.state == APPROVED and not _could_approve(session, row, needed, now):
        row.state, row = EXPIRED, None
    if row is None:
        row = Approval(
            id=secrets.token_hex(16),
            act=act,
            digest=digest,
            body=body,
            reason=reason,
            state=OPEN,
            requester=requester,
            requester_credential=credential,
            created_at=now,
            expires_at=now + LASTS_S,
        )
        session.add(row)
        audit.record(session, "admin", "approval.asked", "ok", now, approval=row.id, act=act, digest=digest)
    return row_of(row, now)


def decide(session: Session, approval_id: str, approver: str, credential: str, approve: bool, now: int) -> ApprovalRow:
    """Approves or refuses. The caller's role was checked before.

    Raises:
        NotFound: there is no such approval.
        NotAllowed: the approver is the requester, by account or credential, or somebody has just made or changed them.
        Conflict: it is decided, or its time is over.
    """
    row = session.get(Approval, approval_id, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no approval {approval_id[:64]!r}; list those that are open")
    if row_of(row, now).state != OPEN:
        raise Conflict(f"approval {row.id} is {row_of(row, now).state}; ask for another one")
    if approve:
        if approver == accounts.LOCAL:
            raise NotAllowed(
                "nobody approves on the server's machine: who may use it can do the act itself there, with --local"
            )
        if approver == row.requester or credential == row.requester_credential:
            raise NotAllowed("nobody approves their own request: another person with another certificate must")
        account = accounts.known(session, approver)
        if account.changed_by != accounts.LOCAL and account.changed_at > now - NEW_S:
            raise NotAllowed(
                f"{account.changed_by!r} has made or changed account {approver!r} within a day: another person must approve"
            )
    row.state, row.approver, row.approver_credential, row.decided_at = (
        APPROVED if approve else REFUSED, approver, credential, now
    )  # fmt: skip
    outcome = "ok" if approve else "refused"
    audit.record(
        session, "admin", "approval.decided", outcome, now, approval=row.id, act=row.act, digest=row.digest,
        requester=row.requester,
    )  # fmt: skip
    return row_of(row, now)


def use(session: Session, approval_id: str, requester: str, digest: str, needed: frozenset[Role], now: int) -> None:
    """Uses an approval for the act that is performed in this transaction.

    Args:
        session: of a writing transaction.
        approval_id: the approval.
        requester: the account that performs the act.
        digest: of act and body.
        needed: the roles that the act needs, as the approver does.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: there is no such approval of this requester.
        Conflict: it is for another act or body, not given, used already, or its time is over; or its approver could not give
            it any more.
    """
    row = session.get(Approval, approval_id, with_for_update=True)
    if row is None or row.requester != requester:
        raise NotFound(f"you have asked for no approval {approval_id[:64]!r}; send the request without one to ask for it")
    if row.digest != digest:
        raise Conflict(f"approval {row.id} is for another request: it counts for exactly what was asked, and nothing else")
    state = row_of(row, now).state
    if state != APPROVED:
        raise Conflict(f"approval {row.id} is {state}; it must be approved, and counts once")
    if not _could_approve(session, row, needed, now):
        raise Conflict(
            f"approval {row.id} does not count any more: account {row.approver!r} has ended, has another role, or what it "
            "signed in with was revoked; send the request without an approval to ask for another one"
        )
    row.state = USED


def _could_approve(session: Session, row: Approval, needed: frozenset[Role], now: int) -> bool:
    """Whether who has approved this could do it now."""
    account = None if row.approver is None else session.get(Account, row.approver, populate_existing=True)
    if account is None or not signin.still_counts(session, account, row.approver_credential or "", now):
        return False
    return admits(Role(account.role), needed) or breakglass.present(session, account.name, now) is not None


def found(session: Session, approval_id: str, now: int) -> ApprovalRow:
    """The approval with this id. Raises NotFound."""
    row = session.get(Approval, approval_id)
    if row is None:
        raise NotFound(f"there is no approval {approval_id[:64]!r}; list those that are open")
    return row_of(row, now)


def listed(session: Session, now: int, after: str = "", limit: int | None = None) -> list[ApprovalRow]:
    """Approvals by id."""
    query = select(Approval).where(Approval.id > after).order_by(Approval.id).limit(limit)
    return [row_of(row, now) for row in session.scalars(query)]
