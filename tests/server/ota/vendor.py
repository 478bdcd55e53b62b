"""A vendor of updates for the tests: keys of all holders, a repository in a directory, and a client that judges it."""

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tuf.ngclient
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import FetcherInterface, Updater

from common.files import no_trace
from server.ota import documents, packages
from server.ota.documents import Holders
from server.ota.online import files_of, renewed
from server.ota.packages import Package
from server.ota.published import Change, Published, judge
from server.ota.repository import Repository, digest_of
from server.ota.words import ONLINE, PACKAGE_ROLES, RELEASES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from updatetrust.target import Kind, Target

NOW = 1_800_000_000
HARDWARE = ("till-mk1",)


def new_signer() -> CryptoSigner:
    return CryptoSigner(ec.generate_private_key(ec.SECP256R1()))


def target_of(version: str, build_id: str, **changed: Any) -> Target:
    members: dict[str, Any] = {
        "product": "pos",
        "path": f"pos/pos-{version}-{build_id}",
        "length": 1,
        "sha256": "0" * 64,
        "version": version,
        "build_id": build_id,
        "hardware": HARDWARE,
        "kind": Kind.SLOTS,
        "min_agent": "0.1.0",
        "notes": "",
        "released_at": NOW,
    }
    return Target(**(members | changed))


class Vendor:
    """All holders of keys, and a repository.

    Args:
        directory: for the repository and packages.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.repository = Repository(directory / "updates")
        self.holders = {ROOT: [new_signer() for _ in range(3)], **{role: [new_signer()] for role in (TARGETS, *PACKAGE_ROLES)}}
        self.thresholds = {ROOT: 2}
        self.online = {role: [new_signer()] for role in ONLINE}
        self.now = NOW
        self.added: list[CryptoSigner] = []

    @classmethod
    def of_today(cls, directory: Path) -> "Vendor":
        """One whose documents fit those that a command makes now."""
        made = cls(directory)
        made.now = int(time.time())
        return made

    def copied_to(self, directory: Path) -> "Vendor":
        """The same vendor with a copy of the repository."""
        other = copy.copy(self)
        shutil.copytree(self.directory, directory)
        other.directory, other.repository = directory, Repository(directory / "updates")
        other.online = {role: list(signers) for role, signers in self.online.items()}
        return other

    def trace(self, trace: Callable[[str], None] = no_trace) -> None:
        """Has each step of a publication traced."""
        self.repository = Repository(self.repository.directory, trace)

    # Documents

    def who(self, role: str) -> Holders:
        signers = self.online[role][-1:] if role in ONLINE else self.holders[role]
        return Holders(tuple(each.public_key for each in signers), self.thresholds.get(role, 1))

    def first(self, floors: dict[str, str] | None = None) -> Change:
        root = documents.new_root({role: self.who(role) for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)}, self.now)
        targets = documents.new_targets(
            {role: self.who(role) for role in PACKAGE_ROLES}, {"pos": "1.0.0"} if floors is None else floors, self.now
        )
        roles = {role: documents.new_packages(role, self.now) for role in PACKAGE_ROLES}
        every: dict[str, Metadata[Any]] = {ROOT: root, TARGETS: targets, **roles}
        for role, document in every.items():
            documents.sign(document, self.holders[role])
        return Change(root, targets, roles)

    def next_root(self, change: Callable[[Root], None] = lambda _root: None) -> Metadata[Root]:
        root = documents.successor(self.present().root, ROOT, self.now)
        change(root.signed)
        documents.sign(root, self.holders[ROOT])
        return root

    def next_targets(self, change: Callable[[Targets], None] = lambda _targets: None) -> Metadata[Targets]:
        targets = documents.successor(self.present().targets, TARGETS, self.now)
        change(targets.signed)
        documents.sign(targets, self.holders[TARGETS])
        return targets

    def roles(self, change: Callable[[dict[str, Metadata[Targets]]], object], *changed: str) -> Change:
        present = self.present()
        made = {role: documents.successor(present.roles[role], role, self.now) for role in PACKAGE_ROLES}
        change(made)
        for role in PACKAGE_ROLES:
            documents.sign(made[role], self.holders[role])
        return Change(roles={role: made[role] for role in changed or PACKAGE_ROLES})

    def package(
        self, version: str, build_id: str, role: str = RELEASES, content: bytes = b"", **changed: Any
    ) -> tuple[Package, Path]:
        source = self.directory / f"{build_id}.bundle"
        source.write_bytes(content or f"package {build_id}".encode() * 10)
        sha256, length = digest_of(source)
        return Package(role, target_of(version, build_id, sha256=sha256, length=length, **changed)), source

    # Publication

    def present(self) -> Published:
        return self.repository.present()

    def publish(self, change: Change, sources: dict[str, Path] | None = None) -> None:
        with self.repository.locked():
            present = self.repository.load()
            coming = judge(present, change, self.now)
            named = list(packages.packages_in(coming.roles))
            files = files_of(present, coming, self.online, self.now)
            self.repository.put(named, sources or {})
            self.repository.write(files, named)

    def renew(self, *, force: bool = False) -> list[str]:
        with self.repository.locked():
            present = self.present()
            files = renewed(present, self.online, self.now, force=force)
            self.repository.write(files, list(packages.packages_in(present.roles)))
            return [file.name for file in files]

    def release(self, version: str, build_id: str, role: str = RELEASES, **changed: Any) -> Package:
        package, source = self.package(version, build_id, role, **changed)
        self.publish(self.roles(lambda roles: packages.add(roles, package), role), {package.path: source})
        return package


def key_file(path: Path, signer: CryptoSigner) -> Path:
    """A signer's private key as its holder keeps it."""
    path.write_bytes(signer.private_bytes)
    path.chmod(0o600)
    return path


class _Files(FetcherInterface):
    """Fetches from a directory instead of a network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._directory / url.removeprefix("https://updates.example/")
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        yield path.read_bytes()


class Machine:
    """A client of python-tuf that keeps its metadata, as a machine does.

    Args:
        directory: its own.
        first_root: that it was given when it was set up.
    """

    def __init__(self, directory: Path, first_root: bytes) -> None:
        directory.mkdir(exist_ok=True)
        self._directory, self._root = directory, first_root

    def copied_to(self, directory: Path) -> "Machine":
        """The same machine a second time."""
        shutil.copytree(self._directory, directory)
        return Machine(directory, self._root)

    def look(self, repository: Path, now: int, path: str | None = None) -> bytes | None:
        """Refreshes, and downloads a package if one is named; None if the repository does not name it."""
        updater = Updater(
            str(self._directory), "https://updates.example/metadata/", None, "https://updates.example/targets/",
            _Files(repository), tuf.ngclient.UpdaterConfig(), bootstrap=self._root,
        )  # fmt: skip
        updater._trusted_set.reference_time = documents.expiry(ROOT, now, 0)
        updater.refresh()
        if path is None:
            return None
        info = updater.get_targetinfo(path)
        if info is None:
            return None
        to = self._directory / "package"
        updater.download_target(info, str(to))
        return to.read_bytes()


class Killed(BaseException):
    """The process ends here."""


def killing(step: int) -> Callable[[str], None]:
    """A trace that ends the process behind so many steps."""
    left = [step]

    def trace(_name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return trace
