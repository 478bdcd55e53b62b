"""Answers the questions about the licenses that this machine holds: `require` and `licenses`. In memory only.

The caller has checked the rate and used the nonce.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from agentd.audit.core import Core
from agentd.audit.log import actor
from agentd.licenses.choice import Held, page
from agentd.licenses.holdings import Holdings
from agentd.licenses.inventory import MAX_LICENSES
from agentd.licenses.validator import Validator
from ipc.answers import LicenseReason
from ipc.bounds import LICENSES_PER_PAGE, MAX_FRAME_BYTES, PROTOCOL_VERSION
from ipc.messages import ListLicenses, Require, encode_reply
from ipc.peer import Peer

_PAGE_HEAD_BYTES = 1024
"""More than a page takes besides its licenses: ids in its head and nonce."""
_encode = msgspec.msgpack.Encoder().encode


class MachineLicenses:
    """Answers for the licenses of this machine.

    Args:
        core: whose log and counters.
        validator: judges their tokens.
        holdings: the licenses.
    """

    def __init__(self, core: Core, validator: Validator, holdings: Holdings) -> None:
        self._audit = core.audit
        self._counters = core.counters
        self._validator = validator
        self._holdings = holdings
        self._logged: set[str] = set()

    def require(self, request: Require, peer: Peer, now: int, suspect: bool, allowed: Collection[str] | None) -> bytes:
        """The reply frame to `require`.

        Args:
            request: the question.
            peer: who asks.
            now: seconds since 1970 UTC.
            suspect: the clock shows a time that is certainly over.
            allowed: the products that the peer may know of; None for all licenses.
        """
        held = self._holdings.at(now).choose(request.feature, request.product, allowed)
        reason = LicenseReason.NO_LICENSE if held is None else held.reason
        valid = reason is LicenseReason.OK
        if held is not None and valid:
            self._validator.seats.use(held.license_id, now)
        elif held is not None and reason is LicenseReason.NO_SEAT:
            self._validator.seats.want(held.license_id, now)
        self._log(request, peer, held, reason)
        known = held if held is not None and held.opened else None
        return encode_reply(
            {
                "v": PROTOCOL_VERSION,
                "id": request.id,
                "nonce": request.nonce,
                "valid": valid,
                "reason": reason.value,
                "license": None if known is None else known.license_id,
                "product": None if known is None else known.product,
                "expires_at": None if known is None else known.expires_at,
                "features": known.features if valid and known is not None else (),
                "metadata": known.metadata if valid and known is not None else {},
                "secret_state": None if held is None else held.secret_state,
                "degraded": self._validator.degraded,
                "clock_suspect": suspect,
            }
        )

    def _log(self, request: Require, peer: Peer, held: Held | None, reason: LicenseReason) -> None:
        """Logs or counts a verdict, as that on a token. To have no license for a feature is not a refusal of one."""
        license_id = None if held is None else held.license_id
        first = license_id is not None and license_id not in self._logged
        if held is not None:
            if len(self._logged) >= MAX_LICENSES:
                self._logged.clear()
            self._logged.add(held.license_id)
            self._counters.validations += 1
            self._counters.validations_failed += reason is not LicenseReason.OK
        # The feature is not part of what counts as the same: a caller can ask for any.
        self._audit.record_within_budget(
            peer.uid,
            ("require", peer.uid, license_id, reason),
            "license.validated",
            reason.value,
            lambda: {
                "actor": actor(peer),
                "feature": request.feature,
                "product": request.product,
                "license": license_id,
                "secret_version": None if held is None else held.secret_version,
                "secret_state": None if held is None else held.secret_state,
                "expires_at": None if held is None else held.expires_at,
            },
            important=first or (held is not None and reason is not LicenseReason.OK),
        )

    def list(self, request: ListLicenses, peer: Peer, now: int, allowed: Collection[str] | None) -> bytes:
        """The reply frame to `licenses`; arguments as for `require`."""
        self._audit.record_within_budget(
            peer.uid,
            ("licenses", peer.uid),
            "license.listed",
            "ok",
            lambda: {"actor": actor(peer)},
            important=False,
        )
        entries: dict[str, dict[str, Any]] = {}

        def size_of(held: Held) -> int:
            entry = entries[held.license_id] = _entry(held, metadata=request.metadata)
            return len(_encode(entry))

        found, more = page(
            self._holdings.at(now).after(request.after, allowed), size_of, LICENSES_PER_PAGE, MAX_FRAME_BYTES - _PAGE_HEAD_BYTES
        )
        return encode_reply(
            {
                "v": PROTOCOL_VERSION,
                "id": request.id,
                "nonce": request.nonce,
                "licenses": [entries[held.license_id] for held in found],
                "next": found[-1].license_id if more else None,
            }
        )


def _entry(held: Held, *, metadata: bool) -> dict[str, Any]:
    return {
        "license": held.license_id,
        "valid": held.valid,
        "reason": held.reason.value,
        "begins_at": held.begins_at,
        "expires_at": held.expires_at,
        "product": held.product,
        "features": held.features if held.valid else (),
        "metadata": held.metadata if held.valid and metadata else {},
    }
