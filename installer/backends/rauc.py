"""The whole system, in two slots of RAUC's. The bootloader is the truth about which of them starts next.

The installer reaches neither D-Bus nor the program: license-agent-apply.service asks RAUC, by a job. A bundle is kept until its
time has come, because RAUC makes what it has installed the system that starts next, and a machine may restart at any moment.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, ClassVar

from ipc.installermessages import Check

from ..contract import BackendRefused, Content, Place
from ..jobs import Bundle, Inspect, Install, Look, Mark, Result, System
from ..rauc.raucbundle import Note, accept, before, discard, kept, put, remove

BUSY = "busy"
LOOK_WITHIN_S = 150.0
"""How long a job may take that only asks RAUC, or marks a slot."""
INSPECT_WITHIN_S = 300.0
INSTALL_WITHIN_S = 3900.0
"""Longer than raucbus.py waits for an installation."""

Ask = Callable[..., Result]
"""Has a job done: its kind, seconds to wait, and its fields but `product`."""


def outside(directory: Path) -> bool:
    """Whether a directory is on another file system than the root, and so outlives the other slot's start."""
    return os.stat(directory).st_dev != os.stat("/").st_dev


class Rauc:
    """The system of this machine.

    Args:
        product: its name.
        directory: root's own, for the bundle.
        ask: hands a job over.
        outlives: whether what the installer keeps is there in the other slot too.
    """

    restarts: ClassVar[bool] = False

    def __init__(self, product: str, directory: Path, ask: Ask, outlives: Callable[[Path], bool] = outside) -> None:
        self._product, self._directory, self._ask, self._outlives = product, directory, ask, outlives
        self._seen: System | None = None

    def active(self) -> Place | None:
        """Asks the bootloader which slot starts next."""
        return self._look().primary

    def content(self, place: Place) -> Content | None:
        """Says what is kept for a place, or else what RAUC or the image itself says of the slot."""
        bundle = kept(self._directory)
        if bundle is not None and bundle.place == place:
            return Content(self._product, bundle.version, bundle.build_id)
        return self._held(self._look(), place)

    def stage(self, place: Place, package: BinaryIO, expected: Content, trace: Callable[[str], None]) -> None:
        """Has RAUC verify the bundle, and keeps it. RAUC refuses a plain one by this program's word."""
        system = self._look()
        if place in (system.primary, system.booted):
            slot = system.of(place).slot
            raise BackendRefused("machine", f"{slot} is in use, so nothing is installed there; see: rauc status")
        if not self._outlives(self._directory.parent):
            raise BackendRefused(
                "machine",
                f"{self._directory.parent} lies in the slot that runs, so the next system would not know of its trial; keep "
                "/var/lib on a partition that both slots mount",
            )
        ran = self._held(system, system.booted)
        if ran is None:
            raise BackendRefused("machine", UNKNOWN)
        package.seek(0)
        put(self._directory, package, trace)
        try:
            says = self._inspect()
            if says != expected:
                raise BackendRefused(
                    "bundle-refused", f"the bundle says that it is {says}, the repository that it is {expected}"
                )
        except BackendRefused:
            discard(self._directory)
            raise
        accept(
            self._directory,
            Note(place=place, version=says.version, build_id=says.build_id),
            Note(place=system.booted, version=ran.version, build_id=ran.build_id),
            trace,
        )

    def activate(self, place: Place, trace: Callable[[str], None]) -> None:
        """Has the bundle that is kept for a place installed, or goes back to what is in it."""
        system, bundle = self._look(), kept(self._directory)
        if bundle is None or bundle.place != place:
            self._go_to(system, place, trace)
            return
        if system.booted != place:
            self._order(Install, INSTALL_WITHIN_S, "not-installed", place=place)
            trace("slot: written")
            system = self._look()
        if self._held(system, place) != Content(self._product, bundle.version, bundle.build_id):
            text = f"{system.of(place).slot} does not hold {bundle.version} afterward; see: rauc status --detailed"
            raise BackendRefused("not-installed", text)
        if system.primary != place:  # with activate-installed=false in system.conf
            self._order(Mark, LOOK_WITHIN_S, "machine", place=place, state="active")
        trace("slot: active")
        remove(self._directory, trace)

    def returned(self, place: Place) -> str:
        """Says that nothing was: a boot loader that went back has no reason to tell, and `active` shows what it booted."""
        return ""

    def keep(self, place: Place, trace: Callable[[str], None]) -> None:
        """Tells the bootloader that the system of a place works, which ends its own countdown."""
        if (bundle := kept(self._directory)) is not None and bundle.place == place:
            remove(self._directory, trace)
        self._order(Mark, LOOK_WITHIN_S, "machine", place=place, state="good")
        trace("slot: good")

    def deactivate(self, trace: Callable[[str], None]) -> None:
        """Never: a machine without a system starts no more."""
        raise BackendRefused("machine", "there is no system to go back to; install one by hand, with rauc install")

    def _go_to(self, system: System, place: Place, trace: Callable[[str], None]) -> None:
        other: Place = "b" if place == "a" else "a"
        if self._held(system, place) is None:
            text = f"a version in {system.of(place).slot} does not exist, as far as RAUC knows; prepare the update again"
            raise BackendRefused("machine", text)
        if system.primary == place:
            return  # the order is repeated, or the installation broke off before anything else could start next
        # First the one that is left: from then on the machine starts the other, whatever ends this in between.
        self._order(Mark, LOOK_WITHIN_S, "machine", place=other, state="bad")
        trace("slot: bad")
        self._order(Mark, LOOK_WITHIN_S, "machine", place=place, state="active")
        trace("slot: active")

    def _held(self, system: System, place: Place) -> Content | None:
        held = system.of(place)
        if held.version and held.build_id:
            return Content(self._product, held.version, held.build_id)
        note = before(self._directory)
        if note is not None and note.place == place:
            return Content(self._product, note.version, note.build_id)
        return None

    def _look(self) -> System:
        """What RAUC says, asked once for each order of the core and after each change: a job starts a program."""
        if self._seen is not None:
            return self._seen
        result = self._ask(Look, LOOK_WITHIN_S)
        _require(result.checks, "machine")
        if not isinstance(result.system, System):
            raise BackendRefused("machine", "license-agent-apply.service does not say what RAUC said")
        self._seen = result.system
        return result.system

    def _inspect(self) -> Content:
        result = self._ask(Inspect, INSPECT_WITHIN_S)
        _require(result.checks, "machine", bundle="bundle-refused")
        if not isinstance(result.bundle, Bundle):
            raise BackendRefused("machine", "license-agent-apply.service does not say what is in the bundle")
        return Content(self._product, result.bundle.version, result.bundle.build_id)

    def _order(self, kind: type[Install | Mark], within_s: float, code: str, **fields: str) -> None:
        self._seen = None
        _require(self._ask(kind, within_s, **fields).checks, code)


UNKNOWN = (
    "RAUC does not say which version runs; install it as a bundle with 'version' and 'build', or set IMAGE_VERSION and "
    "BUILD_ID in the image's /etc/os-release"
)


def _require(checks: tuple[Check, ...], code: str, **codes: str) -> None:
    """Raises BackendRefused unless there is a check and all are `ok`; a check's name may have a code of its own."""
    bad = [check for check in checks if not check.ok]
    if bad or not checks:
        first = bad[0].name if bad else ""
        raise BackendRefused(BUSY if first == BUSY else codes.get(first, code), "; ".join(check.text for check in bad)[:500])
