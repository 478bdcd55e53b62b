"""Writes exchange-negotiated.json beside itself: the signed forms that agent and server use only once both have announced them.

    .venv/bin/python -m tests.vectors.make_negotiated

It says each form in bytes of its own, without the project's forms, so that a test can hold the two against each other. Keys and
times are fixed; ES256's signatures are random, so another run gives another file with the same content. With the release that
first has these forms the file is frozen as exchange-0.1.0.json is.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

NOW = 1_800_000_000
AGENT = "pos-000001"
FILE = Path(__file__).with_name("exchange-negotiated.json")
LICENSE, ROTATION, IDENTITY = (ec.derive_private_key(number, ec.SECP256R1()) for number in (7001, 7002, 7003))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": b64(numbers.x.to_bytes(32, "big")), "y": b64(numbers.y.to_bytes(32, "big"))}


def kid(key: ec.EllipticCurvePrivateKey) -> str:
    return b64(hashlib.sha256(compact(jwk(key))).digest())


def jws(key: ec.EllipticCurvePrivateKey, kind: str, name: str, content: dict[str, Any]) -> str:
    signed = f"{b64(compact({'alg': 'ES256', 'typ': kind, 'kid': name}))}.{b64(compact(content))}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def exchange(number: int, name: str, purpose: str, asked: dict[str, Any], kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """A request with its reply, both with the members that all have at the end."""
    request_id = hashlib.sha256(name.encode()).hexdigest()[:32]
    head = {"v": 1, "agent_id": AGENT, "request_id": request_id}
    request = {"purpose": purpose, **asked, **head, "challenge": "c" * 43, "timestamp": NOW + number}
    reply = {"kind": kind, **said, **head, "issued_at": NOW + number}
    return {
        "name": name,
        "purpose": purpose,
        "request": jws(IDENTITY, "agent-request+jwt", AGENT, request),
        "reply": jws(ROTATION, "server-reply+jwt", kid(ROTATION), reply),
    }


def exchanges() -> list[dict[str, Any]]:
    names = ["announce-capabilities", "sync-licenses", "report-usage"]
    held = {"current_secret_version": 3, "key_check": "A" * 22, "highest_version": 3, "serial": 1, "audit_seq": None}
    status = {"secret_version": 3, "rotate_now": False, "revocations": NOW - 50, "key_set": NOW - 60, "next_contact_s": 3600}
    changes = [
        {"license": "active", "standing": "active", "expires": NOW + 900, "token": "h..n.c.t"},
        {"license": "suspended", "standing": "suspended", "expires": NOW + 900, "token": None},
        {"license": "moved away", "standing": "removed", "expires": NOW + 900, "token": None},
    ]
    page = {"license_number": NOW, "changes": changes, "after": None}
    seat = {"license": "pool", "seat": f"pool#{NOW}", "lease_until": NOW + 300, "grace_until": NOW + 900}
    offer = {"license": "pool", "product": "till", "features": ["kiosk"], "expires": NOW + 9000, "idle_s": 3600}
    leased = {"secret_version": 3, "wanted": ["pool", "other"], "held": [], "released": ["pool#5"]}
    first = {"license_number": NOW, "changes": changes[:1], "after": "present:active"}
    used = [
        {"license": "active", "meter": "sales", "epoch": "0f" * 16, "total": 2**53 - 1},
        {"license": "moved away", "meter": "car-washes.2_b", "epoch": "1f" * 16, "total": 0},
    ]
    return [
        exchange(1, "an announcement", names[0], {"capabilities": names}, "announce-reply", {"capabilities": names}),
        exchange(2, "an announcement of names that nobody knows", names[0], {"capabilities": ["a", "z-9"]}, "announce-reply",
                 {"capabilities": []}),
        exchange(3, "a status with the number of license changes", "secret-status",
                 {**held, "audit_head": None, "license_number": 0}, "status-reply",
                 {**status, "audit_seq": None, "license_number": NOW}),
        exchange(4, "all licenses", names[1], {"license_number": 0, "secret_version": 3, "after": ""}, "sync-reply", page),
        exchange(5, "a first page", names[1], {"license_number": 5, "secret_version": 3, "after": ""}, "sync-reply", first),
        exchange(6, "a page without changes", names[1],
                 {"license_number": 5, "secret_version": 3, "after": "present:active"}, "sync-reply",
                 {"license_number": NOW, "changes": [], "after": None}),
        exchange(7, "totals of usage", names[2], {"totals": used}, "usage-reply", {"behind": [], "refused": []}),
        exchange(8, "totals that are not taken", names[2], {"totals": used}, "usage-reply",
                 {"behind": ["0f" * 16], "refused": ["1f" * 16]}),
        exchange(9, "a seat that is taken, one that is refused, one given back", "lease-seats", leased, "lease-reply",
                 {"floating": [offer, {**offer, "license": "other", "product": None}], "seats": [{**seat, "token": "h..n.c.t"}],
                  "refused": ["other"], "ended": []}),
        exchange(10, "a seat that has to be given back", "lease-seats",
                 {"secret_version": 3, "wanted": [], "held": [seat["seat"]], "released": []}, "lease-reply",
                 {"floating": [], "seats": [{**seat, "token": None}], "refused": [], "ended": [seat["seat"]]}),
        exchange(11, "a directive, and outcomes of earlier ones", "updates",
                 {"running": [{"product": "pos", "version": "1.4.0", "build_id": "b-1"}], "directive": 5,
                  "outcomes": [{"number": 5, "state": "rolled-back", "detail": "the check failed", "at": NOW}]},
                 "updates-reply", {"directive": "d.i.r", "acknowledged": [5], "paused": False}),
        exchange(12, "nothing to install, and updates paused", "updates", {"running": [], "directive": 0, "outcomes": []},
                 "updates-reply", {"directive": None, "acknowledged": [], "paused": True}),
        exchange(13, "the kind of machine, for a server that has announced the member", "updates",
                 {"running": [], "directive": 0, "outcomes": [], "hardware": "till-x86"},
                 "updates-reply", {"directive": None, "acknowledged": [], "paused": False}),
        exchange(14, "the first question for the fleet's configuration", "configuration", {"known": 0, "result": None},
                 "configuration-reply", {"document": "d.o.c"}),
        exchange(15, "what became of a configuration", "configuration",
                 {"known": 7, "result": {"number": 7, "state": "limited", "details": ["updates.window: the file sets it"],
                                         "digest": "0f" * 32}},
                 "configuration-reply", {"document": None}),
        exchange(16, "a configuration that cannot be used", "configuration",
                 {"known": 8, "result": {"number": 8, "state": "refused", "details": ["an unknown member"], "digest": None}},
                 "configuration-reply", {"document": None}),
    ]  # fmt: skip


def main() -> None:
    def named(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
        return jwk(key) | {"kid": kid(key)}

    listed = {"v": 1, "issued_at": NOW, "capabilities": ["announce-capabilities", "sync-licenses", "of-a-later-release"]}
    content = {
        "now": NOW,
        "agent": {"agent_id": AGENT, "identity_key": jwk(IDENTITY)},
        "trust": {"issuer": "https://license.example", "license_keys": [named(LICENSE)], "delivery_keys": [named(ROTATION)]},
        "capabilities": {
            "good": jws(ROTATION, "server-capabilities+jwt", kid(ROTATION), listed),
            "content": listed,
            "bad": {
                "signed by the key that signs licenses": jws(LICENSE, "server-capabilities+jwt", kid(LICENSE), listed),
                "a reply": jws(ROTATION, "server-reply+jwt", kid(ROTATION), listed),
                "a name twice": jws(ROTATION, "server-capabilities+jwt", kid(ROTATION), {**listed, "capabilities": ["a", "a"]}),
                "an unknown member": jws(ROTATION, "server-capabilities+jwt", kid(ROTATION), {**listed, "more": 1}),
            },
        },
        "exchanges": exchanges(),
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
