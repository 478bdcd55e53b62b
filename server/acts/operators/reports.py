"""Acts that say how the server is: its health, its audit log, and who asks."""

from typing import Annotated

from pydantic import Field, JsonValue

from server.accounts.roles import SCOPES, Role
from server.acts.act import Act, Context, Form, Listed, Nothing, Number, PageForm, Time, page
from server.base.errors import NotAllowed
from server.keys.lifecycle import WARN_S
from server.registry import audit

DAY_S = 86_400


class AuditRecord(Form):
    """A record of the audit log; `at` in seconds since 1970 UTC."""

    seq: Number
    at: Time
    actor: str
    event: str
    outcome: str
    fields: dict[str, JsonValue]


class AuditForm(PageForm):
    """Which records: the oldest first; with `newest`, beginning so many before the end."""

    newest: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class Health(Form):
    """How the server is. `ready` says whether it does all of its work; `problems` say what to do."""

    ready: bool
    problems: tuple[str, ...]
    agents: dict[str, Number]
    halted_agents: Number


class Me(Form):
    """Who asks, and what they may do."""

    account: str
    kind: str
    role: str
    via: str
    scopes: tuple[str, ...]
    break_glass: str | None


def list_audit(context: Context, body: AuditForm) -> Listed[AuditRecord]:
    """List audit records, the oldest first."""
    after = int(body.after or "0")
    if body.newest is not None and not body.after:
        after = max(0, audit.newest(context.session) - body.newest)
    rows = audit.listed(context.session, after, body.limit + 1)
    return page(rows, AuditRecord, body.limit, lambda row: str(row.seq))


def health(context: Context, _body: Nothing) -> Health:
    """Say whether the server does all of its work, and how many agents it has."""
    server = context.server
    problems = [text for text in (server.clock.problem(),) if text is not None]
    for kind, end in server.key_lifecycle.expiring(context.now, WARN_S // DAY_S):
        days = (end - context.now) // DAY_S
        said = "has ended" if end <= context.now else f"ends in {days} days"
        problems.append(f"the {kind} key {said}: 'license-server keys schedule' says what to do")
    agents = server.agents.count(context.session)
    return Health(
        ready=not problems, problems=tuple(problems), agents=agents, halted_agents=server.clones.count(context.session)
    )


def me(context: Context, _body: Nothing) -> Me:
    """Say who asks, and what they may do."""
    caller = context.caller
    if caller.role is None:
        raise NotAllowed("the command line on the server's machine has no account")
    scopes = tuple(sorted(SCOPES if caller.scopes is None else caller.scopes))
    return Me(
        account=caller.account, kind=caller.kind, role=caller.role.value, via=caller.via, scopes=scopes,
        break_glass=caller.break_glass,
    )  # fmt: skip


ACTS = (
    Act(
        "audit.list", "audit:read", Role.SECURITY_OFFICER, AuditForm, Listed[AuditRecord], list_audit, "/audit", "GET"
    ),
    Act("health.show", "health:read", Role.VIEWER, Nothing, Health, health, "/health", "GET"),
    Act("me.show", "", Role.VIEWER, Nothing, Me, me, "/me", "GET"),
)  # fmt: skip
