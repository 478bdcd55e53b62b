"""Writes frames.json, license_token.json and texts.json beside itself; the same bytes at each run.

It uses none of the project's code.
"""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import msgpack
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = Path(__file__).parent
NONCE = bytes(range(16))

# Frames


def frame(body: bytes) -> str:
    return (len(body).to_bytes(4, "big") + body).hex()


def packed(message: Any) -> str:
    return frame(msgpack.packb(message))


def pairs(*items: tuple[Any, Any]) -> str:
    return frame(msgpack.Packer().pack_map_pairs(items))


def request(op: str, **fields: Any) -> dict[str, Any]:
    return {"v": 1, "id": 7, "op": op, **fields}


def shown(message: dict[str, Any]) -> dict[str, Any]:
    """As JSON can hold it: a bin value under its name and `_hex`."""
    return {
        name + "_hex" if isinstance(value, bytes) else name: value.hex() if isinstance(value, bytes) else value
        for name, value in message.items()
    }


def good(name: str, text: str, *messages: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "description": text,
        "hex": "".join(packed(message) for message in messages),
        "outcome": {"requests": [shown(message) for message in messages]},
    }


ERRORS = {"FRAME_TOO_LARGE": 2, "BAD_MESSAGE": 3, "UNSUPPORTED_VERSION": 4, "UNKNOWN_OP": 5, "BAD_REQUEST": 6}


def bad(name: str, text: str, data: str, error: str, request_id: int | None = None) -> dict[str, Any]:
    connection = "closed" if error in ("FRAME_TOO_LARGE", "BAD_MESSAGE") else "kept"
    outcome = {"error": error, "code": ERRORS[error], "id": request_id, "connection": connection}
    return {"name": name, "description": text, "hex": data, "outcome": outcome}


def without(message: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != name}


def requests() -> list[dict[str, Any]]:
    validate = request("validate_license", token="a.b.c.d.e", nonce=NONCE)
    ping = request("ping")
    require = request("require", feature="fuel", product=None, nonce=NONCE)
    count = request("count_usage", meter="sales", amount=3, count_id=NONCE)
    consent = request("ota_consent", answer="busy", until=1_900_000_000)
    listed = request("licenses", after="", metadata=False, nonce=NONCE)
    return [
        good("validate_license", "a validation", validate),
        good("refresh_license", "asks for a newer token", request("refresh_license", token="a.b.c.d.e")),
        good("require", "asks for a feature", require),
        good("require_product", "asks for a feature of a product", {**require, "product": "forecourt"}),
        good("licenses", "asks for the first page of the machine's licenses", listed),
        good("licenses_next", "asks for the next page, with metadata", {**listed, "after": "license-1", "metadata": True}),
        good("count_usage", "counts usage", count),
        good("count_usage_most", "the largest amount", {**count, "amount": 2**32 - 1}),
        good("ota_consent", "the shop is busy until then", consent),
        good("ota_consent_look", "asks what waits, without an answer", {**consent, "answer": "", "until": 0}),
        good("agent_info", "asks who answers", request("agent_info")),
        good("ping", "the smallest request", ping),
        good("smallest_id", "id 0", {**ping, "id": 0}),
        good("largest_id", "id 2^53 - 1", {**ping, "id": 2**53 - 1}),
        good("reversed_keys", "the order of keys does not matter", dict(reversed(validate.items()))),
        good("pipelined", "three requests in one write", ping, validate, {**ping, "id": 8}),
        {
            "name": "wide_map_header",
            "description": "map 16 instead of fixmap: longer than needed, and allowed",
            "hex": frame(b"\xde\x00\x03" + msgpack.packb(ping)[1:]),
            "outcome": {"requests": [ping]},
        },
        {
            "name": "incomplete_frame",
            "description": "the last byte is missing: no request yet; after 5 s TIMED_OUT and the connection is closed",
            "hex": packed(ping)[:-2],
            "outcome": {"requests": [], "partial": True},
        },
        bad("duplicate_key", "id comes twice", pairs(*ping.items(), ("id", 7)), "BAD_MESSAGE"),
        bad("duplicate_nonce", "nonce comes twice", pairs(*validate.items(), ("nonce", NONCE)), "BAD_MESSAGE"),
        bad("unknown_key", "a field that the operation does not have", packed({**ping, "token": "x"}), "BAD_REQUEST", 7),
        bad("missing_key", "no nonce", packed(request("validate_license", token="x")), "BAD_REQUEST", 7),
        bad("wrong_type", "token is an integer", packed({**validate, "token": 5}), "BAD_REQUEST", 7),
        bad("token_as_bin", "token is bin", packed({**validate, "token": b"a.b.c.d.e"}), "BAD_REQUEST", 7),
        bad("empty_token", "token is empty", packed({**validate, "token": ""}), "BAD_REQUEST", 7),
        bad("long_token", "token of 16,385 characters", packed({**validate, "token": "x" * 16_385}), "BAD_REQUEST", 7),
        bad("short_nonce", "nonce of 15 bytes", packed({**validate, "nonce": NONCE[:15]}), "BAD_REQUEST", 7),
        bad("long_nonce", "nonce of 17 bytes", packed({**validate, "nonce": NONCE + b"\0"}), "BAD_REQUEST", 7),
        bad("nonce_as_str", "nonce is str", packed({**validate, "nonce": "0123456789abcdef"}), "BAD_REQUEST", 7),
        bad("require_no_product", "product is missing: nil says any", packed(without(require, "product")), "BAD_REQUEST", 7),
        bad("require_empty_feature", "feature is empty", packed({**require, "feature": ""}), "BAD_REQUEST", 7),
        bad("require_long_feature", "feature of 65 characters", packed({**require, "feature": "x" * 65}), "BAD_REQUEST", 7),
        bad("require_long_product", "product of 257 characters", packed({**require, "product": "x" * 257}), "BAD_REQUEST", 7),
        bad("require_token", "a token, which require does not have", packed({**require, "token": "x"}), "BAD_REQUEST", 7),
        bad("require_no_nonce", "nonce is missing", packed(without(require, "nonce")), "BAD_REQUEST", 7),
        bad("licenses_long_after", "after of 129 characters", packed({**listed, "after": "x" * 129}), "BAD_REQUEST", 7),
        bad("licenses_nil_after", "after is nil", packed({**listed, "after": None}), "BAD_REQUEST", 7),
        bad("licenses_number_metadata", "metadata is 1", packed({**listed, "metadata": 1}), "BAD_REQUEST", 7),
        bad("count_usage_zero", "an amount of 0", packed({**count, "amount": 0}), "BAD_REQUEST", 7),
        bad("count_usage_large", "an amount of 2^32", packed({**count, "amount": 2**32}), "BAD_REQUEST", 7),
        bad("count_usage_meter", "a meter with a capital letter", packed({**count, "meter": "Sales"}), "BAD_REQUEST", 7),
        bad("count_usage_long_meter", "meter of 49 characters", packed({**count, "meter": "x" * 49}), "BAD_REQUEST", 7),
        bad("count_usage_short_id", "count_id of 15 bytes", packed({**count, "count_id": NONCE[:15]}), "BAD_REQUEST", 7),
        bad("ota_consent_answer", "another answer", packed({**consent, "answer": "later"}), "BAD_REQUEST", 7),
        bad("ota_consent_nil_answer", "answer is nil", packed({**consent, "answer": None}), "BAD_REQUEST", 7),
        bad(
            "ota_consent_late", "until is beyond the year 9999", packed({**consent, "until": 253_402_300_800}), "BAD_REQUEST", 7
        ),
        bad("ota_consent_negative", "until is -1", packed({**consent, "until": -1}), "BAD_REQUEST", 7),
        bad("version_2", "a version that the agent does not speak", packed({**ping, "v": 2}), "UNSUPPORTED_VERSION", 7),
        bad(
            "version_2_unknown_op",
            "the version is judged first",
            packed({"v": 2, "id": 7, "op": "x"}),
            "UNSUPPORTED_VERSION",
            7,
        ),
        bad("unknown_op", "an operation that does not exist", packed(request("sell_license")), "UNKNOWN_OP", 7),
        bad("admin_op", "an operation of the admin socket", packed(request("status")), "UNKNOWN_OP", 7),
        bad("float_id", "id is 7.0", packed({**ping, "id": 7.0}), "BAD_REQUEST"),
        bad("boolean_id", "id is true", packed({**ping, "id": True}), "BAD_REQUEST"),
        bad("negative_id", "id is -1", packed({**ping, "id": -1}), "BAD_REQUEST"),
        bad("large_id", "id is 2^53", packed({**ping, "id": 2**53}), "BAD_REQUEST"),
        bad("bin_key", "a key is bin", pairs((b"v", 1), ("id", 7), ("op", "ping")), "BAD_MESSAGE"),
        bad("extension", "the nonce is ext type 1", packed({**validate, "nonce": msgpack.ExtType(1, NONCE)}), "BAD_MESSAGE"),
        bad("array", "an array instead of a map", packed([1, 7, "ping"]), "BAD_MESSAGE"),
        bad("nil", "nil instead of a map", packed(None), "BAD_MESSAGE"),
        bad("truncated_message", "the message ends early inside its frame", frame(msgpack.packb(ping)[:-1]), "BAD_MESSAGE"),
        bad("trailing_data", "one byte follows the message", frame(msgpack.packb(ping) + b"\xc0"), "BAD_MESSAGE"),
        bad("not_utf8", "op is not UTF-8", frame(b"\x83\xa1v\x01\xa2id\x07\xa2op\xa2\xff\xfe"), "BAD_MESSAGE"),
        bad("zero_length", "a frame without a body", "00000000", "FRAME_TOO_LARGE"),
        bad("oversized_length", "a length of 65,537", "00010001" + "80", "FRAME_TOO_LARGE"),
        bad("largest_length", "a length of 2^32 - 1", "ffffffff", "FRAME_TOO_LARGE"),
    ]


ASKED = "o.l.d.e.r"


def reply(name: str, text: str, op: str, data: str, outcome: dict[str, Any]) -> dict[str, Any]:
    if op == "ota_consent":
        return {"name": name, "description": text, "op": op, "request_id": 7, "hex": data, "outcome": outcome}
    sent = {"sent_token": ASKED} if op == "refresh_license" else {"sent_nonce_hex": NONCE.hex()}
    sent |= {"require": {"sent_feature": "fuel", "sent_product": None}, "licenses": {"sent_after": ""}}.get(op, {})
    if op == "count_usage":
        sent = {"sent_count_id_hex": NONCE.hex()}
    return {"name": name, "description": text, "op": op, "request_id": 7, **sent, "hex": data, "outcome": outcome}


def replies() -> list[dict[str, Any]]:
    head = {"v": 1, "id": 7}
    verdict = {
        **head,
        "nonce": NONCE,
        "valid": True,
        "reason": "ok",
        "expires_at": 1_900_000_000,
        "features": ["sales", "fuel"],
        "metadata": {"shop": "Bürgerstraße"},
        "secret_state": "ACTIVE",
        "degraded": False,
        "clock_suspect": False,
        "reissue_due": False,
        "refresh_by": None,
        "refreshed": False,
    }
    refused = {
        **verdict,
        "valid": False,
        "reason": "malformed",
        "expires_at": None,
        "features": [],
        "metadata": {},
        "secret_state": None,
    }
    info = {**head, "agent_id": "pos-001", "agent_version": "0.1.0", "protocol_versions": [1], "degraded": False, "time": 5}

    allowed = {
        **head,
        "nonce": NONCE,
        "valid": True,
        "reason": "ok",
        "license": "license-1",
        "product": "forecourt",
        "expires_at": 1_900_000_000,
        "features": ["sales", "fuel"],
        "metadata": {"product": "forecourt", "shop": "Bürgerstraße"},
        "secret_state": "ACTIVE",
        "degraded": False,
        "clock_suspect": False,
    }
    denied = {**allowed, "valid": False, "reason": "no_license", "features": [], "metadata": {}} | dict.fromkeys(
        ("license", "product", "expires_at", "secret_state")
    )
    ended = {**denied, "reason": "expired", "license": "license-1", "product": "forecourt"}
    entry = {
        "license": "license-1",
        "valid": True,
        "reason": "ok",
        "begins_at": 1_800_000_000,
        "expires_at": 1_900_000_000,
        "product": "forecourt",
        "features": ["sales", "fuel"],
        "metadata": {},
    }
    other = {**entry, "license": "license-2", "valid": False, "reason": "suspended", "product": None, "features": []}
    listed = {**head, "nonce": NONCE, "licenses": [entry, other], "next": None}

    counted = {**head, "count_id": NONCE, "counted": True, "repeated": False, "reason": "ok", "license": "license-1"}
    uncounted = {**counted, "counted": False, "reason": "no_license", "license": None}

    waiting = {**head, "pending": True, "product": "pos", "version": "2.1.0", "notes": "Kürzere Wege", "not_before": 5}
    none_waits = {**head, "pending": False} | dict.fromkeys(("product", "version", "notes", "not_before"))

    def fine(name: str, text: str, op: str, message: dict[str, Any]) -> dict[str, Any]:
        return reply(name, text, op, packed(message), {"reply": shown(message)})

    def wrong(name: str, text: str, data: str, code: int = 3, error: str = "BAD_MESSAGE") -> dict[str, Any]:
        return reply(name, text, "validate_license", data, {"error": error, "code": code})

    def wrong_refresh(name: str, text: str, **fields: Any) -> dict[str, Any]:
        data = packed({**newer, **fields})
        return reply(name, text, "refresh_license", data, {"error": "BAD_MESSAGE", "code": 3})

    def wrong_require(name: str, text: str, **fields: Any) -> dict[str, Any]:
        return reply(name, text, "require", packed({**allowed, **fields}), {"error": "BAD_MESSAGE", "code": 3})

    def wrong_list(name: str, text: str, **fields: Any) -> dict[str, Any]:
        return reply(name, text, "licenses", packed({**listed, **fields}), {"error": "BAD_MESSAGE", "code": 3})

    def wrong_count(name: str, text: str, **fields: Any) -> dict[str, Any]:
        return reply(name, text, "count_usage", packed({**counted, **fields}), {"error": "BAD_MESSAGE", "code": 3})

    def wrong_consent(name: str, text: str, **fields: Any) -> dict[str, Any]:
        return reply(name, text, "ota_consent", packed({**waiting, **fields}), {"error": "BAD_MESSAGE", "code": 3})

    newer = {**head, "token": "a.b.c.d.e", "license": "license-1", "for_token": hashlib.sha256(ASKED.encode()).digest()}

    def error(number: int, text: str, request_id: int | None = 7) -> str:
        return packed({"v": 1, "id": request_id, "error": {"code": number, "text": text}})

    return [
        fine("verdict_valid", "a valid license", "validate_license", verdict),
        fine("verdict_malformed", "what is not known is nil or empty", "validate_license", refused),
        fine("verdict_more_keys", "a client passes over unknown keys", "validate_license", {**verdict, "newer": [1, {"x": 2}]}),
        fine("refresh_newer", "a newer token", "refresh_license", newer),
        fine("refresh_none", "no newer token", "refresh_license", {**newer, "token": None, "license": None}),
        fine("refresh_newer_0_1_0", "an agent of 0.1.0: not said for what", "refresh_license", {**head, "token": "a.b.c.d.e"}),
        fine("refresh_none_0_1_0", "an agent of 0.1.0: no newer token", "refresh_license", {**head, "token": None}),
        wrong_refresh("refresh_other", "the newer token of another license", for_token=hashlib.sha256(b"other").digest()),
        wrong_refresh("refresh_for_str", "for_token is str", for_token="0" * 32),
        wrong_refresh("refresh_blank", "a blank in the token", token="a.b.c.d .e"),
        wrong_refresh("refresh_line_break", "a line break after the token", token="a.b.c.d.e\n"),
        wrong_refresh("refresh_empty", "an empty token", token=""),
        fine("require_valid", "a license allows the feature", "require", allowed),
        fine("require_no_license", "no license of the machine allows it", "require", denied),
        fine("require_expired", "the license nearest to valid", "require", ended),
        fine("require_new_reason", "a reason of a newer agent: not valid", "require", {**denied, "reason": "full_moon"}),
        fine("require_more_keys", "a client passes over unknown keys", "require", {**allowed, "newer": [1]}),
        wrong_require("require_contradiction", "valid, but the reason is not ok", reason="suspended"),
        wrong_require("require_other_feature", "valid, but the license has not the feature", features=["sales"]),
        wrong_require("require_other_nonce", "another nonce", nonce=bytes(16)),
        wrong_require("require_of_no_license", "valid, but of no license", license=None),
        fine("licenses", "the only page", "licenses", listed),
        fine("licenses_first", "another page follows", "licenses", {**listed, "next": "license-2"}),
        fine("licenses_none", "the machine holds no license", "licenses", {**listed, "licenses": []}),
        wrong_list("licenses_not_in_order", "the ids do not grow", licenses=[other, entry]),
        wrong_list("licenses_other_next", "next is not the last id", next="license-1"),
        wrong_list("licenses_of_text", "an entry is a text", licenses=["license-1"]),
        wrong_list("licenses_other_nonce", "another nonce", nonce=bytes(16)),
        fine("count_usage", "counted now", "count_usage", counted),
        fine("count_usage_again", "counted before", "count_usage", {**counted, "repeated": True}),
        fine("count_usage_forgotten", "before, for a license", "count_usage", {**counted, "repeated": True, "license": None}),
        fine("count_usage_not", "no license allows the meter", "count_usage", uncounted),
        wrong_count("count_usage_other_id", "another count_id", count_id=bytes(16)),
        wrong_count("count_usage_contradiction", "counted, but the reason is not ok", reason="expired"),
        wrong_count("count_usage_for_none", "counted now, for no license", license=None),
        fine("ota_consent", "an update waits", "ota_consent", waiting),
        fine(
            "ota_consent_not_known_when",
            "it may begin, as soon as the shop lets it",
            "ota_consent",
            {**waiting, "not_before": None},
        ),
        fine("ota_consent_none", "no update waits", "ota_consent", none_waits),
        wrong_consent("ota_consent_nameless", "an update waits, of no product", product=None),
        wrong_consent("ota_consent_contradiction", "none waits, and it has a name", pending=False),
        wrong_consent("ota_consent_text_date", "not_before is a text", not_before="today"),
        fine("agent_info", "who answers", "agent_info", info),
        fine("ping", "the smallest reply", "ping", head),
        wrong("error_nonce_replayed", "an error reply", error(9, "this nonce has been used"), 9, "NONCE_REPLAYED"),
        wrong("error_without_id", "an error of the connection: id is nil", error(7, "forbidden", None), 7, "FORBIDDEN"),
        wrong("error_unknown_code", "a code of a newer agent is taken as INTERNAL", error(999, "?"), 1, "INTERNAL"),
        wrong("duplicate_key", "valid comes twice", pairs(*verdict.items(), ("valid", True))),
        wrong("other_id", "the reply to another request", packed({**verdict, "id": 8})),
        wrong("other_nonce", "another nonce", packed({**verdict, "nonce": bytes(16)})),
        wrong("nonce_as_str", "the nonce is str", packed({**verdict, "nonce": "0123456789abcdef"})),
        wrong("contradiction", "valid, but the reason is not ok", packed({**verdict, "reason": "expired"})),
        wrong("unknown_reason", "a reason that is not in the list", packed({**refused, "reason": "full_moon"})),
        wrong("float_expires_at", "expires_at is a float", packed({**verdict, "expires_at": 1.9e9})),
        wrong("missing_field", "no degraded", packed({name: verdict[name] for name in verdict if name != "degraded"})),
        wrong("extension", "an extension type under an unknown key", packed({**verdict, "newer": msgpack.ExtType(1, b"")})),
        wrong("trailing_data", "one byte follows the message", frame(msgpack.packb(verdict) + b"\xc0")),
    ]


# License tokens

SECRET = hashlib.sha256(b"license-agent test vectors: secret").digest()
AGENT, VERSION, ISSUER = "pos-001", 3, "https://license.example"
GROUP_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
CLAIMS = {
    "iss": ISSUER,
    "sub": "Shop 12",
    "aud": AGENT,
    "iat": 1_800_000_000,
    "nbf": 1_800_000_000,
    "exp": 1_900_000_000,
    "jti": "license-1",
    "features": ["sales", "fuel"],
    "metadata": {"shop": "Bürgerstraße 7"},
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha256(f"license-agent test vectors: {name}".encode()).digest(), "big")
    return ec.derive_private_key(number % (GROUP_ORDER - 1) + 1, ec.SECP256R1())


def public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    jwk = {"crv": "P-256", "kty": "EC", "x": b64(point[1:33]), "y": b64(point[33:])}
    digest = hashlib.sha256(json.dumps(jwk, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**jwk, "kid": b64(digest)}


LICENSE_KEY, DELIVERY_KEY, STRANGER = private_key("license key"), private_key("delivery key"), private_key("stranger")
OUTER = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": f"{AGENT}/{VERSION}"}
INNER = {"alg": "ES256", "typ": "license+jwt", "kid": public_jwk(LICENSE_KEY)["kid"]}


def compact(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def der_signature(data: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def jws(header: Any = INNER, claims: Any = CLAIMS, key: ec.EllipticCurvePrivateKey = LICENSE_KEY) -> bytes:
    data = f"{b64(compact(header))}.{b64(compact(claims))}".encode()
    r, s = decode_dss_signature(der_signature(data, key))
    return data + b"." + b64(r.to_bytes(32, "big") + s.to_bytes(32, "big")).encode()


def high_s(signed: bytes) -> bytes:
    """The same JWS with s and the group's order exchanged for their difference: as valid, and another text."""
    head, _, signature = signed.rpartition(b".")
    pair = base64.urlsafe_b64decode(signature + b"==")
    s = int.from_bytes(pair[32:], "big")
    other = max(s, GROUP_ORDER - s)
    return head + b"." + b64(pair[:32] + other.to_bytes(32, "big")).encode()


def token(header: Any = OUTER, content: bytes | None = None, secret: bytes = SECRET) -> str:
    content = jws() if content is None else content
    protected = b64(compact(header))
    # Fixed for each content, so that the file does not change; a real issuer draws it at random.
    nonce = hashlib.sha256(protected.encode() + content + secret).digest()[:12]
    sealed = AESGCM(secret).encrypt(nonce, content, protected.encode())
    return f"{protected}..{b64(nonce)}.{b64(sealed[:-16])}.{b64(sealed[-16:])}"


def with_signature(signature: bytes, header: Any = INNER) -> bytes:
    return f"{b64(compact(header))}.{b64(compact(CLAIMS))}.{b64(signature)}".encode()


def hs256_by_public_key() -> bytes:
    pem = LICENSE_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    header = {**INNER, "alg": "HS256"}
    data = f"{b64(compact(header))}.{b64(compact(CLAIMS))}".encode()
    return with_signature(hmac.digest(pem, data, "sha256"), header)


def refused_tokens() -> list[dict[str, str]]:
    whole = token()
    parts = whole.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    stray = parts[4][:-1] + alphabet[alphabet.index(parts[4][-1]) + 1]
    middle = len(parts[3]) // 2
    changed = parts[3][:middle] + ("A" if parts[3][middle] != "A" else "B") + parts[3][middle + 1 :]
    text = json.dumps(CLAIMS, separators=(",", ":"), ensure_ascii=False)
    twice = (text[:-1] + ',"exp":1950000000}').encode()
    der = der_signature(f"{b64(compact(INNER))}.{b64(compact(CLAIMS))}".encode(), LICENSE_KEY)
    pbes2 = {**OUTER, "alg": "PBES2-HS256+A128KW", "p2s": b64(bytes(16)), "p2c": 2_000_000_000}
    by_delivery_key = jws({**INNER, "kid": public_jwk(DELIVERY_KEY)["kid"]}, key=DELIVERY_KEY)
    header_twice = compact(OUTER)[:-1] + b',"alg":"dir"}'

    def form(name: str, description: str, value: str) -> dict[str, str]:
        return {
            "name": name,
            "description": description,
            "token": value,
            "refused_by": "parse_token",
            "error": "MalformedToken",
        }

    def opened(name: str, description: str, content: bytes, error: str = "MalformedToken") -> dict[str, str]:
        return {"name": name, "description": description, "token": token(content=content), "refused_by": "open_token"} | {
            "error": error
        }

    return [
        form("outer_alg_none", "alg none around the JWS", token({**OUTER, "alg": "none"})),
        form("outer_pbes2", "PBES2 with a huge count", token(pbes2)),
        form("outer_enc", "another content encryption", token({**OUTER, "enc": "A128CBC-HS256"})),
        form("outer_zip", "compressed content", token({**OUTER, "zip": "DEF"})),
        form("outer_crit", "a critical extension", token({**OUTER, "crit": ["exp"], "exp": 1})),
        form("outer_jku", "a key to be fetched", token({**OUTER, "jku": "https://attacker.example/keys"})),
        form("outer_no_cty", "cty is missing", token({name: OUTER[name] for name in ("alg", "enc", "kid")})),
        form("outer_kid_leading_zero", "secret version 03", token({**OUTER, "kid": f"{AGENT}/03"})),
        form("outer_duplicate_name", "alg comes twice", token(header_twice)),
        form("encrypted_key", "the second part is not empty", whole.replace("..", ".AAAA.", 1)),
        form("oversized", "more than 16,384 characters", token(content=bytes(13_000))),
        form("non_canonical_base64", "stray bits at the end of the tag", ".".join([*parts[:4], stray])),
        form("padding", "the header is padded", parts[0] + "=" + whole[len(parts[0]) :]),
        {
            "name": "tampered",
            "description": "one character of the ciphertext is changed",
            "token": ".".join([*parts[:3], changed, parts[4]]),
            "refused_by": "open_token",
            "error": "BadSignature",
        },
        {
            "name": "other_secret",
            "description": "made with another secret",
            "token": token(secret=bytes(32)),
            "refused_by": "open_token",
            "error": "BadSignature",
        },
        opened("inner_alg_none", "no signature", with_signature(b"", {**INNER, "alg": "none"})),
        opened("inner_hs256", "HS256 with the issuer's public key as its secret", hs256_by_public_key()),
        opened("inner_typ", "typ JWT", jws({**INNER, "typ": "JWT"})),
        opened("inner_jku", "a key to be fetched", jws({**INNER, "jku": "https://attacker.example/keys"})),
        opened("inner_jwk", "a key brought along", jws({**INNER, "jwk": public_jwk(STRANGER)}, key=STRANGER)),
        opened("inner_crit", "a critical extension", jws({**INNER, "crit": ["b64"], "b64": False})),
        opened("der_signature", "the signature is DER, not 64 bytes", with_signature(der), "BadSignature"),
        opened("stranger", "a stranger's key under a trusted key id", jws(key=STRANGER), "BadSignature"),
        opened("unknown_key_id", "a key id that is not trusted", jws({**INNER, "kid": "other"}), "BadSignature"),
        opened("delivery_key", "the key for deliveries", by_delivery_key, "BadSignature"),
        opened("other_issuer", "another issuer's name", jws(claims={**CLAIMS, "iss": "https://other.example"}), "BadSignature"),
        opened("other_audience", "for another agent", jws(claims={**CLAIMS, "aud": "pos-002"}), "WrongAudience"),
        opened("inner_alg_number", "alg is a number", jws({**INNER, "alg": 7})),
        opened("inner_no_typ", "typ is missing", jws({name: INNER[name] for name in ("alg", "kid")})),
        opened("inner_not_an_object", "the header is a list", jws(b"[]")),
        opened("kid_is_a_number", "a key id that is no text", jws({**INNER, "kid": 7}), "BadSignature"),
        opened("minus_zero_with_fraction", "nbf is -0.0", jws(claims=text.replace('"nbf":1800000000', '"nbf":-0.0').encode())),
        opened("nested_metadata", "metadata in metadata", jws(claims={**CLAIMS, "metadata": {"shop": {"name": "x"}}})),
        opened("nested_deeply", "1,500 lists in each other", jws(claims=b'{"iss":' + b"[" * 1500 + b"]" * 1500 + b"}")),
        opened("huge_number", "exp has 5,000 digits", jws(claims=text.replace("1900000000", "1" * 5000).encode())),
        opened("duplicate_claim", "exp comes twice", jws(claims=twice)),
        opened("unknown_claim", "a claim that may be a restriction", jws(claims={**CLAIMS, "max_tills": 2})),
        opened("missing_claim", "no metadata", jws(claims={name: CLAIMS[name] for name in CLAIMS if name != "metadata"})),
        opened("float_exp", "exp is 1.9e9", jws(claims=text.replace("1900000000", "1.9e9").encode())),
        opened("exp_before_nbf", "it ends when it begins", jws(claims={**CLAIMS, "exp": CLAIMS["nbf"]})),
        opened("number_in_metadata", "a metadata value that is no text", jws(claims={**CLAIMS, "metadata": {"shop": 7}})),
    ]


def tokens() -> dict[str, Any]:
    minus_zero = json.dumps({**CLAIMS, "nbf": 0}, separators=(",", ":"), ensure_ascii=False).replace('"nbf":0', '"nbf":-0')
    spare: dict[str, Any] = {**CLAIMS, "features": [], "metadata": {}, "nbf": 0, "exp": 253_402_300_799}
    return {
        "note": "All keys were made for these vectors; they protect nothing.",
        "secret_hex": SECRET.hex(),
        "secret_version": VERSION,
        "agent_id": AGENT,
        "trust": {
            "issuer": ISSUER,
            "license_keys": [public_jwk(LICENSE_KEY)],
            "delivery_keys": [public_jwk(DELIVERY_KEY)],
        },
        "accepted": [
            {"name": "usual", "token": token(), "claims": CLAIMS},
            {"name": "no_features_widest_dates", "token": token(content=jws(claims=spare)), "claims": spare},
            {"name": "minus_zero", "token": token(content=jws(claims=minus_zero.encode())), "claims": {**CLAIMS, "nbf": 0}},
            {"name": "high_s", "token": token(content=high_s(jws())), "claims": CLAIMS},
        ],
        "refused": refused_tokens(),
    }


# Texts


def texts() -> dict[str, Any]:
    """Texts by their code points: a lone surrogate cannot be written otherwise. What is allowed never changes."""
    allowed = {
        "latin": "Rue du Lac 7",
        "no_break_space": "12\u00a0rue",
        "ideographic_space": "\u6771\u4eac\u3000\u65b0\u5bbf",
        "zero_width_joiner": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "zero_width_non_joiner": "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "zero_width_space": "a\u200bb",
        "directional_marks": "\u200e\u200f\u061c",
        "soft_hyphen": "a\u00adb",
        "combining_marks": "e\u0301\u0323",
        "emoji_of_unicode_16": "\U0001fae9",
        "flag_of_tags": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "variation_selector": "\u2764\ufe0f",
        "private_use": "\ue000\U000f0000\U0010fffd",
        "not_assigned": "\u0378\U0003fffd\U000e0fff",
        "object_replacement": "\ufffc\ufffd",
        "beside_the_ranges": "\u0020\u007e\u00a0\u2027\u202f\u2065\u2070\ud7ff\ue000\ufdcf\ufdf0\ufefe\uff00\ufff8\U00010000",
    }
    ranges = [(0, 0x1F), (0x7F, 0x9F), (0x2028, 0x202E), (0x2066, 0x206F), (0xD800, 0xDFFF), (0xFDD0, 0xFDEF)]
    ranges += [(0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)] + [(plane << 16 | 0xFFFE, plane << 16 | 0xFFFF) for plane in range(17)]

    def points(text: str) -> list[str]:
        return [f"U+{ord(character):04X}" for character in text]

    return {
        "allowed": [{"name": name, "text": points(text)} for name, text in allowed.items()],
        "refused": [{"first": f"U+{first:04X}", "last": f"U+{last:04X}"} for first, last in ranges],
    }


def write(name: str, content: Any) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def files() -> dict[str, Any]:
    return {
        "frames.json": {"requests": requests(), "replies": replies()},
        "license_token.json": tokens(),
        "texts.json": texts(),
    }


if __name__ == "__main__":
    for file_name, file_content in files().items():
        write(file_name, file_content)
