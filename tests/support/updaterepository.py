"""A small update repository with its keys, a license server's key set, and directives: all that the updater verifies."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from contracts.keyset import pin_of
from tests.support.pki import make
from tests.vectors.make_directive import b64, compact, jwk

NOW = 1_800_000_000
DAY = 86_400
AGENT, HARDWARE, PATH = "pos-000001", "till-x86", "pos/pos-3.2.1.tar"


@dataclass
class UpdateRepository:
    """The vendor's repository and the license server, both with keys of their own.

    Attributes:
        package: the one target's content.
        files: what the repository has, by path.
    """

    package: bytes = b"the package\n"
    fresh_until: int = NOW + 7 * DAY
    files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._online, self._offline, self._ci = (CryptoSigner.generate_ecdsa() for _ in range(3))
        self.license_root, self.rotation = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = Root(version=1, expires=_moment(NOW + 365 * DAY), consistent_snapshot=True)
        for role, signer in (("root", self._offline), ("targets", self._offline)):
            root.add_key(signer.public_key, role)
        for role in ("snapshot", "timestamp"):
            root.add_key(self._online.public_key, role)
        self.root = _signed(root, self._offline)
        self.files["metadata/1.root.json"] = self.root
        self.publish(1)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.package).hexdigest()

    def publish(self, version: int, floor: str = "3.0.0", **custom: Any) -> None:
        """Publishes the package with metadata of this version."""
        content = {
            "product": "pos",
            "version": "3.2.1",
            "build_id": "ci-4711",
            "hardware": [HARDWARE],
            "kind": "slots",
            "min_agent": "0.1.0",
            "notes": "Faster start.",
            "released_at": NOW - DAY,
            **custom,
        }
        releases = Targets(version=version, expires=_moment(NOW + 90 * DAY))
        releases.targets[PATH] = TargetFile(len(self.package), {"sha256": self.sha256}, PATH, {"custom": content})
        targets = Targets(version=version, expires=_moment(NOW + 90 * DAY), unrecognized_fields={"floors": {"pos": floor}})
        role = DelegatedRole("releases", [], 1, False, paths=["*/*"])
        targets.delegations = Delegations({}, {"releases": role})
        targets.add_key(self._ci.public_key, "releases")
        snapshot = Snapshot(version=version, expires=_moment(self.fresh_until))
        snapshot.meta = {"targets.json": MetaFile(version), "releases.json": MetaFile(version)}
        timestamp = Timestamp(version=version, expires=_moment(self.fresh_until))
        timestamp.snapshot_meta = MetaFile(version)
        self.files |= {
            f"metadata/{version}.releases.json": _signed(releases, self._ci),
            f"metadata/{version}.targets.json": _signed(targets, self._offline),
            f"metadata/{version}.snapshot.json": _signed(snapshot, self._online),
            "metadata/timestamp.json": _signed(timestamp, self._online),
            f"targets/pos/{self.sha256}.pos-3.2.1.tar": self.package,
        }
        self._version = version

    def metadata(self) -> dict[str, bytes]:
        """The metadata by the names that a bundle has."""
        names = {f"{name}.json": f"metadata/{self._version}.{name}.json" for name in ("releases", "targets", "snapshot")}
        return {
            "1.root.json": self.root,
            "timestamp.json": self.files["metadata/timestamp.json"],
            **{name: self.files[path] for name, path in names.items()},
        }

    def trust_file(self, path: Path) -> Path:
        """Writes root's file."""
        trust = {
            "v": 1,
            "agent_id": AGENT,
            "hardware": HARDWARE,
            "license_roots": [pin_of(_spki(self.license_root))],
            "tuf_root": json.loads(self.root),
        }
        path.write_bytes(json.dumps(trust).encode())
        path.chmod(0o644)
        return path

    def key_set(self, key: ec.EllipticCurvePrivateKey | None = None, **changes: Any) -> str:
        """A key set with the rotation key, signed by the license server's root, or by another key."""
        root = key or self.license_root
        named = {"kid": "r1", **jwk(self.rotation)}
        content = {
            "v": 1,
            "number": 3,
            "issuer": "license.example",
            "issued_at": NOW,
            "expires": NOW + 90 * DAY,
            "license_keys": [{**named, "kid": "l1"}],
            "rotation_keys": [named],
            "enrollment_keys": [{**named, "kid": "e1"}],
            "certificates": [make("license root", authority=True).chain_pem],
            "roots": [pin_of(_spki(self.license_root))],
            **changes,
        }
        return _jws({"alg": "ES256", "typ": "key-set+jwt", "jwk": jwk(root)}, content, root)

    def directive(self, key: ec.EllipticCurvePrivateKey | None = None, **changes: Any) -> str:
        """A directive for the package, signed by the rotation key, or by another key."""
        content = {
            "v": 1,
            "number": 7,
            "agent_id": AGENT,
            "product": "pos",
            "target": PATH,
            "sha256": self.sha256,
            "length": len(self.package),
            "version": "3.2.1",
            "build_id": "ci-4711",
            "rollout": "",
            "not_before": NOW,
            "not_after": NOW + 30 * DAY,
            "window": None,
            "notice_until": 0,
            "downgrade": False,
            "withdraws": None,
            **changes,
        }
        return _jws({"alg": "ES256", "typ": "update-directive+jwt", "kid": "r1"}, content, key or self.rotation)

    def bundle(self, path: Path, package: bytes | None = None, papers: bool = True, **more: bytes) -> Path:
        """Writes a bundle, as `tar --format=ustar` does."""
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            if papers:
                _add(archive, "directive.jws", self.directive().encode())
                _add(archive, "key-set.jws", self.key_set().encode() + b"\n")
            folder = tarfile.TarInfo("metadata")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
            for name, data in {**self.metadata(), **more}.items():
                _add(archive, f"metadata/{name}", data)
            _add(archive, "package", self.package if package is None else package)
        return path


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _signed(content: Any, signer: CryptoSigner) -> bytes:
    metadata = Metadata(content)
    metadata.sign(signer)
    data: bytes = metadata.to_bytes()
    return data


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _jws(header: dict[str, Any], content: Any, key: ec.EllipticCurvePrivateKey) -> str:
    signed = f"{b64(compact(header))}.{b64(compact(content))}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
