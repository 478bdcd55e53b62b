"""Takes, renews and gives back seats of floating licenses (`contracts.contact.seats`), if the server announced `lease-seats`.

A seat that is given back is refused first, by a commit of the sealed store, and named to the server only then: once the server
may give it to another machine, this one never accepts it again, whatever is lost, repeated, delayed or restarted. A machine
that says nothing loses its seat with the seat's token.
"""

import logging

import msgspec

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.licenses.seats import Floating
from agentd.licenses.validator import Validator
from agentd.secrets.store import Store
from agentd.secrets.withheld import MAX_GIVEN_BACK, given_back
from agentd.uplink.client import ExchangeClient
from contracts.contact.seats import MAX_FLOATING, MAX_SEAT_S, MAX_SEATS, LeaseReply, LeaseSeats

from .licenses import LicenseSync

log = logging.getLogger(__name__)

ACTOR = {"process": "contact"}
MAX_IDLE_S = 90 * 86_400


class SeatSync:
    """Keeps the seats of this machine.

    Args:
        store: seals which seats were given back.
        validator: opens tokens; has the license inventory and the seats.
        client: asks.
        licenses: knows the number of the newest change of the machine's licenses.
    """

    def __init__(self, core: Core, store: Store, validator: Validator, client: ExchangeClient, licenses: LicenseSync) -> None:
        self._core = core
        self._store = store
        self._validator = validator
        self._seats = validator.seats
        self._client = client
        self._licenses = licenses
        self._asked_at: int | None = None
        # When the last token ends of seats that were taken in this run. Of others the file may say anything.
        self._ends: dict[str, int] = {}

    @property
    def wanted(self) -> bool:
        """Whether a POS application waits for a seat, so that a contact is due."""
        return bool(self._seats.wanted)

    def due(self) -> bool:
        """Whether there is something to ask: after a start or a change of the licenses, or if a seat is due or wanted."""
        now, seats = self._core.clock.now(), self._seats
        changed = self._asked_at != self._licenses.number
        return changed or bool(seats.wanted or seats.page.unconfirmed or seats.to_renew(now) or seats.idle(now))

    async def lease(self, secret_version: int) -> None:
        """Gives back what is idle, and asks for what is wanted or is to be renewed.

        Args:
            secret_version: the newest one, which the server issues licenses with.

        Raises:
            NoContact, contracts.exchange.Refused: no reply came. The next contact asks again.
            HwsecError, AuditUnavailable, OSError: it cannot be stored; likewise.
        """
        number = self._licenses.number
        ended = self._seats.idle(self._core.clock.now())
        # What the server ends is given back in a second request.
        for _ in range(2):
            await self._give_back(ended)
            ended = await self._ask(secret_version)
            if not ended:
                break
        self._asked_at = number

    async def _ask(self, secret_version: int) -> list[str]:
        seats, now = self._seats, self._core.clock.now()
        asked = frozenset(sorted(seats.wanted | seats.to_renew(now))[:MAX_FLOATING])
        # The file of the inventory is not trusted: only what the sealed store refuses is given back.
        refused_here = self._store.record.withheld.given_back
        released = [each for each in seats.page.unconfirmed if each in refused_here][:MAX_SEATS]
        reply = await self._client.ask(
            LeaseReply,
            LeaseSeats,
            secret_version=secret_version,
            wanted=tuple(sorted(asked)),
            held=tuple(seats.held()[:MAX_SEATS]),
            released=tuple(released),
        )
        self._take(reply, now)
        seats.heard(asked, frozenset(reply.refused), now)
        await self._validator.inventory.save()
        still = set(seats.held())
        return [each for each in reply.ended if each in still]

    def _take(self, reply: LeaseReply, now: int) -> None:
        known, withheld = self._seats.page.floating, self._store.record.withheld
        found = {each.license: Floating(each.product, each.features, each.expires, each.idle_s) for each in reply.floating}
        unconfirmed = []
        for lease in reply.seats:
            if lease.seat in withheld.given_back:
                unconfirmed.append(lease.seat)
                continue
            was = known.get(lease.license)
            entry = found.get(lease.license)
            if entry is None:
                # A suspended one: its seat is kept, and no other could be had.
                kept = was or Floating(None, (), lease.grace_until, MAX_IDLE_S)
                entry = found[lease.license] = msgspec.structs.replace(kept, offered=False)
            same = was is not None and was.seat == lease.seat
            entry.seat, entry.lease_until = lease.seat, lease.lease_until
            entry.grace_until = max(lease.grace_until, was.grace_until if was is not None and same else 0)
            if not same or lease.seat in self._ends:
                self._ends[lease.seat] = max(lease.grace_until, self._ends.get(lease.seat, 0))
            entry.used = was.used if was is not None and same else now
            if lease.token is not None:
                self._deliver(lease.seat, lease.token, lease.grace_until, now)
        self._keep_ended(found, reply.ended)
        self._ends = {seat: at for seat, at in self._ends.items() if at > now}
        self._forget({each.seat for each in found.values()})
        self._seats.replace(found, unconfirmed)
        self._validator.inventory.noted_seats()

    def _keep_ended(self, found: dict[str, Floating], ended: tuple[str, ...]) -> None:
        """A seat that has to be given back is one of this machine until it is."""
        for license_id, was in self._seats.page.floating.items():
            taken = found.get(license_id)
            if was.seat in ended and was.seat and (taken is None or not taken.seat):
                found[license_id] = msgspec.structs.replace(was, offered=False)

    def _forget(self, present: set[str]) -> None:
        for seat in self._seats.held():
            if seat not in present:
                self._validator.inventory.release(seat)

    def _deliver(self, seat: str, token: str, ends: int, now: int) -> None:
        try:
            kept = self._validator.deliver(seat, token, ends, now)
        except Refused as error:
            self._core.audit.record("seat.leased", "refused", actor=ACTOR, license=seat, text=str(error))
            return
        self._core.audit.record("seat.leased", "ok" if kept else "no_room", actor=ACTOR, license=seat, until=ends)

    async def _give_back(self, ended: list[str]) -> None:
        """Refuses seats for good. A few too many in a short time are kept, and end by themselves."""
        store, seats = self._store, self._seats
        latest = self._core.clock.now() + MAX_SEAT_S
        ends = {seat: self._ends.get(seat, latest) for seat in seats.held() if seat in ended}
        if not ends:
            return
        found = given_back(store.record.withheld, ends, self._core.clock.floor)
        if len(found.given_back) > MAX_GIVEN_BACK:
            log.warning("too many seats were given back lately: %d more end by themselves", len(ends))
            return
        await store.keep("seats.given_back", {"withheld": found}, seats=sorted(ends))
        self._validator.withheld = found
        kept = {
            license_id: msgspec.structs.replace(each, seat="", lease_until=0, grace_until=0) if each.seat in ends else each
            for license_id, each in seats.page.floating.items()
        }
        seats.replace(kept, [*seats.page.unconfirmed, *ends])
        for seat in ends:
            self._validator.inventory.release(seat)
        self._validator.inventory.noted_seats()
