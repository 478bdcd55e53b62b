"""The runbooks against the code: tables of states drawn anew, ends of keys, outcomes, and files that are accepted."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from click import Context, Group

from agentd.rotation import table
from agentd.sync import degraded
from cli.main import main as cli
from link.config import parse_config
from server.api.metrics import Facts, Metrics
from server.enrollment.service import LEVELS
from server.keys.keyring import DAY, LIFETIMES, OVERLAP_S
from server.licensing.licenses import REVOCATIONS_LAST_S
from server.main import main as server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text("utf-8")
PROSE = " ".join(TEXT.split())


def first_cells(heading: str, columns: str) -> list[str]:
    """The first cells of the table under a heading whose head is `columns`."""
    part = TEXT.partition(f"{heading}\n")[2].partition(f"| {columns} |\n")[2]
    table = part.split("\n\n")[0].splitlines()[1:]
    return [line.split("|")[1].strip().strip("`") for line in table]


S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def drawn(transitions: dict[S, dict[E, S]]) -> str:
    """A table of states as the page shows it: from, event, to."""
    rows = [(state.value, event.value, to.value) for state, events in transitions.items() for event, to in events.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}\n" for a, b, c in rows)


def block(name: str) -> str:
    return TEXT.partition(f"```text {name}\n")[2].partition("```")[0]


def test_the_rotation_is_drawn_from_its_table() -> None:
    assert block("rotation") == drawn(table.TRANSITIONS)
    assert first_cells("## Rotation", "step | the agent") == [step.value for step in table.Step]


def test_degraded_mode_is_drawn_from_its_table() -> None:
    assert block("degraded") == drawn(degraded.TRANSITIONS)
    assert first_cells("## Degraded mode", "mode | what people see") == [mode.value for mode in degraded.Mode]
    assert f"last {degraded.CONTACTS_FAILED} contacts have failed" in PROSE


def test_every_kind_of_key_is_told_with_its_time() -> None:
    part = TEXT.partition("| kind | lasts | rotated by |\n")[2].split("\n\n")[0]
    told = dict(re.findall(r"^\| `([\w-]+)` \| (\d+) days \|", part, re.MULTILINE))
    assert {kind: int(days) * DAY for kind, days in told.items()} == LIFETIMES
    assert f"at least {OVERLAP_S // DAY} days" in PROSE
    assert f"older than {REVOCATIONS_LAST_S // DAY} days" in PROSE


def test_every_level_of_attestation_is_told() -> None:
    assert first_cells("## Provisioning a device", "attestation | meaning") == list(LEVELS)


def test_every_outcome_of_a_contact_is_told() -> None:
    files = (ROOT / "agentd" / "sync" / "cycle.py", ROOT / "agentd" / "admin" / "server_handlers.py")
    code = "".join(file.read_text("utf-8") for file in files)
    written = set(re.findall(r'"server\.contact", "(\w+)"', code))
    chosen = re.findall(r"^ +outcome = (.*)$", code, re.MULTILINE)
    assert chosen
    written |= set(re.findall(r'"(\w+)"', " ".join(chosen)))
    assert set(first_cells("### No contact with the server", "outcome | meaning | what to do")) == written


def test_the_link_toml_of_a_provisioned_machine_is_well_formed() -> None:
    part = TEXT.partition("### link.toml after provisioning\n")[2].partition("\n### ")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", part, re.DOTALL)
    config = parse_config(text, "operations.md", {"license-agent": 900}.__getitem__)
    assert set(config.upstreams) == {"server", "enrollment"} and not config.provisioning


def test_every_metric_of_the_server_is_told() -> None:
    metrics = Metrics(lambda: Facts({}, {"tls": 0}), lambda: 0.0)
    metrics.count("challenge", 200, None, 0.1)
    names = re.findall(r"^# TYPE (\w+) ", metrics.text().decode(), re.MULTILINE)
    written = {name for name in names if not name.endswith("_created")}
    told = first_cells("### Setting it up", "metric of the server | meaning")
    assert {re.sub(r"[{`].*", "", name) for name in told} == written


def known(group: Group, words: list[str]) -> bool:
    """Whether a command with these words exists, as far as they are words of the command line."""
    for word in words:
        found = group.get_command(Context(group), word)
        if found is None:
            return False
        if not isinstance(found, Group):
            return True
        group = found
    return True


def test_every_command_of_server_and_cli_that_the_pages_name_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = " ".join(page.read_text("utf-8").replace("\n", " ") for page in pages)
    unknown = []
    for name, group in (("license-server", server), ("license-agent-cli", cli)):
        for match in re.finditer(rf"`(?:\.venv/bin/)?{name}((?: +[\w-]+)*)[^`]*`", text):
            words = [word for word in match[1].split() if not word.startswith("-") and not word.isupper()]
            if words and not known(group, words):
                unknown.append(match[0])
    assert unknown == []
