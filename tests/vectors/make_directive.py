"""Writes directive.json beside itself; the same bytes at each run. It uses none of the project's code."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

HERE = Path(__file__).parent
NOW = 1_800_000_000
ROTATION, OTHER = (ec.derive_private_key(number, ec.SECP256R1()) for number in (8001, 8002))
PACKAGE = b"the package\n"
WINDOW = {"zone": "Europe/Berlin", "days": ["mon", "tue"], "start": "22:00", "end": "04:00"}
CONTENT: dict[str, Any] = {
    "v": 1,
    "number": 7,
    "agent_id": "pos-000001",
    "product": "pos",
    "target": "pos/pos-3.2.1.tar.zst",
    "sha256": hashlib.sha256(PACKAGE).hexdigest(),
    "length": len(PACKAGE),
    "version": "3.2.1",
    "build_id": "ci-4711",
    "rollout": "spring",
    "not_before": NOW,
    "not_after": NOW + 30 * 86_400,
    "window": WINDOW,
    "notice_until": NOW + 48 * 3600,
    "downgrade": False,
    "withdraws": None,
}
BARE = {"rollout": "", "window": None, "notice_until": 0}
GREATEST = {
    "number": 2**53 - 1, "agent_id": "a" * 64, "product": "p" * 32, "target": f"{'p' * 32}/{'x' * 223}", "length": 2**34,
    "version": f"{'.'.join(['999999'] * 4)}-{'z' * 32}", "build_id": "b" * 64, "rollout": "r" * 64,
    "not_before": 253_402_300_797, "not_after": 253_402_300_799, "notice_until": 253_402_300_799,
    "window": {"zone": f"{'Z' * 31}/{'z' * 32}", "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
               "start": "00:00", "end": "23:59"},
    "downgrade": True, "withdraws": 2**53 - 2,
}  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("another version of the form", {"v": 2}),
    ("number 0", {"number": 0}),
    ("a number as a text", {"number": "7"}),
    ("a true number", {"number": True}),
    ("a number above 53 bits", {"number": 2**53}),
    ("an agent id with a slash", {"agent_id": "pos/1"}),
    ("a product with capitals", {"product": "POS", "target": "POS/x"}),
    ("a target of another product", {"target": "agent/pos-3.2.1.tar.zst"}),
    ("a target that climbs", {"target": "pos/../x"}),
    ("a hidden target", {"target": "pos/.x"}),
    ("a target of three segments", {"target": "pos/x/y"}),
    ("a target with a line feed", {"target": "pos/x\n"}),
    ("a target that is too long", {"target": f"pos/{'x' * 253}"}),
    ("a digest with capitals", {"sha256": "AB" * 32}),
    ("an empty package", {"length": 0}),
    ("a package that is too long", {"length": 2**34 + 1}),
    ("a version without a number", {"version": "latest"}),
    ("a version of five numbers", {"version": "1.2.3.4.5"}),
    ("a version with a line feed", {"version": "3.2.1\n"}),
    ("a build id with a space", {"build_id": "ci 4711"}),
    ("an empty build id", {"build_id": ""}),
    ("a rollout with a slash", {"rollout": "a/b"}),
    ("no time", {"not_after": NOW}),
    ("a notice beyond the end", {"notice_until": NOW + 30 * 86_400 + 1}),
    ("a time before 1970", {"not_before": -1}),
    ("a window without a day", {"window": {**WINDOW, "days": []}}),
    ("a window with a day twice", {"window": {**WINDOW, "days": ["mon", "mon"]}}),
    ("a window with another day", {"window": {**WINDOW, "days": ["Monday"]}}),
    ("a window of no length", {"window": {**WINDOW, "end": "22:00"}}),
    ("a window at 24:00", {"window": {**WINDOW, "end": "24:00"}}),
    ("a window with a zone that climbs", {"window": {**WINDOW, "zone": "../../etc/passwd"}}),
    ("a window with more", {"window": {**WINDOW, "more": 1}}),
    ("downgrade as a number", {"downgrade": 1}),
    ("a directive that withdraws itself", {"withdraws": 7}),
    ("a directive that withdraws a later one", {"withdraws": 8}),
    ("a member more", {"priority": 1}),
]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": b64(numbers.x.to_bytes(32, "big")), "y": b64(numbers.y.to_bytes(32, "big"))}


def kid(key: ec.EllipticCurvePrivateKey) -> str:
    return b64(hashlib.sha256(compact(jwk(key))).digest())


def jws(payload: bytes, key: ec.EllipticCurvePrivateKey = ROTATION, **header: Any) -> str:
    return signed_by(key, {"alg": "ES256", "typ": "update-directive+jwt", "kid": kid(ROTATION), **header}, payload)


def signed_by(key: ec.EllipticCurvePrivateKey, protected: dict[str, Any], payload: bytes) -> str:
    signed = f"{b64(compact(protected))}.{b64(payload)}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def accepted(name: str, change: dict[str, Any]) -> dict[str, Any]:
    content = {**CONTENT, **change}
    return {"name": name, "content": content, "directive": jws(compact(content))}


def refused(name: str, error: str, directive: str) -> dict[str, Any]:
    return {"name": name, "error": error, "directive": directive}


def vectors() -> dict[str, Any]:
    good = jws(compact(CONTENT))
    protected, payload, _signature = good.split(".")
    without = {name: value for name, value in CONTENT.items() if name != "withdraws"}
    return {
        "package": PACKAGE.decode(),
        "trust": {"issuer": "https://license.example", "license_keys": [{**jwk(OTHER), "kid": kid(OTHER)}],
                  "delivery_keys": [{**jwk(ROTATION), "kid": kid(ROTATION)}]},
        "accepted": [
            accepted("a directive of a rollout, with window and notice", {}),
            accepted("a directive for one machine, at once", BARE),
            accepted("a downgrade", {"version": "3.1.9", "downgrade": True}),
            accepted("a withdrawal", {"number": 8, "withdraws": 7}),
            accepted("the greatest", GREATEST),
        ],
        "refused": [
            *(refused(name, "MalformedToken", jws(compact({**CONTENT, **change}))) for name, change in REFUSED),
            refused("a member less", "MalformedToken", jws(compact(without))),
            refused("a member twice", "MalformedToken", jws(compact(CONTENT)[:-1] + b',"number":9}')),
            refused("no JSON", "MalformedToken", jws(b"directive")),
            refused("another type", "MalformedToken", jws(compact(CONTENT), typ="server-reply+jwt")),
            refused("another algorithm", "MalformedToken", jws(compact(CONTENT), alg="none")),
            refused("a critical extension", "MalformedToken", jws(compact(CONTENT), crit=["exp"])),
            refused("two parts", "MalformedToken", f"{protected}.{payload}"),
            refused("too long", "MalformedToken", good + "A" * 2048),
            refused("a key for licenses", "BadSignature", jws(compact(CONTENT), OTHER, kid=kid(OTHER))),
            refused("another key under the same id", "BadSignature", jws(compact(CONTENT), OTHER)),
            refused("a signature of another directive", "BadSignature",
                    f"{protected}.{payload}.{jws(compact({**CONTENT, 'number': 8})).rpartition('.')[2]}"),
            refused("half a signature", "BadSignature", good[:-43]),
        ],
    }  # fmt: skip


if __name__ == "__main__":
    text = json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"
    HERE.joinpath("directive.json").write_text(text, "utf-8")
