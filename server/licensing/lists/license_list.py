"""Lists and finds licenses: by id, by their end, and counted by agent. Each list goes on behind a key; an index serves it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, tuple_
from sqlalchemy.orm import Session

from server.agents.registry import REVOKED, enrolled
from server.base.errors import NotFound
from server.licensing.sales.customers import customer, site
from server.licensing.sales.products import policy, product
from server.licensing.states.license_states import State, state_of
from server.registry.agentcounts import shown_status
from server.registry.models.core import Agent, License


@dataclass(frozen=True, slots=True)
class LicenseRow:
    """A license as administrators see it. Times are seconds since 1970 UTC.

    Attributes:
        license_id: its id.
        agent_id: the agent that has it; None while it is on no machine.
        state: as in `license_states`; agent_revoked or agent_retired for one that is active but for its agent, which therefore
            gets nothing any more.
        subject: who it is for.
        features: what is licensed.
        metadata: for the POS application.
        not_before: when it begins.
        expires: when it ends.
        secret_version: of the agent's secret that its newest token is encrypted with; None before there is one.
        revoked_at: None if it is not revoked.
        suspended_at: None if it is not suspended.
        policy: that it was issued by; None for none.
        product: the policy's.
        customer: whose it is; None if that is not recorded.
        site: where it is used; None if that is not recorded.
        created_at: when it was issued.
        updated_at: when it was last changed.
        revision: how often it was changed, plus one.
    """

    license_id: str
    agent_id: str | None
    state: str
    subject: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    not_before: int
    expires: int
    secret_version: int | None
    revoked_at: int | None
    suspended_at: int | None = None
    policy: str | None = None
    product: str | None = None
    customer: str | None = None
    site: str | None = None
    created_at: int | None = None
    updated_at: int | None = None
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Filter:
    """Which licenses; what is None does not matter.

    Attributes:
        agent_id: those of this agent.
        customer: those of this customer.
        site: those of this site.
        policy: those that were issued by this policy.
        product: those for this product.
        subject: those for this subject, exactly.
        state: those in this state.
        revoked: True for revoked ones, False for others.
    """

    agent_id: str | None = None
    customer: str | None = None
    site: str | None = None
    policy: str | None = None
    product: str | None = None
    subject: str | None = None
    state: State | None = None
    revoked: bool | None = None

    def check(self, session: Session) -> None:
        """Returns if everything that is named exists; raises NotFound or RegistryError: a typing error is not an empty list."""
        if self.agent_id is not None:
            enrolled(session, self.agent_id, lock=False)
        for given, find in ((self.customer, customer), (self.site, site), (self.policy, policy), (self.product, product)):
            if given is not None:
                find(session, given)

    def conditions(self, now: int) -> list[ColumnElement[bool]]:
        """The conditions of a statement."""
        pairs = (
            (License.agent_id, self.agent_id),
            (License.customer_id, self.customer),
            (License.site_id, self.site),
            (License.policy_id, self.policy),
            (License.product_id, self.product),
            (License.subject, self.subject),
        )
        found: list[ColumnElement[bool]] = [column == value for column, value in pairs if value is not None]
        if self.revoked is not None:
            found.append(License.revoked_at.is_not(None) if self.revoked else License.revoked_at.is_(None))
        return found if self.state is None else [*found, *_in_state(self.state, now)]


EVERY = Filter()


def _in_state(state: State, now: int) -> list[ColumnElement[bool]]:
    """As `state_of`; a test compares both."""
    if state is State.REVOKED:
        return [License.revoked_at.is_not(None)]
    if state is State.SUSPENDED:
        return [License.suspended_at.is_not(None), License.revoked_at.is_(None)]
    neither = [License.revoked_at.is_(None), License.suspended_at.is_(None)]
    if state is State.EXPIRED:
        return [*neither, License.expires_at <= now]
    if state is State.UNASSIGNED:
        used = and_(License.agent_id.is_(None), License.floating.is_not(True))
    else:
        used = or_(License.agent_id.is_not(None), License.floating.is_(True))
    return [*neither, used, License.expires_at > now]


def listed(
    session: Session,
    now: int,
    agent_id: str | None = None,
    after: str = "",
    limit: int | None = None,
    *,
    revoked: bool | None = None,
    which: Filter = EVERY,
    seats: bool = True,
) -> list[LicenseRow]:
    """Licenses by id.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC; decides the state.
        agent_id: only those of this agent.
        after: only those whose id comes after this one.
        limit: at most so many; None for all, which may be those of a whole fleet.
        revoked: True for revoked ones only, False for others only.
        which: only those that the filter names.
        seats: also seats of floating licenses.
    """
    more = Filter(agent_id=agent_id, revoked=revoked).conditions(now)
    conditions = [License.jti > after, *more, *which.conditions(now)]
    if not seats:
        conditions.append(License.seat_of.is_(None))
    return _rows(session, _query(conditions).order_by(License.jti).limit(limit), now)


def one(session: Session, license_id: str, now: int) -> LicenseRow:
    """A license by its id. Raises NotFound."""
    found = _rows(session, _query([License.jti == license_id]), now)
    if not found:
        raise NotFound(f"there is no license {license_id!r}; 'license-server licenses list' lists them")
    return found[0]


def ending(
    session: Session,
    now: int,
    begin: int,
    end: int,
    after: LicenseRow | None = None,
    limit: int | None = None,
    which: Filter = EVERY,
) -> list[LicenseRow]:
    """Licenses that are not revoked, by the time of their end.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC; decides the state.
        begin: only those that end at this time or later.
        end: only those that end before this time.
        after: only those behind this one.
        limit: at most so many.
        which: only those that the filter names.
    """
    # A seat ends every few days, and is renewed.
    mine = License.revoked_at.is_(None), License.seat_of.is_(None)
    conditions = [*mine, License.expires_at >= begin, License.expires_at < end, *which.conditions(now)]
    if after is not None:
        conditions.append(tuple_(License.expires_at, License.jti) > (after.expires, after.license_id))
    return _rows(session, _query(conditions).order_by(License.expires_at, License.jti).limit(limit), now)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """An agent and how many licenses it has. Times are seconds since 1970 UTC.

    Attributes:
        agent_id: its id.
        serial: its serial number; None if it was enrolled by hand.
        status: as in lists of agents.
        attestation: attested, tpm-unattested or software.
        last_seen: its last contact; None if it has had none.
        active: licenses that count now, or begin later.
        suspended: licenses that are suspended.
        expired: licenses that have ended.
        revoked: licenses that are revoked.
        next_end: when the next of the active ones ends; None if there is none.
    """

    agent_id: str
    serial: int | None
    status: str
    attestation: str
    last_seen: int | None
    active: int
    suspended: int
    expired: int
    revoked: int
    next_end: int | None


def devices(session: Session, now: int, after: str = "", limit: int | None = None) -> list[DeviceRow]:
    """Agents by id, at most so many, behind one, with the numbers of their licenses."""
    agents = list(session.scalars(select(Agent).where(Agent.id > after).order_by(Agent.id).limit(limit)))
    counted = _counted(session, [agent.id for agent in agents], now)
    nothing = (0, 0, 0, 0, None)
    return [
        DeviceRow(
            agent.id,
            agent.serial,
            shown_status(agent.status, agent.retired_at),
            agent.attestation,
            agent.last_seen,
            *counted.get(agent.id, nothing),
        )
        for agent in agents
    ]


def _counted(session: Session, agent_ids: Sequence[str], now: int) -> dict[str, Any]:
    def number(state: State) -> ColumnElement[int]:
        return func.sum(case((and_(*_in_state(state, now)), 1), else_=0))

    active = and_(*_in_state(State.ACTIVE, now))
    columns = [number(state) for state in (State.ACTIVE, State.SUSPENDED, State.EXPIRED, State.REVOKED)]
    query = select(License.agent_id, *columns, func.min(case((active, License.expires_at))))
    rows = session.execute(query.where(License.agent_id.in_(agent_ids)).group_by(License.agent_id))
    return {str(row[0]): (*map(int, row[1:5]), row[5]) for row in rows}


def _query(conditions: list[ColumnElement[bool]]) -> Select[Any]:
    joined: Any = select(License, Agent.status, Agent.retired_at)
    found: Select[Any] = joined.outerjoin(Agent, Agent.id == License.agent_id).where(*conditions)
    return found


def _rows(session: Session, query: Select[Any], now: int) -> list[LicenseRow]:
    # What a transaction has changed is shown as it is.
    session.flush()
    return [_row(row, status, retired_at, now) for row, status, retired_at in session.execute(query)]


def _row(row: License, agent_status: str | None, retired_at: int | None, now: int) -> LicenseRow:
    claims = json.loads(row.claims)
    state = state_of(row, now).value
    if state == State.ACTIVE and agent_status == REVOKED:
        state = f"agent_{shown_status(agent_status, retired_at)}"
    features, metadata = tuple(claims.get("features", ())), dict(claims.get("metadata", {}))
    return LicenseRow(
        row.jti, row.agent_id, state, claims["sub"], features, metadata, claims["nbf"], claims["exp"],
        row.secret_version, row.revoked_at, row.suspended_at, row.policy_id, row.product_id, row.customer_id, row.site_id,
        row.created_at, row.updated_at, row.revision,
    )  # fmt: skip
