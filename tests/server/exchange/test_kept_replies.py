"""Replies are kept for requests that come again, sealed and bounded: the same on both databases."""

import json
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from contracts.exchange import RefusalCode, ReissueLicenses, ReissueReply, SecretStatus
from contracts.trust import parse_trust
from server.base.refused import RequestRefused
from server.exchange.challenges import CHALLENGE_LIFETIME_S
from server.exchange.kept_replies import KEPT_S, MAX_FRESH, MAX_KEPT, SHORT_KEPT_S, Kept
from server.licensing.licenses.licenses import Order
from server.registry.models.core import Agent, Base, KeptReply
from server.web.peers import peer_of
from server.wiring import wire_exchange
from tests.server.agentside import AgentSide, answered
from tests.server.devices import NOW, Device, der
from tests.support.serverside import ServerSide

ID = "pos-000001"


def number(of: int) -> str:
    return f"{of:032x}"


def rows(server: ServerSide) -> int:
    with server.database.read() as session:
        return session.scalar(select(func.count()).select_from(KeptReply)) or 0


def test_replies_are_kept_for_two_days(server: ServerSide) -> None:
    server.replies.keep("pos-1", number(0), "digest", "reply", NOW)
    with pytest.raises(IntegrityError):  # who keeps a reply has looked, in the same transaction, that there is none
        server.replies.keep("pos-1", number(0), "other", "other", NOW)
    assert server.replies.find("pos-1", number(0)) == Kept("digest", "reply")
    assert server.replies.find("pos-2", number(0)) is None
    for each in range(200):
        server.replies.require_room("pos-1", NOW + KEPT_S + 1)
        server.replies.keep("pos-1", number(each + 9), "digest", "reply", NOW + KEPT_S + 1)
    assert server.replies.find("pos-1", number(0)) is None


def test_the_oldest_go_but_none_that_may_still_be_asked_for(server: ServerSide) -> None:
    for each in range(MAX_KEPT * 2):
        server.replies.require_room("pos-1", NOW + 10 * each)
        server.replies.keep("pos-1", number(each), "digest", "reply", NOW + 10 * each)
    now = NOW + 10 * (MAX_KEPT * 2)
    assert rows(server) <= MAX_KEPT
    assert server.replies.find("pos-1", number(0)) is None
    for each in range(MAX_KEPT * 2):
        if now - (NOW + 10 * each) <= SHORT_KEPT_S:
            assert server.replies.find("pos-1", number(each)) is not None, "a fresh request could act twice"


def test_one_agent_cannot_fill_the_registry(server: ServerSide) -> None:
    with server.database.write() as session:
        within = server.within(session)
        for each in range(MAX_FRESH):
            within.replies.keep("pos-1", number(each), "digest", None, NOW)
    with pytest.raises(RequestRefused) as caught:
        server.replies.require_room("pos-1", NOW + 1)
    assert caught.value.code is RefusalCode.RATE_LIMITED and caught.value.retry_after_s
    server.replies.require_room("pos-2", NOW + 1)
    server.replies.require_room("pos-1", NOW + SHORT_KEPT_S + 2)
    assert rows(server) <= MAX_KEPT


class World:
    """An agent with 32 licenses as large as they may be."""

    def __init__(self, server: ServerSide) -> None:
        self.server = server
        self.exchange = wire_exchange(server.server)
        self.peer = peer_of(der(Device(1).come(server).certificates[0]))
        self.agent = AgentSide(ID, parse_trust(server.keys.trust()))
        with server.database.write() as session:
            session.get_one(Agent, ID).identity_key = json.dumps(self.agent.public)
        server.secrets.rotate_by_hand(ID, NOW)
        self.licenses = tuple(f"license-{each}" for each in range(32))
        metadata = {f"name-{each}": "v" * 60 for each in range(10)}
        with server.database.write() as session:
            for jti in self.licenses:
                server.within(session).licenses.issue(ID, Order(jti, "x", (), metadata, NOW, NOW + 10**6), NOW)

    def reissue(self) -> tuple[Any, str]:
        challenge = self.exchange.challenge(self.peer.fingerprint, NOW)
        asked = self.agent.request(ReissueLicenses, challenge, licenses=self.licenses, secret_version=1)
        return asked, self.agent.sign(asked)

    def ask(self, text: str, now: int = NOW) -> tuple[int, str]:
        return answered(self.exchange, "reissue-licenses", self.peer, text, now)


@pytest.fixture
def world(server: ServerSide) -> World:
    return World(server)


def size(server: ServerSide) -> int:
    """Bytes of what is kept."""
    with server.database.read() as session:
        return sum(
            len(value)
            for table in Base.metadata.tables.values()
            if table.name.startswith("kept_")
            for row in session.execute(select(table))
            for value in row
            if isinstance(value, str | bytes)
        )


def test_a_reissue_of_32_licenses_keeps_almost_nothing(world: World) -> None:
    _asked, text = world.reissue()
    status, body = world.ask(text)
    assert status == 200 and len(body) > 40_000
    assert size(world.server) < 500


def test_a_reissue_that_comes_again_is_made_again_while_it_is_fresh(world: World) -> None:
    asked, text = world.reissue()
    for _ in range(2):
        status, body = world.ask(text, NOW + 1)
        reply = world.agent.verify(body, ReissueReply, asked.request_id)
        assert (status, len(reply.tokens)) == (200, 32)
    other = world.agent.request(
        ReissueLicenses, asked.challenge, licenses=world.licenses[:1], secret_version=1, request_id=asked.request_id
    )
    assert world.ask(world.agent.sign(other), NOW + 1)[0] == 409, "the request id is used"
    assert world.ask(text, NOW + CHALLENGE_LIFETIME_S)[0] == 409, "the request is stale"


def test_no_token_and_no_reply_is_in_the_clear(world: World) -> None:
    _asked, text = world.reissue()
    tokens = json.loads(world.ask(text)[1])["reply"]
    challenge = world.exchange.challenge(world.peer.fingerprint, NOW)
    fields = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
    status = world.agent.sign(world.agent.request(SecretStatus, challenge, **fields))
    first = answered(world.exchange, "secret-status", world.peer, status, NOW)
    assert answered(world.exchange, "secret-status", world.peer, status, NOW) == first
    with world.server.database.read() as session:
        kept = [str(value) for row in session.execute(select(Base.metadata.tables["kept_reply"])) for value in row]
    for reply in (tokens, json.loads(first[1])["reply"]):
        assert not any(part in value for value in kept for part in reply.split("."))
