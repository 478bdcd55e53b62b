"""The published tokens are opened, or refused for the published reason and at the published place."""

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.jose import BadSignature, MalformedToken
from contracts.licensetoken import WrongAudience, open_token, parse_token
from contracts.trust import parse_trust

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "license_token.json").read_text("utf-8"))
SECRET = bytes.fromhex(VECTORS["secret_hex"])
TRUST = parse_trust(json.dumps(VECTORS["trust"]).encode())
ERRORS = {error.__name__: error for error in (MalformedToken, BadSignature, WrongAudience)}


@pytest.mark.parametrize("vector", VECTORS["accepted"], ids=lambda vector: vector["name"])
def test_an_accepted_token_has_its_claims(vector: dict[str, Any]) -> None:
    sealed = parse_token(vector["token"])
    assert (sealed.agent_id, sealed.version) == (VECTORS["agent_id"], VECTORS["secret_version"])
    assert open_token(sealed, SECRET, TRUST).as_json() == vector["claims"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
def test_a_refused_token_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    expected = ERRORS[vector["error"]]
    if vector["refused_by"] == "parse_token":
        # Before any key is used: the form alone shows it.
        with pytest.raises(expected) as caught:
            parse_token(vector["token"])
    else:
        sealed = parse_token(vector["token"])
        with pytest.raises(expected) as caught:
            open_token(sealed, SECRET, TRUST)
    assert type(caught.value) is expected


def test_each_kind_of_refusal_is_there() -> None:
    assert {vector["error"] for vector in VECTORS["refused"]} == ERRORS.keys()
    by_form = {vector["name"] for vector in VECTORS["refused"] if vector["refused_by"] == "parse_token"}
    assert {"outer_alg_none", "outer_enc", "outer_zip", "outer_crit", "oversized"} <= by_form


def test_the_script_makes_these_tokens() -> None:
    from tests.vectors.make_vectors import files

    assert json.loads(json.dumps(files()["license_token.json"])) == VECTORS
