"""A delivery is taken only from the server, only by the agent whom it names, and only that agent's key decrypts it."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey

from contracts.claims import MAX_TIME
from contracts.delivery import Delivery, decrypt_secret, verify_delivery
from contracts.jose import BadSignature, MalformedToken, b64decode, b64encode, thumbprint
from contracts.licensetoken import WrongAudience
from server.keys.jose import new_signing_key, public_jwk
from tests.contracts.world import AGENT, AGREEMENT_KEY, DATES, DELIVERY_KEY, LICENSE_KEY, SECRET, TRUST, delivery

TYPED = (MalformedToken, BadSignature, WrongAudience)


def shared(found: Delivery, key: dict[str, str] = AGREEMENT_KEY) -> bytes:
    private = ec.derive_private_key(int.from_bytes(b64decode(key["d"]), "big"), ec.SECP256R1())
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), found.encrypted.peer_point)
    return private.exchange(ec.ECDH(), peer)


def decrypted(found: Delivery, agreed: bytes) -> bytes:
    into = bytearray(32)
    decrypt_secret(found.encrypted, agreed, bytearray(32), into)
    return bytes(into)


def content(**changes: Any) -> dict[str, Any]:
    inner = json.loads(b64decode(delivery().split(".")[1]))
    return {**inner, **changes}


def signed(payload: Any, header: dict[str, Any] | None = None) -> str:
    whole = {"alg": "ES256", "typ": "secret-delivery+jwt", "kid": thumbprint(DELIVERY_KEY), **(header or {})}
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    return jws.serialize_compact(whole, data, ECKey.import_key({**DELIVERY_KEY}), registry=registry)


def verified(text: str) -> Delivery:
    return verify_delivery(text, AGENT, TRUST)


def test_what_the_server_mints_is_verified_and_decrypted() -> None:
    found = verified(delivery(version=9))
    assert (found.agent_id, found.version) == (AGENT, 9)
    assert {name: getattr(found, name) for name in DATES} == DATES
    assert decrypted(found, shared(found)) == SECRET


def test_another_agents_key_does_not_decrypt_it() -> None:
    found = verified(delivery())
    with pytest.raises(BadSignature, match="does not decrypt"):
        decrypted(found, shared(found, new_signing_key()))


def test_every_delivery_has_a_key_of_its_own() -> None:
    points = {verified(delivery()).encrypted.peer_point for _time in range(5)}
    assert len(points) == 5


def test_another_agent_is_refused() -> None:
    with pytest.raises(WrongAudience):
        verify_delivery(delivery(), "pos-002", TRUST)
    with pytest.raises(WrongAudience):
        verified(signed(content(agent_id=["pos-001"])))


@pytest.mark.parametrize("key", [new_signing_key(), LICENSE_KEY], ids=["unknown", "license signer"])
def test_another_signer_is_refused(key: dict[str, str]) -> None:
    with pytest.raises(BadSignature, match="does not trust"):
        verified(delivery(key=key))


def test_every_changed_character_is_refused() -> None:
    text = delivery()
    for place in [*range(0, len(text), 11), *range(len(text) - 20, len(text))]:
        for other in "AB.=é":
            changed = text[:place] + other + text[place + 1 :]
            if changed != text:
                with pytest.raises(TYPED):
                    verified(changed)


@pytest.mark.parametrize(
    "header", [{"typ": "license+jwt"}, {"crit": ["exp"], "exp": 1}, {"jku": "https://evil.example"}, {"cty": "x"}], ids=repr
)
def test_headers_that_we_do_not_issue_are_refused(header: dict[str, Any]) -> None:
    parts = signed(content()).split(".")
    whole = {**json.loads(b64decode(parts[0])), **header}
    with pytest.raises(MalformedToken):
        verified(".".join([b64encode(json.dumps(whole).encode()), *parts[1:]]))


FROM, UNTIL, GRACE = DATES["valid_from"], DATES["valid_until"], DATES["grace_until"]


@pytest.mark.parametrize(
    "change",
    [
        {"valid_until": FROM},
        {"valid_until": FROM - 1},
        {"grace_until": UNTIL - 1},
        {"valid_from": -1},
        {"grace_until": MAX_TIME + 1},
        {"issued_at": "5"},
        {"issued_at": True},
        {"issued_at": None},
        {"secret_version": 0},
        {"secret_version": 2**32},
        {"secret_version": True},
        {"secret_version": "4"},
        {"new_secret_encrypted": 5},
        {"new_secret_encrypted": ""},
        {"new_secret_encrypted": "a.b.c.d.e"},
        {"surplus": 1},
    ],
    ids=repr,
)
def test_a_content_out_of_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        verified(signed(content(**change)))


@pytest.mark.parametrize("name", ["agent_id", "secret_version", "new_secret_encrypted", *DATES])
def test_a_missing_member_is_refused(name: str) -> None:
    with pytest.raises(MalformedToken):
        verified(signed({key: value for key, value in content().items() if key != name}))


def test_grace_may_be_none_at_all() -> None:
    assert verified(signed(content(grace_until=UNTIL))).grace_until == UNTIL


def encrypted(secret: bytes = SECRET, header: dict[str, Any] | None = None) -> str:
    public = ECKey.import_key({name: AGREEMENT_KEY[name] for name in ("kty", "crv", "x", "y")})
    whole = {"alg": "ECDH-ES", "enc": "A256GCM", **(header or {})}
    return jwe.encrypt_compact(whole, secret, public, algorithms=["ECDH-ES", "ECDH-ES+A256KW", "A256GCM", "A128GCM"])


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_secret_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(MalformedToken, match="size"):
        verified(signed(content(new_secret_encrypted=encrypted(bytes(size)))))


@pytest.mark.parametrize("header", [{"alg": "ECDH-ES+A256KW"}, {"enc": "A128GCM"}, {"apu": "AAAA"}, {"kid": "x"}], ids=repr)
def test_a_secret_encrypted_otherwise_is_refused(header: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        verified(signed(content(new_secret_encrypted=encrypted(header=header))))


def test_a_secret_under_a_password_or_another_secret_is_refused() -> None:
    direct = jwe.encrypt_compact(
        {"alg": "dir", "enc": "A256GCM"}, SECRET, OctKey.import_key(SECRET), algorithms=["dir", "A256GCM"]
    )
    with pytest.raises(MalformedToken):
        verified(signed(content(new_secret_encrypted=direct)))


def with_epk(epk: Any) -> str:
    parts = encrypted().split(".")
    header = {**json.loads(b64decode(parts[0])), "epk": epk}
    return ".".join([b64encode(json.dumps(header).encode()), *parts[1:]])


def test_a_replaced_ephemeral_key_decrypts_to_nothing() -> None:
    public = {name: value for name, value in public_jwk(new_signing_key()).items() if name != "kid"}
    found = verified(signed(content(new_secret_encrypted=with_epk(public))))
    with pytest.raises(BadSignature):
        decrypted(found, shared(found))


@pytest.mark.parametrize(
    "epk",
    [None, 5, {}, {"kty": "EC", "crv": "P-256", "x": "A", "y": "A"}, public_jwk(LICENSE_KEY)],
    ids=["nothing", "a number", "empty", "short", "with more members"],
)
def test_an_ephemeral_key_of_another_form_is_refused(epk: Any) -> None:
    with pytest.raises(MalformedToken):
        verified(signed(content(new_secret_encrypted=with_epk(epk))))


def test_a_changed_header_or_ciphertext_does_not_decrypt() -> None:
    found = verified(delivery())
    agreed = shared(found)
    from dataclasses import replace

    for changed in (
        replace(found.encrypted, protected=found.encrypted.protected + b" "),
        replace(found.encrypted, nonce=bytes(12)),
        replace(found.encrypted, ciphertext=bytes(48)),
    ):
        with pytest.raises(BadSignature):
            decrypt_secret(changed, agreed, bytearray(32), bytearray(32))


@given(st.text(max_size=80) | st.lists(st.text("ABab01-_", max_size=20), min_size=3, max_size=3).map(".".join))
def test_random_text_is_a_typed_error(text: str) -> None:
    with pytest.raises(TYPED):
        verified(text)


@given(st.binary(max_size=60))
def test_a_random_signed_content_is_a_typed_error(payload: bytes) -> None:
    with pytest.raises(TYPED):
        verified(signed(payload))


def test_a_long_delivery_is_refused() -> None:
    with pytest.raises(MalformedToken):
        verified(delivery() + "A" * 16_384)
