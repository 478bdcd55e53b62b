"""What does not fit a form is said in words, never with what was sent."""

import json
from enum import Enum
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from server.acts.act import AgentId, Form, VendorId
from server.acts.catalog import ACTS
from server.acts.misfits import _PATTERNS, SHOWN, in_words


class Color(Enum):
    RED = "red"


class Example(Form):
    name: VendorId = "x"
    agent: AgentId = "x"
    text: Annotated[str, Field(min_length=4, max_length=6)] = "xxxx"
    number: Annotated[int, Field(ge=2, le=5)] = 2
    between: Annotated[int, Field(gt=2, lt=5)] = 3
    flag: bool = False
    items: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)] = (1,)
    color: Color = Color.RED
    word: Literal["a", "b"] = "a"
    odd: Annotated[str, Field(pattern="^o+$")] = "o"
    members: dict[str, str] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"name": "SECRET word"}, "name: may have letters, digits and '.', '_', '-', and begins with a letter or digit"),
        ({"name": ""}, "name: must not be empty"),
        ({"agent": "SECRET word"}, "agent: may have printable ASCII characters without spaces"),
        ({"text": "SEC"}, "text: is too short: at least 4 characters"),
        ({"text": "SECRETS"}, "text: is too long: at most 6 characters"),
        ({"text": 5}, "text: must be a text"),
        ({"number": 6}, "number: must be at most 5"),
        ({"number": 1}, "number: must be at least 2"),
        ({"number": "SECRET"}, "number: must be a whole number"),
        ({"between": 5}, "between: must be less than 5"),
        ({"between": 2}, "between: must be greater than 2"),
        ({"flag": "SECRET"}, "flag: must be true or false"),
        ({"items": []}, "items: must not be empty"),
        ({"items": [1, 2, 3]}, "items: is too long: at most 2 items"),
        ({"items": [1, "SECRET"]}, "items.1: must be a whole number"),
        ({"items": "SECRET"}, "items: must be a list"),
        ({"color": "SECRET"}, "color: must be 'red'"),
        ({"word": "SECRET"}, "word: must be 'a' or 'b'"),
        ({"odd": "SECRET"}, "odd: must match the pattern ^o+$"),
        ({"members": "SECRET"}, "members: must be an object"),
        ({"nam\x1b": "SECRET"}, "nam?: is not known here"),
        ({"number": 6, "text": "SEC"}, "text: is too short: at least 4 characters; number: must be at most 5"),
    ],
)
def test_each_misfit_has_its_words(sent: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Example).validate_json(json.dumps(sent))
    assert in_words(caught.value.errors()) == said and "SEC" not in said


def test_of_many_misfits_the_first_are_named_and_the_others_counted() -> None:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate(dict.fromkeys("abcdefgh", 1))
    said = in_words(caught.value.errors())
    assert said.count("is not known here") == SHOWN and said.endswith("; and 5 more")


def test_a_kind_without_words_is_named() -> None:
    assert in_words([{"type": "odd_kind", "loc": ()}]) == "it: odd_kind"


def test_what_people_type_at_a_command_has_words_for_its_pattern() -> None:
    """An id or a URL is refused in words; patterns of texts that programs pass on may stay patterns."""
    wanted = ("agent_id", "name", "customer", "site", "product", "policy", "webhook_id", "url", "fingerprint", "token_id")
    for act in ACTS:
        for member, field in act.body.model_fields.items():
            if member not in wanted:
                continue
            parts = get_args(field.annotation)
            metadata = [*field.metadata, *(each for part in parts for each in getattr(part, "metadata", ()))]
            patterns = {pattern for each in metadata if (pattern := getattr(each, "pattern", None)) is not None}
            assert patterns <= set(_PATTERNS), (act.name, member)
