"""The audit log: every act is in it, and a change of it shows."""

from sqlalchemy import text as sql

from server.agents.registry import REVOKED
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide


def test_every_act_is_recorded_in_a_chain_that_shows_what_was_changed(server: ServerSide) -> None:
    Device(1).come(server)
    server.agents.set_status("pos-000001", REVOKED, NOW)
    events = [record.event for record in server.audit.tail(100)]
    assert events == ["server.founded", "claim.made", "claim.bound", "agent.activated", "agent.status"]
    assert server.audit.verify(server.cipher.audit_key()) == (5, None)
    for statement, found in (
        ("UPDATE audit SET outcome = 'ok!' WHERE seq = 3", (2, "record 3 was changed")),
        ("UPDATE audit SET at = at + 1 WHERE seq = 2", (1, "record 2 was changed")),
        ("DELETE FROM audit WHERE seq = 2", (1, "record 2 is missing")),
    ):
        with server.database.write() as session:
            session.execute(sql(statement))
        assert server.audit.verify(server.cipher.audit_key()) == found
