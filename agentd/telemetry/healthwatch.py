"""Collects the facts that `health` judges."""

from .health import Facts
from .parts import AgentParts


class HealthWatch:
    """Knows the facts of a provisioned agent.

    Args:
        parts: what is watched.
    """

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        self._accepted = 0
        self._refused_before = 0

    def tick(self) -> None:
        """Notes which validations were accepted; called every second."""
        counters = self._parts.core.counters
        accepted = counters.validations - counters.validations_failed
        if accepted != self._accepted:
            self._accepted, self._refused_before = accepted, counters.validations_failed

    def facts(self) -> Facts:
        """What is so now."""
        self.tick()
        parts, core, ring, mode = self._parts, self._parts.core, self._parts.store.ring, self._parts.mode.state
        now, status, cycle, config = core.clock.now(), parts.store.status, parts.cycle, parts.config
        record = None if cycle is None else cycle.record
        usable = [each for each in ring.versions if ring.passes(each, now)]
        return Facts(
            now=now,
            has_server=cycle is not None,
            versions=len(ring.versions),
            usable=len(usable),
            mode=mode.mode,
            held=cycle is not None and cycle.held,
            failures=0 if record is None else record.failures,
            problem="" if record is None else record.problem or "",
            refused="" if record is None else record.refused or "",
            certificate_unknown=record is not None and record.certificate_unknown,
            certificate_ends=None if cycle is None else int(cycle.certificate_ends),
            revocations_stale=parts.validator.revocations.stale(now),
            stale_refused=config.config.agent.stale_revocations == "refuse",
            refused_in_a_row=core.counters.validations_failed - self._refused_before,
            backend="TPM" if status.name == "tpm" else f"{status.name} backend",
            backend_problem="" if status.available else f"{status.state.value}: {status.detail}",
            audit_failing=core.audit.failing,
            clock_suspect=core.clock.suspect(),
            nobody_admitted=not (config.config.pos.allowed_uids or config.config.pos.allowed_gids),
            config_problems=config.problems,
            config_unloaded=config.unloaded,
            needs_restart=config.needs_restart,
            out_of_reach=config.out_of_reach,
            alerts=core.audit.raised_alerts,
        )
