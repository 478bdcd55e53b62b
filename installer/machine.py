"""What the installer works with on this machine, and what a product's state is when its configuration is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common.files import no_trace
from updatetrust.trustfile import UpdateTrust

from .backends.contract import Backend, BackendRefused, Place
from .backends.slots import Slots
from .config import InstallerConfig, ProductConfig
from .jobs import Jobs
from .phases import Phase
from .state import Product, State, StateFile, Version


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
        backend: makes the backend of a product.
        trace: called after each write.
    """

    config: Callable[[], InstallerConfig]
    trust: Callable[[], UpdateTrust]
    state: StateFile
    staging: Path
    work: Path
    jobs: Jobs
    backend: Callable[[ProductConfig], Backend] = lambda product: Slots(product.name, product.directory)
    trace: Callable[[str], None] = no_trace


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
    if active == known.good:
        return known
    if active is None:
        return msgspec.structs.replace(known, good=None)
    version = known.places.get(active) or _adopted(name, backend, active)
    return msgspec.structs.replace(known, places=known.places | {active: version}, good=active)


def _adopted(name: str, backend: Backend, place: Place) -> Version:
    content = backend.content(place)
    if content is None or content.product != name:
        raise BackendRefused(
            "machine",
            f"the current version of {name} is in slot {place}, whose manifest.json does not say which version it "
            f"is of {name}; unpack the bundle again, with its manifest",
        )
    return Version(version=content.version, build_id=content.build_id, sha256="")
