"""Acts on licenses, one at a time: find, issue, suspend, reinstate, renew, upgrade, move, revoke.

None of them shows a token but `licenses.issue`. A change takes `If-Match` with what its author has read, if they care: the
table of states refuses what cannot be done anyway.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from server.accounts.roles import Role
from server.acts.act import Act, AgentId, Context, Form, Id, Listed, Number, PageForm, Time, VendorId, page, revision_tag
from server.licensing.licenses import lifecycle, replacement
from server.licensing.lists.license_list import Filter, LicenseRow, listed, one
from server.licensing.sales.orders import Wish, order_of
from server.licensing.states import history as past
from server.licensing.states.license_states import State, locked

from .products import Duration, Entries, Feature, Features

StateName = Literal["unassigned", "active", "suspended", "expired", "revoked"]
Subject = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class License(Form):
    """A license; times are seconds since 1970 UTC. Of its customer it has the id, and nothing else."""

    license_id: str
    agent_id: str | None
    state: str
    subject: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    not_before: Time
    expires: Time
    secret_version: Number | None
    revoked_at: Time | None
    suspended_at: Time | None
    policy: str | None
    product: str | None
    customer: str | None
    site: str | None
    created_at: Time | None
    updated_at: Time | None
    revision: Number


class ChangedLicense(License):
    """A license after a change; `notices` say when its agents learn of it, and which do not."""

    notices: tuple[str, ...]


class Change(Form):
    """A change in the life of a license: ids and times only, and who made it; `at` in seconds since 1970 UTC."""

    number: Number
    at: Time
    event: str
    state: str
    fields: dict[str, JsonValue]


class WhichLicenses(PageForm):
    """Which licenses: those that meet everything that is given."""

    agent_id: AgentId | None = None
    customer: VendorId | None = None
    site: VendorId | None = None
    product: VendorId | None = None
    policy: VendorId | None = None
    subject: Subject | None = None
    state: StateName | None = None
    revoked: bool | None = None

    def filter(self, context: Context) -> Filter:
        """The same for `license_list`. Raises NotFound if something that is named does not exist."""
        state = None if self.state is None else State(self.state)
        found = Filter(
            agent_id=self.agent_id, customer=self.customer, site=self.site, policy=self.policy, product=self.product,
            subject=self.subject, state=state, revoked=self.revoked,
        )  # fmt: skip
        found.check(context.session)
        return found


class LicensesForm(WhichLicenses):
    """Which licenses: those that meet everything that is given, and lie behind the id `since`."""

    since: Annotated[str, Field(max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = ""


class OneLicense(Form):
    """Which license."""

    license_id: Id


class HistoryForm(PageForm):
    """Of which license, the oldest change first."""

    license_id: Id
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class IssueForm(Form):
    """A license to issue. Without an id it gets a new one; without an agent it is on no machine yet; without a beginning it
    begins now. A policy with a duration, `duration` or `expires` says when it ends.
    """

    agent_id: AgentId | None = None
    policy: VendorId | None = None
    customer: VendorId | None = None
    site: VendorId | None = None
    expires: Time | None = None
    duration: Duration | None = None
    subject: Subject | None = None
    features: Features = Field(default_factory=list)
    metadata: Entries = Field(default_factory=dict)
    not_before: Time | None = None
    license_id: Id | None = None
    secret_version: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None


class Issued(Form):
    """A new license, and its token; null while it is on no machine."""

    license: License
    token: str | None


class RenewForm(Form):
    """Until when: `expires`, or `duration` seconds longer; without both, as long as its policy says."""

    license_id: Id
    expires: Time | None = None
    duration: Duration | None = None


class UpgradeForm(Form):
    """What it gets: a policy's terms in place of its own, features and metadata besides; and the features that it loses."""

    license_id: Id
    policy: VendorId | None = None
    features: Features = Field(default_factory=list)
    without: Annotated[list[Feature], Field(max_length=256)] = Field(default_factory=list)
    metadata: Entries = Field(default_factory=dict)


class ToAgent(Form):
    """Which license, and the agent that gets it."""

    license_id: Id
    agent_id: AgentId


class ReplaceForm(Form):
    """The agent that leaves service, and its successor: the agent of the new machine."""

    agent_id: AgentId
    successor: AgentId


class ReplacedAgent(Form):
    """What was moved: the licenses that the successor has now."""

    agent_id: str
    successor: str
    retired_at: Time
    licenses: tuple[str, ...]
    notices: tuple[str, ...]


def list_licenses(context: Context, body: LicensesForm) -> Listed[License]:
    """List licenses by id; never a token."""
    after = body.after or body.since
    rows = listed(context.session, context.now, after=after, limit=body.limit + 1, which=body.filter(context))
    return page(rows, License, body.limit, lambda row: row.license_id)


def show(context: Context, body: OneLicense) -> License:
    """Show a license; never its token."""
    return License.model_validate(_row(context, body.license_id))


def history(context: Context, body: HistoryForm) -> Listed[Change]:
    """List what has happened to a license, the oldest first."""
    rows = past.history(context.session, body.license_id, int(body.after or "0"), body.limit + 1)
    return page(rows, Change, body.limit, lambda row: str(row.number))


def issue(context: Context, body: IssueForm) -> Issued:
    """Issue a license: to an agent, and return its token, or on no machine yet."""
    wish = Wish(
        license_id=body.license_id, policy=body.policy, customer=body.customer, site=body.site, subject=body.subject,
        features=tuple(body.features), metadata=body.metadata, not_before=body.not_before, expires=body.expires,
        duration=body.duration,
    )  # fmt: skip
    order, licenses = order_of(context.session, wish, context.now), context.server.licenses
    token = None
    if body.agent_id is None:
        licenses.stock(context.session, order, context.now)
    else:
        token = licenses.issue(context.session, body.agent_id, order, context.now, body.secret_version)
    return Issued(license=License.model_validate(_row(context, order.jti)), token=token)


def suspend(context: Context, body: OneLicense) -> ChangedLicense:
    """Suspend a license until it is reinstated. Its time runs on."""
    lifecycle.suspend(context.session, body.license_id, context.now)
    row = _row(context, body.license_id)
    return _changed(row, _how_it_leaves(context, row.agent_id, "suspends it"))


def reinstate(context: Context, body: OneLicense) -> ChangedLicense:
    """End the suspension of a license."""
    lifecycle.reinstate(context.session, body.license_id, context.now)
    return _changed(_row(context, body.license_id))


def renew(context: Context, body: RenewForm) -> ChangedLicense:
    """Give a license a later end: behind its present one, or, if it has expired, behind now."""
    lifecycle.renew(context.session, body.license_id, context.now, expires=body.expires, duration=body.duration)
    return _changed(_row(context, body.license_id))


def upgrade(context: Context, body: UpgradeForm) -> ChangedLicense:
    """Give a license the terms of another policy, or other features. Its end stays, but for a trial that becomes a sale."""
    lifecycle.upgrade(
        context.session, body.license_id, context.now, to=body.policy, features=tuple(body.features),
        without=tuple(body.without), metadata=body.metadata,
    )  # fmt: skip
    return _changed(_row(context, body.license_id))


def assign(context: Context, body: ToAgent) -> ChangedLicense:
    """Give a license that is on no machine to an agent."""
    lifecycle.assign(context.session, body.license_id, body.agent_id, context.now)
    return _changed(_row(context, body.license_id), _how_it_arrives(context, body.agent_id))


def transfer(context: Context, body: ToAgent) -> ChangedLicense:
    """Move a license to another agent."""
    moved = lifecycle.transfer(context.session, body.license_id, body.agent_id, context.now)
    said = _how_it_arrives(context, body.agent_id), _how_it_leaves(context, moved.was, "drops it")
    return _changed(_row(context, body.license_id), *said)


def release(context: Context, body: OneLicense) -> ChangedLicense:
    """Take a license from its machine, so that another one can get it later."""
    moved = lifecycle.release(context.session, body.license_id, context.now)
    return _changed(_row(context, body.license_id), _how_it_leaves(context, moved.was, "drops it"))


def revoke(context: Context, body: OneLicense) -> License:
    """Revoke a license for good. Its agent learns of it at its next contact."""
    context.server.licenses.revoke(context.session, body.license_id, context.now)
    return License.model_validate(_row(context, body.license_id))


def replace(context: Context, body: ReplaceForm) -> ReplacedAgent:
    """Replace an agent by the one of a new machine: its licenses move there, and it retires. Revoked licenses stay behind."""
    done = replacement.replace(context.session, body.agent_id, body.successor, context.now)
    notice = _how_it_arrives(context, body.successor) if done.moved else ""
    ids = tuple(moved.license_id for moved in done.moved)
    return ReplacedAgent(
        agent_id=body.agent_id, successor=body.successor, retired_at=done.retired.at, licenses=ids,
        notices=(notice,) if notice else (),
    )  # fmt: skip


def present(context: Context, body: Form) -> License:
    """The license, locked behind its agent."""
    license_id: str = getattr(body, "license_id")  # noqa: B009 - of every form that is used with it
    locked(context.session, license_id)
    return License.model_validate(_row(context, license_id))


def _row(context: Context, license_id: str) -> LicenseRow:
    context.session.flush()
    return one(context.session, license_id, context.now)


def _changed(row: LicenseRow, *notices: str) -> ChangedLicense:
    said = tuple(text for text in notices if text)
    return ChangedLicense(**License.model_validate(row).model_dump(), notices=said)


def _how_it_arrives(context: Context, agent_id: str) -> str:
    """What is to be done so that an agent gets a license."""
    if lifecycle.is_told(context.session, agent_id):
        return f"agent {agent_id} gets it at its next contact"
    return f"next: 'license-server reissue --agent {agent_id}' prints its token, which this agent does not fetch by itself"


def _how_it_leaves(context: Context, agent_id: str | None, outcome: str) -> str:
    """When an agent stops accepting a license."""
    if agent_id is None:
        return ""
    if lifecycle.is_told(context.session, agent_id):
        return f"agent {agent_id} {outcome} at its next contact"
    return (
        f"NOTICE: agent {agent_id} does not say that it learns of this: it accepts the token that it has until the grace of "
        "its secret ends, or the license does; revoke the agent if its machine is out of service"
    )


_READ, _WRITE, _VIEWER, _SUPPORT, _ISSUER = "licenses:read", "licenses:write", Role.VIEWER, Role.SUPPORT, Role.ISSUER
_SECURITY = frozenset({Role.SECURITY_OFFICER})
_ONE = "/licenses/{license_id}"

ACTS = (
    Act("licenses.list", _READ, _VIEWER, LicensesForm, Listed[License], list_licenses, "/licenses", "GET"),
    Act("licenses.show", _READ, _VIEWER, OneLicense, License, show, _ONE, "GET", etag=revision_tag),
    Act("licenses.history", _READ, _VIEWER, HistoryForm, Listed[Change], history, f"{_ONE}/history", "GET"),
    Act("licenses.issue", _WRITE, _ISSUER, IssueForm, Issued, issue, "/licenses"),
    Act(
        "licenses.suspend", _WRITE, _ISSUER, OneLicense, ChangedLicense, suspend, f"{_ONE}/suspend",
        also=_SECURITY, present=present, etag=revision_tag,
    ),
    Act(
        "licenses.reinstate", _WRITE, _ISSUER, OneLicense, ChangedLicense, reinstate, f"{_ONE}/reinstate",
        also=_SECURITY, present=present, etag=revision_tag,
    ),
    Act(
        "licenses.renew", _WRITE, _ISSUER, RenewForm, ChangedLicense, renew, f"{_ONE}/renew",
        present=present, etag=revision_tag,
    ),
    Act(
        "licenses.upgrade", _WRITE, _ISSUER, UpgradeForm, ChangedLicense, upgrade, f"{_ONE}/upgrade",
        present=present, etag=revision_tag,
    ),
    Act(
        "licenses.assign", _WRITE, _SUPPORT, ToAgent, ChangedLicense, assign, f"{_ONE}/assign",
        present=present, etag=revision_tag,
    ),
    Act(
        "licenses.transfer", _WRITE, _SUPPORT, ToAgent, ChangedLicense, transfer, f"{_ONE}/transfer",
        present=present, etag=revision_tag,
    ),
    Act(
        "licenses.release", _WRITE, _ISSUER, OneLicense, ChangedLicense, release, f"{_ONE}/release",
        present=present, etag=revision_tag,
    ),
    Act(
        "licenses.revoke", _WRITE, _ISSUER, OneLicense, License, revoke, f"{_ONE}/revoke",
        also=_SECURITY, present=present, etag=revision_tag,
    ),
    Act("agents.replace", "agents:write", _SUPPORT, ReplaceForm, ReplacedAgent, replace, "/agents/{agent_id}/replace"),
)  # fmt: skip
