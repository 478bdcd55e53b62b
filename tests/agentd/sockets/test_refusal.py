"""The service that answers everyone with one error: root gets the reason on the admin socket, and nobody else anywhere."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentd.sockets.connection import Connection
from agentd.sockets.refusal import RefusingService, first_of
from ipc.clientwire import decode_reply, encode_request
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.peer import Peer


def answered(service: RefusingService, op: str, uid: int) -> str:
    frame = encode_request(op, 5, {})
    connection = cast(Connection, SimpleNamespace(peer=Peer(uid, uid, 1)))
    reply = service.handle(frame[4:], connection)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_reply(reply[4:], 5)
    assert (caught.value.code, caught.value.request_id) == (ErrorCode.AGENT_MISCONFIGURED, 5)
    return caught.value.text


def test_root_gets_the_reason_and_a_reload_tries_again() -> None:
    tries: list[int] = []
    service: Any = RefusingService(ErrorCode.AGENT_MISCONFIGURED, "it cannot work", "the reason", lambda: tries.append(1))
    assert answered(service, "status", 0) == "the reason" and answered(service, "status", 5) == "it cannot work"
    assert answered(service, "reload", 5) == "it cannot work" and tries == []
    assert answered(service, "reload", 0) == "the reason" and tries == [1]
    pos = RefusingService(ErrorCode.AGENT_MISCONFIGURED, "it cannot work")
    assert answered(pos, "ping", 0) == answered(pos, "reload", 0) == "it cannot work"


def test_reasons_fit_into_an_error() -> None:
    assert first_of(["a"]) == "a"
    assert first_of(["a", "b", "c"]) == "a (and 2 more: license-agent check-config)"
    assert len(f"the agent is running but cannot work: its configuration is refused: {first_of(['x' * 9000, 'y'])}") < 500
