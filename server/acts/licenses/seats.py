"""Acts on floating licenses and their seats, and on the sites of agents."""

from typing import Annotated, Literal

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Id, Listed, Number, PageForm, Time, page
from server.licensing.sales import seats
from server.licensing.sales.seats import BOUNDS, MAX_SEAT_COUNT, Mode, Terms

SiteId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Floating(Form):
    """A floating license. `taken` seats count now; `over` of them are beyond `seats`. Durations are in seconds."""

    license_id: str
    site: str | None
    state: str
    seats: Number
    taken: Number
    over: Number
    mode: str
    lease: Number
    grace: Number
    idle: Number
    expires: Time


class Seat(Form):
    """A seat that counts; times are seconds since 1970 UTC."""

    seat: str
    license_id: str
    agent_id: str
    taken_at: Time
    lease_until: Time
    grace_until: Time
    counted_until: Time
    over: bool


class AgentSite(Form):
    """Where an agent's machine is; null for nowhere."""

    agent_id: AgentId
    site: SiteId | None = None


class FloatingForm(PageForm):
    """Which floating licenses."""

    site: SiteId | None = None


class SeatsForm(PageForm):
    """Which floating license."""

    license_id: Id
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class SeatTerms(Form):
    """How the tills of a site share a license. In seconds: when a till renews its seat (`lease`), how long it works offline at
    least (`grace`), and when it gives an unused seat back (`idle`).
    """

    seats: Annotated[int, Field(ge=1, le=MAX_SEAT_COUNT)]
    mode: Literal["hard", "soft"] = "hard"
    lease: Annotated[int, Field(ge=BOUNDS["lease"][0], le=BOUNDS["lease"][1])] = Terms(1).lease
    grace: Annotated[int, Field(ge=BOUNDS["grace"][0], le=BOUNDS["grace"][1])] = Terms(1).grace
    idle: Annotated[int, Field(ge=BOUNDS["idle"][0], le=BOUNDS["idle"][1])] = Terms(1).idle


class TermsForm(SeatTerms):
    """The terms of a floating license; durations are in seconds."""

    license_id: Id


class OneSeat(Form):
    """Which seat."""

    seat: Id


def list_floating(context: Context, body: FloatingForm) -> Listed[Floating]:
    """List floating licenses by id, with how many of their seats are taken."""
    rows = seats.listed(context.session, context.now, body.after, body.limit + 1, body.site)
    return page(rows, Floating, body.limit, lambda row: row.license_id)


def show(context: Context, body: SeatsForm) -> Listed[Seat]:
    """List the seats of a floating license that count, the longest held first."""
    rows = seats.held(context.session, body.license_id, context.now, int(body.after or "0"), body.limit + 1)
    return page(rows, Seat, body.limit, lambda row: row.seat.rpartition("#")[2])


def set_terms(context: Context, body: TermsForm) -> Floating:
    """Make a license of a site a floating one, or change its terms. Fewer seats take none away before its grace ends."""
    terms = Terms(body.seats, Mode(body.mode), body.lease, body.grace, body.idle)
    return Floating.model_validate(seats.set_terms(context.session, body.license_id, terms, context.now))


def free(context: Context, body: OneSeat) -> Seat:
    """Free a seat at once, of a machine that is out of use for certain: else more tills than seats could work."""
    return Seat.model_validate(seats.free(context.session, body.seat, context.now))


def assign(context: Context, body: AgentSite) -> AgentSite:
    """Say at which site an agent's machine is: it may take seats of the site's floating licenses."""
    seats.assign_site(context.session, body.agent_id, body.site, context.now)
    return body


ACTS = (
    Act("seats.list", "licenses:read", Role.VIEWER, FloatingForm, Listed[Floating], list_floating, "/seats", "GET"),
    Act("seats.show", "licenses:read", Role.VIEWER, SeatsForm, Listed[Seat], show, "/licenses/{license_id}/seats", "GET"),
    Act("seats.set", "licenses:write", Role.ISSUER, TermsForm, Floating, set_terms, "/licenses/{license_id}/seats"),
    Act("seats.free", "licenses:write", Role.ISSUER, OneSeat, Seat, free, "/seats/free"),
    Act("agents.assign", "agents:write", Role.ISSUER, AgentSite, AgentSite, assign, "/agents/{agent_id}/site"),
)
