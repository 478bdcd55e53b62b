"""Says why a device cannot take a package, or runs it already. Pure: the contact and the rehearsal ask the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.ota.words import CANDIDATE, PACKAGE_ROLES
from updatetrust.version import MalformedVersion, Version


@dataclass(frozen=True, slots=True)
class Wanted:
    """The package of a rollout, as the repository has it now.

    Attributes:
        path: in the repository.
        version: of its product.
        build_id: of its build.
        hardware: the kinds of machine that it is for.
        length: bytes.
        role: of the metadata that names it; `withdrawn` for none.
    """

    path: str
    version: str
    build_id: str
    hardware: Sequence[str]
    length: int
    role: str


@dataclass(frozen=True, slots=True)
class Running:
    """What a device runs of the product."""

    version: str
    build_id: str


def runs_already(wanted: Wanted, running: Running | None) -> bool:
    """Whether a device runs exactly this build."""
    return running is not None and (running.version, running.build_id) == (wanted.version, wanted.build_id)


def unfit(
    wanted: Wanted, build_id: str, hardware: str | None, running: Running | None, *, candidate: bool, downgrade: bool
) -> str | None:
    """Why a device cannot take a package, for people; None if nothing is known to be in the way.

    Args:
        wanted: the package.
        build_id: that the rollout was approved with.
        hardware: the kind of machine that the device says it is; None if it has not said.
        running: what it runs of the product; None if it has not said.
        candidate: whether the package may be on trial.
        downgrade: whether its version may be lower.
    """
    if wanted.role not in PACKAGE_ROLES:
        return f"the repository has the package {wanted.path} no more"
    if wanted.build_id != build_id:
        return f"the package {wanted.path} is build {wanted.build_id}, and build {build_id} was approved"
    if wanted.role == CANDIDATE and not candidate:
        return f"the package {wanted.path} is a candidate again"
    if hardware is not None and hardware not in wanted.hardware:
        return f"the package is for {', '.join(wanted.hardware)}, and the device is a {hardware}"
    if running is not None and not downgrade and _lower(wanted.version, running.version):
        return f"the device runs {running.version}, and {wanted.version} is lower"
    return None


def _lower(version: str, than: str) -> bool:
    try:
        return Version.parse(version) < Version.parse(than)
    except MalformedVersion:
        return False
