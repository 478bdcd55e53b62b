"""Declares the request by which an agent asks for its directive and reports what became of earlier ones, and the reply. Pure.

Used only where the server has announced `updates`. The reply names the directive that counts now, also if the agent has it
already, so a lost reply loses nothing. A reply without one orders nothing, which does not mean that the machine is up to date:
that is said only with the time of the last verified metadata of the update repository.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.directive import MAX_DIRECTIVE_CHARS, BuildId, DirectiveNumber, Product, VersionText
from contracts.exchange import Number, Reply, Request, Text, Time

UPDATES = "updates"
"""The capability, and the purpose."""
HARDWARE = "updates-hardware"
"""The capability: the server knows the member `hardware` of the request."""

MAX_PRODUCTS = 16
MAX_OUTCOMES = 16


Hardware = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]


class RunningVersion(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What runs of one product: the slot that was last committed."""

    product: Product
    version: VersionText
    build_id: BuildId


class OutcomeState(StrEnum):
    """How far a directive has come."""

    PROGRESS = "progress"
    """It is under way; `detail` names the step."""
    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"
    """The machine does not accept the directive or its package; `detail` begins with the reason's code."""
    LOCKED = "locked"
    """Too many attempts have failed: an administrator has to unlock updates on the machine."""


class Outcome(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What became of a directive.

    Attributes:
        number: the directive's.
        state: how far it has come.
        detail: more about it, in words.
        at: when, by the agent's clock, seconds since 1970 UTC.
    """

    number: DirectiveNumber
    state: OutcomeState
    detail: Text
    at: Time


class UpdatesRequest(Request, frozen=True, tag=UPDATES):
    """Asks for the agent's directive, and reports outcomes.

    Attributes:
        running: what runs, each product at most once.
        directive: the highest number of a directive that the agent knows; 0 before the first. The server's next directive has a
            higher one, also if the server was restored from a backup.
        outcomes: those that the server has not acknowledged; at most one, the latest, for each directive.
        hardware: which kind of machine this is, as root's update-trust.json has it; only where the server has announced
            `HARDWARE`.
    """

    running: Annotated[tuple[RunningVersion, ...], Meta(max_length=MAX_PRODUCTS)]
    directive: Number
    outcomes: Annotated[tuple[Outcome, ...], Meta(max_length=MAX_OUTCOMES)]
    hardware: Hardware | msgspec.UnsetType = msgspec.UNSET


class UpdatesReply(Reply, frozen=True):
    """The agent's directive.

    Attributes:
        directive: the one that counts now, as in `contracts.directive`; None if the server orders nothing.
        acknowledged: numbers of those directives of the request's outcomes whose outcome the server has noted, or has no use
            for.
        paused: whether an operator has paused updates: nothing new begins until a reply says otherwise. What is switched
            already is finished.
    """

    directive: Annotated[str, Meta(min_length=1, max_length=MAX_DIRECTIVE_CHARS)] | None
    acknowledged: Annotated[tuple[DirectiveNumber, ...], Meta(max_length=MAX_OUTCOMES)]
    paused: bool
