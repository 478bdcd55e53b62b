"""Verifies update directives: what one agent's machine shall install, and when. Pure.

    directive   JWS (ES256) by a rotation key of the server   {"alg": "ES256", "typ": "update-directive+jwt", "kid": "<key id>"}

A directive chooses among what the vendor has signed (TUF) and adds nothing to it: who holds the server's key can order any
signed package at or above the floor, and nothing else. Whether the two agree is decided in `updatetrust.judgement`.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .exchange import AgentId, Hash, Time, convert, signing_input
from .jose import MalformedToken, b64decode, parse_header, parse_json_object, verify_es256
from .licensetoken import MAX_HEADER_CHARS
from .trust import Trust

DIRECTIVE_TYPE = "update-directive+jwt"
MAX_DIRECTIVE_CHARS = 2048
MAX_PACKAGE_BYTES = 2**34
"""16 GiB: the greatest package that a directive or a target may name."""
MAX_TARGET_CHARS = 256
MAX_NUMBER_AHEAD = 20 * 366 * 86_400
"""How far the number of a directive may be above the time, in seconds since 1970 UTC. A server numbers by the time, or one
above what the agent knows. A thief who signs the greatest number there is would else be the last one who orders anything of
that machine, also after the stolen key was replaced."""

VERSION_PATTERN = r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}(-[0-9A-Za-z.]{1,32})?\Z"
PRODUCT_PATTERN = r"^[a-z][a-z0-9-]{0,31}\Z"

# `\Z`, not `$`, which in Python's expressions also matches before a line feed at the end.
VersionText = Annotated[str, Meta(pattern=VERSION_PATTERN)]
Product = Annotated[str, Meta(pattern=PRODUCT_PATTERN)]
BuildId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
RolloutId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,64}\Z")]
TargetPath = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}/[A-Za-z0-9][A-Za-z0-9._+~-]*\Z", max_length=MAX_TARGET_CHARS)]
"""`<product>/<file>`: two segments, neither of which begins with a dot."""
PackageLength = Annotated[int, Meta(ge=1, le=MAX_PACKAGE_BYTES)]
DirectiveNumber = Annotated[int, Meta(ge=1, le=2**53 - 1)]
TimeOfDay = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
Zone = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}\Z", max_length=64)]


class Day(StrEnum):
    """A day of the week."""

    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"


class DeploymentWindow(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When an installation may begin.

    Attributes:
        zone: IANA name of the time zone in which the rest is meant, as `Europe/Berlin`.
        days: the days on which the window opens, each once.
        start: when it opens, "HH:MM".
        end: when it closes; the next day where it is not after `start`.
    """

    zone: Zone
    days: Annotated[tuple[Day, ...], Meta(min_length=1, max_length=7)]
    start: TimeOfDay
    end: TimeOfDay

    def __post_init__(self) -> None:
        if len(set(self.days)) != len(self.days):
            raise ValueError("a day of the window is there twice")
        if self.start == self.end:
            raise ValueError("the window's start and end must differ")


class Directive(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Content of a directive. Times are seconds since 1970 UTC.

    Attributes:
        v: version of this form.
        number: grows with each directive for the agent; none is executed after one with a higher number.
        agent_id: the agent that it is for.
        product: what is installed.
        target: path of the package in the repository.
        sha256: of the package, 64 lowercase hex digits.
        length: of the package, bytes.
        version: the package's.
        build_id: the package's.
        rollout: the rollout that it belongs to; empty without one.
        not_before: it is not executed earlier.
        not_after: it is not executed later.
        window: when an installation may begin; None leaves that to the agent's own configuration.
        notice_until: until then the agent only announces the update; the installation does not begin earlier.
        downgrade: whether the version may be lower than the one that runs. Two operators have approved that.
        withdraws: number of the earlier directive that is void from now on, whose other members this one repeats. Such a
            directive orders no installation. None in one that does.
    """

    v: Literal[1] = 1
    number: DirectiveNumber
    agent_id: AgentId
    product: Product
    target: TargetPath
    sha256: Hash
    length: PackageLength
    version: VersionText
    build_id: BuildId
    rollout: RolloutId
    not_before: Time
    not_after: Time
    window: DeploymentWindow | None
    notice_until: Time
    downgrade: bool
    withdraws: DirectiveNumber | None

    def __post_init__(self) -> None:
        if not self.not_before < self.not_after:
            raise ValueError("not_after must be later than not_before")
        if self.notice_until > self.not_after:
            raise ValueError("notice_until must not be later than not_after")
        if self.target.partition("/")[0] != self.product:
            raise ValueError("the target must be in the product's folder")
        if self.withdraws is not None and self.withdraws >= self.number:
            raise ValueError("a directive withdraws only one with a lower number")


def is_plausible(directive: Directive, now: int) -> bool:
    """Whether the server can have come to the directive's number by this time.

    Args:
        directive: with a verified signature.
        now: a time that is certainly past, not long ago; seconds since 1970 UTC.
    """
    return directive.number <= now + MAX_NUMBER_AHEAD


def directive_input(directive: Directive, kid: str) -> bytes:
    """The bytes that a rotation key signs; `contracts.exchange.with_signature` makes the directive of them.

    Args:
        directive: the content.
        kid: id of the rotation key.
    """
    return signing_input({"alg": "ES256", "typ": DIRECTIVE_TYPE, "kid": kid}, directive)


def verify_directive(text: str, trust: Trust) -> Directive:
    """Verifies that the server has signed a directive, and returns it. Whom it is for and when is the caller's to check.

    Args:
        text: JWS in compact serialization.
        trust: the keys that may sign: `delivery_keys`, which a key set calls `rotation_keys`.

    Raises:
        MalformedToken: the directive has another form.
        BadSignature: no key in `trust` signed it.
    """
    parts = text.split(".", 3)
    if len(text) > MAX_DIRECTIVE_CHARS or not text.isascii() or len(parts) != 3:
        raise MalformedToken("malformed directive: it must be a JWS in compact serialization, of at most 2,048 characters")
    protected, payload, signature = parts
    if len(protected) > MAX_HEADER_CHARS:
        raise MalformedToken("the directive's header is too long")
    kid = parse_header(protected, {"alg": "ES256", "typ": DIRECTIVE_TYPE, "kid": None}, "directive's header")["kid"]
    verify_es256(trust.delivery_key(kid), b64decode(signature), f"{protected}.{payload}".encode("ascii"))
    directive: Directive = convert(parse_json_object(b64decode(payload), "directive"), Directive, "directive")
    return directive
