"""The manual pages against the programs: commands, options, defaults, choices, variables, exit statuses, keys, examples."""

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest

from agentd import commands as agent
from agentd.base.config.config import Config, parse_config
from agentd.base.config.config import known_keys as agent_keys
from cli import main as cli
from ipc.posclient import shell as client
from link import main as link
from link.config import known_keys as link_keys
from link.config import parse_config as parse_link_config
from manage import main as manage
from manage.config import known_keys as manage_keys
from manage.config import parse_config as parse_manage_config
from server import main as license_server
from server.main import main as server

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text("ascii") for path in sorted((ROOT / "packaging" / "man").iterdir())}
HELP = {"-h", "--help"}


@dataclass(frozen=True)
class Command:
    """One command, as its parser knows it.

    Attributes:
        options: each with its default where the help shows one, as text.
        required: options that must be given.
        arguments: how many are positional.
        choices: what an option or argument may be, where the parser has a list.
        variables: of the environment.
    """

    options: dict[str, str]
    required: frozenset[str] = frozenset()
    arguments: int = 0
    choices: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()


Commands = Iterator[tuple[str, Command]]


def click_commands(command: click.Command, parent: click.Context | None = None, path: str = "") -> Commands:
    """All that can be called, with the words that call it; the program itself has none."""
    context = click.Context(command, parent=parent, info_name=path or "x", **command.context_settings)
    if not isinstance(command, click.Group) or command.invoke_without_command or not path:
        yield path, click_command(command.get_params(context))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from click_commands(found, context, f"{path} {name}".strip())


def click_command(params: list[click.Parameter]) -> Command:
    options = [param for param in params if isinstance(param, click.Option) and not param.hidden]
    return Command(
        {name: click_default(option) for option in options for name in (*option.opts, *option.secondary_opts)},
        frozenset(name for option in options if option.required for name in (*option.opts, *option.secondary_opts)),
        sum(isinstance(param, click.Argument) for param in params),
        frozenset(choice for param in params if isinstance(param.type, click.Choice) for choice in param.type.choices),
        frozenset(option.envvar for option in options if isinstance(option.envvar, str)),
    )


def click_default(option: click.Option) -> str:
    in_words = re.search(r"\[default: (.*)\]", option.help or "")
    return in_words[1] if in_words else str(option.default) if option.show_default else ""


def argparse_default(action: argparse.Action) -> str:
    shown = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
    return shown if "%(default)" in (action.help or "") else ""


def argparse_commands(parser: argparse.ArgumentParser, path: str = "") -> Commands:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below or not path:
        own = [action for action in parser._actions if action not in below]
        options = [action for action in own if action.option_strings]
        yield (
            path,
            Command(
                {name: argparse_default(action) for action in options for name in action.option_strings},
                frozenset(name for action in options if action.required for name in action.option_strings),
                len(own) - len(options),
            ),
        )
    for action in below:
        for name, found in action.choices.items():
            yield from argparse_commands(found, f"{path} {name}".strip())


PROGRAMS: dict[str, dict[str, Command]] = {
    "license-agent": dict(argparse_commands(agent.parser())),
    "license-agent-cli": dict(click_commands(cli.main)),
    "license-agent-client": dict(argparse_commands(client._parser())),
    "license-agent-link": dict(argparse_commands(link._parser())),
    "license-agent-manage": dict(argparse_commands(manage._parser())),
    "license-server": dict(click_commands(server)),
}
COMMANDS = [(program, path) for program, found in PROGRAMS.items() for path in found if path]


def section(page: str, name: str) -> str:
    """The lines of a section, without its head."""
    parts = re.split(r"^\.Sh (.*)\n", PAGES[page], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(name, "")


def flags(text: str) -> set[str]:
    """The options that a text marks as such (Fl)."""
    return {f"-{name}" for name in re.findall(r"\bFl (-?[\w-]+)", text)}


def items(text: str, macro: str) -> dict[str, str]:
    """The items whose head begins with a macro, by its words: all lines to the next such item."""
    found: dict[str, str] = {}
    for part in re.split(rf"^(?=\.It {macro} )", text, flags=re.MULTILINE)[1:]:
        words = re.match(rf"\.It {macro} ((?:[a-z][\w-]*(?: |$))+)", part.partition("\n")[0])
        assert words is not None, part
        name = words[1].strip()
        assert name not in found, f"{name} is there twice"
        found[name] = part
    return found


def page_of(program: str) -> str:
    return f"{program}.1" if program == "license-agent-client" else f"{program}.8"


def explained(text: str) -> dict[str, str]:
    """Each option that has an item, with the item's text."""
    parts = [part.partition("\n.It Cm ")[0] for part in re.split(r"^(?=\.It Fl )", text, flags=re.MULTILINE)[1:]]
    return {flag: part for part in parts for flag in flags(part.partition("\n")[0])}


def item(program: str, path: str) -> str:
    return items(section(page_of(program), "COMMANDS"), "Cm")[path]


def test_every_program_that_is_installed_has_its_page() -> None:
    projects = [
        tomllib.loads((ROOT / path / "pyproject.toml").read_text("utf-8"))["project"] for path in (".", "packaging/client")
    ]
    scripts = {name for project in projects for name in project["scripts"]} - {"license-stand"}
    assert set(PAGES) == {page_of(program) for program in scripts} | {"license-agent-config.5"}
    assert set(PROGRAMS) == scripts


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.system
def test_a_page_is_clean_for_groff(name: str) -> None:
    assert shutil.which("groff"), "groff is missing: install the Debian package groff-base"
    command = ["groff", "-mdoc", "-Tutf8", "-ww", "-z", str(ROOT / "packaging" / "man" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_begins_as_mdoc_wants_it_and_does_not_depend_on_its_build(name: str) -> None:
    title, number = name.rsplit(".", 1)
    lines = PAGES[name].splitlines()
    assert re.fullmatch(r"\.Dd [A-Z][a-z]+ \d{1,2}, \d{4}", lines[0])
    assert lines[1:5] == [f".Dt {title.upper()} {number}", ".Os license-agent", ".Sh NAME", f".Nm {title}"]
    # The order of mdoc(7), but for sections of our own.
    order = ["NAME", "SYNOPSIS", "DESCRIPTION", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"]
    heads = re.findall(r"^\.Sh (.*)", PAGES[name], re.MULTILINE)
    assert [head for head in heads if head in order] == [head for head in order if head in heads]
    assert not re.search(r"[ \t]$", PAGES[name], re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_that_a_page_names_exist(name: str) -> None:
    for title, number in re.findall(r"^\.Xr (license-\S+) (\d)", PAGES[name], re.MULTILINE):
        assert f"{title}.{number}" in PAGES and f"{title}.{number}" != name


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_page_has_the_commands_of_its_program_and_no_other(program: str) -> None:
    assert set(items(section(page_of(program), "COMMANDS"), "Cm")) == {path for path in PROGRAMS[program] if path}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_options_of_the_program_itself_are_told(program: str) -> None:
    own = PROGRAMS[program][""]
    told = explained(section(page_of(program), "OPTIONS"))
    assert own.options.keys() <= told.keys()
    known = {name for command in PROGRAMS[program].values() for name in command.options}
    assert told.keys() <= (known if program == "license-server" else own.options.keys())
    for name, default in own.options.items():
        assert default in told[name], name
    synopsis = flags(section(page_of(program), "SYNOPSIS"))
    assert own.options.keys() - HELP - {"--version"} == synopsis


@pytest.mark.parametrize(("program", "path"), COMMANDS)
def test_the_options_of_a_command_are_told_and_no_other(program: str, path: str) -> None:
    text, command = item(program, path), PROGRAMS[program][path]
    head = text.partition("\n")[0]
    assert flags(head) == command.options.keys() - HELP
    told = {**explained(section(page_of(program), "OPTIONS")), **explained(text)}
    assert command.options.keys() <= told.keys()
    assert explained(text).keys() <= command.options.keys()
    for name, default in command.options.items():
        if name not in HELP:
            assert all(word.strip() in told[name] for word in default.split(",")), name


@pytest.mark.parametrize(("program", "path"), COMMANDS)
def test_what_a_command_requires_is_not_in_brackets(program: str, path: str) -> None:
    text, command = item(program, path), PROGRAMS[program][path]
    head = text.partition("\n")[0]
    must = head
    while (shorter := re.sub(r" Oo (?:(?! O[oc]\b).)* Oc\b", "", must)) != must:
        must = shorter
    assert command.required <= flags(must)
    arguments = re.sub(r"\bFl \S+ Ar \S+|\bFl \S+", "", must).removeprefix(f".It Cm {path}").split()
    assert arguments.count("Ar") + arguments.count("Cm") == command.arguments
    assert {choice for choice in command.choices if re.search(rf"\b{choice}\b", text)} == command.choices


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_page_marks_as_command_or_option_exists(program: str) -> None:
    commands = PROGRAMS[program]
    options = {name for command in commands.values() for name in command.options}
    words = {" ".join(path.split()[:count]) for path in commands for count in range(1, 4)}
    words |= {choice for command in commands.values() for choice in command.choices} | {"command"}
    assert flags(PAGES[page_of(program)]) <= options
    for text in re.findall(r"\bCm ([a-z].*?)(?= (?:Oo|Fl|Ar|Cm)\b|$)", PAGES[page_of(program)], re.MULTILINE):
        for phrase in re.split(r" [|,.:;] ?", text):
            assert phrase in words | {""}, phrase


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_variables_that_a_program_reads_are_told(program: str) -> None:
    read = {name for command in PROGRAMS[program].values() for name in command.variables}
    read |= {"LICENSE_AGENT_CONFIG"} if program == "license-agent" else set()
    read |= {"LICENSE_AGENT_SOCKET"} if program == "license-agent-client" else set()
    told = set(re.findall(r"^\.It Ev (LICENSE_\w+)", section(page_of(program), "ENVIRONMENT"), re.MULTILINE))
    assert told == read


def test_the_exit_statuses_are_told() -> None:
    def told(program: str) -> set[int]:
        return {int(number) for number in re.findall(r"^\.It (\d+)$", section(page_of(program), "EXIT STATUS"), re.MULTILINE)}

    def known(module: Any) -> set[int]:
        return {value for name, value in vars(module).items() if name.startswith("EXIT_")}

    assert told("license-agent") == known(agent)
    assert told("license-agent-cli") == known(cli) | {0}
    assert told("license-agent-client") == known(client)
    assert told("license-agent-link") == known(link) | {2}
    assert told("license-agent-manage") == known(manage) | {2}
    assert told("license-server") == known(license_server) | {0, 2}  # as click has them


def keys(page: str, name: str) -> dict[str, dict[str, str]]:
    """The items of each subsection of a section, by the subsection's name in brackets."""
    parts = re.split(r"^\.Ss \[(.*)\]\n", section(page, name), flags=re.MULTILINE)
    return {head: items(body, "Ic") for head, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_the_keys_of_the_configuration_are_told_and_no_other() -> None:
    assert {head: set(found) for head, found in keys("license-agent-config.5", "SECTIONS").items()} == {
        head: set(known) for head, known in agent_keys().items()
    }


def test_the_keys_of_the_links_configuration_are_told_and_no_other() -> None:
    told = {head.removesuffix(".NAME"): set(found) for head, found in keys("license-agent-link.8", "CONFIGURATION").items()}
    assert told == {head: set(known) for head, known in link_keys().items()}


def test_the_keys_of_the_rest_interfaces_configuration_are_told_and_no_other() -> None:
    told = {head: set(found) for head, found in keys("license-agent-manage.8", "CONFIGURATION").items()}
    assert told == {head: set(known) for head, known in manage_keys().items()}


def test_the_defaults_of_the_configuration_are_told() -> None:
    for head, found in keys("license-agent-config.5", "SECTIONS").items():
        section_ = getattr(Config(), head)
        for field in fields(section_):
            if field.name not in agent_keys()[head]:
                continue  # it is no key: `parse_config` finds it out
            default = getattr(section_, field.name)
            if isinstance(default, bool):
                shown = f"Ql {str(default).lower()}\n(the default)"
            elif field.name == "nv_base":
                shown = f"default is 0x{default:08X}"
            elif isinstance(default, int):
                shown = f"default is {default}"
            else:
                shown = "" if default is None else "none" if default == frozenset() else str(default or "")
            assert shown in found[field.name], field.name


def blocks(page: str) -> list[str]:
    return re.findall(r"^\.Bd .*\n((?:.*\n)*?)\.Ed$", section(page, "EXAMPLES"), re.MULTILINE)


def test_the_configurations_among_the_examples_are_accepted() -> None:
    for text in blocks("license-agent-config.5"):
        parse_config(text, "example", {"till": 1001, "keeper": 1002}.__getitem__)
    (text,) = [block for block in blocks("license-agent-link.8") if block.startswith("[")]
    config = parse_link_config(text, "example", {"license-agent": 900}.__getitem__)
    assert set(config.upstreams) == {"server", "enrollment"} and not config.provisioning
    (text,) = [block for block in blocks("license-agent-manage.8") if block.startswith("[")]
    parse_manage_config(text, "example", {"license-agent": 900}.__getitem__)


def command_lines() -> list[str]:
    """Everything in the pages that a shell would take: examples, and literals in the text."""
    found = [line for page in PAGES for block in blocks(page) for line in block.replace("\\e\n", " ").splitlines()]
    found += [line for text in PAGES.values() for line in re.findall(r"^\.(?:Pq )?Ql (license-.*)$", text, re.MULTILINE)]
    return [line.rstrip(" .,:;") for line in found if re.match(rf"(?:{'|'.join(PROGRAMS)}) ", line)]


@pytest.mark.parametrize("line", command_lines())
def test_the_commands_among_examples_and_texts_exist(line: str) -> None:
    program, *words = shlex.split(line.split(" && ")[0])
    commands = PROGRAMS[program]
    plain = [word for word in words if not word.startswith("-")]
    path = next(
        (path for count in range(3, 0, -1) for path in [" ".join(plain[:count])] if path in commands),
        "" if program == "license-agent-link" else None,
    )
    assert path is not None, line
    assert {word for word in words if word.startswith("-")} <= commands[path].options.keys() | commands[""].options.keys()


def test_there_are_such_commands() -> None:
    assert len(command_lines()) > 25
