"""Says in words what does not fit a form: where it is, and what belongs there. Never what was sent. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 3
"""So many misfits of one request are named."""
_MAX_PLACE = 100
_UNNAMED = "it"

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "json_invalid": "is not JSON",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "string_unicode": "is not Unicode text",
}
_LIMITS = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be greater than", "gt"),
    "less_than_equal": ("must be at most", "le"),
    "less_than": ("must be less than", "lt"),
}
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "may have letters, digits and '.', '_', '-', and begins with a letter or digit",
    r"^[a-z0-9][a-z0-9._-]*$": "may have lower case letters, digits and '.', '_', '-', and begins with a letter or digit",
    r"^[a-z0-9._@-]+$": "may have lower case letters, digits and '.', '_', '-', '@'",
    r"^[0-9]*$": "must be a number",
    r"^[0-9a-f]+$": "may have the digits 0-9 and a-f",
    r"^[0-9a-f]{16}$": "must be 16 of the digits 0-9 and a-f",
    r"^[0-9a-f]{64}$": "must be 64 of the digits 0-9 and a-f",
    r"^[a-z2-7]+$": "may have lower case letters and the digits 2 to 7",
    r"^[!-~]+$": "may have printable ASCII characters without spaces",
    r"^[!-~]*$": "may have printable ASCII characters without spaces",
    r"^[ -~]+$": "may have printable ASCII characters",
    r"^[^\x00-\x1f\x7f-\x9f]+$": "may not have control characters",
    r"^[^\x00-\x1f\x7f-\x9f]*$": "may not have control characters",
    r"^https://[!-~]+$": "must begin with https:// and have no spaces",
    r"^wh-[0-9a-f]{12}$": "must be the id of a webhook, such as wh-0123456789ab; 'license-server webhooks list' lists them",
}


def in_words(misfits: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a form, for the person who filled it in.

    Args:
        misfits: pydantic's errors of the form; what was sent, which they have too, is not looked at.
    """
    said = [f"{_place(each)}: {_problem(each)}" for each in misfits[:SHOWN]]
    return "; ".join(said) + (f"; and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else "")


def _place(misfit: Mapping[str, Any]) -> str:
    # The names of members that are not known are the sender's; others are ours.
    place = ".".join(map(str, misfit.get("loc", ())))[:_MAX_PLACE] or _UNNAMED
    return "".join(each if each.isprintable() else "?" for each in place)


def _problem(misfit: Mapping[str, Any]) -> str:
    kind, limits = str(misfit.get("type", "invalid")), misfit.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return f"{words} {limits[name]}"
    if kind == "string_pattern_mismatch":
        pattern = limits["pattern"]
        return _PATTERNS.get(pattern, f"must match the pattern {pattern}")
    if kind in ("string_too_short", "too_short"):
        least = limits["min_length"]
        return "must not be empty" if least == 1 else f"is too short: at least {least}{_unit(kind)}"
    if kind in ("string_too_long", "too_long"):
        return f"is too long: at most {limits['max_length']}{_unit(kind)}"
    if kind in ("enum", "literal_error"):
        return f"must be {limits['expected']}"
    return kind


def _unit(kind: str) -> str:
    return " characters" if kind.startswith("string") else " items"
