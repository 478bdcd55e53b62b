"""Reads what an authentic request says: the checks of its content, and its report on the agent. Pure."""

from collections.abc import Callable
from typing import Any

from contracts import exchange as forms
from contracts.contact.capabilities import AnnounceCapabilities
from contracts.contact.configuration import ConfigurationRequest
from contracts.contact.licensesync import SyncLicenses
from contracts.contact.seats import LeaseSeats
from contracts.contact.updates import UpdatesRequest
from contracts.contact.usage import ReportUsage
from contracts.exchange import RefusalCode, Request, convert, purpose_of
from contracts.jose import MalformedToken
from server.agents.clones import Report
from server.base.refused import RequestRefused

from .challenges import is_fresh, made_when

CONTACT_S = 3600
"""How often an agent asks for news; a tenth more or less each time, so that agents do not fall into step."""

KINDS: dict[str, type[Request]] = {
    purpose_of(kind): kind
    for kind in (
        forms.RotateSecret,
        forms.ConfirmRotation,
        forms.SecretStatus,
        forms.ReissueLicenses,
        forms.ValidateLicense,
        forms.RevocationList,
        forms.RenewCertificate,
        AnnounceCapabilities,
        SyncLicenses,
        LeaseSeats,
        ReportUsage,
        UpdatesRequest,
        ConfigurationRequest,
    )
}
"""Every kind of request, by its purpose."""


def misdirected(content: dict[str, Any], purpose: str) -> bool:
    """Whether a request of a form beyond release 0.1.0 has come to another endpoint than its own.

    A signed `bad_request` would tell the agent that the server does not know the form, and who carries the request could bring
    that about. So such a request gets an error, which is not signed (threat-model T36).
    """
    return "license_number" in content and content.get("purpose") != purpose


class Reader:
    """Reads requests.

    Args:
        challenge_key: returns the HMAC key of challenges.
    """

    def __init__(self, challenge_key: Callable[[], bytes]) -> None:
        self._challenge_key = challenge_key

    def read(self, content: dict[str, Any], purpose: str, agent_id: str, fingerprint: str, now: int) -> Request:
        """The request that a signed text contains.

        Args:
            content: of the signed text.
            purpose: of the endpoint.
            agent_id: the agent that has signed it.
            fingerprint: of its client certificate.
            now: seconds since 1970 UTC.

        Raises:
            RequestRefused: it is for another agent or endpoint, not of our form, or answers no fresh challenge.
        """
        version = content.get("v")
        if version != forms.EXCHANGE_VERSION or isinstance(version, bool):
            raise RequestRefused(
                RefusalCode.UNSUPPORTED_VERSION, f"this server speaks version {forms.EXCHANGE_VERSION} of the protocol only"
            )
        if content.get("agent_id") != agent_id:
            raise RequestRefused(RefusalCode.BAD_REQUEST, "agent_id is another agent's")
        if content.get("purpose") != purpose:
            raise RequestRefused(RefusalCode.BAD_REQUEST, "purpose is that of another endpoint")
        try:
            request: Request = convert(content, KINDS[purpose], "request")
        except MalformedToken as problem:
            raise RequestRefused(RefusalCode.BAD_REQUEST, str(problem)) from None
        if not is_fresh(request.challenge, self._challenge_key(), fingerprint, now):
            raise RequestRefused(
                RefusalCode.STALE_CHALLENGE, "the challenge is too old, or was made for another client certificate"
            )
        return request

    def report(self, request: Request, fingerprint: str) -> Report | None:
        """What a request says of the machine that sent it; None if it says nothing."""
        match request:
            case forms.SecretStatus() | forms.RotateSecret():
                version = request.current_secret_version
            case forms.ConfirmRotation():
                version = request.secret_version
            case _:
                return None
        audit = None
        if isinstance(request, forms.SecretStatus) and request.audit_seq is not None and request.audit_head is not None:
            audit = request.audit_seq, request.audit_head
        made_at = self.challenged_at(request, fingerprint)
        return None if made_at is None else Report(version, made_at, audit)

    def challenged_at(self, request: Request, fingerprint: str) -> int | None:
        """When this server made the challenge that a request answers, seconds since 1970 UTC."""
        return made_when(request.challenge, self._challenge_key(), fingerprint)


def next_contact(random: Callable[[int], bytes]) -> int:
    """In how many seconds an agent is to ask again.

    Args:
        random: returns this many random bytes.
    """
    return CONTACT_S * 9 // 10 + int.from_bytes(random(2), "big") % (CONTACT_S // 5)
