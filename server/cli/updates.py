"""Commands that tell agents what to install."""

import click

COMMANDS: tuple[click.Command, ...] = ()
