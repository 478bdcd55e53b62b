"""Whole systems, with the real RAUC: bundles that are refused, installations that break off, and the core's orders."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.files import no_trace
from installer.backends.rauc import Rauc
from installer.config import parse_config
from installer.contract import BackendRefused, Content
from installer.machine import Machine
from installer.orders import answer
from installer.rauc.raucbus import RaucFailed, RaucService
from installer.rauc.raucjobs import SAFE_FORMATS
from installer.state import StateFile
from ipc.installermessages import (
    INSTALLER_VERSION,
    Commit,
    Prepare,
    Prepared,
    Products,
    Prove,
    Refused,
    RollBack,
    Switch,
    Switched,
    encode_installer,
)
from ipc.messages import Request
from settings.errors import ConfigError
from tests.support import stagedupdates as vendor
from tests.support.raucs import CONFIG, MOUNTABLE, PRODUCT, System, bundle

pytestmark = [pytest.mark.system, pytest.mark.root]
SECTION = '[product.{}]\nbackend = "rauc"\nunit = "pos.service"\nuser = 1001\nhealth = ["{}"]\n'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A machine that no test changes for good."""
    yield from machine(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[System]:
    yield from machine(tmp_path)


def machine(top: Path) -> Iterator[System]:
    system = System(top)
    try:
        system.os_release.write_text("IMAGE_VERSION=1.0\nBUILD_ID=b1.0\n")
        system.reboot()
        yield system
    finally:
        system.close()


def stage(system: System, data: bytes, version: str = "2.0") -> None:
    system.backend().stage("b", io.BytesIO(data), Content(PRODUCT, version, f"b{version}"), no_trace)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (partial(bundle, "2.0", signer="stranger"), "signature"),
        (partial(bundle, "2.0", "plain"), "the bundle has the format plain; build it with 'format=verity'"),
        (partial(bundle, "2.0", "verity", compatible="oven"), "the bundle is for 'oven', this machine is 'till-x'"),
        (partial(bundle, "2.1", "verity"), "the repository"),
        (lambda: bundle("2.0", "verity")[:-9], "RAUC refuses the bundle"),
        (lambda: b"", "RAUC refuses the bundle"),
    ],
    ids=["another key", "plain", "another machine", "another version", "cut", "empty"],
)
def test_a_bundle_that_may_not_be_installed_is_refused_before_anything_is_done(
    shared: System, monkeypatch: pytest.MonkeyPatch, data: Callable[[], bytes], text: str
) -> None:
    monkeypatch.setattr(shared, "formats", SAFE_FORMATS)
    with pytest.raises(BackendRefused, match=text) as refused:
        stage(shared, data())
    assert refused.value.code == "bundle-refused"
    assert not list((shared.own / "rauc").glob("*.raucb")) and shared.image("b") == bytes(16)


def test_a_bundle_whose_text_speaks_of_another_format_is_refused(shared: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "formats", SAFE_FORMATS)
    with pytest.raises(BackendRefused, match="the format unknown"):
        stage(shared, bundle("2.0", "plain", more="description=x\\nBundle Format: verity"))


def test_a_verity_bundle_is_accepted_and_kept_until_its_time(own: System) -> None:
    own.formats = SAFE_FORMATS
    stage(own, bundle("2.0", "verity"))
    assert own.backend().content("b") == Content(PRODUCT, "2.0", "b2.0")
    assert own.image("b") == bytes(16) and own.starts_next() == "A"
    if MOUNTABLE == "plain":  # the kernel has no dm-verity, and RAUC says so
        with pytest.raises(BackendRefused, match=r"RAUC did not install it: .*/dev/mapper/control") as refused:
            own.backend().activate("b", no_trace)
        assert refused.value.code == "not-installed" and own.starts_next() == "A"


def test_state_in_the_slot_itself_is_refused(shared: System) -> None:
    backend = Rauc(PRODUCT, shared.own / "rauc", partial(shared.jobs().rauc, PRODUCT), outlives=lambda _: False)
    with pytest.raises(BackendRefused, match="keep /var/lib on a partition that both slots mount"):
        backend.stage("b", io.BytesIO(b""), Content(PRODUCT, "2.0", "b2.0"), no_trace)


def test_a_system_of_which_nobody_says_what_it_is_gets_no_update(shared: System) -> None:
    shared.os_release.rename(shared.top / "hidden")
    try:
        assert shared.backend().content("a") is None
        with pytest.raises(BackendRefused, match="set IMAGE_VERSION and BUILD_ID"):
            stage(shared, b"")
    finally:
        (shared.top / "hidden").rename(shared.os_release)


def test_a_machine_that_starts_another_slot_next_gets_no_update(own: System) -> None:
    (own.top / "primary").write_text("B\n")
    backend = Rauc(PRODUCT, own.own / "rauc", partial(own.jobs().rauc, PRODUCT), outlives=lambda _: True)
    for place in ("a", "b"):
        with pytest.raises(BackendRefused, match=r"rootfs\.[01] is in use"):
            backend.stage(place, io.BytesIO(b""), Content(PRODUCT, "2.0", "b2.0"), no_trace)  # type: ignore[arg-type]


# ---- RAUC that does not do it


def test_without_a_bus_or_a_service_the_refusal_says_so(own: System) -> None:
    with pytest.raises(RaucFailed, match=r"D-Bus does not answer: .*nowhere: No such file"):
        RaucService(str(own.top / "nowhere"))
    own.stop_rauc()
    with pytest.raises(RaucFailed, match="install the package rauc-service"):
        own.service()
    with pytest.raises(BackendRefused, match="install the package rauc-service") as refused:
        Rauc(PRODUCT, own.own / "rauc", partial(own.jobs().rauc, PRODUCT)).active()
    assert refused.value.code == "machine"


def test_a_bus_that_says_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr("installer.rauc.raucbus.CONNECT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        with pytest.raises(RaucFailed, match="D-Bus does not answer"):
            RaucService(str(tmp_path / "bus"))


def slow(system: System) -> Path:
    """Has the bootloader's handler wait until the file that is returned is gone, at the first mark of an installation."""
    gate = system.top / "gate"
    gate.touch()
    handler = system.top / "bootloader"
    wait = f'[ "$1" = set-state ] && while [ -e {gate} ]; do sleep 0.02; done'
    handler.write_text(handler.read_text().replace("case", f"{wait}\ncase", 1))
    return gate


def test_rauc_that_dies_in_the_middle_is_noticed_and_the_order_can_be_repeated(own: System) -> None:
    stage(own, bundle("2.0"))
    gate = slow(own)
    rauc = own.rauc
    assert rauc is not None

    def end() -> None:
        while b"non-bootable" not in (own.top / "rauc.log").read_bytes():
            time.sleep(0.01)
        os.kill(rauc.pid, signal.SIGKILL)
        gate.unlink()

    killer = threading.Thread(target=end)
    killer.start()
    with pytest.raises(BackendRefused, match="RAUC ended during the installation") as refused:
        own.backend().activate("b", no_trace)
    killer.join()
    assert refused.value.code == "not-installed" and own.starts_next() == "A"
    own.reboot()
    assert own.backend().active() == "a"
    own.backend().activate("b", no_trace)
    assert own.starts_next() == "B" and own.image("b") == b"2.0"


def test_progress_that_stops_is_given_up_and_another_installation_waits(own: System) -> None:
    own.formats = SAFE_FORMATS | {MOUNTABLE}
    stage(own, bundle("2.0"))
    gate = slow(own)
    with own.service() as rauc, pytest.raises(RaucFailed, match=r"no progress .*%"):
        rauc.install(str(own.own / "rauc" / "bundle.raucb"), lambda *_: None, silence_s=1.0)
    with pytest.raises(BackendRefused, match="installing something already") as refused:
        own.backend().activate("b", no_trace)
    assert refused.value.code == "busy"
    gate.unlink()


def test_the_progress_is_reported(own: System) -> None:
    stage(own, bundle("2.0"))
    seen: list[int] = []
    with own.service() as rauc:
        rauc.install(str(own.own / "rauc" / "bundle.raucb"), lambda percent, _what: seen.append(percent))
    assert seen == sorted(seen) and seen[-1] == 100 and len(seen) > 5


# ---- the core's orders


class Till:
    """The installer of a machine with a whole system."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.staging = system.top / "staging"
        self.staging.mkdir(mode=0o700, exist_ok=True)

    def order(self, kind: type[Request], trace: Callable[[str], None] = no_trace, **fields: Any) -> Any:
        own = self.system.own
        config = parse_config(SECTION.format(PRODUCT, "/opt/pos/check"))
        jobs = self.system.jobs()
        machine = Machine(
            config=lambda: config,
            trust=vendor.trust,
            state=StateFile(own, os.geteuid(), trace),
            staging=self.staging,
            work=own / "work",
            jobs=jobs,
            upgrades=jobs,
            backend=lambda _: Rauc(PRODUCT, own / "rauc", partial(jobs.rauc, PRODUCT), outlives=lambda _: True),
            trace=trace,
        )
        more = {} if kind is Products else {"product": PRODUCT, **fields}
        return answer(encode_installer(kind(v=INSTALLER_VERSION, id=7, **more))[4:], machine, lambda _: None)

    def package(self, version: str, number: int) -> str:
        data = bundle(version)
        order = vendor.directive(version, data, number, product=PRODUCT, target=vendor.path_of(version, PRODUCT))
        sha256 = vendor.stage(self.staging, version, data, directive=order)
        for name, content in vendor.metadata({version: data}, number, product=PRODUCT, kind="rauc").items():
            (self.staging / sha256 / "metadata" / name).write_bytes(content)
        return sha256

    def product(self) -> Any:
        return self.order(Products).products[0]


def test_a_whole_update_with_its_restart_a_way_back_and_a_reset_in_the_trial(own: System) -> None:
    till = Till(own)
    sha256 = till.package("2.0", 1)
    assert till.product().running.version == "1.0"
    assert isinstance(till.order(Prepare, sha256=sha256), Prepared)
    assert own.starts_next() == "A" and not own.commands
    assert till.order(Switch, sha256=sha256) == Switched(v=1, id=7, restarted=True, text="")
    assert own.commands == [["start", "--no-block", "--", "license-agent-reboot.service"]] and own.starts_next() == "B"

    # The machine still runs from the slot before: nothing is proved, and the core may ask until it does not.
    proved = till.order(Prove)
    assert not proved.ok and proved.checks[0].text.startswith("the machine runs from rootfs.0, not from rootfs.1")
    assert till.order(Commit).code == "not-proved"

    own.reboot()
    own.commands.clear()
    assert till.order(Switch, sha256=sha256).restarted and not own.commands  # the core asks again: it was killed by the restart
    assert not (own.top / "state.A").exists(), "the way back is still one that the bootloader may start"
    assert till.order(Prove).ok
    own.reboot()  # power that fails in the trial
    assert till.product().state == "proving" and till.product().pending.version == "2.0"
    own.failing = {"start"}
    assert not till.order(Prove).ok
    own.failing, own.commands = set(), []
    assert till.order(RollBack, reason="unproved").restarted
    assert own.commands == [["start", "--no-block", "--", "license-agent-reboot.service"]] and own.starts_next() == "A"
    own.reboot()
    assert (till.product().running.version, till.product().state) == ("1.0", "idle")
    assert till.order(RollBack, reason="again").version == "1.0"
    assert (own.top / "state.B").read_text() == "bad\n"

    # The same directive may try again.
    assert isinstance(till.order(Prepare, sha256=sha256), Prepared)
    till.order(Switch, sha256=sha256)
    own.reboot()
    assert till.order(Prove).ok and till.order(Commit).version == "2.0"
    assert till.product().previous.version == "1.0" and own.image("b") == b"2.0"


def test_a_bootloader_that_fell_back_proves_nothing(own: System) -> None:
    till = Till(own)
    sha256 = till.package("2.0", 1)
    till.order(Prepare, sha256=sha256)
    till.order(Switch, sha256=sha256)
    own.reboot(into="A")  # it could not start B, and B is still its first choice
    proved = till.order(Prove)
    assert not proved.ok and proved.checks[0].name == "boot"
    own.commands.clear()
    assert till.order(RollBack, reason="unproved").restarted and not own.commands  # it runs from there already
    assert own.starts_next() == "A" and till.product().running.version == "1.0"


def test_what_an_administrator_installed_by_hand_is_the_version_that_runs(own: System) -> None:
    till = Till(own)
    assert till.product().running.version == "1.0"
    (own.top / "by-hand.raucb").write_bytes(bundle("7.0"))
    with own.service() as rauc:
        rauc.install(str(own.top / "by-hand.raucb"), lambda *_: None)
    own.reboot()
    assert till.product().running.version == "7.0"


def test_rauc_that_is_gone_declines_an_order(own: System) -> None:
    own.stop_rauc()
    listed = Till(own).product()
    assert listed.problem.code == "machine" and "rauc-service" in listed.problem.text and listed.running is None
    found = Till(own).order(Prove)
    assert isinstance(found, Refused), found


# ---- configuration


def test_a_system_has_a_section_without_a_directory() -> None:
    found = parse_config(SECTION.format("till-system", "/opt/pos/check")).products["till-system"]
    assert (found.backend, found.health, found.timeout_s) == ("rauc", ("/opt/pos/check",), CONFIG.timeout_s)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SECTION.format("one", "/a") + SECTION.format("two", "/a"), r"a machine has one system; \[product.one\] is it"),
        (SECTION.format("one", "bin/check"), "a path from the root"),
        (SECTION.format("one", "/opt/../check"), "a path from the root"),
        (SECTION.format("one", "/a") + 'directory = "/var/lib/pos"\n', "directory"),
    ],
)
def test_a_section_that_fits_no_system_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(text)
