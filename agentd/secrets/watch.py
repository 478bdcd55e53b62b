"""Logs the changes of state that only time brings about: ACTIVE to GRACE, GRACE to INVALIDATED."""

from agentd.audit.core import Core

from .ring import SecretRing


class StateWatch:
    """Remembers the state that each version was last seen in."""

    def __init__(self, core: Core, ring: SecretRing) -> None:
        self._core = core
        self._ring = ring
        self._states: dict[int, str] = {}

    def update(self, now: int) -> None:
        """Logs what has changed since the last call; called every second."""
        for stored in self._ring.versions:
            version, state = stored.meta.version, self._ring.state_of(stored, now).value
            before = self._states.get(version)
            self._states[version] = state
            if before is not None and before != state:
                self._core.audit.record("secret.state_changed", "ok", secret_version=version, was=before, state=state)
