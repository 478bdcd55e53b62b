"""An update repository in memory, as a vendor publishes it. Every key is at hand, so tests can sign what no vendor would.

root       2 of 3 offline keys       N.root.json
targets    2 of 3 offline keys       floors, and the delegation to `releases` for `*/*`
releases   the key of the release pipeline
snapshot, timestamp                  one online key each
"""

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
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

from updatetrust.client import NotThere
from updatetrust.metadata import FLOORS
from updatetrust.metadatafiles import MetadataFiles

RELEASES = "releases"
ONLINE_DAYS, OFFLINE_DAYS, RELEASES_DAYS = 2, 365, 90
SIGNERS = {"root": (2, 3), "targets": (2, 3), RELEASES: (1, 1), "snapshot": (1, 1), "timestamp": (1, 1)}
"""Threshold and number of keys of each role."""


@cache
def signer(name: str) -> CryptoSigner:
    """A key by its name, the same one in each process, so that a repository is the same each time."""
    if name.startswith("ecdsa"):
        return CryptoSigner.generate_ecdsa()
    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


class UpdateRepository:
    """What the vendor publishes. Change `root`, `targets`, `releases`, `snapshot` or `timestamp`, then call `sign`.

    Args:
        now: seconds since 1970 UTC.
        floors: the lowest version allowed of each product.
    """

    def __init__(self, now: int, floors: dict[str, str] | None = None) -> None:
        self.now = datetime.fromtimestamp(now, UTC)
        self.signers = {role: [signer(f"{role}{n}") for n in range(many)] for role, (_, many) in SIGNERS.items()}
        self.history: dict[str, bytes] = {}
        """Every file by its path in the repository."""
        online, offline = self._in(ONLINE_DAYS), self._in(OFFLINE_DAYS)
        self.root = Root(expires=offline, consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            self.root.roles[role].threshold = SIGNERS[role][0]
            for each in self.signers[role]:
                self.root.add_key(each.public_key, role)
        releases = DelegatedRole(RELEASES, [], SIGNERS[RELEASES][0], terminating=True, paths=["*/*"])
        self.targets = Targets(expires=offline, delegations=Delegations({}, {RELEASES: releases}))
        self.targets.unrecognized_fields[FLOORS] = {"pos": "3.0.0"} if floors is None else floors
        for each in self.signers[RELEASES]:
            self.targets.add_key(each.public_key, RELEASES)
        self.releases = Targets(expires=self._in(RELEASES_DAYS))
        self.snapshot = Snapshot(expires=online)
        self.timestamp = Timestamp(expires=online)
        self.sign()
        self.bootstrap = self.history["metadata/1.root.json"]

    def _in(self, days: int) -> datetime:
        return self.now + timedelta(days=days)

    def _write(self, role: str, signed: Root | Targets | Snapshot | Timestamp, signers: list[CryptoSigner]) -> bytes:
        metadata: Metadata[Any] = Metadata(deepcopy(signed))
        for each in signers:
            metadata.sign(each, append=True)
        data = metadata.to_bytes()
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{quote(role, '')}.json"
        self.history[f"metadata/{name}"] = data
        return data

    def sign(self, former_root: list[CryptoSigner] = []) -> None:  # noqa: B006  # it is not changed
        """Signs everything in its present version, and publishes it.

        Args:
            former_root: keys of the root before, which sign the new one too.
        """
        self._write(
            "root", self.root, [*self.signers["root"], *(each for each in former_root if each not in self.signers["root"])]
        )
        named = {
            f"{role}.json": MetaFile.from_data(signed.version, self._write(role, signed, self.signers[role]), ["sha256"])
            for role, signed in (("targets", self.targets), (RELEASES, self.releases))
        }
        self.snapshot.meta = {**self.snapshot.meta, **named}
        self.sign_online()

    def sign_online(self) -> None:
        """Signs snapshot and timestamp as they are."""
        data = self._write("snapshot", self.snapshot, self.signers["snapshot"])
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self._write("timestamp", self.timestamp, self.signers["timestamp"])

    def next(self, *roles: str) -> "UpdateRepository":
        """Gives these roles, snapshot and timestamp their next version, without signing."""
        for role in {*roles, "snapshot", "timestamp"}:
            getattr(self, role).version += 1
        return self

    def publish(self, path: str, data: bytes, custom: dict[str, Any]) -> None:
        """Adds a package by the key of the release pipeline."""
        target = TargetFile.from_data(path, data, ["sha256"])
        target.unrecognized_fields["custom"] = custom
        self.releases.targets[path] = target
        folder, _, name = path.rpartition("/")
        self.history[f"targets/{folder}/{hashlib.sha256(data).hexdigest()}.{name}"] = data
        self.next(RELEASES).sign()

    def replace_keys(self, role: str, *names: str) -> list[CryptoSigner]:
        """Replaces a role's keys by others, without signing; returns the former ones."""
        former = self.signers[role]
        self.signers[role] = [signer(name) for name in names]
        delegator = self.targets if role == RELEASES else self.root
        for each in former:
            delegator.revoke_key(each.public_key.keyid, role)
        for each in self.signers[role]:
            delegator.add_key(each.public_key, role)
        return former

    def new_root(self, former: list[CryptoSigner] = []) -> None:  # noqa: B006  # it is not changed
        """Publishes the next version of the root."""
        self.root.version += 1
        self.next().sign(former)

    def files(self) -> MetadataFiles:
        """The newest metadata as a set, as somebody might carry it to the machine."""

        def file(role: str, signed: Targets | Snapshot) -> bytes:
            return self.history[f"metadata/{signed.version}.{role}.json"]

        return MetadataFiles(
            roots={number: self.history[f"metadata/{number}.root.json"] for number in range(1, self.root.version + 1)},
            timestamp=self.history["metadata/timestamp.json"],
            snapshot=file("snapshot", self.snapshot),
            targets=file("targets", self.targets),
            roles={RELEASES: file(RELEASES, self.releases)},
        )

    def source(self, path: str) -> Iterator[bytes]:
        """The repository over the network, in pieces."""
        data = self.history.get(path)
        if data is None:
            raise NotThere(path)
        for place in range(0, len(data), 4096):
            yield data[place : place + 4096]
