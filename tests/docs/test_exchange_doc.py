"""What docs/protocol.md says of agent and server is what their forms and bounds are."""

import re
from pathlib import Path
from typing import Any

import pytest

from agentd.base.clock import signedtime
from agentd.base.config.fleetconfig import DEFAULT_ACCEPT, DEFAULT_LIMITS
from agentd.licenses import inventory
from agentd.rotation import table
from agentd.secrets import trusted_time, withheld
from agentd.sync import capabilities as agent_side
from agentd.sync import licenses as license_sync
from agentd.uplink import client as asking
from agentd.uplink import schedule
from contracts import exchange, keyset
from contracts.contact import capabilities, configuration, licensesync, renewal, updates, usage
from contracts.contact import seats as leasing
from contracts.contact.capabilities import CAPABILITIES_TYPE, AnnounceReply, Capabilities
from contracts.contact.configuration import BOUNDS, Configuration, ConfigurationReply, ConfigurationResult, ResultState
from contracts.contact.licensesync import SyncReply
from contracts.contact.seats import LeaseReply
from contracts.contact.updates import UpdatesReply
from contracts.contact.usage import UsageReply
from contracts.enrollment import enrollment, evidence
from contracts.enrollment.enrollment import COMPLETE_TYPE, Begin, Begun, Claim, Complete, Completed
from contracts.exchange import AnyReply, AnyRequest, RefusalCode, Reply, Request, purpose_of
from contracts.keyset import KEY_SET_TYPE, KeySet
from server.agents import certificates, enrollment_tokens
from server.exchange import capabilities as server_side
from server.exchange import challenges, kept_replies
from server.exchange import content as answering
from server.keys import pki
from server.licensing.licenses import usage as server_usage
from server.licensing.sales import seats as server_seats
from server.licensing.secrets import periods, secrets
from server.web import peers, responses

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
PART = PAGE.partition("\n## Agent and server\n")[2].partition("\n## ")[0]
PROSE = " ".join(PART.split())


def section(title: str) -> str:
    """The text under a heading of the third level."""
    found = PART.partition(f"\n### {title}\n")[2]
    assert found, title
    return found.partition("\n### ")[0]


def tables(text: str) -> list[dict[str, list[str]]]:
    """Every table, as its rows by their first cell."""
    found: list[dict[str, list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()[2:]]
        found.append({row[0].strip("| `"): row[1:] for row in rows})
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w-]+)`", cell)


def own_fields(kind: type[Any], common: type[Any]) -> list[str]:
    return [name for name in kind.__struct_fields__ if name not in common.__struct_fields__]


PURPOSES, MEMBERS, REPLIES = tables(section("Purposes"))
KINDS = answering.KINDS
SENT = {
    str(kind.__struct_config__.tag): kind
    for kind in (*AnyReply.__args__, AnnounceReply, SyncReply, UsageReply, LeaseReply, UpdatesReply, ConfigurationReply)
}


def test_what_all_requests_and_replies_carry_is_told() -> None:
    _, request, reply = tables(section("Signed requests and replies"))
    assert list(request) == list(Request.__struct_fields__)
    assert list(reply) == list(Reply.__struct_fields__)
    assert f"`{exchange.REQUEST_TYPE}`" in PROSE and f"`{exchange.REPLY_TYPE}`" in PROSE


def test_every_purpose_and_its_members_are_told() -> None:
    assert set(PURPOSES) == set(KINDS) >= {purpose_of(kind) for kind in AnyRequest.__args__}
    for purpose, (cell, reply) in PURPOSES.items():
        assert names(cell) == own_fields(KINDS[purpose], Request), purpose
        assert names(reply)[0] in SENT
    assert set(MEMBERS) == {name for kind in KINDS.values() for name in own_fields(kind, Request)}


def test_every_reply_and_its_members_are_told() -> None:
    assert set(REPLIES) == set(SENT)
    for kind, row in REPLIES.items():
        assert names(row[0]) == own_fields(SENT[kind], Reply), kind


def test_every_refusal_code_is_in_the_table_in_its_order() -> None:
    (codes,) = tables(section("Refusal codes"))
    assert list(codes) == [code.value for code in RefusalCode]
    kept = re.search(r"Not kept are the refusals ([^.]*)\.", PROSE)
    assert kept is not None
    assert set(names(kept[1])) == {code.value for code in responses.PASSING} | {"replayed", "agent_revoked"}


@pytest.mark.parametrize("form", [Claim, Begin, Begun, Complete, Completed])
def test_every_form_of_provisioning_is_told(form: type[Any]) -> None:
    told = tables(section("Provisioning"))[0][form.__name__]
    wanted = own_fields(form, Reply) if issubclass(form, Reply) else list(form.__struct_fields__)
    assert names(told[0]) == wanted
    assert f"`{COMPLETE_TYPE}`" in PROSE


def test_the_evidence_is_told() -> None:
    text = section("Provisioning").partition("**Evidence.**")[2]
    for form in (evidence.TpmEvidence, evidence.CertifiedKey, evidence.SoftwareEvidence):
        assert [name for name in form.__struct_fields__ if f"`{name}`" not in text] == []


def test_what_a_credential_authenticates_is_told() -> None:
    made = enrollment.proof_input("session", b"nonce", "csr").split(b"\0")
    assert f"`{made[0].decode()}`, `session`, `nonce` and `csr`, joined by zero bytes" in PROSE and len(made) == 4


def test_every_member_of_a_key_set_is_told() -> None:
    (members,) = tables(section("Key set"))
    assert list(members) == list(KeySet.__struct_fields__)
    assert f"`{KEY_SET_TYPE}`" in PROSE and f"{keyset.MAX_KEY_SET_CHARS:,} characters" in PROSE


def test_the_list_of_capabilities_is_told() -> None:
    members, told = tables(section("Capabilities"))
    assert list(members) == list(Capabilities.__struct_fields__) and f"`{CAPABILITIES_TYPE}`" in PROSE
    assert set(told) == set(server_side.CAPABILITIES)
    # The server may be ahead of the agent: who does not know a name passes over it.
    assert set(told) - {updates.UPDATES} <= set(agent_side.CAPABILITIES) <= set(told)
    assert f"{capabilities.MAX_CAPABILITIES_CHARS:,} characters" in PROSE and agent_side.ASK_EVERY_S == 86_400
    assert f"at most {capabilities.MAX_CAPABILITIES} names" in PROSE


def test_the_changes_of_licenses_are_told() -> None:
    (members,) = tables(section("Licenses by contact"))
    assert list(members) == list(licensesync.LicenseChange.__struct_fields__)
    assert names(members["standing"][0]) == [standing.value for standing in licensesync.Standing]
    assert f"at most {licensesync.MAX_CURSOR_CHARS} characters" in section("Purposes")


def test_totals_of_usage_are_told() -> None:
    (members,) = tables(section("Usage"))
    assert list(members) == list(usage.MeterTotal.__struct_fields__)


def test_seats_are_told() -> None:
    offered, leased = tables(section("Seats of floating licenses"))
    assert list(offered) == list(leasing.FloatingLicense.__struct_fields__)
    assert list(leased) == list(leasing.SeatLease.__struct_fields__)


def test_what_a_fleet_sets_is_told() -> None:
    text = section("Configuration of a fleet")
    document, members, result = tables(text)
    assert list(document) == list(Configuration.__struct_fields__) and list(members) == list(configuration.NAMES)
    assert list(result) == list(ConfigurationResult.__struct_fields__)
    assert names(result["state"][0]) == [state.value for state in ResultState]
    for name, (least, most) in BOUNDS.items():
        assert members[name][0] == f"{least} to {most}", name
    assert (
        f"`{configuration.CONFIGURATION_TYPE}`" in text
        and f"at most {configuration.MAX_CONFIGURATION_CHARS:,} characters" in text
    )
    assert f"at most {configuration.MAX_DETAIL_CHARS} characters" in text


def test_what_a_machine_accepts_without_a_section_is_told() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text("utf-8")
    (told,) = tables(page.partition("\n### What a fleet may set\n")[2].partition("\n### ")[0])
    assert list(told) == list(configuration.NAMES)
    for name, row in told.items():
        assert row[0].startswith("yes") is (name in DEFAULT_ACCEPT), name
        if name in BOUNDS:
            least, most = DEFAULT_LIMITS[name]
            assert row[1] == f"{least:,} to {most:,}", name
            least, most = BOUNDS[name]
            same = BOUNDS[name] == DEFAULT_LIMITS[name]
            assert row[2].strip(" |") == ("the same" if same else f"{least:,} to {most:,}"), name


def test_every_bound_is_in_the_table_with_its_value() -> None:
    (bounds,) = tables(section("Bounds of the exchange"))
    values = {name: value for name, value in vars(exchange).items() if name.isupper() and isinstance(value, int)}
    del values["MAX_TIME"], values["MAX_VERSION"], values["MAX_ID_CHARS"], values["MAX_HEADER_CHARS"], values["MAX_TOKEN_CHARS"]
    values |= {
        "MAX_KEY_SET_CHARS": keyset.MAX_KEY_SET_CHARS,
        "CHALLENGE_LIFETIME_S": challenges.CHALLENGE_LIFETIME_S,
        "CLOCK_TOLERANCE_S": challenges.CLOCK_TOLERANCE_S,
        "CHALLENGE_KEPT_S": int(asking.CHALLENGE_KEPT_S),
        "FRESH_S": int(trusted_time.FRESH_S),
        "ANSWERS_KEPT_S": kept_replies.KEPT_S,
        "SESSION_S": enrollment_tokens.ATTEMPT_S,
        "CERTIFICATE_S": certificates.LIFETIME_S,
        "REVOCATIONS_LAST_S": periods.REVOCATIONS_LAST_S,
        "MAX_LIVE": secrets.MAX_LIVE,
        "MAX_CHANGES_PER_REPLY": licensesync.MAX_CHANGES_PER_REPLY,
        "MAX_PAGES": license_sync.MAX_PAGES,
        "MAX_COUNTERS_PER_REPORT": usage.MAX_COUNTERS_PER_REPORT,
        "MAX_EPOCHS": server_usage.MAX_EPOCHS,
        "MAX_LICENSES": inventory.MAX_LICENSES,
        "MAX_WITHHELD": withheld.MAX_WITHHELD,
        "MAX_FLOATING": leasing.MAX_FLOATING,
        "MAX_SEATS": leasing.MAX_SEATS,
        "MAX_SEAT_S": leasing.MAX_SEAT_S,
        "MAX_GIVEN_BACK": withheld.MAX_GIVEN_BACK,
        "CLOCK_MARGIN_S": server_seats.CLOCK_MARGIN_S,
        "MAX_CONFIGURATION_CHARS": configuration.MAX_CONFIGURATION_CHARS,
        "MAX_FROZEN": configuration.MAX_FROZEN,
        "MAX_DETAILS": configuration.MAX_DETAILS,
        "MAX_CAPABILITIES": capabilities.MAX_CAPABILITIES,
        "MAX_CAPABILITIES_CHARS": capabilities.MAX_CAPABILITIES_CHARS,
        "RENEWABLE_S": peers.RENEWABLE_S,
        "CERTIFICATE_BACKDATE_S": pki.BACKDATE_S,
        "CONFIRM_AFTER_S": signedtime.CONFIRM_AFTER_S,
    }
    assert {name: int(row[0]) for name, row in bounds.items()} == values


def test_the_times_of_a_contact_are_told() -> None:
    purposes = " ".join(section("Purposes").split())
    assert answering.CONTACT_S == 3600 and "54 to 66 minutes" in purposes
    assert f"within {schedule.FIRST_CONTACT_S} s of a start" in purposes
    assert schedule.CONTACT_SPREAD == 0.2 and "up to a fifth earlier" in purposes
    early, late = (round(100 * part) for part in table.ROTATE_EARLY)
    assert f"{early} to {late} % of the secret's time" in purposes
    early, late = (round(100 * part) for part in renewal.RENEW_EARLY)
    assert f"when {early} to {late} % of its time are left" in purposes
