"""A client passes over reply fields that it does not know, and refuses known ones that are not what they must be."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.answers import NEAREST_FIRST, LicenseReason, Reason
from ipc.bounds import MAX_TOKEN_CHARS
from ipc.clientwire import check_requirement, check_token, decode_map, decode_reply, encode_request
from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.replies import agent_info_from, feature_verdict_from, licenses_from, refresh_digest, refreshed_token_from, verdict_from

NONCE = bytes(range(16))
VERDICT: dict[str, Any] = {
    "v": 1,
    "id": 3,
    "nonce": NONCE,
    "valid": True,
    "reason": "ok",
    "expires_at": 2_000_000_000,
    "features": ["a", "b"],
    "metadata": {"k": "v"},
    "secret_state": "ACTIVE",
    "degraded": False,
    "clock_suspect": False,
    "reissue_due": False,
    "refresh_by": None,
    "refreshed": False,
}
INFO: dict[str, Any] = {
    "agent_id": "pos-001",
    "agent_version": "0.1",
    "protocol_versions": [1],
    "degraded": False,
    "time": 5,
}


def refused(body: Any, request_id: int = 3) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_reply(body if isinstance(body, bytes) else msgpack.packb(body), request_id)
    return caught.value


def test_a_verdict_is_read() -> None:
    verdict = verdict_from(decode_reply(msgpack.packb(VERDICT), 3), NONCE)
    assert (verdict.valid, verdict.reason, verdict.features, verdict.metadata) == (True, Reason.OK, ("a", "b"), {"k": "v"})


def test_unknown_keys_are_passed_over() -> None:
    more = {**VERDICT, "newer": {"deep": [1, 2]}, "z": None}
    assert verdict_from(decode_reply(msgpack.packb(more), 3), NONCE) == verdict_from(VERDICT, NONCE)


@pytest.mark.parametrize("name", list(VERDICT))
def test_a_key_that_comes_twice_is_refused(name: str) -> None:
    body = msgpack.Packer().pack_map_pairs([*VERDICT.items(), (name, VERDICT[name])])
    assert refused(body).code is ErrorCode.BAD_MESSAGE


def test_a_key_that_comes_twice_deep_down_is_refused() -> None:
    inner = msgpack.Packer().pack_map_pairs([("k", "v"), ("k", "w")])
    assert refused(b"\x81\xa8metadata" + inner).code is ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize("name", [name for name in VERDICT if name not in ("v", "id", "nonce")])
@pytest.mark.parametrize("value", [None, 1, 1.5, True, "x", b"x", [1], {"a": 1}, {b"a": "x"}], ids=repr)
def test_a_wrong_type_in_a_verdict_is_refused(name: str, value: Any) -> None:
    optional = name in ("expires_at", "secret_state", "refresh_by")
    right = type(value) is type(VERDICT[name]) or (value is None and optional) or (name == "refresh_by" and value == 1)
    if right and name not in ("features", "metadata", "reason") and value is not True:
        assert verdict_from({**VERDICT, name: value}, NONCE)
        return
    if type(value) is bool and type(VERDICT[name]) is bool and name != "valid":
        assert verdict_from({**VERDICT, name: value}, NONCE)
        return
    if name == "valid" and value is True:
        return
    with pytest.raises(RemoteProtocolError) as caught:
        verdict_from({**VERDICT, name: value}, NONCE)
    assert caught.value.code is ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize(
    "name", [name for name in VERDICT if name not in ("v", "id", "expires_at", "secret_state", "refresh_by")]
)
def test_a_missing_field_of_a_verdict_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        verdict_from({key: value for key, value in VERDICT.items() if key != name}, NONCE)


@pytest.mark.parametrize("nonce", [None, b"", bytes(16), NONCE[:15], NONCE + b"\0", NONCE.hex()], ids=repr)
def test_another_nonce_is_refused(nonce: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="nonce"):
        verdict_from({**VERDICT, "nonce": nonce}, NONCE)


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("valid", [True, False])
def test_valid_and_reason_agree_or_are_refused(reason: Reason, valid: bool) -> None:
    reply = {**VERDICT, "valid": valid, "reason": reason.value}
    if valid == (reason is Reason.OK):
        assert verdict_from(reply, NONCE).reason is reason
    else:
        with pytest.raises(RemoteProtocolError, match="contradict"):
            verdict_from(reply, NONCE)


def test_a_reason_that_is_not_in_the_list_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="made_up"):
        verdict_from({**VERDICT, "valid": False, "reason": "made_up"}, NONCE)


def test_the_list_of_reasons_is_closed() -> None:
    assert {reason.value for reason in Reason} == {
        "ok",
        "expired",
        "not_yet_valid",
        "malformed",
        "unknown_secret",
        "secret_invalidated",
        "bad_signature",
        "wrong_audience",
        "revoked",
        "degraded_expired",
        "revocations_stale",
    }


def test_the_reasons_of_licenses_are_those_of_tokens_and_more() -> None:
    texts = [reason.value for reason in LicenseReason]
    assert texts[: len(Reason)] == [reason.value for reason in Reason]
    assert texts[len(Reason) :] == ["suspended", "no_seat", "no_license"]
    assert all(LicenseReason(reason.value) == reason for reason in Reason)
    assert sorted(NEAREST_FIRST) == sorted(LicenseReason)


REQUIRED: dict[str, Any] = {
    "v": 1,
    "id": 3,
    "nonce": NONCE,
    "valid": True,
    "reason": "ok",
    "license": "l-1",
    "product": "p",
    "expires_at": 5,
    "features": ["a", "b"],
    "metadata": {"product": "p"},
    "secret_state": "ACTIVE",
    "degraded": False,
    "clock_suspect": False,
}
OPTIONAL = ("license", "product", "expires_at", "secret_state")


def denied(reason: str = "expired") -> dict[str, Any]:
    return {**REQUIRED, "valid": False, "reason": reason, "features": [], "metadata": {}}


def test_a_verdict_on_a_feature_is_read() -> None:
    verdict = feature_verdict_from(REQUIRED, NONCE, "a", "p")
    assert (verdict.valid, verdict.reason, verdict.license_id) == (True, LicenseReason.OK, "l-1")
    assert verdict.features == ("a", "b") and verdict.metadata == {"product": "p"}


@pytest.mark.parametrize("reason", list(LicenseReason))
@pytest.mark.parametrize("valid", [True, False])
def test_valid_and_reason_of_a_feature_agree_or_are_refused(reason: LicenseReason, valid: bool) -> None:
    reply = {**REQUIRED, "valid": valid, "reason": reason.value}
    if valid == (reason is LicenseReason.OK):
        assert feature_verdict_from(reply, NONCE, "a", None).reason is reason
    else:
        with pytest.raises(RemoteProtocolError, match="contradict"):
            feature_verdict_from(reply, NONCE, "a", None)


def test_a_reason_that_this_library_does_not_know_is_not_valid() -> None:
    verdict = feature_verdict_from(denied("full_moon"), NONCE, "a", None)
    assert (verdict.valid, verdict.reason) == (False, "full_moon")
    with pytest.raises(RemoteProtocolError, match="contradict"):
        feature_verdict_from({**REQUIRED, "reason": "full_moon"}, NONCE, "a", None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"features": ["b"]}, "does not allow the feature"),
        ({"license": None}, "or none"),
        ({"product": "q"}, "another product"),
        ({"product": None}, "another product"),
        ({"nonce": bytes(16)}, "nonce"),
        ({"features": [1]}, "something else than text"),
        ({"metadata": {"k": 1}}, "something else than text"),
    ],
)
def test_a_verdict_on_another_feature_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        feature_verdict_from({**REQUIRED, **changes}, NONCE, "a", "p")


@pytest.mark.parametrize("name", [name for name in REQUIRED if name not in ("v", "id")])
def test_a_missing_or_mistyped_field_of_a_feature_verdict_is_refused(name: str) -> None:
    for reply in ({**denied(), name: 1.5}, {key: value for key, value in denied().items() if key != name}):
        if name in OPTIONAL and name not in reply:
            assert not feature_verdict_from(reply, NONCE, "a", None).valid
            continue
        with pytest.raises(RemoteProtocolError):
            feature_verdict_from(reply, NONCE, "a", None)


def listed(*ids: str, following: Any = None, **changes: Any) -> dict[str, Any]:
    entries = [{**REQUIRED, "license": license_id, "begins_at": 1, **changes} for license_id in ids]
    return {"nonce": NONCE, "licenses": entries, "next": following}


def test_a_page_of_licenses_is_read() -> None:
    found, following = licenses_from(listed("b", "c", following="c"), NONCE, "a")
    assert [license.license_id for license in found] == ["b", "c"] and following == "c"
    assert (found[0].begins_at, found[0].expires_at, found[0].product) == (1, 5, "p")
    assert licenses_from(listed(), NONCE, "a") == ([], None)
    assert licenses_from(listed("b", reason="full_moon", valid=False), NONCE, "")[0][0].reason == "full_moon"


@pytest.mark.parametrize(
    "reply",
    [
        listed("a"),
        listed("0"),
        listed("c", "b"),
        listed("b", "b"),
        listed("b", following="a"),
        listed("b", following="c"),
        listed(following="b"),
        listed("b", following=1),
        listed("b", license=1),
        listed("b", valid=False),
        listed("b", begins_at="1"),
        {**listed("b"), "licenses": ["b"]},
        {**listed("b"), "licenses": {"b": 1}},
        {**listed("b"), "nonce": bytes(16)},
    ],
    ids=range(14),
)
def test_a_page_that_would_not_end_or_is_mistyped_is_refused(reply: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        licenses_from(reply, NONCE, "a")


@pytest.mark.parametrize("text", ["", b"x", 5, ["x"], "x" * 300, "\ud800"])
def test_a_feature_or_product_that_may_not_be_sent_is_our_own_error(text: Any) -> None:
    for feature, product in ((text, None), ("x", text)):
        with pytest.raises(LocalProtocolError):
            check_requirement(feature, product)
    with pytest.raises(LocalProtocolError):
        check_requirement(None, None)  # type: ignore[arg-type]
    check_requirement("x" * 64, "x" * 256)


def test_agent_info_is_read() -> None:
    assert agent_info_from(INFO).protocol_versions == (1,)


@pytest.mark.parametrize("name", list(INFO))
def test_a_wrong_or_missing_field_of_agent_info_is_refused(name: str) -> None:
    wrong: dict[str, Any] = {name: b"x"}
    for reply in ({**INFO, **wrong}, {key: value for key, value in INFO.items() if key != name}):
        with pytest.raises(RemoteProtocolError):
            agent_info_from(reply)


@pytest.mark.parametrize("versions", [["1"], [None], [True], [[1]]], ids=repr)
def test_protocol_versions_are_numbers(versions: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        agent_info_from({**INFO, "protocol_versions": versions})


def test_a_refreshed_token_is_a_text_or_none() -> None:
    assert refreshed_token_from({"token": "new"}, "old") == "new"
    assert refreshed_token_from({"token": None}, "old") is None
    for value in (1, b"new", ["new"], True):
        with pytest.raises(RemoteProtocolError):
            refreshed_token_from({"token": value}, "old")


@pytest.mark.parametrize(
    "token",
    ["", "é", "x" * (MAX_TOKEN_CHARS + 1), "a b", " ab", "ab\n", "a\tb", "a\0b", "a\x7fb"],
    ids=["empty", "not ASCII", "long", "blank", "blank before", "line break", "tab", "NUL", "DEL"],
)
def test_a_refreshed_token_that_is_no_token_is_the_agents_fault(token: str) -> None:
    with pytest.raises(RemoteProtocolError):
        refreshed_token_from({"token": token}, "old")


@pytest.mark.parametrize("token", ["new", None])
def test_a_newer_token_is_taken_for_the_asked_license_only(token: str | None) -> None:
    assert refreshed_token_from({"token": token, "for_token": refresh_digest("old")}, "old") == token
    for wrong in (refresh_digest("other"), b"", "old", 7):
        with pytest.raises(RemoteProtocolError):
            refreshed_token_from({"token": token, "for_token": wrong}, "old")


@pytest.mark.parametrize(
    ("change", "text"), [({"id": 4}, "another request"), ({"id": None}, "another"), ({"v": 2}, "another")], ids=repr
)
def test_a_reply_to_another_request_is_refused(change: dict[str, Any], text: str) -> None:
    error = refused({**VERDICT, **change})
    assert error.code is ErrorCode.BAD_MESSAGE
    assert text in error.text


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_reply_carries_its_code(code: ErrorCode) -> None:
    error = refused({"v": 1, "id": 3, "error": {"code": int(code), "text": "why"}})
    assert (error.code, error.text, error.request_id) == (code, "why", 3)


@pytest.mark.parametrize("code", [0, 999, -1, None, "x", 2**63], ids=repr)
def test_an_error_code_that_we_do_not_know_is_internal(code: Any) -> None:
    assert refused({"v": 1, "id": None, "error": {"code": code, "text": 5}}).code is ErrorCode.INTERNAL


@pytest.mark.parametrize("code", [[], {}, [1]], ids=repr)
def test_an_error_code_of_a_wrong_type_is_a_typed_error(code: Any) -> None:
    assert refused({"v": 1, "id": None, "error": {"code": code, "text": "x"}}).code is ErrorCode.INTERNAL


@pytest.mark.parametrize("error", ["boom", 5, [], True], ids=repr)
def test_an_error_of_a_wrong_type_is_no_success(error: Any) -> None:
    assert refused({"v": 1, "id": 3, "error": error}).code is ErrorCode.BAD_MESSAGE


@given(st.binary(max_size=200))
def test_random_bytes_are_a_map_or_a_typed_error(body: bytes) -> None:
    try:
        assert all(isinstance(key, str) for key in decode_map(body))
    except RemoteProtocolError as error:
        assert error.code is ErrorCode.BAD_MESSAGE


json_like: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


FIELDS = [*VERDICT, *INFO, "token", "for_token", "error", "licenses", "next", "license"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_like, max_size=6))
def test_random_replies_are_read_or_refused_by_a_typed_error(changes: dict[str, Any]) -> None:
    body = msgpack.packb({**VERDICT, **INFO, **changes})
    for read in (
        lambda reply: verdict_from(reply, NONCE),
        agent_info_from,
        lambda reply: refreshed_token_from(reply, "x"),
        lambda reply: feature_verdict_from(reply, NONCE, "a", None),
        lambda reply: licenses_from(reply, NONCE, ""),
    ):
        try:
            read(decode_reply(body, 3))
        except RemoteProtocolError:
            continue


def test_extension_types_are_refused_in_replies_too() -> None:
    for value in (msgpack.ExtType(1, b""), msgpack.Timestamp(5)):
        assert refused({**VERDICT, "newer": value}).code is ErrorCode.BAD_MESSAGE


def test_a_request_that_fits_no_frame_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError):
        encode_request("ping", 1, {"x": bytes(70_000)})


@pytest.mark.parametrize("token", ["", "é", "x" * (MAX_TOKEN_CHARS + 1), b"x", None, 5])
def test_a_token_that_may_not_be_sent_is_our_own_error(token: Any) -> None:
    with pytest.raises(LocalProtocolError):
        check_token(token)
    assert check_token("x" * MAX_TOKEN_CHARS)
