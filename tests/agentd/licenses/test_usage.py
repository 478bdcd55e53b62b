"""Each usage is counted once, whatever ends the agent, whatever a power cut takes, and however often a till repeats."""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentd.licenses import usagefile
from agentd.licenses.usage import MAX_TOTAL, Counted, Counting, Usage
from agentd.licenses.usagefile import COUNTERS, RING, UsageFile
from ipc.bounds import COUNT_KNOWN_S

AGENT = "pos-000001"
PAGE = 4096


class PowerCut(Exception):
    """The machine ends here."""


class Machine:
    """A machine whose agent may be killed, and whose disk loses what was not synced, page by page."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path, self.random, self.seconds = path, random.Random(seed), 0.0
        self.durable = b""
        self.syncs_left: int | None = None
        self.start()

    def start(self, agent: str = AGENT) -> None:
        self.usage = Usage(self.path, agent, self.random.randbytes, lambda: self.seconds)
        real = self.usage._file.sync

        def sync() -> None:
            if self.syncs_left is not None:
                self.syncs_left -= 1
                if self.syncs_left < 0:
                    raise PowerCut
            real()
            self.durable = self.path.read_bytes()

        self.usage._file.sync = sync  # type: ignore[method-assign]

    def kill(self) -> None:
        """As kill -9: the kernel keeps every write into the map."""
        self.usage.close()
        self.start()

    def cut(self) -> None:
        """Of each page that was written since the last sync, the disk has it as it was then, or as it is now."""
        self.usage.close()
        now, then = self.path.read_bytes(), self.durable.ljust(usagefile.SIZE, b"\0")
        pages = (self.random.choice((now, then))[at : at + PAGE] for at in range(0, usagefile.SIZE, PAGE))
        self.durable = b"".join(pages)
        self.path.write_bytes(self.durable)
        self.syncs_left = None
        self.start()

    def sync(self) -> None:
        asyncio.run(self.usage.sync())

    def count(self, license_id: str, meter: str, amount: int, count_id: bytes) -> Counted:
        return self.usage.known(meter, amount, count_id) or self.usage.count(license_id, meter, amount, count_id)

    def totals(self) -> dict[tuple[str, str], int]:
        self.sync()
        return {(each.license_id, each.meter): each.total for each in self.usage.totals() if each.total}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "usage.counts")
    yield made
    made.usage.close()


def number(value: int) -> bytes:
    return value.to_bytes(16, "big")


def test_a_count_is_counted_once_and_known_by_its_id(machine: Machine) -> None:
    assert machine.count("l", "sales", 3, number(1)) == Counted(Counting.COUNTED, "l")
    assert machine.count("l", "sales", 3, number(1)) == Counted(Counting.REPEATED, "l")
    assert machine.count("l", "sales", 4, number(1)) == Counted(Counting.OTHER)
    assert machine.count("l", "other", 3, number(1)) == Counted(Counting.OTHER)
    assert machine.totals() == {("l", "sales"): 3}


def test_kill_loses_nothing_and_repeats_nothing(machine: Machine) -> None:
    for each in range(100):
        machine.count("l", "sales", 2, number(each))
        if each % 7 == 0:
            machine.kill()
        if each % 31 == 0:
            machine.sync()
    machine.kill()
    assert {machine.count("l", "sales", 2, number(each)).how for each in range(100)} == {Counting.REPEATED}
    assert machine.totals() == {("l", "sales"): 200}


@pytest.mark.system
def test_a_process_that_is_really_killed_loses_no_count_that_it_has_said(tmp_path: Path) -> None:
    path, (read, write) = tmp_path / "usage.counts", os.pipe()
    child = os.fork()
    if not child:  # no cover: it ends by the kill
        with contextlib.suppress(BaseException):
            usage = Usage(path, AGENT, os.urandom, lambda: 0.0)
            for each in range(RING):
                usage.count("l", "sales", 1, number(each))
                os.write(write, b".")
        os._exit(1)
    os.close(write)
    told = len(os.read(read, 64))
    os.kill(child, 9)
    os.waitpid(child, 0)
    while data := os.read(read, 65_536):
        told += len(data)
    os.close(read)
    machine = Machine(path)
    assert told and all(machine.count("l", "sales", 1, number(each)).how is Counting.REPEATED for each in range(told))
    assert told <= machine.totals()[("l", "sales")] <= told + 1
    machine.usage.close()


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.integers(0, 20), st.sampled_from("ab"), st.integers(1, 5)),
        st.sampled_from([("sync",), ("kill",), ("cut",), ("cut in sync", 0), ("cut in sync", 1), ("report",)]),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(ACTS, st.integers(0, 2**32))
@example([("count", 0, "b", 1), ("sync",), ("count", 1, "a", 1), ("cut in sync", 1)], 0)  # the number is kept, the total lost
def test_after_any_ends_a_till_that_repeats_its_counts_has_each_counted_once(
    tmp_path: Path, acts: list[tuple[Any, ...]], seed: int
) -> None:
    path = tmp_path / "usage.counts"
    path.unlink(missing_ok=True)
    machine = Machine(path, seed)
    machine.sync()
    asked: dict[int, tuple[str, int]] = {}
    server: Counter[bytes] = Counter()
    for name, *more in acts:
        if name == "count":
            each, meter, amount = more
            meter, amount = asked.setdefault(each, (meter, amount))
            assert machine.count("l", meter, amount, number(each)).how in (Counting.COUNTED, Counting.REPEATED)
        elif name == "sync":
            machine.sync()
        elif name == "kill":
            machine.kill()
        elif name == "report":
            machine.sync()
            for counter in machine.usage.unreported():
                assert counter.total >= server[counter.epoch], "a total went back"
                server[counter.epoch] = counter.total
            machine.usage.report_taken(machine.usage.unreported())
        else:
            if name == "cut in sync":
                machine.syncs_left = more[0]
                with contextlib.suppress(PowerCut):
                    machine.sync()
            machine.cut()
    wanted: Counter[tuple[str, str]] = Counter()
    for each, (meter, amount) in asked.items():
        assert machine.count("l", meter, amount, number(each)).how in (Counting.COUNTED, Counting.REPEATED)
        wanted["l", meter] += amount
    assert machine.totals() == wanted
    for counter in machine.usage.totals():
        assert counter.total >= server[counter.epoch], "a total went back"
    machine.usage.close()


def test_only_what_is_on_the_disk_is_reported(machine: Machine) -> None:
    machine.count("l", "sales", 5, number(1))
    assert machine.usage.waiting and not [each for each in machine.usage.unreported() if each.total]
    machine.sync()
    (counter,) = machine.usage.unreported()
    assert (counter.license_id, counter.meter, counter.total) == ("l", "sales", 5)
    machine.count("l", "sales", 2, number(2))
    machine.usage.report_taken([counter])
    assert machine.usage.waiting and machine.usage.unreported() == []
    machine.sync()
    assert [each.total for each in machine.usage.unreported()] == [7]


def test_counters_that_the_server_does_not_know_whole_are_counted(machine: Machine) -> None:
    assert machine.usage.behind == 0
    machine.count("l", "sales", 5, number(1))
    machine.count("l", "washes", 1, number(2))
    assert machine.usage.behind == 2
    machine.sync()
    machine.count("l", "sales", 5, number(3))
    assert machine.usage.behind == 2
    machine.sync()
    machine.usage.report_taken(machine.usage.unreported())
    assert machine.usage.behind == 0


def test_an_id_stays_known_while_it_is_young_and_then_for_so_many_counts(machine: Machine) -> None:
    for each in range(RING):
        assert machine.count("l", "sales", 1, number(each)).how is Counting.COUNTED
    assert machine.count("l", "sales", 1, number(RING)).how is Counting.TOO_MANY
    machine.seconds += COUNT_KNOWN_S
    # What is on no disk yet is not written over either.
    assert machine.count("l", "sales", 1, number(RING)).how is Counting.TOO_MANY
    machine.sync()
    assert machine.count("l", "sales", 1, number(RING)).how is Counting.COUNTED
    assert machine.count("l", "sales", 1, number(1)).how is Counting.REPEATED
    machine.kill()
    assert machine.count("l", "sales", 1, number(2)).how is Counting.REPEATED
    # Nobody knows how long the agent was off: all ids are young again.
    assert machine.count("l", "sales", 1, number(RING + 1)).how is Counting.TOO_MANY
    assert machine.totals() == {("l", "sales"): RING + 1}


def test_a_counter_that_the_server_knows_whole_gives_its_place_to_another(machine: Machine) -> None:
    for each in range(COUNTERS):
        assert machine.count(f"license-{each}", "sales", 1, number(each)).how is Counting.COUNTED
    assert machine.count("one more", "sales", 1, number(999)).how is Counting.NO_ROOM
    machine.sync()
    first = machine.usage.unreported()
    machine.usage.report_taken(first)
    assert machine.count("one more", "sales", 1, number(999)).how is Counting.COUNTED
    # Its id is known all the same, after a restart too; the license is not.
    assert machine.count("license-0", "sales", 1, number(0)) == Counted(Counting.REPEATED, None)
    machine.kill()
    assert machine.count("license-0", "sales", 1, number(0)) == Counted(Counting.REPEATED, None)
    totals = machine.totals()
    assert ("license-0", "sales") not in totals and totals["one more", "sales"] == 1 and len(totals) == COUNTERS
    assert machine.count("license-1", "sales", 1, number(1000)).how is Counting.COUNTED
    machine.sync()
    machine.usage.report_taken(machine.usage.unreported())
    assert machine.count("license-0", "sales", 4, number(1001)).how is Counting.COUNTED
    machine.sync()
    again = next(each for each in machine.usage.totals() if each.license_id == "license-0")
    assert again.total == 4 and again.epoch not in {each.epoch for each in first}


def test_a_counter_that_begins_again_has_another_epoch_and_forgets_what_is_in_no_total(machine: Machine) -> None:
    machine.count("l", "sales", 5, number(1))
    machine.sync()
    (before,) = machine.usage.totals()
    machine.count("l", "sales", 2, number(2))
    machine.usage.begin_again(before.epoch)
    assert machine.count("l", "sales", 5, number(1)).how is Counting.REPEATED
    assert machine.count("l", "sales", 2, number(2)).how is Counting.COUNTED
    machine.kill()
    assert machine.count("l", "sales", 2, number(2)).how is Counting.REPEATED
    machine.sync()
    (after,) = machine.usage.totals()
    assert after.total == 2 and after.epoch != before.epoch


def test_a_total_does_not_overflow(machine: Machine) -> None:
    most = 2**32 - 1
    machine.count("l", "sales", most, number(1))
    machine.sync()
    (slot,) = machine.usage._counters
    machine.usage._counters[slot] = replace(machine.usage._counters[slot], total=MAX_TOTAL - 1)
    assert machine.count("l", "sales", 2, number(2)).how is Counting.TOO_MUCH
    assert machine.count("l", "sales", 1, number(3)).how is Counting.COUNTED
    assert machine.totals() == {("l", "sales"): MAX_TOTAL}


def test_counters_of_another_agent_are_not_continued(machine: Machine) -> None:
    machine.count("l", "sales", 5, number(1))
    machine.sync()
    machine.usage.close()
    machine.start("pos-000002")
    assert machine.usage.totals() == [] and machine.count("l", "sales", 5, number(1)).how is Counting.COUNTED


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * usagefile.SIZE, bytes(usagefile.SIZE), b"\xff" * 10_000_000])
def test_a_file_of_anything_else_begins_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "usage.counts").write_bytes(content)
    machine = Machine(tmp_path / "usage.counts")
    assert machine.usage.totals() == [] and machine.count("l", "sales", 5, number(1)).how is Counting.COUNTED
    assert (tmp_path / "usage.counts").stat().st_size == usagefile.SIZE
    machine.kill()
    assert machine.totals() == {("l", "sales"): 5}
    machine.usage.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, usagefile.SIZE - 64), st.binary(min_size=1, max_size=64)), max_size=20))
def test_a_damaged_file_ends_nothing(tmp_path: Path, damage: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "usage.counts"
    path.unlink(missing_ok=True)
    machine = Machine(path)
    for each in range(20):
        machine.count("l", "sales", 1, number(each))
    machine.sync()
    machine.usage.close()
    data = bytearray(path.read_bytes())
    for at, what in damage:
        data[at : at + len(what)] = what
    path.write_bytes(data)
    machine.start()
    for each in range(30):
        machine.count("l", "sales", 1, number(each))
    machine.sync()
    machine.kill()
    assert all(0 <= each.total <= MAX_TOTAL for each in machine.usage.totals())
    machine.usage.close()


def test_a_file_that_a_link_leads_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "usage.counts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        UsageFile(tmp_path / "usage.counts", bytes(16))
