"""Answers POS applications on the POS socket. Synchronous and in memory: no disk, no TPM, no network.

Usage counts go into a mapped file, which the kernel writes to the disk later.
"""

import logging
from collections.abc import Callable, Hashable
from typing import Any

from agentd import VERSION
from agentd.audit.core import Core
from agentd.audit.log import actor
from agentd.base.config.config import PosConfig
from agentd.base.counters import SAMPLED
from agentd.licenses.holdings import Holdings
from agentd.licenses.usage import Usage
from agentd.licenses.validator import Entry, Validator
from agentd.licenses.verdict import Ruling
from agentd.sockets.connection import KEPT_OPEN, Connection
from agentd.sockets.unauthorized import UnauthorizedPeers
from common.plain import msgspec_text
from common.tokenbucket import Buckets
from ipc.bounds import NONCE_BYTES, PROTOCOL_VERSION, THROTTLE_S
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.knownframes import KnownFrame, key_of, known_from
from ipc.messages import (
    AgentInfo,
    CountUsage,
    ListLicenses,
    OtaConsent,
    PosRequest,
    RefreshLicense,
    RequestDecoder,
    Require,
    ValidateLicense,
    VerdictReply,
    decode_id,
    encode_error,
    encode_id,
    encode_reply,
    encode_verdict,
    encode_verdict_tail,
)
from ipc.peer import OVERFLOW_ID, Peer
from ipc.replies import refresh_digest

from .machine import MachineLicenses
from .metering import Metering
from .nonces import NonceOutcome, NonceWindow

log = logging.getLogger(__name__)

Consent = Callable[[str, float], dict[str, Any]]
"""Takes an answer, or "", and how many seconds "busy" lasts; returns what `ota_consent` replies."""
NO_UPDATE: dict[str, Any] = {"pending": False, "product": None, "version": None, "notes": None, "not_before": None}
"""The reply to `ota_consent` where no update waits."""
_FRESH = NonceOutcome.FRESH
_SAMPLE_MASK = SAMPLED - 1
KNOWN_TOKENS = 256
"""Licenses whose requests are recognized by their bytes; more than a till has."""


class PosService:
    """Answers POS applications.

    Args:
        config: who may ask, and how much.
        validator: rules on tokens.
        usage: counts usage; None if its file cannot be used.
        consent: takes the shop's word on a waiting update; None where updates are not enabled.

    Attributes:
        holdings: the licenses of the machine, as they are judged.
    """

    name = "pos"

    def __init__(
        self,
        config: PosConfig,
        core: Core,
        validator: Validator,
        usage: Usage | None = None,
        consent: Consent | None = None,
    ) -> None:
        self._validator = validator
        self.holdings = Holdings(validator)
        self._machine = MachineLicenses(core, validator, self.holdings)
        self._metering = Metering(core, self.holdings, usage)
        self._consent = consent
        self._audit = core.audit
        self._clock = core.clock
        self._counters = core.counters
        self._decode = RequestDecoder[PosRequest](PosRequest).decode
        self._nonces = NonceWindow(per_uid=config.nonces_per_uid)
        self._rates = Buckets(config.rate_per_s, config.rate_per_s)
        self._limited: set[int] = set()
        self._known: dict[bytes, tuple[KnownFrame, Entry]] = {}
        self._config = config
        self._unauthorized = UnauthorizedPeers("pos", core.audit, core.counters, core.clock.monotonic)

    def reconfigure(self, config: PosConfig) -> None:
        """Applies a new configuration; nonces stay used."""
        self._config = config
        self._nonces.per_uid = config.nonces_per_uid
        self._rates.rate = self._rates.burst = config.rate_per_s

    def tidy(self) -> None:
        """Frees memory that is no longer needed; called every minute."""
        now = self._clock.monotonic()
        self._nonces.forget_idle(now)
        self._rates.forget_full(now)
        self._metering.tidy(now)
        self._unauthorized.tidy()
        self._counters.rate_limited_users = len(self._limited)
        self._limited.clear()
        epoch = self._validator.ring.epoch
        self._known = {key: known for key, known in self._known.items() if known[1].epoch == epoch}

    # Admission

    def admits(self, peer: Peer) -> bool:
        """Whether UID or primary GID is on the allow-list. The overflow id (65534) is never admitted."""
        if OVERFLOW_ID in (peer.uid, peer.gid):
            return False
        return peer.uid in self._config.allowed_uids or peer.gid in self._config.allowed_gids

    def refused(self, peer: Peer) -> bool:
        """Counts, logs and alerts; returns whether to answer."""
        return self._unauthorized.refused(peer)

    def connection_limit(self) -> int:
        """Connections that one UID may have."""
        return self._config.connections_per_uid

    def connects_per_s(self) -> int:
        """New connections that one UID may make each second: one for each request, if it likes."""
        return self._config.rate_per_s

    def skipped(self, peer: Peer, times: int, *, admitted: bool) -> None:
        """Counts and logs connections beyond that."""
        if not admitted:
            self._unauthorized.skipped(peer, times)
            return
        self._counters.refused_requests += times
        self._counters.rate_limited += times
        self._limited.add(peer.uid)
        self._audit.count(
            ("connects", peer.uid),
            "request.refused",
            ErrorCode.RATE_LIMITED.name.lower(),
            lambda: {"socket": "pos", "actor": actor(peer), "connects": True},
            times,
        )

    def rejected(self, peer: Peer, code: ErrorCode) -> None:
        """Counts and logs an error that ended a connection."""
        self._note_error(peer, code)

    def _note_error(self, peer: Peer, code: ErrorCode) -> None:
        self._counters.refused_requests += 1
        self._audit.record_within_budget(
            peer.uid,
            ("error", peer.uid, code),
            "request.refused",
            code.name.lower(),
            lambda: {"socket": "pos", "actor": actor(peer)},
            important=False,
        )

    # Requests

    def reply_to_known(self, frame: bytes, peer: Peer, mono: float) -> bytes | None:
        """The verdict on a token that came before; None where `handle` must look at it, and nothing has been noted then.

        Makes the same checks as `handle`: the rate, the nonce, the time, and whether the ruling still holds.
        """
        known = self._known.get(key_of(frame))
        if known is None:
            return None
        pattern, entry = known
        number = pattern.id_in(frame)
        if number is None:
            return None
        try:
            validator, clock = self._validator, self._clock
            wall = clock.wall()
            now, suspect = clock.look(mono, wall)
            kept = entry.reply
            if kept is None or kept[0] != (validator.degraded, suspect) or not validator.still_holds(entry, now):
                return None
            if not self._rates.take(peer.uid, mono):
                return None
            nonce = frame[-NONCE_BYTES:]
            outcome = self._nonces.use(peer.uid, nonce, mono)
            if outcome is not _FRESH:
                return self._refuse_nonce(decode_id(number), nonce, peer, outcome)
            self._note(entry, peer, mono, wall)
            return encode_verdict(number, nonce, kept[1])
        except Exception:  # as in `handle`
            log.exception("a request on the POS socket failed")
            return self._failed(peer, decode_id(number))

    def handle(self, body: bytes, connection: Connection) -> bytes | None:
        """The reply frame.

        Raises:
            RemoteProtocolError: the stream cannot go on.
        """
        peer = connection.peer
        try:
            request = self._decode(body)
        except RemoteProtocolError as error:
            if error.code not in KEPT_OPEN:
                raise
            if not self._rates.take(peer.uid, self._clock.monotonic()):
                return self._too_many(connection, error.request_id)
            return self._error(peer, error.code, msgspec_text(error.text), error.request_id)
        mono = self._clock.monotonic()
        if not self._rates.take(peer.uid, mono):
            return self._too_many(connection, request.id)
        try:
            if type(request) is ValidateLicense:
                return self._validate(request, body, peer, mono)
            if isinstance(request, Require | ListLicenses):
                return self._of_the_machine(request, peer, mono)
            if isinstance(request, CountUsage):
                allowed = self._config.licenses.get(peer.uid)
                return self._metering.count(request, peer, self._clock.look(mono, self._clock.wall())[0], mono, allowed)
            return self._answer(request, peer)
        except Exception:  # one request that fails must not end the others; the caller gets INTERNAL
            log.exception("a request on the POS socket failed")
            return self._failed(peer, request.id)

    def _failed(self, peer: Peer, request_id: int) -> bytes:
        return self._error(peer, ErrorCode.INTERNAL, "the agent failed; its journal says more", request_id)

    def _error(self, peer: Peer, code: ErrorCode, text: str, request_id: int | None) -> bytes:
        self._note_error(peer, code)
        return encode_error(code, text, request_id)

    def _too_many(self, connection: Connection, request_id: int | None) -> bytes:
        # What else it sends is not even looked at for a while: a flood must cost others nothing.
        connection.throttle(THROTTLE_S)
        peer = connection.peer
        self._counters.rate_limited += 1
        self._limited.add(peer.uid)
        text = f"more than {self._config.rate_per_s} requests a second"
        return self._error(peer, ErrorCode.RATE_LIMITED, text, request_id)

    def _validate(self, request: ValidateLicense, body: bytes, peer: Peer, mono: float) -> bytes:
        outcome = self._nonces.use(peer.uid, request.nonce, mono)
        if outcome is not _FRESH:
            return self._refuse_nonce(request.id, request.nonce, peer, outcome)
        validator, clock = self._validator, self._clock
        wall = clock.wall()
        now, suspect = clock.look(mono, wall)
        entry = validator.look(request.token, now)
        self._note(entry, peer, mono, wall)
        flags = (validator.degraded, suspect)
        if entry.reply is not None and entry.reply[0] == flags:
            # It came before: it will probably come again.
            if entry.serial:
                self._get_to_know(body, request, entry)
        else:
            entry.reply = (flags, encode_verdict_tail(_reply_of(entry.ruling, flags)))
        return encode_verdict(encode_id(request.id), request.nonce, entry.reply[1])

    def _of_the_machine(self, request: Require | ListLicenses, peer: Peer, mono: float) -> bytes:
        outcome = self._nonces.use(peer.uid, request.nonce, mono)
        if outcome is not _FRESH:
            return self._refuse_nonce(request.id, request.nonce, peer, outcome)
        now, suspect = self._clock.look(mono, self._clock.wall())
        allowed = self._config.licenses.get(peer.uid)
        if isinstance(request, Require):
            return self._machine.require(request, peer, now, suspect, allowed)
        return self._machine.list(request, peer, now, allowed)

    def _note(self, entry: Entry, peer: Peer, mono: float, wall: float) -> None:
        """Logs or counts a verdict."""
        if not entry.serial or not self._audit.count_known(peer.uid, entry.serial << 32 | peer.uid, mono, wall):
            self._log_verdict(peer, entry)
        counters = self._counters
        counters.validations = count = counters.validations + 1
        if not count & _SAMPLE_MASK:
            counters.validation_s.observe(self._clock.monotonic() - mono)
        if not entry.ruling.verdict.valid:
            counters.validations_failed += 1

    def _get_to_know(self, body: bytes, request: ValidateLicense, entry: Entry) -> None:
        """Keeps what the frames of an opened token have in common. The one that came first gives room."""
        key = key_of(body)
        known = self._known.get(key)
        if known is not None and known[1] is entry:
            return
        pattern = known_from(body, request)
        if pattern is None:
            return
        if known is None and len(self._known) >= KNOWN_TOKENS:
            del self._known[next(iter(self._known))]
        self._known[key] = pattern, entry

    # Code that makes closures is in functions of its own: a captured variable slows the whole function down.

    def _refuse_nonce(self, request_id: int, nonce: bytes, peer: Peer, outcome: NonceOutcome) -> bytes:
        if outcome is NonceOutcome.FULL:
            return self._error(peer, ErrorCode.RATE_LIMITED, "too many nonces in this window", request_id)
        self._audit.record_within_budget(
            peer.uid,
            ("replay", peer.uid),
            "license.replayed",
            "nonce_replayed",
            lambda: {"actor": actor(peer), "nonce": nonce.hex()},
            important=True,
        )
        self._counters.refused_requests += 1
        return encode_error(ErrorCode.NONCE_REPLAYED, "this nonce has been used; make a fresh one", request_id)

    def _log_verdict(self, peer: Peer, entry: Entry) -> None:
        ruling, first = entry.ruling, entry.first
        entry.first = False
        # User and ruling in one number: quicker to look up than a pair. What an unopened token says of itself proves nothing,
        # and must not make it another kind.
        reason = ruling.verdict.reason.value
        key: Hashable = entry.serial << 32 | peer.uid if entry.serial else (peer.uid, reason)
        self._audit.record_within_budget(
            peer.uid,
            key,
            "license.validated",
            reason,
            lambda: {"actor": actor(peer), **ruling.audit_fields()},
            important=first or not ruling.verdict.valid,
        )

    def _answer(self, request: PosRequest, peer: Peer) -> bytes:
        head: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": request.id}
        now = self._clock.now()
        if isinstance(request, RefreshLicense):
            found = self._validator.refreshed(request.token, now)
            self._audit.record_within_budget(
                peer.uid,
                ("refresh", peer.uid, found is None),
                "license.refreshed",
                "ok" if found is not None else "none_newer",
                lambda: {"actor": actor(peer)},
                important=False,
            )
            license_id, token = found or (None, None)
            asked = refresh_digest(request.token)
            return encode_reply({**head, "token": token, "license": license_id, "for_token": asked})
        if isinstance(request, AgentInfo):
            return encode_reply(
                {
                    **head,
                    "agent_id": self._validator.agent_id,
                    "agent_version": VERSION,
                    "protocol_versions": [PROTOCOL_VERSION],
                    "degraded": self._validator.degraded,
                    "time": now,
                }
            )
        if isinstance(request, OtaConsent):
            busy_s = request.until - self._clock.wall() if request.answer == "busy" else 0.0
            waiting = NO_UPDATE if self._consent is None else self._consent(request.answer, busy_s)
            if request.answer:
                self._audit.record_within_budget(
                    peer.uid,
                    ("consent", peer.uid, request.answer),
                    "ota.consent",
                    request.answer,
                    lambda: {"actor": actor(peer)},
                    important=False,
                )
            return encode_reply({**head, **waiting})
        return encode_reply(head)


def _reply_of(ruling: Ruling, flags: tuple[bool, bool]) -> VerdictReply:
    verdict = ruling.verdict
    return VerdictReply(
        PROTOCOL_VERSION,
        0,
        bytes(NONCE_BYTES),
        verdict.valid,
        verdict.reason.value,
        verdict.expires_at,
        verdict.features,
        verdict.metadata,
        verdict.secret_state,
        flags[0],
        flags[1],
        verdict.reissue_due,
        verdict.refresh_by,
        verdict.refreshed,
    )
