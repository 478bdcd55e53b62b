"""Notes in the memory of a process which devices have contacted it in an interval, and how that went.

A request costs one entry of a dictionary, and nothing in the database. What is noted is a device and not a request: a device
that sends a thousand bad requests is one that fails. A process that is killed loses what it has noted of the present interval.
"""

import threading
from collections.abc import Callable
from enum import IntFlag

from .intervals import interval_of
from .latency import bucket_of

MAX_DEVICES = 200_000
"""Devices that a process notes in one interval; further ones are counted as unnoted. About 150 bytes each."""
MAX_INTERVALS = 3
"""Intervals that wait to be written. Where the database does not answer for longer, the oldest is lost."""
_SHIFT = 8


class Failure(IntFlag):
    """At what a device has failed in an interval."""

    NONE = 0
    REFUSED = 1
    """The server has refused one of its requests, or could not answer it."""
    ROTATION = 2
    """The server has refused to hand out or to confirm its secret."""


class Noted:
    """What was noted of an interval.

    Attributes:
        devices: by id, what `failures` and `slowest` take apart.
        unnoted: contacts of devices that there was no room for.
    """

    __slots__ = ("devices", "unnoted")

    def __init__(self) -> None:
        self.devices: dict[str, int] = {}
        self.unnoted = 0

    def note(self, device_id: str, bucket: int, failure: Failure) -> None:
        """Notes a request of a device.

        Args:
            device_id: whose.
            bucket: of its latency.
            failure: at what it failed.
        """
        known = self.devices.get(device_id)
        if known is None:
            if len(self.devices) >= MAX_DEVICES:
                self.unnoted += 1
                return
            known = 0
        self.devices[device_id] = max(known >> _SHIFT, bucket) << _SHIFT | (known & 0xFF) | failure


def failures(noted: int) -> Failure:
    """At what a device has failed."""
    return Failure(noted & 0xFF)


def slowest(noted: int) -> int:
    """The bucket of the latency of its slowest request."""
    return noted >> _SHIFT


class Contacts:
    """What a process has noted.

    Args:
        wall: seconds since 1970 UTC.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._intervals: dict[int, Noted] = {}
        self._lock = threading.Lock()

    def note(self, device_id: str, seconds: float, failure: Failure = Failure.NONE) -> None:
        """Notes a request of a device that has identified itself.

        Args:
            device_id: whose.
            seconds: from its head to the response.
            failure: at what it failed.
        """
        at, bucket = interval_of(self._wall()), bucket_of(seconds)
        with self._lock:
            noted = self._intervals.get(at)
            if noted is None:
                noted = self._intervals[at] = Noted()
                while len(self._intervals) > MAX_INTERVALS:
                    del self._intervals[min(self._intervals)]
            noted.note(device_id, bucket, failure)

    def take(self, *, everything: bool = False) -> dict[int, Noted]:
        """Hands over the intervals that are over, by their begin; they are forgotten here.

        Args:
            everything: the present interval too, since the process ends.
        """
        present = interval_of(self._wall())
        with self._lock:
            over = [at for at in self._intervals if everything or at != present]
            return {at: self._intervals.pop(at) for at in sorted(over)}

    def give_back(self, at: int, noted: Noted) -> None:
        """Takes back an interval that could not be written."""
        with self._lock:
            if at not in self._intervals and len(self._intervals) < MAX_INTERVALS:
                self._intervals[at] = noted
