"""Which of an agent's client certificates count: the one that works, and the one that is to replace it."""

import json

import pytest
from sqlalchemy import func, select

from contracts.exchange import RefusalCode, RenewCertificate, RenewReply
from contracts.trust import parse_trust
from server.agents.certificates import DAY_S, MAX_ISSUED_A_DAY
from server.base.refused import RequestRefused
from server.registry.models.core import Agent, Certificate
from server.web.peers import peer_of
from server.wiring import wire_exchange
from tests.server.agentside import AgentSide, answered
from tests.server.devices import NOW, Device, der, fingerprint, make_csr
from tests.support.serverside import ServerSide

ID = "pos-000001"
ONE = Device(1)


class Holder:
    """An agent that has used its first certificate."""

    def __init__(self, server: ServerSide) -> None:
        self.server = server
        self.issued = [fingerprint(ONE.come(server).certificates[0])]
        self.use(0, NOW)

    def renew(self, now: int) -> int:
        """A renewal; the number of the new certificate."""
        self.issued.append(fingerprint(self.server.certificates.renew(ID, make_csr(ONE.tls), now)[0]))
        return len(self.issued) - 1

    def use(self, number: int, now: int) -> None:
        """A signed request with a certificate that counts."""
        assert number in self.counting(now)
        self.server.certificates.note_use(ID, self.issued[number], now)

    def counting(self, now: int) -> list[int]:
        """The numbers of the certificates that count."""
        return [n for n, made in enumerate(self.issued) if self.server.agents.by_certificate(made, now) is not None]


@pytest.fixture
def holder(server: ServerSide) -> Holder:
    return Holder(server)


def test_a_renewed_certificate_leaves_the_present_one_good_until_it_has_worked(holder: Holder) -> None:
    with pytest.raises(RequestRefused, match="is not a PKCS #10 request"):
        holder.server.certificates.renew(ID, "no csr", NOW)
    new = holder.renew(NOW + 5)
    assert holder.counting(NOW + 5) == [0, new]
    holder.use(0, NOW + 6)
    assert holder.counting(NOW + 6) == [0, new]
    holder.use(new, NOW + 7)
    assert holder.counting(NOW + 7) == [new]


@pytest.mark.parametrize("step", [0, 1, 600], ids="{} s apart".format)
def test_at_most_two_count_however_many_are_issued(holder: Holder, step: int) -> None:
    now, used = NOW, 0
    for number in range(9):
        now += step
        newest = holder.renew(now)
        assert holder.counting(now) == [used, newest]
        if number % 3 == 2:
            used = newest
            holder.use(used, now)
            assert holder.counting(now) == [used]


def test_lost_replies_lock_nobody_out(holder: Holder) -> None:
    for hours in range(1, 4):
        holder.renew(NOW + hours * 3600)  # the agent never got it
    last = holder.renew(NOW + 5 * 3600)
    assert holder.counting(NOW + 5 * 3600) == [0, last]
    holder.use(0, NOW + 6 * 3600)
    holder.use(last, NOW + 7 * 3600)
    assert holder.counting(NOW + 7 * 3600) == [last]


def test_one_of_the_future_ends_none_before_it(holder: Holder) -> None:
    """The server's clock is a year ahead for a minute; an agent renews, and uses the new certificate, within that minute."""
    ahead = NOW + 365 * DAY_S
    wrong = holder.renew(ahead)
    holder.use(wrong, ahead)
    assert holder.counting(ahead) == [wrong]
    assert 0 in holder.counting(NOW + 60), "the agent is locked out until the wrong date comes"
    right = holder.renew(NOW + 120)
    holder.use(right, NOW + 180)
    assert holder.counting(NOW + 240) == [right]
    assert holder.counting(ahead + 60) == [right]


def test_an_agent_gets_a_limited_number_in_a_day(holder: Holder) -> None:
    for number in range(1, MAX_ISSUED_A_DAY):
        holder.renew(NOW + number)
    with pytest.raises(RequestRefused, match="limit") as caught:
        holder.renew(NOW + 3600)
    assert (caught.value.code, caught.value.retry_after_s) == (RefusalCode.RATE_LIMITED, DAY_S - 3600)
    with holder.server.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Certificate)) == MAX_ISSUED_A_DAY
    with pytest.raises(RequestRefused, match="limit"):
        ONE.come(holder.server, now=NOW + 3600)
    assert holder.renew(NOW + DAY_S)


def test_an_agent_that_only_renews_has_two_certificates_that_open_anything(server: ServerSide) -> None:
    """By its requests alone, each renewal with the certificate before."""
    agent, exchange = AgentSide(ID, parse_trust(server.keys.trust())), wire_exchange(server.server)
    peers = [peer_of(der(ONE.come(server).certificates[0]))]
    with server.database.write() as session:
        session.get_one(Agent, ID).identity_key = json.dumps(agent.public)
    for number in range(12):
        now = NOW + number
        with_it = peers[-1 if number % 2 else len(peers) // 2]
        challenge = exchange.challenge(with_it.fingerprint, now)
        request = agent.request(RenewCertificate, challenge, csr=make_csr(ONE.tls))
        status, body = answered(exchange, "renew-certificate", with_it, agent.sign(request), now)
        if status == 200:
            peers.append(peer_of(der(agent.verify(body, RenewReply, request.request_id).certificates[0])))
    assert len(peers) > 6
    counting = [peer for peer in peers if exchange.refuse_unknown(peer, NOW + 60) is None]
    assert len(counting) == 2 and counting[-1] == peers[-1]
