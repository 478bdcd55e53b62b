"""Adds, moves and removes packages in the metadata of releases and candidate, and checks what is published (OT-01). Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuf.api.metadata import Metadata, Targets

from server.base.errors import Conflict, Invalid, NotFound
from updatetrust.target import MAX_TARGETS_PER_ROLE, MalformedTarget, Target, read_target
from updatetrust.version import Version

from .documents import target_file
from .words import CANDIDATE, PACKAGE_ROLES, RELEASES, require_role

Roles = Mapping[str, Metadata[Targets]]
"""The metadata of the roles for packages, by role."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that metadata names.

    Attributes:
        role: that names it.
        target: what the vendor has signed of it.
    """

    role: str
    target: Target

    @property
    def path(self) -> str:
        """In the repository, `<product>/<file>`."""
        return self.target.path

    @property
    def file(self) -> str:
        """Where the file is below `targets/`: with consistent snapshots, its digest is part of the name."""
        folder, _, name = self.target.path.rpartition("/")
        return f"{folder}/{self.target.sha256}.{name}"


def packages_in(roles: Roles) -> Iterator[Package]:
    """Every package that the roles name.

    Raises:
        Invalid: what is signed of one has another form.
    """
    for role in PACKAGE_ROLES:
        if role in roles:
            for path, file in sorted(roles[role].signed.targets.items()):
                try:
                    yield Package(role, read_target(path, file.length, file.hashes, file.custom))
                except MalformedTarget as problem:
                    raise Invalid(f"{role}: {problem}") from None


def find(roles: Roles, path: str) -> Package:
    """The package of that path. Raises NotFound."""
    for package in packages_in(roles):
        if package.path == path:
            return package
    raise NotFound(f"the repository has no package {path!r}; 'license-server ota packages' lists them")


def add(roles: Roles, package: Package) -> None:
    """Names a new package in its role.

    Raises:
        Conflict: a package of that path, build id, or version for the same hardware is there, or the role is full.
        Invalid: a package is malformed.
    """
    require_role(package.role)
    target = package.target
    _require_free(roles, package)
    roles[package.role].signed.targets[target.path] = target_file(target)
    check(roles)


def _require_free(roles: Roles, package: Package) -> None:
    for role in roles:
        if package.path in roles[role].signed.targets:
            raise Conflict(f"{role} has a package {package.path} already: give each build a file name of its own")


def promote(roles: Roles, path: str) -> Package:
    """Moves a package from candidate to releases, and returns it.

    Raises:
        NotFound: candidate does not name it.
        Conflict: releases is full.
    """
    file = roles[CANDIDATE].signed.targets.pop(path, None)
    if file is None:
        raise NotFound(f"{CANDIDATE} has no package {path!r}; 'license-server ota packages' lists them")
    roles[RELEASES].signed.targets[path] = file
    check(roles)
    return find(roles, path)


def withdraw(roles: Roles, path: str) -> str:
    """Removes a package, and returns the role that named it. Raises NotFound."""
    for role in PACKAGE_ROLES:
        if roles[role].signed.targets.pop(path, None) is not None:
            return role
    raise NotFound(f"the repository has no package {path!r}; 'license-server ota packages' lists them")


def check(roles: Roles, floors: Mapping[str, str] | None = None) -> None:
    """Returns if all packages may be published together.

    Args:
        roles: as they would be published.
        floors: lowest version by product; None leaves that check out.

    Raises:
        Conflict: two packages have the same path or build id, or the same product and version for the same hardware; a role
            names too many; or one is below its product's floor.
        Invalid: one is malformed.
    """
    for role in roles:
        if len(roles[role].signed.targets) > MAX_TARGETS_PER_ROLE:
            raise Conflict(f"{role} names more than {MAX_TARGETS_PER_ROLE} packages: withdraw some that no machine runs")
    paths: dict[str, str] = {}
    builds: dict[str, str] = {}
    versions: dict[tuple[str, Version, str], str] = {}
    for package in packages_in(roles):
        target, path = package.target, package.path
        _once(paths, path, package.role, f"{path} is in {package.role} already, and")
        _once(builds, target.build_id, path, f"the build id {target.build_id!r} of {path}")
        for hardware in target.hardware:
            what = f"version {target.version} of {target.product} for {hardware} in {path}"
            _once(versions, (target.product, Version.parse(target.version), hardware), path, what)
        if floors is not None:
            _require_floor(floors, target)


def _require_floor(floors: Mapping[str, str], target: Target) -> None:
    floor = floors.get(target.product)
    if floor is None:
        raise Conflict(
            f"targets has no floor for {target.product}, so no machine would install {target.path}: set one, and have targets "
            "signed with its offline key"
        )
    if Version.parse(target.version) < Version.parse(floor):
        raise Conflict(
            f"{target.path} has version {target.version}, below the floor {floor} of {target.product}: no machine would "
            "install it"
        )


def _once(seen: dict[Any, str], key: Any, where: str, what: str) -> None:
    if key in seen:
        raise Conflict(f"{what} is that of {seen[key]} too: each build has its own")
    seen[key] = where
