"""Says which agents of a fleet are to renew their client certificates, and which are late, by the policy that each was sent."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from msgspec import UNSET
from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from contracts.contact.configuration import Members, ResultState
from contracts.contact.renewal import CONTACT_S, CONTACTS_LEFT, RenewalPolicy, renewal_time, window
from server.agents.certificates import LIFETIME_S
from server.agents.registry import ACTIVE, REVOKED
from server.fleet.fleets.fleets import required
from server.fleet.fleets.membership import members
from server.keys.pki import BACKDATE_S
from server.registry.dialect import by_bytes, plan_each_time
from server.registry.models.core import Agent, Certificate
from server.registry.models.fleets import Device, DeviceConfiguration, Fleet, FleetConfiguration

from .settings import members_of

BATCH = 500
_Policies = dict[tuple[str, int], RenewalPolicy]


class RenewalState(StrEnum):
    """How an agent's certificate stands."""

    PLANNED = "planned"
    """The time in which its fleet renews has come, and the agent's own time has not."""
    DUE = "due"
    """The agent's own time has come: it renews at its next contact."""
    OVERDUE = "overdue"
    """The time in which its fleet renews is over by more than two contacts, and the agent has not renewed."""
    ENDED = "ended"
    """The certificate has ended; it opens its renewal only, for 400 days."""


LATE = frozenset({RenewalState.OVERDUE, RenewalState.ENDED})


@dataclass(frozen=True, slots=True)
class RenewalRow:
    """An agent whose certificate is to be renewed. Times are seconds since 1970 UTC.

    Attributes:
        device_id: the agent.
        state: how its certificate stands.
        renews_at: the agent's own time.
        latest: when all agents of its policy should have renewed a certificate of the same dates.
        ends: when the certificate ends.
        number: the certificate's serial number, hex.
        last_contact: the agent's; None before the first.
        fleet_id: whose configuration the agent goes by, as far as it has said; None for none.
    """

    device_id: str
    state: str
    renews_at: int
    latest: int
    ends: int
    number: str
    last_contact: int | None
    fleet_id: str | None


def policy_of(set_: Members) -> RenewalPolicy:
    """How long before their end certificates are renewed by a configuration."""
    days, stagger, contact = (
        None if value is UNSET else value
        for value in (set_.certificates_renew_days_before, set_.certificates_stagger_days, set_.agent_contact_interval)
    )
    return RenewalPolicy(days, stagger, contact or CONTACT_S)


def renewals(session: Session, fleet_id: str, after: str, limit: int, now: int, *, late: bool = False) -> list[RenewalRow]:
    """The agents of a fleet in service whose time to renew has begun, by id.

    An agent goes by the configuration that it was last sent, of whichever fleet, unless it has refused that.

    Args:
        session: of any transaction.
        fleet_id: the fleet.
        after: only ids behind it.
        limit: at most so many.
        now: seconds since 1970 UTC.
        late: only those that are overdue, or whose certificate has ended.

    Raises:
        NotFound: there is no such fleet.
    """
    fleet = required(session, fleet_id)
    policies = _policies(session, fleet)
    rows = (_row(each, policies, now) for each in _candidates(session, fleet, after, now + _earliest(policies, late=late)))
    found = []
    for row in rows:
        if row is not None and (not late or row.state in LATE):
            found.append(row)
            if len(found) == limit:
                break
    return found


def _policies(session: Session, fleet: Fleet) -> _Policies:
    """The policies that agents of a fleet go by, by fleet and number of the configuration."""
    sent = (DeviceConfiguration.fleet_id, DeviceConfiguration.number)
    query = select(*sent).where(DeviceConfiguration.device_id.in_(members(session, fleet))).distinct()
    found: _Policies = {}
    for whose, number in session.execute(query):
        configuration = session.get(FleetConfiguration, (whose, number)) if whose is not None else None
        if whose is not None and configuration is not None:
            found[(whose, number)] = policy_of(members_of(configuration))
    return found


def _earliest(policies: _Policies, *, late: bool) -> int:
    """How long before its end a certificate may be of interest at the most, in seconds. One of a shorter time comes later."""
    windows = [window(policy, 0, LIFETIME_S) for policy in (RenewalPolicy(), *policies.values())]
    return LIFETIME_S - min(each.last if late else each.first for each in windows)


_Found = tuple[str, int | None, str, int, int, str | None, int | None, str | None]


def _candidates(session: Session, fleet: Fleet, after: str, ends_by: int) -> Iterator[_Found]:
    """Agents in service with the certificate of each that ends last, if that is at `ends_by` or sooner."""
    plan_each_time(session)
    device_id, newer = by_bytes(session, Device.id), aliased(Certificate)
    later = or_(
        newer.not_after > Certificate.not_after,
        and_(newer.not_after == Certificate.not_after, newer.fingerprint > Certificate.fingerprint),
    )
    sent = DeviceConfiguration
    query = (
        select(
            Device.id, Agent.last_seen, Certificate.number, Certificate.issued_at, Certificate.not_after,
            sent.fleet_id, sent.number, sent.state,
        )
        .join(Agent, Agent.id == Device.id)
        .join(Certificate, Certificate.agent_id == Agent.id)
        .outerjoin(sent, sent.device_id == Device.id)
        .where(Device.id.in_(members(session, fleet)), Agent.status != REVOKED)
        .where(Certificate.state == ACTIVE, Certificate.not_after <= ends_by)
        .where(~exists().where(newer.agent_id == Agent.id, newer.state == ACTIVE, later))
        .order_by(device_id)
        .limit(BATCH)
    )  # fmt: skip
    while True:
        rows = session.execute(query.where(device_id > after)).all()
        yield from rows
        if len(rows) < BATCH:
            return
        after = rows[-1][0]


def _row(found: _Found, policies: _Policies, now: int) -> RenewalRow | None:
    device_id, seen, number, issued_at, ends, whose, configuration, state = found
    policy, fleet_id = RenewalPolicy(), None
    if whose is not None and configuration is not None and state != ResultState.REFUSED.value:
        policy, fleet_id = policies.get((whose, configuration), policy), whose
    begins = issued_at - BACKDATE_S
    times, own = window(policy, begins, ends), renewal_time(policy, device_id, int(number, 16), begins, ends)
    if now < times.first:
        return None
    if now >= ends:
        standing = RenewalState.ENDED
    elif now > times.last + CONTACTS_LEFT * policy.contact_s:
        standing = RenewalState.OVERDUE
    else:
        standing = RenewalState.DUE if now >= own else RenewalState.PLANNED
    return RenewalRow(device_id, standing.value, own, times.last, ends, number, seen, fleet_id)
