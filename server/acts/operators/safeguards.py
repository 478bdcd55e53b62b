"""Acts for emergencies, and for what needs two people: emergency access and approvals."""

from typing import Annotated

from pydantic import Field

from server.accounts import breakglass
from server.accounts.roles import Role, admits
from server.acts import approvals
from server.acts.act import Act, Context, Form, Hex, Line, Listed, PageForm, Time, page
from server.base.errors import NotAllowed

Seconds = Annotated[int, Field(ge=0, le=10**9)]


class BreakGlass(Form):
    """An emergency access; times are seconds since 1970 UTC."""

    break_glass_id: str
    account: str
    reason: str
    begun_at: Time
    ends_at: Time
    ended_at: Time | None
    ended_by: str | None


class Approval(Form):
    """A request for a second person's approval; `body` is what was asked, in canonical JSON; times are seconds
    since 1970 UTC.
    """

    approval_id: str
    act: str
    body: str
    digest: str
    reason: str
    state: str
    requester: str
    approver: str | None
    created_at: Time
    expires_at: Time
    decided_at: Time | None


class BeginBreakGlass(Form):
    """How long, and why, in at least ten characters."""

    lasts_s: Seconds = 3600
    why: Line


class OneBreakGlass(Form):
    """Which emergency access."""

    break_glass_id: Hex


class OneApproval(Form):
    """Which approval."""

    approval_id: Hex


# Emergency access


def list_break_glass(context: Context, body: PageForm) -> Listed[BreakGlass]:
    """List emergency accesses: those that are open, and former ones."""
    rows = breakglass.listed(context.session, body.after, body.limit + 1)
    return page(rows, BreakGlass, body.limit, lambda row: row.break_glass_id)


def begin_break_glass(context: Context, body: BeginBreakGlass) -> BreakGlass:
    """Take emergency access for a few hours, if an administrator has allowed it before. The audit log gets an alert."""
    row = breakglass.begin(context.session, context.caller.account, body.why, body.lasts_s, context.now)
    return BreakGlass.model_validate(row)


def end_break_glass(context: Context, body: OneBreakGlass) -> BreakGlass:
    """End an emergency access before its time: one's own, or as a security officer or administrator anybody's."""
    caller = context.caller
    officer = caller.role is not None and admits(caller.role, frozenset({Role.SECURITY_OFFICER}))
    if not (caller.is_local or officer or caller.break_glass == body.break_glass_id):
        raise NotAllowed("only a security officer or an administrator may end the emergency access of somebody else")
    return BreakGlass.model_validate(breakglass.end(context.session, body.break_glass_id, caller.account, context.now))


# Approvals


def list_approvals(context: Context, body: PageForm) -> Listed[Approval]:
    """List requests for a second person's approval."""
    rows = approvals.listed(context.session, context.now, body.after, body.limit + 1)
    return page(rows, Approval, body.limit, lambda row: row.approval_id)


def show_approval(context: Context, body: OneApproval) -> Approval:
    """Show what a second person is asked to approve."""
    return Approval.model_validate(approvals.found(context.session, body.approval_id, context.now))


def approve(context: Context, body: OneApproval) -> Approval:
    """Approve what somebody else has asked for, who may then do exactly that, once."""
    return _decide(context, body.approval_id, True)


def refuse(context: Context, body: OneApproval) -> Approval:
    """Refuse what somebody has asked for, or withdraw one's own request."""
    return _decide(context, body.approval_id, False)


def _decide(context: Context, approval_id: str, approve: bool) -> Approval:
    caller = context.caller
    row = approvals.decide(context.session, approval_id, caller.account, caller.credential, approve, context.now)
    return Approval.model_validate(row)


_ADMINISTRATOR, _OFFICER = Role.ADMINISTRATOR, Role.SECURITY_OFFICER
_BOTH = frozenset({_OFFICER})

ACTS = (
    Act(
        "break_glass.list", "accounts:read", _ADMINISTRATOR, PageForm, Listed[BreakGlass], list_break_glass, "/break-glass",
        "GET", _BOTH,
    ),
    Act(
        "break_glass.begin", "", Role.VIEWER, BeginBreakGlass, BreakGlass, begin_break_glass, "/break-glass", people_only=True
    ),
    Act(
        "break_glass.end", "", Role.VIEWER, OneBreakGlass, BreakGlass, end_break_glass, "/break-glass/{break_glass_id}/end",
        people_only=True,
    ),
    Act("approvals.list", "approvals:read", Role.VIEWER, PageForm, Listed[Approval], list_approvals, "/approvals", "GET"),
    Act(
        "approvals.show", "approvals:read", Role.VIEWER, OneApproval, Approval, show_approval, "/approvals/{approval_id}", "GET"
    ),
    Act(
        "approvals.approve", "approvals:write", _OFFICER, OneApproval, Approval, approve, "/approvals/{approval_id}/approve",
        people_only=True,
    ),
    Act(
        "approvals.refuse", "approvals:write", _OFFICER, OneApproval, Approval, refuse, "/approvals/{approval_id}/refuse",
        people_only=True,
    ),
)  # fmt: skip
