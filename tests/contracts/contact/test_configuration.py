"""The document that sets a fleet's members on an agent, the request for it and the reply: what they have, what is refused."""

import json
from typing import Any

import msgspec
import pytest

from contracts.contact.configuration import (
    BOUNDS,
    CONFIGURATION,
    CONFIGURATION_TYPE,
    MAX_CONFIGURATION_CHARS,
    NAMES,
    Configuration,
    ConfigurationReply,
    ConfigurationRequest,
    Members,
    UnusableConfiguration,
    configuration_input,
    digest_of,
    values_of,
    verify_configuration,
    within,
)
from contracts.exchange import convert, purpose_of
from contracts.jose import BadSignature, MalformedToken
from contracts.trust import parse_trust
from tests.vectors.make_directive import OTHER, ROTATION, compact, jwk, kid, signed_by

TRUST = parse_trust(
    json.dumps(
        {"issuer": "shop", "license_keys": [{**jwk(OTHER), "kid": kid(OTHER)}],
         "delivery_keys": [{**jwk(ROTATION), "kid": kid(ROTATION)}]}
    ).encode()
)  # fmt: skip
WINDOW = {"zone": "Europe/Berlin", "days": ["mon", "tue"], "start": "22:00", "end": "04:00"}
MEMBERS: dict[str, Any] = {
    "updates.window": WINDOW, "updates.freeze": ["2026-12-20..2027-01-06", "2027-05-01"], "updates.notice_h": 72,
    "updates.rate_kib_s": 512, "updates.consent": "quiet", "updates.consent_last": "03:00", "alerts.min_severity": "medium",
    "backup.overdue_hours": 36, "agent.contact_interval": 1800, "agent.metrics_interval": 60,
    "certificates.renew_days_before": 10, "certificates.stagger_days": 5,
}  # fmt: skip
CONTENT: dict[str, Any] = {
    "v": 1, "number": 7, "agent_id": "pos-000001", "fleet": "north", "fleet_number": 3, "members": MEMBERS,
}  # fmt: skip
HEAD = {"v": 1, "agent_id": "pos-1", "request_id": "0f" * 16}
RESULT = {"number": 7, "state": "applied", "details": [], "digest": "0f" * 32}
REQUEST: dict[str, Any] = {
    "purpose": "configuration", "known": 7, "result": RESULT, **HEAD, "challenge": "c" * 43, "timestamp": 1_800_000_000,
}  # fmt: skip


def document(change: dict[str, Any] | None = None, key: Any = ROTATION, **header: Any) -> str:
    said = {"alg": "ES256", "typ": CONFIGURATION_TYPE, "kid": kid(ROTATION), **header}
    return signed_by(key, said, compact({**CONTENT, **(change or {})}))


def test_a_document_has_its_content_and_is_said_in_the_same_bytes() -> None:
    changes: tuple[dict[str, Any], ...] = ({}, {"members": {}}, {"fleet": None, "fleet_number": 0, "members": {}})
    for change in changes:
        found = verify_configuration(document(change), TRUST)
        assert json.loads(msgspec.json.encode(found)) == {**CONTENT, **change}
    found = verify_configuration(document(), TRUST)
    assert configuration_input(found, kid(ROTATION)).decode() == document().rpartition(".")[0]
    assert values_of(found.members) == MEMBERS and tuple(MEMBERS) == NAMES


def test_the_list_of_members_is_closed_and_names_nothing_that_gives_a_way_in() -> None:
    fields = {each.encode_name for each in msgspec.structs.fields(Members)}
    assert fields == set(NAMES) and BOUNDS.keys() < fields
    forbidden = ("server", "tpm", "paths", "pos", "management", "audit", "enabled", "key", "dir", "url", "id", "pin", "webhook")
    assert not [name for name in fields if name.partition(".")[0] in forbidden or name.partition(".")[2] in forbidden]


def test_the_greatest_document_has_room() -> None:
    members = MEMBERS | {name: most for name, (_least, most) in BOUNDS.items()}
    members |= {
        "updates.window": {"zone": f"{'Z' * 31}/{'z' * 32}", "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
                           "start": "22:00", "end": "04:00"},
        "updates.freeze": ["2026-12-20..2027-01-06"] * 64,
    }  # fmt: skip
    most = {"number": 2**53 - 1, "agent_id": "a" * 64, "fleet": "f" * 64, "fleet_number": 2**53 - 1, "members": members}
    text = document(most)
    assert len(text) <= MAX_CONFIGURATION_CHARS and verify_configuration(text, TRUST).fleet == "f" * 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"members": {**MEMBERS, "server.url": "https://evil"}}, "unknown field 'server.url'"),
        ({"members": {"updates.enabled": False}}, "unknown field"),
        ({"members": {"updates.consent": "none"}}, "updates.consent"),
        ({"members": {"alerts.min_severity": "critical"}}, "alerts.min_severity"),
        ({"members": {"updates.window": None}}, "updates.window"),
        ({"members": {"updates.window": {**WINDOW, "end": "22:00"}}}, "must differ"),
        ({"members": {"updates.window": {**WINDOW, "zone": "../../etc/passwd"}}}, "zone"),
        ({"members": {"updates.window": WINDOW, "updates.consent_last": "05:00"}}, "within updates.window"),
        ({"members": {"updates.consent_last": "24:00"}}, "consent_last"),
        ({"members": {"updates.freeze": ["2026-02-30"]}}, "no such day"),
        ({"members": {"updates.freeze": ["2026-12-24..2026-12-20"]}}, "later than the first"),
        ({"members": {"updates.freeze": ["2026-12-24..2026-12-24"]}}, "written alone"),
        ({"members": {"updates.freeze": ["2026-12-24"] * 65}}, "freeze"),
        *(({"members": {name: least - 1}}, name) for name, (least, _most) in BOUNDS.items()),
        *(({"members": {name: most + 1}}, name) for name, (_least, most) in BOUNDS.items()),
        *(({"members": {name: str(most)}}, name) for name, (_least, most) in BOUNDS.items()),
        ({"fleet": None, "fleet_number": 3, "members": {}}, "sets nothing"),
        ({"fleet": None, "fleet_number": 0}, "sets nothing"),
        ({"fleet": "a/b"}, "fleet"),
        ({"more": 1}, "unknown field"),
        ({"v": 2}, "'v'"),
    ],
    ids=lambda each: str(each)[:70],
)
def test_a_document_of_the_server_that_cannot_be_used_says_which_one_it_is(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableConfiguration, match=said) as caught:
        verify_configuration(document(change), TRUST)
    assert (caught.value.number, caught.value.agent_id) == (7, "pos-000001")


@pytest.mark.parametrize("change", [{"number": 0}, {"number": "7"}, {"agent_id": "a/b"}, {"number": None}], ids=str)
def test_one_without_a_number_or_an_agent_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken) as caught:
        verify_configuration(document(change), TRUST)
    assert not isinstance(caught.value, UnusableConfiguration)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (document(key=OTHER, kid=kid(OTHER)), BadSignature),
        (document(key=OTHER), BadSignature),
        (document().rpartition(".")[0] + "." + document({"number": 8}).rpartition(".")[2], BadSignature),
        (document(typ="update-directive+jwt"), MalformedToken),
        (document(alg="none"), MalformedToken),
        (document(crit=["exp"]), MalformedToken),
        (document().rpartition(".")[0], MalformedToken),
        (document() + "A" * MAX_CONFIGURATION_CHARS, MalformedToken),
        ("", MalformedToken),
    ],
    ids=["a license key", "another key", "another signature", "another type", "no algorithm", "an extension", "two parts",
         "huge", "empty"],
)  # fmt: skip
def test_what_the_server_has_not_signed_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        verify_configuration(text, TRUST)
    assert not isinstance(caught.value, UnusableConfiguration)


def test_a_digest_is_that_of_values_whatever_their_order() -> None:
    assert digest_of(MEMBERS) == digest_of(dict(reversed(MEMBERS.items()))) != digest_of({**MEMBERS, "updates.notice_h": 73})
    assert digest_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "the SHA-256 of {}"


@pytest.mark.parametrize(
    ("start", "end", "at", "lies"),
    [("01:00", "05:00", "01:00", True), ("01:00", "05:00", "05:00", False), ("22:00", "04:00", "23:59", True),
     ("22:00", "04:00", "00:00", True), ("22:00", "04:00", "04:00", False), ("22:00", "04:00", "21:59", False)],
)  # fmt: skip
def test_a_time_lies_in_a_window(start: str, end: str, at: str, lies: bool) -> None:
    assert within(start, end, at) is lies


def test_request_and_reply_are_read_and_said_in_the_same_members() -> None:
    assert purpose_of(ConfigurationRequest) == CONFIGURATION
    for change in ({}, {"known": 0, "result": None}):
        content = {**REQUEST, **change}
        assert json.loads(msgspec.json.encode(convert(content, ConfigurationRequest, "request"))) == content
    for text in (None, "a.b.c"):
        reply = {"kind": "configuration-reply", "document": text, **HEAD, "issued_at": 5}
        assert json.loads(msgspec.json.encode(convert(reply, ConfigurationReply, "reply"))) == reply


@pytest.mark.parametrize(
    "change",
    [{"known": -1}, {"known": 8}, {"known": 2**53}, {"result": {**RESULT, "state": "done"}},
     {"result": {**RESULT, "digest": ""}},
     {"result": {**RESULT, "details": ["x" * 201]}}, {"result": {**RESULT, "details": ["x"] * 17}},
     {"result": {**RESULT, "more": 1}}, {"more": 1}],
    ids=lambda change: str(change)[:60],
)  # fmt: skip
def test_another_form_of_a_request_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        convert({**REQUEST, **change}, ConfigurationRequest, "request")


@pytest.mark.parametrize("change", [{"document": ""}, {"document": "x" * (MAX_CONFIGURATION_CHARS + 1)}, {"more": 1}], ids=str)
def test_another_form_of_a_reply_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        convert(
            {"kind": "configuration-reply", "document": None, **HEAD, "issued_at": 5, **change}, ConfigurationReply, "reply"
        )


def test_the_content_can_be_read_by_name() -> None:
    assert convert(CONTENT, Configuration, "configuration").members.updates_notice_h == 72
