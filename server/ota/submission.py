"""Reads and writes a submission: a directory with documents to be signed and published, and the packages that they name.

    DIRECTORY/metadata/    the documents, as N.<role>.json; their signatures are added one by one
    DIRECTORY/packages/    new packages: <product>/<file>
    DIRECTORY/present/     the root and targets that are published, so that a holder of a key can compare

It is made where the published metadata is, carried to whoever has the keys, and brought to the server. Nothing in it is secret,
and nothing in it is believed: `published.judge` verifies all of it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets

from common.files import os_problem, write_atomic
from server.base.errors import Conflict, Invalid, NotFound, RegistryError

from . import documents
from .packages import Package
from .published import Change, Published, file_name
from .repository import copy_checked
from .words import PACKAGE_ROLES, ROOT, SIGNED_ELSEWHERE, TARGETS

METADATA, PACKAGES, PRESENT = "metadata", "packages", "present"


@dataclass(frozen=True, slots=True)
class Signed:
    """How far a document of a submission is signed.

    Attributes:
        role: whose it is.
        version: of the document.
        counts: how many holders have signed and how many must, by each document that names the keys.
    """

    role: str
    version: int
    counts: tuple[tuple[int, int], ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, as far as the submission itself can tell."""
        return bool(self.counts) and all(have >= need for have, need in self.counts)


class Submission:
    """A submission.

    Args:
        directory: of it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(self, present: Published | None) -> None:
        """Creates the directory, with what is published to compare with.

        Raises:
            Conflict: it exists and is not empty.
            RegistryError: it cannot be created.
        """
        try:
            if self.directory.exists() and any(self.directory.iterdir()):
                raise Conflict(f"{self.directory} is not empty; name another directory")
            for name in (METADATA, PACKAGES, PRESENT):
                (self.directory / name).mkdir(parents=True)
            if present is not None:
                for role in (ROOT, TARGETS):
                    document = present.document(role)
                    name = file_name(role, document.signed.version)
                    write_atomic(self.directory / PRESENT / name, document.to_bytes(), 0o644)
        except OSError as problem:
            raise RegistryError(f"the submission cannot be written: {os_problem(problem)}") from None

    def put(self, role: str, document: Metadata[Any]) -> None:
        """Writes a document. Raises RegistryError."""
        name = file_name(role, document.signed.version)
        try:
            write_atomic(self.directory / METADATA / name, document.to_bytes(), 0o644)
        except OSError as problem:
            raise RegistryError(f"the submission cannot be written: {os_problem(problem)}") from None

    def take(self, source: Path, package: Package) -> None:
        """Copies a package into the submission, and checks it. Raises RegistryError."""
        target = self.directory / PACKAGES / package.path
        try:
            target.parent.mkdir(exist_ok=True)
            copy_checked(source, target, package)
        except OSError as problem:
            raise RegistryError(f"the submission cannot be written: {os_problem(problem)}") from None

    def documents(self) -> dict[str, Metadata[Any]]:
        """The documents, by role.

        Raises:
            NotFound: there is no submission.
            Invalid: a role has two documents, or a name is not that of a role.
            RegistryError: one cannot be read.
        """
        return self._read(METADATA)

    def _read(self, part: str) -> dict[str, Metadata[Any]]:
        folder = self.directory / part
        if not (self.directory / METADATA).is_dir():
            raise NotFound(f"{self.directory} is no submission: it has no directory {METADATA!r}")
        found: dict[str, Metadata[Any]] = {}
        for path in sorted(folder.glob("*.json")):
            _version, _, role = path.name.removesuffix(".json").partition(".")
            if role not in SIGNED_ELSEWHERE or role in found:
                raise Invalid(f"{path} is not a document of a submission, or its role has another one: remove it")
            try:
                data = path.read_bytes()
            except OSError as problem:
                raise RegistryError(f"the submission cannot be read: {os_problem(problem)}") from None
            document = documents.read(role, data, str(path))
            if path.name != file_name(role, document.signed.version):
                raise Invalid(f"{path} has version {document.signed.version}")
            found[role] = document
        return found

    def change(self) -> Change:
        """What is to be published. Raises as `documents`."""
        found = self.documents()
        roles: dict[str, Metadata[Targets]] = {role: found[role] for role in PACKAGE_ROLES if role in found}
        return Change(found.get(ROOT), found.get(TARGETS), roles)

    def sources(self) -> dict[str, Path]:
        """Where the packages are, by their path in the repository."""
        folder = self.directory / PACKAGES
        return {str(path.relative_to(folder)): path for path in folder.glob("*/*") if path.is_file()}

    def sign(self, signer: Signer) -> list[Signed]:
        """Adds the signature of a key to every document that names it among its holders; returns those documents.

        Raises:
            NotFound: no document wants this key.
            RegistryError: a document cannot be read or written.
        """
        found, signed = self.documents(), []
        keyid = signer.public_key.keyid
        for role, document in found.items():
            delegators = self._delegators(role, found)
            if any(keyid in documents.holders_of(each, role) for each in delegators):
                document.sign(signer, append=True)
                self.put(role, document)
                signed.append(self._signed(role, document, delegators))
        if not signed:
            raise NotFound(f"no document in {self.directory} names the key {keyid}: it belongs to another role or repository")
        return signed

    def standing(self) -> list[Signed]:
        """How far each document is signed. Raises RegistryError."""
        found = self.documents()
        return [self._signed(role, found[role], self._delegators(role, found)) for role in found]

    def _signed(self, role: str, document: Metadata[Any], delegators: list[Root | Targets]) -> Signed:
        return Signed(role, document.signed.version, tuple(documents.count_signatures(document, role, delegators)))

    def _delegators(self, role: str, found: dict[str, Metadata[Any]]) -> list[Root | Targets]:
        """The documents that name the keys of a role: the one that is published, and the next one."""
        present, above = self._read(PRESENT), TARGETS if role in PACKAGE_ROLES else ROOT
        both = [each[above].signed for each in (present, found) if above in each]
        # Packages need satisfy only the targets that come with them.
        return both[-1:] if role in PACKAGE_ROLES else both

    def remove(self) -> None:
        """Removes the submission. Raises RegistryError."""
        try:
            shutil.rmtree(self.directory)
        except OSError as problem:
            raise RegistryError(f"the submission cannot be removed: {os_problem(problem)}") from None
