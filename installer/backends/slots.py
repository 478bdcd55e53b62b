"""Two directories, `slots/a` and `slots/b`, and a symbolic link `current` to one of them, which rename(2) replaces in one step.

Everything is root's, and every name is opened from a descriptor of its directory, so nobody else can lead the installer away.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

from common.files import OTHERS_WRITE

from ..bundle.errors import BundleRefused
from ..bundle.judge import MANIFEST, MAX_MANIFEST_BYTES, read_manifest
from ..bundle.unpack import judge_bundle, unpack
from ..contract import BackendRefused, Content, Place

SLOTS, CURRENT, NEW = "slots", "current", ".current.new"
RESERVE_BYTES = 16 * 1024 * 1024
"""Room that stays free on the disk beside a version."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGETS: dict[str, Place] = {f"{SLOTS}/a": "a", f"{SLOTS}/b": "b"}


class Slots:
    """The slots of one product.

    Args:
        product: its name.
        directory: holds `slots` and `current`. It and all above it belong to root, and only root can change them.
        owner: the UID that everything must belong to.
        free: returns the free bytes and files of a file system, of which a descriptor is given.
    """

    restarts: ClassVar[bool] = False

    def __init__(
        self, product: str, directory: Path, owner: int = 0, free: Callable[[int], tuple[int, int]] | None = None
    ) -> None:
        self._product = product
        self._path = directory
        self._owner = owner
        self._free = free or _free

    def active(self) -> Place | None:
        """Says where `current` leads."""
        with self._opened() as directory:
            return self._active(directory)

    def content(self, place: Place) -> Content | None:
        """Reads the slot's manifest."""
        with self._opened() as directory, self._slots(directory) as slots:
            try:
                slot = os.open(place, _DIRECTORY, dir_fd=slots)
            except FileNotFoundError:
                return None
            try:
                self._check(slot, self._path / SLOTS / place)
                descriptor = os.open(MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=slot)
            except FileNotFoundError:
                return None
            finally:
                os.close(slot)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        try:
            found = read_manifest(data)
        except BundleRefused:
            return None
        return Content(found.product, found.version, found.build_id)

    def stage(self, place: Place, package: BinaryIO, expected: Content, trace: Callable[[str], None]) -> None:
        """Judges the bundle, makes sure that it fits, and unpacks it into a slot that it empties first."""
        with self._opened() as directory, self._slots(directory) as slots:
            if self._active(directory) == place:
                raise BackendRefused("machine", f"{self._path / SLOTS / place} is in use, so nothing is unpacked there")
            try:
                judged = judge_bundle(package)
                manifest = judged.finish()
            except BundleRefused as refused:
                raise BackendRefused("bundle-refused", str(refused)) from None
            says = Content(manifest.product, manifest.version, manifest.build_id)
            if says != expected:
                raise BackendRefused(
                    "bundle-refused", f"the bundle says that it is {says}, the repository that it is {expected}"
                )
            self._check_room(slots, place, judged.blocks + RESERVE_BYTES, manifest.entries + 2)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(place, dir_fd=slots)
            trace(f"{place}: emptied")
            os.mkdir(place, 0o700, dir_fd=slots)
            trace(f"{place}: made")
            slot = os.open(place, _DIRECTORY, dir_fd=slots)
            try:
                unpack(package, slot, manifest, trace)
                os.fchmod(slot, 0o755)
                os.fsync(slot)
            except BundleRefused as refused:  # read errors of the disk can look like this
                raise BackendRefused("bundle-refused", str(refused)) from None
            finally:
                os.close(slot)
            os.fsync(slots)
            trace(f"{place}: durable")

    def activate(self, place: Place, trace: Callable[[str], None]) -> None:
        """Replaces `current`. Before and after, it leads to a whole version."""
        with self._opened() as directory, self._slots(directory) as slots:
            try:
                slot = os.open(place, _DIRECTORY, dir_fd=slots)
            except FileNotFoundError:
                raise BackendRefused(
                    "machine", f"{self._path / SLOTS / place} does not exist; prepare the update again"
                ) from None
            try:
                self._check(slot, self._path / SLOTS / place)
            finally:
                os.close(slot)
            if self._active(directory) != place:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(NEW, dir_fd=directory)
                os.symlink(f"{SLOTS}/{place}", NEW, dir_fd=directory)
                trace(f"{NEW}: made")
                os.rename(NEW, CURRENT, src_dir_fd=directory, dst_dir_fd=directory)
                trace(f"{CURRENT}: renamed")
            os.fsync(directory)  # also after a kill right behind the rename
            trace(f"{CURRENT}: durable")

    def returned(self, place: Place) -> str:
        """Says that nothing was: the link says which version is current, and nothing but an order changes it."""
        return ""

    def keep(self, place: Place, trace: Callable[[str], None]) -> None:
        """Does nothing: the link says which version is current, and nothing but an order changes it."""

    def deactivate(self, trace: Callable[[str], None]) -> None:
        """Removes `current`."""
        with self._opened() as directory:
            if self._active(directory) is not None:
                os.unlink(CURRENT, dir_fd=directory)
                trace(f"{CURRENT}: removed")
            os.fsync(directory)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Opens the product's directory from the root, name by name: who can change one on the way could swap the rest."""
        descriptor = os.open("/", _DIRECTORY)
        try:
            path = Path("/")
            for name in self._path.parts[1:]:
                path /= name
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=descriptor)
                except OSError as error:
                    raise BackendRefused(
                        "machine", f"{path}: {error.strerror}; create it as a directory of root's, or correct 'directory'"
                    ) from None
                os.close(descriptor)
                descriptor = below
                self._check(descriptor, path, last=path == self._path)
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _slots(self, directory: int) -> Iterator[int]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(SLOTS, 0o700, dir_fd=directory)
        try:
            descriptor = os.open(SLOTS, _DIRECTORY, dir_fd=directory)
        except OSError as error:
            raise BackendRefused("machine", f"{self._path / SLOTS}: {error.strerror}; it must be a directory") from None
        try:
            self._check(descriptor, self._path / SLOTS)
            os.fchmod(descriptor, 0o755)  # whatever the umask is; the product reads below it
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int, path: Path, *, last: bool = True) -> None:
        info = os.fstat(descriptor)
        # In a directory with the sticky bit, as /tmp, others cannot rename what is not theirs.
        shared = info.st_mode & OTHERS_WRITE and (last or not info.st_mode & stat.S_ISVTX)
        if info.st_uid not in {0, self._owner} or shared:
            raise BackendRefused(
                "machine",
                f"{path} belongs to uid {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}, so others could replace "
                f"what is installed; run: chown root:root {path}; chmod go-w {path}",
            )

    def _active(self, directory: int) -> Place | None:
        try:
            target = os.readlink(CURRENT, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError:
            target = ""
        place = _TARGETS.get(target)
        if place is None:
            raise BackendRefused(
                "machine",
                f"{self._path / CURRENT} is not a symbolic link to {SLOTS}/a or {SLOTS}/b; move it away, or create that link",
            )
        return place

    def _check_room(self, slots: int, place: Place, wanted: int, files: int) -> None:
        free, free_files = self._free(slots)
        freed, freed_files = _taken(slots, place)
        if free + freed < wanted or free_files + freed_files < files:
            raise BackendRefused(
                "no-room",
                f"{self._path / SLOTS} has room for {free + freed} bytes and {free_files + freed_files} files; the update "
                f"needs {wanted} and {files}; remove what is not needed there",
            )


def _free(descriptor: int) -> tuple[int, int]:
    found = os.fstatvfs(descriptor)
    # Some file systems count no files.
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else 2**31


def _taken(slots: int, place: Place) -> tuple[int, int]:
    """Bytes and files that a slot takes, which become free."""
    size = files = 0
    if place not in os.listdir(slots):
        return 0, 0
    for _, _, names, directory in os.fwalk(place, dir_fd=slots):
        files += 1
        for name in names:
            size += os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
            files += 1
    return size, files
