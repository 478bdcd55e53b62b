"""Commits the agent's secret versions and its record to the sealed store, and goes by what was committed.

Each commit is logged durably before it starts and runs on the hardware's own thread; the event loop goes on meanwhile. Commits
take turns (`Hardware.turn`).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from agentd.audit.core import Core
from agentd.base.hardware import COMMIT_DEADLINE_S, HardwareConnection
from contracts.trust import Trust
from hwsec.backend import BackendStatus
from hwsec.errors import HwsecError
from hwsec.store import Contents, Loaded

from .record import AgentRecord, read_record
from .ring import SecretRing

log = logging.getLogger(__name__)

T = TypeVar("T")

STATUS_DEADLINE_S = 10.0
"""Longer than the backend goes on asking where answers do not fit (`hwsec.repetition`)."""


class Store:
    """The sealed store as the daemon uses it.

    Args:
        ring: goes by the committed versions.
        loaded: the store as it was read at the start.
        record: what `loaded` holds besides the versions.

    Attributes:
        ring: the committed versions.
        record: as it was last committed; a server-signed time that only moved on waits in it for the next commit.
        generation: number of the last commit.
        status: what the hardware last said of itself.
    """

    def __init__(self, core: Core, ring: SecretRing, loaded: Loaded, record: AgentRecord) -> None:
        self._core = core
        self.ring = ring
        self.record = record
        self.generation = loaded.generation
        name = core.hardware.name
        self.status = BackendStatus(name, True, "", name == "tpm")
        ring.replace(loaded.contents)
        core.hardware.on_reload = self._reloaded

    @property
    def trust(self) -> Trust:
        """Whose signatures count."""
        return self.ring.trust

    async def keep(self, event: str, changes: dict[str, Any], **fields: Any) -> None:
        """Commits changes of the record.

        Args:
            event: logged before and after.
            changes: new values of the record's attributes.
            fields: for the audit log.

        Raises:
            HwsecError, AuditUnavailable: nothing has changed.
        """
        async with self._core.hardware.turn:
            await self._core.audit.record_durably(event, "begun", **fields)
            record = replace(self.record, **changes)
            await self.commit(self.ring.contents(record.sections()), record)
            self._core.audit.record(event, "ok", generation=self.generation)

    async def commit(self, contents: Contents, record: AgentRecord) -> None:
        """Commits contents that were made of the ring and `record`; the caller holds `Hardware.turn` and has logged it."""
        self.generation = await self._core.hardware.run(lambda connection: connection.store.commit(contents), COMMIT_DEADLINE_S)
        self._go_by(contents, record)

    def _go_by(self, contents: Contents, record: AgentRecord) -> None:
        if record.trust_file != self.record.trust_file:
            self.ring.trust = record.trust()
        self.record = record
        self.ring.replace(contents)

    def note(self, record: AgentRecord) -> None:
        """Goes by a record that differs in its times only; the next commit stores it."""
        self.record = record

    async def on_hardware(self, work: Callable[[HardwareConnection], T]) -> T:
        """Runs work on the hardware's thread in a turn of its own. Raises as `Hardware.run`."""
        async with self._core.hardware.turn:
            return await self._core.hardware.run(work, COMMIT_DEADLINE_S)

    async def refresh_status(self) -> BackendStatus:
        """Asks the hardware for its state. Never raises: a hang is a state too."""
        hardware = self._core.hardware
        async with hardware.turn:
            try:
                status = await hardware.ask(lambda connection: connection.backend.status(), STATUS_DEADLINE_S)
                if status.available:
                    await hardware.ready(COMMIT_DEADLINE_S)
            except HwsecError as error:
                status = replace(self.status, available=False, state=error.state, detail=str(error))
            self.status = status
        return status

    def _reloaded(self, loaded: Loaded) -> None:
        """Goes by the store as a new connection has read it: an abandoned commit may have been done after all."""
        for repair in loaded.repairs:
            log.warning("%s", repair)
            self._core.audit.record("store.repaired", "ok", text=repair)
        if loaded.generation != self.generation:
            self._core.audit.record("store.reloaded", "ok", generation=loaded.generation, expected=self.generation)
            self.generation = loaded.generation
            self._go_by(loaded.contents, read_record(loaded.contents.sections))
