"""Runs `license-server`: finds the command, and turns errors into a line on standard error and exit status 1."""

import gc
import importlib
import sys
from pathlib import Path

import click
from sqlalchemy.exc import SQLAlchemyError

from common.argv import to_back, to_front
from common.files import os_problem
from common.version import VERSION

from .base.errors import RegistryError, SecondPersonNeeded
from .base.refused import RequestRefused

EXIT_FAILED, EXIT_SECOND_PERSON = 1, 3
"""Exit statuses."""
_COMMANDS = {
    "keys.keys": ("init", "migrate", "trust", "root-pin", "root-certificate", "keys"),
    "keys.masterkey": ("master-key",),
    "agents.enrollment": ("enroll", "enrollment-token"),
    "agents.agents": ("agents", "sign-time", "audit-head"),
    "agents.secrets": ("secrets", "rotate", "periods"),
    "service.backup": ("backup", "restore"),
    "service.move": ("move",),
    "agents.clones": ("clones",),
    "licenses.products": ("products", "entitlements", "policies"),
    "licenses.customers": ("customers", "sites"),
    "licenses.licenses": ("issue", "reissue", "licenses", "revoke"),
    "licenses.usage": ("reports",),
    "licenses.seats": ("seats",),
    "fleet.devices": ("devices",),
    "fleet.fleets": ("fleets",),
    "operators.auditlog": ("audit",),
    "operators.events": ("events",),
    "operators.webhooks": ("webhooks",),
    "ota.ota": ("ota",),
    "fleet.rollouts": ("rollouts",),
    "fleet.ddi": ("ddi",),
    "operators.accounts": ("accounts", "approvals", "break-glass"),
    "service.housekeeping": ("retention",),
    "service.clock": ("clock",),
    "service.serve": ("serve", "openapi", "tls-files"),
}
"""The module of each command. Only the one that is used is imported: the API alone takes half a second."""
_SHARED = {"--server", "--auth-root", "--auth-cert", "--auth-key", "--auth-token", "--reason", "--approval"}
"""Options with a value that all commands share; users may write them anywhere."""
_FORMER = {"claim": "enrollment-token"}
"""Former names of commands. They work for one more release, and no help lists them."""
_ALLOCATIONS = 50_000
"""How many new objects the garbage collector waits for, in place of 700: imports make objects that stay, and looking through
them again and again is a seventh of the time of a short command."""


class _Commands(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, to_front(to_back(args, {"--json"}, {"--dir"}), {"--local"}, _SHARED))

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for names in _COMMANDS.values() for name in names]

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        name = _FORMER.get(name, name)
        for module, names in _COMMANDS.items():
            if name in names:
                commands = importlib.import_module(f"server.cli.{module}").COMMANDS
                return next((command for command in commands if command.name == name), None)
        return None


MAX_REASON = 200


def _one_line(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    if len(text) > MAX_REASON or not text.isprintable():
        raise click.BadParameter(f"a reason is one line of at most {MAX_REASON} characters")
    return text


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="license-server", message="%(prog)s %(version)s")
@click.option("--server", metavar="URL", help="Ask the operator API at https://HOST:PORT, for commands that can.")
@click.option("--auth-root", "root", type=_FILE, metavar="FILE", help="The root certificate of that server.")
@click.option("--auth-cert", "certificate", type=_FILE, metavar="FILE", help="Your client certificate.")
@click.option("--auth-key", "key", type=_FILE, metavar="FILE", help="Its key, without a passphrase.")
@click.option("--auth-token", "token", type=_FILE, metavar="FILE", help="A file of mode 0600 with a token, instead.")
@click.option("--local", is_flag=True, help="Act on this machine although the server has administrators; needs --reason.")
@click.option("--reason", default="", callback=_one_line, metavar="TEXT", help="Why, for the audit; no names of persons.")
@click.option("--approval", metavar="ID", help="A second person's approval, for what needs one.")
@click.pass_context
def main(
    ctx: click.Context,
    server: str | None,
    root: Path | None,
    certificate: Path | None,
    key: Path | None,
    token: Path | None,
    local: bool,
    reason: str,
    approval: str | None,
) -> None:
    """Run a license server: agents, secrets, licenses and the keys behind them."""
    # With the database's modules, half a second that --version and a command that does not exist do without.
    from .cli.base.acting import Given

    ctx.obj = Given(server, root, certificate, key, token, local, reason, approval)


def entry() -> None:
    """The entry point of the console script."""
    gc.set_threshold(_ALLOCATIONS)
    try:
        main()
    except (RegistryError, RequestRefused) as error:
        _fail(str(error), status_of(error))
    except SQLAlchemyError as error:
        from .registry.database import in_words

        _fail(f"database error: {in_words(error)}")
    except OSError as error:
        # A write has no file name in its error: standard output, most often.
        _fail(os_problem(error, "cannot write"))


def status_of(error: Exception) -> int:
    """The exit status of a command that ends with this error."""
    return EXIT_SECOND_PERSON if isinstance(error, SecondPersonNeeded) else EXIT_FAILED


def _fail(text: str, status: int = EXIT_FAILED) -> None:
    click.echo(f"license-server: {text}", err=True)
    sys.exit(status)
