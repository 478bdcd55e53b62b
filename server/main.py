"""`license-server`: the command line. Reads the clock and the kernel's randomness for the rest of the server."""

import importlib
import sys

import click
from sqlalchemy.exc import SQLAlchemyError

from .base.errors import RegistryError
from .base.refused import RequestRefused

_COMMANDS = {
    "keys": ("init", "migrate", "trust", "root-pin", "keys"),
    "masterkey": ("master-key",),
    "agents": ("enroll", "claim", "agents", "secrets", "rotate", "periods", "sign-time"),
    "licenses": ("issue", "reissue", "revoke", "audit"),
    "serve": ("serve", "openapi", "tls-files"),
}
"""Where each command is. Only what is used is imported: the API alone takes half a second."""


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for names in _COMMANDS.values() for name in names]

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        for module, names in _COMMANDS.items():
            if name in names:
                commands = importlib.import_module(f"server.cli.{module}").COMMANDS
                return next((command for command in commands if command.name == name), None)
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Issue licenses and secrets to agents."""


def entry() -> None:
    """The console script."""
    try:
        main()
    except (RegistryError, RequestRefused) as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        _fail(f"the database does not work: {str(getattr(error, 'orig', None) or error).splitlines()[0][:300]}")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")


def _fail(text: str) -> None:
    click.echo(f"license-server: {text}", err=True)
    sys.exit(1)
