"""Lays out the file of usage counts: a mapped table of counters and a ring of the last counts. It decides nothing.

    head and counters, copy 0 | the same, copy 1 | ring of counts

A write into the map survives kill -9 at once, and a power cut once it was synced. Each record ends in its CRC-32, so that one
that was half written does not count. A counter has two copies, written in turn and in different pages: one is always whole.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipc.bounds import COUNTS_KNOWN, MAX_COUNTERS, MAX_LICENSE_ID_CHARS
from ipc.clientwire import is_meter

COUNTERS = MAX_COUNTERS
RING = COUNTS_KNOWN
EPOCH_BYTES = 16
OWNER_BYTES = 16
_PAGE = 4096
_RECORD = 1024
_ENTRY = 64
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<8sQ16sQ")  # magic, generation, owner, settled
_COUNTER = struct.Struct("<Q16sQQHH")  # generation, epoch, total, settled, lengths of license and meter
_COUNT = struct.Struct("<Q16s8sQHHI")  # number, id, beginning of the epoch, amount, slot, zero, CRC-32 of the meter
_MAGIC = b"usage\0\0\1"
_COPY = -(-_RECORD * (COUNTERS + 1) // _PAGE) * _PAGE
_RING_AT = 2 * _COPY
SIZE = _RING_AT + RING * _ENTRY
_MOST = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Counter:
    """What a counter has counted.

    Attributes:
        license_id: the license.
        meter: the meter.
        epoch: random; a counter that begins again has another one.
        total: all that was counted in this epoch up to the count with the number `settled`.
        settled: that number.
        generation: grows with each write.
    """

    license_id: str
    meter: str
    epoch: bytes
    total: int = 0
    settled: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """One count.

    Attributes:
        number: of this count on this machine; they grow by one.
        count_id: what the caller named it.
        epoch: the first bytes of the counter's epoch.
        amount: how much.
        slot: the counter's place.
        meter: CRC-32 of the meter's name.
    """

    number: int
    count_id: bytes
    epoch: bytes
    amount: int
    slot: int
    meter: int


def meter_check(meter: str) -> int:
    """What a count knows of its meter's name, should the counter have gone."""
    return zlib.crc32(meter.encode())


class UsageFile:
    """The file.

    Args:
        path: where; created if it is missing, has another size, or belongs to another agent.
        owner: names the agent, 16 bytes.

    Attributes:
        settled: every counter has all counts up to this number, on the disk.
        fresh: it held nothing that counts.

    Raises:
        OSError: it cannot be used.
    """

    def __init__(self, path: Path, owner: bytes) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._owner = owner
            self._generation, self.settled = self._found()
            self.fresh = not self._generation
            if self.fresh:
                os.ftruncate(self._descriptor, 0)
                # Blocks are reserved now: a full disk must not kill the process at a store into the map.
                os.posix_fallocate(self._descriptor, 0, SIZE)
            self._map = mmap.mmap(self._descriptor, SIZE)
        except BaseException:
            os.close(self._descriptor)
            raise
        if self.fresh:
            self.write_settled(0)

    def _found(self) -> tuple[int, int]:
        """Generation and number of the newer head; zeros if there is none of this agent."""
        if os.fstat(self._descriptor).st_size != SIZE:
            return 0, 0
        heads = [(0, b"", 0)]
        for copy in (0, 1):
            data = os.pread(self._descriptor, _HEAD.size + _CRC.size, copy * _COPY)
            content, check = data[: _HEAD.size], data[_HEAD.size :]
            magic, *head = _HEAD.unpack(content)
            if magic == _MAGIC and check == _CRC.pack(zlib.crc32(content)) and max(head[0], head[2]) < _MOST:
                heads.append((head[0], head[1], head[2]))
        generation, owner, settled = max(heads)
        return (generation, settled) if owner == self._owner else (0, 0)

    def give_back_memory(self) -> None:
        """Gives back the memory of what was read; what is used comes back by itself."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def sync(self) -> None:
        """Brings everything to the disk; may be called in another thread. Raises OSError."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Gives the map back; the file keeps everything."""
        self._map.close()
        os.close(self._descriptor)

    # Records

    def _read(self, at: int, length: int) -> bytes | None:
        data = self._map[at : at + length]
        return data if _CRC.unpack_from(self._map, at + length)[0] == zlib.crc32(data) else None

    def _write(self, at: int, data: bytes) -> None:
        self._map[at : at + len(data) + _CRC.size] = data + _CRC.pack(zlib.crc32(data))

    def write_settled(self, number: int) -> None:
        """Writes that every counter has all counts up to this number; `settled` is for the caller to set once it is synced."""
        self._generation += 1
        self._write(self._generation % 2 * _COPY, _HEAD.pack(_MAGIC, self._generation, self._owner, number))

    def counters(self) -> dict[int, Counter]:
        """The counters, by their places."""
        found = {}
        for slot in range(COUNTERS):
            copies = [each for copy in (0, 1) if (each := self._counter(slot, copy)) is not None]
            if copies:
                found[slot] = max(copies, key=lambda each: each.generation)
        return found

    def _counter(self, slot: int, copy: int) -> Counter | None:
        at = copy * _COPY + (slot + 1) * _RECORD
        generation, epoch, total, settled, *lengths = _COUNTER.unpack_from(self._map, at)
        length = sum(lengths)
        if length > _RECORD - _COUNTER.size - _CRC.size:
            return None
        data = self._read(at, _COUNTER.size + length)
        if data is None:
            return None
        names, cut = data[_COUNTER.size :], lengths[0]
        try:
            license_id, meter = names[:cut].decode(), names[cut:].decode()
        except UnicodeDecodeError:
            return None
        if max(generation, total, settled) > _MOST or not 0 < len(license_id) <= MAX_LICENSE_ID_CHARS or not is_meter(meter):
            return None
        return Counter(license_id, meter, epoch, total, settled, generation)

    def write_counter(self, slot: int, counter: Counter) -> None:
        """Writes a counter beside its copy of before.

        Args:
            slot: its place.
            counter: its generation is one more than that of the counter that is there, whichever that is.
        """
        license_id, meter = counter.license_id.encode(), counter.meter.encode()
        fields = counter.generation, counter.epoch, counter.total, counter.settled, len(license_id), len(meter)
        at = counter.generation % 2 * _COPY + (slot + 1) * _RECORD
        self._write(at, _COUNTER.pack(*fields) + license_id + meter)

    # Counts

    def counts(self) -> Iterator[Count]:
        """All counts in the ring, in no order."""
        for place in range(RING):
            found = self.count_at(place)
            if found is not None:
                yield found

    def count_at(self, place: int) -> Count | None:
        """The count at a place of the ring; None if there is none."""
        data = self._read(_RING_AT + place % RING * _ENTRY, _COUNT.size)
        if data is None:
            return None
        number, count_id, epoch, amount, slot, _zero, meter = _COUNT.unpack(data)
        right = number % RING == place % RING and max(number, amount) <= _MOST
        return Count(number, count_id, epoch, amount, slot, meter) if right else None

    def write_count(self, count: Count) -> None:
        """Writes a count at its place, over the one that is `RING` older. Once it is there, it counts."""
        fields = count.number, count.count_id, count.epoch, count.amount, count.slot, 0, count.meter
        self._write(_RING_AT + count.number % RING * _ENTRY, _COUNT.pack(*fields))

    def erase_count(self, number: int) -> None:
        """Takes a count out of the ring."""
        at = _RING_AT + number % RING * _ENTRY
        self._map[at : at + _ENTRY] = bytes(_ENTRY)
