"""No caller of the library sees a restart of the agent; an agent that does not answer is a typed error at the deadline."""

import asyncio
import contextlib
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.adminclient import AdminClient
from ipc.answers import ConsentAnswer, LicenseReason, Reason, WaitingUpdate
from ipc.errors import ErrorCode, LocalProtocolError
from ipc.peer import UntrustedDaemon
from ipc.posclient import connection as clientconnection
from ipc.posclient.aioclient import AsyncLicenseClient
from ipc.posclient.client import LicenseClient
from ipc.posclient.policy import AgentRefused, AgentTooOld, AgentUnavailable, TokenFileError
from tests.ipc.fakeagent import FakeAgent, answers, answers_with, closes, error, frame, refuses_at_once, silent, success
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

Call = tuple[Any, ...]
Driver = Callable[..., list[Any]]


def blocking(path: str, *calls: Call, deadline: float = READY_S, **options: Any) -> list[Any]:
    with LicenseClient(path, deadline=deadline, **options) as client:
        return [getattr(client, name)(*arguments) for name, *arguments in calls]


def aio(path: str, *calls: Call, deadline: float = READY_S, **options: Any) -> list[Any]:
    async def run() -> list[Any]:
        async with AsyncLicenseClient(path, deadline=deadline, **options) as client:
            return [await getattr(client, name)(*arguments) for name, *arguments in calls]

    return asyncio.run(run())


@pytest.fixture(params=[blocking, aio], ids=["blocking", "asyncio"])
def drive(request: pytest.FixtureRequest) -> Driver:
    return request.param


@pytest.fixture
def path(socket_dir: Path) -> Iterator[Path]:
    yield socket_dir / "pos.sock"


def half(request: dict[str, Any]) -> bytes:
    whole = frame(success(request))
    return whole[: len(whole) // 2]


def test_calls_share_one_connection(path: Path, drive: Driver) -> None:
    with FakeAgent(path, answers) as agent:
        results = drive(agent.path, ("validate", "good"), ("info",), ("ping",), ("refresh", "old"), ("refresh", "x"))
    assert results[0].valid
    assert results[1].agent_id == "pos-1"
    assert results[2:] == [None, "newer", None]
    assert agent.connections == 1
    assert [request["id"] for request in agent.requests] == [1, 2, 3, 4, 5]


def test_a_feature_is_asked_for_and_all_pages_of_licenses_are_read(path: Path, drive: Driver) -> None:
    with FakeAgent(path, answers) as agent:
        able, unable, listed = drive(agent.path, ("require", "a", "p"), ("require", "b"), ("licenses",))
    assert (able.valid, able.license_id, able.product) == (True, "l-1", "p")
    assert (unable.valid, unable.reason) == (False, LicenseReason.NO_LICENSE)
    assert [license.license_id for license in listed] == ["1", "2", "3"]
    assert [request.get("after") for request in agent.requests] == [None, None, "", "1", "2"]
    assert [request.get("product") for request in agent.requests[:2]] == ["p", None]
    assert len({request["nonce"] for request in agent.requests}) == 5 and agent.connections == 1


@pytest.mark.parametrize("call", [("require", "a"), ("licenses",)], ids=["require", "licenses"])
def test_an_interrupted_question_is_asked_again_with_a_fresh_nonce(path: Path, drive: Driver, call: Call) -> None:
    with FakeAgent(path, closes, answers_with(half), error(8), answers) as agent:
        assert drive(agent.path, call)
    assert len({request["nonce"] for request in agent.requests}) == len(agent.requests)


def test_a_count_has_the_same_id_in_each_attempt(path: Path, drive: Driver) -> None:
    with FakeAgent(path, closes, answers_with(half), error(8), error(15), answers) as agent:
        found, none = drive(agent.path, ("count_usage", "a", 3), ("count_usage", "b"))
    assert (found.counted, found.repeated, found.reason, found.license_id) == (True, False, LicenseReason.OK, "l-1")
    assert (none.counted, none.reason, none.license_id) == (False, LicenseReason.NO_LICENSE, None)
    *same, other = agent.requests
    assert {request["count_id"] for request in same} == {found.count_id} and other[
        "count_id"
    ] == none.count_id != found.count_id
    assert [request["amount"] for request in agent.requests] == [3, 3, 3, 3, 3, 1]


@pytest.mark.parametrize("call", [("count_usage", "A"), ("count_usage", "a", 0), ("count_usage", "a", 2**32)], ids=range(3))
def test_a_count_that_may_not_be_sent_reaches_no_agent(path: Path, drive: Driver, call: Call) -> None:
    with FakeAgent(path, answers) as agent, pytest.raises(LocalProtocolError):
        drive(agent.path, call)
    assert agent.requests == []


def test_an_answer_to_an_update_is_the_same_in_each_attempt(path: Path, drive: Driver) -> None:
    with FakeAgent(path, closes, answers_with(half), error(8), answers) as agent:
        looked, answered = drive(agent.path, ("ota_consent",), ("ota_consent", ConsentAnswer.READY))
    assert looked == answered == WaitingUpdate(True, "pos", "2.1", "", None)
    assert [(request["answer"], request["until"]) for request in agent.requests] == [("", 0)] * 4 + [("ready", 0)]


@pytest.mark.parametrize("answer, until", [("later", 0), ("busy", 0), ("ready", 5), (None, 5), ("busy", -1), ("busy", 2**40)])
def test_an_answer_that_may_not_be_sent_reaches_no_agent(path: Path, answer: str | None, until: int) -> None:
    with FakeAgent(path, answers) as agent, LicenseClient(agent.path) as client, pytest.raises(LocalProtocolError):
        client.ota_consent(answer, until=until)
    assert agent.requests == []


def test_an_agent_that_is_too_old_for_consent_is_not_said_to_validate_instead(path: Path, drive: Driver) -> None:
    with FakeAgent(path, error(5)) as agent, pytest.raises(AgentTooOld, match=r"update license-agent$"):
        drive(agent.path, ("ota_consent",))


@pytest.mark.parametrize(
    "call", [("require", "a"), ("licenses",), ("count_usage", "a")], ids=["require", "licenses", "count_usage"]
)
def test_an_agent_that_is_too_old_is_an_error_of_its_own(path: Path, drive: Driver, call: Call) -> None:
    old, why = error(5, "this socket knows the operations ping"), "update license-agent, or validate a license token instead"
    with FakeAgent(path, old) as agent, pytest.raises(AgentTooOld, match=why) as caught:
        drive(agent.path, call)
    assert (caught.value.op, caught.value.code) == (call[0], ErrorCode.UNKNOWN_OP)
    assert isinstance(caught.value, AgentRefused) and len(agent.requests) == 1
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (type(copied), copied.op, str(copied)) == (AgentTooOld, call[0], str(caught.value))


def test_an_operation_that_every_agent_knows_does_not_make_it_old(path: Path, drive: Driver) -> None:
    with FakeAgent(path, error(5)) as agent, pytest.raises(AgentRefused) as caught:
        drive(agent.path, ("ping",))
    assert not isinstance(caught.value, AgentTooOld)


@pytest.mark.parametrize("call", [("require", ""), ("require", "x" * 65), ("require", "x", "")], ids=range(3))
def test_a_feature_that_may_not_be_sent_reaches_no_agent(path: Path, drive: Driver, call: Call) -> None:
    with FakeAgent(path, answers) as agent, pytest.raises(LocalProtocolError):
        drive(agent.path, call)
    assert agent.requests == []


@pytest.mark.parametrize(
    "trouble",
    [
        closes,
        answers_with(half),
        answers_with(lambda request: frame(success(request))[:3]),
        error(11),
        error(8),
        error(15),
        error(12),
    ],
    ids=["closes", "half a frame", "half a header", "shutting down", "rate limited", "unavailable", "timed out"],
)
def test_what_passes_is_tried_again_with_a_fresh_nonce(path: Path, drive: Driver, trouble: Any) -> None:
    with FakeAgent(path, trouble, trouble, answers) as agent:
        (verdict,) = drive(agent.path, ("validate", "good"))
    assert verdict.valid
    assert agent.connections == 3
    nonces = [request["nonce"] for request in agent.requests]
    assert len(nonces) == len(set(nonces)) == 3
    assert len({request["id"] for request in agent.requests}) == 3


def test_a_restart_between_calls_is_not_seen(path: Path, drive: Driver) -> None:
    once = answers_with(lambda request: frame(success(request)))
    with FakeAgent(path, once) as agent:
        assert [verdict.valid for verdict in drive(agent.path, *[("validate", "good")] * 4)] == [True] * 4
    assert agent.connections >= 4
    assert len({request["nonce"] for request in agent.requests}) == len(agent.requests)


def test_a_socket_that_comes_late_is_waited_for(path: Path, drive: Driver) -> None:
    agents: list[FakeAgent] = []

    def start() -> None:
        agents.append(FakeAgent(path, answers).__enter__())

    timer = threading.Timer(0.1, start)
    timer.start()
    try:
        assert drive(str(path), ("ping",)) == [None]
    finally:
        timer.join()
        agents[0].__exit__()


@pytest.mark.parametrize(
    "trouble", [silent, closes, error(11), answers_with(half)], ids=["silent", "closes", "shutting down", "half"]
)
def test_without_an_answer_the_deadline_ends_the_call(path: Path, drive: Driver, trouble: Any) -> None:
    with FakeAgent(path, trouble) as agent:
        began = time.monotonic()
        with pytest.raises(AgentUnavailable, match=r"within 0\.2 s"):
            drive(agent.path, ("validate", "good"), deadline=0.2)
        took = time.monotonic() - began
    assert 0.05 < took < READY_S / 2, "the agent hung up first"
    if trouble is silent:
        assert took >= 0.19


def test_no_socket_at_all_is_unavailable(path: Path, drive: Driver) -> None:
    with pytest.raises(AgentUnavailable) as caught:
        drive(str(path), ("ping",), deadline=0.5)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_agent_whose_queue_is_full_is_unavailable(path: Path, drive: Driver) -> None:
    # While the agent restarts nobody accepts; the kernel answers EAGAIN once the backlog is full.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = []
        try:
            while True:
                sock = socket.socket(socket.AF_UNIX)
                waiting.append(sock)
                sock.setblocking(False)
                sock.connect(str(path))
        except BlockingIOError:
            pass
        try:
            with pytest.raises(AgentUnavailable):
                drive(str(path), ("ping",), deadline=0.2)
        finally:
            for sock in waiting:
                sock.close()


@pytest.mark.parametrize("code", [1, 3, 4, 5, 6, 7, 9, 10, 13, 14])
def test_a_refusal_is_an_answer_and_not_tried_again(path: Path, drive: Driver, code: int) -> None:
    with FakeAgent(path, error(code), answers) as agent:
        with pytest.raises(AgentRefused, match="why") as caught:
            drive(agent.path, ("validate", "good"))
        assert caught.value.code is ErrorCode(code)
        assert agent.connections == 1


def test_a_forbidden_peer_learns_why_although_nobody_read_its_request(path: Path, drive: Driver) -> None:
    with FakeAgent(path, refuses_at_once(7)) as agent:
        with pytest.raises(AgentRefused) as caught:
            drive(agent.path, ("validate", "good"))
        assert caught.value.code is ErrorCode.FORBIDDEN
        assert agent.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        lambda request: frame({**success(request), "id": request["id"] + 1}),
        lambda request: frame({**success(request), "v": 2}),
        lambda request: b"\0\0\0\x01\xc1",
        lambda request: bytes(4),
        lambda request: frame({"v": 1, "id": request["id"], "error": {"code": [], "text": "x"}}),
        lambda request: frame({**success(request), "nonce": bytes(16)}),
        lambda request: frame({**success(request), "valid": False}),
        lambda request: frame({**success(request), "features": 5}),
    ],
    ids=["other id", "other version", "no map", "empty frame", "odd code", "other nonce", "contradiction", "wrong type"],
)
def test_an_invalid_reply_is_one_of_the_documented_errors(path: Path, drive: Driver, reply: Any) -> None:
    with FakeAgent(path, answers_with(reply), answers) as agent:
        with pytest.raises(AgentRefused):
            drive(agent.path, ("validate", "good"))
        assert agent.connections == 1


def test_the_newer_token_of_a_file_takes_its_place(path: Path, drive: Driver) -> None:
    file = path.parent / "license.token"
    file.write_text("old\n")
    with FakeAgent(path, answers) as agent:
        (verdict,) = drive(agent.path, ("validate_file", file))
    assert verdict.reason is Reason.OK
    assert file.read_text() == "newer\n"
    assert [request["op"] for request in agent.requests] == ["validate_license", "refresh_license", "validate_license"]


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", b"\xef\xbb\xbf", "good".encode("utf-16"), "good".encode("utf-16-le") + b"\xe9\0", b"\xe9", b"x" * 16_385],
    ids=["empty", "blank", "BOM alone", "UTF-16", "UTF-16 without BOM", "Latin-1", "too long"],
)
def test_a_file_that_holds_no_token_is_malformed(path: Path, drive: Driver, content: bytes) -> None:
    file = path.parent / "license.token"
    file.write_bytes(content)
    with FakeAgent(path, answers) as agent:
        (verdict,) = drive(agent.path, ("validate_file", file))
        assert agent.requests == []
    assert (verdict.valid, verdict.reason) == (False, Reason.MALFORMED)
    assert file.read_bytes() == content


def test_a_file_that_cannot_be_read_is_an_error_of_the_library(path: Path, drive: Driver) -> None:
    with FakeAgent(path, answers) as agent:
        for missing in (path.parent / "missing", path.parent):
            with pytest.raises(TokenFileError, match=str(missing)):
                drive(agent.path, ("validate_file", missing))


def test_a_byte_order_mark_is_skipped(path: Path, drive: Driver) -> None:
    file = path.parent / "license.token"
    file.write_bytes(b"\xef\xbb\xbfold\r\n")
    with FakeAgent(path, answers) as agent:
        assert drive(agent.path, ("validate_file", file))[0].valid
    assert file.read_bytes() == b"newer\n"


@contextlib.contextmanager
def as_a_till() -> Iterator[None]:
    """Root may write everywhere; a till's user may not."""
    if os.geteuid() == 0:
        os.seteuid(54321)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_a_file_that_cannot_be_replaced_costs_no_verdict(path: Path, drive: Driver) -> None:
    """The usual layout: root owns the directory of the token, and the till's user may read it and no more."""
    shop = path.parent / "shop"
    shop.mkdir()
    file = shop / "license.token"
    file.write_text("old\n")
    path.parent.chmod(0o755)
    shop.chmod(0o555)
    with FakeAgent(path, answers) as agent:
        path.chmod(0o666)
        with as_a_till():
            first, second = drive(agent.path, ("validate_file", file), ("validate_file", file))
        # Once for the file's own fault: the newer token is remembered, and the file is not tried again.
        assert [request["op"] for request in agent.requests[3:]] == ["validate_license"]
    for verdict in (first, second):
        assert verdict.valid
        assert verdict.refresh_error is not None and f"{file}: Permission denied" in verdict.refresh_error
    assert file.read_text() == "old\n"
    assert [entry.name for entry in shop.iterdir()] == ["license.token"]


@pytest.mark.parametrize("trouble", [error(15), silent, closes])
def test_an_agent_that_fails_after_the_verdict_costs_no_verdict(path: Path, drive: Driver, trouble: Any) -> None:
    def answers_once(agent: FakeAgent, connection: socket.socket) -> None:
        request = agent.take(connection)
        if request is not None:
            connection.sendall(frame(success(request)))

    with FakeAgent(path, answers_once, trouble) as agent:
        (verdict,) = drive(agent.path, ("validate", "old"), deadline=1.0, on_refresh=lambda _old, _new: None)
    assert verdict.valid
    assert verdict.refreshed
    assert verdict.refresh_error is not None


def test_the_callback_is_given_both_tokens(path: Path, drive: Driver) -> None:
    kept: list[tuple[str, str]] = []
    with FakeAgent(path, answers) as agent:
        drive(agent.path, ("validate", "old"), on_refresh=lambda old, new: kept.append((old, new)))
    assert kept == [("old", "newer")]


def test_a_token_that_may_not_be_sent_reaches_no_agent(path: Path, drive: Driver) -> None:
    with FakeAgent(path, answers) as agent:
        with pytest.raises(LocalProtocolError):
            drive(agent.path, ("validate", "é"))
        assert agent.connections == 0


def test_a_directory_that_others_may_write_to_is_not_trusted(path: Path, drive: Driver) -> None:
    path.parent.chmod(0o777)
    with FakeAgent(path, answers) as agent:
        with pytest.raises(UntrustedDaemon, match="0777"):
            drive(agent.path, ("ping",))
        assert agent.requests == []


def test_a_cancelled_call_leaves_no_reply_behind(path: Path) -> None:
    async def run(agent: FakeAgent) -> bool:
        async with AsyncLicenseClient(agent.path) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.validate("good")
            return (await client.validate("good")).valid

    with FakeAgent(path, silent, answers) as agent:
        assert asyncio.run(run(agent))
        assert agent.connections == 2


def test_tasks_take_turns_on_one_connection(path: Path) -> None:
    async def run(agent: FakeAgent) -> list[bool]:
        async with AsyncLicenseClient(agent.path) as client:
            verdicts = await asyncio.gather(*(client.validate("bad" if number % 2 else "good") for number in range(20)))
            return [verdict.valid for verdict in verdicts]

    with FakeAgent(path, answers) as agent:
        assert asyncio.run(run(agent)) == [True, False] * 10
        assert agent.connections == 1


def test_threads_take_turns_on_one_connection(path: Path) -> None:
    results: list[tuple[bool, bool]] = []
    with FakeAgent(path, answers) as agent, LicenseClient(agent.path) as client:

        def work(number: int) -> None:
            for _time in range(5):
                results.append((client.validate("bad" if number % 2 else "good").valid, number % 2 == 0))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agent.connections == 1
    assert len(results) == 30
    assert all(found == expected for found, expected in results)


@pytest.mark.parametrize("trouble", [closes, error(11), error(15), error(8), answers_with(half)])
def test_an_administrators_request_is_never_repeated(path: Path, trouble: Any) -> None:
    with FakeAgent(path, trouble, answers) as agent:
        with AdminClient(agent.path, deadline=READY_S) as client, pytest.raises((AgentUnavailable, AgentRefused)):
            client.call("secret_invalidate", version=3)
        assert agent.connections == 1
        assert agent.requests == [{"v": 1, "id": 1, "op": "secret_invalidate", "version": 3}]


def test_an_administrator_is_given_the_reply_without_its_head(path: Path) -> None:
    act = answers_with(lambda request: frame({"v": 1, "id": request["id"], "generation": 4}))
    with FakeAgent(path, act) as agent, AdminClient(agent.path) as client:
        assert client.call("status") == {"generation": 4}


def test_request_ids_begin_anew_before_they_grow_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clientconnection, "MAX_ID", 3)
    with FakeAgent(path, answers) as agent:
        blocking(agent.path, *[("ping",)] * 5)
    assert [request["id"] for request in agent.requests] == [1, 2, 3, 1, 2]
