"""Acts on the agents' secrets: list their versions, rotate, invalidate. None of them shows a secret.

A rotation of all agents takes many transactions, each of which makes some agents rotate: a request performs one, and who has
begun the run asks for the next ones. What nobody continues waits, and can be resumed.
"""

from typing import Annotated, Literal

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Listed, Nothing, Number, PageForm, Time, page
from server.licensing.secrets import demand

from .agents import Count, OneAgent

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
    """Which versions: in a state, or behind the version `since`."""

    agent_id: AgentId
    since: Number = 0
    state: Literal["PENDING", "ACTIVE", "GRACE", "ENDED", "DIVERGED", "INVALIDATED"] | None = None
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class OneRun(Form):
    """Which rotation of all agents; without a number the one that was interrupted."""

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None


class Rotation(Form):
    """How far a rotation of all agents is: `count` of `agents` will rotate at their next contact. `interrupted` says how many
    an earlier run had reached that was not continued.
    """

    run: str
    agents: Number
    count: Number
    ended: bool
    interrupted: Number | None


class OneVersion(Form):
    """Which version of which agent's secret."""

    agent_id: AgentId
    version: Version


def list_versions(context: Context, body: SecretsForm) -> Listed[SecretVersion]:
    """List an agent's secret versions; never a secret."""
    after = max(body.since, int(body.after or "0"))
    rows = context.server.secrets.listed(context.session, body.agent_id, body.state, after, body.limit + 1)
    return page(rows, SecretVersion, body.limit, lambda row: str(row.version))


def rotate(context: Context, body: OneAgent) -> Count:
    """Make an agent rotate its secret at its next contact."""
    context.server.secrets.demand(context.session, body.agent_id, context.now)
    return Count(count=1)


def rotate_all(context: Context, _body: Nothing) -> Rotation:
    """Make all agents rotate their secrets at their next contact. A second person must approve.

    The first 1000 agents do at once. While `ended` is false, send `run` to `/secrets/rotate/continue`.
    """
    return _batch(context, demand.begin_within(context.session, context.now))


def rotate_on(context: Context, body: OneRun) -> Rotation:
    """Continue a rotation of all agents that was begun; without its number, one that was interrupted."""
    if body.run is None:
        begun = demand.begin_within(context.session, context.now, resume=True)
    else:
        begun = demand.found(context.session, body.run)
    return _batch(context, begun)


def _batch(context: Context, begun: demand.Begun) -> Rotation:
    done, ended = demand.batch(context.session, begun, context.now)
    if not ended and done.done - begun.done < demand.BATCH:
        done, ended = demand.batch(context.session, done, context.now)
    run_id = begun.note.removeprefix(f"{demand.NOTE}.")
    return Rotation(run=run_id, agents=begun.agents, count=done.done, ended=ended, interrupted=begun.interrupted)


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
        "secrets.rotate_all", "secrets:write", Role.SECURITY_OFFICER, Nothing, Rotation, rotate_all, "/secrets/rotate",
        approval=True,
    ),
    Act(
        "secrets.rotate_on", "secrets:write", Role.SECURITY_OFFICER, OneRun, Rotation, rotate_on, "/secrets/rotate/continue",
    ),
    Act(
        "secrets.invalidate", "secrets:write", Role.SECURITY_OFFICER, OneVersion, Count, invalidate,
        "/agents/{agent_id}/secrets/{version}/invalidate",
    ),
)  # fmt: skip
