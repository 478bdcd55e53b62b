"""Runs all work on backend and store on the hardware's own thread, and replaces a connection whose call hangs.

A call into a TPM that hangs cannot be cancelled, and no other thread may use or close its connection. So the whole
`HardwareConnection` is abandoned. The next caller opens a new one and reads the store again, since the abandoned call may have
finished its work after all. An abandoned call that returns stops at its next step and closes what it held.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TypeVar

from hwsec.backend import Backend
from hwsec.errors import BackendUnavailable, HwsecError
from hwsec.owner import HardwareOwner
from hwsec.store import Loaded, SealedStore
from hwsec.vault import Vault

from .clock.timeanchor import Reading

log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_DEADLINE_S = 20.0
"""How long work on the hardware may take before its connection is abandoned."""

MakeStore = Callable[[Backend, Callable[[str], None]], SealedStore]
"""Makes the store of a backend; the second argument is called after each step of a commit and may stop it there."""


class Abandoned(BackendUnavailable):
    """An abandoned call has returned; it goes no further."""


class HardwareConnection:
    """One connection to the hardware, with the store that works through it.

    Attributes:
        backend: used through this connection only.
        store: works through this backend.
        opened: the backend is open and the store was read.
    """

    def __init__(self, backend: Backend, make_store: MakeStore, *, opened: bool) -> None:
        self.backend = backend
        self.store = make_store(backend, self._step)
        self.opened = opened
        self.abandoned = False

    def _step(self, _name: str) -> None:
        if self.abandoned:
            raise Abandoned("the hardware did not answer in time; the commit was abandoned")

    def call(self, work: Callable[["HardwareConnection"], T]) -> T:
        """Runs `work` on the hardware's thread."""
        try:
            return work(self)
        finally:
            if self.abandoned:
                with contextlib.suppress(Exception):  # the caller gets what `work` made of the broken connection, not this
                    self.backend.close()


class Hardware:
    """Gives the event loop access to the hardware.

    Args:
        backend: open.
        renew: makes a backend with the settings of one that is abandoned; None for a backend that cannot hang.
        owner: the thread.

    Attributes:
        turn: held for a sequence of calls that belong together, a commit or a checkpoint.
        on_reload: called with the store as a new connection has read it.
    """

    def __init__(
        self,
        backend: Backend,
        make_store: MakeStore,
        renew: Callable[[Backend], Backend] | None,
        vault: Vault,
        owner: HardwareOwner,
    ) -> None:
        self._make_store = make_store
        self._renew = renew
        self._connection = HardwareConnection(backend, make_store, opened=True)
        self._owner = owner
        self._opening = asyncio.Lock()
        self.turn = asyncio.Lock()
        self.vault = vault
        self.name = backend.name
        self.on_reload: Callable[[Loaded], None] = lambda _loaded: None

    def discard(self) -> None:
        """Closes the connection of a start that came too late. Runs on the hardware's thread."""
        self._connection.backend.close()
        self.vault.close()

    def abandon(self) -> None:
        """Abandons the present connection; the owner calls this (`on_abandon`) before it starts another thread."""
        if self._renew is None:
            return
        old, self._connection = (
            self._connection,
            HardwareConnection(self._renew(self._connection.backend), self._make_store, opened=False),
        )
        old.abandoned = True
        log.error("the connection to the %s is abandoned; the next call opens a new one", self.name)

    async def ready(self, deadline: float) -> None:
        """Returns when the connection is open; after a hang this opens a new one. Raises as `run`."""
        if self._connection.opened:
            return
        async with self._opening:
            await self._open_connection(deadline)

    async def _open_connection(self, deadline: float) -> None:
        if self._connection.opened:
            return
        connection, loaded = await self._owner.run(lambda: self._connection.call(_open), deadline)
        if not connection.opened:
            connection.opened = True
            self.on_reload(loaded)

    async def run(self, work: Callable[[HardwareConnection], T], deadline: float) -> T:
        """Runs `work` on the hardware's thread. The backend repeats by itself what a reset or a disturbed bus has cut.

        Args:
            work: is called with the connection, on the hardware's thread.
            deadline: seconds until the connection is abandoned.

        Raises:
            BackendHung: the hardware does not answer; the work may still be done, or not.
            HwsecError: it cannot be opened, or what `work` raised.
        """
        await self.ready(deadline)

        # The connection is looked up when the work begins: one that was abandoned meanwhile must not be used.
        return await self._owner.run(lambda: self._connection.call(work), deadline)

    async def ask(self, work: Callable[[HardwareConnection], T], deadline: float) -> T:
        """As `run`, for work that needs no open backend."""
        return await self._owner.run(lambda: self._connection.call(work), deadline)


def _open(connection: HardwareConnection) -> tuple[HardwareConnection, Loaded]:
    connection.backend.open()
    return connection, connection.store.load()


def read_counters(backend: Backend, boot: Callable[[], Reading]) -> tuple[Reading, Reading | None]:
    """CLOCK_BOOTTIME as `boot` reads it, and the TPM's clock where there is a TPM that answers."""
    tpm = None
    if backend.name == "tpm":
        try:
            clock = backend.clock()
        except HwsecError as error:
            log.warning("the TPM's clock cannot be read: %s", error)
        else:
            tpm = Reading(clock.milliseconds, clock.reset_count)
    return boot(), tpm
