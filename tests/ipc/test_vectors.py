"""The published frames give the published outcomes, whole or byte by byte."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ipc.answers import Reason
from ipc.clientwire import decode_reply
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.frames import FrameDecoder
from ipc.messages import PosRequest, RequestDecoder
from ipc.replies import (
    agent_info_from,
    feature_verdict_from,
    licenses_from,
    refreshed_token_from,
    usage_count_from,
    verdict_from,
    waiting_update_from,
)

FRAMES = json.loads((Path(__file__).parents[1] / "vectors" / "frames.json").read_text("utf-8"))
REQUESTS, REPLIES = FRAMES["requests"], FRAMES["replies"]
decode = RequestDecoder[PosRequest](PosRequest).decode


def shown(request: Any) -> dict[str, Any]:
    """A decoded request as the vectors write it."""
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    fields["op"] = str(type(request).__struct_config__.tag)
    for name in ("nonce", "count_id"):
        if name in fields:
            fields[f"{name}_hex"] = fields.pop(name).hex()
    return fields


@pytest.mark.parametrize("step", [1, 3, 1 << 20], ids=["bytewise", "by threes", "whole"])
@pytest.mark.parametrize("vector", REQUESTS, ids=[vector["name"] for vector in REQUESTS])
def test_a_request_has_its_outcome(vector: dict[str, Any], step: int) -> None:
    data, outcome = bytes.fromhex(vector["hex"]), vector["outcome"]
    decoder = FrameDecoder()
    found = []
    try:
        for start in range(0, len(data), step):
            found += [shown(decode(body)) for body in decoder.receive_data(data[start : start + step])]
        if decoder.error is not None:
            raise decoder.error
    except RemoteProtocolError as error:
        assert (error.code.name, int(error.code), error.request_id) == (outcome["error"], outcome["code"], outcome["id"])
        assert (outcome["connection"] == "closed") == (error.code in (ErrorCode.FRAME_TOO_LARGE, ErrorCode.BAD_MESSAGE))
    else:
        assert found == outcome["requests"]
        assert decoder.partial == outcome.get("partial", False)


def _read(vector: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    (body,) = FrameDecoder().receive_data(bytes.fromhex(vector["hex"]))
    reply = decode_reply(body, vector["request_id"])
    if vector["op"] == "validate_license":
        return reply, verdict_from(reply, bytes.fromhex(vector["sent_nonce_hex"]))
    if vector["op"] == "refresh_license":
        return reply, refreshed_token_from(reply, vector["sent_token"])
    if vector["op"] == "require":
        nonce = bytes.fromhex(vector["sent_nonce_hex"])
        return reply, feature_verdict_from(reply, nonce, vector["sent_feature"], vector["sent_product"])
    if vector["op"] == "licenses":
        return reply, licenses_from(reply, bytes.fromhex(vector["sent_nonce_hex"]), vector["sent_after"])
    if vector["op"] == "count_usage":
        return reply, usage_count_from(reply, bytes.fromhex(vector["sent_count_id_hex"]))
    if vector["op"] == "ota_consent":
        return reply, waiting_update_from(reply)
    return reply, {"agent_info": agent_info_from, "ping": dict}[vector["op"]](reply)


@pytest.mark.parametrize("vector", REPLIES, ids=[vector["name"] for vector in REPLIES])
def test_a_reply_has_its_outcome(vector: dict[str, Any]) -> None:
    outcome = vector["outcome"]
    if "error" in outcome:
        with pytest.raises(RemoteProtocolError) as caught:
            _read(vector)
        assert (caught.value.code.name, int(caught.value.code)) == (outcome["error"], outcome["code"])
        return
    reply, value = _read(vector)
    assert {
        f"{name}_hex" if isinstance(entry, bytes) else name: entry.hex() if isinstance(entry, bytes) else entry
        for name, entry in reply.items()
    } == outcome["reply"]
    if vector["op"] == "validate_license":
        assert (value.valid, value.reason) == (outcome["reply"]["valid"], Reason(outcome["reply"]["reason"]))
    if vector["op"] == "require":
        found = (value.valid, value.reason, value.license_id)
        assert found == (outcome["reply"]["valid"], outcome["reply"]["reason"], outcome["reply"]["license"])
    if vector["op"] == "count_usage":
        found = (value.counted, value.repeated, value.reason, value.license_id)
        assert found == tuple(outcome["reply"][name] for name in ("counted", "repeated", "reason", "license"))
    if vector["op"] == "ota_consent":
        assert dataclasses.asdict(value) == {name: entry for name, entry in outcome["reply"].items() if name not in ("v", "id")}
    if vector["op"] == "licenses":
        assert [license.license_id for license in value[0]] == [entry["license"] for entry in outcome["reply"]["licenses"]]
        assert value[1] == outcome["reply"]["next"]


def test_each_operation_has_a_request_and_a_reply() -> None:
    ops = {"validate_license", "refresh_license", "require", "licenses", "count_usage", "ota_consent", "agent_info", "ping"}
    asked = {request["op"] for vector in REQUESTS for request in vector["outcome"].get("requests", [])}
    assert asked == {vector["op"] for vector in REPLIES if "reply" in vector["outcome"]} == ops


def test_the_script_makes_these_frames() -> None:
    from tests.vectors.make_vectors import files

    assert json.loads(json.dumps(files()["frames.json"])) == FRAMES
