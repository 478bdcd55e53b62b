"""Knows when the update metadata of each role ends, for the metrics: it is read once after each publication or renewal."""

import logging
import threading

from server.base.errors import RegistryError

from .repository import Repository
from .words import TIMESTAMP

_log = logging.getLogger(__name__)


class MetadataEnds:
    """When the metadata of a repository ends.

    Args:
        repository: of updates; it may be one in which nothing was published yet.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._lock = threading.Lock()
        self._seen: bytes | None = None
        self._ends: dict[str, int] = {}

    def by_role(self) -> dict[str, int]:
        """When the metadata of each role ends, seconds since 1970 UTC; empty before the first publication.

        A repository that cannot be read has a timestamp that ended in 1970: what nobody can look at is not well.
        """
        with self._lock:
            try:
                # Every publication and every renewal signs a new timestamp.
                found = self._repository.read(f"{TIMESTAMP}.json")
                if found is None:
                    return {}
                if found != self._seen:
                    self._ends, self._seen = self._repository.present().ends(), found
            except RegistryError as problem:
                _log.warning("the update metadata cannot be read for /metrics: %s", problem)
                self._seen = None
                return {TIMESTAMP: 0}
            return dict(self._ends)
