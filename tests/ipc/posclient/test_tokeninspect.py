"""What a token says of itself can be read without a key; anything else is named and never an error."""

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.posclient.tokeninspect import inspect


def token(header: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode() + "..a.b.c"


def test_header_agent_and_version_are_read() -> None:
    header = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": "pos-001/3"}
    text = token(header)
    assert inspect(text) == {
        "characters": len(text),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "header": header,
        "agent_id": "pos-001",
        "secret_version": 3,
        "problem": None,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ""),
        ("a.b.c", "parts"),
        ("a b", ""),
        ("\ufffd\ufffd", ""),
        ("!!!!..a.b.c", "first part"),
        ("W10..a.b.c", "first part"),
        (token({}), "kid"),
        (token({"kid": 5}), "kid"),
        (token({"kid": "pos-001/0"}), "kid"),
        (token({"kid": "pos-001/3\n"}), "kid"),
    ],
    ids=ascii,
)
def test_what_cannot_be_read_is_named(text: str, problem: str) -> None:
    found = inspect(text)
    assert found["problem"] and problem in found["problem"]
    assert found["agent_id"] is found["secret_version"] is None


@given(st.text() | st.text("AQIDew0_-.").map(lambda text: text + "....") | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_inspected(text: str) -> None:
    json.dumps(inspect(text))
