"""Documents, manual pages, help texts and messages read as plain American English: none of the words that this project avoids.

A failure lists file:line: word: text. Words in backticks are names of the code and are not looked at.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentd.commands import parser as agent_parser
from cli.main import main as cli
from ipc.posclient.shell import _parser as client_parser
from link.main import _parser as link_parser
from manage.main import _parser as manage_parser
from server.main import main as server
from stand.main import main as stand

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "packaging").rglob("*.md"),
        *(ROOT / "packaging" / "man").iterdir(),
    ]
)

AVOIDED: dict[str, str] = {
    # What is avoided, as a regular expression in which a space is any white space: what to write instead.
    r"anew": "again, or new",
    r"mend(s|ed|ing)?": "fix, repair",
    r"whoever": "anyone who, a user who",
    r"lest": "so that … not",
    r"(is|are|was|were|be) none": "there is no …, not a …",
    r"(give|gives|gave|given|giving) up": "discard, stop, invalidate, abandon",
    r"(is|are|was|were|be|been) told": "gets, learns; name who reports it",
    r"(?:hold|holds|held|holding)(?: \w+)? against": "compare with, check against",
    r"(take|takes|took|taken|taking)(?: (?:it|them|this))? over": "accept, adopt; for an attack: control",
    r"(number|numbers) that (stand|stands) for": "name the number",
    r"stand (there|here|so|in the way)|stands (there|here|so|in|on|at|under|beside|outside|behind)": "is, is in, exists",
    r"told apart": "distinguished",
    r"cages?": "confinement",
    r"outgrown": "needs a restart",
    r"strangers?": "unauthorized peer, unknown user",
    r"rotors?": "rotation runner",
    r"mint(s|ed|ing)?": "issue, create",
    r"books?": "license inventory",
    r"(?<!back\s)office": "server",
    r"(?:timebase|policyops|secretops|serverword|kekguard)": "the part's present name",
    r"provisioning claims?": "enrollment token",
    r"thou|thereof|whereof|therein|wherein|heretofore|henceforth": "a word in use today",
    r"(enrol|enrols|licence|licences|behaviour|colour|initialise|authorise|recognise|honour|cancelled)": "American spelling",
}
PATTERNS = [(re.compile(rf"\b(?:{word})\b".replace(" ", r"\s+"), re.IGNORECASE), better) for word, better in AVOIDED.items()]


def plain(text: str) -> str:
    """A document without code: blocks, words in backticks and generated tables become blanks; lines keep their numbers."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    for code in (r"^```.*?^```", r"<!-- table:.*?<!-- end of table -->", r"^    .*$", r"`[^`\n]+(?:\n[^`\n]+)?`"):
        text = re.sub(code, blank, text, flags=re.MULTILINE | re.DOTALL if ".*?" in code else re.MULTILINE)
    return text


def found(where: str, text: str, first_line: int = 1) -> Iterator[str]:
    """A line for each avoided word in a text."""
    for pattern, better in PATTERNS:
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start())
            shown = " ".join(text.splitlines()[line].split())
            yield f"{where}:{first_line + line}: {' '.join(match[0].split())}: {shown}   ({better})"


def report(hits: list[str]) -> str:
    return f"{len(hits)} avoided words:\n" + "\n".join(hits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Write the file anew.", ["anew"]),
        ("It is\nnone.", ["is none"]),
        ("A copy stands in its place; a stand in one directory", ["stands in"]),
        ("its end is not held against the head", ["held against"]),
        ("`mend` in code and a runbook are fine, the back office too", []),
        ("American spelling: behavior, initialize, canceled, enrolled", []),
        ("Mending it", ["Mending"]),
    ],
)
def test_the_check_finds_what_it_should(text: str, words: list[str]) -> None:
    assert [hit.split(": ")[1] for hit in found("x", plain(text))] == words


def test_documents_and_manual_pages_avoid_these_words() -> None:
    assert len(DOCUMENTS) > 30
    hits = [
        hit
        for path in DOCUMENTS
        for hit in found(
            str(path.relative_to(ROOT)), plain(path.read_text("utf-8")) if path.suffix == ".md" else path.read_text("utf-8")
        )
    ]
    assert not hits, report(hits)


# What the programs say: help texts and messages.

FOLDERS = ("agentd", "cli", "ipc", "hwsec", "contracts", "audittrail", "confine", "link", "installer", "server", "stand",
           "updater", "updatetrust")  # fmt: skip
LOGGERS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
HELP_OPTIONS = {"help", "short_help", "epilog", "description"}


def helps() -> Iterator[tuple[str, str]]:
    """The help text of every command and subcommand, with the words that call it."""
    for name, group in (("license-agent-cli", cli), ("license-server", server), ("license-stand", stand)):
        yield from click_helps(name, group)
    parsers = {"license-agent": agent_parser(), "license-agent-link": link_parser(), "license-agent-client": client_parser()}
    parsers["license-agent-manage"] = manage_parser()
    for name, parser in parsers.items():
        yield from argparse_helps(name, parser)


def click_helps(name: str, command: click.Command) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name, **command.context_settings)
    yield f"{name} --help", command.get_help(context)
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            yield from click_helps(f"{name} {word}", below)


def argparse_helps(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    yield f"{name} --help", parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from argparse_helps(f"{name} {word}", below)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings that people read, with their lines: in what is raised, in what is logged, and in help options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield from strings(node.exc)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in LOGGERS:
                yield from (text for argument in node.args for text in strings(argument))
            yield from (text for option in node.keywords if option.arg in HELP_OPTIONS for text in strings(option.value))


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.lineno, part.value


def hits_of(folder: str) -> list[str]:
    """The avoided words in the messages and help options of a folder's files, each once."""
    hits: dict[str, None] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, text in texts(ast.parse(path.read_text("utf-8"))):
            hits |= dict.fromkeys(found(str(path.relative_to(ROOT)), text, line))
    return list(hits)


CODE = """
NAME = "anew"
def f(x):
    log.warning("mend %s", x)
    raise E(f"{x} is told {x}") from g("whoever")
option("--x", help="Made anew.")
raise E(x, y("lest"))
"""


def test_the_check_finds_messages_and_help_but_no_other_strings() -> None:
    hits = [(line, text) for line, text in texts(ast.parse(CODE)) if list(found("x", text))]
    assert sorted(hits) == [(4, "mend %s"), (5, " is told "), (6, "Made anew."), (7, "lest")]


def test_every_program_shows_its_help_in_plain_words() -> None:
    shown = dict(helps())
    assert len(shown) > 70 and all(text.strip() for text in shown.values())
    hits = [hit for name, text in shown.items() for hit in found(name, text)]
    assert not hits, report(hits)


@pytest.mark.parametrize("folder", FOLDERS)
def test_messages_and_help_options_avoid_these_words(folder: str) -> None:
    assert sum(1 for path in (ROOT / folder).rglob("*.py") for _ in texts(ast.parse(path.read_text("utf-8")))) > 5
    hits = hits_of(folder)
    assert not hits, report(hits)
