"""What a clock that was ahead has left in the registry, and what an operator's word corrects of it; on both databases."""

from sqlalchemy import select

from server.agents.misdated import correct
from server.registry.models import Agent, Certificate, Secret
from tests.server.devices import NOW, Device, make_csr
from tests.support.serverside import ServerSide

DAY = 86_400
ONE, TWO = "pos-000001", "pos-000002"


def test_only_what_is_later_than_the_present_is_found_and_corrected(server: ServerSide) -> None:
    Device(1).come(server)
    ahead = NOW + 20 * DAY
    Device(2).come(server, now=ahead)
    server.secrets.rotate(ONE, 0, None, 0, ahead)
    server.certificates.renew(ONE, make_csr(Device(1).tls), ahead)
    server.key_lifecycle.rotate("tls", ahead, None)
    with server.database.write() as session:
        found = correct(session, NOW + 100)
    assert (found.certificates, found.secrets, found.agents) == (2, 1, 1)
    assert [kind for kind, _kid in found.keys] == ["tls"]
    with server.database.read() as session:
        one, two = session.get_one(Agent, ONE), session.get_one(Agent, TWO)
        assert (one.created_at, one.updated_at) == (NOW, NOW)
        assert (two.created_at, two.updated_at) == (NOW + 100, NOW + 100)
        # What is signed keeps its dates.
        assert max(session.scalars(select(Certificate.issued_at))) == ahead
        assert session.scalars(select(Secret.made_at)).all() == [ahead]
    with server.database.write() as session:
        assert correct(session, NOW + 100).agents == 0


def test_nothing_is_found_where_nothing_is_later(server: ServerSide) -> None:
    Device(1).come(server)
    with server.database.write() as session:
        found = correct(session, NOW)
    assert (found.certificates, found.secrets, found.agents, found.keys) == (0, 0, 0, ())
