"""`license-server`: the command line. Reads the clock and the kernel's randomness for the rest of the server."""

import sys

import click
from sqlalchemy.exc import SQLAlchemyError

from . import commands_agents, commands_keys, commands_licenses, commands_masterkey, commands_serve
from .declined import Declined
from .errors import RegistryError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Issue licenses and secrets to agents."""


for _command in (
    *commands_keys.COMMANDS,
    *commands_masterkey.COMMANDS,
    *commands_agents.COMMANDS,
    *commands_licenses.COMMANDS,
    *commands_serve.COMMANDS,
):
    main.add_command(_command)


def entry() -> None:
    """The console script."""
    try:
        main()
    except (RegistryError, Declined) as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        _fail(f"the database does not work: {str(getattr(error, 'orig', None) or error).splitlines()[0][:300]}")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")


def _fail(text: str) -> None:
    click.echo(f"license-server: {text}", err=True)
    sys.exit(1)
