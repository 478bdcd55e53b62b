"""Claims, agents, certificates: the same on both databases."""

import json

import pytest
from sqlalchemy import text as sql
from sqlalchemy.exc import IntegrityError

from contracts.exchange import RefusalCode
from server.agents.enrollment_tokens import SESSION_S
from server.agents.registry import ACTIVE, ANSWERS_KEPT_S, FACTORY_ONLY, REVOKED
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.licensing.licenses import Order
from server.wiring import Server
from tests.server.devices import NOW, Device, fingerprint, make_csr

ONE, TWO, THREE = Device(1), Device(2), Device(3)


def refused(code: RefusalCode, match: str | None = None) -> "pytest.RaisesExc[RequestRefused]":
    return pytest.raises(RequestRefused, match=match, check=lambda error: error.code is code)


def test_a_claim_binds_itself_to_its_first_device_which_may_come_again(office: Server) -> None:
    text = office.enrollment_tokens.create(None, False, 60, NOW)
    claim_id = office.enrollment_tokens.use(text, ONE.hw_id, NOW)
    assert office.enrollment_tokens.use(text, ONE.hw_id, NOW + 59) == claim_id
    with refused(RefusalCode.CLAIM_REFUSED, "another device"):
        office.enrollment_tokens.use(text, TWO.hw_id, NOW)
    with refused(RefusalCode.CLAIM_REFUSED, "has ended"):
        office.enrollment_tokens.use(text, ONE.hw_id, NOW + 60)
    with refused(RefusalCode.CLAIM_REFUSED, "no such claim"):
        office.enrollment_tokens.use(text + "x", ONE.hw_id, NOW)


def test_a_claim_for_one_device_serves_no_other(office: Server) -> None:
    text = office.enrollment_tokens.create(ONE.hw_id, False, 60, NOW)
    with refused(RefusalCode.CLAIM_REFUSED, "another device"):
        office.enrollment_tokens.use(text, TWO.hw_id, NOW)
    assert office.enrollment_tokens.use(text, ONE.hw_id, NOW)


def test_a_claim_revoked_between_the_steps_activates_nothing(office: Server) -> None:
    text = office.enrollment_tokens.create(None, False, 60, NOW)
    claim_id = office.enrollment_tokens.use(text, ONE.hw_id, NOW)
    office.enrollment_tokens.revoke(claim_id, NOW)
    with refused(RefusalCode.CLAIM_REFUSED, "does not count"):
        ONE.activate(office, claim_id)
    with refused(RefusalCode.CLAIM_REFUSED, "no such claim"):
        office.enrollment_tokens.use(text, ONE.hw_id, NOW)
    assert office.agents.listed() == []
    with pytest.raises(RegistryError, match="no claim 99"):
        office.enrollment_tokens.revoke(99, NOW)


def test_only_who_used_a_claim_can_spend_it(office: Server) -> None:
    claim_id = office.enrollment_tokens.use(office.enrollment_tokens.create(None, False, 60, NOW), ONE.hw_id, NOW)
    with refused(RefusalCode.CLAIM_REFUSED):
        TWO.activate(office, claim_id)
    with refused(RefusalCode.CLAIM_REFUSED):
        ONE.activate(office, claim_id, now=NOW + 60)
    with refused(RefusalCode.CLAIM_REFUSED):
        ONE.activate(office, claim_id + 1)
    assert ONE.activate(office, claim_id).serial == 1  # those that were refused took no number


def test_serials_follow_each_other_and_stay_with_their_device(office: Server) -> None:
    first, second = ONE.come(office), TWO.come(office)
    assert [(a.agent_id, a.serial) for a in (first, second)] == [("pos-000001", 1), ("pos-000002", 2)]
    again = ONE.come(office, now=NOW + 5)
    assert (again.agent_id, again.serial) == (first.agent_id, first.serial)
    assert THREE.come(office).serial == 3
    row = office.agents.by_id("pos-000001")
    assert row is not None
    assert (row.hw_id, row.status, row.attestation, row.created_at, row.updated_at) == (
        ONE.hw_id,
        ACTIVE,
        "attested",
        NOW,
        NOW + 5,
    )
    assert [claim.state for claim in office.enrollment_tokens.listed()] == ["used"] * 4


def test_an_agent_gets_the_id_it_wants_if_that_is_free(office: Server) -> None:
    assert ONE.come(office, "till-7").agent_id == "till-7"
    with refused(RefusalCode.CLAIM_REFUSED, "'till-7' belongs to another device"):
        TWO.come(office, "till-7")
    with refused(RefusalCode.CLAIM_REFUSED, "is agent 'till-7' already"):
        ONE.come(office, "till-8")
    assert ONE.come(office, "till-7").serial == ONE.come(office).serial == 1
    with refused(RefusalCode.BAD_REQUEST, "no agent id"):
        TWO.come(office, "a b")
    assert TWO.come(office, "pos-000003").serial == 2
    assert THREE.come(office).agent_id == f"pos-000003-{THREE.hw_id[:8]}"


def test_coming_again_ends_the_old_certificates_and_demands_a_rotation(office: Server) -> None:
    old = fingerprint(ONE.come(office).certificates[0])
    delivery = office.secrets.rotate_by_hand("pos-000001", NOW)
    assert delivery
    version = office.secrets.listed("pos-000001")[0]
    held = (version.version, version.key_check, version.version)
    assert office.secrets.status("pos-000001", *held, NOW) == (1, False)
    new = fingerprint(ONE.come(office).certificates[0])
    assert office.agents.by_certificate(old) is None
    row = office.agents.by_certificate(new)
    assert row is not None
    assert row.agent_id == "pos-000001"
    assert office.secrets.status("pos-000001", *held, NOW) == (1, True)
    assert office.agents.by_certificate("00" * 32) is None


def test_a_revoked_device_stays_revoked_until_it_is_reinstated(office: Server) -> None:
    certificate = fingerprint(ONE.come(office).certificates[0])
    office.agents.set_status("pos-000001", REVOKED, NOW + 1)
    row = office.agents.by_certificate(certificate)
    assert row is not None
    assert row.status == REVOKED  # found, so that it can be told
    with refused(RefusalCode.AGENT_REVOKED):
        ONE.come(office)
    office.agents.set_status("pos-000001", ACTIVE, NOW + 2)
    assert office.agents.by_certificate(certificate) is None  # its certificates are gone for good
    again = ONE.come(office)
    assert again.serial == 1
    assert office.agents.by_certificate(fingerprint(again.certificates[0])) is not None
    assert TWO.come(office).serial == 2
    with pytest.raises(RegistryError, match="'ghost'"):
        office.agents.set_status("ghost", REVOKED, NOW)


def test_a_factory_device_gets_no_licenses(office: Server) -> None:
    ONE.come(office, factory_only=True)
    row = office.agents.by_id("pos-000001")
    assert row is not None
    assert row.status == FACTORY_ONLY
    assert office.agents.count() == {ACTIVE: 0, REVOKED: 0, FACTORY_ONLY: 1}
    office.secrets.rotate_by_hand("pos-000001", NOW)
    with pytest.raises(RegistryError, match="factory_only"):
        office.licenses.issue("pos-000001", Order("x", "x", (), {}, NOW, NOW + 9), NOW)
    ONE.come(office)
    assert office.licenses.issue("pos-000001", Order("x", "x", (), {}, NOW, NOW + 9), NOW)


def test_a_renewed_certificate_leaves_the_present_one_good(office: Server) -> None:
    old = ONE.come(office).certificates
    with pytest.raises(RequestRefused, match="cannot be read"):
        office.agents.renew_certificate("pos-000001", "no csr", NOW)
    new = office.agents.renew_certificate("pos-000001", make_csr(ONE.tls), NOW + 5)
    assert new[1:] == old[1:]
    for certificate in (old[0], new[0]):
        row = office.agents.by_certificate(fingerprint(certificate))
        assert row is not None
        assert row.agent_id == "pos-000001"


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
    office: Server,
    first: tuple[int | None, str | None],
    second: tuple[int | None, str | None],
    acknowledged: int,
    alert: bool,
) -> None:
    certificate = fingerprint(ONE.come(office).certificates[0])
    office.agents.saw("pos-000001", NOW + 1, certificate, *first)
    assert office.agents.saw("pos-000001", NOW + 2, certificate, *second) == acknowledged
    assert any(record.event == "alert.agent_audit" for record in office.audit.tail(100)) is alert
    row = office.agents.by_id("pos-000001")
    assert row is not None
    assert row.last_seen == NOW + 2
    assert office.agents.saw("ghost", NOW, certificate, 1, HEAD) is None


def test_answers_are_kept_for_two_days(office: Server) -> None:
    ids = [f"{number:032x}" for number in range(3)]
    office.agents.keep_answer("pos-1", ids[0], "digest", "reply", NOW)
    with pytest.raises(IntegrityError):  # whoever keeps an answer has looked, within one unit, that there is none
        office.agents.keep_answer("pos-1", ids[0], "other", "other", NOW)
    assert office.agents.answer_of("pos-1", ids[0]) == ("digest", "reply")
    assert office.agents.answer_of("pos-2", ids[0]) is None
    for number in range(200):
        office.agents.keep_answer("pos-1", f"{number + 9:032x}", "digest", "reply", NOW + ANSWERS_KEPT_S + 1)
    assert office.agents.answer_of("pos-1", ids[0]) is None


def test_an_attempt_lasts_ten_minutes(office: Server) -> None:
    claim_id = office.enrollment_tokens.use(office.enrollment_tokens.create(None, False, 6000, NOW), ONE.hw_id, NOW)
    office.enrollment_tokens.start_attempt("aa" * 16, claim_id, b'{"x": 1}', b"n" * 32, b"credential", NOW)
    office.enrollment_tokens.start_attempt("bb" * 16, claim_id, b"{}", b"m" * 32, None, NOW + 1)
    attempt = office.enrollment_tokens.attempt("aa" * 16, NOW + SESSION_S - 1)
    assert (attempt.claim_id, attempt.begin, attempt.nonce, attempt.credential) == (
        claim_id,
        b'{"x": 1}',
        b"n" * 32,
        b"credential",
    )
    assert "credential" not in repr(attempt)
    assert office.enrollment_tokens.attempt("bb" * 16, NOW + 2).credential is None
    for name, moment in (("aa" * 16, NOW + SESSION_S), ("cc" * 16, NOW)):
        with refused(RefusalCode.CLAIM_REFUSED, "took too long"):
            office.enrollment_tokens.attempt(name, moment)


def test_every_act_is_recorded_in_a_chain_that_shows_what_was_changed(office: Server) -> None:
    ONE.come(office)
    office.agents.set_status("pos-000001", REVOKED, NOW)
    events = [record.event for record in office.audit.tail(100)]
    assert events == ["server.founded", "claim.made", "claim.bound", "agent.activated", "agent.status"]
    assert office.audit.verify() == (5, None)
    assert [record.seq for record in office.audit.read(2, 2)] == [3, 4]
    for statement, found in (
        ("UPDATE audit SET outcome = 'ok!' WHERE seq = 3", (2, "record 3 was changed")),
        ("UPDATE audit SET at = at + 1 WHERE seq = 2", (1, "record 2 was changed")),
        ("DELETE FROM audit WHERE seq = 2", (1, "record 2 is missing")),
    ):
        with office.database.transaction() as session:
            session.execute(sql(statement))
        assert office.audit.verify() == found


def test_what_is_recorded_holds_no_claim(office: Server) -> None:
    text = office.enrollment_tokens.create(None, False, 60, NOW)
    assert text not in json.dumps([record.fields for record in office.audit.tail(100)])
    assert text not in repr(office.enrollment_tokens.listed())
