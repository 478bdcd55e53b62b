"""Many at once: serials have no gaps, nobody waits for whoever waits for him, the audit's chain holds."""

import contextlib
import json
import random
from contextlib import closing
from pathlib import Path

import pytest

from contracts.exchange import Cause, RefusalCode, RotateSecret
from server.base.refused import RequestRefused
from server.licensing.licenses.licenses import Order
from server.licensing.secrets import demand
from server.registry.models.core import Agent
from server.web.peers import peer_of
from server.wiring import wire_exchange
from tests.server.agentside import AgentSide, answered
from tests.server.atonce import at_once
from tests.server.devices import NOW, Device, der, fingerprint, make_csr
from tests.support.serverside import ServerSide, open_server

THREADS = 8


def test_eight_threads_get_serials_without_a_gap(server: ServerSide) -> None:
    each = 6

    def several(first: int) -> list[int]:
        return [Device(number).come(server).serial for number in range(first, first + each)]

    found = at_once([lambda first=number * each: several(first) for number in range(THREADS)])
    assert sorted(serial for serials in found for serial in serials) == list(range(1, THREADS * each + 1))
    for serials in found:
        assert serials == sorted(serials)
    assert server.audit.verify(server.cipher.audit_key())[1] is None


def test_two_processes_get_serials_without_a_gap(directory: Path) -> None:
    """Each with connections of its own, as replicas of the server have them."""
    with closing(open_server(directory)) as one, closing(open_server(directory)) as two:
        found = at_once(
            [
                lambda server=server, first=first: [Device(n).come(server).serial for n in range(first, first + 5)]
                for server, first in ((one, 0), (two, 10), (one, 20), (two, 30))
            ]
        )
    assert sorted(serial for serials in found for serial in serials) == list(range(1, 21))


def test_one_device_that_comes_eight_times_at_once_has_one_serial(server: ServerSide) -> None:
    device = Device(1)
    text = server.enrollment_tokens.create(None, False, 3600, NOW)

    def come() -> int | None:
        try:
            return device.activate(server, server.enrollment_tokens.use(text, device.hw_id, NOW)).serial
        except RequestRefused as refused:
            assert refused.code is RefusalCode.UNAVAILABLE
            return None

    assert set(at_once([come] * THREADS)) <= {1, None}
    assert device.come(server).serial == 1
    assert Device(2).come(server).serial == 2


def test_one_claim_serves_one_of_eight_devices(server: ServerSide) -> None:
    text = server.enrollment_tokens.create(None, False, 3600, NOW)

    def use(number: int) -> int | None:
        try:
            return server.enrollment_tokens.use(text, Device(number).hw_id, NOW)
        except RequestRefused as refused:
            assert refused.code is RefusalCode.CLAIM_REFUSED
            return None

    found = at_once([lambda number=number: use(number) for number in range(THREADS)])
    assert sorted(found, key=str) == [1, *[None] * (THREADS - 1)]


def test_one_agent_that_rotates_in_eight_threads_gets_one_version(server: ServerSide) -> None:
    Device(1).come(server)
    deliveries = at_once([lambda: server.secrets.rotate("pos-000001", 0, None, 0, NOW)] * THREADS)
    assert len(deliveries) == THREADS
    (row,) = server.secrets.listed("pos-000001")
    at_once([lambda: server.secrets.confirm("pos-000001", 1, row.key_check, NOW)] * THREADS)
    assert [row.state for row in server.secrets.listed("pos-000001")] == ["ACTIVE"]


def everything(server: ServerSide, agents: list[str], certificates: dict[str, str], seed: int) -> None:
    """A hundred acts in random order, as agents and an administrator have them done at once."""
    rng = random.Random(seed)
    csr = make_csr(Device(1).tls)
    for number in range(60):
        agent = rng.choice(agents)
        act = rng.randrange(9)
        if act in (0, 1, 2, 4, 5, 7):
            if act == 7 or rng.random() < 0.7:
                with server.database.write() as session:
                    server.within(session).agents.lock(agent)
                    agents_act(server.within(session), agent, certificates[agent], csr, act, rng)
            else:
                agents_act(server, agent, certificates[agent], csr, act, rng)
        elif act == 3:
            server.licenses.issue(agent, Order(f"{agent}-{rng.randrange(4)}", "x", (), {}, NOW, NOW + 99), NOW)
        elif act == 6:
            demand.run(server.database, demand.begin(server.database, NOW), NOW, lambda: None, lambda _done: None)
        else:
            server.audit.record("admin", "probe", "ok", NOW, number=number)


def agents_act(server: ServerSide, agent: str, certificate: str, csr: str, act: int, rng: random.Random) -> None:
    if act == 0:
        newest = server.secrets.listed(agent)[-1]
        server.secrets.rotate(agent, newest.version, newest.key_check, newest.version, NOW)
    elif act == 1:
        newest = server.secrets.listed(agent)[-1]
        server.secrets.confirm(agent, newest.version, newest.key_check, NOW)
    elif act == 2:
        server.agents.saw(agent, NOW, rng.randrange(9), "ab" * 32)
    elif act == 4:
        wanted = [f"{agent}-{n}" for n in range(4)]
        rng.shuffle(wanted)
        tokens, missing = server.licenses.reissue(agent, wanted, server.secrets.status(agent, 0, None, 0, NOW)[0], NOW)
        assert len(tokens) + len(missing) == 4
    elif act == 5:
        server.certificates.note_use(agent, certificate, NOW)
        with contextlib.suppress(RequestRefused):  # the limit of a day
            server.certificates.renew(agent, csr, NOW)
    else:
        request_id = f"{rng.randrange(3):032x}"
        if server.replies.find(agent, request_id) is None:
            server.replies.keep(agent, request_id, "digest", "reply", NOW)


def test_all_acts_at_once_neither_fail_nor_wait_for_each_other(server: ServerSide) -> None:
    certificates = {}
    for number in range(3):
        activated = Device(number).come(server)
        certificates[activated.agent_id] = fingerprint(activated.certificates[0])
        server.secrets.rotate_by_hand(activated.agent_id, NOW, 80_000, 80_000)
    agents = list(certificates)

    def act(seed: int) -> None:
        try:
            everything(server, agents, certificates, seed)
        except RequestRefused as refused:
            pytest.fail(str(refused)) if refused.code is not RefusalCode.TOO_MANY_VERSIONS else None

    at_once([lambda seed=seed: act(seed) for seed in range(6)])
    assert server.audit.verify(server.cipher.audit_key())[1] is None


def test_the_same_request_at_once_to_two_processes_acts_once(directory: Path) -> None:
    with closing(open_server(directory)) as one, closing(open_server(directory)) as two:
        activated = Device(1).come(one)
        agent, peer = AgentSide(activated.agent_id), peer_of(der(activated.certificates[0]))
        with one.database.write() as session:
            row = session.get(Agent, activated.agent_id)
            assert row is not None
            row.identity_key = json.dumps(agent.public)
        exchanges = [wire_exchange(server.server) for server in (one, two)]
        for number in range(5):
            challenge = exchanges[0].challenge(peer.fingerprint, NOW)
            asked = agent.request(
                RotateSecret,
                challenge,
                current_secret_version=0,
                highest_version=number,
                key_check=None,
                serial=1,
                cause=Cause.DUE,
            )
            text = agent.sign(asked)
            answers = at_once(
                [lambda it=exchange, text=text: answered(it, "rotate-secret", peer, text, NOW) for exchange in exchanges * 3]
            )
            assert len(set(answers)) == 1 and answers[0][0] == 200
            made = [record for record in one.audit.tail(1000) if record.event == "secret.made"]
            assert len(made) == number + 1
