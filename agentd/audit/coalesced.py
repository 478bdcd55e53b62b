"""Counts events that happen too often to be logged each time, in a mapped file that survives kill -9.

A slot holds a key (JSON), a count, the first and the last time. It counts only once `used` is set, which is written last.
The key of an event that the last release never counts is within a list: that release leaves such a slot out, but would take an
event that it does not know for damage.
"""

import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

SLOTS = 512
SLOT_BYTES = 512
SPARE_SLOTS = 64
_HEAD = struct.Struct("<BxHxxxxQdd")  # used, key length, count, first, last
_COUNT = struct.Struct("<Q")
_LAST = struct.Struct("<d")
_COUNT_AT, _LAST_AT = 8, 24
MAX_TIME_S = 253_402_300_800  # the year 10000
_KEY_ROOM = SLOT_BYTES - _HEAD.size
_Key = dict[str, Any] | tuple[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Repeat:
    """What is handed out for the log: times are seconds since 1970 UTC."""

    fields: dict[str, Any]
    count: int
    first: float
    last: float


class _Place:
    """Where a key is counted, and how often it has been."""

    __slots__ = ("count", "count_at", "last_at", "slot")

    def __init__(self, slot: int, count: int) -> None:
        self.slot = slot
        self.count = count
        self.count_at = slot * SLOT_BYTES + _COUNT_AT
        self.last_at = slot * SLOT_BYTES + _LAST_AT


class CoalescedEvents:
    """The table.

    Args:
        path: the file; created if it is missing or has another size.
    """

    def __init__(self, path: Path) -> None:
        size = SLOTS * SLOT_BYTES
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, 0)
                # Blocks are reserved now: a full disk must not kill the process at a store into the map.
                os.posix_fallocate(descriptor, 0, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._places: dict[Any, _Place] = {}
        self._free = list(range(SLOTS - 1, -1, -1))

    def recover(self) -> list[Repeat]:
        """What an earlier run left behind; the table is empty afterwards."""
        found = [repeat for slot in range(SLOTS) if (repeat := self._read(slot)) is not None]
        self._clear()
        return found

    def count(
        self,
        key: Any,
        now: float,
        describe: Callable[[], dict[str, Any]],
        *,
        spare: bool = False,
        times: int = 1,
        recent: bool = False,
    ) -> bool:
        """Counts one or more; False if the table is full and the key not in it.

        Args:
            key: what it is; hashable.
            now: seconds since 1970 UTC.
            describe: gives the fields to log, when the key is new.
            spare: may use the slots that are kept for when all others are taken.
            times: how many.
            recent: the last release never counts this event.
        """
        if self.count_known(key, now, times):
            return True
        if len(self._free) <= (0 if spare else SPARE_SLOTS):
            return False
        data = msgspec.json.encode([describe()] if recent else describe())
        if len(data) > _KEY_ROOM:
            return False
        slot = self._free.pop()
        offset = slot * SLOT_BYTES
        self._map[offset + _HEAD.size : offset + _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._map, offset, 0, len(data), times, now, now)
        self._map[offset] = 1
        self._places[key] = _Place(slot, times)
        return True

    def count_known(self, key: Any, now: float, times: int = 1) -> bool:
        """Counts one or more of a key that is in the table; False if it is not."""
        place = self._places.get(key)
        if place is None:
            return False
        place.count = total = place.count + times
        _COUNT.pack_into(self._map, place.count_at, total)
        _LAST.pack_into(self._map, place.last_at, now)
        return True

    def drain(self) -> list[Repeat]:
        """All that has been counted; the table is empty afterwards."""
        found = [repeat for place in self._places.values() if (repeat := self._read(place.slot)) is not None]
        self._clear()
        return found

    def __len__(self) -> int:
        return len(self._places)

    def _read(self, slot: int) -> Repeat | None:
        offset = slot * SLOT_BYTES
        used, length, count, first, last = _HEAD.unpack_from(self._map, offset)
        if not used or length > _KEY_ROOM or not 0 <= first < MAX_TIME_S or not 0 <= last < MAX_TIME_S:
            return None
        try:
            fields = msgspec.json.decode(self._map[offset + _HEAD.size : offset + _HEAD.size + length], type=_Key)
        except msgspec.DecodeError:
            return None
        if isinstance(fields, tuple):
            fields = fields[0]
        return Repeat(fields, count, first, last)

    def _clear(self) -> None:
        for slot in range(SLOTS):
            self._map[slot * SLOT_BYTES] = 0
        self._places.clear()
        self._free = list(range(SLOTS - 1, -1, -1))
        # Of a shared map this gives back the memory and keeps the content; a slot that is used comes back by itself.
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Gives the map back; the file keeps what was counted."""
        self._map.close()
