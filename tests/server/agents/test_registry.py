"""Agents and their certificates: the same on both databases."""

import pytest

from contracts.exchange import RefusalCode
from server.agents.registry import ACTIVE, FACTORY_ONLY, REVOKED
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.licensing.licenses.licenses import Order
from tests.server.devices import NOW, Device, fingerprint
from tests.support.serverside import ServerSide

ONE, TWO, THREE = Device(1), Device(2), Device(3)


def refused(code: RefusalCode, match: str | None = None) -> "pytest.RaisesExc[RequestRefused]":
    return pytest.raises(RequestRefused, match=match, check=lambda error: error.code is code)


def test_serials_follow_each_other_and_stay_with_their_device(server: ServerSide) -> None:
    first, second = ONE.come(server), TWO.come(server)
    assert [(a.agent_id, a.serial) for a in (first, second)] == [("pos-000001", 1), ("pos-000002", 2)]
    again = ONE.come(server, now=NOW + 5)
    assert (again.agent_id, again.serial) == (first.agent_id, first.serial)
    assert THREE.come(server).serial == 3
    row = server.agent("pos-000001")
    assert row is not None
    assert (row.hw_id, row.status, row.attestation, row.created_at, row.updated_at) == (
        ONE.hw_id,
        ACTIVE,
        "attested",
        NOW,
        NOW + 5,
    )
    assert [claim.state for claim in server.enrollment_tokens.listed()] == ["used"] * 4


def test_an_agent_gets_the_id_it_wants_if_that_is_free(server: ServerSide) -> None:
    assert ONE.come(server, "till-7").agent_id == "till-7"
    with refused(RefusalCode.CLAIM_REFUSED, "'till-7' belongs to another device"):
        TWO.come(server, "till-7")
    with refused(RefusalCode.CLAIM_REFUSED, "is already agent 'till-7'"):
        ONE.come(server, "till-8")
    assert ONE.come(server, "till-7").serial == ONE.come(server).serial == 1
    with refused(RefusalCode.BAD_REQUEST, "is not a valid agent id"):
        TWO.come(server, "a b")
    assert TWO.come(server, "pos-000003").serial == 2
    assert THREE.come(server).agent_id == f"pos-000003-{THREE.hw_id[:8]}"


def test_coming_again_ends_the_old_certificates_and_demands_a_rotation(server: ServerSide) -> None:
    old = fingerprint(ONE.come(server).certificates[0])
    delivery = server.secrets.rotate_by_hand("pos-000001", NOW)
    assert delivery
    version = server.secrets.listed("pos-000001")[0]
    held = (version.version, version.key_check, version.version)
    assert server.secrets.status("pos-000001", *held, NOW) == (1, False)
    new = fingerprint(ONE.come(server).certificates[0])
    assert server.agents.by_certificate(old, NOW) is None
    row = server.agents.by_certificate(new, NOW)
    assert row is not None
    assert row.agent_id == "pos-000001"
    assert server.secrets.status("pos-000001", *held, NOW) == (1, True)
    assert server.agents.by_certificate("00" * 32, NOW) is None


def test_a_revoked_device_stays_revoked_until_it_is_reinstated(server: ServerSide) -> None:
    certificate = fingerprint(ONE.come(server).certificates[0])
    server.agents.set_status("pos-000001", REVOKED, NOW + 1)
    row = server.agents.by_certificate(certificate, NOW)
    assert row is not None
    assert row.status == REVOKED  # found, so that it can be told
    with refused(RefusalCode.AGENT_REVOKED):
        ONE.come(server)
    server.agents.set_status("pos-000001", ACTIVE, NOW + 2)
    assert server.agents.by_certificate(certificate, NOW) is None  # its certificates are gone for good
    again = ONE.come(server)
    assert again.serial == 1
    assert server.agents.by_certificate(fingerprint(again.certificates[0]), NOW) is not None
    assert TWO.come(server).serial == 2
    with pytest.raises(RegistryError, match="'ghost'"):
        server.agents.set_status("ghost", REVOKED, NOW)


def test_a_factory_device_gets_no_licenses(server: ServerSide) -> None:
    ONE.come(server, factory_only=True)
    row = server.agent("pos-000001")
    assert row is not None
    assert row.status == FACTORY_ONLY
    assert server.agents.count() == {ACTIVE: 0, REVOKED: 0, FACTORY_ONLY: 1, "retired": 0}
    server.secrets.rotate_by_hand("pos-000001", NOW)
    with pytest.raises(RegistryError, match="factory_only"):
        server.licenses.issue("pos-000001", Order("x", "x", (), {}, NOW, NOW + 9), NOW)
    ONE.come(server)
    assert server.licenses.issue("pos-000001", Order("x", "x", (), {}, NOW, NOW + 9), NOW)


HEAD, OTHER = "ab" * 32, "cd" * 32


@pytest.mark.parametrize(
    ("first", "second", "acknowledged", "alert"),
    [
        ((None, None), (5, HEAD), 5, False),
        ((5, HEAD), (None, None), 5, False),
        ((5, HEAD), (5, HEAD), 5, False),
        ((5, HEAD), (6, OTHER), 6, False),
        ((5, HEAD), (4, OTHER), 5, True),
        ((5, HEAD), (5, OTHER), 5, True),
    ],
)
def test_an_audit_log_that_went_back_is_an_alert(
    server: ServerSide,
    first: tuple[int | None, str | None],
    second: tuple[int | None, str | None],
    acknowledged: int,
    alert: bool,
) -> None:
    ONE.come(server)
    server.agents.saw("pos-000001", NOW + 1, *first)
    assert server.agents.saw("pos-000001", NOW + 2, *second) == acknowledged
    assert any(record.event == "alert.agent_audit" for record in server.audit.tail(100)) is alert
    row = server.agent("pos-000001")
    assert row is not None
    assert row.last_seen == NOW + 2
    assert server.agents.saw("ghost", NOW, 1, HEAD) is None
