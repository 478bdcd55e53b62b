"""Counts usage by license and meter, each count once. No disk, TPM or network on the way of a count.

A count is one record in the ring of `usagefile`: it is counted, and its id known, from the moment when that record is whole.
So kill -9 loses none and repeats none. A counter's total is brought up to date only by `sync`, after the ring has reached the
disk: after a power cut, what the ring lost is neither in a total nor known by its id. Only totals on the disk are reported, so
a report never says more than the machine will know after any end.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from ipc.bounds import COUNT_KNOWN_S

from .usagefile import COUNTERS, EPOCH_BYTES, OWNER_BYTES, RING, Count, Counter, UsageFile, meter_check

log = logging.getLogger(__name__)

MAX_TOTAL = 2**53 - 1
"""The greatest total of a counter: what every JSON parser reads exactly."""
_EPOCH_HEAD = 8


class Counting(Enum):
    """What became of a count."""

    COUNTED = 1
    REPEATED = 2
    """Its id was counted before, with the same meter and amount."""
    OTHER = 3
    """Its id was counted before, with another meter or amount."""
    TOO_MANY = 4
    """All ids that are known are too young to be forgotten, or not on the disk yet."""
    NO_ROOM = 5
    """No counter is free: all have counts that the server does not know."""
    TOO_MUCH = 6
    """The total would be greater than it may be."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of a count, and the license that it is counted for, if that is still known."""

    how: Counting
    license_id: str | None = None


class Usage:
    """The counters of this machine.

    Args:
        path: their file.
        agent_id: whose counters they are; those of another agent are not continued.
        random: returns this many random bytes.
        monotonic: seconds.

    Raises:
        OSError: the file cannot be used.
    """

    def __init__(self, path: Path, agent_id: str, random: Callable[[int], bytes], monotonic: Callable[[], float]) -> None:
        self._file = UsageFile(path, hashlib.sha256(agent_id.encode()).digest()[:OWNER_BYTES])
        self._random = random
        self._monotonic = monotonic
        self._counters = self._file.counters()
        self._slots = {(each.license_id, each.meter): slot for slot, each in self._counters.items()}
        self._unsettled: dict[int, int] = {}  # by place: counted and not in the total yet
        self._last: dict[int, int] = {}  # by place: the number of the last count
        self._ids: dict[bytes, int] = {}
        self._times = [0.0] * RING
        # A power cut may have kept a counter and lost the counts before it: their numbers are not given again.
        self._next = max((self._file.settled, *(each.settled for each in self._counters.values()))) + 1
        self._reported: dict[bytes, int] = {}  # by epoch
        self._syncing = asyncio.Lock()
        self._recover()

    def _recover(self) -> None:
        now = self._monotonic()
        for count in sorted(self._file.counts(), key=lambda each: each.number):
            counter = self._counters.get(count.slot)
            own = counter is not None and counter.epoch[:_EPOCH_HEAD] == count.epoch
            if count.number > self._file.settled and not own:
                # A power cut has taken its counter. It is in no total, so it must not be known either.
                self._file.erase_count(count.number)
                continue
            self._ids[count.count_id] = count.number
            self._times[count.number % RING] = now
            self._next = max(self._next, count.number + 1)
            if counter is not None and own:
                self._last[count.slot] = max(count.number, self._last.get(count.slot, 0))
                if count.number > counter.settled:
                    self._unsettled[count.slot] = self._unsettled.get(count.slot, 0) + count.amount
        self._file.give_back_memory()

    # Counting

    def count(self, license_id: str, meter: str, amount: int, count_id: bytes) -> Counted:
        """Counts, unless the id was counted before.

        Args:
            license_id: the license that allows the meter.
            meter: its name.
            amount: 1 or more.
            count_id: 16 bytes.
        """
        place = self._next % RING
        oldest = self._file.count_at(place)
        if oldest is not None:
            young = self._monotonic() - self._times[place] < COUNT_KNOWN_S
            if young or oldest.number > self._file.settled:
                return Counted(Counting.TOO_MANY)
        slot = self._slot_of(license_id, meter)
        if slot is None:
            return Counted(Counting.NO_ROOM)
        counter = self._counters[slot]
        waiting = self._unsettled.get(slot, 0) + amount
        if counter.total + waiting > MAX_TOTAL:
            return Counted(Counting.TOO_MUCH)
        if oldest is not None and self._ids.get(oldest.count_id) == oldest.number:
            del self._ids[oldest.count_id]
        number = self._next
        self._file.write_count(Count(number, count_id, counter.epoch[:_EPOCH_HEAD], amount, slot, meter_check(meter)))
        self._next += 1
        self._ids[count_id] = self._last[slot] = number
        self._unsettled[slot] = waiting
        self._times[place] = self._monotonic()
        return Counted(Counting.COUNTED, license_id)

    def known(self, meter: str, amount: int, count_id: bytes) -> Counted | None:
        """What became of a count whose id was counted before; None if it was not."""
        number = self._ids.get(count_id)
        found = None if number is None else self._file.count_at(number)
        if found is None:
            return None
        if (found.amount, found.meter) != (amount, meter_check(meter)):
            return Counted(Counting.OTHER)
        counter = self._counters.get(found.slot)
        own = counter is not None and counter.epoch[:_EPOCH_HEAD] == found.epoch
        return Counted(Counting.REPEATED, counter.license_id if counter is not None and own else None)

    def _slot_of(self, license_id: str, meter: str) -> int | None:
        slot = self._slots.get((license_id, meter))
        if slot is not None:
            return slot
        slot = next((each for each in range(COUNTERS) if each not in self._counters), None)
        if slot is None:
            slot = self._idle()
            if slot is None:
                return None
        self._begin(slot, license_id, meter)
        return slot

    def _idle(self) -> int | None:
        """The place of the counter that has not counted for longest, of those that the server knows whole."""
        whole = [
            (self._last.get(slot, 0), slot)
            for slot, each in self._counters.items()
            if slot not in self._unsettled and self._reported.get(each.epoch) == each.total
        ]
        return min(whole)[1] if whole else None

    def _begin(self, slot: int, license_id: str, meter: str) -> None:
        """Begins a counter, in the place of another one if there is one."""
        former = self._counters.get(slot)
        if former is not None:
            del self._slots[former.license_id, former.meter]
            self._reported.pop(former.epoch, None)
        self._unsettled.pop(slot, None)
        generation = 1 if former is None else former.generation + 1
        made = Counter(license_id, meter, self._random(EPOCH_BYTES), 0, self._next - 1, generation)
        self._file.write_counter(slot, made)
        self._counters[slot], self._slots[license_id, meter] = made, slot
        self._last.pop(slot, None)

    # Disk

    async def sync(self) -> None:
        """Brings all counts to the disk, and then into the totals.

        Raises:
            OSError: the disk does not take them; they are counted all the same.
        """
        async with self._syncing:
            number = self._next - 1
            # A power cut may have kept the number and lost the totals: then the ring has counts that are to be added still.
            if number == self._file.settled and not self._unsettled:
                return
            moved = dict(self._unsettled)
            epochs = {slot: self._counters[slot].epoch for slot in moved}
            await asyncio.to_thread(self._file.sync)
            for slot, amount in moved.items():
                counter = self._counters[slot]
                if counter.epoch != epochs[slot]:
                    # It has begun again meanwhile.
                    continue
                total = min(counter.total + amount, MAX_TOTAL)
                settled = replace(counter, total=total, settled=number, generation=counter.generation + 1)
                self._file.write_counter(slot, settled)
                self._counters[slot] = settled
                self._unsettled[slot] -= amount
                if not self._unsettled[slot]:
                    del self._unsettled[slot]
            # The ring is on the disk already: with an older total beside this, its counts are added again.
            self._file.write_settled(number)
            await asyncio.to_thread(self._file.sync)
            self._file.settled = number

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    # Reports

    def totals(self) -> list[Counter]:
        """The counters as they are on the disk."""
        return list(self._counters.values())

    def unreported(self) -> list[Counter]:
        """The counters as they are on the disk, of which the server does not know all."""
        return [each for each in self._counters.values() if self._reported.get(each.epoch, 0) != each.total]

    @property
    def behind(self) -> int:
        """How many counters have counts that the server does not know; after a start all of them, until they are reported."""
        return len({each.epoch for each in self.unreported()} | {self._counters[slot].epoch for slot in self._unsettled})

    @property
    def waiting(self) -> bool:
        """Whether there are counts that the server does not know."""
        return bool(self._unsettled or self.unreported())

    def report_taken(self, counters: list[Counter]) -> None:
        """Notes that the server knows these totals."""
        for each in counters:
            self._reported[each.epoch] = each.total

    def begin_again(self, epoch: bytes) -> None:
        """Begins a counter again whose total is behind what the server has: an older disk has come back.

        What was counted since then is in no report: part of it may be in what the server has.
        """
        for slot, counter in list(self._counters.items()):
            if counter.epoch == epoch:
                # What is in no total must not be known either: who repeats it is counted.
                for number in range(self._file.settled + 1, self._next):
                    count = self._file.count_at(number)
                    if count is not None and count.number == number and count.slot == slot:
                        self._file.erase_count(number)
                        self._ids.pop(count.count_id, None)
                self._begin(slot, counter.license_id, counter.meter)
