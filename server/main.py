"""Runs `license-server`: finds the command, and turns errors into a line on standard error and exit status 1."""

import importlib
import sys

import click
from sqlalchemy.exc import SQLAlchemyError

from common.argv import to_back
from common.files import os_problem
from common.version import VERSION

from .base.errors import RegistryError
from .base.refused import RequestRefused

_COMMANDS = {
    "keys": ("init", "migrate", "trust", "root-pin", "keys"),
    "masterkey": ("master-key",),
    "enrollment": ("enroll", "enrollment-token"),
    "agents": ("agents", "sign-time", "audit-head"),
    "secrets": ("secrets", "rotate", "periods"),
    "backup": ("backup", "restore"),
    "move": ("move",),
    "clones": ("clones",),
    "products": ("products", "entitlements", "policies"),
    "customers": ("customers", "sites"),
    "licenses": ("issue", "reissue", "licenses", "revoke"),
    "auditlog": ("audit",),
    "events": ("events",),
    "webhooks": ("webhooks",),
    "housekeeping": ("retention",),
    "clock": ("clock",),
    "serve": ("serve", "openapi", "tls-files"),
}
"""The module of each command. Only the one that is used is imported: the API alone takes half a second."""
_FORMER = {"claim": "enrollment-token"}
"""Former names of commands. They work for one more release, and no help lists them."""


class _Commands(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, to_back(args, {"--json"}, {"--dir"}))

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for names in _COMMANDS.values() for name in names]

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        name = _FORMER.get(name, name)
        for module, names in _COMMANDS.items():
            if name in names:
                commands = importlib.import_module(f"server.cli.{module}").COMMANDS
                return next((command for command in commands if command.name == name), None)
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="license-server", message="%(prog)s %(version)s")
def main() -> None:
    """Run a license server: agents, secrets, licenses and the keys behind them."""


def entry() -> None:
    """The entry point of the console script."""
    try:
        main()
    except (RegistryError, RequestRefused) as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        from .registry.database import in_words

        _fail(f"database error: {in_words(error)}")
    except OSError as error:
        # A write has no file name in its error: standard output, most often.
        _fail(os_problem(error, "cannot write"))


def _fail(text: str) -> None:
    click.echo(f"license-server: {text}", err=True)
    sys.exit(1)
