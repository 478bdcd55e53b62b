"""Defines the command line of `license-agent-cli`.

Exit status: 0 fine, 1 a negative answer (license not valid, audit log tampered with, configuration refused), 2 wrong usage,
3 the agent does not answer, 4 the agent refused the request, 5 the check of the audit log is incomplete. `status` and
`healthcheck`: `health`.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click

from audittrail.archive import ArchiveDamaged
from common.argv import to_front
from common.files import os_problem
from common.text import shown
from common.version import VERSION
from ipc.errors import ErrorCode, LocalProtocolError
from ipc.peer import UntrustedDaemon
from ipc.posclient.policy import AgentRefused, AgentUnavailable
from ipc.posclient.trust import DEFAULT_ADMIN_SOCKET

from . import adminca, config, doctor, inputs, ota, render, server, support, webhook
from .agent import EXIT_INCOMPLETE, EXIT_NEGATIVE, EXIT_UNAVAILABLE, Agent, pass_agent
from .audit import audit
from .backup import backup, timedbackup
from .licenses.why import why
from .signing import keys
from .signing.auth import BadCredentials, Credentials
from .status import status

EXIT_USAGE, EXIT_REFUSED = 2, 4
__all__ = ["EXIT_INCOMPLETE", "entry", "main"]


class _Program(click.Group):
    """Takes its options before and after the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        valued = {"--socket", "--agent-uid", "--auth-cert", "--auth-key"}
        return super().parse_args(ctx, to_front(args, {"--json", "--version"}, valued))


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="license-agent-cli", message="%(prog)s %(version)s")
@click.option(
    "--socket",
    envvar="LICENSE_AGENT_ADMIN_SOCKET",
    default=DEFAULT_ADMIN_SOCKET,
    show_default=True,
    metavar="PATH",
    help="The agent's admin socket (or LICENSE_AGENT_ADMIN_SOCKET).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--agent-uid", type=int, metavar="UID", help="The agent's UID if its user is not license-agent.")
@click.option(
    "--auth-cert",
    envvar="LICENSE_AGENT_AUTH_CERT",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your administrator's certificate, PEM (or LICENSE_AGENT_AUTH_CERT).",
)
@click.option(
    "--auth-key",
    envvar="LICENSE_AGENT_AUTH_KEY",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its key, PEM (or LICENSE_AGENT_AUTH_KEY; default: the one in the certificate's file, else in the ssh-agent).",
)
@click.pass_context
def main(
    ctx: click.Context, socket: str, as_json: bool, agent_uid: int | None, auth_cert: Path | None, auth_key: Path | None
) -> None:
    """Manage the license agent of this machine."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    if auth_key is not None and auth_cert is None:
        raise click.UsageError("--auth-key needs --auth-cert: the agent must know whose key it is")
    ctx.obj = Agent(socket, as_json, agent_uid, None if auth_cert is None else Credentials(auth_cert, auth_key))


main.add_command(status.status)
main.add_command(status.healthcheck)


@main.group(invoke_without_command=True)
@click.pass_context
def secrets(ctx: click.Context) -> None:
    """List the secret versions with states and dates (never a secret)."""
    if ctx.invoked_subcommand is None:
        agent: Agent = ctx.obj
        reply = agent.ask("secrets")
        agent.show(reply, render.secrets_text(reply, render.terminal_columns()))


@secrets.command("install")
@click.argument("file", type=click.File("rb"))
@pass_agent
def secrets_install(agent: Agent, file: Any) -> None:
    """Install the secret in a delivery FILE from the license server ('-' for standard input)."""
    reply = agent.ask("secret_install", delivery=inputs.text_of(file).strip())
    agent.show(reply, f"secret version {reply['secret_version']} is ACTIVE (store generation {reply['generation']})")


@secrets.command("invalidate")
@click.argument("version", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_agent
def secrets_invalidate(agent: Agent, version: int, yes: bool) -> None:
    """Invalidate secret VERSION for good: licenses issued under it are refused from now on."""
    if not yes:
        found = next((each for each in agent.ask("secrets")["secrets"] if each["version"] == version), None)
        # The agent says so too; nobody should have to answer a question about what is not there.
        if found is None:
            raise AgentRefused(ErrorCode.NOT_FOUND, f"there is no secret version {version}")
        text = f"Licenses under version {version}, which is {found['state']}, will be refused until they are re-issued."
        inputs.confirm(f"{text} Continue?")
    reply = agent.ask("secret_invalidate", version=version)
    agent.show(reply, f"secret version {reply['secret_version']} is INVALIDATED (store generation {reply['generation']})")


@main.group("license")
def license_() -> None:
    """Check and import licenses."""


@license_.command("check")
@click.argument("token")
@pass_agent
def license_check(agent: Agent, token: str) -> None:
    """Show the verdict that a POS application would get for TOKEN ('-' reads it from standard input, @FILE from a file)."""
    token = inputs.license_token(token)
    reply = agent.ask("license_check", token=token)
    agent.show(reply, render.license_text(reply))
    if reply["reason"] == "malformed":
        inputs.hint_at(token)
    if not reply["valid"]:
        sys.exit(EXIT_NEGATIVE)


@license_.command("import")
@click.argument("token")
@pass_agent
def license_import(agent: Agent, token: str) -> None:
    """Store the re-issued TOKEN, so that POS applications get it ('-' or @FILE as for check)."""
    token = inputs.license_token(token)
    try:
        reply = agent.ask("license_import", token=token)
    except AgentRefused:
        inputs.hint_at(token)
        raise
    agent.show(reply, f"license {reply['license']}: kept its token under secret version {reply['secret_version']}")


main.add_command(why)
main.add_command(adminca.admin_ca)
main.add_command(adminca.break_glass)
main.add_command(audit.audit)
main.add_command(audit.public_key)
backup.backup.add_command(timedbackup.run)
main.add_command(backup.backup)
main.add_command(ota.ota)
main.add_command(ota.ota_update)


@main.group()
def policy() -> None:
    """Bind the agent's secrets to the measured state of the machine (PCRs of the TPM)."""


@policy.command("show")
@click.option("--pcr", "pcrs", multiple=True, type=click.IntRange(0, 23), help="Show this PCR's value too; may be repeated.")
@pass_agent
def policy_show(agent: Agent, pcrs: tuple[int, ...]) -> None:
    """Show the binding, PCR values and the installed policies."""
    reply = agent.ask("policy_show", pcrs=list(pcrs))
    agent.show(reply, render.policy_text(reply))


@policy.command("install")
@click.argument("file", type=click.File("rb"))
@pass_agent
def policy_install(agent: Agent, file: Any) -> None:
    """Install a signed policy from FILE ('license-agent sign-policy' makes one, on another machine)."""
    reply = agent.ask("policy_install", policy=inputs.text_of(file))
    agent.show(reply, f"installed as {reply['file']}")


@policy.command("bind")
@click.argument("kind", type=click.Choice(["none", "secure-boot", "custom"]))
@click.option("--pcr", "pcrs", multiple=True, type=click.IntRange(0, 23), help="A PCR of the binding custom; may be repeated.")
@click.option("--key", type=click.File("rb"), help="The vendor's policy key (public, PEM).")
@pass_agent
def policy_bind(agent: Agent, kind: str, pcrs: tuple[int, ...], key: Any) -> None:
    """Bind the secrets: to nothing, to Secure Boot, or to PCRs. Install a matching signed policy first."""
    text = inputs.text_of(key) if key is not None else ""
    reply = agent.ask("policy_bind", kind=kind, pcrs=sorted(set(pcrs)), key=text)
    agent.show(reply, f"the secrets are bound to: {reply['binding']}")


@policy.command("revoke")
@click.argument("number", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_agent
def policy_revoke(agent: Agent, number: int, yes: bool) -> None:
    """Refuse signed policies with a number below NUMBER, forever."""
    if not yes:
        inputs.confirm(f"Policies with a number below {number} can never be used on this machine again. Continue?")
    reply = agent.ask("policy_revoke", number=number)
    agent.show(reply, f"policies below number {reply['policy_number']} are refused from now on")


@main.group()
def clock() -> None:
    """Correct the agent's trusted time, or confirm the server's."""


@clock.command("challenge")
@pass_agent
def clock_challenge(agent: Agent) -> None:
    """Print a challenge for 'license-server sign-time'. It is valid for one answer, for 24 hours."""
    reply = agent.ask("clock_challenge")
    agent.show(reply, reply["challenge"])


@clock.command("reset")
@click.argument("file", type=click.File("rb"))
@pass_agent
def clock_reset(agent: Agent, file: Any) -> None:
    """Accept the server's time from FILE ('-' for standard input), even if it is before the agent's."""
    reply = agent.ask("clock_reset", statement=inputs.text_of(file).strip())
    agent.show(
        reply,
        f"the server's time is {render.utc(reply['signed'])}; the agent's trusted time is now {render.utc(reply['time'])}",
    )


@clock.command("confirm")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_agent
def clock_confirm(agent: Agent, yes: bool) -> None:
    """Take the server's time that 'status' shows as held or provisional, because you know that it is right."""
    if not yes:
        found = agent.ask("status").get("server_time")
        text = "No time of the server is waiting." if found is None else found["text"][0].upper() + found["text"][1:] + "."
        inputs.confirm(f"{text} Licenses that have expired by the server's time will be refused. Continue?")
    reply = agent.ask("clock_confirm")
    agent.show(
        reply,
        f"the server's time is {render.utc(reply['signed'])}; the agent's trusted time is now {render.utc(reply['time'])}",
    )


@main.command()
@pass_agent
def metrics(agent: Agent) -> None:
    """Print the metrics in the Prometheus text format."""
    reply = agent.ask("metrics")
    agent.show(reply, reply["text"].rstrip("\n"))


@main.command()
@pass_agent
def reload(agent: Agent) -> None:
    """Load the configuration file into the running agent; 'systemctl reload license-agent' runs this."""
    reply = agent.ask_to_reload()
    problems, later = reply["problems"], reply["needs_restart"]
    wait = f"; for a restart wait: {', '.join(later)}" if later else ""
    if agent.as_json or not problems:
        agent.show(reply, f"the configuration was reloaded{wait}")
    for problem in problems:
        click.echo(f"license-agent-cli: {problem}", err=True)
    if problems:
        click.echo("license-agent-cli: the configuration is refused; the one loaded before stays in force", err=True)
        sys.exit(EXIT_NEGATIVE)


main.add_command(config.config)

for _command in (*server.COMMANDS, *doctor.COMMANDS, *webhook.COMMANDS, *support.COMMANDS):
    main.add_command(_command)


def entry() -> None:
    """The console script."""
    try:
        main(standalone_mode=True)
    except LocalProtocolError as error:
        _fail(str(error), EXIT_USAGE)
    except (AgentUnavailable, UntrustedDaemon) as error:
        _fail(str(error), EXIT_UNAVAILABLE)
    except AgentRefused as error:
        _fail(str(error), EXIT_REFUSED)
    except ArchiveDamaged as error:
        _fail(str(error), EXIT_NEGATIVE)
    except (keys.BadKey, BadCredentials) as error:
        # Not 1: that would say that a log was tampered with.
        _fail(str(error), EXIT_USAGE)
    except OSError as error:
        _fail(os_problem(error), EXIT_USAGE)


def _fail(text: str, status: int) -> None:
    click.echo(shown(f"license-agent-cli: {text}"), err=True)
    sys.exit(status)
