"""Acts on enrollment tokens: list, make one or many, revoke."""

from typing import Annotated, Literal

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Nothing, Number, PageForm, Time, page
from server.agents.enrollment_tokens import DEFAULT_LIFETIME_S

MAX_TOKENS = 1000
"""Tokens of one request."""
HardwareId = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EnrollmentToken(Form):
    """An enrollment token, never its text; times are seconds since 1970 UTC."""

    claim_id: Number
    hw_id: str | None
    state: str
    factory_only: bool
    agent_id: str | None
    created_at: Time
    expires_at: Time


class TokensForm(PageForm):
    """Which tokens, the newest first: in a state, or behind the number `since`, with smaller numbers."""

    since: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    state: Literal["open", "used", "revoked"] | None = None
    after: Annotated[str, Field(max_length=16, pattern=r"^[0-9]*$")] = ""


class NewToken(Form):
    """A token to make; without a hardware id the first device that uses it is bound to it."""

    hw_id: HardwareId | None = None
    factory_only: bool = False
    lifetime_s: Annotated[int, Field(ge=60, le=10**9)] = DEFAULT_LIFETIME_S


class Made(Form):
    """A new token: the only time that its text is known."""

    text: str


class NewTokens(Form):
    """So many tokens, each for the first device that uses it: for a delivery of new machines."""

    count: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    factory_only: bool = False
    lifetime_s: Annotated[int, Field(ge=60, le=10**9)] = DEFAULT_LIFETIME_S


class NumberedToken(Form):
    """A new token: its number, by which it is listed and revoked, and its text."""

    claim_id: Number
    text: str


class MadeMany(Form):
    """New tokens: the only time that their texts are known."""

    items: tuple[NumberedToken, ...]


class OneToken(Form):
    """Which token."""

    claim_id: Annotated[int, Field(ge=1, le=2**31 - 1)]


def list_tokens(context: Context, body: TokensForm) -> Listed[EnrollmentToken]:
    """List enrollment tokens, the newest first; never their texts."""
    before = int(body.after) if body.after else body.since
    rows = context.server.enrollment_tokens.listed(context.session, body.state, before, body.limit + 1)
    return page(rows, EnrollmentToken, body.limit, lambda row: str(row.claim_id))


def make(context: Context, body: NewToken) -> Made:
    """Make an enrollment token for one device, and return its text."""
    tokens = context.server.enrollment_tokens
    return Made(text=tokens.create(context.session, body.hw_id, body.factory_only, body.lifetime_s, context.now))


def make_many(context: Context, body: NewTokens) -> MadeMany:
    """Make many enrollment tokens, each for one device, and return their numbers and texts."""
    make_one, session = context.server.enrollment_tokens.make, context.session
    made = [make_one(session, None, body.factory_only, body.lifetime_s, context.now) for _ in range(body.count)]
    return MadeMany(items=tuple(NumberedToken.model_validate(each) for each in made))


def revoke(context: Context, body: OneToken) -> Nothing:
    """Revoke an enrollment token."""
    context.server.enrollment_tokens.revoke(context.session, body.claim_id, context.now)
    return Nothing()


ACTS = (
    Act(
        "enrollment_tokens.list", "enrollment:read", Role.SUPPORT, TokensForm, Listed[EnrollmentToken], list_tokens,
        "/enrollment-tokens", "GET", also=frozenset({Role.SECURITY_OFFICER}),
    ),
    Act("enrollment_tokens.make", "enrollment:write", Role.SUPPORT, NewToken, Made, make, "/enrollment-tokens"),
    Act(
        "enrollment_tokens.make_many", "enrollment:write", Role.SUPPORT, NewTokens, MadeMany, make_many,
        "/enrollment-tokens/make-many",
    ),
    Act(
        "enrollment_tokens.revoke", "enrollment:write", Role.SUPPORT, OneToken, Nothing, revoke,
        "/enrollment-tokens/{claim_id}/revoke", also=frozenset({Role.SECURITY_OFFICER}),
    ),
)  # fmt: skip
