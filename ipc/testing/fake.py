"""The fake agent for tests: a thread of this process that speaks the protocol of the POS socket and makes its verdicts up."""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..answers import Reason
from ..bounds import DEFAULT_RATE_PER_S
from ..errors import ErrorCode
from ..posclient.trust import DEFAULT_POS_SOCKET
from .base import DEFAULT_EXPIRES_IN_S, DEFAULT_FEATURES, AgentInTest
from .model import AGENT_ID, OTHER_AGENT_ID, License, Model, new_license
from .server import Server
from .service import Service

log = logging.getLogger("license_agent_client")


class FakeLicenseAgent(AgentInTest):
    """A fake agent, in this process, on a real Unix socket; clients in any language can ask it.

    Its clock is at `now` and moves by `advance` only.

    Args:
        directory: takes the socket `pos.sock`; it belongs to this user, and nobody else may write to it. None for a new one,
            which `close` removes.
        now: seconds since 1970 UTC; None for the present second.
        monotonic: seconds that never go back; rates and nonces go by it.
        rate_per_s: requests a second that it answers, as `[pos] rate_per_s` of an agent.

    Raises:
        ValueError: the directory is the real agent's.
        OSError: the socket cannot be made there.
    """

    is_fake = True

    def __init__(
        self,
        directory: Path | None = None,
        *,
        now: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        rate_per_s: int = DEFAULT_RATE_PER_S,
    ) -> None:
        self._own = directory is None
        place = Path(tempfile.mkdtemp(prefix="fake-agent-")) if directory is None else directory
        if place.resolve() == Path(DEFAULT_POS_SOCKET).parent.resolve():
            raise ValueError(f"{place} belongs to the real agent: a fake is for tests only")
        self._directory = place
        self.socket = str(place / "pos.sock")
        self._lock = threading.RLock()
        self._moved = 0
        self._licenses = 0
        self._model = Model(int(time.time()) if now is None else now)
        self._service = Service(self._model, lambda: monotonic() + self._moved, rate_per_s)
        try:
            self._server = Server(Path(self.socket), self._answer)
        except OSError:
            if self._own:
                shutil.rmtree(place)
            raise
        log.warning("a fake of the license agent answers at %s: it is for tests only, and licenses nothing", self.socket)
        self._server.start()

    def _answer(self, body: bytes) -> bytes:
        with self._lock:
            return self._service.answer(body)

    @property
    def now(self) -> int:
        """Its clock: seconds since 1970 UTC."""
        return self._model.now

    @property
    def agent_id(self) -> str:
        """Its id, which no real agent can have."""
        return AGENT_ID

    # Tokens

    def token(self, reason: Reason | str = Reason.OK, **license: Any) -> str:
        wanted = Reason(reason)
        with self._lock:
            self.reset()
            return self._ACTS[wanted](self, license)

    def issue(
        self,
        *,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> str:
        with self._lock:
            return self._model.issue(self._license(features, metadata, license_id, begins_in, expires_in))

    def deliver(
        self,
        *,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> str:
        with self._lock:
            return self._model.deliver(self._license(features, metadata, license_id, begins_in, expires_in))

    def _license(
        self,
        features: tuple[str, ...] = DEFAULT_FEATURES,
        metadata: Mapping[str, str] | None = None,
        license_id: str | None = None,
        begins_in: int = 0,
        expires_in: int = DEFAULT_EXPIRES_IN_S,
    ) -> License:
        self._licenses += 1
        made = new_license(self._licenses, self.now, tuple(features), metadata or {}, begins_in, expires_in)
        if license_id is None:
            return made
        return License(license_id, made.features, made.metadata, made.begins, made.expires)

    def _expired(self, license: dict[str, Any]) -> str:
        return self.issue(**{"begins_in": -2 * 86_400, "expires_in": -86_400, **license})

    def _not_yet_valid(self, license: dict[str, Any]) -> str:
        return self.issue(**{"begins_in": 86_400, **license})

    def _malformed(self, license: dict[str, Any]) -> str:
        return self.issue(**license).rpartition(".")[0]

    def _unknown_secret(self, license: dict[str, Any]) -> str:
        token = self._model.issue(self._license(**license), version=self._model.skip_version())
        self._model.rotate()
        return token

    def _secret_invalidated(self, license: dict[str, Any]) -> str:
        version = self._model.rotate()
        token = self.issue(**license)
        self._model.rotate()
        self._model.invalidate(version)
        return token

    def _bad_signature(self, license: dict[str, Any]) -> str:
        start, _, end = self.issue(**license).rpartition(".")
        return f"{start}x.{end}"

    def _wrong_audience(self, license: dict[str, Any]) -> str:
        return self._model.issue(self._license(**license), OTHER_AGENT_ID)

    def _revoked(self, license: dict[str, Any]) -> str:
        token = self.issue(**license)
        self.revoke(token)
        return token

    def _degraded_expired(self, license: dict[str, Any]) -> str:
        self._model.server_answers = False
        self._model.rotate(interval=1, grace=0, reissue=False)
        token = self.issue(**license)
        self.advance(1)
        return token

    def _revocations_stale(self, license: dict[str, Any]) -> str:
        token = self.issue(**license)
        self._model.server_answers = False
        self._model.refuse_stale = True
        self._model.lists_until = self.now + 1
        self.advance(1)
        return token

    _ACTS: Mapping[Reason, Callable[["FakeLicenseAgent", dict[str, Any]], str]] = {
        Reason.OK: lambda self, license: self.issue(**license),
        Reason.EXPIRED: _expired,
        Reason.NOT_YET_VALID: _not_yet_valid,
        Reason.MALFORMED: _malformed,
        Reason.UNKNOWN_SECRET: _unknown_secret,
        Reason.SECRET_INVALIDATED: _secret_invalidated,
        Reason.BAD_SIGNATURE: _bad_signature,
        Reason.WRONG_AUDIENCE: _wrong_audience,
        Reason.REVOKED: _revoked,
        Reason.DEGRADED_EXPIRED: _degraded_expired,
        Reason.REVOCATIONS_STALE: _revocations_stale,
    }

    # What happens in a shop

    def advance(self, seconds: int) -> None:
        with self._lock:
            self._model.advance(seconds)
            self._moved += seconds

    def expire(self, token: str) -> None:
        with self._lock:
            self.advance(max(0, self._known(token).expires - self.now))

    def revoke(self, token: str) -> None:
        with self._lock:
            self._model.revoke(self._known(token).license_id)

    def suspend(self, token: str, on: bool = True) -> None:
        with self._lock:
            self._model.suspend(self._known(token).license_id, on)

    def _known(self, token: str) -> License:
        try:
            return self._model.license_of(token)
        except KeyError:
            raise ValueError("this fake has not issued that token") from None

    def rotate(self) -> int:
        with self._lock:
            return self._model.rotate()

    def invalidate(self, version: int) -> None:
        with self._lock:
            if version not in self._model.secrets:
                raise ValueError(f"there is no secret version {version}")
            self._model.invalidate(version)

    def degrade(self, on: bool = True) -> None:
        with self._lock:
            self._model.held_degraded = on

    def cut_off(self, on: bool = True) -> None:
        """The license server is out of reach, or back. With `advance`, that is how a secret ends without a successor."""
        with self._lock:
            self._model.server_answers = not on
            if not on:
                self._model.catch_up()

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        if not self._server.running:
            self._service.restarted()
            self._server.start()

    def reset(self) -> None:
        with self._lock:
            model = self._model
            model.server_answers, model.held_degraded, model.refuse_stale, model.clock_suspect = True, False, False, False
            self._service.refusal = None
            model.catch_up()
        self.start()

    def refuse(self, code: ErrorCode | None) -> None:
        with self._lock:
            self._service.refusal = code

    def usage(self) -> dict[tuple[str, str], int]:
        with self._lock:
            return dict(self._model.usage)

    def suspect_clock(self, on: bool = True) -> None:
        with self._lock:
            self._model.clock_suspect = on

    def close(self) -> None:
        self._server.close()
        if self._own:
            shutil.rmtree(self._directory, ignore_errors=True)
        else:
            Path(self.socket).unlink(missing_ok=True)
