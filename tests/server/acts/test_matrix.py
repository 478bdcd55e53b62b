"""Who may do what: every role with every act. Each cell is tried: allowed, or refused and recorded. On both databases."""

from dataclasses import replace
from typing import Any

import pytest

from server.accounts import accounts
from server.accounts.roles import Role
from server.acts.act import Act
from server.acts.approvals import ApprovalNeeded
from server.acts.caller import Caller
from server.acts.catalog import ACTS
from server.base.errors import NotAllowed, RegistryError
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

EVERYBODY = "viewer support issuer security_officer administrator"
SELLING = "issuer administrator"
HELPING = "support issuer administrator"
SECURITY = "security_officer administrator"
ALL_BUT_VIEWERS = "support issuer security_officer administrator"
ENDING = "issuer security_officer administrator"
MATRIX = {
    "health.show": EVERYBODY,
    "me.show": EVERYBODY,
    "audit.list": SECURITY,
    "agents.list": EVERYBODY,
    "agents.show": EVERYBODY,
    "agents.show_key": EVERYBODY,
    "clones.list": EVERYBODY,
    "clones.show": EVERYBODY,
    "agents.revoke": SECURITY,
    "agents.retire": SECURITY,
    "agents.reinstate": SECURITY,
    "agents.revoke_many": SECURITY,
    "agents.resume": SECURITY,
    "secrets.list": EVERYBODY,
    "secrets.rotate": ALL_BUT_VIEWERS,
    "secrets.rotate_all": SECURITY,
    "secrets.rotate_on": SECURITY,
    "secrets.invalidate": SECURITY,
    "products.list": EVERYBODY,
    "products.show": EVERYBODY,
    "products.create": SELLING,
    "products.change": SELLING,
    "products.retire": SELLING,
    "entitlement_sets.list": EVERYBODY,
    "entitlement_sets.show": EVERYBODY,
    "entitlement_sets.create": SELLING,
    "entitlement_sets.change": SELLING,
    "policies.list": EVERYBODY,
    "policies.show": EVERYBODY,
    "policies.create": SELLING,
    "policies.change": SELLING,
    "policies.retire": SELLING,
    "customers.list": EVERYBODY,
    "customers.show": EVERYBODY,
    "customers.list_details": HELPING,
    "customers.show_details": HELPING,
    "customers.create": SELLING,
    "customers.change": SELLING,
    "customers.erase": SECURITY,
    "customers.import": SELLING,
    "sites.list": EVERYBODY,
    "sites.show": EVERYBODY,
    "sites.list_details": HELPING,
    "sites.show_details": HELPING,
    "sites.create": SELLING,
    "sites.change": SELLING,
    "sites.import": SELLING,
    "licenses.list": EVERYBODY,
    "licenses.show": EVERYBODY,
    "licenses.history": EVERYBODY,
    "licenses.issue": SELLING,
    "licenses.suspend": ENDING,
    "licenses.reinstate": ENDING,
    "licenses.renew": SELLING,
    "licenses.upgrade": SELLING,
    "licenses.assign": HELPING,
    "licenses.transfer": HELPING,
    "licenses.release": SELLING,
    "licenses.revoke": ENDING,
    "agents.replace": HELPING,
    "licenses.issue_many": SELLING,
    "licenses.import": SELLING,
    "licenses.export": EVERYBODY,
    "reports.expiry": EVERYBODY,
    "reports.devices": EVERYBODY,
    "reports.usage": EVERYBODY,
    "reports.usage_sums": EVERYBODY,
    "seats.list": EVERYBODY,
    "seats.show": EVERYBODY,
    "seats.set": SELLING,
    "seats.free": SELLING,
    "agents.assign": SELLING,
    "devices.list": EVERYBODY,
    "devices.show": EVERYBODY,
    "devices.change": ALL_BUT_VIEWERS,
    "devices.tag": ALL_BUT_VIEWERS,
    "devices.untag": ALL_BUT_VIEWERS,
    "devices.set": ALL_BUT_VIEWERS,
    "devices.unset": ALL_BUT_VIEWERS,
    "devices.block": SECURITY,
    "devices.unblock": SECURITY,
    "fleets.list": EVERYBODY,
    "fleets.match": EVERYBODY,
    "fleets.show": EVERYBODY,
    "fleets.health": EVERYBODY,
    "fleets.observations": EVERYBODY,
    "fleets.thresholds": EVERYBODY,
    "fleets.set_thresholds": SECURITY,
    "fleet_alerts.list": EVERYBODY,
    "fleet_alerts.show": EVERYBODY,
    "fleet_alerts.acknowledge": ALL_BUT_VIEWERS,
    "fleet_alerts.silence": ALL_BUT_VIEWERS,
    "fleet_alerts.silences": EVERYBODY,
    "fleet_alerts.end_silence": ALL_BUT_VIEWERS,
    "fleets.create": SECURITY,
    "fleets.change": SECURITY,
    "fleets.delete": SECURITY,
    "fleets.add_members": ALL_BUT_VIEWERS,
    "fleets.remove_members": ALL_BUT_VIEWERS,
    "fleets.configure": SECURITY,
    "fleets.end_configuration": SECURITY,
    "fleets.configuration": EVERYBODY,
    "fleets.configurations": EVERYBODY,
    "fleets.certificates": EVERYBODY,
    "fleets.drift": EVERYBODY,
    "fleets.opens": EVERYBODY,
    "updates.packages": EVERYBODY,
    "updates.show": EVERYBODY,
    "updates.assign": ALL_BUT_VIEWERS,
    "updates.downgrade": SECURITY,
    "updates.bundle": SECURITY,
    "updates.withdraw": ALL_BUT_VIEWERS,
    "updates.pause": ALL_BUT_VIEWERS,
    "updates.resume": ALL_BUT_VIEWERS,
    "updates.pause_all": ALL_BUT_VIEWERS,
    "updates.resume_all": SECURITY,
    "rollouts.list": EVERYBODY,
    "rollouts.show": EVERYBODY,
    "rollouts.devices": EVERYBODY,
    "rollouts.rehearse": EVERYBODY,
    "rollouts.create": SECURITY,
    "rollouts.start": SECURITY,
    "rollouts.pause": ALL_BUT_VIEWERS,
    "rollouts.resume": SECURITY,
    "rollouts.stop": ALL_BUT_VIEWERS,
    "rollouts.roll_back": SECURITY,
    "rollouts.show_policy": EVERYBODY,
    "rollouts.set_policy": SECURITY,
    "rollouts.automatic": EVERYBODY,
    "rollouts.automatic_on": SECURITY,
    "rollouts.automatic_off": ALL_BUT_VIEWERS,
    "ddi.list": EVERYBODY,
    "ddi.add": SECURITY,
    "ddi.make_token": SECURITY,
    "ddi.issue": SECURITY,
    "ddi.revoke_all": SECURITY,
    "ddi.make_gateway_token": SECURITY,
    "ddi.list_credentials": EVERYBODY,
    "ddi.revoke": SECURITY,
    "ddi.show_policy": EVERYBODY,
    "ddi.set_policy": SECURITY,
    "enrollment_tokens.list": ALL_BUT_VIEWERS,
    "enrollment_tokens.make": HELPING,
    "enrollment_tokens.make_many": HELPING,
    "enrollment_tokens.revoke": ALL_BUT_VIEWERS,
    "keys.list": EVERYBODY,
    "keys.rotate": SECURITY,
    "keys.use_next": SECURITY,
    "keys.revert": SECURITY,
    "events.list": EVERYBODY,
    "webhooks.list": EVERYBODY,
    "webhooks.add": "administrator",
    "webhooks.change": "administrator",
    "webhooks.new_secret": "administrator",
    "webhooks.test": "administrator",
    "webhooks.pause": "administrator",
    "webhooks.resume": "administrator",
    "webhooks.remove": "administrator",
    "webhooks.list_dead_letters": EVERYBODY,
    "webhooks.retry": "administrator",
    "accounts.list": SECURITY,
    "accounts.show": SECURITY,
    "accounts.make": "administrator",
    "accounts.change": "administrator",
    "accounts.set_subject": "administrator",
    "certificates.list": SECURITY,
    "certificates.issue": "administrator",
    "certificates.renew": EVERYBODY,
    "certificates.revoke": SECURITY,
    "tokens.list": SECURITY,
    "tokens.make": "administrator",
    "tokens.rotate": EVERYBODY,
    "tokens.revoke": EVERYBODY,
    "break_glass.list": SECURITY,
    "break_glass.begin": EVERYBODY,
    "break_glass.end": EVERYBODY,
    "approvals.list": EVERYBODY,
    "approvals.show": EVERYBODY,
    "approvals.approve": SECURITY,
    "approvals.refuse": SECURITY,
}
OWN = {"tokens.rotate", "tokens.revoke", "break_glass.begin", "break_glass.end"}
"""Acts that everybody may ask for, and that look for themselves whose token or emergency access it is."""
PEOPLE_ONLY = {
    "accounts.make", "accounts.change", "accounts.set_subject", "certificates.issue", "certificates.renew",
    "certificates.revoke", "tokens.make", "break_glass.begin", "break_glass.end", "approvals.approve", "approvals.refuse",
}  # fmt: skip


def body_of(act: Act, agent_id: str) -> Any:
    """A body that has the right form. What it names may not exist: that is found out only by who may ask."""
    known = {
        "agent_id": agent_id, "agent_ids": [agent_id], "license_id": "l", "version": 1, "claim_id": 1, "kind": "tls",
        "name": "erna", "role": "viewer", "csr": "x", "fingerprint": "ab", "token_id": "aaaaaaaaaaaa", "expires": NOW + 9,
        "scopes": ["health:read"], "break_glass_id": "ab", "approval_id": "ab", "why": "a good reason",
        "product": "x", "entitlement_set": "x", "policy": "x", "customer": "x", "site": "x", "fields": {}, "successor": "x",
        "device_id": agent_id, "device_ids": [agent_id], "tags": ["x"], "attributes": {"x": "y"}, "names": ["x"],
        "fleet_id": "f", "selection": "tag=x",
        "count": 1, "batch": "b", "seats": 1, "seat": "s", "target": "pos/x", "days": 9,
        "rollout_id": "r", "back_id": "r-back",
        "key": "identity", "webhook_id": "wh-0123456789ab", "url": "https://shop.example/",
        "credential_id": "a" * 12, "alert_id": "fa-0123456789ab", "silence_id": "fs-0123456789ab", "ends_at": NOW + 9,
    }  # fmt: skip
    needed = {name: known[name] for name, field in act.body.model_fields.items() if field.is_required() and name != "kind"}
    if act.name == "rollouts.set_policy":
        needed["policy"] = {}
    if act.name == "accounts.make":
        needed["kind"] = "program"
    elif "kind" in act.body.model_fields and act.name != "fleet_alerts.silence":
        needed["kind"] = "tls" if act.name == "keys.rotate" else "license"
    return needed


def is_allowed(desk: Desk, act: Act, caller: Caller, agent_id: str) -> bool:
    """Whether the caller may; everything else that can be wrong comes after that."""
    before = desk.server.audit.newest()
    options = {"if_match": "*"} if act.match_required else {}
    try:
        desk.do(act.name, caller, **body_of(act, agent_id), **options)
    except NotAllowed as refused:
        records = [each for each in desk.server.audit.tail(5) if each.seq > before]
        if act.name in OWN and not records:
            assert "may not take emergency" in str(refused) or "only a" in str(refused)
            return True
        assert [(each.event, each.fields["act"], each.actor) for each in records] == [
            ("act.refused", act.name, f"account {caller.account}")
        ]
        return False
    except ApprovalNeeded:
        return True
    except RegistryError:
        return True
    return True


def test_the_matrix_has_every_act() -> None:
    assert set(MATRIX) == {act.name for act in ACTS}
    assert {act.name for act in ACTS if act.people_only} == PEOPLE_ONLY


def test_who_approves_an_act_may_do_it_too() -> None:
    assert {act.least for act in ACTS if act.approval} == {Role.SECURITY_OFFICER}


def test_every_role_with_every_act(server: ServerSide) -> None:
    desk = Desk(server)
    agent_id: str = Device(1).come(server).agent_id
    with server.database.write() as session:
        accounts.create(session, "keeper", "person", Role.ADMINISTRATOR, "local", NOW)
    account(server, "erna", Role.VIEWER)
    callers = {role: account(server, f"p-{role.value.replace('_', '-')}", role) for role in Role}
    found = {
        act.name: " ".join(role.value for role, caller in callers.items() if is_allowed(desk, act, caller, agent_id))
        for act in ACTS
    }
    assert found == MATRIX


def test_a_program_does_nothing_that_is_for_people(server: ServerSide) -> None:
    desk = Desk(server)
    agent_id: str = Device(1).come(server).agent_id
    robot = account(server, "robot", Role.SECURITY_OFFICER, "program")
    for act in ACTS:
        if act.name in PEOPLE_ONLY:
            for role in (Role.SECURITY_OFFICER, Role.ADMINISTRATOR):  # the second one cannot be, and would not help
                with pytest.raises(NotAllowed, match="only a person"):
                    desk.do(act.name, replace(robot, role=role), **body_of(act, agent_id))


def test_a_scope_that_is_missing_refuses_every_act(server: ServerSide) -> None:
    desk = Desk(server)
    robot = replace(account(server, "robot", Role.ADMINISTRATOR), kind="program", scopes=frozenset(), via="token")
    agent_id: str = Device(1).come(server).agent_id
    without = []
    for act in ACTS:
        if act.people_only:
            continue
        if act.scope == "":
            without.append(act.name)
            continue
        with pytest.raises(NotAllowed, match="has not the scope"):
            desk.do(act.name, robot, **body_of(act, agent_id))
    assert without == ["me.show", "tokens.rotate", "tokens.revoke"]


def test_emergency_access_gives_all_but_the_accounts(server: ServerSide) -> None:
    desk = Desk(server)
    agent_id: str = Device(1).come(server).agent_id
    sam = replace(account(server, "sam", Role.SUPPORT), break_glass="b" * 32)
    for act in ACTS:
        allowed = is_allowed(desk, act, sam, agent_id)
        assert allowed is (not act.scope.startswith("accounts:")), act.name
