"""Acts on the agents' secrets: list their versions, rotate, invalidate. None of them shows a secret."""

import time
from typing import Annotated, Literal

from pydantic import Field

from server.accounts.roles import Role
from server.licensing import demand

from .act import Act, AgentId, Context, Form, Listed, Nothing, Number, PageForm, Time, page
from .agents import Count, OneAgent

PAUSE_S = 0.05
"""Between two batches of agents, as on the command line."""
Version = Annotated[int, Field(ge=1, le=2**53 - 1)]


class SecretVersion(Form):
    """A secret version, never the secret; times are seconds since 1970 UTC."""

    version: Number
    state: str
    key_check: str
    valid_from: Time
    valid_until: Time
    grace_until: Time
    confirmed_at: Time | None


class SecretsForm(PageForm):
    """Which versions."""

    agent_id: AgentId
    state: Literal["PENDING", "ACTIVE", "GRACE", "ENDED", "DIVERGED", "INVALIDATED"] | None = None
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class OneVersion(Form):
    """Which version of which agent's secret."""

    agent_id: AgentId
    version: Version


def list_versions(context: Context, body: SecretsForm) -> Listed[SecretVersion]:
    """List an agent's secret versions; never a secret."""
    after = int(body.after or "0")
    rows = context.server.secrets.listed(context.session, body.agent_id, body.state, after, body.limit + 1)
    return page(rows, SecretVersion, body.limit, lambda row: str(row.version))


def rotate(context: Context, body: OneAgent) -> Count:
    """Make an agent rotate its secret at its next contact."""
    context.server.secrets.demand(context.session, body.agent_id, context.now)
    return Count(count=1)


def rotate_all(context: Context, _body: Nothing) -> Count:
    """Make all agents rotate their secrets at their next contact. A second person must approve."""
    begun = demand.begin(context.database, context.now)
    reached = demand.run(context.database, begun, context.now, lambda: time.sleep(PAUSE_S), lambda _count: None)
    return Count(count=reached)


def invalidate(context: Context, body: OneVersion) -> Count:
    """Destroy a secret version on the server. The agent rotates at its next contact."""
    context.server.secrets.invalidate(context.session, body.agent_id, body.version, context.now)
    return Count(count=1)


_SECURITY = frozenset({Role.SECURITY_OFFICER})

ACTS = (
    Act(
        "secrets.list", "secrets:read", Role.VIEWER, SecretsForm, Listed[SecretVersion], list_versions,
        "/agents/{agent_id}/secrets", "GET",
    ),
    Act(
        "secrets.rotate", "secrets:write", Role.SUPPORT, OneAgent, Count, rotate, "/agents/{agent_id}/secrets/rotate",
        also=_SECURITY,
    ),
    Act(
        "secrets.rotate_all", "secrets:write", Role.SECURITY_OFFICER, Nothing, Count, rotate_all, "/secrets/rotate",
        approval=True, alone=True,
    ),
    Act(
        "secrets.invalidate", "secrets:write", Role.SECURITY_OFFICER, OneVersion, Count, invalidate,
        "/agents/{agent_id}/secrets/{version}/invalidate",
    ),
)  # fmt: skip
