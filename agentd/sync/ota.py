"""Asks the license server for this machine's directive and reports what became of earlier ones, if it has announced `updates`.

It is the last step of a contact, and none fails for it. What is reported is reported again until the server acknowledges it.
"""

import logging
from collections.abc import Callable
from typing import Any

from agentd.audit.core import Core
from agentd.base.errors import Refused as NotNow
from agentd.ota.journal import Report
from agentd.ota.keysets import key_sets
from agentd.ota.runner import UpdateRunner
from agentd.ota.sides import Declined, Hindered
from agentd.ota.table import Order
from agentd.secrets.store import Store
from agentd.uplink.client import ExchangeClient
from agentd.uplink.transport import NoContact
from contracts.contact.updates import HARDWARE, Outcome, OutcomeState, RunningVersion, UpdatesReply, UpdatesRequest
from contracts.directive import Directive, is_plausible, verify_directive
from contracts.exchange import RefusalCode, Refused
from contracts.jose import BadSignature, MalformedToken

from .capabilities import Negotiation

log = logging.getLogger(__name__)


class UpdateSync:
    """Asks for directives.

    Args:
        store: has the keys that may sign a directive.
        client: asks.
        runner: carries directives out.
        negotiation: knows whether the server takes the member `hardware`.
        trusted: the pins of the license server's roots that this machine's root trusts.
        hardware: which kind of machine root says this is; None if it does not.
    """

    def __init__(
        self,
        core: Core,
        store: Store,
        client: ExchangeClient,
        runner: UpdateRunner,
        negotiation: Negotiation,
        trusted: Callable[[], tuple[str, ...]],
        hardware: Callable[[], str | None],
    ) -> None:
        self._core = core
        self._store = store
        self._client = client
        self._runner = runner
        self._negotiation = negotiation
        self._trusted = trusted
        self._hardware = hardware
        self._said: tuple[Report, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether a directive has ended and the server was not asked since: an operator waits for that."""
        return any(each not in self._said for each in self._runner.ended)

    async def sync(self) -> None:
        """Asks, and has the runner take in the answer.

        Raises:
            HwsecError, AuditUnavailable: the request cannot be signed, or the answer not be recorded.
        """
        runner = self._runner
        try:
            reply = await self._ask()
            await runner.acknowledged(reply.acknowledged, self._said)
            directive = self._directive_in(reply)
            if directive is None or directive.withdraws is not None:
                withdraws = None if directive is None else directive.withdraws
                await runner.hear(None, withdraws, paused=reply.paused)
                await self._hand_over(directive, reply.directive)
                return
            current = runner.update.order
            if current is None or current.number != directive.number:
                over = directive.number <= runner.update.done
                key_set = "" if over else await key_sets(self._client.fetch_key_set, self._trusted())
                current = order_of(directive, reply.directive or "", key_set, self._core.clock.now())
            await runner.hear(current, None, paused=reply.paused)
        except (NoContact, Refused, NotNow, OSError) as error:
            log.warning("the server's directive could not be taken in: %s", error)

    async def withdrawn(self, number: int) -> bool:
        """Whether the server does not order a directive any more; asked just before it is carried out.

        Raises:
            NoContact, contracts.exchange.Refused: the server cannot be asked.
            HwsecError, AuditUnavailable: as `sync`.
        """
        reply = await self._ask()
        directive = self._directive_in(reply)
        await self._hand_over(directive, reply.directive)
        return directive is None or directive.withdraws is not None or directive.number > number

    async def _hand_over(self, directive: Directive | None, text: str | None) -> None:
        """Hands a withdrawal to the installer, which refuses the directive from then on, also if a captured core orders it."""
        if directive is None or text is None or directive.withdraws is None or directive.number <= self._runner.known:
            return
        try:
            key_set = await key_sets(self._client.fetch_key_set, self._trusted())
            await self._runner.hand_over(directive.number, text, key_set)
        except (NoContact, Hindered, Declined, OSError) as error:
            log.warning("the installer does not know that directive %d is withdrawn: %s", directive.withdraws, error)

    async def _ask(self) -> UpdatesReply:
        runner = self._runner
        running = tuple(
            RunningVersion(product=product, version=each.version, build_id=each.build_id)
            for product, each in sorted((await runner.installed()).items())
            if each.version and not each.in_trial
        )
        ended, outcomes = runner.ended, tuple(_outcome(each) for each in runner.reports())
        asked: dict[str, Any] = {"running": running, "directive": runner.known, "outcomes": outcomes}
        hardware = self._hardware() if self._negotiation.can(HARDWARE) else None
        try:
            more = {} if hardware is None else {"hardware": hardware}
            reply = await self._client.ask(UpdatesReply, UpdatesRequest, **asked, **more)
        except Refused as refused:
            if hardware is None or refused.refusal.code is not RefusalCode.BAD_REQUEST:
                raise
            # The server was set back to a release that does not know the member.
            reply = await self._client.ask(UpdatesReply, UpdatesRequest, **asked)
            await self._negotiation.forget(HARDWARE)
        self._said = ended
        return reply

    def _directive_in(self, reply: UpdatesReply) -> Directive | None:
        """The directive of a reply that is this agent's; a server that sends another one's has it wrong, and none is taken.

        Raises:
            NoContact: it is not signed as it must be.
        """
        if reply.directive is None:
            return None
        try:
            directive = verify_directive(reply.directive, self._store.trust)
        except (MalformedToken, BadSignature) as error:
            self._core.audit.record("ota.directive", "refused", text=str(error)[:300])
            raise NoContact(f"the directive is not acceptable: {error}") from None
        if directive.agent_id != self._core.agent_id:
            self._core.audit.record("ota.directive", "refused", text=f"it is for the agent {directive.agent_id}")
            raise NoContact("the directive is another agent's")
        if not is_plausible(directive, self._core.clock.now()):
            why = f"its number {directive.number} is decades ahead of the time"
            self._core.audit.record("ota.directive", "refused", text=why)
            raise NoContact(f"the directive is not acceptable: {why}")
        return directive


def order_of(directive: Directive, text: str, key_set: str, now: int) -> Order:
    """What the runner makes of a directive.

    Args:
        text: as the server signed it.
        key_set: that has its key, as the server publishes it, after those that lead to it.
        now: seconds since 1970 UTC.
    """
    window = directive.window
    return Order(
        number=directive.number,
        product=directive.product,
        version=directive.version,
        build_id=directive.build_id,
        sha256=directive.sha256,
        length=directive.length,
        directive=text,
        key_set=key_set,
        rollout=directive.rollout,
        received=now,
        not_before=directive.not_before,
        not_after=directive.not_after,
        notice_until=directive.notice_until,
        zone="" if window is None else window.zone,
        days=() if window is None else tuple(day.value for day in window.days),
        start="" if window is None else window.start,
        end="" if window is None else window.end,
    )


def _outcome(report: Report) -> Outcome:
    return Outcome(number=report.number, state=OutcomeState(report.state), detail=report.detail, at=report.at)
