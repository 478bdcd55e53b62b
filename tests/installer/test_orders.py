"""The orders of an update on a till of its own: what they do and refuse, and that no kill costs a version."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from installer.phases import Phase
from installer.staged import Staged, StagedRefused
from ipc.installermessages import (
    Committed,
    Installed,
    Prepare,
    Prepared,
    Products,
    Proved,
    Refused,
    RolledBack,
    Switched,
    Withdrawn,
)
from tests.installer.test_backends import Killed, killer
from tests.support import stagedupdates as vendor
from tests.support.bundles import GOOD, bundle, link, version
from tests.support.installing import Till
from tests.support.stagedupdates import DAY, NOW, stage
from updatetrust.trustfile import encode_trust_file

ROOT = Path(__file__).parents[2]
V1, V2, V3 = version("1.0"), version("2.0"), version("3.0")


@pytest.fixture
def till(tmp_path: Path) -> Till:
    return Till(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Till:
    till = Till(tmp_path_factory.mktemp("till"))
    till.install(stage(till.staging, "1.0", V1, number=1))
    return till


@pytest.fixture
def selling(installed: Till, tmp_path: Path) -> Till:
    """A till whose 1.0 is committed."""
    return installed.copy_to(tmp_path)


def refused(found: Any, code: str) -> str:
    assert isinstance(found, Refused), found
    assert found.code == code, found
    return found.text


def test_a_whole_update(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.commands.clear()
    assert selling.product().running == Installed(version="1.0", build_id="b1.0")
    assert isinstance(selling.prepare(sha256), Prepared)
    done = [progress.done for progress in selling.reported]
    assert done == sorted(done) and done[-1] == selling.reported[-1].total == 3 * len(V2)
    assert selling.product().state == "staged" and selling.runs() == "1.0" and not selling.commands
    assert selling.switch(sha256) == Switched(v=1, id=7, restarted=True, text="")
    assert selling.commands == [["restart", "--", "pos.service"]]
    assert selling.product().state == "switched" and selling.runs() == "2.0"
    proved = selling.prove()
    assert isinstance(proved, Proved) and proved.ok and [check.name for check in proved.checks] == ["unit", "health"]
    assert selling.commands[1:] == [
        ["is-active", "--", "pos.service"],
        ["start", "--", "license-agent-pos-check@pos.service"],
        ["is-active", "--", "pos.service"],
    ]
    assert selling.product().state == "proving"
    assert isinstance(selling.commit(), Committed)
    product = selling.product()
    assert (product.state, product.running.version, product.previous.version) == ("idle", "2.0", "1.0")
    assert selling.state().executed == selling.state().directive == 2
    assert not list((selling.top / "own" / "work").iterdir())


def test_each_order_may_be_repeated(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    for act in (selling.prepare, selling.switch):
        assert act(sha256) == act(sha256)
    assert isinstance(selling.prepare(sha256), Prepared)  # the core does not know that it switched
    assert selling.runs() == "2.0"
    assert selling.prove() == selling.prove()
    assert isinstance(selling.switch(sha256), Switched)
    refused(selling.commit(), "not-proved")  # what was switched again is proved again
    assert selling.prove().ok
    assert selling.commit() == selling.commit()
    assert selling.product().previous == Installed(version="1.0", build_id="b1.0")
    assert selling.roll_back() == selling.roll_back() == RolledBack(v=1, id=7, version="1.0", restarted=True, text="")
    assert selling.runs() == "1.0" and selling.product().previous is None


def test_after_a_commit_the_way_back_is_open_once_and_not_below_the_floor(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.install(sha256)
    selling.machine().state.save(msgspec.structs.replace(selling.state(), floors={"pos": "1.5"}))
    assert selling.product().previous is None
    refused(selling.roll_back(), "wrong-phase")
    assert selling.runs() == "2.0"
    selling.machine().state.save(msgspec.structs.replace(selling.state(), floors={"pos": "1.0"}))
    selling.commands.clear()
    assert selling.roll_back().version == "1.0"
    assert selling.commands == [["restart", "--", "pos.service"]]
    # The version that was left is no version before, and its directive is used up.
    assert selling.roll_back().version == "1.0" and selling.runs() == "1.0"
    refused(selling.prepare(stage(selling.staging, "2.0", V2, number=2)), "directive-replayed")
    selling.install(stage(selling.staging, "3.0", V3, number=3))
    assert selling.product().previous.version == "1.0"


def test_what_a_failed_update_left_is_no_version_before(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.prepare(sha256)
    selling.switch(sha256)
    selling.roll_back()
    assert selling.product().previous is None
    assert selling.roll_back().version == "1.0" and selling.runs() == "1.0"


@pytest.mark.parametrize("step", range(12))
def test_a_kill_on_the_way_back_after_a_commit_costs_no_version(installed: Till, tmp_path: Path, step: int) -> None:
    till = installed.copy_to(tmp_path)
    till.install(stage(till.staging, "2.0", V2, number=2))
    try:
        till.roll_back(trace=killer(step))
        done = True
    except Killed:
        done = False
    assert till.runs() in ("1.0", "2.0"), "a version runs"
    assert till.roll_back().version == "1.0"
    product = till.product()
    assert (till.runs(), product.state, product.running.version) == ("1.0", "idle", "1.0")
    assert not done or step > 4, "the kill came"


def test_back_to_the_good_version_and_the_same_directive_may_try_again(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    for failures in range(3):
        selling.prepare(sha256)
        selling.switch(sha256)
        selling.failing = {"start"}
        proved = selling.prove()
        assert not proved.ok and "'bin/check' failed; see: journalctl -u license-agent-pos-check@pos" in proved.checks[1].text
        refused(selling.commit(), "not-proved")
        selling.failing = set()
        assert selling.roll_back() == RolledBack(v=1, id=7, version="1.0", restarted=True, text="")
        assert selling.roll_back().version == "1.0"
        assert selling.runs() == "1.0" and selling.product().state == "idle", failures
    selling.install(sha256)
    assert selling.runs() == "2.0"


def test_a_staged_version_is_dropped_without_a_restart(selling: Till) -> None:
    selling.prepare(stage(selling.staging, "2.0", V2, number=2))
    selling.commands.clear()
    assert selling.roll_back().version == "1.0"
    assert not selling.commands and selling.runs() == "1.0"


def test_the_first_installation_that_fails_leaves_no_version(till: Till) -> None:
    sha256 = stage(till.staging, "1.0", V1)
    till.prepare(sha256)
    till.switch(sha256)
    found = till.roll_back()
    assert (found.version, found.restarted) == ("", False) and "no version before" in found.text
    assert till.runs() is None and till.product().running is None
    till.install(sha256)


def test_a_version_from_before_the_installer_is_the_good_one(till: Till) -> None:
    sha256 = stage(till.staging, "2.0", V2, number=2)
    assert till.product().running is None
    (till.top / "other").mkdir()
    other = Till(till.top / "other")
    other.install(stage(other.staging, "1.0", V1, number=1))
    (till.pos / "slots").mkdir()
    (other.pos / "slots" / "a").rename(till.pos / "slots" / "a")
    (till.pos / "current").symlink_to("slots/a")
    assert till.product().running == Installed(version="1.0", build_id="b1.0")
    till.prepare(sha256)
    till.switch(sha256)
    assert till.roll_back().version == "1.0"


def test_a_slot_that_root_chose_by_hand_is_the_good_one(selling: Till) -> None:
    selling.install(stage(selling.staging, "2.0", V2, number=2))
    (selling.pos / "current").unlink()
    (selling.pos / "current").symlink_to("slots/a")
    assert selling.product().running.version == "1.0" and selling.product().previous.version == "2.0"


def test_an_unclear_slot_is_said(selling: Till) -> None:
    (selling.pos / "current").unlink()
    (selling.pos / "slots" / "b").mkdir()
    (selling.pos / "current").symlink_to("slots/b")
    found = selling.product()
    assert found.problem.code == "machine" and "unpack the bundle again, with its manifest" in found.problem.text
    assert (found.running, found.previous, found.pending, found.state) == (None, None, None, "idle")
    refused(selling.prepare(stage(selling.staging, "2.0", V2, number=2)), "machine")


class BrokenDisk:
    """A backend whose disk fails."""

    def active(self) -> None:
        raise OSError(errno.EIO, "Input/output error", "/media/broken")


def test_a_product_whose_backend_is_broken_names_itself_and_the_others_are_updated(selling: Till) -> None:
    fridge = selling.top / "fridge"
    (fridge / "slots" / "b").mkdir(parents=True)
    (fridge / "current").symlink_to("slots/b")
    selling.add("fridge", fridge)
    selling.add("scales", selling.top / "scales")
    selling.broken["scales"] = BrokenDisk()
    found = {each.product: each for each in selling.order(Products).products}
    assert list(found) == ["pos", "fridge", "scales"]
    assert found["pos"].problem is msgspec.UNSET and found["pos"].running.version == "1.0"
    assert found["fridge"].problem.code == "machine" and "fridge" in found["fridge"].problem.text
    assert found["scales"].problem.code == "disk" and "/media/broken" in found["scales"].problem.text
    selling.install(stage(selling.staging, "2.0", V2, number=2))
    assert selling.runs() == "2.0"
    refused(selling.order(Prepare, product="fridge", sha256="ab" * 32), "machine")


# ---- what both signatures do not allow

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a directive of nobody": ({"directive": vendor.directive("2.0", V2, 2, by="thief")}, "signature"),
    "a key set of nobody": ({"key_set": vendor.key_set(by="thief")}, "signature"),
    "an older key set": ({"key_set": vendor.key_set(2)}, "signature"),
    "a directive for another agent": ({"directive": vendor.directive("2.0", V2, 2, agent_id="pos-2")}, "other-agent"),
    "a directive for another package": ({"directive": vendor.directive("3.0", V3, 2)}, "digest-differs"),
    "an old directive": ({"directive": vendor.directive("2.0", V2, 2, not_before=1, not_after=NOW - 1)}, "directive-expired"),
    "a directive that was executed": ({"directive": vendor.directive("2.0", V2, 1)}, "directive-replayed"),
    "a directive for another version": ({"directive": vendor.directive("2.0", V2, 2, version="2.1")}, "version-differs"),
    "another length": ({"directive": vendor.directive("2.0", V2, 2, length=5)}, "length-differs"),
    "no directive": ({"directive": ""}, "not-staged"),
    "no key set": ({"key_set": ""}, "not-staged"),
    "no package": ({"package": ""}, "not-staged"),
    "a package that was cut": ({"package": V2[:-1]}, "copy-differs"),
    "a package that grew": ({"package": V2 + b"x"}, "copy-differs"),
    "another package": ({"package": V2[:-1] + b"x"}, "copy-differs"),
    "a directive that is no text": ({"directive": b"\xff"}, "not-staged"),
    "a directive without an end": ({"directive": b"a" * 5000}, "not-staged"),
}  # fmt: skip
METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "a release of nobody": ({"ci": "thief"}, "metadata-not-signed"),
    "older metadata": ({"number": 1}, "metadata-rolled-back"),
    "a version below the floor": ({"floor": "2.1"}, "below-floor"),
    "other hardware": ({"hardware": ["till-arm"]}, "other-hardware"),
    "another kind": ({"kind": "deb"}, "kind-differs"),
    "a newer agent": ({"min_agent": "99.0"}, "agent-too-old"),
    "another build": ({"build_id": "b9"}, "build-differs"),
    "another product": ({"product": "kds"}, "not-in-repository"),
}  # fmt: skip


def unchanged(till: Till) -> None:
    product = till.product()
    assert (product.state, product.running.version, till.runs()) == ("idle", "1.0", "1.0")
    assert not (till.pos / "slots" / "b").exists()
    assert not list((till.top / "own" / "work").iterdir())


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_server_did_not_order_is_not_prepared(selling: Till, name: str) -> None:
    files, code = REFUSED[name]
    text = refused(selling.prepare(stage(selling.staging, "2.0", V2, number=2, **files)), code)
    assert text
    unchanged(selling)


@pytest.mark.parametrize("name", METADATA)
def test_what_the_vendor_did_not_sign_is_not_prepared(selling: Till, name: str) -> None:
    changes, code = METADATA[name]
    selling.install(stage(selling.staging, "1.1", version("1.1"), number=5))
    before = selling.state()
    sha256 = stage(selling.staging, "2.0", V2, number=6)
    for file, data in vendor.metadata({"2.0": V2}, **{"number": 6, **changes}).items():
        (selling.staging / sha256 / "metadata" / file).write_bytes(data)
    refused(selling.prepare(sha256), code)
    assert selling.state() == before and selling.runs() == "1.1"


def test_a_package_that_both_signed_but_that_breaks_a_rule_costs_no_version(selling: Till) -> None:
    bad = bundle([*GOOD, link("out", "/etc/shadow")], version="2.0", build_id="b2.0")
    assert "stays in the bundle" in refused(selling.prepare(stage(selling.staging, "2.0", bad, number=2)), "bundle-refused")
    assert selling.runs() == "1.0" and selling.product().state == "idle"
    other = bundle(version="9.9", build_id="b2.0")
    assert "9.9" in refused(selling.prepare(stage(selling.staging, "2.0", other, number=3)), "bundle-refused")


def test_the_floor_rises_at_commit_and_the_last_good_version_is_exempt(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    for file, data in vendor.metadata({"2.0": V2, "1.0": V1}, 2, floor="2.0").items():
        (selling.staging / sha256 / "metadata" / file).write_bytes(data)
    selling.prepare(sha256)
    selling.switch(sha256)
    assert selling.state().floors == {"pos": "0.1"}
    assert selling.roll_back().version == "1.0"  # below the floor that the vendor has now
    selling.install(sha256)
    assert selling.state().floors == {"pos": "2.0"}
    # The vendor's metadata may lower its floor; the machine's stays.
    back = stage(selling.staging, "1.0", V1, number=3, directive=vendor.directive("1.0", V1, 3, downgrade=True))
    refused(selling.prepare(back), "below-floor")


def test_a_downgrade_needs_a_directive_that_says_so(selling: Till) -> None:
    selling.install(stage(selling.staging, "2.0", V2, number=2))
    refused(selling.prepare(stage(selling.staging, "1.0", V1, number=3)), "downgrade-not-allowed")
    selling.install(stage(selling.staging, "1.0", V1, number=3, directive=vendor.directive("1.0", V1, 3, downgrade=True)))
    assert selling.runs() == "1.0"


def test_a_newer_directive_ends_an_older_one(selling: Till) -> None:
    second = stage(selling.staging, "2.0", V2, number=2)
    third = stage(selling.staging, "3.0", V3, number=3, more={"2.0": V2})
    selling.prepare(second)
    selling.prepare(third)
    refused(selling.switch(second), "other-package")
    selling.roll_back()
    stage(selling.staging, "2.0", V2, number=3, more={"3.0": V3}, directive=vendor.directive("2.0", V2, 2))
    refused(selling.prepare(second), "directive-replayed")
    selling.install(third)


def withdrawal(of: int, number: int, **changes: Any) -> str:
    return vendor.directive("2.0", V2, number, withdraws=of, **changes)


def test_a_withdrawn_directive_is_not_carried_out_whoever_orders_it(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.prepare(sha256)
    for _ in range(2):
        assert selling.withdraw(withdrawal(2, 4), vendor.key_set()) == Withdrawn(v=1, id=7, number=2)
    # Each order has an installer that reads its state from the disk, as after a restart.
    assert "assign the update again" in refused(selling.switch(sha256), "directive-withdrawn")
    refused(selling.prepare(sha256), "directive-withdrawn")
    assert selling.roll_back().version == "1.0"
    refused(selling.prepare(sha256), "directive-withdrawn")
    assert selling.runs() == "1.0" and selling.state().withdrawn == 2
    # An older withdrawal, or the same once more, takes nothing back, and what is ordered later is carried out.
    assert selling.withdraw(withdrawal(1, 3), vendor.key_set()).number == 2
    selling.install(stage(selling.staging, "3.0", V3, number=5, more={"2.0": V2}))
    assert selling.runs() == "3.0"


def test_a_withdrawal_before_the_package_came_and_after_the_switch(selling: Till) -> None:
    selling.withdraw(withdrawal(2, 4, not_before=1, not_after=2), vendor.key_set())
    refused(selling.prepare(stage(selling.staging, "2.0", V2, number=2)), "directive-withdrawn")
    third = stage(selling.staging, "3.0", V3, number=5, more={"2.0": V2})
    selling.prepare(third)
    selling.switch(third)
    selling.withdraw(withdrawal(5, 6), vendor.key_set())
    assert selling.prove().ok and isinstance(selling.commit(), Committed), "what is switched is finished"


WITHDRAWALS: dict[str, tuple[str, str, str]] = {
    "of nobody": (withdrawal(2, 4, by="thief"), vendor.key_set(), "signature"),
    "with a key set of nobody": (withdrawal(2, 4), vendor.key_set(by="thief"), "signature"),
    "with an older key set": (withdrawal(2, 4), vendor.key_set(2), "signature"),
    "for another agent": (withdrawal(2, 4, agent_id="pos-2"), vendor.key_set(), "other-agent"),
    "that would be the last one": (withdrawal(2**53 - 2, 2**53 - 1), vendor.key_set(), "number-ahead"),
    "that orders": (vendor.directive("2.0", V2, 4), vendor.key_set(), "withdraws-nothing"),
    "that is none": ("x", vendor.key_set(), "signature"),
}


@pytest.mark.parametrize("name", WITHDRAWALS)
def test_what_does_not_withdraw_changes_nothing(selling: Till, name: str) -> None:
    directive, key_set, code = WITHDRAWALS[name]
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    before = selling.state()
    assert refused(selling.withdraw(directive, key_set), code)
    assert selling.state() == before
    selling.install(sha256)


def test_a_disk_that_does_not_take_a_withdrawal_is_said(selling: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("installer.state.write_atomic", full)
    assert "state.json" in refused(selling.withdraw(withdrawal(2, 4), vendor.key_set()), "no-room")


def test_the_time_that_was_signed_ends_a_prepared_update(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.prepare(sha256)
    # As an update of another product leaves it.
    selling.machine().state.save(msgspec.structs.replace(selling.state(), floor_time=NOW + 31 * DAY))
    refused(selling.switch(sha256), "directive-expired")
    assert selling.runs() == "1.0"


def test_a_root_of_the_license_server_hands_over_to_the_next(selling: Till) -> None:
    both = (vendor.pin(), vendor.pin("next root"))
    over = vendor.key_set(4, roots=both)
    selling.install(stage(selling.staging, "2.0", V2, number=2, key_set=over))
    selling.install(stage(selling.staging, "3.0", V3, number=3, key_set=vendor.key_set(5, by="next root")))
    refused(selling.prepare(stage(selling.staging, "1.0", V1, number=4, key_set=vendor.key_set(6))), "signature")
    # Root's file has the last word on where it begins.
    selling.trust = vendor.trust(license_roots=[vendor.pin("third root")])
    refused(
        selling.prepare(stage(selling.staging, "2.0", V2, number=4, key_set=vendor.key_set(6, by="next root"))), "signature"
    )


def test_a_machine_that_missed_a_handover_follows_the_sets_in_between(selling: Till) -> None:
    over = vendor.key_set(4, roots=(vendor.pin(), vendor.pin("next root")))
    newest = vendor.key_set(5, by="next root")
    refused(selling.prepare(stage(selling.staging, "2.0", V2, number=2, key_set=newest)), "signature")
    selling.install(stage(selling.staging, "2.0", V2, number=2, key_set=f"{over}\n{newest}"))
    assert selling.state().key_set == 5 and selling.state().roots == (vendor.pin("next root"),)
    # From then on the former root leads nowhere, in whatever company it comes.
    again = vendor.key_set(6, roots=(vendor.pin(), vendor.pin("next root")))
    both = f"{again}\n{vendor.key_set(7)}"
    refused(selling.prepare(stage(selling.staging, "3.0", V3, number=3, key_set=both)), "signature")


# ---- a captured core, and a captured updater


def test_orders_out_of_order_change_nothing(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    for act in (lambda: selling.switch(sha256), selling.prove, selling.roll_back):
        refused(act(), "wrong-phase")
    selling.prepare(sha256)
    for act in (selling.prove, selling.commit):
        refused(act(), "wrong-phase")
    selling.switch(sha256)
    refused(selling.commit(), "wrong-phase")
    refused(selling.prepare(stage(selling.staging, "3.0", V3, number=3)), "wrong-phase")
    refused(selling.prove(product="kds"), "unknown-product")
    assert selling.runs() == "2.0"


def test_an_updater_that_swaps_files_after_they_were_read_gains_nothing(selling: Till) -> None:
    """At every write of the installer's, all staged files are replaced by another version's. What was verified is installed."""
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    evil = version("6.6")

    def swap(_step: str) -> None:
        for path in (selling.staging / sha256).rglob("*"):
            if path.is_file():
                path.write_bytes(evil if path.name == "package" else b"x")

    assert isinstance(selling.prepare(sha256, trace=swap), Prepared)
    selling.switch(sha256)
    assert selling.runs() == "2.0"


def test_a_package_that_changes_while_it_is_copied_is_not_installed(selling: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    big = version("2.0", random.Random(1).randbytes(30_000))
    package = stage(selling.staging, "2.0", big, number=2)
    path = selling.staging / package / "package"
    monkeypatch.setattr("installer.staged.CHUNK_BYTES", 4096)
    reports: list[int] = []
    with Staged(selling.staging, package) as staged:

        def swap(done: int) -> None:
            reports.append(done)
            if len(reports) == 2:
                with path.open("r+b") as file:
                    file.seek(8192)
                    file.write(b"evil" * 1024)

        with pytest.raises(StagedRefused, match="stage the package again"):
            staged.copy(len(big), package, selling.top / "own" / "work", swap)
    assert not list((selling.top / "own" / "work").iterdir())


@pytest.mark.parametrize("what", ["package", "directive.jws", "metadata", "metadata/targets.json", "."])
def test_links_of_the_updater_s_are_not_followed(selling: Till, what: str) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    path = selling.staging / sha256 / what
    aside = selling.top / "aside"
    path.rename(aside)
    (path if what != "." else selling.staging / sha256).symlink_to(aside)
    refused(selling.prepare(sha256), "not-staged")
    unchanged(selling)


@pytest.mark.parametrize("what", ["package", "directive.jws", "metadata/targets.json"])
def test_a_pipe_of_the_updater_s_does_not_make_root_wait(selling: Till, what: str) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    path = selling.staging / sha256 / what
    path.unlink()
    os.mkfifo(path)
    refused(selling.prepare(sha256), "not-staged")


@pytest.mark.parametrize("what", ["package", "directive.jws", "metadata/targets.json"])
def test_a_folder_in_place_of_a_file_costs_root_no_descriptor(selling: Till, what: str) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    path = selling.staging / sha256 / what
    path.unlink()
    path.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    assert "is not a regular file" in refused(selling.prepare(sha256), "not-staged")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_that_the_updater_chose_breaks_no_line_and_drives_no_terminal(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    (selling.staging / sha256 / "metadata" / "a\n\x1b]0;b\x07.json").symlink_to("/etc/passwd")
    text = refused(selling.prepare(sha256), "not-staged")
    assert text.isprintable() and r"'a\n\x1b]0;b\x07.json'" in text, text


def test_of_many_names_no_more_are_read_than_there_may_be(selling: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    monkeypatch.setattr("installer.staged.MAX_FILES", 4)
    monkeypatch.setattr(os, "listdir", lambda _directory: pytest.fail("every name takes memory"))
    assert "has more than 4 files" in refused(selling.prepare(sha256), "not-staged")


# ---- what could not be done is no pass


def test_a_product_that_does_not_restart_is_switched_and_said(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.prepare(sha256)
    selling.failing = {"restart", "is-active"}
    found = selling.switch(sha256)
    assert (found.restarted, found.text) == (False, "pos.service did not restart: it failed")
    proved = selling.prove()
    assert not proved.ok and proved.checks[0].text == "pos.service does not run: it failed"
    back = selling.roll_back()
    assert (back.version, back.restarted) == ("1.0", False) and selling.runs() == "1.0"


def test_without_the_apply_unit_nothing_is_proved(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.prepare(sha256)
    selling.applies = False
    assert "see: systemctl status license-agent-apply.path" in selling.switch(sha256).text
    proved = selling.prove()
    assert not proved.ok and [check.name for check in proved.checks] == ["apply"]
    refused(selling.commit(), "not-proved")
    assert not list((selling.top / "own" / "jobs").iterdir())


@pytest.mark.parametrize("content", ["", "v = ", '[product.pos]\nbackend = "slots"'])
def test_a_configuration_that_is_wrong_stops_every_order(selling: Till, content: str) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    (selling.top / "installer.toml").write_text(content)
    refused(selling.prepare(sha256), "configuration" if content else "unknown-product")
    assert selling.runs() == "1.0"


def test_a_damaged_state_stops_every_order(selling: Till) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    (selling.top / "own" / "state.json").write_text("{")
    for act in (
        lambda: selling.prepare(sha256),
        lambda: selling.switch(sha256),
        selling.prove,
        selling.commit,
        selling.roll_back,
    ):
        assert "restore it from a backup" in refused(act(), "state")
    assert selling.runs() == "1.0"


# ---- a kill after any write


def test_a_kill_after_any_write_of_any_order_leaves_a_version_that_runs_and_the_order_can_be_repeated(tmp_path: Path) -> None:
    """Each order is killed after its first write, then its second, and so on, until it comes through; then the next order."""
    till = Till(tmp_path)
    till.install(stage(till.staging, "1.0", V1, number=1))
    second, third = stage(till.staging, "2.0", V2, number=2), stage(till.staging, "3.0", V3, number=3)
    kills = 0
    for sha256, ending in ((second, "commit"), (third, "back")):
        new = {second: "2.0", third: "3.0"}[sha256]
        old = {second: "1.0", third: "2.0"}[sha256]
        orders = [lambda s=sha256, **m: till.prepare(s, **m), lambda s=sha256, **m: till.switch(s, **m), till.prove]
        orders.append(till.commit if ending == "commit" else till.roll_back)
        for number, act in enumerate(orders):
            at = 0
            while True:
                try:
                    found = act(trace=killer(at))
                except Killed:
                    kills += 1
                    at += 1
                    assert till.runs() in ({old} if number == 0 else {old, new}), (number, at)
                    till.product()  # the state can be read, and fits the machine
                    continue
                assert getattr(found, "code", None) is None, (number, at, found)
                assert getattr(found, "ok", True)
                break
        assert till.runs() == (new if ending == "commit" else old)
        assert till.state().products["pos"].phase is Phase.IDLE
    assert kills > 60


@pytest.mark.system
@pytest.mark.parametrize(("order", "step"), [("prepare", 9), ("switch", 4)])
def test_a_process_that_is_killed_leaves_a_version_that_runs(selling: Till, order: str, step: int) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    if order == "switch":
        selling.prepare(sha256)
    (selling.top / "update-trust.json").write_bytes(encode_trust_file(selling.trust))
    command = [sys.executable, "-m", "tests.support.installing", str(selling.top), order, sha256, str(step)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended
    assert selling.runs() in ("1.0", "2.0")
    selling.install(sha256)
    assert selling.runs() == "2.0"


@pytest.mark.parametrize("at", range(0, 24, 3))
def test_a_kill_on_the_way_can_also_be_answered_with_the_way_back(selling: Till, at: int) -> None:
    sha256 = stage(selling.staging, "2.0", V2, number=2)
    selling.prepare(sha256)
    with pytest.raises(Killed):
        trace = killer(at)
        selling.switch(sha256, trace=trace)
        selling.prove(trace=trace)
        raise Killed
    assert selling.roll_back().version == "1.0"
    assert selling.runs() == "1.0" and selling.product().state == "idle"


@pytest.fixture
def configured(selling: Till, tmp_path: Path) -> tuple[Till, Path]:
    """A till whose product has a configuration."""
    config = tmp_path / "etc-pos"
    config.mkdir(mode=0o755)
    (config / "pos.toml").write_text("old = 1\n")
    selling.keeps(config)
    return selling, config


def test_the_configuration_is_kept_before_the_switch_and_put_back_on_the_way_back(configured: tuple[Till, Path]) -> None:
    till, config = configured
    sha256 = stage(till.staging, "2.0", V2, number=2)
    till.prepare(sha256)
    assert till.switch(sha256).restarted
    (config / "pos.toml").write_text("migrated = 2\n")
    assert till.switch(sha256).restarted, "a repeated order keeps nothing of the new version's"
    till.commands.clear()
    back = till.roll_back()
    assert (config / "pos.toml").read_text() == "old = 1\n" and till.runs() == "1.0"
    assert back.config.startswith(f"put back in {config}: pos.toml; what was there instead is in ")
    assert till.commands == [["restart", "--", "pos.service"]]
    assert (till.top / "own" / "config" / "pos" / "replaced" / "pos.toml").read_text() == "migrated = 2\n"


def test_a_commit_leaves_the_configuration_and_the_way_back_after_it_puts_it_back(configured: tuple[Till, Path]) -> None:
    till, config = configured
    till.install(stage(till.staging, "2.0", V2, number=2))
    (config / "pos.toml").write_text("by hand = 3\n")
    assert "pos.toml" in till.roll_back().config and (config / "pos.toml").read_text() == "old = 1\n"


def test_without_a_copy_of_the_configuration_nothing_is_switched(configured: tuple[Till, Path]) -> None:
    till, config = configured
    sha256 = stage(till.staging, "2.0", V2, number=2)
    till.prepare(sha256)
    config.chmod(0o777)
    refused(till.switch(sha256), "config-not-kept")
    assert (till.runs(), till.product().state) == ("1.0", "staged")


def test_a_configuration_that_cannot_be_put_back_does_not_keep_the_till_from_selling(configured: tuple[Till, Path]) -> None:
    till, config = configured
    sha256 = stage(till.staging, "2.0", V2, number=2)
    till.prepare(sha256)
    till.switch(sha256)
    config.chmod(0o777)
    back = till.roll_back()
    assert till.runs() == "1.0" and back.config.startswith("the configuration was not put back, do it by hand: ")
