"""Declares what a fleet may set on its agents, the signed document that says it, and the request for it. Verifies. Pure.

    configuration   JWS (ES256) by a rotation key of the server   {"alg": "ES256", "typ": "fleet-configuration+jwt", "kid": "…"}

Used only where the server has announced `configuration`. An agent says at each contact which document it knows and what became
of it, and gets one if another counts: a lost reply loses nothing. The list of members is closed. None of them names a path, a
user, an address or a key, and none switches a check off; the agent's own file says which of them a fleet may set there.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from contracts.directive import DeploymentWindow, DirectiveNumber, TimeOfDay
from contracts.exchange import AgentId, Hash, Number, Reply, Request, convert, signing_input
from contracts.jose import MalformedToken, b64decode, parse_header, parse_json_object, verify_es256
from contracts.licensetoken import MAX_HEADER_CHARS
from contracts.trust import Trust

CONFIGURATION = "configuration"
"""The capability, and the purpose."""
CONFIGURATION_TYPE = "fleet-configuration+jwt"
MAX_CONFIGURATION_CHARS = 4096
MAX_FROZEN = 64
MAX_DETAILS = 16
MAX_DETAIL_CHARS = 200
_RANGE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:\.\.([0-9]{4}-[0-9]{2}-[0-9]{2}))?")

# `\Z`, not `$`, which in Python's expressions also matches before a line feed at the end.
FleetId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
FrozenDays = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(\.\.[0-9]{4}-[0-9]{2}-[0-9]{2})?\Z")]
Detail = Annotated[str, Meta(max_length=MAX_DETAIL_CHARS)]

BOUNDS: Mapping[str, tuple[int, int]] = {
    "updates.notice_h": (1, 720),
    "updates.rate_kib_s": (16, 2**24),
    "backup.overdue_hours": (1, 720),
    "agent.contact_interval": (300, 86_400),
    "agent.metrics_interval": (15, 300),
    "certificates.renew_days_before": (1, 365),
    "certificates.stagger_days": (1, 90),
}
"""The least and the greatest value of each member that is a number. An agent's file may narrow them."""
NAMES = (
    "updates.window", "updates.freeze", "updates.notice_h", "updates.rate_kib_s", "updates.consent", "updates.consent_last",
    "alerts.min_severity", "backup.overdue_hours", "agent.contact_interval", "agent.metrics_interval",
    "certificates.renew_days_before", "certificates.stagger_days",
)  # fmt: skip
"""The members: section and key of the agent's configuration file."""


def _bounded(name: str) -> Any:
    least, most = BOUNDS[name]
    return Annotated[int, Meta(ge=least, le=most)]


class Members(
    msgspec.Struct, rename=dict(zip((name.replace(".", "_") for name in NAMES), NAMES, strict=True)), omit_defaults=True,
    forbid_unknown_fields=True, frozen=True, kw_only=True,
):  # fmt: skip
    """What a fleet sets. A member that is left out is left to the agent's file.

    Attributes:
        updates_window: when an installation may begin.
        updates_freeze: days and ranges of days on which none may begin: `2026-12-24`, `2026-12-20..2027-01-06`.
        updates_notice_h: from a directive's arrival to its installation, hours.
        updates_rate_kib_s: limit of downloads, KiB a second.
        updates_consent: whose consent an installation needs: the POS application's, or a quiet till's.
        updates_consent_last: from then to the end of the window nobody is asked.
        alerts_min_severity: the least severity that goes to the webhook. High and critical alerts always go there.
        backup_overdue_hours: a last good backup that is older raises an alert.
        agent_contact_interval: between two contacts with the server, seconds.
        agent_metrics_interval: between two writes of the metrics, seconds.
        certificates_renew_days_before: the client certificate is renewed so many days before its end at the latest.
        certificates_stagger_days: over so many days before that agents are spread (`contracts.contact.renewal`).
    """

    updates_window: DeploymentWindow | UnsetType = UNSET
    updates_freeze: Annotated[tuple[FrozenDays, ...], Meta(max_length=MAX_FROZEN)] | UnsetType = UNSET
    updates_notice_h: _bounded("updates.notice_h") | UnsetType = UNSET  # type: ignore[valid-type]
    updates_rate_kib_s: _bounded("updates.rate_kib_s") | UnsetType = UNSET  # type: ignore[valid-type]
    updates_consent: Literal["ask", "quiet"] | UnsetType = UNSET
    updates_consent_last: TimeOfDay | UnsetType = UNSET
    alerts_min_severity: Literal["low", "medium", "high"] | UnsetType = UNSET
    backup_overdue_hours: _bounded("backup.overdue_hours") | UnsetType = UNSET  # type: ignore[valid-type]
    agent_contact_interval: _bounded("agent.contact_interval") | UnsetType = UNSET  # type: ignore[valid-type]
    agent_metrics_interval: _bounded("agent.metrics_interval") | UnsetType = UNSET  # type: ignore[valid-type]
    certificates_renew_days_before: _bounded("certificates.renew_days_before") | UnsetType = UNSET  # type: ignore[valid-type]
    certificates_stagger_days: _bounded("certificates.stagger_days") | UnsetType = UNSET  # type: ignore[valid-type]

    def __post_init__(self) -> None:
        if self.updates_freeze is not UNSET:
            for each in self.updates_freeze:
                frozen_range(each)
        window, last = self.updates_window, self.updates_consent_last
        if window is not UNSET and last is not UNSET and not within(window.start, window.end, last):
            raise ValueError(f"updates.consent_last must lie within updates.window, {window.start} to {window.end}")


def frozen_range(text: str) -> tuple[date, date]:
    """First and last day of `2026-12-24` or `2026-12-20..2027-01-06`. Raises ValueError with what is wrong."""
    parts = _RANGE.fullmatch(text)
    if parts is None:
        raise ValueError(f"updates.freeze has {text!r}, which is no day and no range of days")
    try:
        first = date.fromisoformat(parts[1])
        last = date.fromisoformat(parts[2]) if parts[2] else first
    except ValueError:
        raise ValueError(f"updates.freeze has {text!r}, and there is no such day") from None
    if parts[2] and last <= first:
        raise ValueError(f"updates.freeze has {text!r}: the last day must be later than the first; one day is written alone")
    return first, last


def within(start: str, end: str, at: str) -> bool:
    """Whether a time of the day lies in a window, which may reach over midnight; all three are "HH:MM"."""
    return start <= at < end if start < end else at >= start or at < end


def values_of(members: Members) -> dict[str, Any]:
    """The members that are there, by their names, as JSON has them."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(members))
    return found


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over values by name as canonical JSON: sorted, no blanks, ASCII. Null is what has no value.

    Both sides compute it over the members of a document: the server as it has sent them, the agent as they are in force.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


class Configuration(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Content of the document. It has no end: it counts until one with a higher number does.

    Attributes:
        v: version of this form.
        number: grows with each document for the agent, also if the server was restored from a backup.
        agent_id: the agent that it is for.
        fleet: the fleet that configures the agent; None if none does any more: what an earlier document has set ends.
        fleet_number: the number of the fleet's configuration; 0 without a fleet.
        members: what the fleet sets; without a fleet, nothing.
    """

    v: Literal[1] = 1
    number: DirectiveNumber
    agent_id: AgentId
    fleet: FleetId | None
    fleet_number: Number
    members: Members

    def __post_init__(self) -> None:
        if self.fleet is None and (self.members != Members() or self.fleet_number):
            raise ValueError("a document without a fleet sets nothing")


class ResultState(StrEnum):
    """What became of a document on the machine."""

    APPLIED = "applied"
    LIMITED = "limited"
    """The machine's own file forbids a member, sets it itself or narrows its bounds; the rest is in force."""
    REFUSED = "refused"
    """It cannot be used: nothing of it is in force."""


class ConfigurationResult(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What became of a document.

    Attributes:
        number: the document's.
        state: whether it is in force.
        details: what was limited, or why it was refused; a sentence each.
        digest: of the values that are in force now of the members that it has (`digest_of`); None if it was refused.
    """

    number: DirectiveNumber
    state: ResultState
    details: Annotated[tuple[Detail, ...], Meta(max_length=MAX_DETAILS)]
    digest: Hash | None


class ConfigurationRequest(Request, frozen=True, tag=CONFIGURATION):
    """Asks for the document that counts, and says what became of the last one.

    Attributes:
        known: number of the document that the agent knows; 0 if it knows none, or cannot use what it has kept: it is lost or
            damaged, or the key that has signed it has ended.
        result: what became of it; None if the agent knows none.
    """

    known: Number
    result: ConfigurationResult | None

    def __post_init__(self) -> None:
        if self.result is not None and self.result.number != self.known:
            raise ValueError("the result must be that of the document that the agent knows")


class ConfigurationReply(Reply, frozen=True):
    """The document that counts.

    Attributes:
        document: as in `Configuration`, signed; None if the one that the agent knows counts, or none ever did.
    """

    document: Annotated[str, Meta(min_length=1, max_length=MAX_CONFIGURATION_CHARS)] | None


class UnusableConfiguration(MalformedToken):
    """A document that the server has signed, and whose content this release cannot use.

    Attributes:
        number: the document's.
        agent_id: the agent that it is for.
    """

    def __init__(self, text: str, number: int, agent_id: str) -> None:
        super().__init__(text)
        self.number, self.agent_id = number, agent_id


def configuration_input(content: Configuration, kid: str) -> bytes:
    """The bytes that a rotation key signs; `contracts.exchange.with_signature` makes the document of them.

    Args:
        content: of the document.
        kid: id of the rotation key.
    """
    return signing_input({"alg": "ES256", "typ": CONFIGURATION_TYPE, "kid": kid}, content)


def verify_configuration(text: str, trust: Trust) -> Configuration:
    """Verifies that the server has signed a document, and returns it. For whom it is and its number are the caller's to check.

    Args:
        text: JWS in compact serialization.
        trust: the keys that may sign: `delivery_keys`, which a key set calls `rotation_keys`.

    Raises:
        UnusableConfiguration: it is signed and has a number, and a member that is not known or out of its bounds.
        MalformedToken: the document has another form.
        BadSignature: no key in `trust` signed it.
    """
    parts = text.split(".", 3)
    if len(text) > MAX_CONFIGURATION_CHARS or not text.isascii() or len(parts) != 3:
        raise MalformedToken(
            f"malformed configuration: it must be a compact JWS of at most {MAX_CONFIGURATION_CHARS:,} characters"
        )
    protected, payload, signature = parts
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken("the configuration's header is too long")
    kid = parse_header(protected, {"alg": "ES256", "typ": CONFIGURATION_TYPE, "kid": None}, "configuration's header")["kid"]
    verify_es256(trust.delivery_key(kid), b64decode(signature), f"{protected}.{payload}".encode("ascii"))
    content = parse_json_object(b64decode(payload), "configuration")
    try:
        found: Configuration = convert(content, Configuration, "configuration")
    except MalformedToken as problem:
        try:
            named: _Named = convert({name: content.get(name) for name in ("number", "agent_id")}, _Named, "configuration")
        except MalformedToken:
            raise problem from None
        raise UnusableConfiguration(str(problem), named.number, named.agent_id) from None
    return found


class _Named(msgspec.Struct, frozen=True):
    """Which document it is, as far as that can be read."""

    number: DirectiveNumber
    agent_id: AgentId
