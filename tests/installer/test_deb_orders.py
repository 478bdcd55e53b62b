"""The core's orders for the agent's own package, with both signatures, jobs in files and the real dpkg in a directory."""

import os
from pathlib import Path
from typing import Any

import pytest

from common.files import no_trace
from installer.agentpackage.packages import PACKAGE
from installer.agentpackage.trial import DEADLINE_S
from installer.apply import perform_job
from installer.backends.deb import Deb
from installer.config import load_config
from installer.contract import Place
from installer.jobs import Jobs
from installer.machine import Machine
from installer.orders import answer
from installer.phases import Phase
from installer.programs import Ran
from installer.state import StateFile
from ipc.installermessages import (
    INSTALLER_VERSION,
    Check,
    Commit,
    Committed,
    Installed,
    Prepare,
    Prepared,
    Products,
    Prove,
    Proved,
    Refused,
    RollBack,
    RolledBack,
    Switch,
    Switched,
    encode_installer,
)
from ipc.messages import Request
from tests.installer.test_deb import locked
from tests.support import stagedupdates as vendor
from tests.support.debs import Box, deb

pytestmark = pytest.mark.system


class Till:
    """A machine whose agent 1.0 came from apt."""

    def __init__(self, top: Path) -> None:
        self.box = Box(top / "box")
        self.box.has("1.0+b1.0")
        self.box.answers |= {"--json": Ran(0, '{"verdict": "fine"}')}
        self.staging = top / "staging"
        self.staging.mkdir()
        self.file = top / "installer.toml"
        self.file.write_text('[product.license-agent]\nbackend = "deb"\n')
        self.file.chmod(0o644)
        self.now = 0.0

    def machine(self) -> Machine:
        config = lambda: load_config(self.file, (os.geteuid(),))  # noqa: E731

        def sleep(seconds: float) -> None:
            self.now += seconds
            perform_job(self.box.own / "upgrades", config, self.box.upgrader().do)

        jobs = Jobs(self.box.own / "upgrades", lambda: self.now, sleep, unit="license-agent-upgrade")

        def install(place: Place, sha256: str, _trace: Any) -> tuple[Check, ...]:
            return jobs.upgrade(PACKAGE, place, sha256, 60.0)

        return Machine(
            config=config,
            trust=vendor.trust,
            state=StateFile(self.box.own, os.geteuid(), no_trace),
            staging=self.staging,
            work=self.box.own / "work",
            jobs=jobs,
            upgrades=jobs,
            backend=lambda _: Deb(PACKAGE, self.box.rescue(), self.box.admin, install),
        )

    def stage(self, version: str, data: bytes, number: int = 7) -> str:
        order = vendor.directive(version, data, number, product=PACKAGE, target=vendor.path_of(version, PACKAGE))
        sha256 = vendor.stage(self.staging, version, data, directive=order)
        for name, content in vendor.metadata({version: data}, number, product=PACKAGE, kind="deb").items():
            (self.staging / sha256 / "metadata" / name).write_bytes(content)
        return sha256

    def order(self, kind: type[Request], **fields: Any) -> Any:
        fields = fields if kind is Products else {"product": PACKAGE, **fields}
        return answer(encode_installer(kind(v=INSTALLER_VERSION, id=7, **fields))[4:], self.machine(), lambda _progress: None)

    def shown(self) -> Any:
        return self.order(Products).products[0]


@pytest.fixture
def till(tmp_path: Path) -> Till:
    return Till(tmp_path)


def code(found: Any) -> str:
    assert isinstance(found, Refused), found
    return found.code


def test_an_upgrade_of_the_agent_from_the_order_to_the_commit(till: Till) -> None:
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    assert (till.shown().backend, till.shown().running) == ("deb", Installed(version="1.0", build_id="b1.0"))
    assert isinstance(till.order(Prepare, sha256=sha256), Prepared)
    assert till.box.installed() == ("1.0+b1.0", "1.0+b1.0")
    assert till.order(Switch, sha256=sha256) == Switched(v=INSTALLER_VERSION, id=7, restarted=True, text="")
    assert till.box.installed() == ("2.0+b2.0", "2.0+b2.0")
    till.order(Switch, sha256=sha256)  # the agent that was just started does not know whether it was answered
    assert code(till.order(Commit)) == "wrong-phase"
    till.box.agent = "1.0+b1.0"
    proved = till.order(Prove)
    assert isinstance(proved, Proved) and [check.name for check in proved.checks if not check.ok] == ["version"]
    assert code(till.order(Commit)) == "not-proved"
    till.box.agent = "as installed"
    assert till.order(Prove).ok
    assert isinstance(till.order(Commit), Committed)
    shown = till.shown()
    assert (shown.state, shown.running, shown.previous) == (
        "idle", Installed(version="2.0", build_id="b2.0"), Installed(version="1.0", build_id="b1.0"),
    )  # fmt: skip
    assert till.box.rescue().trial() is None


def test_an_ordered_return(till: Till) -> None:
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    till.order(Prepare, sha256=sha256)
    till.order(Switch, sha256=sha256)
    found = till.order(RollBack, reason="the test wants it")
    assert found == RolledBack(v=INSTALLER_VERSION, id=7, version="1.0", restarted=True, text="")
    assert till.box.installed() == ("1.0+b1.0", "1.0+b1.0")
    assert till.box.rescue().trial() is None
    assert isinstance(till.order(Prepare, sha256=sha256), Prepared)  # the same directive may try again
    assert isinstance(till.order(Switch, sha256=sha256), Switched)


def test_a_return_after_the_commit_is_no_trial_that_the_rescue_ends(till: Till) -> None:
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    for kind in (Prepare, Switch):
        till.order(kind, sha256=sha256)
    till.order(Prove)
    till.order(Commit)
    found = till.order(RollBack, reason="the administrator wants it")
    assert found == RolledBack(v=INSTALLER_VERSION, id=7, version="1.0", restarted=True, text="")
    till.box.now += DEADLINE_S
    till.box.rescue().tick()
    assert (till.shown().state, till.box.installed()) == ("idle", ("1.0+b1.0", "1.0+b1.0"))


def test_after_the_rescue_the_old_agent_ends_the_update(till: Till) -> None:
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    till.order(Prepare, sha256=sha256)
    till.order(Switch, sha256=sha256)
    assert till.order(Prove).ok
    till.box.now += DEADLINE_S
    till.box.rescue().tick()
    assert till.shown().state == "proving"
    refused = till.order(Prove)
    assert code(refused) == "rescued" and "2.0 was taken back: it was not committed within 15 minutes" in refused.text
    assert code(till.order(Commit)) == "not-proved"
    assert code(till.order(Switch, sha256=sha256)) == "rescued"
    assert till.order(RollBack, reason="it was taken back").version == "1.0"
    assert (till.shown().state, till.box.installed()) == ("idle", ("1.0+b1.0", "1.0+b1.0"))


def test_an_installer_that_the_packages_restarted_still_learns_why_the_agent_was_taken_back(till: Till) -> None:
    """The scripts of both packages restart it, so nobody reads the result of the job that it has left."""
    till.box.answers |= {"is-active": Ran(3, "activating"), "show": Ran(0, "7")}
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    till.order(Prepare, sha256=sha256)
    assert code(till.order(Switch, sha256=sha256)) == "not-installed"
    assert till.box.installed() == ("1.0+b1.0", "1.0+b1.0")
    refused = till.order(Prove)
    assert code(refused) == "rescued"
    assert refused.text == (
        "2.0 was taken back: the new agent does not start: license-agent.service is activating after 7 restarts"
    )
    assert till.order(RollBack, reason=refused.text).version == "1.0"
    assert till.shown().state == "idle"


def test_where_the_present_package_cannot_be_kept_nothing_is_installed_and_the_update_ends(till: Till) -> None:
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    till.order(Prepare, sha256=sha256)
    files = till.box.admin / "info" / f"{PACKAGE}.list"
    files.rename(files.with_suffix(".away"))
    assert code(till.order(Switch, sha256=sha256)) == "not-installed"
    assert till.order(RollBack, reason="it failed").version == "1.0"
    assert (till.shown().state, till.box.installed()) == ("idle", ("1.0+b1.0", "1.0+b1.0"))


def test_while_apt_is_at_work_the_update_stays_prepared(till: Till) -> None:
    sha256 = till.stage("2.0", deb("2.0+b2.0"))
    till.order(Prepare, sha256=sha256)
    with locked(till.box) as holder:
        assert code(till.order(Switch, sha256=sha256)) == "busy"
        assert holder.stdin is not None
        holder.stdin.close()
    assert till.shown().state == Phase.STAGED
    assert isinstance(till.order(Switch, sha256=sha256), Switched)


def test_a_package_that_does_not_install_is_a_failed_attempt_and_ends_with_the_old_one(till: Till) -> None:
    data = deb("2.0+b2.0", scripts=("postinst\n#!/bin/sh\nexit 3\n",))
    sha256 = till.stage("2.0", data)
    till.order(Prepare, sha256=sha256)
    found = till.order(Switch, sha256=sha256)
    assert code(found) == "not-installed" and "dpkg ended with status 1" in found.text
    assert till.box.installed() == ("1.0+b1.0", "1.0+b1.0")
    assert till.order(RollBack, reason="it failed").version == "1.0"
    assert till.shown().state == "idle"


def test_a_disk_without_room_is_no_failed_attempt_and_the_update_stays_prepared(till: Till, tmp_path: Path) -> None:
    room = tmp_path / "room"
    data = deb("2.0+b2.0", scripts=(f"preinst\n#!/bin/sh\n[ -e {room} ] || cat /proc/version >/dev/full\n",))
    sha256 = till.stage("2.0", data)
    till.order(Prepare, sha256=sha256)
    found = till.order(Switch, sha256=sha256)
    assert code(found) == "no-room" and "No space left on device" in found.text
    assert (till.shown().state, till.box.installed()) == (Phase.STAGED, ("1.0+b1.0", "1.0+b1.0"))
    room.touch()
    assert isinstance(till.order(Switch, sha256=sha256), Switched)
