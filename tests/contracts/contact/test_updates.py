"""The request for a directive and its reply: what they must have and what is refused."""

import json
from typing import Any

import msgspec
import pytest

from contracts.contact.updates import MAX_OUTCOMES, UPDATES, Hardware, OutcomeState, UpdatesReply, UpdatesRequest
from contracts.exchange import convert, purpose_of
from contracts.jose import MalformedToken
from updatetrust.target import Hardware as RootsHardware

HEAD = {"v": 1, "agent_id": "pos-1", "request_id": "0f" * 16}
OUTCOME = {"number": 7, "state": "committed", "detail": "", "at": 1_800_000_000}
RUNNING = {"product": "pos", "version": "3.2.0", "build_id": "ci-1"}
REQUEST: dict[str, Any] = {
    "purpose": "updates", "running": [RUNNING], "directive": 7, "outcomes": [OUTCOME], **HEAD,
    "challenge": "c" * 43, "timestamp": 1_800_000_000,
}  # fmt: skip
REPLY: dict[str, Any] = {
    "kind": "updates-reply", "directive": "a.b.c", "acknowledged": [7], "paused": False, **HEAD, "issued_at": 1_800_000_001,
}  # fmt: skip


def test_both_are_read_and_said_in_the_same_members() -> None:
    assert purpose_of(UpdatesRequest) == UPDATES
    assert json.loads(msgspec.json.encode(convert(REQUEST, UpdatesRequest, "request"))) == REQUEST
    for content in (REPLY, {**REPLY, "directive": None, "acknowledged": [], "paused": True}):
        assert json.loads(msgspec.json.encode(convert(content, UpdatesReply, "reply"))) == content


def test_the_kind_of_machine_is_sent_or_left_out_and_has_the_form_of_roots_file() -> None:
    asked = {**REQUEST, "hardware": "till-x86"}
    assert json.loads(msgspec.json.encode(convert(asked, UpdatesRequest, "request"))) == asked
    assert convert(REQUEST, UpdatesRequest, "request").hardware is msgspec.UNSET
    assert msgspec.inspect.type_info(Hardware) == msgspec.inspect.type_info(RootsHardware)


@pytest.mark.parametrize("state", list(OutcomeState))
def test_each_outcome_has_its_name(state: OutcomeState) -> None:
    found = convert({**REQUEST, "outcomes": [{**OUTCOME, "state": state.value}]}, UpdatesRequest, "request")
    assert found.outcomes[0].state is state


@pytest.mark.parametrize(
    "change",
    [
        {"directive": -1},
        {"directive": None},
        {"running": [RUNNING] * 17},
        {"running": [{**RUNNING, "version": "new"}]},
        {"running": [{**RUNNING, "more": 1}]},
        {"outcomes": [OUTCOME] * (MAX_OUTCOMES + 1)},
        {"outcomes": [{**OUTCOME, "number": 0}]},
        {"outcomes": [{**OUTCOME, "state": "done"}]},
        {"outcomes": [{**OUTCOME, "detail": "x" * 501}]},
        {"outcomes": [{**OUTCOME, "at": 1.5}]},
        {"hardware": ""},
        {"hardware": "Till X86"},
        {"hardware": None},
        {"more": 1},
    ],
    ids=lambda change: str(change)[:60],
)
def test_another_form_of_a_request_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        convert({**REQUEST, **change}, UpdatesRequest, "request")


@pytest.mark.parametrize(
    "change",
    [
        {"directive": ""},
        {"directive": "x" * 2049},
        {"acknowledged": [0]},
        {"acknowledged": [1] * 17},
        {"paused": 0},
        {"more": 1},
    ],
    ids=lambda change: str(change)[:60],
)
def test_another_form_of_a_reply_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        convert({**REPLY, **change}, UpdatesReply, "reply")
