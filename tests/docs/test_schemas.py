"""The JSON Schemas of the CLI's output: every command has one, they are what the code declares, and none breaks a program."""

import copy
import re
from pathlib import Path

import jsonschema_rs
import pytest

from cli.main import main
from cli.outputs import OUTPUTS
from scripts import output_schemas
from tests.integration.test_terminal import _click_commands
from tests.sessions.everycommand import ELSEWHERE
from tests.support.outputs import problems, validator

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = output_schemas.schemas()


def test_every_command_has_a_schema() -> None:
    commands = {path.removeprefix("license-agent-cli ") for path in _click_commands(main, "license-agent-cli")}
    assert {command.partition(" --")[0] for command in OUTPUTS} == commands, "declare its output in cli/outputs/"


def test_what_is_published_is_what_the_code_declares() -> None:
    published = {path.stem: path.read_text("utf-8") for path in output_schemas.PLACE.glob("*")}
    assert published == {name: output_schemas.text_of(schema) for name, schema in SCHEMAS.items()}, "run scripts/schemas"


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one_of_2020_12_and_takes_members_that_come_later(name: str) -> None:
    schema = SCHEMAS[name]
    jsonschema_rs.meta.validate(schema)
    assert (schema["$schema"], schema["$id"]) == (output_schemas.DIALECT, f"urn:license-agent:schema:cli:{name}:1")
    for part in (schema, *schema.get("$defs", {}).values()):
        assert part["type"] == "object" and part["description"].endswith((".", ":"))
        assert "additionalProperties" not in part and not any("enum" in member for member in part["properties"].values())
    assert re.fullmatch(r"[a-z][a-z-]*", name)


def test_the_comparison_finds_what_is_missing_wrong_and_not_named() -> None:
    health = {"verdict": "fine", "findings": []}
    assert problems("healthcheck", health) == []
    # What `status` prints of an agent that nobody hears.
    assert problems("status", {"health": health}) == []
    for wrong in ({"findings": []}, {**health, "verdict": 1}, {**health, "findings": [{}]}, {**health, "later": 1}, [health]):
        assert problems("healthcheck", wrong), wrong
    assert validator("health", strict=False).is_valid({**health, "later": 1})
    record = {"seq": 1, "class": "ota", "time": "", "mono": 1.5, "event": "", "outcome": "", "prev": "0" * 64, "hash": "a" * 64}
    assert problems("audit tail", {**record, "license": "x"}) == []
    assert problems("audit tail", {**record, "hash": "A"}) and problems("audit tail", {**record, "seq": 0})


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_would_break_programs_is_refused(name: str) -> None:
    schema = SCHEMAS[name]
    assert output_schemas.broken(schema, schema) == []
    later = copy.deepcopy(schema)
    member = next(iter(schema["properties"]))
    later["properties"]["later"] = {"type": "string"}
    later["properties"][member]["description"] = "other words"
    assert output_schemas.broken(schema, later) == []
    gone, retyped, optional = (copy.deepcopy(schema) for _ in range(3))
    del gone["properties"][member]
    retyped["properties"][member] = {"type": "null"}
    optional["required"] = []
    assert output_schemas.broken(schema, gone) == [f"/{member}: is gone"]
    assert output_schemas.broken(schema, retyped) == [f"/{member}: has another type"]
    assert len(output_schemas.broken(schema, optional)) == len(schema.get("required", ()))
    for part in schema.get("$defs", {}):
        assert f"{part}: is gone" in output_schemas.broken(schema, {**schema, "$defs": {}})


def test_the_commands_that_do_not_run_on_the_stand_are_compared_elsewhere() -> None:
    for command, file in ELSEWHERE.items():
        text = (ROOT / file).read_text("utf-8")
        assert re.search(rf'(?:assert_fits|structured)\((?:\w+, )?"{command}"', text), (command, file)


def test_the_package_ships_the_directory() -> None:
    rules = (ROOT / "packaging" / "debian" / "rules").read_text("utf-8")
    assert "docs/reference/schemas/*.json $(AGENT)/usr/share/license-agent/schemas/" in rules
