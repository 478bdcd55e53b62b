"""Publishes submissions and signs the online roles again: repository, online keys and the registry's list of packages together.

The directory is the truth of what is published, the registry's list is made from it: a publication that was killed between the
two is put right by the next one, or by the timed job.
"""

import json
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.base.errors import Conflict
from server.registry import audit
from server.registry.cipher import Cipher
from server.registry.database import Database
from server.registry.models.updates import UpdatePackage

from . import onlinekeys, packages
from .online import files_of, renewed
from .packages import Package
from .published import Published, judge
from .repository import Repository
from .submission import Submission

WITHDRAWN = "withdrawn"
"""The role, in the registry, of a package that the repository names no more."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a publication has done.

    Attributes:
        documents: the version of each document that is new, by role.
        added: paths of the packages that are new.
        moved: paths of those that came from candidate to releases.
        withdrawn: paths of those that are gone.
    """

    documents: dict[str, int]
    added: list[str]
    moved: list[str]
    withdrawn: list[str]


def publish(database: Database, cipher: Cipher, repository: Repository, submission: Submission, now: int) -> Done:
    """Publishes a submission.

    Packages are copied between two transactions: a great one takes longer than agents wait for the registry.

    Args:
        database: the registry's.
        cipher: opens the online keys.
        repository: where it is published.
        submission: what is published.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: signatures are missing, or something is malformed.
        Conflict: what is published has changed meanwhile, or a build was published before.
        RegistryError: it cannot be published; what was published before still is.
    """
    with repository.locked():
        present = repository.load()
        before = {} if present is None else {each.path: each for each in packages.packages_in(present.roles)}
        coming = judge(present, submission.change(), now)
        named = list(packages.packages_in(coming.roles))
        with database.write() as session:
            if present is not None:
                record(session, list(before.values()), now)
            _require_new_builds(session, named)
            signers = onlinekeys.signers(session, cipher)
        files = files_of(present, coming, signers, now)
        repository.put(named, submission.sources())
        done = _done(before, named, {role: document.signed.version for role, document in coming.new.items()})
        with database.write() as session:
            record(session, named, now)
            fields = {"documents": done.documents, "added": done.added, "moved": done.moved, "withdrawn": done.withdrawn}
            shown = {name: value for name, value in fields.items() if value}
            audit.record(session, audit.ADMIN, "ota.published", "ok", now, **shown)
            # The registry's commit follows: if it fails, the next publication or the timed job records what is published.
            repository.write(files, named)
        return done


def renew(database: Database, cipher: Cipher, repository: Repository, now: int, *, force: bool = False) -> list[str]:
    """Signs snapshot and timestamp again if they end soon; returns the names of the files.

    Args:
        database: the registry's.
        cipher: opens the online keys.
        repository: that is renewed.
        now: seconds since 1970 UTC.
        force: whether to sign them in any case.

    Raises:
        RegistryError: nothing is published, the repository is not valid, or the registry has not its keys.
    """
    with repository.locked():
        present = repository.present()
        named = list(packages.packages_in(present.roles))
        with database.write() as session:
            files = renewed(present, onlinekeys.signers(session, cipher), now, force=force)
            record(session, named, now)
        if files:
            repository.write(files, named)
        return [file.name for file in files]


def record(session: Session, named: list[Package], now: int) -> None:
    """Brings the registry's list of packages to what the repository names.

    Args:
        session: of a writing transaction.
        named: every package that the repository names.
        now: seconds since 1970 UTC.
    """
    rows = {row.path: row for row in session.scalars(select(UpdatePackage))}
    for package in named:
        row, target = rows.pop(package.path, None), package.target
        if row is None:
            session.add(
                UpdatePackage(
                    path=package.path, product=target.product, version=target.version, build_id=target.build_id,
                    kind=target.kind, hardware=json.dumps(list(target.hardware)), sha256=target.sha256,
                    length=target.length, role=package.role, published_at=now, updated_at=now,
                )
            )  # fmt: skip
        elif row.role != package.role:
            row.role, row.updated_at = package.role, now
    for row in rows.values():
        if row.role != WITHDRAWN:
            row.role, row.updated_at = WITHDRAWN, now
    session.flush()


def _require_new_builds(session: Session, named: list[Package]) -> None:
    """Raises Conflict if a package has the build id or the path of another one that was ever published here."""
    for package in named:
        known = select(UpdatePackage).where(UpdatePackage.build_id == package.target.build_id)
        row = session.scalars(known).first()
        if row is not None and (row.path, row.sha256) != (package.path, package.target.sha256):
            raise Conflict(
                f"the build id {package.target.build_id!r} of {package.path} is that of {row.path}, which was published "
                "before: each build has its own"
            )
        row = session.get(UpdatePackage, package.path)
        if row is not None and row.sha256 != package.target.sha256:
            raise Conflict(f"{package.path} was published before with another content: give the new build another file name")


def _done(before: dict[str, Package], named: list[Package], documents: dict[str, int]) -> Done:
    after = {each.path: each for each in named}
    return Done(
        documents,
        sorted(path for path in after if path not in before),
        sorted(path for path, each in after.items() if path in before and before[path].role != each.role),
        sorted(path for path in before if path not in after),
    )


def expiring(present: Published, now: int) -> list[tuple[str, int, int]]:
    """Role, version and end of all metadata, what ends first at the top."""
    versions = present.versions()
    return sorted(((role, versions[role], end) for role, end in present.ends().items()), key=lambda row: row[2])
