"""Acts on licenses: list, show, issue, revoke."""

import uuid
from typing import Annotated

from pydantic import Field

from server.accounts.roles import Role
from server.licensing.license_list import LicenseRow, listed, one
from server.licensing.licenses import Order

from .act import Act, AgentId, Context, Form, Id, Line, Listed, Number, PageForm, Time, page


class License(Form):
    """A license; times are seconds since 1970 UTC."""

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


class LicensesForm(PageForm):
    """Which licenses."""

    agent_id: AgentId | None = None
    revoked: bool | None = None


class OneLicense(Form):
    """Which license."""

    license_id: Id


class IssueForm(Form):
    """A license to issue; without an id it gets a new one, without a beginning it begins now."""

    agent_id: AgentId
    expires: Time
    subject: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = "unnamed"
    features: Annotated[list[Line], Field(max_length=256)] = Field(default_factory=list)
    metadata: Annotated[dict[str, Line], Field(max_length=256)] = Field(default_factory=dict)
    not_before: Time | None = None
    license_id: Id | None = None
    secret_version: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None


class Issued(Form):
    """A new license, and its token."""

    license: License
    token: str


def list_licenses(context: Context, body: LicensesForm) -> Listed[License]:
    """List licenses by id; never a token."""
    rows = listed(context.session, context.now, body.agent_id, body.after, body.limit + 1, revoked=body.revoked)
    return page(rows, License, body.limit, lambda row: row.license_id)


def show(context: Context, body: OneLicense) -> License:
    """Show a license; never its token."""
    return License.model_validate(_row(context, body.license_id))


def issue(context: Context, body: IssueForm) -> Issued:
    """Issue a license to an agent, and return its token."""
    begins = context.now if body.not_before is None else body.not_before
    license_id = body.license_id or str(uuid.uuid4())
    order = Order(license_id, body.subject, tuple(body.features), body.metadata, begins, body.expires)
    token = context.server.licenses.issue(context.session, body.agent_id, order, context.now, body.secret_version)
    return Issued(license=License.model_validate(_row(context, license_id)), token=token)


def revoke(context: Context, body: OneLicense) -> License:
    """Revoke a license for good. Its agent learns of it at its next contact."""
    context.server.licenses.revoke(context.session, body.license_id, context.now)
    return License.model_validate(_row(context, body.license_id))


def _row(context: Context, license_id: str) -> LicenseRow:
    context.session.flush()
    return one(context.session, license_id, context.now)


ACTS = (
    Act("licenses.list", "licenses:read", Role.VIEWER, LicensesForm, Listed[License], list_licenses, "/licenses", "GET"),
    Act("licenses.show", "licenses:read", Role.VIEWER, OneLicense, License, show, "/licenses/{license_id}", "GET"),
    Act("licenses.issue", "licenses:write", Role.ISSUER, IssueForm, Issued, issue, "/licenses"),
    Act(
        "licenses.revoke", "licenses:write", Role.ISSUER, OneLicense, License, revoke, "/licenses/{license_id}/revoke",
        also=frozenset({Role.SECURITY_OFFICER}),
    ),
)  # fmt: skip
