"""The guides, the reference and the explanation against the code: state tables, ends of keys, outcomes, accepted files."""

import ast
import re
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import pytest
from click import Context, Group

from agentd.base.config.config import CONTACTS_FAILED
from agentd.rotation import table
from agentd.sync import degraded
from cli.main import main as cli
from contracts.contact.configuration import NAMES
from link.config import parse_config
from server.api.metrics import Facts, JobFacts, Metrics
from server.enrollment.service import LEVELS
from server.fleet.fleets.figures import DAYS, Certificates, Figures
from server.fleet.fleets.figures import Group as Counted
from server.fleet.fleets.rotations import Rotations
from server.fleet.monitoring.views import Figures as FleetFigures
from server.fleet.rollouts.views import Figures as RolloutFigures
from server.keys.lifecycle import DAY, LIFETIMES, OVERLAP_S
from server.licensing.secrets.periods import REVOCATIONS_LAST_S
from server.main import main as server

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("guides", "reference", "explanation")}


def prose(page: str) -> str:
    return " ".join(PAGES[page].split())


def first_cells(page: str, heading: str, columns: str) -> list[str]:
    """The first cells of the table under a heading whose head is `columns`."""
    part = PAGES[page].partition(f"{heading}\n")[2].partition(f"| {columns} |\n")[2]
    table = part.split("\n\n")[0].splitlines()[1:]
    return [line.split("|")[1].strip().strip("`") for line in table if line.startswith("|")]


S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def drawn(transitions: dict[S, dict[E, S]]) -> str:
    """A table of states as the page shows it: from, event, to."""
    rows = [(state.value, event.value, to.value) for state, events in transitions.items() for event, to in events.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}\n" for a, b, c in rows)


def block(name: str) -> str:
    return PAGES["explanation"].partition(f"```text {name}\n")[2].partition("```")[0]


def test_the_rotation_is_drawn_from_its_table() -> None:
    assert block("rotation") == drawn(table.TRANSITIONS)
    assert first_cells("explanation", "## Rotation", "step | the agent") == [step.value for step in table.Step]


def test_degraded_mode_is_drawn_from_its_table() -> None:
    assert block("degraded") == drawn(degraded.TRANSITIONS)
    assert first_cells("explanation", "## Degraded mode", "mode | what people see") == [mode.value for mode in degraded.Mode]
    assert f"last {CONTACTS_FAILED} contacts have failed" in prose("explanation")


def test_every_kind_of_key_is_documented_with_its_time() -> None:
    part = PAGES["guides"].partition("| kind | lasts | replaced | now, ahead of its day |\n")[2].split("\n\n")[0]
    told = dict(re.findall(r"^\| `([\w-]+)` \| (\d+) days \|", part, re.MULTILINE))
    assert {kind: int(days) * DAY for kind, days in told.items()} == LIFETIMES
    assert f"at least {OVERLAP_S // DAY} days" in prose("guides")
    assert f"older than {REVOCATIONS_LAST_S // DAY} days" in prose("guides")


def test_every_level_of_attestation_is_told() -> None:
    assert first_cells("reference", "## Attestation levels", "attestation | meaning") == list(LEVELS)


def test_every_outcome_of_a_contact_is_told() -> None:
    files = (ROOT / "agentd" / "sync" / "cycle.py", ROOT / "agentd" / "admin" / "handlers" / "server_handlers.py")
    code = "".join(file.read_text("utf-8") for file in files)
    written = set(re.findall(r'"server\.contact", "(\w+)"', code))
    chosen = re.findall(r"^ +outcome = (.*)$", code, re.MULTILINE)
    assert chosen
    written |= set(re.findall(r'"(\w+)"', " ".join(chosen)))
    assert set(first_cells("guides", "### No contact with the server", "outcome | meaning | what to do")) == written


def test_the_link_toml_of_a_provisioned_machine_is_well_formed() -> None:
    part = PAGES["guides"].partition("## Restrict the link after provisioning\n")[2].partition("\n## ")[0]
    (text,) = re.findall(r"```toml\n(.*?)```", part, re.DOTALL)
    config = parse_config(text, "guides.md", {"license-agent": 900}.__getitem__)
    assert set(config.upstreams) == {"server", "enrollment"} and not config.provisioning


def test_every_metric_of_the_server_is_told() -> None:
    some = Counted(1, 1, Certificates((0,) * len(DAYS), 1, 1.0))
    jobs, counted = [JobFacts("housekeeping", 0, 0, 0)], Figures(0, some, {"pilot": some})
    others = {"rollouts": RolloutFigures(0, 0, 0, 0), "rotations": Rotations(0, {"pilot": 0}), "fleets": FleetFigures()}
    metrics = Metrics(lambda: Facts({}, {"tls": 0}, jobs=jobs, devices=counted, **others), lambda: 0.0)
    metrics.count("challenge", 200, None, 0.1)
    names = re.findall(r"^# TYPE (\w+) ", metrics.text().decode(), re.MULTILINE)
    written = {name for name in names if not name.endswith("_created")}
    told = first_cells("reference", "## Metrics of the server", "name | type | meaning")
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


RUNBOOKS = re.findall(r"^### (.+)$", PAGES["guides"].partition("\n## Runbooks\n")[2], re.MULTILINE)


def test_the_overview_lists_every_runbook() -> None:
    assert len(RUNBOOKS) == 14
    overview = (ROOT / "docs" / "operations.md").read_text("utf-8")
    recovery = re.findall(r"^### (.+)$", (ROOT / "docs" / "guides" / "recovery.md").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"^- \[(.+)\]\(guides/recovery\.md#", overview, re.MULTILINE) == recovery
    assert re.findall(r"^- \[(.+)\]\(guides\.md#", overview, re.MULTILINE) == RUNBOOKS


@pytest.mark.parametrize("page", [name for name in PAGES if name != "guides"] + ["getting-started"])
def test_a_page_lists_its_sections_at_its_top(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    top, _, rest = text.partition("\n## ")
    assert re.findall(r"^- \[(.+?)\]\(#", top, re.MULTILINE) == re.findall(r"^## (.+)$", f"\n## {rest}", re.MULTILINE)


def test_the_guides_list_all_guides_and_runbooks_at_their_top() -> None:
    top = PAGES["guides"].partition("\n## ")[0]
    heads = [head for head in re.findall(r"^## (.+)$", PAGES["guides"], re.MULTILINE) if head != "Runbooks"]
    anchors = re.findall(r"\]\(#([\w-]+)\)", top)
    assert len(anchors) == len(heads) + len(RUNBOOKS) == len(set(anchors))


def _strings(folder: str) -> set[str]:
    """Every string in the code of a folder."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / folder).rglob("*.py"))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


EVENTS = {name for row in first_cells("reference", "## Audit events", "event | logged when") for name in row.split("`, `")}
NO_EVENTS = {
    "usage.counts",
    "audit.log",
    "audit.repeats",
    "audit.archive_key",
    "agent.json",
    "config.toml",
    "agent.id",
    "admin.sock",
    "licenses.json",
}
NO_EVENTS |= set(NAMES)  # keys of the configuration
NO_EVENTS |= {
    "ota.json",
    "webhook.json",
    "backup.json",
    "webhook.test",
    "usage.counts",
    "state.json",
    "server.pem",
    "server.key",
    "rotation.json",
    "secret.enc",
    "tpm.objects",
}


def test_every_audit_event_is_in_the_table_and_no_other_is() -> None:
    strings = _strings("agentd") | _strings("audittrail")
    subjects = {name.partition(".")[0] for name in EVENTS}
    used = {text for text in strings if re.fullmatch(rf"({'|'.join(subjects)})\.[a-z_]+", text)} - NO_EVENTS
    assert used <= EVENTS
    # An alert that can be cleared is named without its subject where it is raised.
    assert {name for name in EVENTS - used if name.removeprefix("alert.") not in strings} == set()


def test_every_alert_is_explained() -> None:
    alerts = {event for event in EVENTS if event.startswith("alert.")}
    explained = set(re.findall(r"`(alert\.\w+)`", PAGES["reference"].partition("\n## Alerts\n")[2].partition("\n## ")[0]))
    assert alerts == explained
