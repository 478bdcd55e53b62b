"""Answers the requests of the POS socket from a model. Performs no IO.

Nonces, rates and errors are those of the agent (`docs/protocol.md`). Left out are the limits on new connections a second
and the timeouts of idle connections and unfinished frames.
"""

from collections.abc import Callable
from typing import Any

import msgpack

from ..bounds import (
    DEFAULT_RATE_PER_S,
    LICENSES_PER_PAGE,
    MAX_FRAME_BYTES,
    NONCE_WINDOW_S,
    NONCES_PER_UID,
    PROTOCOL_VERSION,
)
from ..clientwire import FAKE_FIELD
from ..errors import ErrorCode, RemoteProtocolError
from ..frames import encode_frame
from ..posclient.version import __version__
from ..replies import refresh_digest
from .model import AGENT_ID, Model
from .requests import Request, read_request

AGENT_VERSION = f"fake of license-agent-client {__version__}: licenses nothing"
KEPT_OPEN = frozenset({ErrorCode.UNSUPPORTED_VERSION, ErrorCode.UNKNOWN_OP, ErrorCode.BAD_REQUEST})


def encode(message: dict[str, Any]) -> bytes:
    """The frame of a reply, which says that a fake sent it."""
    return encode_frame(msgpack.packb({**message, FAKE_FIELD: True}, use_bin_type=True))


def encode_error(code: ErrorCode, text: str, request_id: int | None) -> bytes:
    """The frame of an error reply."""
    return encode({"v": PROTOCOL_VERSION, "id": request_id, "error": {"code": int(code), "text": text[:500]}})


class Service:
    """Answers requests; all callers are one user.

    Args:
        model: decides verdicts.
        monotonic: seconds that never go back: nonces and rates go by it.
        rate_per_s: requests a second, and the burst.

    Attributes:
        refusal: the code that every request is answered with; None for proper replies.
    """

    def __init__(self, model: Model, monotonic: Callable[[], float], rate_per_s: int = DEFAULT_RATE_PER_S) -> None:
        self.model = model
        self.refusal: ErrorCode | None = None
        self._monotonic = monotonic
        self._rate = rate_per_s
        self._left, self._counted_at = float(rate_per_s), monotonic()
        self._nonces: tuple[set[bytes], set[bytes]] = (set(), set())
        self._window_began = monotonic()

    def answer(self, body: bytes) -> bytes:
        """The reply frame.

        Raises:
            RemoteProtocolError: the stream cannot go on.
        """
        try:
            request = read_request(body)
        except RemoteProtocolError as error:
            if error.code not in KEPT_OPEN:
                raise
            return self._limited(error.request_id) or encode_error(error.code, error.text, error.request_id)
        limited = self._limited(request.request_id)
        if limited is not None:
            return limited
        if self.refusal is not None:
            return encode_error(self.refusal, f"this fake was asked to answer {self.refusal.name}", request.request_id)
        return self._reply(request)

    def _limited(self, request_id: int | None) -> bytes | None:
        now = self._monotonic()
        self._left = min(float(self._rate), self._left + (now - self._counted_at) * self._rate)
        self._counted_at = now
        if self._left < 1:
            return encode_error(ErrorCode.RATE_LIMITED, f"more than {self._rate} requests a second", request_id)
        self._left -= 1
        return None

    def _reply(self, request: Request) -> bytes:
        head: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": request.request_id}
        if "nonce" in request.fields:
            problem = self._use(request.fields["nonce"])
            if problem is not None:
                code, text = problem
                return encode_error(code, text, request.request_id)
            head["nonce"] = request.fields["nonce"]
        if request.op == "validate_license":
            return self._validate(request, head)
        if request.op == "require":
            return self._require(request, head)
        if request.op == "licenses":
            return self._list(request, head)
        if request.op == "count_usage":
            return self._count(request, head)
        if request.op == "refresh_license":
            token = request.fields["token"]
            license_id, newer = self.model.refreshed(token) or (None, None)
            return encode({**head, "token": newer, "license": license_id, "for_token": refresh_digest(token)})
        if request.op == "ota_consent":
            # The fake installs nothing.
            return encode({**head, "pending": False, "product": None, "version": None, "notes": None, "not_before": None})
        if request.op == "agent_info":
            info = {"agent_id": AGENT_ID, "agent_version": AGENT_VERSION, "protocol_versions": [PROTOCOL_VERSION]}
            return encode({**head, **info, "degraded": self.model.degraded, "time": self.model.now})
        return encode(head)

    def _validate(self, request: Request, head: dict[str, Any]) -> bytes:
        verdict = self.model.verdict(request.fields["token"])
        return encode(
            {
                **head,
                "valid": verdict.valid,
                "reason": verdict.reason.value,
                "expires_at": verdict.expires_at,
                "features": list(verdict.features),
                "metadata": verdict.metadata,
                "secret_state": verdict.secret_state,
                "degraded": verdict.degraded,
                "clock_suspect": verdict.clock_suspect,
                "reissue_due": verdict.reissue_due,
                "refresh_by": verdict.refresh_by,
                "refreshed": verdict.refreshed,
            }
        )

    def _require(self, request: Request, head: dict[str, Any]) -> bytes:
        verdict = self.model.require(request.fields["feature"], request.fields["product"])
        return encode(
            {
                **head,
                "valid": verdict.valid,
                "reason": str(verdict.reason),
                "license": verdict.license_id,
                "product": verdict.product,
                "expires_at": verdict.expires_at,
                "features": list(verdict.features),
                "metadata": verdict.metadata,
                "secret_state": verdict.secret_state,
                "degraded": verdict.degraded,
                "clock_suspect": verdict.clock_suspect,
            }
        )

    def _count(self, request: Request, head: dict[str, Any]) -> bytes:
        fields = request.fields
        found = self.model.count(fields["meter"], fields["amount"], fields["count_id"])
        if found is None:
            text = "the id of this count was used for another meter or amount; make a new one"
            return encode_error(ErrorCode.REFUSED, text, request.request_id)
        return encode(
            {
                **head,
                "count_id": found.count_id,
                "counted": found.counted,
                "repeated": found.repeated,
                "reason": str(found.reason),
                "license": found.license_id,
            }
        )

    def _list(self, request: Request, head: dict[str, Any]) -> bytes:
        entries: list[dict[str, Any]] = []
        following = None
        room = MAX_FRAME_BYTES - 1024
        for held in self.model.licenses(request.fields["after"]):
            entry = {
                "license": held.license_id,
                "valid": held.valid,
                "reason": str(held.reason),
                "begins_at": held.begins_at,
                "expires_at": held.expires_at,
                "product": held.product,
                "features": list(held.features) if held.valid else [],
                "metadata": held.metadata if held.valid and request.fields["metadata"] else {},
            }
            room -= len(msgpack.packb(entry, use_bin_type=True))
            if len(entries) == LICENSES_PER_PAGE or (entries and room < 0):
                following = entries[-1]["license"]
                break
            entries.append(entry)
        return encode({**head, "licenses": entries, "next": following})

    def _use(self, nonce: bytes) -> tuple[ErrorCode, str] | None:
        """Uses a nonce: it stays used for one window at least, two at most."""
        passed = self._monotonic() - self._window_began
        if passed >= NONCE_WINDOW_S:
            self._nonces = (set(), self._nonces[0] if passed < 2 * NONCE_WINDOW_S else set())
            self._window_began = self._monotonic()
        current, previous = self._nonces
        if nonce in current or nonce in previous:
            return ErrorCode.NONCE_REPLAYED, "this nonce has been used; make a fresh one"
        if len(current) >= NONCES_PER_UID:
            return ErrorCode.RATE_LIMITED, "too many nonces in this window"
        current.add(nonce)
        return None

    def restarted(self) -> None:
        """Forgets what an agent forgets when it starts again."""
        self._nonces = (set(), set())
