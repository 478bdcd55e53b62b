"""What the installer works with on this machine, and what a product's state is when its configuration is read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from common.files import no_trace
from ipc.installermessages import Check
from updatetrust.trustfile import UpdateTrust

from .agentpackage.dpkg import Dpkg
from .agentpackage.rescue import Layout, Rescue
from .backends.deb import Deb
from .backends.rauc import UNKNOWN, Rauc
from .backends.slots import Slots
from .config import InstallerConfig, ProductConfig
from .contract import Backend, BackendRefused, Place
from .jobs import Jobs
from .phases import Phase
from .state import Product, State, StateFile, Version

CHECK_WITHIN_S = 150.0
"""How much longer than the health command its job may take."""
UPGRADE_WITHIN_S = 1000.0
"""How long a job for the agent's own package may take: to pack the present one, dpkg twice, and the agent's start."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that the orders touch. Configuration and trust are read again for each order.

    Attributes:
        config: reads installer.toml.
        trust: reads update-trust.json.
        state: root's memory.
        staging: the updater's directory.
        work: root's own directory for the copy of a package; it exists.
        jobs: for license-agent-apply.service.
        upgrades: for license-agent-upgrade.service.
        backend: makes the backend of a product.
        trace: called after each write.
    """

    config: Callable[[], InstallerConfig]
    trust: Callable[[], UpdateTrust]
    state: StateFile
    staging: Path
    work: Path
    jobs: Jobs
    upgrades: Jobs
    backend: Callable[[ProductConfig], Backend]
    trace: Callable[[str], None] = no_trace

    def examine(self, product: ProductConfig) -> tuple[Check, ...]:
        """Has a product looked at by the service that can."""
        if product.backend == "deb":
            return self.upgrades.examine(product.name, UPGRADE_WITHIN_S)
        return self.jobs.examine(product.name, product.timeout_s + CHECK_WITHIN_S)


def backend_of(product: ProductConfig, jobs: Jobs, upgrades: Jobs) -> Backend:
    """Makes the backend that a product's configuration names."""
    if product.backend == "slots":
        return Slots(product.name, product.directory)
    if product.backend == "rauc":
        return Rauc(product.name, product.directory, partial(jobs.rauc, product.name))

    def install(place: Place, sha256: str, _trace: Callable[[str], None]) -> tuple[Check, ...]:
        return upgrades.upgrade(product.name, place, sha256, UPGRADE_WITHIN_S)

    dpkg = Dpkg()
    return Deb(product.name, Rescue(Layout(), dpkg), dpkg.admin, install)


def found_product(name: str, backend: Backend, state: State) -> Product:
    """Returns the state of a product as it is on the machine.

    A version that was there before the installer, or that an administrator made the current one by hand, is the good one: only
    root can do either.

    Raises:
        BackendRefused: what is there is unclear.
        OSError: the disk fails.
    """
    known = state.products.get(name, Product())
    if known.phase is not Phase.IDLE:
        return known
    active = backend.active()
    if active is None:
        return known if known.good is None else msgspec.structs.replace(known, good=None)
    version = known.places.get(active)
    if version is not None and isinstance(backend, Deb | Rauc):
        # apt, or an administrator's `rauc install`, may have replaced it since.
        found = backend.content(active)
        if found is not None and (found.version, found.build_id) != (version.version, version.build_id):
            version = None
    if active == known.good and version is not None:
        return known
    version = version or _adopted(name, backend, active)
    return msgspec.structs.replace(known, places=known.places | {active: version}, good=active)


def _adopted(name: str, backend: Backend, place: Place) -> Version:
    content = backend.content(place)
    if content is None and isinstance(backend, Rauc):
        raise BackendRefused("machine", UNKNOWN)
    if content is None or content.product != name:
        raise BackendRefused(
            "machine",
            f"the current version of {name} is in slot {place}, whose manifest.json does not say which version it "
            f"is of {name}; unpack the bundle again, with its manifest",
        )
    return Version(version=content.version, build_id=content.build_id, sha256="")
