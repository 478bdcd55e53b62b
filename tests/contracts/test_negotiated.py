"""The forms beyond release 0.1.0, held against vectors that were made without them: exchange-negotiated.json."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.contact.capabilities import AnnounceReply, verify_capabilities
from contracts.contact.configuration import ConfigurationReply
from contracts.contact.licensesync import SyncLicenses, SyncReply
from contracts.contact.seats import LeaseReply
from contracts.contact.updates import UpdatesReply
from contracts.contact.usage import ReportUsage, UsageReply
from contracts.exchange import (
    REQUEST_TYPE,
    Reply,
    SecretStatus,
    StatusReply,
    convert,
    request_input,
    verify_reply,
)
from contracts.jose import BadSignature, MalformedToken
from contracts.trust import parse_trust
from server.exchange.content import KINDS
from server.exchange.requests import open_signed
from tests.vectors.frozen import FROZEN, parts

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "exchange-negotiated.json").read_text("utf-8"))
TRUST = parse_trust(json.dumps(VECTORS["trust"]).encode())
AGENT = VECTORS["agent"]
REPLIES: dict[str, type[Reply]] = {
    "announce-capabilities": AnnounceReply,
    "configuration": ConfigurationReply,
    "lease-seats": LeaseReply,
    "secret-status": StatusReply,
    "sync-licenses": SyncReply,
    "report-usage": UsageReply,
    "updates": UpdatesReply,
}
named = pytest.mark.parametrize("each", VECTORS["exchanges"], ids=lambda each: each["name"])


def test_every_purpose_that_the_last_release_does_not_know_is_there() -> None:
    old = {each["purpose"] for each in FROZEN["exchanges"]}
    assert KINDS.keys() - old <= {each["purpose"] for each in VECTORS["exchanges"]} == REPLIES.keys()


@named
def test_a_request_is_read_and_said_in_the_same_bytes(each: dict[str, Any]) -> None:
    content = open_signed(each["request"], REQUEST_TYPE, AGENT["agent_id"], AGENT["identity_key"])
    request = convert(content, KINDS[each["purpose"]], "request")
    assert msgspec.json.encode(request) == parts(each["request"])[1]
    assert request_input(request).decode() == each["request"].rpartition(".")[0]


@named
def test_a_reply_is_understood_and_said_in_the_same_bytes(each: dict[str, Any]) -> None:
    request_id = json.loads(parts(each["request"])[1])["request_id"]
    reply = verify_reply(each["reply"], REPLIES[each["purpose"]], AGENT["agent_id"], request_id, TRUST)
    assert msgspec.json.encode(reply) == parts(each["reply"])[1]


@pytest.mark.parametrize(
    "change",
    [
        {"license_number": -1},
        {"license_number": 2**53},
        {"license_number": None},
        {"secret_version": "3"},
        {"after": None},
        {"after": "x" * 137},
        {"more": 1},
    ],
    ids=str,
)
def test_another_form_of_a_request_for_licenses_is_refused(change: dict[str, Any]) -> None:
    asked = next(each for each in VECTORS["exchanges"] if each["purpose"] == "sync-licenses")
    with pytest.raises(MalformedToken):
        convert({**json.loads(parts(asked["request"])[1]), **change}, SyncLicenses, "request")


TOTAL = {"license": "a", "meter": "sales", "epoch": "0f" * 16, "total": 5}


@pytest.mark.parametrize(
    "totals",
    [
        [],
        [TOTAL] * 65,
        [{**TOTAL, "license": ""}],
        [{**TOTAL, "meter": "Sales"}],
        [{**TOTAL, "meter": "sales\n"}],
        [{**TOTAL, "meter": "x" * 49}],
        [{**TOTAL, "epoch": "0F" * 16}],
        [{**TOTAL, "epoch": "0f" * 16 + "\n"}],
        [{**TOTAL, "total": -1}],
        [{**TOTAL, "total": 2**53}],
        [{**TOTAL, "total": 1.0}],
        [{**TOTAL, "more": 1}],
        None,
    ],
    ids=lambda totals: str(totals)[:60],
)
def test_another_form_of_totals_is_refused(totals: Any) -> None:
    asked = next(each for each in VECTORS["exchanges"] if each["purpose"] == "report-usage")
    with pytest.raises(MalformedToken):
        convert({**json.loads(parts(asked["request"])[1]), "totals": totals}, ReportUsage, "request")


CHANGE = {"license": "a", "standing": "active", "expires": 5, "token": "t"}


@pytest.mark.parametrize(
    "changes",
    [
        [CHANGE] * 33,
        [{**CHANGE, "standing": "expired"}],
        [{**CHANGE, "license": ""}],
        [{**CHANGE, "license": "x" * 129}],
        [{**CHANGE, "expires": -1}],
        [{**CHANGE, "token": ""}],
        [{**CHANGE, "token": "x" * 16_385}],
        [{**CHANGE, "more": 1}],
        [{"license": "a", "standing": "active"}],
        None,
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_another_form_of_changes_is_refused(changes: Any) -> None:
    asked = next(each for each in VECTORS["exchanges"] if each["purpose"] == "sync-licenses")
    with pytest.raises(MalformedToken):
        convert({**json.loads(parts(asked["reply"])[1]), "changes": changes}, SyncReply, "reply")


def test_the_forms_of_the_last_release_have_no_new_member() -> None:
    for each in FROZEN["exchanges"]:
        if each["purpose"] == "secret-status":
            assert "license_number" not in json.loads(parts(json.loads(each["request"])["request"])[1])
    head = {"agent_id": "pos-1", "request_id": "0" * 32, "challenge": "c" * 16, "timestamp": 1}
    held = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
    assert b"license_number" not in msgspec.json.encode(SecretStatus(**head, **held))  # type: ignore[arg-type]


def test_a_list_of_capabilities_is_read() -> None:
    found = verify_capabilities(VECTORS["capabilities"]["good"], TRUST)
    assert msgspec.to_builtins(found) | {"capabilities": list(found.capabilities)} == VECTORS["capabilities"]["content"]


@pytest.mark.parametrize("text", VECTORS["capabilities"]["bad"].values(), ids=VECTORS["capabilities"]["bad"])
def test_another_list_is_refused(text: str) -> None:
    with pytest.raises((MalformedToken, BadSignature)):
        verify_capabilities(text, TRUST)
