"""Acts on rollouts: rehearse, make, start, pause, stop and take back an update of a fleet."""

import json
from typing import Annotated, Any

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Id, Line, Listed, Number, PageForm, Time, VendorId, page
from server.acts.windows import Path, Window
from server.base.errors import NotFound
from server.fleet.rollouts import lifecycle, rehearsal, rows, views
from server.fleet.rollouts.policy import MAX_FREEZES, MAX_GROUP_CHARS, MAX_GROUPS, policy_of
from server.fleet.rollouts.queue import notice_until
from server.fleet.rollouts.rows import Plan
from server.ota.directives import LASTS_S, MAX_LASTS_S
from server.registry import audit
from server.registry.models.fleets import Fleet

Percent = Annotated[int, Field(ge=1, le=100)]
Lasts = Annotated[int, Field(ge=60, le=MAX_LASTS_S)]
Selection = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
GroupText = Annotated[str, Field(min_length=1, max_length=MAX_GROUP_CHARS, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Days = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(\.\.[0-9]{4}-[0-9]{2}-[0-9]{2})?$")]
ZoneName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$")]
StateName = Annotated[str, Field(pattern=r"^[a-z-]{1,16}$")]


class PolicyForm(Form):
    """How a rollout goes on, and when it stops; durations are in seconds. What is missing is as the fleet's policy has it, or
    as the documentation says. `groups` take devices in their order: `5%`, `10`, a selection, and `rest` at the end.
    """

    groups: Annotated[list[GroupText], Field(min_length=1, max_length=MAX_GROUPS)] | None = None
    success_percent: Percent | None = None
    failure_percent: Percent | None = None
    failure_count: Annotated[int, Field(ge=1, le=10**9)] | None = None
    window: Window | None = None
    notice: Annotated[int, Field(ge=0, le=LASTS_S)] | None = None
    prestage: bool | None = None
    freeze: Annotated[list[Days], Field(max_length=MAX_FREEZES)] | None = None
    zone: ZoneName | None = None
    wait: Lasts | None = None
    ordered: Lasts | None = None
    under_way: Lasts | None = None
    installed: Lasts | None = None
    candidate: bool | None = None


class CreateForm(Form):
    """A new rollout: `target` is the package, `selection` selects devices of the fleet."""

    rollout_id: VendorId
    fleet_id: VendorId
    target: Path
    selection: Selection | None = None
    policy: PolicyForm = PolicyForm()


class OneRollout(Form):
    """Which rollout."""

    rollout_id: VendorId


class StopForm(Form):
    """Which rollout, and why it is stopped."""

    rollout_id: VendorId
    why: Line = ""


class RollBackForm(Form):
    """Which rollout is taken back, and by which new one. Without a policy, that has one group, no notice and no window, and
    goes on whatever fails.
    """

    rollout_id: VendorId
    back_id: VendorId
    policy: PolicyForm = PolicyForm()


class RolloutsForm(PageForm):
    """Which rollouts."""

    fleet_id: VendorId | None = None
    state: StateName | None = None


class DevicesForm(PageForm):
    """Which devices of which rollout."""

    rollout_id: VendorId
    state: StateName | None = None
    group: Annotated[int, Field(ge=1, le=MAX_GROUPS)] | None = None


class FleetPolicyForm(Form):
    """The policy of a fleet: what its rollouts do where they do not say otherwise."""

    fleet_id: VendorId
    policy: PolicyForm


class OneFleet(Form):
    """Which fleet."""

    fleet_id: VendorId


class Rollout(Form):
    """A rollout; times are seconds since 1970 UTC. `notice_until` is null before the start; `rolls_back` is the rollout whose
    devices this one takes back, each to the version that it ran before.
    """

    rollout_id: str
    fleet_id: str
    selection: str | None
    rolls_back: str | None
    product: str
    target: str
    version: str
    build_id: str
    state: str
    detail: str
    created_by: str
    created_at: Time
    started_at: Time | None
    notice_until: Time | None
    ended_at: Time | None
    revision: Number


class Group(Form):
    """A group and its counters: `waiting` devices have no order, `under_way` have one that is not done, `left_out` do not
    count.
    """

    number: Number
    name: str
    state: str
    success_percent: Number
    failure_percent: Number
    total: Number
    waiting: Number
    under_way: Number
    proved: Number
    failed: Number
    left_out: Number
    started_at: Time | None
    ended_at: Time | None


class Reason(Form):
    """Why devices failed, refused or were left out."""

    state: str
    text: str
    devices: Number
    example: str


class RolloutShown(Rollout):
    """A rollout with its policy, its groups, and the most frequent reasons."""

    policy: PolicyForm
    groups: tuple[Group, ...]
    reasons: tuple[Reason, ...]


class RolloutDevice(Form):
    """A device of a rollout. `number` is that of its directive; `before` is the version that it ran when it got it."""

    device_id: Id
    group: Number
    state: str
    number: Number | None
    before: str | None
    detail: str
    ordered_at: Time | None
    deadline: Time | None
    updated_at: Time


class Obstacle(Form):
    """What keeps devices from their order: for good, or as long as it is there."""

    reason: str
    devices: Number
    example: str
    for_good: bool


class RolloutOpening(Form):
    """When devices of a time zone may begin, if their group starts at once; seconds since 1970 UTC."""

    zone: str | None
    devices: Number
    at: Time


class Rehearsed(Form):
    """What a group would do: `hit` devices would get the order, `already` run the build."""

    number: Number
    name: str
    devices: Number
    hit: Number
    already: Number
    obstacles: tuple[Obstacle, ...]
    openings: tuple[RolloutOpening, ...]


class Traffic(Form):
    """What the devices of a site fetch in all, in bytes."""

    site: str | None
    devices: Number
    bytes: Number


class Rehearsal(Form):
    """What a rollout would do. Nothing was changed."""

    groups: tuple[Rehearsed, ...]
    sites: tuple[Traffic, ...]


def _rollout(row: Any) -> dict[str, Any]:
    own = {"rollout_id": row.id, "target": row.path, "notice_until": None if row.started_at is None else notice_until(row)}
    return {name: own[name] if name in own else getattr(row, name) for name in Rollout.model_fields}


def _shown(context: Context, row: Any) -> RolloutShown:
    groups = rows.groups_of(context.session, row.id)
    found = views.reasons(context.session, row.id)
    return RolloutShown(
        **_rollout(row), policy=PolicyForm.model_validate(plain(json.loads(row.policy))),
        groups=tuple(Group.model_validate(group) for group in groups),
        reasons=tuple(Reason.model_validate(each) for each in found),
    )  # fmt: skip


def plain(members: dict[str, Any]) -> dict[str, Any]:
    """The members of a policy's row as a form takes them."""
    window = members.get("window")
    return members if window is None else {**members, "window": Window.model_validate(window)}


def given(form: PolicyForm) -> dict[str, Any]:
    """What a form says."""
    return {name: value for name, value in form.model_dump(mode="json").items() if value is not None}


def _policy(session: Any, fleet_id: str, form: PolicyForm) -> Any:
    fleet = session.get(Fleet, fleet_id)
    return policy_of({**({} if fleet is None else json.loads(fleet.policy)), **given(form)})


def list_rollouts(context: Context, body: RolloutsForm) -> Listed[Rollout]:
    """List rollouts by their id."""
    found = views.listed(context.session, body.after, body.limit + 1, body.fleet_id, body.state)
    items = [Rollout.model_validate(_rollout(row)) for row in found]
    return page(items, Rollout, body.limit, lambda row: row.rollout_id)


def show(context: Context, body: OneRollout) -> RolloutShown:
    """Show a rollout: its policy, the counters of its groups, and why devices failed."""
    return _shown(context, rows.required(context.session, body.rollout_id))


def list_devices(context: Context, body: DevicesForm) -> Listed[RolloutDevice]:
    """List the devices of a rollout by their id, and how far each is."""
    rows.required(context.session, body.rollout_id)
    found = views.devices(context.session, body.rollout_id, body.after, body.limit + 1, body.state, body.group)
    members = [name for name in RolloutDevice.model_fields if name != "group"]
    items = [
        RolloutDevice.model_validate({"group": row.group_number, **{name: getattr(row, name) for name in members}})
        for row in found
    ]
    return page(items, RolloutDevice, body.limit, lambda row: row.device_id)


def rehearse(context: Context, body: OneRollout) -> Rehearsal:
    """Say which devices a rollout would hit, when they may begin, what they fetch, and who would be left out and why."""
    row = rows.required(context.session, body.rollout_id)
    groups, sites = rehearsal.rehearse(context.session, row, context.now)
    return Rehearsal(
        groups=tuple(Rehearsed.model_validate(each) for each in groups),
        sites=tuple(Traffic.model_validate(each) for each in sites),
    )


def create(context: Context, body: CreateForm) -> RolloutShown:
    """Make a rollout as a draft: its devices are put into groups, and nothing is ordered."""
    policy = _policy(context.session, body.fleet_id, body.policy)
    plan = Plan(body.rollout_id, body.fleet_id, body.target, body.selection, policy)
    return _shown(context, lifecycle.create(context.session, plan, context.caller.account, context.now))


def start(context: Context, body: OneRollout) -> RolloutShown:
    """Start a rollout: it is announced, and begins when its notice is over. A second person must approve."""
    return _shown(context, lifecycle.start(context.session, body.rollout_id, context.now))


def pause(context: Context, body: OneRollout) -> RolloutShown:
    """Pause a rollout: no device gets its order, and no group starts. What was ordered goes on."""
    return _shown(context, lifecycle.pause(context.session, body.rollout_id, context.now))


def resume(context: Context, body: OneRollout) -> RolloutShown:
    """Let a rollout that pauses go on."""
    return _shown(context, lifecycle.resume(context.session, body.rollout_id, context.now))


def stop(context: Context, body: StopForm) -> RolloutShown:
    """Stop a rollout for good: what a device has not begun is withdrawn at its next contact."""
    why = body.why or context.reason or f"by {context.caller.account}"
    return _shown(context, lifecycle.stop(context.session, body.rollout_id, why, context.now))


def roll_back(context: Context, body: RollBackForm) -> RolloutShown:
    """Take a rollout back: each device gets the version that it ran before. A second person must approve."""
    usual = {"groups": ["rest"], "success_percent": 100, "failure_percent": 100, "notice": 0}
    policy = policy_of({**usual, **given(body.policy)})
    by = context.caller.account
    return _shown(context, lifecycle.roll_back(context.session, body.rollout_id, body.back_id, policy, by, context.now))


def _require_startable(context: Context, body: OneRollout) -> None:
    lifecycle.require_startable(context.session, body.rollout_id)


def _require_reversible(context: Context, body: RollBackForm) -> None:
    lifecycle.require_reversible(context.session, body.rollout_id)


def show_policy(context: Context, body: OneFleet) -> FleetPolicyForm:
    """Show the policy that the rollouts of a fleet have where they do not say otherwise."""
    return FleetPolicyForm(
        fleet_id=body.fleet_id, policy=PolicyForm.model_validate(plain(json.loads(_fleet(context, body).policy)))
    )


def set_policy(context: Context, body: FleetPolicyForm) -> FleetPolicyForm:
    """Set the policy that the rollouts of a fleet have where they do not say otherwise. Rollouts that exist keep theirs."""
    fleet, wanted = _fleet(context, body, lock=True), given(body.policy)
    policy_of(wanted)
    fleet.policy, fleet.updated_at, fleet.revision = json.dumps(wanted, sort_keys=True), context.now, fleet.revision + 1
    audit.record(context.session, audit.ADMIN, "rollout.policy_set", "ok", context.now, fleet=fleet.id)
    return FleetPolicyForm(fleet_id=fleet.id, policy=body.policy)


def _fleet(context: Context, body: OneFleet | FleetPolicyForm, *, lock: bool = False) -> Fleet:
    fleet = context.session.get(Fleet, body.fleet_id, with_for_update=lock or None)
    if fleet is None:
        raise NotFound(f"there is no fleet {body.fleet_id!r}; 'license-server fleets list' lists them")
    return fleet


_READ, _WRITE, _ONE = "rollouts:read", "rollouts:write", "/rollouts/{rollout_id}"
_SECURITY, _SUPPORT = frozenset({Role.SECURITY_OFFICER}), Role.SUPPORT
_POLICY = "/fleets/{fleet_id}/rollout-policy"

ACTS = (
    Act("rollouts.list", _READ, Role.VIEWER, RolloutsForm, Listed[Rollout], list_rollouts, "/rollouts", "GET"),
    Act("rollouts.show", _READ, Role.VIEWER, OneRollout, RolloutShown, show, _ONE, "GET"),
    Act("rollouts.devices", _READ, Role.VIEWER, DevicesForm, Listed[RolloutDevice], list_devices, f"{_ONE}/devices", "GET"),
    Act("rollouts.rehearse", _READ, Role.VIEWER, OneRollout, Rehearsal, rehearse, f"{_ONE}/rehearsal", "GET"),
    Act("rollouts.create", _WRITE, Role.SECURITY_OFFICER, CreateForm, RolloutShown, create, "/rollouts"),
    Act(
        "rollouts.start", _WRITE, Role.SECURITY_OFFICER, OneRollout, RolloutShown, start, f"{_ONE}/start",
        approval=True, possible=_require_startable,
    ),
    Act("rollouts.pause", _WRITE, _SUPPORT, OneRollout, RolloutShown, pause, f"{_ONE}/pause", also=_SECURITY),
    Act("rollouts.resume", _WRITE, Role.SECURITY_OFFICER, OneRollout, RolloutShown, resume, f"{_ONE}/resume"),
    Act("rollouts.stop", _WRITE, _SUPPORT, StopForm, RolloutShown, stop, f"{_ONE}/stop", also=_SECURITY),
    Act(
        "rollouts.roll_back", _WRITE, Role.SECURITY_OFFICER, RollBackForm, RolloutShown, roll_back, f"{_ONE}/roll-back",
        approval=True, possible=_require_reversible,
    ),
    Act("rollouts.show_policy", _READ, Role.VIEWER, OneFleet, FleetPolicyForm, show_policy, _POLICY, "GET"),
    Act("rollouts.set_policy", _WRITE, Role.SECURITY_OFFICER, FleetPolicyForm, FleetPolicyForm, set_policy, _POLICY, "PUT"),
)  # fmt: skip
