"""Says in plain words what the exceptions of libraries say in theirs. Performs no IO.

What a library writes names its own functions, options and notation (`$.claim`, `strict_map_key=True`); a user who reads it has
neither called those functions nor seen their code.
"""

import json
import re

_NAMES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "bytes": "bytes",
    "array": "a list",
    "object": "a map",
    "null": "nothing",
}
_UNITS = {"str": "characters", "bytes": "bytes", "array": "entries", "object": "entries"}
_PLACE = re.compile(r" - at `(?P<place>[^`]*)`$")
_LENGTH = re.compile(r"Expected `(?P<kind>\w+)` of length (?P<bound><=|>=|==) (?P<number>\d+)$")
_RANGE = re.compile(r"Expected `(?:int|float)` (?P<bound><=|>=|<|>|==) (?P<number>-?[\d.]+)$")
_PATTERN = re.compile(r"Expected `str` matching regex ")
_TYPE = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<found>[^`]+)`$")
_FIELD = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>[^`]*)`$")
_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.+)$")
_BOUNDS = {"<=": "at most", ">=": "at least", "==": "exactly", "<": "less than", ">": "more than"}


def _place(text: str) -> str:
    """`$.pcrs[...]` as "'pcrs'"; the whole message as "the message"."""
    name = text.removeprefix("$").removeprefix(".").replace("[...]", "")
    return f"'{name}'" if name else "the message"


def _kinds(text: str) -> str:
    return " or ".join(_NAMES.get(name.strip(), name.strip()) for name in text.split("|"))


def msgspec_text(text: str) -> str:
    """What msgspec says of a message that does not have its form. A text of another origin is returned unchanged.

    Args:
        text: of a `msgspec.MsgspecError`.
    """
    found = _PLACE.search(text)
    where = _place(found["place"]) if found else "the message"
    what = text[: found.start()] if found else text
    if match := _LENGTH.match(what):
        unit = _UNITS.get(match["kind"], "entries")
        return f"{where} must have {_BOUNDS[match['bound']]} {match['number']} {unit}"
    if match := _RANGE.match(what):
        return f"{where} must be {_BOUNDS[match['bound']]} {match['number']}"
    if _PATTERN.match(what):
        return f"{where} is a text of another form than it must have"
    if match := _TYPE.match(what):
        return f"{where} must be {_kinds(match['wanted'])}, not {_kinds(match['found'])}"
    if match := _FIELD.match(what):
        inside = f" in {where}" if found else ""
        if match["what"] == "contains unknown":
            return f"unknown field '{match['name']}'{inside}"
        return f"the field '{match['name']}' is missing{inside}"
    if match := _VALUE.match(what):
        return f"{where} has a value that is not allowed: {match['value']}"
    if found:
        return f"{where}: {what}"
    return what


def json_text(error: Exception) -> str:
    """What is wrong with a text that should be JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno} is not JSON"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error)
    if text.startswith(("JSON is malformed", "Input data was truncated")):
        return "it is not JSON"
    return "a number in it is too long" if text.startswith("Exceeds the limit") else msgspec_text(text)
