"""Commands for the accounts of operators: people and programs, certificates and tokens, approvals, emergency access."""

from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.accounts.roles import SCOPES, Role
from server.base import privatefile
from server.base.errors import RegistryError
from server.cli.base.acting import asking, listed, perform
from server.cli.base.listing import limit_option, show_pages
from server.cli.base.options import json_option, utc, where_option
from server.cli.base.output import handing_out, out_option, taking

from .openid import oidc

DAY_S = 86_400
ROLES = [role.value for role in Role]


@click.group()
def accounts() -> None:
    """Manage the accounts of operators: people, and programs."""


@accounts.command("list")
@where_option
@limit_option
@json_option
def accounts_list(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List accounts by name."""

    def line(row: Any) -> tuple[object, ...]:
        return row.name, row.kind, row.role, row.state, "yes" if row.may_break_glass else "no", utc(row.changed_at)

    headers = ("account", "kind", "role", "state", "emergency access", "changed")
    show_pages(listed("accounts.list", directory, limit), headers, line, as_json)


@accounts.command("make")
@where_option
@click.argument("name")
@click.option("--kind", type=click.Choice(["person", "program"]), required=True, help="Whose account it is.")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may do.")
def accounts_make(directory: Path | None, name: str, kind: str, role: str) -> None:
    """Make the account NAME. It cannot sign in yet: 'accounts certify' and 'accounts token' are next."""
    perform("accounts.make", directory, name=name, kind=kind, role=role)
    follows = f"certify {name} --key FILE --out FILE" if kind == "person" else f"token {name} --scope SCOPE"
    click.echo(f"made account {name}; next: license-server accounts {follows}", err=True)


@accounts.command("change")
@where_option
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="What it may do from now on.")
@click.option(
    "--state", type=click.Choice(["active", "disabled", "removed"]), help="Whether it may sign in. 'removed' is for good."
)
@click.option("--emergency", type=click.Choice(["allowed", "refused"]), help="Whether the person may take emergency access.")
def accounts_change(directory: Path | None, name: str, role: str | None, state: str | None, emergency: str | None) -> None:
    """Change the account NAME, at once."""
    if role is None and state is None and emergency is None:
        raise click.UsageError("Give --role, --state or --emergency.")
    allowed = None if emergency is None else emergency == "allowed"
    perform("accounts.change", directory, name=name, role=role, state=state, may_break_glass=allowed)


@accounts.command("certify")
@where_option
@click.argument("name")
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Write a new key here.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="Write the certificate here."
)
@click.option("--days", type=click.IntRange(1, 400), default=180, show_default=True, help="Days until it ends.")
def accounts_certify(directory: Path | None, name: str, key: Path, out: Path, days: int) -> None:
    """Make a key and a client certificate for the person NAME."""
    if out.exists():
        raise RegistryError(f"{out} already exists and is not overwritten")
    made = ec.generate_private_key(ec.SECP256R1())
    privatefile.create(key, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(made, hashes.SHA256())
        pem = csr.public_bytes(Encoding.PEM).decode("ascii")
        issued = perform("certificates.issue", directory, name=name, csr=pem, lifetime_s=days * DAY_S)
    except BaseException:
        key.unlink(missing_ok=True)
        raise
    out.write_text(issued.pem, "ascii")
    click.echo(f"{out} and {key} sign in {name} until {utc(issued.certificate.not_after)}", err=True)


@accounts.command("certificates")
@where_option
@click.argument("name")
@json_option
def accounts_certificates(directory: Path | None, name: str, as_json: bool) -> None:
    """List the certificates of the person NAME."""

    def line(row: Any) -> tuple[object, ...]:
        return row.fingerprint, row.state, utc(row.issued_at), utc(row.not_after), utc(row.used_at)

    headers = ("certificate", "state", "issued", "ends", "last use")
    show_pages(listed("certificates.list", directory, None, name=name), headers, line, as_json)


@accounts.command("revoke-certificate")
@where_option
@click.argument("fingerprint")
def accounts_revoke_certificate(directory: Path | None, fingerprint: str) -> None:
    """Revoke the certificate with this FINGERPRINT, at once and for good."""
    perform("certificates.revoke", directory, fingerprint=fingerprint)


@accounts.command("subject")
@where_option
@click.argument("name")
@click.option("--issuer", metavar="URL", help="The provider, exactly as in the claim 'iss' of its tokens.")
@click.option("--subject", metavar="TEXT", help="The claim 'sub' of the person's tokens.")
@click.option("--none", "ends", is_flag=True, help="End that the person can sign in with a provider.")
def accounts_subject(directory: Path | None, name: str, issuer: str | None, subject: str | None, ends: bool) -> None:
    """Say who the person NAME is at the OpenID provider."""
    if ends == (issuer is not None or subject is not None) or (issuer is None) != (subject is None):
        raise click.UsageError("Give --issuer and --subject, or --none.")
    perform("accounts.set_subject", directory, name=name, issuer=issuer, subject=subject)


@accounts.command("token")
@where_option
@click.argument("name")
@click.option(
    "--scope", "scopes", type=click.Choice(sorted(SCOPES)), multiple=True, required=True,
    help="What it may be used for; may be repeated.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 366), default=90, show_default=True, help="Days until it expires.")
@out_option
def accounts_token(directory: Path | None, name: str, scopes: tuple[str, ...], days: int, out: Path | None) -> None:
    """Make a token for the program NAME and print it."""
    lost = f"nobody has that token; 'license-server accounts tokens {name}' has its id: revoke it"
    with handing_out(out, lost) as hand:
        perform("tokens.make", directory, taking(hand, "text"), name=name, scopes=list(scopes), lifetime_s=days * DAY_S)


@accounts.command("tokens")
@where_option
@click.argument("name")
@json_option
def accounts_tokens(directory: Path | None, name: str, as_json: bool) -> None:
    """List the tokens of the program NAME; never their texts."""

    def line(row: Any) -> tuple[object, ...]:
        return row.token_id, row.state, utc(row.created_at), utc(row.expires_at), utc(row.used_at), ", ".join(row.scopes)

    headers = ("token", "state", "made", "ends", "last use", "scopes")
    show_pages(listed("tokens.list", directory, None, name=name), headers, line, as_json)


@accounts.command("rotate-token")
@where_option
@click.argument("token_id")
@click.option(
    "--overlap", type=click.IntRange(0, 30 * DAY_S), default=3600, show_default=True,
    help="Seconds for which the old token goes on working.",
)  # fmt: skip
@out_option
def accounts_rotate_token(directory: Path | None, token_id: str, overlap: int, out: Path | None) -> None:
    """Make a token in place of the one with this TOKEN_ID and print it."""
    with handing_out(out, "nobody has that token; revoke it") as hand:
        perform("tokens.rotate", directory, taking(hand, "text"), token_id=token_id, overlap_s=overlap)


@accounts.command("revoke-token")
@where_option
@click.argument("token_id")
def accounts_revoke_token(directory: Path | None, token_id: str) -> None:
    """Revoke the token with this TOKEN_ID, at once and for good."""
    perform("tokens.revoke", directory, token_id=token_id)


accounts.add_command(oidc)


@click.group()
def approvals() -> None:
    """Approve what needs two people."""


@approvals.command("list")
@where_option
@limit_option
@json_option
def approvals_list(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List what was asked for, and by whom."""

    def line(row: Any) -> tuple[object, ...]:
        return row.approval_id, row.state, row.requester, row.act, row.body[:60], row.reason, utc(row.expires_at)

    headers = ("approval", "state", "asked by", "act", "body", "reason", "ends")
    show_pages(listed("approvals.list", directory, limit), headers, line, as_json)


@approvals.command("approve")
@where_option
@click.argument("approval_id")
def approvals_approve(directory: Path | None, approval_id: str) -> None:
    """Approve the request APPROVAL_ID of somebody else, who may then do exactly that, once."""
    row = perform("approvals.approve", directory, approval_id=approval_id)
    click.echo(f"{row.requester} may now do {row.act} once, until {utc(row.expires_at)}", err=True)


@approvals.command("refuse")
@where_option
@click.argument("approval_id")
def approvals_refuse(directory: Path | None, approval_id: str) -> None:
    """Refuse the request APPROVAL_ID."""
    perform("approvals.refuse", directory, approval_id=approval_id)


@click.group("break-glass")
def break_glass() -> None:
    """Take emergency access, or end it. The audit log shows both as alerts."""


@break_glass.command("begin")
@where_option
@click.option("--why", required=True, metavar="TEXT", help="Why, in at least ten characters.")
@click.option("--seconds", type=click.IntRange(60, 4 * 3600), default=3600, show_default=True, help="How long it lasts.")
def break_glass_begin(directory: Path | None, why: str, seconds: int) -> None:
    """Take emergency access: everything but accounts, without a second person. An administrator has allowed it before."""
    row = perform("break_glass.begin", directory, why=why, lasts_s=seconds)
    said = f"emergency access {row.break_glass_id} until {utc(row.ends_at)}; 'license-server break-glass end' ends it"
    click.echo(said, err=True)


@break_glass.command("end")
@where_option
@click.argument("break_glass_id", required=False)
def break_glass_end(directory: Path | None, break_glass_id: str | None) -> None:
    """End the emergency access BREAK_GLASS_ID, or without it your own."""
    with asking(directory) as server:
        ended = break_glass_id or (server.perform("me.show").break_glass if server.remote else None)
        if ended is None:
            whose = "you have no emergency access" if server.remote else "nobody signs in on this machine"
            raise RegistryError(f"{whose}: name the one to end, of those that 'license-server break-glass list' lists")
        server.perform("break_glass.end", break_glass_id=ended)
    click.echo(f"emergency access {ended} has ended", err=True)


@break_glass.command("list")
@where_option
@limit_option
@json_option
def break_glass_list(directory: Path | None, limit: int | None, as_json: bool) -> None:
    """List emergency accesses, present and former ones."""

    def line(row: Any) -> tuple[object, ...]:
        return row.break_glass_id, row.account, utc(row.begun_at), utc(row.ends_at), utc(row.ended_at), row.reason

    headers = ("emergency access", "account", "begun", "ends", "ended", "reason")
    show_pages(listed("break_glass.list", directory, limit), headers, line, as_json)


COMMANDS: tuple[click.Command, ...] = (accounts, approvals, break_glass)
