"""Holds every backend to the contract in installer/contract.py, and slots to what is theirs alone."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.files import no_trace
from installer.agentpackage.packages import PACKAGE
from installer.backends.slots import RESERVE_BYTES, Slots
from installer.contract import Backend, BackendRefused, Content, Place
from tests.support.bundles import GOOD, Made, bundle, version
from tests.support.debs import Box, deb
from tests.support.raucs import PRODUCT, System
from tests.support.raucs import bundle as raucbundle


class Killed(BaseException):
    """Ends a method between two writes, as SIGKILL does: no handler runs that catches Exception."""


def killer(at: int) -> Callable[[str], None]:
    """Makes a trace that kills at its `at`-th step, counted from 0."""
    left = [at]

    def trace(_step: str) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1

    return trace


def package(number: str) -> io.BytesIO:
    return io.BytesIO(version(number))


def content(number: str) -> Content:
    return Content("pos", number, f"b{number}")


def slots(directory: Path) -> Slots:
    return Slots("pos", directory, os.geteuid())


class OfSlots:
    """A machine with slots."""

    product = "pos"

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "pos").mkdir(mode=0o755, exist_ok=True)

    def backend(self) -> Backend:
        """Makes a new one each time, as after a restart."""
        return slots(self.top / "pos")

    def package(self, number: str) -> io.BytesIO:
        return package(number)

    def first(self) -> None:
        """Has 1.0 run from place a."""
        install(self, "a", "1.0")

    def copy_to(self, top: Path) -> "OfSlots":
        shutil.copytree(self.top, top, symlinks=True)
        return OfSlots(top)


class OfDeb:
    """A machine whose agent is a package, which the real dpkg installs in a directory."""

    product = PACKAGE

    def __init__(self, box: Box) -> None:
        self.box = box

    def backend(self) -> Backend:
        return self.box.backend()

    def package(self, number: str) -> io.BytesIO:
        return io.BytesIO(deb(f"{number}+b{number}"))

    def first(self) -> None:
        """Has 1.0 run from place a. There is always a package before: it is what orders the first update."""
        self.box.has("1.0+b1.0")
        self.box.keep("a", "1.0+b1.0")

    def copy_to(self, top: Path) -> "OfDeb":
        return OfDeb(self.box.copy_to(top))


class OfRauc:
    """A machine whose whole system the real RAUC updates; it restarts where the contract speaks of a new process."""

    product = PRODUCT

    def __init__(self, system: System, all_of_them: list[System]) -> None:
        self.system = system
        self.all = all_of_them
        self.all.append(system)

    def backend(self) -> Backend:
        return self.system.backend()

    def package(self, number: str) -> io.BytesIO:
        return io.BytesIO(raucbundle(number))

    def first(self) -> None:
        """Has 1.0 run from place a, as the factory wrote it: RAUC does not know it."""
        self.system.os_release.write_text('NAME=Till\nIMAGE_VERSION="1.0"\nBUILD_ID=b1.0\n')

    def copy_to(self, top: Path) -> "OfRauc":
        return OfRauc(self.system.copy_to(top), self.all)


Kit = OfSlots | OfDeb | OfRauc


@pytest.fixture(
    params=[
        "slots",
        pytest.param("deb", marks=pytest.mark.system),
        pytest.param("rauc", marks=[pytest.mark.system, pytest.mark.root]),
    ]
)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    top = tmp_path / "first"
    top.mkdir()
    if request.param == "rauc":
        kit = OfRauc(System(top), [])
        yield kit
        for system in kit.all:
            system.close()
    else:
        yield OfSlots(top) if request.param == "slots" else OfDeb(Box(top))


def says(kit: Kit, number: str) -> Content:
    return Content(kit.product, number, f"b{number}")


def stage(kit: Kit, place: Place, number: str, trace: Callable[[str], None] = no_trace) -> None:
    kit.backend().stage(place, kit.package(number), says(kit, number), trace)


def install(kit: Kit, place: Place, number: str) -> None:
    stage(kit, place, number)
    kit.backend().activate(place, no_trace)


def test_there_and_back(kit: Kit) -> None:
    kit.first()
    assert kit.backend().active() == "a" and kit.backend().content("a") == says(kit, "1.0")
    install(kit, "b", "2.0")
    assert kit.backend().active() == "b" and kit.backend().content("b") == says(kit, "2.0")
    kit.backend().activate("a", no_trace)
    assert kit.backend().active() == "a" and kit.backend().content("a") == says(kit, "1.0")
    install(kit, "b", "3.0")
    kit.backend().keep("b", no_trace)
    kit.backend().keep("b", no_trace)
    assert kit.backend().active() == "b" and kit.backend().content("b") == says(kit, "3.0")
    install(kit, "a", "4.0")
    assert kit.backend().active() == "a" and kit.backend().content("b") == says(kit, "3.0")


def test_the_active_place_is_never_written_to(kit: Kit) -> None:
    kit.first()
    with pytest.raises(BackendRefused, match="in use") as refused:
        stage(kit, "a", "2.0")
    assert refused.value.code == "machine"
    assert kit.backend().content("a") == says(kit, "1.0")


@pytest.mark.parametrize(("product", "number", "build"), [("other", "2.0", "b2.0"), ("", "2.1", "b2.0"), ("", "2.0", "b")])
def test_a_package_of_something_else_costs_no_version(kit: Kit, product: str, number: str, build: str) -> None:
    kit.first()
    stage(kit, "b", "1.5")
    with pytest.raises(BackendRefused, match="the repository") as refused:
        kit.backend().stage("b", kit.package("2.0"), Content(product or kit.product, number, build), no_trace)
    assert refused.value.code == "bundle-refused"
    assert kit.backend().content("b") == says(kit, "1.5")


def test_a_damaged_package_costs_no_version(kit: Kit) -> None:
    kit.first()
    stage(kit, "b", "1.5")
    whole = kit.package("2.0").getvalue()
    with pytest.raises(BackendRefused) as refused:
        # What dpkg alone would find later, the package's digest has ruled out.
        kit.backend().stage("b", io.BytesIO(whole[: len(whole) // 4]), says(kit, "2.0"), no_trace)
    assert refused.value.code == "bundle-refused"
    assert kit.backend().content("b") == says(kit, "1.5")


def test_an_empty_place_does_not_become_the_active_one(kit: Kit) -> None:
    kit.first()
    with pytest.raises(BackendRefused, match="does not exist"):
        kit.backend().activate("b", no_trace)
    assert kit.backend().active() == "a"


def test_a_kill_after_any_write_leaves_the_active_version_whole(kit: Kit, tmp_path: Path) -> None:
    """And the method can be called again, which is tried after one of the kills of each: dpkg takes its time."""
    kit.first()
    runs: dict[str, Callable[[Kit, Callable[[str], None]], None]] = {
        "stage": lambda kit, trace: stage(kit, "b", "2.0", trace),
        "activate": lambda kit, trace: kit.backend().activate("b", trace),
        "back": lambda kit, trace: kit.backend().activate("a", trace),
        "keep": lambda kit, trace: kit.backend().keep("b", trace),
    }
    for name, run in runs.items():  # each goes on from where the one before it ended
        after = kit.copy_to(tmp_path / name)
        seen: list[str] = []
        run(after, seen.append)
        for at in range(len(seen)):
            tried = kit.copy_to(tmp_path / f"{name}-{at}")
            with pytest.raises(Killed):
                run(tried, killer(at))
            active = tried.backend().active()
            assert active is not None, (name, seen[at])
            assert tried.backend().content(active) == says(kit, {"a": "1.0", "b": "2.0"}[active])
            if at == len(seen) // 2:
                run(tried, no_trace)
                assert tried.backend().active() == after.backend().active(), (name, seen[at])
        kit = after
        if name == "back":
            install(kit, "b", "2.0")


# ---- slots alone


def test_a_machine_without_a_version_gets_one_and_loses_it_again(tmp_path: Path) -> None:
    kit = OfSlots(tmp_path)
    assert kit.backend().active() is None
    stage(kit, "a", "1.0")
    assert kit.backend().active() is None
    assert kit.backend().content("a") == content("1.0") and kit.backend().content("b") is None
    with pytest.raises(BackendRefused, match="does not exist"):
        kit.backend().activate("b", no_trace)
    assert kit.backend().active() is None
    kit.backend().activate("a", no_trace)
    assert kit.backend().active() == "a"
    kit.backend().deactivate(no_trace)
    kit.backend().deactivate(no_trace)
    assert kit.backend().active() is None


def place(tmp_path: Path) -> Path:
    install(OfSlots(tmp_path), "a", "1.0")
    return tmp_path / "pos"


def test_current_leads_to_the_slot_and_others_can_read_it(tmp_path: Path) -> None:
    directory = place(tmp_path)
    assert os.readlink(directory / "current") == "slots/a"
    assert (directory / "current" / "bin" / "check").stat().st_mode & 0o777 == 0o755
    assert (directory / "slots").stat().st_mode & 0o777 == (directory / "slots" / "a").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("wrong", ["elsewhere", "/etc", "slots/c", "slots/a/../b", None])
def test_a_current_that_somebody_changed_is_said_and_not_replaced(tmp_path: Path, wrong: str | None) -> None:
    directory = place(tmp_path)
    (directory / "current").unlink()
    if wrong is None:
        (directory / "current").mkdir()
    else:
        (directory / "current").symlink_to(wrong)
    for act in (slots(directory).active, lambda: slots(directory).activate("a", no_trace)):
        with pytest.raises(BackendRefused, match="is not a symbolic link to slots/a or slots/b; move it away"):
            act()
    assert wrong is None or os.readlink(directory / "current") == wrong


@pytest.mark.parametrize("name", ["", "slots", "slots/a"])
def test_a_directory_that_others_can_change_is_refused_with_the_command_that_fixes_it(tmp_path: Path, name: str) -> None:
    directory = place(tmp_path)
    (directory / name).chmod(0o777)
    if name == "slots":
        (directory / name).chmod(0o1777)  # a sticky bit helps above the product's directory, not in it
    with pytest.raises(BackendRefused, match="chown root:root"):
        slots(directory).activate("a", no_trace)


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    directory = place(tmp_path)
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(BackendRefused, match="create it as a directory of root's"):
        slots(tmp_path / "link").active()
    (directory / "slots" / "a").rename(directory / "slots" / "real")
    (directory / "slots" / "a").symlink_to("real")
    with pytest.raises((BackendRefused, OSError)):
        slots(directory).activate("a", no_trace)


def test_links_in_a_slot_that_is_emptied_lead_nowhere(tmp_path: Path) -> None:
    directory, outside = place(tmp_path), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (directory / "slots" / "b").mkdir()
    (directory / "slots" / "b" / "out").symlink_to(outside)
    install(OfSlots(tmp_path), "b", "2.0")
    assert (outside / "kept").read_text() == "kept"


@pytest.mark.parametrize(("short", "files"), [(1, 100), (0, 6)])
def test_without_room_the_slot_keeps_what_it_has(tmp_path: Path, short: int, files: int) -> None:
    directory = place(tmp_path)
    members = [*GOOD, Made(b"big", bytes(100_000))]
    data = io.BytesIO(bundle(members))
    # 4 of the members take one block each, data.txt two, `big` 25.
    needed = RESERVE_BYTES + (5 + 1 + 25) * 4096
    tight = Slots("pos", directory, os.geteuid(), free=lambda _: (needed - short, files))
    with pytest.raises(BackendRefused, match="remove what is not needed there") as refused:
        tight.stage("b", data, Content("pos", "1.0", "b1"), no_trace)
    assert refused.value.code == "no-room"
    assert not (directory / "slots" / "b").exists()
    enough = Slots("pos", directory, os.geteuid(), free=lambda _: (needed, 7))
    enough.stage("b", data, Content("pos", "1.0", "b1"), no_trace)


def test_room_that_emptying_the_slot_gives_counts(tmp_path: Path) -> None:
    directory = place(tmp_path)
    slots(directory).stage("b", package("2.0"), content("2.0"), no_trace)
    taken = RESERVE_BYTES + 6 * 4096
    Slots("pos", directory, os.geteuid(), free=lambda _: (taken, 0)).stage("b", package("2.1"), content("2.1"), no_trace)
    assert slots(directory).content("b") == content("2.1")
