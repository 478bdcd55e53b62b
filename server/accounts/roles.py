"""Says which role may do what: the table of roles, and the scopes that a program's token may be limited to. Pure."""

from enum import StrEnum


class Role(StrEnum):
    """What an account is for."""

    VIEWER = "viewer"
    SUPPORT = "support"
    ISSUER = "issuer"
    SECURITY_OFFICER = "security_officer"
    ADMINISTRATOR = "administrator"


INCLUDES: dict[Role, frozenset[Role]] = {
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.SUPPORT: frozenset({Role.VIEWER, Role.SUPPORT}),
    Role.ISSUER: frozenset({Role.VIEWER, Role.SUPPORT, Role.ISSUER}),
    # Not above the others: who ends keys and revokes agents issues no licenses.
    Role.SECURITY_OFFICER: frozenset({Role.VIEWER, Role.SECURITY_OFFICER}),
    Role.ADMINISTRATOR: frozenset(Role),
}
"""The roles that each role includes: it may do what they may."""

SCOPES = frozenset(
    f"{subject}:{right}"
    for subject in (
        "accounts", "agents", "approvals", "audit", "customers", "devices", "enrollment", "events", "fleets", "health", "keys",
        "licenses", "products", "rollouts", "secrets", "updates", "webhooks",
    )
    for right in ("read", "write")
) - {"audit:write", "events:write", "health:write"}  # fmt: skip
"""What a token may be limited to. A person's scopes are those of their role."""


def admits(role: Role, needed: frozenset[Role]) -> bool:
    """Whether a role is one of those that are needed, or includes one."""
    return bool(INCLUDES[role] & needed)
