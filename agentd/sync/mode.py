"""Moves the agent between the modes of `degraded`, and logs each move. What it keeps over restarts is in `Kept`."""

import logging
from dataclasses import dataclass, replace

from agentd.audit.core import Core
from agentd.base.config.config import AgentConfig
from agentd.licenses.validator import Validator

from .cycle import ContactCycle
from .degraded import Degraded, Mode, Outlook, moved

log = logging.getLogger(__name__)

_EVENTS = {Mode.ONLINE: "degraded.left", Mode.DEGRADED: "degraded.entered", Mode.EXPIRED: "degraded.expired"}
_TEXTS = {
    Mode.ONLINE: "left",
    Mode.DEGRADED: "entered: a new secret is overdue, or an administrator switched it on",
    Mode.EXPIRED: "has reached its end: grace is over, licenses are refused",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """What only the state file keeps over restarts. Times are seconds since 1970 UTC."""

    last_server_contact: int | None = None
    degraded_since: int | None = None
    degraded_held: bool = False


class ModeKeeper:
    """Knows the agent's mode.

    Args:
        validator: its verdicts say whether the agent is degraded.
        cycle: None for an agent whose secrets are carried by hand.
        kept: from the state file.
        config: how many contacts must fail in a row, and whether an administrator may switch degraded mode on.

    Attributes:
        kept: for the state file.
        state: the mode now.
    """

    def __init__(self, core: Core, validator: Validator, cycle: ContactCycle | None, kept: Kept, config: AgentConfig) -> None:
        self._core = core
        self._validator = validator
        self._cycle = cycle
        self._ticked = core.clock.monotonic()
        self.kept = kept
        self.state = Degraded(since=None, held=kept.degraded_held)
        self._config = config
        if cycle is not None:
            cycle.held = kept.degraded_held

    def reconfigure(self, config: AgentConfig) -> None:
        """Applies a new configuration."""
        self._config = config

    @property
    def switch_allowed(self) -> bool:
        """Whether the configuration lets an administrator switch degraded mode on."""
        return self._config.degraded_switch == "allowed"

    def heard(self) -> None:
        """Notes that a signed word of the server has reached this machine."""
        self.kept = replace(self.kept, last_server_contact=self._core.clock.now())

    def hold(self, on: bool) -> None:
        """Switches degraded mode on or off for an administrator."""
        if self._cycle is not None:
            self._cycle.held = on
        self.update(self._core.clock.now())

    def update(self, now: int) -> None:
        """Works out the mode and logs a change; called every second."""
        core, cycle, ring = self._core, self._cycle, self._validator.ring
        was, mono = self.state, core.clock.monotonic()
        if was.mode is not Mode.ONLINE:
            core.counters.degraded_s += mono - self._ticked
        self._ticked = mono
        outlook = Outlook(
            has_server=cycle is not None,
            failures=0 if cycle is None else cycle.record.failures,
            due=ring.overdue(now),
            ended=ring.ended(now),
            held=cycle is not None and cycle.held,
        )
        if was.mode is Mode.ONLINE and self.kept.degraded_since is not None:
            # It was degraded when it stopped: if it is again, it has been so since then.
            was = replace(was, since=self.kept.degraded_since)
        mode = moved(was, outlook, now, self._config.degraded_after)
        self._validator.degraded = mode.mode is not Mode.ONLINE
        if mode.mode is not self.state.mode:
            self._log(self.state, mode, now)
        first = self.state.mode is Mode.ONLINE and mode.mode is Mode.ONLINE
        self.state = mode
        since = self.kept.degraded_since if first and not self._settled(outlook) else mode.since
        self.kept = replace(self.kept, degraded_since=since, degraded_held=mode.held)

    def _settled(self, outlook: Outlook) -> bool:
        """Whether the agent knows how the server is: before the first contact after a start it does not."""
        return self._cycle is None or not outlook.due or self._cycle.record.last is not None

    def _log(self, was: Degraded, mode: Degraded, now: int) -> None:
        since = mode.since or was.since
        spent = None if since is None or mode.mode is Mode.DEGRADED else now - since
        log.warning("degraded mode %s", _TEXTS[mode.mode])
        self._core.audit.record(_EVENTS[mode.mode], "ok", seconds=spent, held=mode.held)
