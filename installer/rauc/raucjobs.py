"""Does the jobs for a whole system, by RAUC: looks, verifies a bundle, installs it, marks slots, and has the machine restart.

RAUC's service is asked over D-Bus (`raucbus`). What a bundle says of itself the program `rauc` reads, within this sandbox: the
service of RAUC 1.8 does not tell a bundle's format.
"""

import json
import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path

from msgspec import UNSET

from ipc.installermessages import Check

from ..jobs import Bundle, Examine, Held, Inspect, Install, Job, Look, Mark, Restart, Result, System
from ..programs import ASK_S, SYSTEMCTL, Run, checked, failed
from ..state import DIRECTORY
from .raucbundle import CANDIDATE, Kept, kept
from .raucbus import RaucBusy, RaucFailed, RaucService, Slot

log = logging.getLogger("apply")

RAUC = "/usr/bin/rauc"
BUNDLES = DIRECTORY / "rauc"
REBOOT_UNIT = "license-agent-reboot.service"
INFO_S = 60.0
"""How long RAUC may take to verify the signature of a bundle."""
SAFE_FORMATS = frozenset({"verity", "crypt"})
"""Bundles whose content the kernel verifies while it is read. A plain one is verified first, and read afterward."""
OS_RELEASE = Path("/etc/os-release")
BUSY = "busy"
_MESSAGE = re.compile(r"^(rauc-Message: [0-9:.]+: .*|)\n", re.MULTILINE)
_FORMAT = re.compile(r"^Bundle Format:\s*([a-z]+)\b", re.MULTILINE)
_OS_KEYS = re.compile(r"^(IMAGE_VERSION|BUILD_ID)=(?:\"([^\"\n]*)\"|'([^'\n]*)'|([^\s\"']*))$", re.MULTILINE)


def passed(name: str) -> Check:
    """A check that was made and found nothing."""
    return Check(name=name, ok=True, text="")


class RaucJobs:
    """RAUC's side of the jobs.

    Args:
        run: runs a program.
        service: connects with RAUC.
        bundles: where the installer keeps the bundle.
        rauc: the program, with options.
        formats: of bundles that may be installed.
        os_release: says which version the image is that runs.
    """

    def __init__(
        self,
        run: Run,
        service: Callable[[], RaucService] = RaucService,
        bundles: Path = BUNDLES,
        rauc: tuple[str, ...] = (RAUC,),
        formats: Collection[str] = SAFE_FORMATS,
        os_release: Path = OS_RELEASE,
    ) -> None:
        self._run, self._service, self._bundles, self._rauc = run, service, bundles, rauc
        self._formats, self._os_release = formats, os_release

    def do(self, job: Job) -> Result | None:
        """Does a job. What cannot be done or looked at is a check that failed; None leaves the job to the caller."""
        try:
            return self._done(job)
        except RaucBusy as busy:
            check = failed(BUSY, str(busy))
        except RaucFailed as problem:
            check = failed("rauc", str(problem))
        return Result(id=job.id, checks=(check,))

    def _done(self, job: Job) -> Result | None:
        match job:
            case Look():
                with self._service() as rauc:
                    return Result(id=job.id, checks=(passed("rauc"),), system=self._system(rauc))
            case Inspect():
                with self._service() as rauc:
                    compatible = rauc.compatible()
                check, bundle = self._inspect(compatible)
                return Result(id=job.id, checks=(check,), bundle=UNSET if bundle is None else bundle)
            case Install(place=place):
                return Result(id=job.id, checks=(self._install(kept(self._bundles), place),))
            case Mark(place=place, state=state):
                with self._service() as rauc:
                    rauc.mark(state, self._system(rauc).of(place).slot)
                return Result(id=job.id, checks=(passed("mark"),))
            case Restart():
                return Result(id=job.id, checks=(self._restart(),))
            case Examine():
                with self._service() as rauc:
                    system = self._system(rauc)
                if system.booted != system.primary:
                    text = f"the machine runs from {system.of(system.booted).slot}, not from {system.of(system.primary).slot}"
                    return Result(id=job.id, checks=(failed("boot", f"{text}: it has not restarted, or went back"),))
        return None

    def _system(self, rauc: RaucService) -> System:
        slots, primary = rauc.slots(), rauc.primary()
        if len(slots) != 2:
            raise RaucFailed(f"system.conf has {len(slots)} slots with a 'bootname'; updates need two of them")
        booted = [slot for slot in slots if slot.booted]
        named = [slot for slot in slots if slot.name == primary]
        if len(booted) != 1 or len(named) != 1:
            raise RaucFailed("RAUC does not say which slot the machine runs from and which it starts next; see: rauc status")
        return System(
            booted="a" if booted[0] is slots[0] else "b",
            primary="a" if named[0] is slots[0] else "b",
            a=self._held(slots[0]),
            b=self._held(slots[1]),
        )

    def _held(self, slot: Slot) -> Held:
        version, build = slot.version, slot.build
        if slot.booted and not (version and build):
            # An image that the factory wrote: RAUC has never installed it, but it says of itself what it is (os-release(5)).
            says = self._image()
            version, build = says.get("IMAGE_VERSION", ""), says.get("BUILD_ID", "")
        return Held(slot=slot.name[:64], good=slot.good, version=version[:64], build_id=build[:64])

    def _image(self) -> dict[str, str]:
        try:
            with self._os_release.open(encoding="utf-8", errors="replace") as file:
                text = file.read(64 * 1024)
        except OSError:
            return {}
        return {match[1]: match[2] or match[3] or match[4] or "" for match in _OS_KEYS.finditer(text)}

    def _inspect(self, compatible: str) -> tuple[Check, Bundle | None]:
        """Has RAUC verify the candidate by its own keyring, and reads format, machine and version."""
        path = str(self._bundles / CANDIDATE)
        described = self._run([*self._rauc, "info", path], INFO_S)
        if described.status != 0:
            said = _MESSAGE.sub("", described.output).strip().splitlines()[-2:]
            # In this sandbox RAUC does not even look into a plain bundle, and its words for that are about devices.
            must = "it must be signed for the keyring of system.conf, in the format verity or crypt"
            return failed("bundle", f"RAUC refuses the bundle: {'; '.join(said)[:300] or 'it does not say why'}; {must}"), None
        formats = _FORMAT.findall(described.output)
        if len(formats) != 1 or formats[0] not in self._formats:
            text = f"the bundle has the format {formats[0] if len(formats) == 1 else 'unknown'}"
            return failed("bundle", f"{text}; build it with 'format=verity' in [bundle] of its manifest"), None
        ran = self._run([*self._rauc, "info", "--output-format=json", path], INFO_S)
        try:
            # RAUC's messages come before it, on their own lines.
            says = json.loads(ran.output[ran.output.index("\n{" if not ran.output.startswith("{") else "{") :])
            theirs, version, build = says["compatible"], says["version"], says["build"]
        except (ValueError, KeyError, TypeError):
            return failed("bundle", f"RAUC does not say what is in the bundle: {ran.output}"), None
        if theirs != compatible:
            return failed("bundle", f"the bundle is for {theirs!a}, this machine is {compatible!a}"), None
        if not all(isinstance(text, str) and 0 < len(text) <= 64 for text in (version, build)):
            return failed("bundle", "its manifest must have 'version' and 'build' in [update], of at most 64 characters"), None
        return passed("bundle"), Bundle(version=version, build_id=build)

    def _install(self, bundle: Kept | None, place: str) -> Check:
        if bundle is None or bundle.place != place:
            return failed("install", "no bundle is kept for that slot; prepare the update again")
        with self._service() as rauc:
            system = self._system(rauc)
            if system.booted == place:
                return failed("install", f"the machine runs from {system.of(bundle.place).slot}, so nothing is installed there")
            rauc.install(str(bundle.path), lambda percent, what: log.info("rauc: %d %%, %s", percent, what))
        return passed("install")

    def _restart(self) -> Check:
        with self._service() as rauc:
            system = self._system(rauc)
        if system.booted == system.primary:
            return passed("restart")
        ran = self._run([SYSTEMCTL, "start", "--no-block", "--", REBOOT_UNIT], ASK_S)
        return checked("restart", ran, f"{REBOOT_UNIT} did not start")
