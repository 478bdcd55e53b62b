"""Keeps what the machine's fleet sets, as the server has signed it, and says what counts together with the machine's own file.

The document is on the disk, so it counts after a restart and without a network. It is verified whenever it is read: one that is
damaged or that another key has signed sets nothing, and raises an alert. The server's next document takes its place.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from agentd.audit.core import Core
from agentd.base.config.config import Config
from agentd.base.config.live import Effective, overlaid
from common.files import os_problem, write_atomic
from contracts.contact.configuration import (
    MAX_CONFIGURATION_CHARS,
    MAX_DETAIL_CHARS,
    MAX_DETAILS,
    Configuration,
    ConfigurationResult,
    Members,
    ResultState,
    UnusableConfiguration,
    verify_configuration,
)
from contracts.directive import MAX_NUMBER_AHEAD
from contracts.jose import BadSignature, MalformedToken
from contracts.trust import Trust

log = logging.getLogger(__name__)

MAX_FILE_BYTES = MAX_CONFIGURATION_CHARS + 256


class KeptDocument(msgspec.Struct, frozen=True):
    """Content of fleet-configuration.json.

    Attributes:
        document: as the server has signed it.
    """

    document: str


class FleetSettings:
    """What the fleet sets on one machine.

    Args:
        path: of fleet-configuration.json.
        trust: whose signatures count now.
        file: the configuration as its file has it.

    Attributes:
        effective: what counts.
        document: the fleet's, as it is in force; None if there is none that can be used.
        problem: why what is on the disk sets nothing; empty if it does, or nothing is there.
    """

    def __init__(self, core: Core, path: Path, trust: Callable[[], Trust], file: Config) -> None:
        self._core = core
        self._path = path
        self._trust = trust
        self._file = file
        self._text = ""
        self._refused: ConfigurationResult | None = None
        self.effective = Effective(file)
        self.document: Configuration | None = None
        self.problem = ""

    # What counts

    def over(self, file: Config) -> Effective:
        """Puts the fleet's settings over another configuration of the file, from now on."""
        self._file = file
        self.effective = overlaid(file, Members() if self.document is None else self.document.members)
        return self.effective

    @property
    def origin(self) -> tuple[str, int] | None:
        """The fleet that sets something here, and the number of its configuration; None without one."""
        if self.document is None or self.document.fleet is None:
            return None
        return self.document.fleet, self.document.fleet_number

    @property
    def known(self) -> int:
        """Number of the document that the server need not send again; 0 if it must."""
        if self._refused is not None:
            return self._refused.number
        if self.document is None or not self._still_signed():
            return 0
        return self.document.number

    def result(self) -> ConfigurationResult | None:
        """What became of the document `known`."""
        if self._refused is not None or not self.known or self.document is None:
            return self._refused
        found = self.effective
        state = ResultState.LIMITED if found.limited else ResultState.APPLIED
        return ConfigurationResult(
            number=self.document.number, state=state, details=found.limited[:MAX_DETAILS], digest=found.digest
        )

    def _still_signed(self) -> bool:
        """Whether the key that has signed the document is one that a restart would accept."""
        try:
            verify_configuration(self._text, self._trust())
        except (MalformedToken, BadSignature):
            return False
        return True

    # The file

    def load(self) -> None:
        """Reads and verifies what is on the disk; called once, at the start."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            self._bad(os_problem(error))
            return
        try:
            if len(data) > MAX_FILE_BYTES:
                raise MalformedToken(f"it has more than {MAX_FILE_BYTES} bytes")
            text = msgspec.json.decode(data, type=KeptDocument).document
            document = verify_configuration(text, self._trust())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._bad("it is not what the agent writes")
        except (MalformedToken, BadSignature) as error:
            self._bad(str(error))
        else:
            if document.agent_id != self._core.agent_id:
                self._bad(f"it is for the agent {document.agent_id}")
                return
            self.document, self._text = document, text
            self.over(self._file)

    def _bad(self, why: str) -> None:
        self.problem = f"{self._path} sets nothing: {why}"[:400]
        log.error("%s; the machine's own file counts until the license server sends it again", self.problem)
        self._core.audit.record("config.fleet", "damaged", text=self.problem)

    # What the server says

    async def take(self, text: str) -> bool:
        """Takes in a document of the server; returns whether there is something to report of it.

        Raises:
            OSError: it cannot be kept; nothing has changed.
        """
        try:
            document = verify_configuration(text, self._trust())
        except UnusableConfiguration as error:
            return self._cannot_use(error)
        except (MalformedToken, BadSignature) as error:
            self._not_taken(f"it is not acceptable: {error}")
            return False
        if document.agent_id != self._core.agent_id:
            self._not_taken(f"it is for the agent {document.agent_id}")
            return False
        if self._far_ahead(document.number):
            return False
        if self.document is not None and document.number < self.document.number:
            self._not_taken(f"its number {document.number} is lower than {self.document.number}, which is in force")
            return False
        # In a thread: it waits for the disk twice, and no validation waits with it.
        await asyncio.to_thread(write_atomic, self._path, msgspec.json.encode(KeptDocument(document=text)))
        self.document, self._text, self._refused, self.problem = document, text, None, ""
        found = self.over(self._file)
        outcome = "removed" if document.fleet is None else "limited" if found.limited else "applied"
        self._core.audit.record(
            "config.fleet", outcome, number=document.number, fleet=document.fleet, fleet_number=document.fleet_number,
            set=sorted(found.set_by_fleet), limited=list(found.limited),
        )  # fmt: skip
        log.info("configuration %d of fleet %s: %s", document.fleet_number, document.fleet, outcome)
        return True

    def _cannot_use(self, error: UnusableConfiguration) -> bool:
        if error.agent_id != self._core.agent_id or error.number <= self.known:
            self._not_taken(str(error))
            return False
        if self._far_ahead(error.number):
            return False
        self._refused = ConfigurationResult(
            number=error.number, state=ResultState.REFUSED, details=(str(error)[:MAX_DETAIL_CHARS],), digest=None
        )
        self._not_taken(str(error), error.number)
        return True

    def _far_ahead(self, number: int) -> bool:
        """Whether no server can have come to a number by now; after it, no other document would ever count here."""
        far = number > self._core.clock.now() + MAX_NUMBER_AHEAD
        if far:
            self._not_taken(f"its number {number} is decades ahead of the time")
        return far

    def _not_taken(self, why: str, number: int = 0) -> None:
        log.warning("the fleet's configuration is not taken: %s; what was in force stays so", why)
        self._core.audit.record("config.fleet", "refused", number=number, text=why[:300])
