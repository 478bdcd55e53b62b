"""Says who asks for an act, and whether they may: by role and by scope. Pure."""

from dataclasses import dataclass, field

from server.accounts.accounts import LOCAL
from server.accounts.roles import Role, admits
from server.accounts.signin import SignedIn
from server.base.errors import NotAllowed

from .act import Act

MAX_CREDENTIAL_CHARS = 600
"""Of what somebody has signed in with: an issuer and a subject are the longest."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        account: the name of their account; `local` on the command line of the server's machine.
        kind: person, program, or local.
        role: None for local, who may do everything.
        scopes: what their token is limited to; None without a limit.
        via: certificate, token, oidc or local.
        credential: what they signed in with: a certificate's fingerprint, a token's id, or issuer and subject.
        break_glass: the id of their emergency access; None without one.
        os_fields: who a local caller is, for the audit.
    """

    account: str
    kind: str
    role: Role | None
    scopes: frozenset[str] | None
    via: str
    credential: str = ""
    break_glass: str | None = None
    os_fields: dict[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether this is the command line on the server's machine."""
        return self.kind == LOCAL

    def audit_fields(self, reason: str = "", approval: str | None = None) -> dict[str, str]:
        """Fields for the audit records of what they do.

        Args:
            reason: what they gave as the reason; empty for none.
            approval: the id of the approval that the act needed.
        """
        found = dict(self.os_fields)
        if not self.is_local:
            found = {"account": self.account, "via": self.via, "credential": self.credential[:MAX_CREDENTIAL_CHARS]}
        optional = {"why": reason, "approval": approval, "break_glass": self.break_glass}
        return found | {name: value for name, value in optional.items() if value}


def local(os_fields: dict[str, str] | None = None) -> Caller:
    """Who uses the command line on the server's machine.

    Args:
        os_fields: who that is by the operating system (`server.cli.base.operator`).
    """
    return Caller(LOCAL, LOCAL, None, None, LOCAL, os_fields=os_fields or {})


def of(signed_in: SignedIn) -> Caller:
    """Who has signed in."""
    return Caller(
        signed_in.account,
        signed_in.kind,
        signed_in.role,
        signed_in.scopes,
        signed_in.via,
        signed_in.credential,
        signed_in.break_glass,
    )


def authorize(act: Act, caller: Caller) -> None:
    """Returns if the caller may do this: their role admits it, and so does the scope of their token.

    Raises:
        NotAllowed: they may not; the text says what is missing.
    """
    if caller.is_local:
        return
    if act.scope and caller.scopes is not None and act.scope not in caller.scopes:
        raise NotAllowed(f"this token has not the scope {act.scope!r}; make one that has it")
    if act.people_only and caller.kind != "person":
        raise NotAllowed("only a person may do this; a program's account cannot")
    if caller.role is not None and admits(caller.role, act.needed):
        return
    if caller.break_glass is not None and not act.scope.startswith("accounts:"):
        return
    role = "no role" if caller.role is None else f"role {caller.role.value!r}"
    raise NotAllowed(
        f"account {caller.account!r} has {role}; {act.name} needs {' or '.join(sorted(act.needed))}: ask an administrator"
    )
