"""The sealed store: killed at any step it holds the old contents or the new, and nothing older ever comes back."""

import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import hwsec.store
from hwsec.backend import Anchor, Backend
from hwsec.errors import (
    BackendUnavailable,
    ForeignHardware,
    HwsecError,
    StoreCorrupt,
    StoreError,
    StoreMissing,
    StoreRollback,
    StoreTooLarge,
)
from hwsec.secretmem import SecretBuffer
from hwsec.store import Contents, Loaded, SealedStore, StoredVersion
from hwsec.storeformat import (
    MAX_STORE_BYTES,
    AnchorCase,
    StoreBody,
    VersionMeta,
    decode_store,
    encode_store,
    judge_anchor,
)
from hwsec.vault import Vault
from tests.hwsec.conftest import MACHINES, Machine, MemoryMachine
from tests.hwsec.memory_backend import MemoryBackend
from tests.hwsec.memory_scan import lingering, scan_after_each_stop

STEPS = [
    "pending written",
    "anchor written",
    "counter incremented",
    "renamed",
    "store.twin: written",
    "store.twin: renamed",
]
"""After the second of them the new contents are the newest."""
STATES = {"active": 1, "grace": 2, "invalidated": 3}
AGENT = "agent-1"


class Killed(BaseException):
    """Ends a commit where a power cut would."""


class Shop:
    """One machine with one store, over any number of runs of the agent."""

    def __init__(self, machine: Machine, path: Path, vault: Vault) -> None:
        self.machine = machine
        self.path = path
        self.twin = path.with_name("store.twin")
        self.pending = path.with_name("store.pending")
        self.vault = vault
        self._backend: Backend | None = None

    @property
    def files(self) -> tuple[Path, Path, Path]:
        return self.path, self.twin, self.pending

    def enroll(self) -> None:
        self._backend = self.machine.enroll()

    def backend(self) -> Backend:
        """The open backend of this run of the agent."""
        if self._backend is None:
            self._backend = self.machine.backend()
            self._backend.open()
        return self._backend

    def end_run(self) -> None:
        """The process is gone; what comes next opens the backend anew."""
        self._backend = None

    def store(self, agent_id: str = AGENT, trace: Callable[[str], None] = lambda _step: None) -> SealedStore:
        """A store that knows only what lies on disk and in the hardware."""
        return self.store_on(self.backend(), agent_id, trace)

    def store_on(
        self, backend: Backend, agent_id: str = AGENT, trace: Callable[[str], None] = lambda _step: None
    ) -> SealedStore:
        return SealedStore(self.path, backend, self.vault, agent_id, STATES.__getitem__, trace)

    def version(self, number: int, state: str = "active", *, destroyed: bool = False) -> StoredVersion:
        meta = VersionMeta(number, state, 1000 * number, 1000 * number + 500, 1000 * number + 900, 1000 * number + 1)
        if destroyed:
            return StoredVersion(meta, None)
        with SecretBuffer(32) as secret:
            secret.view[:] = secret_of(number)
            return StoredVersion(meta, self.vault.wrap(secret))

    def contents(self, number: int) -> Contents:
        """Contents that tell apart one commit from another."""
        versions = (self.version(number, "grace"), self.version(number + 1))
        return Contents(versions, {"commit": str(number).encode()})

    def plain(self, contents: Contents) -> tuple[Any, ...]:
        """Contents in clear, to be compared."""
        versions = []
        for stored in contents.versions:
            secret = None
            if stored.secret is not None:
                with self.vault.open(stored.secret) as opened:
                    secret = bytes(opened.view)
            versions.append((stored.meta, secret))
        return tuple(versions), dict(contents.sections)

    def number(self, loaded: Loaded) -> int:
        """Which `contents` it is, all of it."""
        number = int(loaded.contents.sections["commit"])
        assert self.plain(loaded.contents) == self.plain(self.contents(number))
        return number

    def save(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.files if path.exists()}

    def put_back(self, saved: Mapping[Path, bytes]) -> None:
        for path in self.files:
            path.unlink(missing_ok=True)
        for path, data in saved.items():
            path.write_bytes(data)

    def kill_commit(self, number: int, step: str, store: SealedStore | None = None) -> None:
        """Commits `contents(number)` and dies when a step is done."""

        def kill(done: str) -> None:
            if done == step:
                raise Killed

        store = store or self.store(trace=kill)
        with pytest.raises(Killed):
            store.commit(self.contents(number))
        self.end_run()


def secret_of(number: int) -> bytes:
    return hashlib.sha256(b"secret %d" % number).digest()


@pytest.fixture
def shop(machine: Machine, tmp_path: Path, vault: Vault) -> Shop:
    made = Shop(machine, tmp_path / "store", vault)
    made.enroll()
    return made


@pytest.fixture
def memory_shop(tmp_path: Path, vault: Vault) -> Shop:
    made = Shop(MemoryMachine(tmp_path), tmp_path / "store", vault)
    made.enroll()
    return made


# Round trip


def test_before_the_first_commit_there_is_no_store(shop: Shop) -> None:
    with pytest.raises(StoreMissing, match="no store has been committed"):
        shop.store().load()
    assert not any(path.exists() for path in shop.files)


def test_what_is_committed_is_loaded(shop: Shop) -> None:
    first = shop.backend().read_anchor()[1]
    contents = Contents(
        (
            shop.version(1, "invalidated", destroyed=True),
            shop.version(2, "grace"),
            shop.version(3),
        ),
        {"trust": b"\x00\x01", "empty": b"", "long": bytes(range(256)) * 40},
    )
    store = shop.store()
    assert store.commit(contents) == first + 1
    read = store.load()
    shop.end_run()
    for loaded in (read, shop.store().load()):
        assert shop.plain(loaded.contents) == shop.plain(contents)
        assert loaded.contents.versions[0].secret is None
        assert loaded.generation == first + 1
        assert loaded.repairs == ()


def test_an_empty_store_is_a_store(shop: Shop) -> None:
    shop.store().commit(Contents())
    assert shop.store().load().contents == Contents((), {})
    anchor, counter = shop.backend().read_anchor()
    assert anchor == Anchor(counter, hashlib.sha256(shop.path.read_bytes()).digest())


def test_each_commit_replaces_the_one_before(shop: Shop) -> None:
    store = shop.store()
    for number in range(1, 5):
        store.commit(shop.contents(number))
        assert shop.number(store.load()) == number
    assert shop.number(shop.store().load()) == 4


def test_two_alike_and_private_copies_are_kept_and_hold_no_secret(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    assert shop.path.read_bytes() == shop.twin.read_bytes()
    assert not shop.pending.exists()
    with shop.backend().kek() as kek:
        hidden = [secret_of(1), secret_of(2), bytes(kek.view)]
    for path in (shop.path, shop.twin):
        assert path.stat().st_mode & 0o7777 == 0o600
        assert not any(secret in path.read_bytes() for secret in hidden)


def test_the_anchor_tells_of_the_newest_version(shop: Shop) -> None:
    shop.store().commit(Contents((shop.version(4, "grace"), shop.version(5, "invalidated", destroyed=True))))
    anchor, counter = shop.backend().read_anchor()
    assert anchor == Anchor(counter, hashlib.sha256(shop.path.read_bytes()).digest(), 5, 5000, 5500, 5900, 3)


def test_a_store_that_would_be_too_large_is_not_begun(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    before = shop.backend().read_anchor(), shop.save()
    with pytest.raises(StoreTooLarge, match="bytes"):
        shop.store().commit(Contents((), {"large": bytes(MAX_STORE_BYTES)}))
    assert (shop.backend().read_anchor(), shop.save()) == before


_STOPS_AFTER_EACH_STEP = """
import sys
from pathlib import Path
from hwsec.secretmem import SecretBuffer
from hwsec.software import SoftwareBackend
from hwsec.store import Contents, SealedStore, StoredVersion
from hwsec.storeformat import VersionMeta
from hwsec.vault import Vault, os_random_into

directory, vault = Path(sys.argv[1]), Vault()

def machine():
    return SoftwareBackend(directory, b"id", vault, 100_000)

def store(backend):
    return SealedStore(directory / "store", backend, vault, "agent", {"active": 1}.get)

backend = machine()
backend.create()
with backend.kek() as kek:
    os.write(1, kek.view)
stop()
with SecretBuffer(32) as secret:
    os_random_into(secret.view)
    os.write(1, secret.view)
    wrapped = vault.wrap(secret)
stop()
store(backend).commit(Contents((StoredVersion(VersionMeta(1, "active", 1, 2, 3, 1), wrapped),)))
stop()
backend = machine()
backend.open()
loaded = store(backend).load()
stop()
with vault.open(loaded.contents.versions[0].secret) as secret:
    os.write(1, secret.view)
stop()
"""


@pytest.mark.system
def test_no_copy_of_a_secret_stays_in_the_process(tmp_path: Path) -> None:
    """Enrolling, wrapping, committing, loading, opening: none leaves a secret or the KEK behind in clear."""
    scan = scan_after_each_stop(_STOPS_AFTER_EACH_STEP, [32, 32, 0, 0, 32], tmp_path)
    kek, secret = scan.told[:2]
    assert scan.told[4] == secret
    steps = ("create", "wrap", "commit", "load", "open")
    for step, memory in zip(steps, scan.memories, strict=True):
        assert b"license-agent software" in memory, "the scan sees nothing"
        assert lingering(memory, {"KEK": kek, "secret": secret}) == [], step


# Killed


def test_the_steps_of_a_commit_are_these(shop: Shop) -> None:
    seen: list[str] = []
    shop.store(trace=seen.append).commit(shop.contents(1))
    assert seen == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_store_is_the_old_or_the_new(shop: Shop, step: str) -> None:
    generation = shop.store().commit(shop.contents(1))
    shop.kill_commit(2, step)
    expected = 1 if step == "pending written" else 2
    loaded = shop.store().load()
    assert shop.number(loaded) == expected
    assert loaded.generation == generation + expected - 1
    assert shop.path.read_bytes() == shop.twin.read_bytes()
    assert not shop.pending.exists()
    again = shop.store().load()
    assert (shop.number(again), again.repairs) == (expected, ())
    assert shop.store().commit(shop.contents(3)) == loaded.generation + 1
    assert shop.number(shop.store().load()) == 3


@pytest.mark.parametrize("step", STEPS)
def test_the_first_commit_killed_at_any_step_is_there_or_not(memory_shop: Shop, step: str) -> None:
    shop = memory_shop
    shop.kill_commit(1, step)
    if step == "pending written":
        with pytest.raises(StoreMissing):
            shop.store().load()
    else:
        assert shop.number(shop.store().load()) == 1
    shop.store().commit(shop.contents(2))
    assert shop.number(shop.store().load()) == 2


@pytest.mark.parametrize("first", STEPS)
def test_killed_twice_without_a_load_between_no_commit_is_lost(memory_shop: Shop, first: str) -> None:
    """A commit takes up what the one before left, before it touches the file that the anchor may still name."""
    shop = memory_shop
    shop.store().commit(shop.contents(1))
    newest = 1
    for number, second in enumerate(STEPS, start=1):
        shop.kill_commit(10 * number, first)
        newest = newest if first == "pending written" else 10 * number
        shop.kill_commit(10 * number + 1, second)
        newest = newest if second == "pending written" else 10 * number + 1
        assert shop.number(shop.store().load()) == newest, f"killed after {first!r}, then after {second!r}"


def test_each_step_is_durable_before_the_next(memory_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The anchor may name only a file that a power cut cannot take away."""
    shop = memory_shop
    shop.store().commit(shop.contents(1))
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def seen_replace(self: Path, target: Path) -> Path:
        events.append(f"{self.name} -> {target.name}")
        return replace(self, target)

    store = shop.store(trace=events.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", seen_fsync)
        patch.setattr(Path, "replace", seen_replace)
        store.commit(shop.contents(2))
    directory = shop.path.parent.name
    assert events == [
        "fsync store.pending",
        f"fsync {directory}",
        "pending written",
        "anchor written",
        "counter incremented",
        "store.pending -> store",
        "renamed",
        f"fsync {directory}",
        "fsync .store.twin.new",
        "store.twin: written",
        ".store.twin.new -> store.twin",
        "store.twin: renamed",
        f"fsync {directory}",
    ]


def test_half_a_pending_file_is_nothing(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    for left in (b"", shop.path.read_bytes()[:100], b"LASTORE1 and then garbage"):
        shop.pending.write_bytes(left)
        assert shop.number(shop.store().load()) == 1
        assert not shop.pending.exists()
        shop.pending.write_bytes(left)
        shop.store().commit(shop.contents(1))
        assert shop.number(shop.store().load()) == 1


class Flaky(MemoryBackend):
    """Loses its hardware before, or just after, its n-th write."""

    def __init__(self, machine: MemoryMachine, fail_at: int, *, after: bool) -> None:
        super().__init__(machine.device)
        self.fail_at = fail_at
        self.after = after
        self.writes = 0

    def _counted(self, write: Callable[[], Any]) -> Any:
        self.writes += 1
        failing = self.writes == self.fail_at
        if failing and not self.after:
            raise BackendUnavailable("lost before")
        result = write()
        if failing:
            raise BackendUnavailable("lost after")
        return result

    def write_anchor(self, anchor: Anchor) -> None:
        self._counted(lambda: MemoryBackend.write_anchor(self, anchor))

    def increment(self) -> int:
        return int(self._counted(lambda: MemoryBackend.increment(self)))


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("fail_at", [1, 2])
@pytest.mark.parametrize("step", STEPS)
def test_a_commit_that_failed_can_be_repeated_and_killed(memory_shop: Shop, fail_at: int, after: bool, step: str) -> None:
    shop = memory_shop
    assert isinstance(shop.machine, MemoryMachine)
    shop.store().commit(shop.contents(1))
    backend = Flaky(shop.machine, fail_at, after=after)
    backend.open()
    armed = False

    def kill(done: str) -> None:
        if armed and done == step:
            raise Killed

    store = shop.store_on(backend, trace=kill)
    with pytest.raises(BackendUnavailable):
        store.commit(shop.contents(2))
    armed = True
    shop.kill_commit(3, step, store)
    written = fail_at == 2 or after
    expected = 3 if step != "pending written" else 2 if written else 1
    assert shop.number(shop.store().load()) == expected


@pytest.mark.parametrize("step", STEPS)
def test_hardware_lost_while_a_half_commit_is_finished_loses_nothing(memory_shop: Shop, step: str) -> None:
    shop = memory_shop
    assert isinstance(shop.machine, MemoryMachine)
    shop.store().commit(shop.contents(1))
    shop.kill_commit(2, step)
    for after in (False, True):
        backend = Flaky(shop.machine, 1, after=after)
        backend.open()
        try:
            shop.store_on(backend).load()
        except BackendUnavailable:
            assert step == "anchor written"
    assert shop.number(shop.store().load()) == (1 if step == "pending written" else 2)


# Damaged


def damages(size: int, stride: int) -> Iterator[tuple[str, Callable[[bytes], bytes | None]]]:
    yield "removed", lambda _data: None
    yield "emptied", lambda _data: b""
    yield "longer", lambda data: data + b"\0"
    yield "zeros", lambda data: bytes(len(data))
    yield "huge", lambda data: data + bytes(2 * MAX_STORE_BYTES)
    for length in range(1, size, stride):
        yield f"cut at {length}", lambda data, at=length: data[:at]  # type: ignore[misc]
    for position in range(0, size, stride):
        yield (
            f"flipped at {position}",
            lambda data, at=position: data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :],  # type: ignore[misc]
        )


def damage(path: Path, how: Callable[[bytes], bytes | None]) -> None:
    data = how(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def test_one_damaged_copy_is_repaired_from_the_other(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    whole = shop.path.read_bytes()
    store = shop.store()
    stride = len(whole) // (60 if shop.machine.name == "memory" else 2)
    for path in (shop.path, shop.twin):
        for name, how in damages(len(whole), stride):
            damage(path, how)
            loaded = store.load()
            assert shop.number(loaded) == 1, f"{path.name} {name}"
            assert [str(path) in repair for repair in loaded.repairs] == [True], f"{path.name} {name}"
            assert shop.path.read_bytes() == shop.twin.read_bytes() == whole, f"{path.name} {name}"
    assert shop.number(shop.store().load()) == 1


def test_two_damaged_copies_are_told_and_nothing_is_made_of_them(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    whole = shop.save()
    store = shop.store()
    stride = len(whole[shop.path]) // (20 if shop.machine.name == "memory" else 2)
    for name, how in damages(len(whole[shop.path]), stride):
        for path in (shop.path, shop.twin):
            damage(path, how)
        damaged = shop.save()
        with pytest.raises(StoreMissing if name == "removed" else StoreCorrupt):
            store.load()
        assert shop.save() == damaged, name
        shop.put_back(whole)
    assert shop.number(store.load()) == 1


def test_copies_damaged_in_different_ways_are_told(memory_shop: Shop) -> None:
    shop = memory_shop
    shop.store().commit(shop.contents(1))
    whole = shop.save()
    ways = list(damages(len(whole[shop.path]), len(whole[shop.path]) // 2))
    for (_one, first), (_two, second) in itertools.product(ways, ways):
        damage(shop.path, first)
        damage(shop.twin, second)
        with pytest.raises((StoreCorrupt, StoreMissing)):
            shop.store().load()
        shop.put_back(whole)


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_copy_damaged_after_a_kill_is_repaired_from_what_is_left(memory_shop: Shop, step: str) -> None:
    """Whichever files hold the newest contents when the commit stopped: one of them is enough."""
    shop = memory_shop
    shop.store().commit(shop.contents(1))
    shop.kill_commit(2, step)
    saved = shop.save()
    backend = shop.machine.backend()
    backend.open()
    anchor = backend.read_anchor()[0]
    assert anchor is not None
    holding = [path for path, data in saved.items() if hashlib.sha256(data).digest() == anchor.digest]
    for damaged in saved:
        damage(damaged, lambda data: data[:-1])
        if holding == [damaged]:
            with pytest.raises(StoreError):
                shop.store().load()
        else:
            assert shop.number(shop.store().load()) == 2
        shop.put_back(saved)


@pytest.mark.parametrize("name", ["store", "store.twin"])
def test_a_copy_on_a_broken_block_is_read_from_the_other(memory_shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shop = memory_shop
    shop.store().commit(shop.contents(1))
    open_file = Path.open

    def broken(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return open_file(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", broken)
    loaded = shop.store().load()
    assert shop.number(loaded) == 1
    assert len(loaded.repairs) == 1


def test_two_broken_blocks_are_told(memory_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = memory_shop
    shop.store().commit(shop.contents(1))

    def broken(_self: Path, *_arguments: Any, **_named: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(StoreCorrupt):
        shop.store().load()


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_full_disk_keeps_nobody_from_loading(memory_shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    shop = memory_shop
    shop.store().commit(shop.contents(1))
    shop.kill_commit(2, step)

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hwsec.store, "write_atomic", full)
        for _time in range(2):
            loaded = shop.store().load()
            assert shop.number(loaded) == 2
        assert ("No space" in " ".join(loaded.repairs)) == (step != STEPS[-1])
    assert shop.number(shop.store().load()) == 2
    assert shop.path.read_bytes() == shop.twin.read_bytes()


def test_a_disk_that_does_not_take_a_commit_leaves_the_old_store(memory_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = memory_shop
    shop.store().commit(shop.contents(1))

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hwsec.store, "write_temporary", full)
        store = shop.store()
        with pytest.raises(OSError, match="No space"):
            store.commit(shop.contents(2))
        assert shop.number(store.load()) == 1
    assert store.commit(shop.contents(3)) == store.load().generation
    assert shop.number(shop.store().load()) == 3


# Put back


def test_an_older_generation_is_refused(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    older = shop.save()
    shop.store().commit(shop.contents(2))
    newer = shop.save()
    shop.put_back(older)
    with pytest.raises(StoreRollback, match="older"):
        shop.store().load()
    assert shop.save() == older, "what was put back is evidence"
    shop.put_back({shop.path: older[shop.path]})
    with pytest.raises(StoreRollback):
        shop.store().load()
    shop.put_back({shop.pending: older[shop.path]})
    with pytest.raises(StoreRollback):
        shop.store().load()
    shop.put_back(newer)
    assert shop.number(shop.store().load()) == 2


def test_an_older_main_file_beside_a_newer_twin_is_mended(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    older = shop.save()
    shop.store().commit(shop.contents(2))
    for path in (shop.path, shop.twin):
        path.write_bytes(older[shop.path])
        loaded = shop.store().load()
        assert shop.number(loaded) == 2
        assert len(loaded.repairs) == 1


def test_of_two_files_with_one_generation_only_the_committed_is_accepted(shop: Shop) -> None:
    """Threat: keep the file of a commit that was cut before its anchor, and swap it in after the next commit."""
    shop.store().commit(shop.contents(1))
    shop.kill_commit(2, "pending written")
    never_committed = shop.pending.read_bytes()
    generation = shop.store().commit(shop.contents(3))
    with shop.backend().kek() as kek:
        assert decode_store(kek, never_committed).generation == generation
    newest = shop.save()
    for placed in ([shop.path], [shop.path, shop.twin], [shop.path, shop.twin, shop.pending]):
        shop.put_back(dict.fromkeys(placed, never_committed))
        with pytest.raises(StoreRollback):
            shop.store().load()
    shop.put_back({shop.path: never_committed, shop.twin: newest[shop.path]})
    assert shop.number(shop.store().load()) == 3


def test_a_half_commit_cannot_be_turned_back(shop: Shop) -> None:
    """Between anchor and counter the old store is past already: it might be the one that an attacker wants."""
    shop.store().commit(shop.contents(1))
    shop.kill_commit(2, "anchor written")
    shop.pending.unlink()
    with pytest.raises(StoreRollback):
        shop.store().load()


def test_a_counter_that_ran_ahead_is_told_and_can_be_recovered_from(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    shop.backend().increment()
    with pytest.raises(StoreRollback, match="recover"):
        shop.store().load()
    shop.store().commit(shop.contents(2))
    assert shop.number(shop.store().load()) == 2


def test_after_all_copies_are_lost_a_new_store_can_be_committed(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    shop.put_back({})
    with pytest.raises(StoreMissing, match="gone"):
        shop.store().load()
    shop.store().commit(shop.contents(2))
    assert shop.number(shop.store().load()) == 2


# Foreign


def test_a_store_of_another_agent_is_refused(shop: Shop) -> None:
    shop.store("agent-1").commit(shop.contents(1))
    before = shop.save()
    with pytest.raises(StoreCorrupt, match=r"'agent-1'.*'agent-2'"):
        shop.store("agent-2").load()
    assert shop.save() == before
    assert shop.number(shop.store("agent-1").load()) == 1


def test_a_store_of_another_machine_is_refused(shop: Shop, tmp_path: Path, vault: Vault) -> None:
    machine = MACHINES[shop.machine.name](tmp_path / "other")
    try:
        other = Shop(machine, tmp_path / "other-store" / "store", vault)
        other.path.parent.mkdir()
        other.enroll()
        for each in (shop, other):
            each.store().commit(each.contents(1))
        shop.put_back({path: source.read_bytes() for path, source in zip(shop.files, other.files[:2], strict=False)})
        with pytest.raises(StoreCorrupt):
            shop.store().load()
    finally:
        machine.end()


def forge(shop: Shop, body: StoreBody) -> None:
    """What only the holder of the KEK could do: a store that authenticates and that the anchor names."""
    backend = shop.backend()
    with backend.kek() as kek:
        data = encode_store(kek, body)
    shop.put_back({shop.path: data, shop.twin: data})
    backend.write_anchor(Anchor(body.generation, hashlib.sha256(data).digest()))
    backend.increment()


def body_of(shop: Shop) -> StoreBody:
    with shop.backend().kek() as kek:
        return decode_store(kek, shop.path.read_bytes())


def test_a_record_moved_to_another_agents_store_is_refused(shop: Shop) -> None:
    shop.store("agent-1").commit(shop.contents(1))
    body = body_of(shop)
    forge(shop, StoreBody("agent-2", body.generation + 1, body.backend, body.records, body.sections))
    with pytest.raises(StoreCorrupt, match="does not authenticate"):
        shop.store("agent-2").load()


def test_a_record_under_another_versions_head_is_refused(shop: Shop) -> None:
    shop.store().commit(shop.contents(1))
    body = body_of(shop)
    first, second = body.records
    swapped = (type(first)(first.meta, second.nonce, second.sealed), type(first)(second.meta, first.nonce, first.sealed))
    forge(shop, StoreBody(AGENT, body.generation + 1, body.backend, swapped, body.sections))
    with pytest.raises(StoreCorrupt, match="does not authenticate"):
        shop.store().load()


def test_the_same_records_in_their_own_store_are_accepted(shop: Shop) -> None:
    """The forged stores of these tests are refused for their records, not for how they were made."""
    shop.store().commit(shop.contents(1))
    body = body_of(shop)
    forge(shop, StoreBody(AGENT, body.generation + 1, body.backend, body.records, body.sections))
    assert shop.number(shop.store().load()) == 1


# Hardware


@pytest.mark.parametrize("machine", ["memory", "tpm"], indirect=True)
def test_without_hardware_nothing_is_loaded_or_committed_and_nothing_is_lost(shop: Shop) -> None:
    store = shop.store()
    store.commit(shop.contents(1))
    before = shop.save()
    shop.machine.cut()
    with pytest.raises(BackendUnavailable):
        store.load()
    with pytest.raises(BackendUnavailable):
        store.commit(shop.contents(2))
    assert shop.save() == before
    shop.machine.mend()
    assert shop.number(store.load()) == 1
    store.commit(shop.contents(3))
    assert shop.number(shop.store().load()) == 3


def test_every_refusal_is_of_this_packages_errors() -> None:
    for kind in (StoreMissing, StoreCorrupt, StoreRollback):
        assert issubclass(kind, StoreError)
        assert issubclass(kind, HwsecError)
    assert not issubclass(StoreError, (BackendUnavailable, ForeignHardware))


def test_a_finished_commit_leaves_anchor_and_counter_together(shop: Shop) -> None:
    for number in (1, 2):
        shop.store().commit(shop.contents(number))
        assert judge_anchor(*shop.backend().read_anchor()) is AnchorCase.COMMITTED
