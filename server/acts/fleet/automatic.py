"""Acts on rollouts that start without a person: each new release of a product goes to a fleet, as two people have wanted."""

import json

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, PageForm, Time, VendorId, page
from server.fleet.rollouts import automatic
from server.fleet.rollouts.policy import policy_of
from server.registry.models.rollouts import AutomaticRollout

from .rollouts import PolicyForm, Selection, given, plain


class AutomaticForm(Form):
    """A fleet that is to get each new release of a product, by a rollout that starts without a person. The policy is this one
    as it is written here: the fleet's own does not count, since two people want exactly this.
    """

    fleet_id: VendorId
    product: VendorId
    selection: Selection | None = None
    policy: PolicyForm = PolicyForm()


class OneAutomatic(Form):
    """Whose releases are not to be rolled out by themselves any more."""

    fleet_id: VendorId
    product: VendorId


class AutomaticList(PageForm):
    """Of which fleet; of all if none is named."""

    fleet_id: VendorId | None = None


class Automatic(AutomaticForm):
    """How a fleet gets releases of a product by itself: `state` is on or halted; `detail` says why it was halted, or why
    nothing starts. Releases above `floor` are meant; `newest` is the last one that was rolled out so.
    """

    state: str
    detail: str
    floor: str
    newest: str
    set_by: str
    set_at: Time


def turn_on(context: Context, body: AutomaticForm) -> Automatic:
    """Roll each new release of a product out to a fleet without a person. A second person must approve."""
    return _automatic(automatic.turn_on(context.session, _wish(body), context.caller.account, context.now))


def turn_off(context: Context, body: OneAutomatic) -> Automatic:
    """Start no rollouts of a product without a person any more. Those that exist go on."""
    return _automatic(automatic.turn_off(context.session, body.fleet_id, body.product, context.now))


def list_automatic(context: Context, body: AutomaticList) -> Listed[Automatic]:
    """List the fleets and products whose new releases are rolled out without a person."""
    found = [row for row in automatic.listed(context.session, body.fleet_id) if f"{row.fleet_id}/{row.product}" > body.after]
    items = [_automatic(row) for row in found[: body.limit + 1]]
    return page(items, Automatic, body.limit, lambda row: f"{row.fleet_id}/{row.product}")


def _wish(body: AutomaticForm) -> automatic.Wish:
    return automatic.Wish(body.fleet_id, body.product, body.selection, policy_of(given(body.policy)))


def _require_wanted(context: Context, body: AutomaticForm) -> None:
    automatic.require_possible(context.session, _wish(body))


def _automatic(row: AutomaticRollout) -> Automatic:
    names = ("fleet_id", "product", "selection", "state", "detail", "floor", "newest", "set_by", "set_at")
    policy = PolicyForm.model_validate(plain(json.loads(row.policy)))
    return Automatic(policy=policy, **{name: getattr(row, name) for name in names})


_READ, _WRITE, _ONE = "rollouts:read", "rollouts:write", "/fleets/{fleet_id}/automatic-rollouts/{product}"

ACTS = (
    Act(
        "rollouts.automatic", _READ, Role.VIEWER, AutomaticList, Listed[Automatic], list_automatic, "/automatic-rollouts", "GET"
    ),
    Act(
        "rollouts.automatic_on", _WRITE, Role.SECURITY_OFFICER, AutomaticForm, Automatic, turn_on, _ONE, "PUT",
        approval=True, possible=_require_wanted,
    ),
    Act(
        "rollouts.automatic_off", _WRITE, Role.SUPPORT, OneAutomatic, Automatic, turn_off, f"{_ONE}/off",
        also=frozenset({Role.SECURITY_OFFICER}),
    ),
)  # fmt: skip
