"""A vendor with an update repository, a license server with its root, and what the updater has staged of both."""

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from contracts.keyset import pin_of
from tests.support.pki import make
from tests.vectors.make_directive import b64, compact, jwk
from updatetrust.trustfile import UpdateTrust, parse_trust_file

NOW = 1_800_000_000
DAY = 86_400
AGENT, HARDWARE = "pos-000001", "till-x86"


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def signer(name: str) -> CryptoSigner:
    return CryptoSigner.generate_ecdsa()


@cache
def certificate() -> str:
    return make("license root", authority=True).chain_pem


def pin(name: str = "license root") -> str:
    return pin_of(key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _signed(content: Any, by: str) -> bytes:
    metadata = Metadata(content)
    metadata.sign(signer(by))
    data: bytes = metadata.to_bytes()
    return data


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@cache
def root() -> bytes:
    made = Root(version=1, expires=_moment(NOW + 3650 * DAY), consistent_snapshot=True)
    for role in ("root", "targets"):
        made.add_key(signer("offline").public_key, role)
    for role in ("snapshot", "timestamp"):
        made.add_key(signer("online").public_key, role)
    return _signed(made, "offline")


def trust(**changes: Any) -> UpdateTrust:
    content = {"v": 1, "agent_id": AGENT, "hardware": HARDWARE, "license_roots": [pin()], "tuf_root": json.loads(root())}
    return parse_trust_file(json.dumps(content | changes).encode())


def path_of(version: str, product: str = "pos") -> str:
    return f"{product}/{product}-{version}.tar.zst"


def metadata(
    packages: dict[str, bytes], number: int = 1, floor: str = "0.1", ci: str = "ci", **custom: Any
) -> dict[str, bytes]:
    """The repository's metadata with a target for each package, by version.

    Args:
        packages: by version.
        number: version of every role.
        floor: of the product.
        ci: the key that signs the releases.
        custom: members of every target's `custom`.
    """
    product = custom.get("product", "pos")
    releases = Targets(version=number, expires=_moment(NOW + 3000 * DAY))
    for version, data in packages.items():
        content = {
            "product": product, "version": version, "build_id": f"b{version}", "hardware": [HARDWARE], "kind": "slots",
            "min_agent": "0.1.0", "notes": "", "released_at": NOW - DAY, **custom,
        }  # fmt: skip
        path = path_of(version, product)
        digests = {"sha256": hashlib.sha256(data).hexdigest()}
        releases.targets[path] = TargetFile(len(data), digests, path, {"custom": content})
    targets = Targets(version=number, expires=_moment(NOW + 3000 * DAY), unrecognized_fields={"floors": {product: floor}})
    targets.delegations = Delegations({}, {"releases": DelegatedRole("releases", [], 1, False, paths=["*/*"])})
    targets.add_key(signer("ci").public_key, "releases")
    snapshot = Snapshot(version=number, expires=_moment(NOW - DAY))  # freshness is the updater's to check, not the installer's
    snapshot.meta = {"targets.json": MetaFile(number), "releases.json": MetaFile(number)}
    timestamp = Timestamp(version=number, expires=_moment(NOW - DAY))
    timestamp.snapshot_meta = MetaFile(number)
    return {
        "1.root.json": root(),
        "timestamp.json": _signed(timestamp, "online"),
        "snapshot.json": _signed(snapshot, "online"),
        "targets.json": _signed(targets, "offline"),
        "releases.json": _signed(releases, ci),
    }


def _jws(header: dict[str, Any], content: Any, by: str) -> str:
    signed = f"{b64(compact(header))}.{b64(compact(content))}"
    r, s = decode_dss_signature(key(by).sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def key_set(number: int = 3, by: str = "license root", rotation: str = "rotation", **changes: Any) -> str:
    named = {"kid": "r1", **jwk(key(rotation))}
    content = {
        "v": 1, "number": number, "issuer": "license.example", "issued_at": NOW, "expires": NOW + 90 * DAY,
        "license_keys": [{**named, "kid": "l1"}], "rotation_keys": [named], "enrollment_keys": [{**named, "kid": "e1"}],
        "certificates": [certificate()], "roots": [pin(by)], **changes,
    }  # fmt: skip
    return _jws({"alg": "ES256", "typ": "key-set+jwt", "jwk": jwk(key(by))}, content, by)


def directive(version: str, package: bytes, /, number: int = 7, by: str = "rotation", **changes: Any) -> str:
    content = {
        "v": 1, "number": number, "agent_id": AGENT, "product": "pos", "target": path_of(version),
        "sha256": hashlib.sha256(package).hexdigest(), "length": len(package), "version": version, "build_id": f"b{version}",
        "rollout": "", "not_before": NOW, "not_after": NOW + 30 * DAY, "window": None, "notice_until": 0, "downgrade": False,
        "withdraws": None, **changes,
    }  # fmt: skip
    return _jws({"alg": "ES256", "typ": "update-directive+jwt", "kid": "r1"}, content, by)


def stage(
    staging: Path,
    version: str,
    package: bytes,
    /,
    *,
    number: int = 7,
    more: dict[str, bytes] | None = None,
    **files: str | bytes,
) -> str:
    """Writes what the updater stages, and returns the name of its directory: the SHA-256.

    Args:
        staging: the updater's directory.
        version: of the package.
        package: its bytes.
        number: of the directive, and of the metadata.
        more: other packages of the repository, by version.
        files: in place of `directive`, `key_set` and `package`; "" leaves a file out.
    """
    sha256 = hashlib.sha256(package).hexdigest()
    directory = staging / sha256
    (directory / "metadata").mkdir(parents=True, exist_ok=True)
    content: dict[str, str | bytes] = {
        "directive": directive(version, package, number), "key_set": key_set(), "package": package,
    }  # fmt: skip
    content |= files
    names = {"directive": "directive.jws", "key_set": "key-set.jws", "package": "package"}
    for name, data in content.items():
        if data:
            (directory / names[name]).write_bytes(data.encode() if isinstance(data, str) else data)
    for name, data in metadata({version: package, **(more or {})}, number).items():
        (directory / "metadata" / name).write_bytes(data)
    return sha256
