"""The server's time is taken for one agent and one challenge only, and only from the server."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.claims import MAX_TIME
from contracts.jose import BadSignature, MalformedToken, thumbprint
from contracts.licensetoken import WrongAudience
from contracts.servertime import CHALLENGE, TIME_TYPE, verify_server_time
from server.keys.jose import issue_server_time, new_signing_key
from tests.contracts.world import AGENT, DELIVERY_KEY, TRUST, delivery

ASKED = "0123456789abcdef" * 2
NOW = 1_800_000_000


def signed(payload: Any, **header: Any) -> str:
    whole = {"alg": "ES256", "typ": TIME_TYPE, "kid": thumbprint(DELIVERY_KEY), **header}
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    return jws.serialize_compact(whole, json.dumps(payload).encode(), ECKey.import_key({**DELIVERY_KEY}), registry=registry)


def content(**changes: Any) -> dict[str, Any]:
    return {"agent_id": AGENT, "challenge": ASKED, "time": NOW, **changes}


def test_what_the_server_signs_is_taken() -> None:
    assert CHALLENGE.fullmatch(ASKED)
    assert verify_server_time(issue_server_time(AGENT, ASKED, NOW, DELIVERY_KEY), AGENT, ASKED, TRUST) == NOW
    assert verify_server_time(signed(content()), AGENT, ASKED, TRUST) == NOW


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (issue_server_time("pos-other", ASKED, NOW, DELIVERY_KEY), WrongAudience),
        (issue_server_time(AGENT, "f" * 32, NOW, DELIVERY_KEY), MalformedToken),
        (issue_server_time(AGENT, ASKED, NOW, new_signing_key()), BadSignature),
        (issue_server_time(AGENT, ASKED, NOW, DELIVERY_KEY)[:-4] + "AAAA", BadSignature),
        (delivery(), MalformedToken),
        (signed(content(), typ="secret-delivery+jwt"), MalformedToken),
        (signed(content(), jku="https://x"), MalformedToken),
        (signed(content(time=0)), MalformedToken),
        (signed(content(time=MAX_TIME + 1)), MalformedToken),
        (signed(content(time=True)), MalformedToken),
        (signed(content(time="1800000000")), MalformedToken),
        (signed(content(more=1)), MalformedToken),
        (signed({"agent_id": AGENT, "time": NOW}), MalformedToken),
        (signed([]), MalformedToken),
        ("a.b.c.d", MalformedToken),
        ("é.b.c", MalformedToken),
        ("x" * 20_000, MalformedToken),
    ],
    ids=range(17),
)
def test_anything_else_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        verify_server_time(text, AGENT, ASKED, TRUST)


@given(st.text(max_size=200))
def test_any_text_is_refused_with_a_typed_error(text: str) -> None:
    with pytest.raises((MalformedToken, BadSignature, WrongAudience)):
        verify_server_time(text, AGENT, ASKED, TRUST)
