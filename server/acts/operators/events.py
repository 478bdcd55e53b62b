"""Acts on the feed of events: read it."""

from typing import Annotated

from pydantic import Field, JsonValue

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Number, PageForm, Time, page
from server.registry import events


class Event(Form):
    """An event: ids and numbers, never a name of a person; `at` in seconds since 1970 UTC."""

    seq: Number
    at: Time
    kind: str
    subject: str
    fields: dict[str, JsonValue]


class EventsForm(PageForm):
    """Which events: the oldest first, behind the number `since`, or of one subject."""

    since: Number = 0
    subject: Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")] | None = None
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


def list_events(context: Context, body: EventsForm) -> Listed[Event]:
    """List events, the oldest first. An event with a smaller number never comes later, so a reader misses none."""
    after = max(body.since, int(body.after or "0"))
    rows = events.listed(context.session, after, body.limit + 1, body.subject)
    return page(rows, Event, body.limit, lambda row: str(row.seq))


ACTS = (Act("events.list", "events:read", Role.VIEWER, EventsForm, Listed[Event], list_events, "/events", "GET"),)
