"""A revocation concerns one agent: nobody else asks for a list because of it."""

from server.licensing.licenses.licenses import Order
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide


def test_a_revocation_gives_a_number_to_the_list_of_its_agent_only(server: ServerSide) -> None:
    for number, agent in enumerate(("pos-000001", "pos-000002")):
        Device(number).come(server)
        server.secrets.rotate_by_hand(agent, NOW)
        server.licenses.issue(agent, Order(f"of {agent}", "x", (), {}, NOW, NOW + 99), NOW)
    before = [server.licenses.revocations(agent, NOW)[0] for agent in ("pos-000001", "pos-000002")]
    server.licenses.revoke("of pos-000002", NOW)
    after = [server.licenses.revocations(agent, NOW)[0] for agent in ("pos-000001", "pos-000002")]
    assert after[0] == before[0] and after[1] > before[1]
    server.licenses.revoke("of pos-000001", NOW)
    assert server.licenses.revocations("pos-000001", NOW)[0] > after[1]  # numbers are never given twice
