"""Writes the seed corpora: small examples of everything that the targets read. Run it after a change of a format."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgpack

from audittrail.chain import CHECKPOINT, Chain, fold_checkpoint, heads_digest, heads_fields
from contracts.jose import b64encode
from tests.support.tufrepository import UpdateRepository
from tests.updatetrust.facts import CUSTOM, TRUST
from tests.vectors import make_directive
from updatetrust.trustfile import encode_trust_file

CORPUS = Path(__file__).parent / "corpus"


def frames() -> dict[str, bytes]:
    """Requests of every shape, alone and in frames."""
    nonce = bytes(16)
    requests = {
        "validate": {"v": 1, "id": 1, "op": "validate_license", "token": "a..b.c.d", "nonce": nonce},
        "require": {"v": 1, "id": 1, "op": "require", "feature": "fuel", "product": None, "nonce": nonce},
        "licenses": {"v": 1, "id": 1, "op": "licenses", "after": "", "metadata": False, "nonce": nonce},
        "count": {"v": 1, "id": 1, "op": "count_usage", "meter": "sales", "amount": 3, "count_id": nonce},
        "refresh": {"v": 1, "id": 2, "op": "refresh_license", "token": "a..b.c.d"},
        "ping": {"v": 1, "id": 3, "op": "ping"},
        "invalidate": {"v": 1, "id": 4, "op": "secret_invalidate", "version": 2},
        "tail": {"v": 1, "id": 5, "op": "audit_tail", "after_seq": -1, "limit": 10},
        "version2": {"v": 2, "id": 6, "op": "ping", "more": [1.5, None, True]},
        "error": {"v": 1, "id": 1, "error": {"code": 7, "text": "no"}},
        "verdict": {
            "v": 1, "id": 1, "nonce": nonce, "valid": True, "reason": "ok", "features": ["a"], "metadata": {"k": "v"},
            "degraded": False, "clock_suspect": False, "reissue_due": False, "refreshed": False, "expires_at": 5,
        },
    }  # fmt: skip
    verdict = requests["verdict"]
    held = {**verdict, "license": "license-1", "product": None, "begins_at": 1}
    requests["required"] = {**verdict, "features": ["fuel"], "license": "license-1", "product": "p", "secret_state": "ACTIVE"}
    requests["page"] = {"v": 1, "id": 1, "nonce": nonce, "licenses": [held], "next": None}
    requests["counted"] = {
        "v": 1, "id": 1, "count_id": nonce, "counted": True, "repeated": False, "reason": "ok", "license": "license-1",
    }  # fmt: skip
    bodies = {name: msgpack.packb(each) for name, each in requests.items()}
    found = dict(bodies)
    found["framed"] = b"".join(len(body).to_bytes(4, "big") + body for body in bodies.values())
    found["oversized"] = b"\xff\xff\xff\xff" + bodies["ping"]
    found["empty"] = bytes(4)
    return found


def token() -> dict[str, bytes]:
    """Parts of tokens and deliveries with headers of our form."""
    outer = b64encode(b'{"alg":"dir","enc":"A256GCM","cty":"JWT","kid":"pos-001/1"}')
    inner = b64encode(b'{"alg":"ES256","typ":"license+jwt","kid":"k"}')
    header = b64encode(b'{"alg":"ES256","typ":"secret-delivery+jwt","kid":"k"}')
    body = b64encode(b'{"iss":"issuer","exp":5}')
    trust = {
        "issuer": "i",
        "license_keys": [{"kty": "EC", "crv": "P-256", "x": "A", "y": "A", "kid": "k"}],
        "delivery_keys": [],
    }
    return {
        "token": f"{outer}..{b64encode(bytes(12))}.{b64encode(bytes(20))}.{b64encode(bytes(16))}".encode(),
        "jws": f"{inner}.{body}.{b64encode(bytes(64))}".encode(),
        "delivery": f"{header}.{body}.{b64encode(bytes(64))}".encode(),
        "trust": json.dumps(trust).encode(),
        "dots": b"....",
        "text": "é\u20ac".encode(),
    }


def audit() -> dict[str, bytes]:
    """A short log with a checkpoint, and contents of records."""
    chain = Chain()
    lines = [chain.append(1.8e9, 1.0, "agent.started", "ok", {"version": "1"})]
    value = fold_checkpoint(bytes(32), heads_digest(chain.heads))
    heads = heads_fields(chain.heads)
    lines.append(chain.append(1.8e9, 2.0, CHECKPOINT, "ok", {"heads": heads, "before": bytes(32).hex(), "value": value.hex()}))
    lines.append(chain.append(1.8e9, 3.0, "license.validated", "expired", {"actor": {"uid": 1}}))
    return {
        "log": b"".join(lines),
        "later": b"".join(lines[1:]),
        "cut": b"".join(lines)[:-20],
        "content": b'"security","event":"audit.checkpoint","value":"00","before":"00"',
        "certified": b'"security","event":"audit.certified","attested":"TEFTVwA=","signature":"AA=="',
        "deep": b'"security","event":"audit.checkpoint","x":[[[[]]]]',
    }


def updates() -> dict[str, bytes]:
    """A directive, signed and bare, what a repository says of a package, root's file, and metadata of each role."""
    repository = UpdateRepository(make_directive.NOW)
    repository.publish(make_directive.CONTENT["target"], make_directive.PACKAGE, CUSTOM)
    files = repository.files()
    return {
        "directive": make_directive.compact(make_directive.CONTENT),
        "signed": make_directive.vectors()["accepted"][0]["directive"].encode(),
        "custom": json.dumps(CUSTOM).encode(),
        "trust": encode_trust_file(TRUST),
        "version": b"3.2.1-rc.1",
        "root": files.roots[1],
        "timestamp": files.timestamp,
        "targets": files.targets,
        "releases": files.roles["releases"],
    }


def main() -> None:
    """Writes all of them."""
    for name, files in (("frames", frames()), ("token", token()), ("audit", audit()), ("updates", updates())):
        directory = CORPUS / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (directory / file).write_bytes(data)


if __name__ == "__main__":
    main()
