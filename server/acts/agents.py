"""Acts on agents: list, show, revoke, retire, reinstate, end a halt."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from server.accounts.roles import Role
from server.agents import retirement
from server.agents.registry import ACTIVE, REVOKED, AgentRow, enrolled, row_of

from .act import Act, AgentId, Context, Form, Listed, Number, PageForm, Time, page

MAX_AGENTS = 1000
"""Agents of one request."""
Status = Literal["active", "factory_only", "revoked", "retired"]


class Agent(Form):
    """An agent; times are seconds since 1970 UTC. `retired_at` is when it left service."""

    agent_id: str
    serial: Number | None
    hw_id: str | None
    status: Annotated[Status, Field(validation_alias=AliasChoices("shown_status", "status"))]
    attestation: str
    backend: str
    created_at: Time
    updated_at: Time
    last_seen: Time | None
    retired_at: Time | None = None


class AgentsForm(PageForm):
    """Which agents."""

    status: Status | None = None
    prefix: Annotated[str, Field(max_length=64, pattern=r"^[!-~]*$")] = ""


class OneAgent(Form):
    """Which agent."""

    agent_id: AgentId


class ManyAgents(Form):
    """Which agents; each once."""

    agent_ids: Annotated[list[AgentId], Field(min_length=1, max_length=MAX_AGENTS)]


class Count(Form):
    """How many were changed."""

    count: Number


def list_agents(context: Context, body: AgentsForm) -> Listed[Agent]:
    """List agents by id."""
    rows = context.server.agents.listed(context.session, body.status, body.prefix, body.after, body.limit + 1)
    return page(rows, Agent, body.limit, lambda row: row.agent_id)


def show(context: Context, body: OneAgent) -> Agent:
    """Show an agent."""
    return Agent.model_validate(_row(context, body.agent_id, lock=False))


def revoke(context: Context, body: OneAgent) -> Agent:
    """Revoke an agent: the server refuses its requests from now on."""
    context.server.agents.set_status(context.session, body.agent_id, REVOKED, context.now)
    return Agent.model_validate(_row(context, body.agent_id))


def retire(context: Context, body: OneAgent) -> Agent:
    """Take an agent out of service: the server refuses its requests from now on, its licenses end, and it is deleted later."""
    retirement.retire(context.session, body.agent_id, context.now)
    return Agent.model_validate(_row(context, body.agent_id))


def reinstate(context: Context, body: OneAgent) -> Agent:
    """Reinstate a revoked or retired agent. Its certificates stay revoked: the device must be provisioned again."""
    context.server.agents.set_status(context.session, body.agent_id, ACTIVE, context.now)
    return Agent.model_validate(_row(context, body.agent_id))


def revoke_many(context: Context, body: ManyAgents) -> Count:
    """Revoke many agents at once: all of them, or none if one does not exist. A second person must approve."""
    ids = sorted(set(body.agent_ids))  # locked in the order of their ids, as everybody locks agents
    for agent_id in ids:
        context.server.agents.set_status(context.session, agent_id, REVOKED, context.now)
    return Count(count=len(ids))


def resume(context: Context, body: OneAgent) -> Agent:
    """End the halt of an agent whose identity two machines had: one machine is left."""
    context.server.clones.resume(context.session, body.agent_id, context.now)
    return Agent.model_validate(_row(context, body.agent_id))


def tag(agent: Agent) -> str:
    """Changes with the agent's status."""
    return f"{agent.status}.{agent.updated_at}"


def present(context: Context, body: OneAgent) -> Agent:
    """The agent, locked."""
    return Agent.model_validate(_row(context, body.agent_id))


def _row(context: Context, agent_id: str, *, lock: bool = True) -> AgentRow:
    return row_of(enrolled(context.session, agent_id, lock=lock))


ACTS = (
    Act("agents.list", "agents:read", Role.VIEWER, AgentsForm, Listed[Agent], list_agents, "/agents", "GET"),
    Act("agents.show", "agents:read", Role.VIEWER, OneAgent, Agent, show, "/agents/{agent_id}", "GET", etag=tag),
    Act(
        "agents.revoke", "agents:write", Role.SECURITY_OFFICER, OneAgent, Agent, revoke, "/agents/{agent_id}/revoke",
        present=present, etag=tag,
    ),
    Act(
        "agents.retire", "agents:write", Role.SECURITY_OFFICER, OneAgent, Agent, retire, "/agents/{agent_id}/retire",
        present=present, etag=tag,
    ),
    Act(
        "agents.reinstate", "agents:write", Role.SECURITY_OFFICER, OneAgent, Agent, reinstate, "/agents/{agent_id}/reinstate",
        present=present, etag=tag,
    ),
    Act(
        "agents.revoke_many", "agents:write", Role.SECURITY_OFFICER, ManyAgents, Count, revoke_many, "/agents/revoke",
        approval=True,
    ),
    Act(
        "agents.resume", "agents:write", Role.SECURITY_OFFICER, OneAgent, Agent, resume, "/agents/{agent_id}/resume",
        present=present, etag=tag,
    ),
)  # fmt: skip
