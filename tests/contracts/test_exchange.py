"""Requests and replies: made here, opened with joserfc, and the other way round; what was altered is refused."""

import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.exchange import (
    REPLY_TYPE,
    REQUEST_TYPE,
    AnyReply,
    AnyRequest,
    Cause,
    ConfirmReply,
    ConfirmRotation,
    Refusal,
    RefusalCode,
    Refused,
    RotateReply,
    RotateSecret,
    StatusReply,
    convert,
    purpose_of,
    request_input,
    verify_reply,
    with_signature,
)
from contracts.jose import BadSignature, MalformedToken, thumbprint
from contracts.licensetoken import WrongAudience
from contracts.trust import Trust, encode_trust, parse_trust

SERVER = ECKey.generate_key("P-256", private=True)
OTHER = ECKey.generate_key("P-256", private=True)
ID = "0123456789abcdef" * 2


def _public(key: ECKey) -> dict[str, str]:
    jwk: dict[str, Any] = key.as_dict(private=False)
    public = {name: str(jwk[name]) for name in ("kty", "crv", "x", "y")}
    return public | {"kid": thumbprint(public)}


def _trust() -> Trust:
    return parse_trust(encode_trust("issuer", [_public(SERVER)], [_public(SERVER)]))


def _reply(content: dict[str, Any], key: ECKey = SERVER, **header: Any) -> str:
    protected = {"alg": "ES256", "typ": REPLY_TYPE, "kid": _public(SERVER)["kid"], **header}
    text: str = jws.serialize_compact(protected, json.dumps(content).encode(), key, algorithms=["ES256"])
    return text


CONFIRMED = {"v": 1, "kind": "confirm-reply", "agent_id": "till-1", "request_id": ID, "issued_at": 5, "secret_version": 3}


def _request() -> RotateSecret:
    return RotateSecret(
        agent_id="till-1",
        request_id=ID,
        challenge="c" * 32,
        timestamp=1_800_000_000,
        current_secret_version=3,
        key_check="A" * 22,
        highest_version=3,
        serial=7,
        cause=Cause.DUE,
    )


def test_a_request_signed_here_is_opened_by_joserfc_and_carries_what_la_06_names() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    signed = request_input(_request())
    r, s = decode_dss_signature(private.sign(signed, ec.ECDSA(hashes.SHA256())))
    text = with_signature(signed, r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    opened = jws.deserialize_compact(text, ECKey.import_key(private.public_key()), algorithms=["ES256"])
    assert opened.headers() == {"alg": "ES256", "typ": REQUEST_TYPE, "kid": "till-1"}
    content = json.loads(opened.payload)
    assert content["purpose"] == "rotate-secret"
    assert {"current_secret_version", "agent_id", "timestamp"} <= content.keys()
    assert convert(content, AnyRequest, "request") == _request()


def test_each_request_and_reply_has_a_name_of_its_own() -> None:
    purposes = [purpose_of(kind) for kind in AnyRequest.__args__]
    assert purposes == [
        "rotate-secret",
        "confirm-rotation",
        "secret-status",
        "reissue-licenses",
        "validate-license",
        "revocation-list",
        "renew-certificate",
    ]
    kinds = [str(kind.__struct_config__.tag) for kind in AnyReply.__args__]
    assert len(set(kinds)) == len(kinds)


def test_a_reply_minted_by_joserfc_is_taken() -> None:
    reply = verify_reply(_reply(CONFIRMED), ConfirmReply, "till-1", ID, _trust())
    assert (reply.secret_version, reply.issued_at) == (3, 5)


def test_a_refusal_by_the_server_is_told_apart_from_a_broken_reply() -> None:
    content = {**CONFIRMED, "kind": "refusal", "code": "agent_revoked", "text": "gone", "retry_after_s": None}
    del content["secret_version"]
    with pytest.raises(Refused, match="gone") as caught:
        verify_reply(_reply(content), ConfirmReply, "till-1", ID, _trust())
    assert caught.value.refusal.code is RefusalCode.AGENT_REVOKED


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"agent_id": "till-2"}, WrongAudience),
        ({"request_id": "f" * 32}, MalformedToken),
        ({"v": 2}, MalformedToken),
        ({"v": 0}, MalformedToken),
        ({"kind": "rotate-reply", "delivery": "x"}, MalformedToken),
        ({"kind": "status-reply"}, MalformedToken),
        ({"extra": 1}, MalformedToken),
        ({"secret_version": "3"}, MalformedToken),
        ({"secret_version": 2**32}, MalformedToken),
        ({"issued_at": -1}, MalformedToken),
        ({"issued_at": 10**15}, MalformedToken),
    ],
)
def test_a_reply_that_is_not_the_answer_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        verify_reply(_reply({**CONFIRMED, **change}), ConfirmReply, "till-1", ID, _trust())


@pytest.mark.parametrize("header", [{"typ": "secret-delivery+jwt"}, {"typ": REQUEST_TYPE}, {"kid": "another"}, {"cty": "x"}])
def test_another_kind_of_statement_or_key_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises((MalformedToken, BadSignature)):
        verify_reply(_reply(CONFIRMED, **header), ConfirmReply, "till-1", ID, _trust())


def test_a_reply_signed_by_another_key_is_refused() -> None:
    with pytest.raises(BadSignature):
        verify_reply(_reply(CONFIRMED, OTHER), ConfirmReply, "till-1", ID, _trust())


@given(st.data())
def test_no_character_of_a_reply_can_be_changed(data: st.DataObject) -> None:
    text = _REPLY
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABab01-_.=").filter(lambda sign: sign != text[place]))
    with pytest.raises((MalformedToken, BadSignature, WrongAudience)):
        verify_reply(text[:place] + other + text[place + 1 :], ConfirmReply, "till-1", ID, _trust())


_REPLY = _reply(CONFIRMED)


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c.d", "é.b.c", "x" * 2_000_000, "e30.e30.e30"])
def test_garbage_is_malformed(text: str) -> None:
    with pytest.raises(MalformedToken):
        verify_reply(text, RotateReply, "till-1", ID, _trust())


def test_every_reply_survives_its_own_encoding() -> None:
    for reply in (
        StatusReply(
            agent_id="a",
            request_id=ID,
            issued_at=1,
            secret_version=0,
            rotate_now=True,
            revocations=0,
            key_set=1,
            next_contact_s=60,
        ),
        Refusal(agent_id="a", request_id=ID, issued_at=1, code=RefusalCode.TOO_MANY_VERSIONS, text="later", retry_after_s=60),
        ConfirmReply(agent_id="a", request_id=ID, issued_at=1, secret_version=4),
    ):
        assert convert(json.loads(msgspec.json.encode(reply)), AnyReply, "reply") == reply


def test_a_confirmation_names_the_secret_without_telling_it() -> None:
    with pytest.raises(MalformedToken):
        convert({**json.loads(msgspec.json.encode(_request())), "purpose": "confirm-rotation"}, ConfirmRotation, "request")
