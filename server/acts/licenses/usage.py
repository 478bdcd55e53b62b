"""Acts on usage: how much of which license was used, by day or in all."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Id, Listed, Number, PageForm, Sheet, Time, VendorId, page
from server.base.errors import Invalid
from server.licensing.licenses import usage
from server.licensing.licenses.usage import Sum, Used, Which
from server.registry.upkeep.retention import DAY_S

Day = Annotated[int, Field(ge=0, le=3_000_000)]
Meter = Annotated[str, Field(max_length=48, pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class UsageForm(PageForm):
    """Which usage: from one day until before another, in days since 1970 UTC."""

    begin: Day = 0
    end: Day = 3_000_000
    license_id: Id | None = None
    meter: Meter | None = None
    customer: VendorId | None = None


class DaysForm(UsageForm):
    """Which usage, by day and agent."""

    agent_id: AgentId | None = None


class UsageDay(Form):
    """What one agent has reported on one day: `day` in days since 1970 UTC, by the server's clock.

    No part of it was counted before `since`, in seconds since 1970 UTC; null where that is not known.
    """

    day: Day
    license_id: str
    meter: str
    agent_id: str
    amount: Number
    since: Time | None


class UsageSum(Form):
    """What was reported of a license and a meter, and the first and last day of it, in days since 1970 UTC."""

    license_id: str
    meter: str
    amount: Number
    first_day: Day
    last_day: Day


def _which(body: UsageForm) -> Which:
    return Which(**body.model_dump(exclude={"after", "limit"}))


def _place(text: str, parts: int) -> list[str]:
    # The license is last: its id may have any character.
    found = text.split("/", parts - 1)
    if len(found) != parts:
        raise Invalid("'after' is not where a page of this list ends")
    return found


def list_days(context: Context, body: DaysForm) -> Listed[UsageDay]:
    """List usage by the day on which the server got it, license, meter and agent."""
    after = None
    if body.after:
        day, agent_id, meter, license_id = _place(body.after, 4)
        if not day.isascii() or not day.isdecimal() or len(day) > 7:
            raise Invalid("'after' is not where a page of this list ends")
        after = Used(int(day), license_id, meter, agent_id, 0, None)
    rows = usage.listed(context.session, _which(body), after, body.limit + 1)
    return page(rows, UsageDay, body.limit, lambda row: f"{row.day}/{row.agent_id}/{row.meter}/{row.license_id}")


def list_sums(context: Context, body: UsageForm) -> Listed[UsageSum]:
    """List usage by license and meter, in all days that are asked for."""
    after = None
    if body.after:
        meter, license_id = _place(body.after, 2)
        after = Sum(license_id, meter, 0, 0, 0)
    rows = usage.sums(context.session, _which(body), after, body.limit + 1)
    return page(rows, UsageSum, body.limit, lambda row: f"{row.meter}/{row.license_id}")


def _day(number: int) -> str:
    return f"{datetime.fromtimestamp(number * DAY_S, UTC):%Y-%m-%d}"


def _day_cells(row: UsageDay) -> tuple[object, ...]:
    since = None if row.since is None else f"{datetime.fromtimestamp(row.since, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return _day(row.day), row.license_id, row.meter, row.agent_id, row.amount, since


def _sum_cells(row: UsageSum) -> tuple[object, ...]:
    return row.license_id, row.meter, row.amount, _day(row.first_day), _day(row.last_day)


DAYS = Sheet(("day", "license_id", "meter", "agent_id", "amount", "since"), _day_cells)
SUMS = Sheet(("license_id", "meter", "amount", "first_day", "last_day"), _sum_cells)
_READ, _VIEWER = "licenses:read", Role.VIEWER

ACTS = (
    Act("reports.usage", _READ, _VIEWER, DaysForm, Listed[UsageDay], list_days, "/reports/usage", "GET", sheet=DAYS),
    Act("reports.usage_sums", _READ, _VIEWER, UsageForm, Listed[UsageSum], list_sums, "/reports/usage-sums", "GET", sheet=SUMS),
)
