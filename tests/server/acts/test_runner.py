"""The runner: who may do what is checked, recorded and done once. On both databases."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from server.accounts import accounts, certificates
from server.accounts.roles import SCOPES, Role
from server.acts import approvals, replies
from server.acts.approvals import ApprovalNeeded, ApprovalRow
from server.acts.caller import Caller, local
from server.acts.catalog import ACTS, BY_NAME
from server.acts.replies import KeyReused
from server.acts.runner import PreconditionFailed
from server.base.errors import Conflict, NotAllowed, NotFound, RegistryError
from server.registry import audit
from server.registry.models.core import License
from server.registry.models.operators import OperatorReply
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

DAY = 86_400


@pytest.fixture
def desk(server: ServerSide) -> Desk:
    return Desk(server)


def agent(server: ServerSide, number: int = 1) -> str:
    """An agent that can get licenses."""
    agent_id: str = Device(number).come(server).agent_id
    server.secrets.rotate_by_hand(agent_id, NOW)
    return agent_id


def approved(server: ServerSide, asked: ApprovalRow, by: Caller, now: int = NOW) -> None:
    with server.database.write() as session:
        approvals.decide(session, asked.approval_id, by.account, by.credential, True, now)


# The catalog


def test_every_act_has_a_name_a_path_and_a_scope_of_its_own() -> None:
    assert len(BY_NAME) == len(ACTS) == len({(act.method, act.path) for act in ACTS})
    for act in ACTS:
        assert act.scope == "" or act.scope in SCOPES, act.name
        assert act.scope == "" or act.scope.endswith(":read") is act.reads, act.name
        assert act.summary.endswith("."), act.name
        assert act.body.model_config["extra"] == "forbid", act.name
        assert not (act.match_required and act.present is None), act.name


# Who, and why


def test_the_audit_says_who_how_and_why(server: ServerSide, desk: Desk) -> None:
    officer = account(server, "olga", Role.SECURITY_OFFICER)
    agent_id = agent(server)
    shown = desk.do("agents.revoke", officer, agent_id=agent_id, reason="stolen till")
    assert shown.status == "revoked"
    record = server.audit.tail(1)[0]
    assert (record.actor, record.event) == ("admin", "agent.status")
    assert record.fields == {
        "account": "olga", "agent": agent_id, "credential": "credential of olga", "via": "certificate", "was": "active",
        "why": "stolen till",
    }  # fmt: skip


def test_the_command_line_of_the_server_may_do_everything(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    me = local({"os_user": "root (0)"})
    desk.do("agents.revoke", me, agent_id=agent_id)
    assert server.audit.tail(1)[0].fields == {"agent": agent_id, "os_user": "root (0)", "was": "active"}
    assert desk.do("agents.revoke_many", me, agent_ids=[agent_id]).count == 1  # nobody approves what root could do anyway


def test_a_refusal_is_recorded_and_changes_nothing(server: ServerSide, desk: Desk) -> None:
    viewer = account(server, "vera", Role.VIEWER)
    agent_id = agent(server)
    with pytest.raises(NotAllowed, match=r"agents\.revoke needs security_officer: ask an administrator"):
        desk.do("agents.revoke", viewer, agent_id=agent_id)
    assert server.agent(agent_id).status == "active"  # type: ignore[union-attr]
    record = server.audit.tail(1)[0]
    assert (record.actor, record.event, record.outcome) == ("account vera", "act.refused", "refused")
    assert record.fields["act"] == "agents.revoke"


def test_refusals_without_end_are_counted(server: ServerSide, desk: Desk) -> None:
    viewer = account(server, "vera", Role.VIEWER)
    desk.runner._steady = lambda: 0.0
    for _ in range(50):
        with pytest.raises(NotAllowed):
            desk.do("agents.revoke", viewer, agent_id="a")
    assert len([each for each in server.audit.tail(100) if each.event == "act.refused"]) == 30
    desk.runner._steady = lambda: 3600.0
    with pytest.raises(NotAllowed):
        desk.do("agents.revoke", viewer, agent_id="a")
    assert server.audit.tail(1)[0].fields["unrecorded"] == 20


def test_a_token_does_only_what_its_scopes_say(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    shop = replace(account(server, "shop", Role.ISSUER, "program"), scopes=frozenset({"licenses:read"}))
    desk.do("licenses.list", shop)
    with pytest.raises(NotAllowed, match="has not the scope 'licenses:write'"):
        desk.do("licenses.issue", shop, agent_id=agent_id, expires=NOW + DAY)
    # A scope gives nothing that the role does not.
    wide = replace(shop, scopes=SCOPES, role=Role.VIEWER)
    with pytest.raises(NotAllowed, match="needs issuer"):
        desk.do("licenses.issue", wide, agent_id=agent_id, expires=NOW + DAY)


# Idempotency


def test_the_same_request_with_the_same_key_is_done_once(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    ines = account(server, "ines", Role.ISSUER)
    first = desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + DAY, idempotency_key="order 7")
    again = desk.do("licenses.issue", ines, NOW + 60, agent_id=agent_id, expires=NOW + DAY, idempotency_key="order 7")
    assert again == first
    with server.database.read() as session:
        assert len(session.scalars(select(License)).all()) == 1
        sealed = session.scalars(select(OperatorReply)).one().sealed
        assert sealed is not None
        assert first.token.encode() not in sealed
    other = desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + DAY, idempotency_key="order 8")
    assert other.license.license_id != first.license.license_id


def test_a_key_does_not_come_again_with_another_body(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    ines = account(server, "ines", Role.ISSUER)
    desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + DAY, idempotency_key="order 7")
    with pytest.raises(KeyReused, match="another request"):
        desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + 2 * DAY, idempotency_key="order 7")


def test_a_key_is_the_accounts_own(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    for name in ("ines", "ivan"):
        desk.do("licenses.issue", account(server, name, Role.ISSUER), agent_id=agent_id, expires=NOW + DAY, idempotency_key="1")
    with server.database.read() as session:
        assert len(session.scalars(select(License)).all()) == 2


def test_a_failed_request_may_be_sent_again_with_its_key(server: ServerSide, desk: Desk) -> None:
    ines = account(server, "ines", Role.ISSUER)
    with pytest.raises(NotFound):
        desk.do("licenses.issue", ines, agent_id="nobody", expires=NOW + DAY, idempotency_key="k")
    agent_id = agent(server)
    desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + DAY, idempotency_key="k")


def test_two_requests_with_one_key_at_once_are_done_once(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    ines = account(server, "ines", Role.ISSUER)
    start, done = threading.Barrier(4), []

    def send() -> None:
        start.wait()
        done.append(desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + DAY, idempotency_key="k"))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.license.license_id for each in done}) == 1
    assert len(done) == 4


def test_a_kept_reply_ends(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    ines = account(server, "ines", Role.ISSUER)
    first = desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + 9 * DAY, idempotency_key="k")
    later = desk.do("licenses.issue", ines, NOW + DAY, agent_id=agent_id, expires=NOW + 9 * DAY, idempotency_key="k")
    assert later.license.license_id != first.license.license_id


def test_a_retired_agent_is_shown_as_retired_and_its_license_as_ended(server: ServerSide, desk: Desk) -> None:
    agent_id, olga, ines = agent(server), account(server, "olga", Role.SECURITY_OFFICER), account(server, "ines", Role.ISSUER)
    issued = desk.do("licenses.issue", ines, agent_id=agent_id, expires=NOW + DAY)
    for _ in range(2):
        done = desk.do("agents.retire", olga, agent_id=agent_id, idempotency_key="k")
        assert (done.status, done.retired_at) == ("retired", NOW)
    assert [each.agent_id for each in desk.do("agents.list", olga, status="retired").items] == [agent_id]
    assert desk.do("licenses.show", ines, license_id=issued.license.license_id).state == "agent_retired"
    assert desk.do("agents.reinstate", olga, agent_id=agent_id).status == "active"


# Preconditions


def test_what_has_changed_since_is_not_changed(server: ServerSide, desk: Desk) -> None:
    olga = account(server, "olga", Role.SECURITY_OFFICER)
    agent_id = agent(server)
    act = BY_NAME["agents.revoke"]
    assert act.etag is not None
    seen = act.etag(desk.do("agents.show", olga, agent_id=agent_id))
    desk.do("agents.revoke", olga, NOW + 1, agent_id=agent_id, if_match=seen)
    with pytest.raises(PreconditionFailed, match="read it again"):
        desk.do("agents.reinstate", olga, NOW + 2, agent_id=agent_id, if_match=seen)
    assert server.agent(agent_id).status == "revoked"  # type: ignore[union-attr]


# Two persons


def asked(desk: Desk, caller: Caller, name: str = "agents.revoke_many", now: int = NOW, **body: Any) -> ApprovalRow:
    with pytest.raises(ApprovalNeeded) as needed:
        desk.do(name, caller, now, reason="a whole van was stolen", **body)
    return needed.value.approval


def test_what_touches_many_needs_two_people(server: ServerSide, desk: Desk) -> None:
    olga, otto = (account(server, name, Role.SECURITY_OFFICER) for name in ("olga", "otto"))
    ids = [agent(server, number) for number in (1, 2)]
    wanted = asked(desk, olga, agent_ids=ids)
    assert wanted.state == "open"
    assert wanted.reason == "a whole van was stolen"
    assert asked(desk, olga, agent_ids=ids).approval_id == wanted.approval_id  # not another one
    with pytest.raises(Conflict, match="is open; it must be approved"):
        desk.do("agents.revoke_many", olga, agent_ids=ids, approval=wanted.approval_id)
    approved(server, wanted, otto)
    assert desk.do("agents.revoke_many", olga, agent_ids=ids, approval=wanted.approval_id).count == 2
    assert server.audit.tail(1)[0].fields["approval"] == wanted.approval_id
    with pytest.raises(Conflict, match="is used"):
        desk.do("agents.revoke_many", olga, agent_ids=ids, approval=wanted.approval_id)


def test_an_approval_is_for_exactly_one_request_of_one_person(server: ServerSide, desk: Desk) -> None:
    olga, otto, omar = (account(server, name, Role.SECURITY_OFFICER) for name in ("olga", "otto", "omar"))
    ids = [agent(server, number) for number in (1, 2)]
    wanted = asked(desk, olga, agent_ids=ids[:1])
    approved(server, wanted, otto)
    with pytest.raises(Conflict, match="exactly what was asked"):
        desk.do("agents.revoke_many", olga, agent_ids=ids, approval=wanted.approval_id)
    with pytest.raises(Conflict, match="exactly what was asked"):
        desk.do("secrets.rotate_all", olga, approval=wanted.approval_id)
    with pytest.raises(NotFound, match="you have asked for no approval"):
        desk.do("agents.revoke_many", omar, agent_ids=ids[:1], approval=wanted.approval_id)
    with pytest.raises(Conflict, match="is expired"):
        desk.do("agents.revoke_many", olga, NOW + DAY, agent_ids=ids[:1], approval=wanted.approval_id)
    assert [row.status for row in server.agents.listed()] == ["active", "active"]


@pytest.mark.parametrize("ended", ["disabled", "removed", "demoted", "certificate"])
def test_an_approval_counts_while_its_approver_could_give_it(server: ServerSide, desk: Desk, ended: str) -> None:
    olga, otto = (account(server, name, Role.SECURITY_OFFICER) for name in ("olga", "otto"))
    account(server, "root", Role.ADMINISTRATOR)
    agent_id = agent(server)
    wanted = asked(desk, olga, agent_ids=[agent_id])
    approved(server, wanted, otto)
    with server.database.write() as session:
        if ended == "certificate":
            certificates.revoke(session, otto.credential, "otto", NOW)
        elif ended == "demoted":
            accounts.change(session, "otto", "root", NOW, role=Role.ISSUER)
        else:
            accounts.change(session, "otto", "root", NOW, state=ended)
    with pytest.raises(Conflict, match="does not count any more: account 'otto'"):
        desk.do("agents.revoke_many", olga, agent_ids=[agent_id], approval=wanted.approval_id)
    assert server.agent(agent_id).status == "active"  # type: ignore[union-attr]
    another = asked(desk, olga, agent_ids=[agent_id])
    assert (another.state, another.approval_id == wanted.approval_id) == ("open", False)
    approved(server, another, account(server, "omar", Role.SECURITY_OFFICER))
    assert desk.do("agents.revoke_many", olga, agent_ids=[agent_id], approval=another.approval_id).count == 1


def test_who_uses_the_servers_machine_approves_nothing(server: ServerSide, desk: Desk) -> None:
    olga = account(server, "olga", Role.SECURITY_OFFICER)
    wanted = asked(desk, olga, agent_ids=["a"])
    with pytest.raises(NotAllowed, match="can do the act itself there, with --local"):
        desk.do("approvals.approve", local(), approval_id=wanted.approval_id)


def test_no_act_uses_up_its_approval_before_it_acts() -> None:
    with pytest.raises(ValueError, match="in the transaction that uses it"):
        replace(BY_NAME["licenses.import"], approval=True)


def test_nobody_approves_their_own_request(server: ServerSide, desk: Desk) -> None:
    olga = account(server, "olga", Role.SECURITY_OFFICER)
    otto = account(server, "otto", Role.SECURITY_OFFICER)
    wanted = asked(desk, olga, agent_ids=["a"])
    for same in (olga, replace(olga, credential="another key"), replace(otto, credential=olga.credential)):
        with pytest.raises(NotAllowed, match="nobody approves their own"):
            approved(server, wanted, same)


def test_nobody_makes_the_second_person_for_the_occasion(server: ServerSide, desk: Desk) -> None:
    root = account(server, "root", Role.ADMINISTRATOR)
    puppet = account(server, "puppet", Role.SECURITY_OFFICER, by="root")
    wanted = asked(desk, root, agent_ids=["a"])
    with pytest.raises(NotAllowed, match="within a day"):
        approved(server, wanted, puppet, NOW + DAY - 1)
    later = asked(desk, root, now=NOW + DAY, agent_ids=["a"])
    approved(server, later, puppet, NOW + DAY + 1)


def test_a_change_of_ones_own_does_not_hide_who_made_the_account(server: ServerSide, desk: Desk) -> None:
    root = account(server, "root", Role.ADMINISTRATOR)
    puppet = account(server, "puppet", Role.ADMINISTRATOR, by="root")
    wanted = asked(desk, root, agent_ids=["a"])
    desk.do("accounts.change", puppet, NOW + 1, name="puppet", may_break_glass=True, if_match="1")
    with pytest.raises(NotAllowed, match="within a day"):
        approved(server, wanted, puppet, NOW + 2)


def test_nobody_has_the_second_person_made_by_a_third_one(server: ServerSide, desk: Desk) -> None:
    root = account(server, "root", Role.ADMINISTRATOR)
    account(server, "third", Role.ADMINISTRATOR, by="root")
    puppet = account(server, "puppet", Role.SECURITY_OFFICER, by="third")
    wanted = asked(desk, root, agent_ids=["a"])
    with pytest.raises(NotAllowed, match="within a day"):
        approved(server, wanted, puppet)


def test_emergency_access_needs_no_second_person_and_is_an_alert(server: ServerSide, desk: Desk) -> None:
    sam = replace(account(server, "sam", Role.SUPPORT), break_glass="b" * 32)
    agent_id = agent(server)
    assert desk.do("agents.revoke_many", sam, agent_ids=[agent_id]).count == 1
    alert = next(each for each in server.audit.tail(2) if each.outcome == "alert")
    assert (alert.event, alert.fields["act"], alert.fields["break_glass"]) == (
        "act.performed", "agents.revoke_many", "b" * 32
    )  # fmt: skip


# Acts with transactions of their own


def test_all_agents_rotate_and_the_audit_says_who_asked(server: ServerSide, desk: Desk) -> None:
    olga, otto = (account(server, name, Role.SECURITY_OFFICER) for name in ("olga", "otto"))
    agent(server)
    wanted = asked(desk, olga, "secrets.rotate_all")
    approved(server, wanted, otto)
    done = desk.do("secrets.rotate_all", olga, approval=wanted.approval_id, idempotency_key="k")
    assert done.count == 1
    assert desk.do("secrets.rotate_all", olga, approval=wanted.approval_id, idempotency_key="k") == done
    records = [each for each in server.audit.tail(10) if each.event == "rotation.demanded"]
    assert [each.fields["account"] for each in records] == ["olga", "olga"]
    with server.database.read() as session:
        assert audit.verify(session, server.cipher.audit_key())[1] is None


def test_many_agents_are_revoked_or_none(server: ServerSide, desk: Desk) -> None:
    agent_id = agent(server)
    with pytest.raises(RegistryError, match="no agent 'nobody'"):
        desk.do("agents.revoke_many", local(), agent_ids=[agent_id, "nobody"])
    assert server.agent(agent_id).status == "active"  # type: ignore[union-attr]


def test_what_is_kept_of_a_request_does_not_tell_whom_it_names(server: ServerSide) -> None:
    """A digest without a key would: names can be guessed."""
    body, place = '{"name":"Erika Mustermann"}', replies.place_of("erna", "customers.make", "key-1")
    digest = replies.digest_of("customers.make", body)
    with server.database.write() as session:
        assert replies.kept(session, server.cipher, place, digest, NOW) is None
        replies.keep(session, server.cipher, place, digest, "{}", NOW)
        row = session.get(OperatorReply, place)
        assert row is not None
        assert digest not in row.digest
        assert replies.kept(session, server.cipher, place, digest, NOW) == "{}"
        with pytest.raises(replies.KeyReused):
            replies.kept(session, server.cipher, place, replies.digest_of("customers.make", "{}"), NOW)
