"""A token opens only if it is of the one form that we issue and both keys made it; the form is judged before any key."""

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto import jwe, jwk, jws

from contracts.claims import Claims
from contracts.jose import BadSignature, MalformedToken, b64decode, b64encode, thumbprint
from contracts.licensetoken import MAX_TOKEN_CHARS, MAX_VERSION, WrongAudience, key_id, open_token, parse_token
from contracts.trust import Trust
from server.keys.jose import issue_token, new_signing_key
from tests.contracts.world import AGENT, CLAIMS, LICENSE_KEY, SECRET, TRUST, token

HEADER = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": f"{AGENT}/3"}
INNER = {"alg": "ES256", "typ": "license+jwt", "kid": thumbprint(LICENSE_KEY)}
TYPED = (MalformedToken, BadSignature, WrongAudience)


def opened(text: str, secret: bytes = SECRET, trust: Trust = TRUST) -> Claims:
    return open_token(parse_token(text), secret, trust)


def envelope(header: dict[str, Any], content: bytes, secret: bytes = SECRET) -> str:
    protected = b64encode(json.dumps(header).encode())
    sealed = AESGCM(secret).encrypt(bytes(12), content, protected.encode())
    return f"{protected}..{b64encode(bytes(12))}.{b64encode(sealed[:-16])}.{b64encode(sealed[-16:])}"


def signed(header: dict[str, Any], payload: bytes, key: dict[str, str] = LICENSE_KEY) -> bytes:
    """A JWS with any header, signed with ES256 whatever it says."""
    part = b64encode(json.dumps(header).encode())
    made = jws.JWS(payload)
    made.add_signature(jwk.JWK(**key), "ES256", json.dumps({"alg": "ES256"}))
    if header == {"alg": "ES256"}:
        return made.serialize(compact=True).encode()
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    data = f"{part}.{b64encode(payload)}"
    private = ec.derive_private_key(int.from_bytes(b64decode(key["d"]), "big"), ec.SECP256R1())
    r, s = decode_dss_signature(private.sign(data.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{data}.{b64encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}".encode()


def claims_bytes(**changes: Any) -> bytes:
    return json.dumps({**CLAIMS.as_json(), **changes}).encode()


def test_what_joserfc_mints_is_opened() -> None:
    sealed = parse_token(token())
    assert (sealed.agent_id, sealed.version) == (AGENT, 3)
    assert open_token(sealed, SECRET, TRUST) == CLAIMS


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_the_secret_may_lie_in_any_buffer(kind: Any) -> None:
    assert opened(token(), kind(SECRET)) == CLAIMS


def test_what_jwcrypto_mints_is_opened() -> None:
    inner = jws.JWS(claims_bytes())
    inner.add_signature(jwk.JWK(**LICENSE_KEY), "ES256", json.dumps(INNER))
    outer = jwe.JWE(inner.serialize(compact=True), json.dumps(HEADER))
    outer.add_recipient(jwk.JWK(kty="oct", k=b64encode(SECRET)))
    assert opened(outer.serialize(compact=True)) == CLAIMS


def test_what_this_file_makes_by_hand_is_opened() -> None:
    assert opened(envelope(HEADER, signed(INNER, claims_bytes()))) == CLAIMS


def test_every_changed_character_is_refused() -> None:
    text = token()
    for place in [*range(0, len(text), 7), *range(len(text) - 40, len(text))]:
        for other in "A", "B", ".", "=", "é":
            changed = text[:place] + other + text[place + 1 :]
            if changed != text:
                with pytest.raises(TYPED):
                    opened(changed)
        with pytest.raises(TYPED):
            opened(text[:place] + text[place + 1 :])
    for odd in (text + "A", text + ".", text + "\n", " " + text, text.upper(), text + "=="):
        with pytest.raises(TYPED):
            opened(odd)


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "A256KW"},
        {"alg": "RSA-OAEP"},
        {"alg": "PBES2-HS256+A128KW", "p2s": "AAAA", "p2c": 2**31},
        {"alg": "Dir"},
        {"alg": None},
        {"alg": ["dir"]},
        {"enc": "A128GCM"},
        {"enc": "A256CBC-HS512"},
        {"cty": "jwt"},
        {"zip": "DEF"},
        {"crit": ["exp"]},
        {"jku": "https://evil.example/keys"},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"x5u": "https://evil.example"},
        {"typ": "JWT"},
        {"kid": None},
        {"kid": 5},
        {"kid": "pos-001"},
        {"kid": "pos-001/"},
        {"kid": "pos-001/0"},
        {"kid": "pos-001/03"},
        {"kid": "pos-001/-1"},
        {"kid": f"pos-001/{MAX_VERSION + 1}"},
        {"kid": "pos-001/3/3"},
        {"kid": "pos-001/3\n"},
        {"kid": "pos-001/٣"},
        {"kid": "/3"},
        {"kid": "a" * 65 + "/3"},
        {"kid": ["pos-001/3"]},
    ],
    ids=lambda change: ascii(change)[:50],
)
def test_headers_that_we_do_not_issue_are_refused_before_any_key(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        parse_token(envelope({**HEADER, **change}, signed(INNER, claims_bytes())))


@pytest.mark.parametrize("name", list(HEADER))
def test_a_header_without_a_member_is_refused(name: str) -> None:
    with pytest.raises(MalformedToken):
        parse_token(envelope({key: value for key, value in HEADER.items() if key != name}, b"x"))


def test_forms_that_are_no_token_are_refused() -> None:
    header, _, nonce, ciphertext, tag = token().split(".")
    wrong = [
        "",
        ".",
        "....",
        "a.b.c",
        f"{header}.{nonce}.{ciphertext}.{tag}",
        f"{header}.AAAA.{nonce}.{ciphertext}.{tag}",
        f"{header}..{nonce[:-4]}.{ciphertext}.{tag}",
        f"{header}..{nonce}AAAA.{ciphertext}.{tag}",
        f"{header}..{nonce}.{ciphertext}.{tag[:-4]}",
        f"{header}..{nonce}.{ciphertext}.{tag}AAAA",
        f"{header}..{nonce}.{ciphertext}.{tag}.{tag}",
        f"{header}..{nonce}.{ciphertext}=.{tag}",
        f"{b64encode(b'[]')}..{nonce}.{ciphertext}.{tag}",
        f"{'A' * 513}..{nonce}.{ciphertext}.{tag}",
    ]
    for text in wrong:
        with pytest.raises(MalformedToken):
            parse_token(text)


def test_size_is_judged_first() -> None:
    for text in ("A" * (MAX_TOKEN_CHARS + 1), token() + "A" * MAX_TOKEN_CHARS, "é" * 10):
        with pytest.raises(MalformedToken, match="at most"):
            parse_token(text)


def test_an_empty_ciphertext_is_refused_when_opened() -> None:
    header, _, nonce, _, tag = token().split(".")
    with pytest.raises(BadSignature):
        opened(f"{header}..{nonce}..{tag}")


def test_another_secret_does_not_open_it() -> None:
    with pytest.raises(BadSignature, match="does not decrypt"):
        opened(token(), bytes(32))


def test_the_envelope_cannot_be_given_another_version_or_agent() -> None:
    for kid in (key_id(AGENT, 4), key_id("pos-002", 3)):
        parts = token().split(".")
        parts[0] = b64encode(json.dumps({**HEADER, "kid": kid}).encode())
        with pytest.raises(BadSignature):
            opened(".".join(parts))


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"typ": "JWT"},
        {"typ": "secret-delivery+jwt"},
        {"crit": ["b64"], "b64": False},
        {"jku": "https://evil.example"},
        {"jwk": {"kty": "EC"}},
    ],
    ids=repr,
)
def test_signature_headers_that_we_do_not_issue_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        opened(envelope(HEADER, signed({**INNER, **change}, claims_bytes())))


def test_the_public_key_is_no_hmac_key() -> None:
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    (public,) = TRUST.license_keys.values()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for header, wanted in (({**INNER, "alg": "HS256"}, MalformedToken), (INNER, BadSignature)):
        data = f"{b64encode(json.dumps(header).encode())}.{b64encode(claims_bytes())}"
        mac = hmac.new(pem, data.encode(), hashlib.sha256).digest()
        with pytest.raises(wanted):
            opened(envelope(HEADER, f"{data}.{b64encode(mac)}".encode()))


@pytest.mark.parametrize("kid", ["unknown", None, 5, ["x"], {}], ids=repr)
def test_an_unknown_signer_is_refused(kid: Any) -> None:
    with pytest.raises(BadSignature, match="does not trust"):
        opened(envelope(HEADER, signed({**INNER, "kid": kid}, claims_bytes())))


def test_another_signer_under_the_known_id_is_refused() -> None:
    with pytest.raises(BadSignature, match="does not fit"):
        opened(envelope(HEADER, signed(INNER, claims_bytes(), new_signing_key())))


def test_a_signer_of_deliveries_signs_no_licenses() -> None:
    from tests.contracts.world import DELIVERY_KEY

    with pytest.raises(BadSignature):
        opened(issue_token(CLAIMS, SECRET, 3, DELIVERY_KEY))


def test_another_issuer_is_refused() -> None:
    with pytest.raises(BadSignature, match="issuer"):
        opened(token(iss="https://other.example"))


def test_signed_for_another_agent_than_the_envelope_says_is_refused() -> None:
    with pytest.raises(WrongAudience):
        opened(envelope(HEADER, signed(INNER, claims_bytes(aud="pos-002"))))


@pytest.mark.parametrize("content", [b"", b"a.b", b"a.b.c.d", b"\xff.\xff.\xff", b"..", b"A" * 600 + b".b.c"])
def test_a_content_that_is_no_jws_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedToken):
        opened(envelope(HEADER, content))


@pytest.mark.parametrize("payload", [b"[]", b"{}", b'{"iss":1,"iss":2}', b"\xff"])
def test_a_genuine_content_that_is_no_license_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedToken):
        opened(envelope(HEADER, signed(INNER, payload)))


def test_times_are_not_judged_here() -> None:
    assert opened(token(replace(CLAIMS, nbf=0, exp=1))).exp == 1


alphabet = st.text(st.sampled_from("ABCxyz019-_.=é\n "), max_size=80)


@given(st.one_of(st.text(max_size=60), alphabet, st.lists(alphabet, min_size=5, max_size=5).map(".".join)))
def test_random_text_is_malformed(text: str) -> None:
    with pytest.raises(MalformedToken):
        parse_token(text)


@given(st.binary(max_size=100))
def test_random_content_is_a_typed_error(content: bytes) -> None:
    with pytest.raises(TYPED):
        opened(envelope(HEADER, content))
