"""Signs what a machine without a network needs to install a package: the repository's metadata, with an end that is far enough.

Online, `timestamp` lasts three days, so that nobody can hold a machine at an old state for longer. A bundle travels for longer
than that: its snapshot and timestamp have an end of their own. They take numbers of the same counters and are never in the
repository, which gets the next numbers in the same step: a machine that has seen the repository since refuses what is in the
bundle, if somebody puts that on the web server.
"""

from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid, NotFound
from server.registry import audit
from server.registry.cipher import Cipher

from . import onlinekeys, packages
from .online import new_snapshot, new_timestamp, renewed
from .packages import Package
from .published import Published, file_name
from .repository import Repository
from .words import DAY_S, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

MAX_DAYS = 90
"""How long a bundle may be valid. Its holder can keep a machine that has seen nothing newer at its state until then."""


@dataclass(frozen=True, slots=True)
class Offline:
    """What a bundle has beside the package.

    Attributes:
        package: that it installs.
        metadata: the content of each file, by its name in the bundle.
        valid_until: seconds since 1970 UTC.
    """

    package: Package
    metadata: dict[str, str]
    valid_until: int


def prepare(session: Session, cipher: Cipher, repository: Repository, path: str, days: int, now: int) -> Offline:
    """Signs metadata that names a package and lasts for so many days; the repository's is signed again with higher numbers.

    Args:
        session: of a writing transaction.
        cipher: opens the online keys.
        repository: that has the package.
        path: of the package in the repository.
        days: from now on, at most `MAX_DAYS`.
        now: seconds since 1970 UTC.

    Raises:
        NotFound: the repository has no such package.
        Conflict: what others have signed ends earlier, or somebody publishes at this moment.
        Invalid: too many days.
        RegistryError: the repository is not valid, or the registry has not its keys.
    """
    if not 1 <= days <= MAX_DAYS:
        raise Invalid(f"a bundle is valid for 1 to {MAX_DAYS} days")
    until = now + days * DAY_S
    with repository.locked():
        present = repository.present()
        named = list(packages.packages_in(present.roles))
        package = next((each for each in named if each.path == path), None)
        if package is None:
            raise NotFound(f"the repository has no package {path!r}; 'license-server ota packages' lists them")
        _require_ends(present, package.role, until)
        signers, roots = onlinekeys.signers(session, cipher), [each.signed for each in present.roots[-2:]]
        documents = {TARGETS: present.targets, **present.roles}
        snapshot = new_snapshot(present, documents, roots, signers[SNAPSHOT], now, until - now)
        timestamp = new_timestamp(present, snapshot, roots, signers[TIMESTAMP], now, until - now)
        travels = replace(present, snapshot=snapshot, timestamp=timestamp)
        audit.record(
            session, audit.ADMIN, "ota.bundled", "ok", now, target=path, sha256=package.target.sha256, valid_until=until,
            snapshot=snapshot.signed.version, timestamp=timestamp.signed.version,
        )  # fmt: skip
        # The registry's commit follows: if it fails, the numbers of the bundle that nobody got are left out.
        repository.write(renewed(travels, signers, now, force=True), named)
    files = {f"{role}.json": document.to_bytes().decode() for role, document in travels.documents().items() if role != ROOT}
    files |= {file_name(ROOT, each.signed.version): each.to_bytes().decode() for each in present.roots}
    return Offline(package, files, until)


def _require_ends(present: Published, role: str, until: int) -> None:
    """Raises Conflict if what people or the pipeline have signed ends before the bundle."""
    ways = {ROOT: "ota change-root", TARGETS: "ota change-targets"}
    for each, end in present.ends().items():
        if each in (ROOT, TARGETS, role) and end < until:
            raise Conflict(
                f"{each} ends {-(-(until - end) // DAY_S)} days before the bundle would: make a bundle for fewer days, or "
                f"sign it again with 'license-server {ways.get(each, 'ota prolong')}'"
            )
