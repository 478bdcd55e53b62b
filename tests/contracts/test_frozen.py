"""What release 0.1.0 said is read as it was meant, and said today in the same bytes."""

import json
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.delivery import decrypt_secret, verify_delivery
from contracts.enrollment.enrollment import COMPLETE_TYPE, NOBODY, Begin, Begun, Complete, Completed
from contracts.exchange import (
    REPLY_TYPE,
    Refusal,
    Refused,
    Reply,
    convert,
    request_input,
    signing_input,
    verify_reply,
)
from contracts.keyset import verify_key_set
from contracts.licensetoken import open_token, parse_token
from contracts.trust import parse_trust
from tests.vectors.frozen import FROZEN, REPLIES, REQUESTS, is_untouched, parts, signed_exchanges

TRUST = parse_trust(json.dumps(FROZEN["trust"]).encode())
AGENT = FROZEN["agent"]["agent_id"]
named = {"ids": lambda each: each["name"] if "name" in each else each["backend"]}


def test_the_frozen_file_is_untouched() -> None:
    assert is_untouched(), "see the comment in tests/vectors/frozen.py"


def test_every_purpose_and_every_kind_of_reply_is_there() -> None:
    assert (
        {each["purpose"] for each in FROZEN["exchanges"]} == REQUESTS.keys() | {"challenge"} == REPLIES.keys() | {"challenge"}
    )
    answered = {each["purpose"] for each in signed_exchanges() if each["status"] == 200}
    assert answered == REPLIES.keys()
    assert {each["backend"] for each in FROZEN["provisioning"]} == {"tpm", "software"}


@pytest.mark.parametrize("each", signed_exchanges(), **named)
def test_a_request_is_said_in_the_same_bytes(each: dict[str, Any]) -> None:
    text = json.loads(each["request"])["request"]
    header, payload = parts(text)
    request = convert(json.loads(payload), REQUESTS[each["purpose"]], "request")
    assert header["kid"] == request.agent_id == AGENT
    assert msgspec.json.encode(request) == payload
    assert request_input(request).decode() == text.rpartition(".")[0]


@pytest.mark.parametrize("each", signed_exchanges(), **named)
def test_a_reply_is_understood_and_said_in_the_same_bytes(each: dict[str, Any]) -> None:
    text = json.loads(each["reply"])["reply"]
    header, payload = parts(text)
    asked = json.loads(parts(json.loads(each["request"])["request"])[1])
    try:
        reply: Reply = verify_reply(text, REPLIES[each["purpose"]], AGENT, asked["request_id"], TRUST)
        assert each["status"] == 200
    except Refused as refused:
        assert each["status"] != 200
        reply = refused.refusal
        assert isinstance(reply, Refusal)
    assert msgspec.json.encode(reply) == payload
    assert signing_input({"alg": "ES256", "typ": REPLY_TYPE, "kid": header["kid"]}, reply).decode() == text.rpartition(".")[0]


def test_a_delivered_secret_opens_and_with_it_the_licenses() -> None:
    agreement = ec.derive_private_key(FROZEN["agent"]["agreement_scalar"], ec.SECP256R1())
    opened: dict[str, str] = {}
    for each in signed_exchanges():
        payload = json.loads(parts(json.loads(each["reply"])["reply"])[1])
        if payload["kind"] == "rotate-reply":
            delivery = verify_delivery(payload["delivery"], AGENT, TRUST)
            peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), delivery.encrypted.peer_point)
            secret = bytearray(32)
            decrypt_secret(delivery.encrypted, bytearray(agreement.exchange(ec.ECDH(), peer)), bytearray(32), secret)
            opened[str(delivery.version)] = secret.hex()
        elif payload["kind"] == "reissue-reply":
            claims = [open_token(parse_token(token), bytes.fromhex(opened["2"]), TRUST) for token in payload["tokens"]]
            assert {each.jti for each in claims} == {"license-1", "license-2"} and payload["missing"] == ["unknown"]
    assert {version: opened[version] for version in FROZEN["secrets_hex"]} == FROZEN["secrets_hex"]


def test_the_key_sets_follow_one_another() -> None:
    first, second = FROZEN["key_sets"]
    before = verify_key_set(first, (FROZEN["root_pin"],))
    after = verify_key_set(second, before.content.roots, above=before.content.number)
    assert msgspec.json.encode(before.content) == parts(first)[1]
    assert json.loads(before.content.trust_file()) == FROZEN["trust"]
    assert set(before.content.rotation_keys) < set(after.content.rotation_keys)


@pytest.mark.parametrize("each", FROZEN["provisioning"], **named)
def test_a_provisioning_is_said_in_the_same_bytes(each: dict[str, Any]) -> None:
    begin: Begin = convert(json.loads(each["begin"]), Begin, "request")
    assert msgspec.json.encode(begin).decode() == each["begin"]
    begun = verify_reply(json.loads(each["begun"])["reply"], Begun, NOBODY, begin.request_id, TRUST)
    assert msgspec.json.encode(begun) == parts(json.loads(each["begun"])["reply"])[1]
    assert (begun.credential_blob is None) == (each["backend"] == "software")
    text = json.loads(each["complete"])["request"]
    header, payload = parts(text)
    complete: Complete = convert(json.loads(payload), Complete, "request")
    assert complete.session == begun.session
    assert (
        signing_input({"alg": "ES256", "typ": COMPLETE_TYPE, "kid": header["kid"]}, complete).decode()
        == text.rpartition(".")[0]
    )
    done = verify_reply(json.loads(each["completed"])["reply"], Completed, None, complete.request_id, TRUST)
    assert msgspec.json.encode(done) == parts(json.loads(each["completed"])["reply"])[1]
    assert verify_key_set(done.key_set, (FROZEN["root_pin"],)).content.trust() == TRUST
    csr = x509.load_pem_x509_csr(complete.csr.encode())
    assert x509.load_pem_x509_certificate(done.certificates[0].encode()).public_key() == csr.public_key()
