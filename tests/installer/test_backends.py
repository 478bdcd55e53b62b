"""Holds every backend to the contract in installer/backends/contract.py, and slots to what is theirs alone."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.files import no_trace
from installer.backends.contract import Backend, BackendRefused, Content, Place
from installer.backends.slots import RESERVE_BYTES, Slots
from tests.support.bundles import GOOD, Made, bundle, version


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


def steps(run: Callable[[Callable[[str], None]], None]) -> int:
    """Counts the steps of a whole run."""
    seen: list[str] = []
    run(seen.append)
    return len(seen)


def package(number: str) -> io.BytesIO:
    return io.BytesIO(version(number))


def content(number: str) -> Content:
    return Content("pos", number, f"b{number}")


def slots(directory: Path) -> Slots:
    return Slots("pos", directory, os.geteuid())


BACKENDS: dict[str, Callable[[Path], Backend]] = {"slots": slots}


@pytest.fixture(params=BACKENDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Backend]:
    directory = tmp_path / "pos"
    directory.mkdir(mode=0o755)
    return lambda: BACKENDS[request.param](directory)  # a new one each time, as after a restart


def install(backend: Backend, place: Place, number: str) -> None:
    backend.stage(place, package(number), content(number), no_trace)
    backend.activate(place, no_trace)


def test_a_machine_without_a_version_gets_one_and_loses_it_again(made: Callable[[], Backend]) -> None:
    assert made().active() is None
    made().stage("a", package("1.0"), content("1.0"), no_trace)
    assert made().active() is None
    assert made().content("a") == content("1.0") and made().content("b") is None
    made().activate("a", no_trace)
    assert made().active() == "a"
    made().deactivate(no_trace)
    made().deactivate(no_trace)
    assert made().active() is None


def test_there_and_back(made: Callable[[], Backend]) -> None:
    install(made(), "a", "1.0")
    install(made(), "b", "2.0")
    assert made().active() == "b" and made().content("b") == content("2.0")
    made().activate("a", no_trace)
    assert made().active() == "a" and made().content("a") == content("1.0")
    install(made(), "b", "3.0")
    assert made().content("b") == content("3.0")


def test_the_active_place_is_never_written_to(made: Callable[[], Backend]) -> None:
    install(made(), "a", "1.0")
    with pytest.raises(BackendRefused, match="in use") as refused:
        made().stage("a", package("2.0"), content("2.0"), no_trace)
    assert refused.value.code == "machine"
    assert made().content("a") == content("1.0")


@pytest.mark.parametrize("says", [Content("other", "2.0", "b2.0"), Content("pos", "2.1", "b2.0"), Content("pos", "2.0", "b")])
def test_a_package_of_something_else_costs_no_version(made: Callable[[], Backend], says: Content) -> None:
    install(made(), "a", "1.0")
    made().stage("b", package("1.5"), content("1.5"), no_trace)
    with pytest.raises(BackendRefused, match="the repository") as refused:
        made().stage("b", package("2.0"), says, no_trace)
    assert refused.value.code == "bundle-refused"
    assert made().content("b") == content("1.5")


def test_a_damaged_package_costs_no_version(made: Callable[[], Backend]) -> None:
    install(made(), "a", "1.0")
    made().stage("b", package("1.5"), content("1.5"), no_trace)
    with pytest.raises(BackendRefused):
        made().stage("b", io.BytesIO(version("2.0")[:-9]), content("2.0"), no_trace)
    assert made().content("b") == content("1.5")


def test_an_empty_place_does_not_become_the_active_one(made: Callable[[], Backend]) -> None:
    with pytest.raises(BackendRefused, match="does not exist"):
        made().activate("b", no_trace)
    assert made().active() is None


def test_a_kill_after_any_write_leaves_the_active_version_whole(made: Callable[[], Backend]) -> None:
    install(made(), "a", "1.0")
    runs: dict[str, Callable[[Callable[[str], None]], None]] = {
        "stage": lambda trace: made().stage("b", package("2.0"), content("2.0"), trace),
        "activate": lambda trace: made().activate("b", trace),
        "back": lambda trace: made().activate("a", trace),
    }
    for run in runs.values():  # each goes on from where the one before it ended
        before = made().active()
        count = steps(run)
        if before is not None:
            made().activate(before, no_trace)
        for at in range(count):
            with pytest.raises(Killed):
                run(killer(at))
            active = made().active()
            assert active is not None
            assert made().content(active) == content({"a": "1.0", "b": "2.0"}[active])
            if active != before:
                assert before is not None
                made().activate(before, no_trace)
        run(no_trace)


# ---- slots alone


def place(tmp_path: Path) -> Path:
    directory = tmp_path / "pos"
    directory.mkdir()
    install(slots(directory), "a", "1.0")
    return directory


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
    install(slots(directory), "b", "2.0")
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
