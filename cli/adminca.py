"""Commands that say whose certificates count on this machine: install an admin CA, show, revoke, end."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from tabulate import tabulate

from common.files import write_atomic
from contracts.admin.adminca import FILE_NAME, MAX_CA_BYTES, UNREADABLE, BadAdminCa, digest_of, read_admin_ca

from . import inputs, render
from .agent import EXIT_NEGATIVE, Agent, pass_agent, readable

DEFAULT_CONFIG = "/etc/license-agent/config.toml"
_DIGEST = re.compile(r"^([0-9a-f]{64})\b")


@click.group("admin-ca")
def admin_ca() -> None:
    """Say whose certificates administrators need ('license-agent admin-ca' makes them)."""


def _file(config: str | None) -> Path:
    """Where the agent looks for the admin CA."""
    return Path(config or DEFAULT_CONFIG).absolute().with_name(FILE_NAME)


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise click.UsageError(f"only root {what}: the file must belong to root")


config_option = click.option(
    "--config", envvar="LICENSE_AGENT_CONFIG", metavar="PATH", help="The agent's configuration file, if it has another."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@admin_ca.command("install")
@click.argument("file", type=readable)
@config_option
@yes_option
@pass_agent
def install(agent: Agent, file: Path, config: str | None, yes: bool) -> None:
    """Let the certificates of the CAs in FILE (PEM) count, and no others; root only."""
    _require_root("installs an admin CA")
    data = file.read_bytes()[: MAX_CA_BYTES + 1]
    try:
        found = read_admin_ca(data)
    except BadAdminCa as error:
        raise click.UsageError(f"{file} cannot be the admin CA: {error}") from None
    path = _file(config)
    if not path.parent.is_dir():
        raise click.UsageError(f"{path.parent}, where the agent looks for the admin CA, does not exist; is --config right?")
    names = "; ".join(each.subject.rfc4514_string() for each in found.certificates)
    if not yes:
        inputs.confirm(f"Every administrator will need a certificate of: {names}. Continue?")
    write_atomic(path, data, 0o644)
    _reload(agent)
    reply = agent.ask("admin_access")
    agent.show(reply, f"installed as {path}\n{_shown(reply)}")
    if reply["mode"] != "required" or reply["ca_ends"] is None:
        click.echo("license-agent-cli: the agent does not demand certificates of this CA; the lines above say why", err=True)
        sys.exit(EXIT_NEGATIVE)


def _reload(agent: Agent) -> None:
    problems = agent.ask_to_reload()["problems"]
    if problems:
        click.echo(f"license-agent-cli: the configuration is refused: {problems[0]}", err=True)
        sys.exit(EXIT_NEGATIVE)


@admin_ca.command("show")
@pass_agent
def show(agent: Agent) -> None:
    """Show whether certificates are required, whose count, and which are revoked."""
    reply = agent.ask("admin_access")
    agent.show(reply, _shown(reply))


def _shown(reply: dict[str, Any]) -> str:
    required = reply["mode"] == "required"
    rows = [
        ("certificates", "required" if required else "not required"),
        ("[management] authentication", reply["configured"] or "not set"),
        ("sealed as required", "yes" if reply["latched"] else "no"),
    ]
    if reply["ca_problem"]:
        rows.append(("admin CA", f"cannot be used: {reply['ca_problem']}"))
    rows += [("admin CA", f"{each['subject']}, until {render.utc(each['ends'])}") for each in reply["cas"]]
    if not reply["cas"] and not reply["ca_problem"]:
        rows.append(("admin CA", "none"))
    rows += [("break-glass in use", f"certificate with SHA-256 {digest}") for digest in reply["break_glass"]]
    rows += [("revoked", f"certificate with SHA-256 {digest}") for digest in reply["revoked_certificates"]]
    text: str = tabulate(rows, tablefmt="plain")
    return text


@admin_ca.command("revoke")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=readable)
@pass_agent
def revoke(agent: Agent, files: tuple[Path, ...]) -> None:
    """Let certificates not count any more, for good: certificates in PEM, or lines of 'license-agent admin-ca revoke'."""
    digests = [digest for file in files for digest in _digests(file)]
    reply = agent.ask("admin_revoke", digests=digests)
    agent.show(reply, f"{len(digests)} revoked now, {reply['revoked']} in all")


def _digests(file: Path) -> list[str]:
    data = file.read_bytes()[: MAX_CA_BYTES + 1]
    if b"-----BEGIN" in data:
        try:
            return [digest_of(each) for each in x509.load_pem_x509_certificates(data)]
        except UNREADABLE:
            raise click.UsageError(f"{file} holds no certificate that can be read") from None
    found = [_DIGEST.match(line) for line in data.decode("ascii", "replace").splitlines() if line.strip()]
    digests = [match[1] for match in found if match is not None]
    if not digests or len(digests) != len(found):
        raise click.UsageError(f"{file} holds neither certificates in PEM nor lines that begin with a digest")
    return digests


@admin_ca.command("end")
@config_option
@yes_option
@pass_agent
def end(agent: Agent, config: str | None, yes: bool) -> None:
    """Remove the admin CA, and demand no certificates any more; root only."""
    _require_root("ends that certificates are required")
    if agent.ask("admin_access")["configured"] == "required":
        raise click.UsageError('the configuration says [management] authentication = "required": change that first')
    if not yes:
        inputs.confirm("Every user of [management] allowed_uids will administer the agent without a certificate. Continue?")
    _file(config).unlink(missing_ok=True)
    _reload(agent)
    agent.ask("admin_access_end")
    reply = agent.ask("admin_access")
    agent.show(reply, _shown(reply))


@click.group("break-glass")
def break_glass() -> None:
    """Use a certificate that was issued for an emergency ('license-agent admin-ca break-glass')."""


@break_glass.command("begin")
@click.option("--why", required=True, metavar="TEXT", help="The reason, 1 to 200 characters; the audit log shows it.")
@pass_agent
def begin(agent: Agent, why: str) -> None:
    """Let the break-glass certificate of --auth-cert count from now on: once, for 4 hours, until a reboot at most."""
    reply = agent.ask("break_glass_begin", why=why)
    agent.show(reply, f"this certificate counts for {render.in_words(reply['seconds'])}; 'break-glass end' ends it before")


@break_glass.command("end")
@pass_agent
def end_break_glass(agent: Agent) -> None:
    """Let no break-glass certificate in use count any more."""
    reply = agent.ask("break_glass_end")
    agent.show(reply, f"{reply['ended']} ended")
