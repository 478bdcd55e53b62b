"""Acts on the accounts of operators, and on what they sign in with: certificates and tokens."""

from typing import Annotated, Literal

from pydantic import Field

from server.accounts import accounts, certificates, tokens
from server.accounts.roles import Role
from server.acts.act import Act, Context, Form, Hex, Listed, Number, PageForm, Time, page
from server.base.errors import NotAllowed

RoleName = Literal["viewer", "support", "issuer", "security_officer", "administrator"]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9._@-]+$")]
TokenId = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[a-z2-7]+$")]
Scope = Annotated[str, Field(max_length=64, pattern=r"^[a-z:]+$")]
Seconds = Annotated[int, Field(ge=0, le=10**9)]
Issuer = Annotated[str, Field(min_length=9, max_length=256, pattern=r"^https://[!-~]+$")]
Subject = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[ -~]+$")]


class Account(Form):
    """An account; times are seconds since 1970 UTC."""

    name: str
    kind: str
    role: RoleName
    state: str
    issuer: str | None
    subject: str | None
    may_break_glass: bool
    created_at: Time
    changed_at: Time
    changed_by: str
    revision: Number


class Certificate(Form):
    """A client certificate of a person; times are seconds since 1970 UTC."""

    fingerprint: str
    account: str
    number: str
    state: str
    issued_at: Time
    not_after: Time
    used_at: Time | None


class IssuedCertificate(Form):
    """A new certificate, in PEM."""

    certificate: Certificate
    pem: str


class Token(Form):
    """A token of a program, never its text; times are seconds since 1970 UTC. `origin` is the token that it came from by
    replacing, at first; null if an administrator made it.
    """

    token_id: str
    account: str
    scopes: tuple[str, ...]
    state: str
    created_at: Time
    expires_at: Time
    used_at: Time | None
    origin: str | None


class MadeToken(Form):
    """A new token: the only time that its text is known."""

    token: Token
    text: str


class OneAccount(Form):
    """Which account."""

    name: Name


class NewAccount(Form):
    """An account to make."""

    name: Name
    kind: Literal["person", "program"]
    role: RoleName


class ChangeAccount(Form):
    """What to change of an account; what is missing stays."""

    name: Name
    role: RoleName | None = None
    state: Literal["active", "disabled", "removed"] | None = None
    may_break_glass: bool | None = None


class SetSubject(Form):
    """Who a person is at the OpenID provider, by the claims `iss` and `sub` of their tokens; neither for nobody."""

    name: Name
    issuer: Issuer | None = None
    subject: Subject | None = None


class OfAccount(PageForm):
    """Of which account."""

    name: Name


class NewCertificate(Form):
    """A certificate request for a P-256 key (PKCS #10, PEM)."""

    name: Name
    csr: Annotated[str, Field(max_length=8192, pattern=r"^[\x20-\x7e\r\n]+$")]
    lifetime_s: Seconds = certificates.DEFAULT_LIFETIME_S


class RenewCertificate(Form):
    """A certificate request for a P-256 key (PKCS #10, PEM), for the caller's own account."""

    csr: Annotated[str, Field(max_length=8192, pattern=r"^[\x20-\x7e\r\n]+$")]


class OneCertificate(Form):
    """Which certificate, by the SHA-256 of its DER."""

    fingerprint: Hex


class NewToken(Form):
    """A token to make."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=64)]
    lifetime_s: Seconds = tokens.DEFAULT_LIFETIME_S


class OneToken(Form):
    """Which token."""

    token_id: TokenId


class RotateToken(Form):
    """Which token, and how long it goes on working beside the new one."""

    token_id: TokenId
    overlap_s: Seconds = 3600


# Accounts


def list_accounts(context: Context, body: PageForm) -> Listed[Account]:
    """List accounts by name."""
    return page(accounts.listed(context.session, body.after, body.limit + 1), Account, body.limit, lambda row: row.name)


def show(context: Context, body: OneAccount) -> Account:
    """Show an account."""
    return Account.model_validate(accounts.row_of(accounts.known(context.session, body.name)))


def make(context: Context, body: NewAccount) -> Account:
    """Make an account of a person or a program. It cannot sign in before it has a certificate, a subject or a token."""
    row = accounts.create(context.session, body.name, body.kind, Role(body.role), context.caller.account, context.now)
    return Account.model_validate(row)


def change(context: Context, body: ChangeAccount) -> Account:
    """Change an account's role or state, or whether the person may take emergency access."""
    role = None if body.role is None else Role(body.role)
    row = accounts.change(
        context.session, body.name, context.caller.account, context.now, role, body.state, body.may_break_glass
    )  # fmt: skip
    return Account.model_validate(row)


def set_subject(context: Context, body: SetSubject) -> Account:
    """Say who a person is at an OpenID provider."""
    by, now = context.caller.account, context.now
    return Account.model_validate(accounts.set_subject(context.session, body.name, body.issuer, body.subject, by, now))


def present(context: Context, body: ChangeAccount | SetSubject) -> Account:
    """The account, while nobody else changes it."""
    return Account.model_validate(accounts.row_of(accounts.begin_change(context.session, body.name)))


def tag(account: Account) -> str:
    """Counts the changes of an account."""
    return str(account.revision)


# Certificates


def list_certificates(context: Context, body: OfAccount) -> Listed[Certificate]:
    """List a person's certificates."""
    rows = certificates.listed(context.session, body.name, body.after, body.limit + 1)
    return page(rows, Certificate, body.limit, lambda row: row.fingerprint)


def issue_certificate(context: Context, body: NewCertificate) -> IssuedCertificate:
    """Issue a client certificate for a person."""
    return _issue(context, body.name, body.csr, body.lifetime_s)


def renew_certificate(context: Context, body: RenewCertificate) -> IssuedCertificate:
    """Issue another client certificate for the caller, who has signed in with one."""
    if context.caller.via != "certificate":
        raise NotAllowed("sign in with a certificate to get another one; else ask an administrator")
    return _issue(context, context.caller.account, body.csr, certificates.DEFAULT_LIFETIME_S)


def _issue(context: Context, name: str, csr: str, lifetime_s: int) -> IssuedCertificate:
    server, by = context.server, context.caller.account
    made = certificates.issue(
        context.session, server.keys, server.key_lifecycle, name, csr, lifetime_s, by, context.now
    )  # fmt: skip
    return IssuedCertificate(certificate=Certificate.model_validate(made.row), pem=made.pem)


def revoke_certificate(context: Context, body: OneCertificate) -> Certificate:
    """Revoke a person's certificate at once, for good."""
    by, now = context.caller.account, context.now
    return Certificate.model_validate(certificates.revoke(context.session, body.fingerprint, by, now))


# Tokens


def list_tokens(context: Context, body: OfAccount) -> Listed[Token]:
    """List a program's tokens; never their texts."""
    rows = tokens.listed(context.session, body.name, body.after, body.limit + 1)
    return page(rows, Token, body.limit, lambda row: row.token_id)


def make_token(context: Context, body: NewToken) -> MadeToken:
    """Make a token for a program, and return its text."""
    by, now = context.caller.account, context.now
    made = tokens.make(context.session, body.name, body.scopes, body.lifetime_s, by, now)
    return MadeToken(token=Token.model_validate(made.row), text=made.text)


def rotate_token(context: Context, body: RotateToken) -> MadeToken:
    """Make a token in place of another one, which goes on working for a while. A program may replace its own."""
    _check_own(context, body.token_id)
    made = tokens.rotate(context.session, body.token_id, body.overlap_s, context.caller.account, context.now)
    return MadeToken(token=Token.model_validate(made.row), text=made.text)


def revoke_token(context: Context, body: OneToken) -> Token:
    """Revoke a program's token at once, for good, and all of its line: what it came from, and what was made from it.

    A program may revoke its own.
    """
    _check_own(context, body.token_id)
    return Token.model_validate(tokens.revoke(context.session, body.token_id, context.caller.account, context.now))


def _check_own(context: Context, token_id: str) -> None:
    """A program may do this to the token that it has signed in with; for others, the role of an administrator is needed.

    Raises:
        NotAllowed: the caller is neither. It is not said whether there is such a token.
    """
    caller = context.caller
    if caller.is_local or (caller.role is Role.ADMINISTRATOR and caller.scopes is None):
        return
    if caller.via != "token" or caller.credential != token_id:
        raise NotAllowed("only an administrator may do this to the token of somebody else, and a program to its own")


_ADMINISTRATOR, _OFFICER = Role.ADMINISTRATOR, Role.SECURITY_OFFICER
_BOTH = frozenset({_OFFICER})

ACTS = (
    Act("accounts.list", "accounts:read", _ADMINISTRATOR, PageForm, Listed[Account], list_accounts, "/accounts", "GET", _BOTH),
    Act(
        "accounts.show", "accounts:read", _ADMINISTRATOR, OneAccount, Account, show, "/accounts/{name}", "GET", _BOTH, etag=tag
    ),
    Act("accounts.make", "accounts:write", _ADMINISTRATOR, NewAccount, Account, make, "/accounts", people_only=True),
    Act(
        "accounts.change", "accounts:write", _ADMINISTRATOR, ChangeAccount, Account, change, "/accounts/{name}", "PATCH",
        people_only=True, present=present, etag=tag, match_required=True,
    ),
    Act(
        "accounts.set_subject", "accounts:write", _ADMINISTRATOR, SetSubject, Account, set_subject, "/accounts/{name}/subject",
        "PUT", people_only=True, present=present, etag=tag, match_required=True,
    ),
    Act(
        "certificates.list", "accounts:read", _ADMINISTRATOR, OfAccount, Listed[Certificate], list_certificates,
        "/accounts/{name}/certificates", "GET", _BOTH,
    ),
    Act(
        "certificates.issue", "accounts:write", _ADMINISTRATOR, NewCertificate, IssuedCertificate, issue_certificate,
        "/accounts/{name}/certificates", people_only=True,
    ),
    Act(
        "certificates.renew", "", Role.VIEWER, RenewCertificate, IssuedCertificate, renew_certificate, "/me/certificates",
        people_only=True,
    ),
    Act(
        "certificates.revoke", "accounts:write", _ADMINISTRATOR, OneCertificate, Certificate, revoke_certificate,
        "/certificates/{fingerprint}/revoke", also=_BOTH, people_only=True,
    ),
    Act(
        "tokens.list", "accounts:read", _ADMINISTRATOR, OfAccount, Listed[Token], list_tokens, "/accounts/{name}/tokens", "GET",
        _BOTH,
    ),
    Act(
        "tokens.make", "accounts:write", _ADMINISTRATOR, NewToken, MadeToken, make_token, "/accounts/{name}/tokens",
        people_only=True,
    ),
    Act("tokens.rotate", "", Role.VIEWER, RotateToken, MadeToken, rotate_token, "/tokens/{token_id}/rotate"),
    Act("tokens.revoke", "", Role.VIEWER, OneToken, Token, revoke_token, "/tokens/{token_id}/revoke"),
)  # fmt: skip
