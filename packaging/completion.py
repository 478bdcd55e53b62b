"""Writes the completion files of the programs for bash, zsh and fish. What it writes depends on the code alone.

    python3 packaging/completion.py OUTDIR

The programs made with click are asked themselves at each TAB: click writes the few lines that do so. The others have a table of
their commands and options, drawn from their parsers, for bash alone.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

# The tree that this file lies in, unless the programs are installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from agentd.commands import parser as agent_parser
from ipc.posclient.shell import _parser as client_parser
from link.main import _parser as link_parser
from manage.main import _parser as manage_parser

CLICK_PROGRAMS = ("license-agent-cli", "license-server")
SHELLS: dict[str, tuple[type[ShellComplete], str]] = {
    "bash": (BashComplete, "bash-completion/completions/{}"),
    "zsh": (ZshComplete, "zsh/vendor-completions/_{}"),
    "fish": (FishComplete, "fish/vendor_completions.d/{}.fish"),
}
"""Each shell with click's generator for it and the place of a program's file below /usr/share."""

_TABLE = """\
# bash completion for {program}

{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} at='' value='' word words=''
    # at: the commands so far. value: what the option before takes.
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        # The shell parts --option=value into three words.
        [[ $word == = ]] && continue
        [[ $value ]] && value='' && continue
        case $at/$word in
{steps}
        esac
    done
    [[ $cur == = ]] && cur=''
    COMPREPLY=()
    if [[ ! $value ]]; then
        case $at in
{offers}
        esac
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
    if [[ $value == file ]]; then
        compopt -o default
    fi
}}

complete -F {function} {program}
"""


def click_files() -> Iterator[tuple[str, str]]:
    """Path and content of each file for the programs made with click."""
    for program in CLICK_PROGRAMS:
        variable = f"_{program}_COMPLETE".replace("-", "_").upper()
        for generator, place in SHELLS.values():
            # Only the program's name goes in. The base class's method: bash's own one runs bash, to warn of an old one.
            text = ShellComplete.source(generator(click.Group(program), {}, program, variable))
            yield place.format(program), text.rstrip("\n") + "\n"


def argparse_files() -> Iterator[tuple[str, str]]:
    """Path and content of each file for the programs made with argparse."""
    for parser in (agent_parser(), client_parser(), link_parser(), manage_parser()):
        yield SHELLS["bash"][1].format(parser.prog), table_of(parser)


def table_of(parser: argparse.ArgumentParser) -> str:
    """The bash completion of one parser."""
    steps: list[str] = []
    offers: list[str] = []
    _walk(parser, "", steps, offers)
    function = f"_{parser.prog}".replace("-", "_")
    indent = " " * 12
    return _TABLE.format(
        program=parser.prog,
        function=function,
        steps="\n".join(indent + step for step in steps),
        offers="\n".join(indent + offer for offer in offers),
    )


def _walk(parser: argparse.ArgumentParser, at: str, steps: list[str], offers: list[str]) -> None:
    words: list[str] = []
    below: dict[str, argparse.ArgumentParser] = {}
    files = False
    # argparse has no public way to look at a parser.
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below.update(action.choices)
        elif not action.option_strings:
            files |= action.type is Path
        else:
            words += action.option_strings
            if action.nargs != 0:
                kind = "file" if action.type is Path else "other"
                steps += [f"'{at}/{option}') value={kind} ;;" for option in action.option_strings]
    steps += [f"'{at}/{name}') at='{at}/{name}' ;;" for name in below]
    offer = f"words='{' '.join([*below, *sorted(words)])}'"
    # Readline looks for files only where nothing else is offered.
    offers.append(f"'{at}') {offer}" + ("; [[ $cur == -* ]] || { words=''; value=file; } ;;" if files else " ;;"))
    for name, command in below.items():
        _walk(command, f"{at}/{name}", steps, offers)


def write(directory: Path) -> None:
    """Writes all files below a directory, which need not exist."""
    for place, text in (*click_files(), *argparse_files()):
        path = directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Writes the files below the directory that the command line names."""
    parser = argparse.ArgumentParser(prog="completion.py", description="Write completion files for bash, zsh and fish.")
    parser.add_argument("directory", type=Path, metavar="OUTDIR", help="what becomes /usr/share in the package")
    write(parser.parse_args().directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
