"""Orders of the core: what is staged, and which checks refuse the rest. The other side of the link is a test's."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.keyset import pin_of
from ipc.messages import Request
from ipc.updatermessages import (
    Describe,
    Description,
    Discard,
    Done,
    Failure,
    Look,
    Offer,
    Refresh,
    Seen,
    Stage,
    Staged,
    TakeBundle,
    UpdaterCode,
)
from tests.support.repository import Repository, Response, StillClock
from tests.support.updaterepository import DAY, NOW, UpdateRepository
from updater import orders as module
from updater.failures import CoreGone, UpdateFailed
from updater.orders import Places, Updater
from updatetrust.metadata import KeptVersions, verify_offline
from updatetrust.metadatafiles import read_files


@dataclass
class Machine:
    """The updater of one machine.

    Attributes:
        vendor: the repository and the license server.
        link: the other side of the link.
        reports: the progress of all orders.
    """

    place: Path
    vendor: UpdateRepository
    link: Repository
    updater: Updater
    reports: list[tuple[int, int]]

    def order(self, order: Request, descriptor: int | None = None) -> Any:
        return self.updater.carry_out(order, descriptor, lambda *at: self.reports.append(at))

    def stage(self, rate: int | None = None, now: int = NOW, **papers: str) -> Any:
        papers = {"directive": self.vendor.directive(), "key_set": self.vendor.key_set(), **papers}
        return self.order(Stage(v=1, id=4, now=now, rate=rate, **papers))

    def bundle(self, path: Path, now: int = NOW, **papers: str) -> Any:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return self.order(TakeBundle(v=1, id=5, now=now, **{"directive": None, "key_set": None, **papers}), descriptor)
        finally:
            os.close(descriptor)

    @property
    def staged(self) -> list[str]:
        return sorted(os.listdir(self.place / "staged"))


@pytest.fixture(scope="module")
def vendor() -> UpdateRepository:
    return UpdateRepository()


@pytest.fixture
def machine(tmp_path: Path, vendor: UpdateRepository, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    link = Repository({f"/{path}": data for path, data in vendor.files.items()})

    @contextmanager
    def open_link(*_: object) -> Iterator[Repository]:
        yield link

    monkeypatch.setattr(module, "open_link", open_link)
    trust = vendor.trust_file(tmp_path / "update-trust.json")
    places = Places(trust, place, tmp_path / "link.sock", frozenset({os.geteuid()}))
    yield Machine(place, vendor, link, Updater(places, frozenset(), StillClock()), [])


def failed(answer: Request) -> tuple[str, bool]:
    assert isinstance(answer, Failure), answer
    return answer.code, answer.network


def test_an_offer_says_what_would_be_installed(machine: Machine) -> None:
    order = Refresh(v=1, id=3, directive=machine.vendor.directive(), key_set=machine.vendor.key_set(), now=NOW)
    offer = machine.order(order)
    assert isinstance(offer, Offer) and (offer.id, offer.product, offer.version, offer.kind) == (3, "pos", "3.2.1", "slots")
    assert (offer.sha256, offer.length, offer.staged) == (machine.vendor.sha256, len(machine.vendor.package), False)
    assert offer.notes == "Faster start." and offer.metadata_expires == NOW + 7 * DAY
    assert offer.signed_role and offer.signed_until > offer.metadata_expires
    assert not any("targets/pos" in path for path, _ in machine.link.asked), "no package was downloaded"
    assert isinstance(machine.stage(), Staged) and machine.order(order).staged


def test_a_look_without_a_directive_says_how_long_the_metadata_is_valid(machine: Machine, tmp_path: Path) -> None:
    offer = machine.order(Refresh(v=1, id=3, directive=machine.vendor.directive(), key_set=machine.vendor.key_set(), now=NOW))
    seen = machine.order(Look(v=1, id=4, now=NOW))
    assert seen == Seen(v=1, id=4, metadata_expires=offer.metadata_expires, signed_until=offer.signed_until,
                        signed_role=offer.signed_role)  # fmt: skip
    assert machine.staged == []
    (tmp_path / "update-trust.json").unlink()
    assert failed(machine.order(Look(v=1, id=5, now=NOW))) == ("trust", False)


def test_a_staged_package_has_all_that_the_installer_needs_to_verify_it(machine: Machine) -> None:
    staged = machine.stage()
    assert staged == Staged(
        v=1,
        id=4,
        name=machine.vendor.sha256,
        sha256=machine.vendor.sha256,
        length=len(machine.vendor.package),
        product="pos",
        version="3.2.1",
        build_id="ci-4711",
    )
    where = machine.place / "staged" / staged.name
    assert (where / "package").read_bytes() == machine.vendor.package
    verified = verify_offline(read_files(where / "metadata"), machine.vendor.root, KeptVersions(), NOW)
    target = verified.find("pos/pos-3.2.1.tar")
    assert target is not None and target.sha256 == hashlib.sha256((where / "package").read_bytes()).hexdigest()
    assert sorted(os.listdir(where)) == ["directive.jws", "key-set.jws", "metadata", "package"]
    assert machine.reports[-1] == (target.length, target.length)
    assert not any(path.is_symlink() for path in machine.place.rglob("*"))


def test_a_root_that_took_over_counts_by_the_key_sets_in_between(machine: Machine) -> None:
    following = ec.generate_private_key(ec.SECP256R1())
    der = following.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    newest = machine.vendor.key_set(following, number=5)
    assert failed(machine.stage(key_set=newest)) == (UpdaterCode.SIGNATURE, False)
    sets = f"{machine.vendor.key_set(number=4, roots=[pin_of(der)])}\n{newest}"
    assert isinstance(machine.stage(key_set=sets), Staged)
    # The installer may know less, and needs the way as well.
    assert (machine.place / "staged" / machine.vendor.sha256 / "key-set.jws").read_text() == sets


def test_a_second_order_downloads_nothing_and_replaces_the_papers(machine: Machine) -> None:
    machine.stage()
    machine.link.asked.clear()
    newer = machine.vendor.directive(number=8)
    assert isinstance(machine.stage(directive=newer), Staged)
    assert not any("targets/pos" in path for path, _ in machine.link.asked)
    where = machine.place / "staged" / machine.vendor.sha256
    assert (where / "directive.jws").read_text() == newer and (where / "package").read_bytes() == machine.vendor.package


@pytest.mark.parametrize("way", ["link", "bundle"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"agent_id": "pos-000002"}, "other-agent"),
        ({"not_after": NOW + 1, "now": NOW + 2}, "directive-expired"),
        ({"sha256": "0" * 64}, "digest-differs"),
        ({"length": 5}, "length-differs"),
        ({"version": "3.2.2"}, "version-differs"),
        ({"build_id": "ci-1"}, "build-differs"),
        ({"withdraws": 6}, "orders-nothing"),
        ({"target": "pos/other"}, "not-in-repository"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, UpdaterCode.SIGNATURE),
    ],
)
def test_what_does_not_agree_is_not_staged(
    machine: Machine, tmp_path: Path, way: str, change: dict[str, Any], code: str
) -> None:
    now = change.get("now", NOW)
    directive = machine.vendor.directive(**{name: value for name, value in change.items() if name != "now"})
    if way == "link":
        answer = machine.stage(directive=directive, now=now)
    else:
        answer = machine.bundle(machine.vendor.bundle(tmp_path / "b"), now, directive=directive)
    # A mirror that shows an older state of the repository brings these about, and must not be able to lock updates.
    of_the_state = code in ("digest-differs", "length-differs", "version-differs", "build-differs", "not-in-repository")
    assert failed(answer) == (code, way == "link" and of_the_state) and machine.staged == []


@pytest.mark.parametrize(
    ("custom", "code"),
    [
        ({"hardware": ["till-arm"]}, "other-hardware"),
        ({"min_agent": "99"}, "agent-too-old"),
        ({"floor": "3.3"}, "below-floor"),
        ({"notes": 5}, UpdaterCode.METADATA),
    ],
)
def test_what_the_vendor_forbids_is_not_staged(machine: Machine, tmp_path: Path, custom: dict[str, Any], code: str) -> None:
    vendor = UpdateRepository()
    vendor.publish(2, **custom)
    vendor.trust_file(tmp_path / "update-trust.json")
    machine.link.files = {f"/{path}": data for path, data in vendor.files.items()}
    order = {"directive": vendor.directive(), "key_set": vendor.key_set()}
    assert failed(machine.stage(**order)) == (code, False)
    assert failed(machine.bundle(vendor.bundle(tmp_path / "b"))) == (code, False)
    assert machine.staged == []


LEFT: dict[str, tuple[str, str]] = {
    "an empty folder of a package": ("staged/SHA", "folder"),
    "a file for a package's folder": ("staged/SHA", "file"),
    "a link for a package's folder": ("staged/SHA", "link"),
    "a folder for a package": ("staged/SHA/package", "folder"),
    "a link for a package": ("staged/SHA/package", "link"),
    "a pipe for a package": ("staged/SHA/package", "pipe"),
    "a package that was cut": ("staged/SHA/package", "file"),
    "a folder for a half package": ("partial/SHA.part", "folder"),
    "a pipe for a half package": ("partial/SHA.part", "pipe"),
    "a file for the half packages": ("partial", "file"),
    "a file for the packages": ("staged", "file"),
    "a file for the metadata": ("metadata", "file"),
    "a link for the metadata": ("metadata", "link"),
    "a file for the former roots": ("metadata/root_history", "file"),
    "a link for the former roots": ("metadata/root_history", "link"),
    "a folder for a root": ("metadata/root_history/1.root.json", "folder"),
    "a folder for a timestamp": ("metadata/timestamp.json", "folder"),
    "a link for a snapshot": ("metadata/snapshot.json", "link"),
    "a pipe for a timestamp": ("metadata/timestamp.json", "pipe"),
    "a pipe for a role": ("metadata/releases.json", "pipe"),
}


@pytest.mark.parametrize("what", LEFT)
def test_nothing_that_lies_in_the_directory_stops_updates_for_ever(machine: Machine, tmp_path: Path, what: str) -> None:
    """A disk that was repaired leaves it, or somebody who had this process; nobody else ever removes anything here."""
    name, kind = LEFT[what]
    machine.stage()
    path = machine.place / name.replace("SHA", machine.vendor.sha256)
    if name.startswith("partial"):
        machine.order(Discard(v=1, id=1, keep=()))
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    (aside := tmp_path / "aside").mkdir()
    {"folder": path.mkdir, "file": path.touch, "link": lambda: path.symlink_to(aside), "pipe": lambda: os.mkfifo(path)}[kind]()
    assert isinstance(machine.stage(), Staged)
    staged = machine.place / "staged" / machine.vendor.sha256
    assert (staged / "package").read_bytes() == machine.vendor.package
    assert read_files(staged / "metadata") and not list(aside.iterdir())


def test_a_key_set_of_another_root_counts_for_nothing(machine: Machine) -> None:
    other = machine.vendor.key_set(ec.generate_private_key(ec.SECP256R1()))
    assert failed(machine.stage(key_set=other)) == (UpdaterCode.SIGNATURE, False)
    assert machine.link.asked == [], "nothing is fetched for an order that the server has not signed"


def test_without_roots_file_nothing_is_trusted(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "update-trust.json").chmod(0o666)
    assert failed(machine.stage()) == (UpdaterCode.TRUST, False)
    (tmp_path / "update-trust.json").unlink()
    assert failed(machine.stage()) == (UpdaterCode.TRUST, False)


def test_metadata_that_is_out_of_date_is_not_used_and_no_failed_attempt(machine: Machine, tmp_path: Path) -> None:
    late = NOW + 7 * DAY + 1
    assert failed(machine.stage(now=late)) == (UpdaterCode.EXPIRED, True)
    assert failed(machine.bundle(machine.vendor.bundle(tmp_path / "b"), late)) == (UpdaterCode.EXPIRED, False)


def test_older_metadata_than_was_seen_is_refused(machine: Machine) -> None:
    before = dict(machine.link.files)
    vendor = machine.vendor
    published = dict(vendor.files)
    vendor.publish(2)
    machine.link.files = {f"/{path}": data for path, data in vendor.files.items()}
    assert isinstance(machine.stage(), Staged)
    machine.link.files = before
    assert failed(machine.stage()) == ("metadata-rolled-back", True)
    vendor.files = published
    vendor.publish(1)


def test_metadata_that_another_key_signed_is_refused_and_a_mirror_locks_nothing_by_it(machine: Machine) -> None:
    other = UpdateRepository()
    machine.link.files["/metadata/timestamp.json"] = other.files["metadata/timestamp.json"]
    assert failed(machine.stage()) == ("metadata-not-signed", True)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda _, response: replace(response, status=503), UpdaterCode.STATUS),
        (lambda _, response: replace(response, pieces=[b"x" * 32768] * 1000), "metadata-too-large"),
        (lambda _, response: replace(response, status=404), UpdaterCode.UNREACHABLE),
    ],
)
def test_a_repository_that_does_not_answer_right(
    machine: Machine, spoil: Callable[[Repository, Response], Response], code: str
) -> None:
    machine.link.spoil = spoil
    assert failed(machine.stage()) == (code, True)


def test_a_link_that_breaks_off_says_so_in_its_own_words(machine: Machine) -> None:
    def broken(_: Repository, response: Response) -> Response:
        raise UpdateFailed(UpdaterCode.LINK, "the link broke off")

    machine.link.spoil = broken
    answer = machine.stage()
    assert failed(answer) == (UpdaterCode.LINK, True) and answer.text == "the link broke off"


def test_a_bundle_is_staged_like_a_download(machine: Machine, tmp_path: Path) -> None:
    assert isinstance(machine.bundle(machine.vendor.bundle(tmp_path / "b")), Staged)
    where = machine.place / "staged" / machine.vendor.sha256
    assert (where / "package").read_bytes() == machine.vendor.package
    verify_offline(read_files(where / "metadata"), machine.vendor.root, KeptVersions(), NOW)
    assert machine.link.asked == [] and os.listdir(machine.place / "partial") == []


def test_a_bundle_without_papers_needs_those_of_the_core(machine: Machine, tmp_path: Path) -> None:
    path = machine.vendor.bundle(tmp_path / "b", papers=False)
    assert failed(machine.bundle(path)) == (UpdaterCode.BUNDLE, False)
    assert failed(machine.bundle(path, directive=machine.vendor.directive())) == (UpdaterCode.BUNDLE, False)
    answer = machine.bundle(path, directive=machine.vendor.directive(), key_set=machine.vendor.key_set())
    assert isinstance(answer, Staged)


@pytest.mark.parametrize(
    ("package", "code"), [(b"the packagE\n", UpdaterCode.DIGEST), (b"shorter", UpdaterCode.LENGTH)], ids=["other", "shorter"]
)
def test_another_package_in_a_bundle_leaves_nothing(machine: Machine, tmp_path: Path, package: bytes, code: str) -> None:
    assert failed(machine.bundle(machine.vendor.bundle(tmp_path / "b", package))) == (code, False)
    assert machine.staged == [] and sum(path.stat().st_size for path in (machine.place / "partial").iterdir()) == 0


def test_a_bundle_with_metadata_that_is_not_whole(machine: Machine, tmp_path: Path) -> None:
    path = machine.vendor.bundle(tmp_path / "b", **{"2.root.json": b"{}"})
    assert failed(machine.bundle(path)) == ("metadata-malformed", False)
    path = machine.vendor.bundle(tmp_path / "b", **{"stray.json": machine.vendor.root})
    assert failed(machine.bundle(path)) == ("metadata-mismatched", False)


def test_discard_and_describe(machine: Machine) -> None:
    machine.stage()
    described = machine.order(Describe(v=1, id=1))
    assert isinstance(described, Description) and described.staged == (machine.vendor.sha256,)
    assert isinstance(machine.order(Discard(v=1, id=2, keep=(machine.vendor.sha256,))), Done)
    assert machine.staged == [machine.vendor.sha256]
    assert isinstance(machine.order(Discard(v=1, id=2, keep=())), Done) and machine.staged == []


def test_a_state_directory_that_is_missing_is_a_failure_in_words(machine: Machine) -> None:
    machine.place.rename(machine.place.with_name("elsewhere"))
    assert failed(machine.order(Describe(v=1, id=1))) == (UpdaterCode.DISK, False)


def test_no_failure_keeps_a_descriptor(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    machine.stage(directive="x")
    machine.link.spoil = lambda _, response: replace(response, pieces=[])
    machine.stage()
    machine.place.chmod(0o755)
    machine.stage()
    machine.place.chmod(0o700)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "read_trust", broken)
    assert failed(machine.stage()) == (UpdaterCode.INTERNAL, False)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_core_may_leave_in_the_middle(machine: Machine) -> None:
    def gone(*_: int) -> None:
        raise CoreGone

    order = Stage(v=1, id=4, now=NOW, rate=None, directive=machine.vendor.directive(), key_set=machine.vendor.key_set())
    with pytest.raises(CoreGone):
        machine.updater.carry_out(order, None, gone)
    assert isinstance(machine.stage(), Staged)
