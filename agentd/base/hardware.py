"""Backend, store and vault behind the hardware's own thread. A call that hangs costs its connection: the next gets a new one.

A call into a TPM that hangs cannot be cancelled, and its connection cannot be used or closed by anybody else. So it is
abandoned as a whole (`Line`); whoever comes next opens a new one, and reads the store anew, since the abandoned call may have
done its work after all. An abandoned call that comes back stops at its next step, and closes what it held.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TypeVar

from hwsec.backend import Backend
from hwsec.errors import BackendUnavailable, HardwareReset
from hwsec.owner import HardwareOwner
from hwsec.store import Loaded, SealedStore
from hwsec.vault import Vault

log = logging.getLogger(__name__)

T = TypeVar("T")

MakeStore = Callable[[Backend, Callable[[str], None]], SealedStore]
"""The store of a backend; the second argument is told each step of a commit, and may stop it there."""


class Abandoned(BackendUnavailable):
    """The call hung, was abandoned, and has come back; it goes no further."""


class Line:
    """One connection to the hardware, and what works through it.

    Attributes:
        backend: of this line only.
        store: through this backend.
        opened: the backend is open, and the store's content known.
    """

    def __init__(self, backend: Backend, make_store: MakeStore, *, opened: bool) -> None:
        self.backend = backend
        self.store = make_store(backend, self._step)
        self.opened = opened
        self.abandoned = False

    def _step(self, _name: str) -> None:
        if self.abandoned:
            raise Abandoned("the hardware had stopped answering for too long; the commit was given up")

    def call(self, work: Callable[["Line"], T]) -> T:
        """Runs `work` on the hardware's thread."""
        try:
            return work(self)
        finally:
            if self.abandoned:
                with contextlib.suppress(Exception):
                    self.backend.close()


class Hardware:
    """What touches the hardware. Its methods are called on the event loop.

    Args:
        backend: open.
        make_store: the store of a backend.
        renew: a new backend with the settings of one that is abandoned; None for one that cannot hang.
        vault: where secrets rest in memory.
        owner: the thread.

    Attributes:
        on_reload: told of the store as a new line has found it.
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
        self._line = Line(backend, make_store, opened=True)
        self._owner = owner
        self._opening = asyncio.Lock()
        self.vault = vault
        self.name = backend.name
        self.on_reload: Callable[[Loaded], None] = lambda _loaded: None

    def discard(self) -> None:
        """Closes the line of a start that came too late; on the hardware's thread."""
        self._line.backend.close()
        self.vault.close()

    def abandon(self) -> None:
        """Gives up the present line; to be called by the owner (`on_abandon`) before another thread takes over."""
        if self._renew is None:
            return
        old, self._line = self._line, Line(self._renew(self._line.backend), self._make_store, opened=False)
        old.abandoned = True
        log.error("the connection to the %s is given up; the next call makes a new one", self.name)

    async def ready(self, deadline: float) -> None:
        """Returns when the line is open; after a hang this opens a new one. Raises as `run`."""
        if self._line.opened:
            return
        async with self._opening:
            await self._open_line(deadline)

    async def _open_line(self, deadline: float) -> None:
        if self._line.opened:
            return
        line, loaded = await self._owner.run(lambda: self._line.call(_open), deadline)
        if not line.opened:
            line.opened = True
            self.on_reload(loaded)

    async def run(self, work: Callable[[Line], T], deadline: float) -> T:
        """Runs `work` on the hardware's thread.

        Args:
            work: gets the line; does its work without regard to the event loop.
            deadline: seconds until the caller gives up.

        Raises:
            BackendHung: the hardware does not answer; what `work` would have done may still be done, or not.
            HwsecError: it cannot be opened, or what `work` raised.
        """
        await self.ready(deadline)

        def call() -> T:
            # The line is looked up when the work begins: one that was abandoned meanwhile must not be used.
            line = self._line
            try:
                return line.call(work)
            except HardwareReset:
                if line.abandoned:
                    raise
                # What was refused was not done, and all work here may be begun again: a commit finds out how far it came.
                log.warning("the %s has been reset; asking again over a new connection", self.name)
                return line.call(work)

        return await self._owner.run(call, deadline)

    async def ask(self, work: Callable[[Line], T], deadline: float) -> T:
        """As `run`, for work that needs no open backend."""
        return await self._owner.run(lambda: self._line.call(work), deadline)


def _open(line: Line) -> tuple[Line, Loaded]:
    line.backend.open()
    return line, line.store.load()
