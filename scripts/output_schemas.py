"""Makes the JSON Schemas of what `license-agent-cli` prints with --json, from the structs in cli/outputs/.

The words are those of the structs' docstrings: the first part describes the object, each line of `Attributes:` a member.
"""

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cli.outputs import OUTPUTS, Output

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "docs" / "reference" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = 1
"""Of all schemas. Another one would be another set of files beside these."""

Schema = dict[str, Any]


def identifier(name: str) -> str:
    """The `$id` of a schema; it never changes."""
    return f"urn:license-agent:schema:cli:{name}:{VERSION}"


def schemas() -> dict[str, Schema]:
    """All schemas by name."""
    return {output.schema: _schema(output) for output in OUTPUTS.values()}


def _schema(output: Output) -> Schema:
    parts: dict[str, Schema] = msgspec.json.schema(output.form)["$defs"]
    for name, part in parts.items():
        _worded(part, FORMS[name])
    whole = parts.pop(output.form.__name__)
    used = [command for command, each in OUTPUTS.items() if each.schema == output.schema]
    each = "each line of " if output.lines else ""
    printed = ", ".join(f"`license-agent-cli --json {command}`" for command in used)
    return {
        "$schema": DIALECT,
        "$id": identifier(output.schema),
        "title": output.schema,
        "$comment": f"What {each}{printed} prints. Members may be added; none is renamed, removed or retyped.",
        **{key: value for key, value in whole.items() if key != "title"},
        **({"$defs": dict(sorted(parts.items()))} if parts else {}),
    }


def _forms(form: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for below in form.__subclasses__():
        yield below
        yield from _forms(below)


FORMS = {form.__name__: form for form in _forms(msgspec.Struct) if form.__module__.startswith("cli.outputs.")}
"""All structs of cli/outputs/."""


def _worded(part: Schema, form: type[msgspec.Struct]) -> None:
    """Puts the words of a struct's docstring, and of those that it extends, where they belong."""
    encoded = dict(zip(form.__struct_fields__, form.__struct_encode_fields__, strict=True))
    for each in reversed([each for each in form.__mro__ if each.__module__ == form.__module__ or each.__name__ in FORMS]):
        text, _, attributes = inspect.cleandoc(each.__doc__ or "").partition("\n\nAttributes:\n")
        part["description"] = text
        for name, words in re.findall(r"^    (\w+): ((?:.|\n        )*)$", attributes, re.MULTILINE):
            if name not in encoded:
                raise ValueError(f"{part['title']}: the docstring names {name}, which is no member")
            part["properties"][encoded[name]]["description"] = re.sub(r"\s+", " ", words)
    missing = [name for name, member in part["properties"].items() if "description" not in member]
    if missing:
        raise ValueError(f"{part['title']}: the docstring says nothing of {', '.join(missing)}")


def broken(before: Schema, after: Schema) -> list[str]:
    """What a program that relies on a published schema would miss in its successor: members and guarantees that are gone."""
    old, new = ({"": schema, **schema.get("$defs", {})} for schema in (before, after))
    found = [f"{part}: is gone" for part in old if part not in new]
    for part in old.keys() & new.keys():
        was, now = old[part], new[part]
        for name, member in was.get("properties", {}).items():
            if name not in now.get("properties", {}):
                found.append(f"{part}/{name}: is gone")
            elif _type(member) != _type(now["properties"][name]):
                found.append(f"{part}/{name}: has another type")
        lost = set(was.get("required", ())) - set(now.get("required", ()))
        found += [f"{part}/{name}: may be missing now" for name in lost if name in now.get("properties", {})]
    return sorted(found)


def _type(member: Schema) -> Schema:
    return {key: value for key, value in member.items() if key != "description"}


def text_of(schema: Schema) -> str:
    """As the file has it."""
    return json.dumps(schema, indent=2) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/schemas", description="Rewrite the JSON Schemas of the CLI's output.")
    parser.add_argument("--check", action="store_true", help="Change nothing; exit with 1 if a schema is out of date.")
    options = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    wanted = {PLACE / f"{name}.json": text_of(schema) for name, schema in schemas().items()}
    there = {path: path.read_text("utf-8") for path in PLACE.glob("*.json")}
    old = sorted(path for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
    for path in old:
        name = path.relative_to(ROOT)
        breaks = broken(json.loads(there[path]), json.loads(wanted[path])) if path in wanted and path in there else []
        if breaks:
            print(f"{name}: programs rely on it: {'; '.join(breaks)}. Add members beside these, or a schema with another name.")
            return 1
        if options.check:
            print(f"{name}: out of date; run scripts/schemas")
        elif path in wanted:
            path.write_text(wanted[path], "utf-8")
            print(f"{name}: rewritten")
        else:
            # A published schema goes away only on purpose.
            print(f"{name}: no command has it; remove the file if that is meant")
    return int(bool(old) and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
