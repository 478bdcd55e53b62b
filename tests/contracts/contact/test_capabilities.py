"""The server's list of capabilities: its signature, its form, its bounds."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.contact.capabilities import (
    CAPABILITIES_TYPE,
    MAX_CAPABILITIES,
    MAX_CAPABILITIES_CHARS,
    AnnounceCapabilities,
    Capabilities,
    verify_capabilities,
)
from contracts.exchange import REPLY_TYPE
from contracts.jose import BadSignature, MalformedToken, b64encode, thumbprint
from contracts.trust import encode_trust, parse_trust

ROTATION, LICENSE = (ECKey.generate_key("P-256", private=True) for _ in range(2))


def _named(key: ECKey) -> dict[str, str]:
    full: dict[str, Any] = key.as_dict(private=False)
    jwk = {name: str(full[name]) for name in ("kty", "crv", "x", "y")}
    return jwk | {"kid": thumbprint(jwk)}


TRUST = parse_trust(encode_trust("acme", [_named(LICENSE)], [_named(ROTATION)]))
CONTENT: dict[str, Any] = {"v": 1, "issued_at": 10, "capabilities": ["announce-capabilities", "what-nobody-knows-yet"]}


def _signed(content: Any, key: ECKey = ROTATION, **header: Any) -> str:
    protected = {"alg": "ES256", "typ": CAPABILITIES_TYPE, "kid": _named(key)["kid"], **header}
    text: str = jws.serialize_compact(protected, json.dumps(content).encode(), key, algorithms=["ES256"])
    return text


def test_a_list_of_the_server_is_read() -> None:
    found = verify_capabilities(_signed(CONTENT), TRUST)
    assert found.capabilities == ("announce-capabilities", "what-nobody-knows-yet") and found.issued_at == 10
    assert verify_capabilities(_signed({**CONTENT, "capabilities": []}), TRUST).capabilities == ()


def test_only_a_rotation_key_signs_it() -> None:
    with pytest.raises(BadSignature):
        verify_capabilities(_signed(CONTENT, LICENSE), TRUST)
    with pytest.raises(BadSignature):
        verify_capabilities(_signed(CONTENT, LICENSE, kid=_named(ROTATION)["kid"]), TRUST)
    head, _payload, signature = _signed(CONTENT).split(".")
    other = b64encode(json.dumps({**CONTENT, "capabilities": ["more"]}).encode())
    with pytest.raises(BadSignature):
        verify_capabilities(f"{head}.{other}.{signature}", TRUST)


@pytest.mark.parametrize("header", [{"typ": REPLY_TYPE}, {"typ": "JWT"}, {"extra": 1}, {"kid": "x" * 600}, {"kid": 5}])
def test_another_header_is_refused(header: dict[str, Any]) -> None:
    text = _signed(CONTENT)
    protected = {"alg": "ES256", "typ": CAPABILITIES_TYPE, "kid": _named(ROTATION)["kid"], **header}
    head = b64encode(json.dumps(protected).encode())
    with pytest.raises((MalformedToken, BadSignature)):
        verify_capabilities(".".join((head, *text.split(".")[1:])), TRUST)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"issued_at": -1},
        {"issued_at": 1.5},
        {"capabilities": None},
        {"capabilities": "announce-capabilities"},
        {"capabilities": ["twice", "twice"]},
        {"capabilities": [f"n{number}" for number in range(MAX_CAPABILITIES + 1)]},
        {"capabilities": [""]},
        {"capabilities": ["Upper"]},
        {"capabilities": ["1st"]},
        {"capabilities": ["line\n"]},
        {"capabilities": ["a" * 65]},
        {"capabilities": [["nested"]]},
        {"more": 1},
    ],
)
def test_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        verify_capabilities(_signed({**CONTENT, **change}), TRUST)


def test_the_largest_list_fits_and_a_longer_text_is_refused() -> None:
    largest = [f"{number:02d}".replace("0", "a").replace("1", "b") + "x" * 62 for number in range(MAX_CAPABILITIES)]
    names = [f"n{name}"[:64] for name in largest]
    text = _signed({**CONTENT, "capabilities": names})
    assert len(text) <= MAX_CAPABILITIES_CHARS and len(verify_capabilities(text, TRUST).capabilities) == MAX_CAPABILITIES
    for wrong in (text + "A" * MAX_CAPABILITIES_CHARS, "", "a.b", "a.b.c.d", "ä.b.c"):
        with pytest.raises(MalformedToken):
            verify_capabilities(wrong, TRUST)


@given(st.text(max_size=200) | st.binary(max_size=200).map(b64encode))
def test_what_is_no_list_is_a_typed_error(text: str) -> None:
    for each in (text, f"{text}.{text}.{text}", f"{_HEAD}.{text}.{text}"):
        with pytest.raises((MalformedToken, BadSignature)):
            verify_capabilities(each, TRUST)


_HEAD = _signed(CONTENT).split(".")[0]


def test_forms_are_encoded_in_the_order_in_which_they_are_declared() -> None:
    assert (
        msgspec.json.encode(Capabilities(issued_at=10, capabilities=("a",))) == b'{"v":1,"issued_at":10,"capabilities":["a"]}'
    )
    request = AnnounceCapabilities(
        agent_id="pos-1", request_id="0" * 32, challenge="c" * 16, timestamp=1, capabilities=("a", "b")
    )
    assert json.loads(msgspec.json.encode(request))["purpose"] == "announce-capabilities"
