"""Acts on the certificates of a fleet's agents: list those that are to be renewed, and those that are late."""

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, PageForm, Time, VendorId, page
from server.fleet.configuration.renewals import renewals


class CertificatesForm(PageForm):
    """Which fleet, and which part of the list; `late` leaves out agents that still have time."""

    fleet_id: VendorId
    late: bool = False


class Renewal(Form):
    """An agent whose certificate is to be renewed. Times are seconds since 1970 UTC.

    `state`: planned (its fleet's time has come, its own has not), due (it renews at its next contact), overdue (the fleet's
    time is over by more than two contacts), ended. `renews_at` is the agent's own time, `latest` that of the last agent;
    `fleet_id` is whose configuration the agent goes by.
    """

    device_id: str
    state: str
    renews_at: Time
    latest: Time
    ends: Time
    number: str
    last_contact: Time | None
    fleet_id: str | None


def certificates(context: Context, body: CertificatesForm) -> Listed[Renewal]:
    """List the agents of a fleet whose time to renew their certificates has begun, and who is late."""
    rows = renewals(context.session, body.fleet_id, body.after, body.limit + 1, context.now, late=body.late)
    return page(rows, Renewal, body.limit, lambda row: row.device_id)


ACTS = (
    Act(
        "fleets.certificates", "fleets:read", Role.VIEWER, CertificatesForm, Listed[Renewal], certificates,
        "/fleets/{fleet_id}/certificates", "GET",
    ),
)  # fmt: skip
