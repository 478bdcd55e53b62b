"""The agent's own package. Two files are kept, and dpkg's database is the truth about which of them is installed.

The installer starts no program: it has license-agent-upgrade.service run dpkg, by a job. Unlike a link, a package is not
replaced in one step. While dpkg is at work, or after it was interrupted, nothing can be said of it, and the job or the rescue
ends that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, ClassVar

from ipc.installermessages import Check

from ..agentpackage.debfile import BadDeb, named, read_control
from ..agentpackage.dpkg import Status, read_status
from ..agentpackage.packages import PACKAGE
from ..agentpackage.rescue import Rescue, UpgradeBusy
from ..agentpackage.trial import BadTrial
from ..contract import BackendRefused, Content, Place

BUSY = "busy"
"""Name of the check of a job that was not done because packages are being changed: no failed attempt."""
NO_ROOM = "no-room"
"""Name of the check of a job for which the disk has no room; the package before is installed."""

Install = Callable[[Place, str, Callable[[str], None]], tuple[Check, ...]]
"""Has the package of a place installed, which has that SHA-256, and returns what came of it. The trace is for writes."""


class Deb:
    """The package of the agent.

    Args:
        product: its name; the package has the same.
        rescue: knows the packages and the trial.
        admin: dpkg's directory.
        install: hands the job over.
    """

    restarts: ClassVar[bool] = True

    def __init__(self, product: str, rescue: Rescue, admin: Path, install: Install) -> None:
        self._product = product
        self._rescue = rescue
        self._packages = rescue.packages
        self._admin = admin
        self._install = install

    def active(self) -> Place | None:
        """Says which place has the package that is installed. One that came from elsewhere counts as being in a free place."""
        found = self._status()
        if found is None:
            return None
        if not found.complete:
            raise BackendRefused(BUSY, f"dpkg is at work on {PACKAGE}, or was interrupted; it is repeated, or taken back")
        return self._place(found.version)

    def content(self, place: Place) -> Content | None:
        """Returns what the package of a place says of itself, or the installed one of the active place."""
        found = self._status()
        if found is not None and found.complete and self._place(found.version) == place:
            return self._content(found.version)
        kept = self._packages.kept(place)
        return None if kept is None else self._content(kept.version)

    def stage(self, place: Place, package: BinaryIO, expected: Content, trace: Callable[[str], None]) -> None:
        """Reads what the package says of itself, and keeps it."""
        if self._rescue_trial():
            raise BackendRefused("machine", "a version of the agent is on trial; commit it or roll back first")
        if self.active() == place:
            raise BackendRefused("machine", f"{self._packages.file(place)} is in use, so nothing is put there")
        package.seek(0)
        try:
            fields = read_control(package)
        except BadDeb as bad:
            raise BackendRefused("bundle-refused", f"the package cannot be read: {bad}") from None
        debian = fields["Version"]
        says = self._content(debian)
        if fields["Package"] != PACKAGE or says != expected:
            raise BackendRefused(
                "bundle-refused",
                f"the package says that it is {fields['Package']} {debian}, the repository that it is {expected}",
            )
        found = self._status()
        if found is not None and found.version == debian:
            raise BackendRefused("bundle-refused", f"{PACKAGE} {debian} is installed already; build it under another version")
        package.seek(0)
        self._packages.put(place, package, debian, trace)
        self._rescue.forget()
        trace("outcome: forgotten")

    def activate(self, place: Place, trace: Callable[[str], None]) -> None:
        """Has the package of a place installed, unless it is. One that apt installed is perhaps not kept yet."""
        kept = self._packages.kept(place)
        if kept is None:
            if self.active() == place and not self._rescue_trial():
                return
            raise BackendRefused("machine", f"{self._packages.file(place)} does not exist; prepare the update again")
        if reason := self.returned(place):
            raise BackendRefused("rescued", f"{kept.version} was taken back: {reason}; order roll_back")
        found = self._status()
        if found != Status(kept.version, complete=True) or self._goes_back(place):
            checks = self._install(place, kept.sha256, trace)
            if any(check.name == BUSY and not check.ok for check in checks):
                raise BackendRefused(BUSY, "; ".join(check.text for check in checks))
            if any(check.name == NO_ROOM and not check.ok for check in checks):
                raise BackendRefused(NO_ROOM, "; ".join(check.text for check in checks if not check.ok)[:500])
            if not checks or not all(check.ok for check in checks):
                raise BackendRefused("not-installed", "; ".join(check.text for check in checks if not check.ok)[:500])
        trace("package: installed")

    def deactivate(self, trace: Callable[[str], None]) -> None:
        """Never removes the agent, which is what orders this."""
        raise BackendRefused("machine", f"there is no package of {PACKAGE} to go back to, and it does not remove itself")

    def returned(self, place: Place) -> str:
        """Says why the package of a place was taken back without an order, by the upgrade itself or by the rescue."""
        kept = self._packages.kept(place)
        return "" if kept is None else self._rescue.returned(kept.sha256)

    def keep(self, place: Place, trace: Callable[[str], None]) -> None:
        """Ends the trial, unless the rescue has begun to end it."""
        try:
            with self._rescue.locked():
                trial = self._rescue.trial()
                if trial is None:
                    if reason := self.returned(place):
                        raise BackendRefused("rescued", f"it was taken back: {reason}; order roll_back")
                    return
                if trial.going_back or trial.place != place:
                    raise BackendRefused("rescued", f"the return to {trial.back_version} has begun; order roll_back")
                self._rescue.end()
                trace("trial: ended")
        except UpgradeBusy as busy:
            raise BackendRefused(BUSY, str(busy)) from None
        except BadTrial as bad:
            raise BackendRefused("machine", f"the marker of the trial cannot be read: {bad}; order roll_back") from None

    def _status(self) -> Status | None:
        return read_status(self._admin, PACKAGE)

    def _place(self, version: str) -> Place:
        places: tuple[Place, ...] = ("a", "b")
        for place in places:
            kept = self._packages.kept(place)
            if kept is not None and kept.version == version:
                return place
        # Installed by hand. Where it is kept when it has to be: in the place that holds nothing, or else the first.
        return next((place for place in places if self._packages.kept(place) is None), places[0])

    def _content(self, debian: str) -> Content:
        found = named(debian)
        return Content(self._product, found.version, found.build_id)

    def _rescue_trial(self) -> bool:
        try:
            return self._rescue.trial() is not None
        except BadTrial as bad:
            raise BackendRefused("machine", f"the marker of the trial cannot be read: {bad}") from None

    def _goes_back(self, place: Place) -> bool:
        """Whether the trial has to be ended by going back to this place, although its package may be installed already."""
        try:
            trial = self._rescue.trial()
        except BadTrial:
            return True
        return trial is not None and trial.back == place
