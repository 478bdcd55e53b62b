"""Acts on updates: packages, and what agents are ordered to install."""

from typing import Annotated, Any

import msgspec
from pydantic import Field

from contracts.directive import PRODUCT_PATTERN, DeploymentWindow
from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Id, Listed, Nothing, Number, PageForm, Time, page
from server.acts.windows import Path, Window
from server.base.errors import Invalid
from server.ota import directives, offline
from server.ota.directives import LASTS_S, NOTICE_S, Order
from server.ota.offline import MAX_DAYS
from server.ota.repository import Repository

_SHOWN = 20
"""Directives of an agent that are shown."""


class Package(Form):
    """A package of the repository of updates. `role`: releases, candidate, or withdrawn."""

    path: str
    product: str
    version: str
    build_id: str
    kind: str
    hardware: tuple[str, ...]
    sha256: str
    length: Number
    role: str
    published_at: Time


class PackagesForm(PageForm):
    """Which packages."""

    product: Annotated[str, Field(pattern=PRODUCT_PATTERN.replace(r"\Z", "$"))] | None = None


class AssignForm(Form):
    """What an agent is to install, and when. Times are seconds since 1970 UTC; without them, from now on for 30 days. `notice`
    is how long it is announced before, in seconds.
    """

    agent_id: AgentId
    target: Path
    not_before: Time | None = None
    not_after: Time | None = None
    notice: Annotated[int, Field(ge=0, le=LASTS_S)] = NOTICE_S
    window: Window | None = None
    candidate: bool = False
    replace: bool = False
    rollout: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")] = ""


class OneUpdating(Form):
    """Which agent."""

    agent_id: AgentId


class Ordered(Form):
    """A directive: what an agent was ordered to install, and how far that is. Times are seconds since 1970 UTC."""

    number: Number
    product: str
    target: str
    version: str
    build_id: str
    rollout: str
    not_before: Time
    not_after: Time
    notice_until: Time
    window: Window | None
    downgrade: bool
    withdraws: Number | None
    state: str
    detail: str
    created_at: Time
    updated_at: Time


class Assigned(Ordered):
    """The directive that was made. `hardware` is the kind of machine that the agent says it is; null if it has not said."""

    hardware: str | None = None


class Running(Form):
    """What runs, as the agent says."""

    product: str
    version: str
    build_id: str


class AgentUpdates(Form):
    """The updates of an agent: what it says it is (`hardware`, null if it has not said) and runs, and what it was ordered to
    install, the newest first.
    """

    agent_id: Id
    paused: bool
    reported_at: Time | None
    running: tuple[Running, ...]
    directives: tuple[Ordered, ...]
    hardware: str | None = None


class BundleForm(Form):
    """What goes into a bundle for a machine without a network, and for how many days it is valid."""

    agent_id: AgentId
    target: Path
    days: Annotated[int, Field(ge=1, le=MAX_DAYS)]


class BundleFile(Form):
    """A file of a bundle."""

    name: str
    content: str


class Bundled(Form):
    """What a bundle has before its package, in this order; the package itself is in the repository. `valid_until` is in seconds
    since 1970 UTC.
    """

    target: str
    product: str
    version: str
    build_id: str
    sha256: str
    length: Number
    valid_until: Time
    files: tuple[BundleFile, ...]


class Paused(Form):
    """Whether updates pause."""

    paused: bool


def _ordered(row: Any) -> Ordered:
    members = {name: getattr(row, "path" if name == "target" else name) for name in Ordered.model_fields if name != "window"}
    window = None if row.window is None else Window.model_validate(msgspec.json.decode(row.window.encode()))
    return Ordered.model_validate({**members, "window": window})


def list_packages(context: Context, body: PackagesForm) -> Listed[Package]:
    """List the packages of the repository of updates by their path."""
    rows = directives.packages_listed(context.session, body.after, body.limit + 1, body.product)
    found = [
        Package.model_validate(
            {name: getattr(row, name) for name in Package.model_fields} | {"hardware": directives.hardware_of(row)}
        )
        for row in rows
    ]
    return page(found, Package, body.limit, lambda row: row.path)


def show(context: Context, body: OneUpdating) -> AgentUpdates:
    """Show an agent's updates: what it runs, and what it was ordered to install."""
    known = directives.known_of(context.session, body.agent_id)
    paused = directives.all_paused(context.session) or (known is not None and known.paused_at is not None)
    running = () if known is None else tuple(Running.model_validate(each) for each in directives.running_of(known))
    rows = directives.listed(context.session, body.agent_id, _SHOWN)
    return AgentUpdates(
        agent_id=body.agent_id, paused=paused, reported_at=None if known is None else known.reported_at,
        hardware=None if known is None else known.hardware, running=running,
        directives=tuple(_ordered(row) for row in rows),
    )  # fmt: skip


def assign(context: Context, body: AssignForm) -> Assigned:
    """Order an agent to install a package that is not older than what it runs."""
    return _assign(context, body, downgrade=False)


def downgrade(context: Context, body: AssignForm) -> Assigned:
    """Order an agent to install a package that may be older than what it runs. A second person must approve."""
    return _assign(context, body, downgrade=True)


def _order(body: AssignForm, *, downgrade: bool) -> Order:
    try:
        window = None if body.window is None else msgspec.convert(body.window.model_dump(), DeploymentWindow)
    except msgspec.ValidationError as problem:
        raise Invalid(f"the window is not one: {problem}") from None
    return Order(
        body.target, body.not_before, body.not_after, body.notice, window, downgrade, body.candidate, body.replace,
        body.rollout,
    )  # fmt: skip


def _require_fitting(context: Context, body: AssignForm) -> None:
    directives.require_fitting(context.session, body.agent_id, _order(body, downgrade=True))


def _require_ordered(context: Context, body: BundleForm) -> None:
    directives.require_ordered(context.session, body.agent_id, body.target, context.now)


def _assign(context: Context, body: AssignForm, *, downgrade: bool) -> Assigned:
    order = _order(body, downgrade=downgrade)
    row = _ordered(directives.assign(context.session, body.agent_id, order, context.now))
    known = directives.known_of(context.session, body.agent_id)
    return Assigned(**row.model_dump(), hardware=None if known is None else known.hardware)


def withdraw(context: Context, body: OneUpdating) -> Ordered:
    """Take back what an agent is ordered to install, as far as it has not done it."""
    return _ordered(directives.withdraw(context.session, body.agent_id, context.now))


def pause(context: Context, body: OneUpdating) -> Paused:
    """Pause an agent's updates: it begins nothing new from its next contact on."""
    directives.pause(context.session, body.agent_id, context.now, paused=True)
    return Paused(paused=True)


def resume(context: Context, body: OneUpdating) -> Paused:
    """Let an agent's updates go on."""
    directives.pause(context.session, body.agent_id, context.now, paused=False)
    return Paused(paused=False)


def pause_all(context: Context, _body: Nothing) -> Paused:
    """Pause the updates of all agents: they begin nothing new from their next contacts on."""
    directives.pause(context.session, None, context.now, paused=True)
    return Paused(paused=True)


def resume_all(context: Context, _body: Nothing) -> Paused:
    """Let the updates of all agents go on, but for those that are paused alone."""
    directives.pause(context.session, None, context.now, paused=False)
    return Paused(paused=False)


def bundle(context: Context, body: BundleForm) -> Bundled:
    """Sign what a machine without a network needs to install a package that it is ordered to. A second person must approve."""
    server, session, now = context.server, context.session, context.now
    server.keys.check_clock()
    directive = directives.signed_for(session, server.keys, body.agent_id, body.target, now)
    files = {"directive.jws": directive, "key-set.jws": server.keys.key_sets()}
    made = offline.prepare(session, server.cipher, Repository(server.place.updates), body.target, body.days, now)
    files |= {f"metadata/{name}": content for name, content in made.metadata.items()}
    target = made.package.target
    return Bundled(
        target=made.package.path, product=target.product, version=str(target.version), build_id=target.build_id,
        sha256=target.sha256, length=target.length, valid_until=made.valid_until,
        files=tuple(BundleFile(name=name, content=content) for name, content in files.items()),
    )  # fmt: skip


_READ, _WRITE, _HERE = "updates:read", "updates:write", "/agents/{agent_id}/updates"
_SECURITY = frozenset({Role.SECURITY_OFFICER})

ACTS = (
    Act("updates.packages", _READ, Role.VIEWER, PackagesForm, Listed[Package], list_packages, "/packages", "GET"),
    Act("updates.show", _READ, Role.VIEWER, OneUpdating, AgentUpdates, show, _HERE, "GET"),
    Act("updates.assign", _WRITE, Role.SUPPORT, AssignForm, Assigned, assign, _HERE, also=_SECURITY),
    Act(
        "updates.downgrade", _WRITE, Role.SECURITY_OFFICER, AssignForm, Assigned, downgrade, f"{_HERE}/downgrade",
        approval=True, possible=_require_fitting,
    ),
    Act(
        "updates.bundle", _WRITE, Role.SECURITY_OFFICER, BundleForm, Bundled, bundle, f"{_HERE}/bundle",
        approval=True, possible=_require_ordered,
    ),
    Act("updates.withdraw", _WRITE, Role.SUPPORT, OneUpdating, Ordered, withdraw, f"{_HERE}/withdraw", also=_SECURITY),
    Act("updates.pause", _WRITE, Role.SUPPORT, OneUpdating, Paused, pause, f"{_HERE}/pause", also=_SECURITY),
    Act("updates.resume", _WRITE, Role.SUPPORT, OneUpdating, Paused, resume, f"{_HERE}/resume", also=_SECURITY),
    Act("updates.pause_all", _WRITE, Role.SUPPORT, Nothing, Paused, pause_all, "/updates/pause", also=_SECURITY),
    Act("updates.resume_all", _WRITE, Role.SECURITY_OFFICER, Nothing, Paused, resume_all, "/updates/resume"),
)  # fmt: skip
