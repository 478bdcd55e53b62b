"""Notes when devices last contacted the server, in batches: a poll writes nothing by itself."""

import threading
from collections.abc import Callable

from sqlalchemy import select

from server.registry.database import Database
from server.registry.models.fleets import DeviceSeen

BATCH = 500


class Seen:
    """Devices that have contacted this process since the last batch.

    Args:
        database: of the registry.
        wall: seconds since 1970 UTC.
    """

    def __init__(self, database: Database, wall: Callable[[], float]) -> None:
        self._database = database
        self._wall = wall
        self._at: dict[str, int] = {}
        self._lock = threading.Lock()

    def note(self, device_id: str) -> None:
        """Notes that a device, which has identified itself, is there now."""
        with self._lock:
            self._at[device_id] = int(self._wall())

    def write(self) -> int:
        """Writes what was noted; returns how many devices that are. What cannot be written is lost: the next poll notes it.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            noted, self._at = sorted(self._at.items()), {}
        for begin in range(0, len(noted), BATCH):
            batch = dict(noted[begin : begin + BATCH])
            with self._database.write() as session:
                rows = session.scalars(
                    select(DeviceSeen).where(DeviceSeen.device_id.in_(batch)).order_by(DeviceSeen.device_id).with_for_update()
                )
                for row in rows:
                    row.at = max(row.at, batch.pop(row.device_id))
                session.add_all(DeviceSeen(device_id=device_id, at=at) for device_id, at in batch.items())
        return len(noted)
