"""Computes SHA-1 and MD5 of packages, once for each: clients of DDI compare them. They protect nothing (threat-model T65)."""

import hashlib
import os
import threading
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.orm import Session

from server.base.errors import RegistryError
from server.registry.database import Database
from server.registry.models.ddi import DdiDigest
from server.registry.models.updates import UpdatePackage

_CHUNK = 1024 * 1024
_one_at_a_time = threading.Lock()


def address_of(path: str, sha256: str) -> str:
    """Where a package's file is in the repository: with consistent snapshots, its digest is part of the name."""
    product, _, name = path.partition("/")
    return f"targets/{product}/{sha256}.{name}"


def known(session: Session, sha256: str) -> DdiDigest | None:
    """The digests of a package, if they were computed."""
    return session.get(DdiDigest, sha256)


def compute(database: Database, repository: Path, package: UpdatePackage) -> None:
    """Reads a package and keeps its digests. It takes seconds, so no transaction is open meanwhile.

    One thread reads at a time, and nobody waits for it: who comes meanwhile is offered the package at the next poll, and
    leaves the threads to those who ask for something else.

    Args:
        database: that keeps them.
        repository: the directory of the repository of updates.
        package: as published.

    Raises:
        RegistryError: the file is missing, or is not the one that was published.
    """
    if not _one_at_a_time.acquire(blocking=False):
        return
    try:
        _compute(database, repository, package)
    finally:
        _one_at_a_time.release()


def _compute(database: Database, repository: Path, package: UpdatePackage) -> None:
    with database.read() as session:
        if known(session, package.sha256) is not None:
            return
    sha256, sha1, md5 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False)
    try:
        with open_package(repository, package.path, package.sha256) as file:
            while chunk := file.read(_CHUNK):
                for each in (sha256, sha1, md5):
                    each.update(chunk)
    except OSError:
        raise RegistryError(f"the file of package {package.path} is missing in the repository: copy it back") from None
    if sha256.hexdigest() != package.sha256:
        raise RegistryError(f"the file of package {package.path} is not the one that was published: copy it back")
    with database.write() as session:
        if known(session, package.sha256) is None:
            session.add(DdiDigest(sha256=package.sha256, sha1=sha1.hexdigest(), md5=md5.hexdigest()))


def open_package(repository: Path, path: str, sha256: str) -> BinaryIO:
    """Opens the file of a package for reading. Raises OSError."""
    descriptor = os.open(repository / address_of(path, sha256), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    return os.fdopen(descriptor, "rb")
