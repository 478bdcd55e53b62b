"""Defines what a test may do with an agent, whether a fake or a real one on a stand."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ..answers import Reason
from ..errors import ErrorCode
from ..posclient.aioclient import AsyncLicenseClient
from ..posclient.client import LicenseClient

DAY_S = 86_400
DEFAULT_FEATURES = ("sales",)
DEFAULT_EXPIRES_IN_S = 30 * DAY_S
MACHINE_REASONS = frozenset({Reason.DEGRADED_EXPIRED, Reason.REVOCATIONS_STALE})
"""Reasons that are about the machine: other licenses get them as well."""


class NotAvailable(RuntimeError):
    """This kind of agent cannot do what the test asks for; the text says which one can."""


class AgentInTest(ABC):
    """An agent that a test may bring into every state that a till can meet.

    Attributes:
        socket: path of its POS socket.
        is_fake: whether it is the fake.
    """

    socket: str
    is_fake: bool

    # Asking

    def client(self, **options: Any) -> LicenseClient:
        """A client of this agent; takes the options of `LicenseClient`."""
        return LicenseClient(self.socket, **options)

    def async_client(self, **options: Any) -> AsyncLicenseClient:
        """A client of this agent for asyncio; takes the options of `AsyncLicenseClient`."""
        return AsyncLicenseClient(self.socket, **options)

    @property
    def env(self) -> dict[str, str]:
        """The environment for a till that is a program of its own."""
        return {**os.environ, "LICENSE_AGENT_SOCKET": self.socket}

    # Tokens

    @abstractmethod
    def token(self, reason: Reason | str = Reason.OK, **license: Any) -> str:
        """A new token that gets this verdict now. `degraded_expired` and `revocations_stale` are about the machine: other
        licenses get them too, until `reset`.

        Args:
            reason: the verdict.
            license: as for `issue`.

        Raises:
            ValueError: there is no such reason.
        """

    @abstractmethod
    def issue(
        self,
        *,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> str:
        """A token of a new license.

        Args:
            features: what is licensed.
            metadata: for the POS application.
            license_id: the license's id; None for a new one.
            begins_in: seconds from now; negative ones have passed.
            expires_in: seconds from now.
        """

    @abstractmethod
    def deliver(
        self,
        *,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> str:
        """A token of a new license that the agent holds by itself: `require` and `licenses` know it.

        Args: as for `issue`.
        """

    # What happens in a shop

    @abstractmethod
    def advance(self, seconds: int) -> None:
        """Lets time pass: the fake's clock moves at once, on a stand it takes as long as it says (a minute at most)."""

    @abstractmethod
    def expire(self, token: str) -> None:
        """Lets time pass until the license of a token has expired."""

    @abstractmethod
    def revoke(self, token: str) -> None:
        """The issuer revokes the license of a token that was issued here."""

    @abstractmethod
    def rotate(self) -> int:
        """A new secret, and re-issued tokens of the licenses that were valid here; returns the secret's version."""

    @abstractmethod
    def invalidate(self, version: int) -> None:
        """An administrator invalidates a secret version."""

    @abstractmethod
    def degrade(self, on: bool = True) -> None:
        """An administrator switches degraded mode on or off."""

    @abstractmethod
    def stop(self) -> None:
        """The agent stops: calls end with `AgentUnavailable` at their deadline."""

    @abstractmethod
    def start(self) -> None:
        """The agent starts again."""

    @abstractmethod
    def reset(self) -> None:
        """Ends every state that is not about one license: the agent runs, its server answers, a secret is in force."""

    # What the fake alone can do

    def refuse(self, code: ErrorCode | None) -> None:
        """Every request is answered with this error from now on, until `refuse(None)`. The fake alone can do it."""
        raise NotAvailable("only the fake refuses at will: use the fixture fake_license_agent")

    def suspend(self, token: str, on: bool = True) -> None:
        """The issuer suspends the license of a token that was issued here, or reinstates it. The fake alone can do it.

        `require` says `suspended` then, and `validate` `revoked`.
        """
        raise NotAvailable("only the fake suspends licenses: use the fixture fake_license_agent")

    def usage(self) -> dict[tuple[str, str], int]:
        """What was counted, by license and meter. The fake alone can do it: an agent tells its server."""
        raise NotAvailable("only the fake says what was counted: use the fixture fake_license_agent")

    def suspect_clock(self, on: bool = True) -> None:
        """Verdicts say that the machine's clock is wrong. The fake alone can do it."""
        raise NotAvailable("only the fake has a clock to doubt: use the fixture fake_license_agent")

    # Life

    @abstractmethod
    def close(self) -> None:
        """Ends it and removes its files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
