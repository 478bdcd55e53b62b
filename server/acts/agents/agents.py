"""Acts on agents: list, show, revoke, retire, reinstate, end a halt."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Listed, Number, PageForm, Time, page
from server.agents import clones, retirement
from server.agents.registry import ACTIVE, REVOKED, AgentRow, enrolled, public_key_pem, row_of
from server.base.errors import NotFound

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
    identity_key: dict[str, str]
    agreement_key: dict[str, str]


class RetiredAgent(Agent):
    """An agent that has left service, with `licenses` that ended with it; its rows are kept for `kept_days` after that."""

    licenses: Number
    kept_days: Number


class PublicKey(Form):
    """A public key, in PEM."""

    pem: str


class Halt(Form):
    """An agent whose rotations are halted, because two machines had its identity; times are seconds since 1970 UTC.
    `until` is when its licenses end if nobody decides; `evidence` is what the second machine was noticed by.
    """

    agent_id: str
    since: Time
    until: Time
    evidence: str
    version: Number | None
    last_seen: Time | None


class AgentsForm(PageForm):
    """Which agents: with a status, with an id that begins with `prefix`, or behind the id `since`."""

    status: Status | None = None
    prefix: Annotated[str, Field(max_length=64, pattern=r"^[!-~]*$")] = ""
    since: Annotated[str, Field(max_length=64, pattern=r"^[!-~]*$")] = ""


class HaltsForm(PageForm):
    """Which halted agents, the oldest halt first."""

    after: Annotated[str, Field(max_length=96, pattern=r"^([0-9]{1,15} [!-~]+)?$")] = ""


class OneKey(Form):
    """Which public key of which agent."""

    agent_id: AgentId
    key: Literal["identity", "attestation"]


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
    after = body.after or body.since
    rows = context.server.agents.listed(context.session, body.status, body.prefix, after, body.limit + 1)
    return page(rows, Agent, body.limit, lambda row: row.agent_id)


def show(context: Context, body: OneAgent) -> Agent:
    """Show an agent."""
    return Agent.model_validate(_row(context, body.agent_id, lock=False))


def revoke(context: Context, body: OneAgent) -> Agent:
    """Revoke an agent: the server refuses its requests from now on."""
    context.server.agents.set_status(context.session, body.agent_id, REVOKED, context.now)
    return Agent.model_validate(_row(context, body.agent_id))


def show_key(context: Context, body: OneKey) -> PublicKey:
    """Show an agent's public key, as the registry has it.

    `identity` signs the agent's requests and the anchors of its audit log; `attestation` certifies the log's checkpoints.
    """
    return PublicKey(pem=public_key_pem(context.session, body.agent_id, body.key))


def retire(context: Context, body: OneAgent) -> RetiredAgent:
    """Take an agent out of service: the server refuses its requests from now on, its licenses end, and it is deleted later."""
    done = retirement.retire(context.session, body.agent_id, context.now)
    agent = Agent.model_validate(_row(context, body.agent_id)).model_dump()
    return RetiredAgent(**agent, licenses=done.licenses, kept_days=done.kept_days)


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


def list_halts(context: Context, body: HaltsForm) -> Listed[Halt]:
    """List the agents whose rotations are halted, because two machines had their identity, the oldest halt first."""
    since, _space, agent_id = body.after.partition(" ")
    last = clones.Halt(agent_id, int(since), 0, "", None, None) if body.after else None
    rows = context.server.clones.halted(context.session, last, body.limit + 1)
    return page(rows, Halt, body.limit, lambda row: f"{row.since} {row.agent_id}")


def show_halt(context: Context, body: OneAgent) -> Halt:
    """Show why an agent's rotations are halted."""
    found = clones.halt_of(enrolled(context.session, body.agent_id, lock=False))
    if found is None:
        raise NotFound(f"agent {body.agent_id!r} is not halted; 'license-server clones' lists the halted agents")
    return Halt.model_validate(found)


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
    Act("agents.show_key", "agents:read", Role.VIEWER, OneKey, PublicKey, show_key, "/agents/{agent_id}/keys/{key}", "GET"),
    Act("clones.list", "agents:read", Role.VIEWER, HaltsForm, Listed[Halt], list_halts, "/clones", "GET"),
    Act("clones.show", "agents:read", Role.VIEWER, OneAgent, Halt, show_halt, "/clones/{agent_id}", "GET"),
    Act(
        "agents.revoke", "agents:write", Role.SECURITY_OFFICER, OneAgent, Agent, revoke, "/agents/{agent_id}/revoke",
        present=present, etag=tag,
    ),
    Act(
        "agents.retire", "agents:write", Role.SECURITY_OFFICER, OneAgent, RetiredAgent, retire, "/agents/{agent_id}/retire",
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
