"""What the commands of `license-stand` share: the directory of the stand."""

from pathlib import Path

import click

from common.argv import to_back

from . import acts
from .setup import Layout

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The stand's directory.",
)


class Program(click.Group):
    """Takes its directory before and after the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Moves the directory behind the command, which takes it."""
        return super().parse_args(ctx, to_back(args, (), {"--dir"}))


def running(directory: Path) -> Layout:
    """The running stand in a directory. Raises StandError."""
    layout = Layout(directory.absolute())
    acts.info_of(layout)
    return layout
