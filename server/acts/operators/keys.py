"""Acts on the server's own keys: list them, replace those that no offline root must sign.

All others need the root's private key, which is lent to the command line on the server's machine and never sent over a network.
"""

from typing import Annotated, Literal

from pydantic import Field

from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Listed, Parts, Time

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[!-~]+$")]


class Key(Form):
    """A key of the server, never its private half; times are seconds since 1970 UTC."""

    kind: str
    kid: str
    state: str
    created_at: Time
    expires_at: Time


class KeysForm(Form):
    """All of them."""


class RotateForm(Form):
    """Which kind of key."""

    kind: Literal["tls", "operator-ca"]
    names: Annotated[list[Name], Field(max_length=64)] = Field(
        default_factory=list, description="DNS names and IP addresses of the TLS certificate; empty keeps the present ones."
    )


class KindForm(Form):
    """Which kind of key."""

    kind: Literal["license", "rotation", "enrollment", "issuing-ca"]


class RevertForm(Form):
    """Which kind of key."""

    kind: Literal["license", "rotation", "enrollment", "issuing-ca", "tls", "operator-ca"]


class ReplacedKey(Form):
    """The key that is now in use, and the one that it replaced."""

    kid: str
    before: str


class Rotated(Form):
    """The id of the new key."""

    kid: str


def list_keys(context: Context, _body: KeysForm) -> Listed[Key]:
    """List the server's keys by kind, the newest first."""
    return Listed(items=tuple(Key.model_validate(row) for row in context.server.key_lifecycle.listed()))


def rotate(context: Context, body: RotateForm) -> Rotated:
    """Replace the TLS key or the operator CA. What the old one signed stays valid."""
    keys = context.server.key_lifecycle
    return Rotated(kid=keys.rotate_within(context.session, body.kind, context.now, names=tuple(body.names)))


def use_next(context: Context, body: KindForm) -> ReplacedKey:
    """Put the prepared key of a kind in use now, ahead of its day."""
    changed = context.server.succession.use_next_within(context.session, body.kind, context.now)
    return ReplacedKey(kid=changed.kid, before=changed.before)


def revert(context: Context, body: RevertForm) -> ReplacedKey:
    """Put the earlier key of a kind back in use. What the present one signed stays valid."""
    changed = context.server.succession.revert_within(context.session, body.kind, context.now)
    return ReplacedKey(kid=changed.kid, before=changed.before)


def _check(server: Parts) -> None:
    server.keys.check()


ACTS = (
    Act("keys.list", "keys:read", Role.VIEWER, KeysForm, Listed[Key], list_keys, "/keys", "GET"),
    Act(
        "keys.rotate", "keys:write", Role.SECURITY_OFFICER, RotateForm, Rotated, rotate, "/keys/{kind}/rotate", after=_check
    ),
    Act(
        "keys.use_next", "keys:write", Role.SECURITY_OFFICER, KindForm, ReplacedKey, use_next, "/keys/{kind}/use-next",
        after=_check,
    ),
    Act(
        "keys.revert", "keys:write", Role.SECURITY_OFFICER, RevertForm, ReplacedKey, revert, "/keys/{kind}/revert", after=_check
    ),
)  # fmt: skip
