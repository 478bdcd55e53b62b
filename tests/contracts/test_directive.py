"""Directives, held against published vectors that were made without the project's code."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from contracts.directive import MAX_DIRECTIVE_CHARS, Directive, directive_input, verify_directive
from contracts.exchange import convert, with_signature
from contracts.jose import BadSignature, MalformedToken
from contracts.trust import parse_trust
from tests.vectors import make_directive

FILE = Path(__file__).parents[1] / "vectors" / "directive.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
TRUST = parse_trust(json.dumps(VECTORS["trust"]).encode())
ERRORS = {error.__name__: error for error in (MalformedToken, BadSignature)}
KID = VECTORS["trust"]["delivery_keys"][0]["kid"]


def test_the_script_makes_these_directives() -> None:
    assert json.loads(json.dumps(make_directive.vectors())) == VECTORS


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["name"])
def test_an_accepted_directive_has_its_content_and_is_said_in_the_same_bytes(vector: dict[str, Any]) -> None:
    found = verify_directive(vector["directive"], TRUST)
    assert json.loads(msgspec.json.encode(found)) == vector["content"]
    assert directive_input(found, KID).decode() == vector["directive"].rpartition(".")[0]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_a_refused_directive_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(ERRORS[vector["error"]]) as caught:
        verify_directive(vector["directive"], TRUST)
    assert type(caught.value) is ERRORS[vector["error"]]


def test_the_greatest_directive_has_room() -> None:
    assert max(len(vector["directive"]) for vector in VECTORS["accepted"]) <= MAX_DIRECTIVE_CHARS


def test_what_the_server_signs_is_verified() -> None:
    directive = verify_directive(VECTORS["accepted"][0]["directive"], TRUST)
    signed = directive_input(directive, KID)
    r, s = decode_dss_signature(make_directive.ROTATION.sign(signed, ec.ECDSA(hashes.SHA256())))
    assert verify_directive(with_signature(signed, r.to_bytes(32, "big") + s.to_bytes(32, "big")), TRUST) == directive


def test_every_changed_character_is_noticed() -> None:
    text: str = VECTORS["accepted"][0]["directive"]
    for place in range(len(text)):
        other = "A" if text[place] != "A" else "B"
        with pytest.raises((MalformedToken, BadSignature)):
            verify_directive(text[:place] + other + text[place + 1 :], TRUST)


@pytest.mark.parametrize("name", list(make_directive.CONTENT))
def test_each_member_must_be_there(name: str) -> None:
    content = {key: value for key, value in make_directive.CONTENT.items() if key != name}
    if name == "v":
        # The form's version has a default, so that code need not repeat it.
        assert convert(content, Directive, "directive").v == 1
        return
    with pytest.raises(MalformedToken, match=f"'{name}' is missing"):
        convert(content, Directive, "directive")


def test_an_error_says_where() -> None:
    with pytest.raises(MalformedToken, match="malformed directive: not_after must be later than not_before"):
        convert({**make_directive.CONTENT, "not_after": 5}, Directive, "directive")
