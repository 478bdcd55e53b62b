"""Compares what a command printed with --json with its published schema, and finds members that the schema does not name."""

import json
from functools import cache
from typing import Any

import jsonschema_rs

from cli.outputs import OUTPUTS
from scripts.output_schemas import PLACE

OPEN = frozenset({"audit-record"})
"""Schemas of documents that have members of their own: what an event adds."""


@cache
def validator(name: str, strict: bool = True) -> jsonschema_rs.Draft202012Validator:
    """A validator of a schema as it is published; a strict one refuses members that the schema does not name."""
    schema = json.loads((PLACE / f"{name}.json").read_text("utf-8"))
    if strict and name not in OPEN:
        for part in (schema, *schema.get("$defs", {}).values()):
            part["additionalProperties"] = False
    return jsonschema_rs.Draft202012Validator(schema)


def problems(command: str, document: Any) -> list[str]:
    """What of a document does not fit the schema of a command."""
    found = validator(OUTPUTS[command].schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in found]


def assert_fits(command: str, document: Any) -> None:
    """Asserts that there is nothing of that kind."""
    assert problems(command, document) == [], f"license-agent-cli {command}: correct cli/outputs/, then run scripts/schemas"
