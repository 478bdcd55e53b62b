"""The conversations of the client library: a newer token takes the old one's place only if that helps."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ipc.answers import Reason, Verdict
from ipc.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ipc.posclient.calls import Answer, Question, ask_info, ask_ping, ask_refresh, validate_and_refresh
from ipc.posclient.policy import AgentRefused, AgentUnavailable
from ipc.posclient.refresh import MAX_REMEMBERED, UnstoredTokens
from ipc.posclient.tokenfile import TokenFile
from ipc.replies import refresh_digest


def verdict(sent: dict[str, Any], reason: str = "ok", *, refreshed: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "nonce": sent["nonce"],
        "valid": reason == "ok",
        "reason": reason,
        "features": [],
        "metadata": {},
        "degraded": False,
        "clock_suspect": False,
        "reissue_due": False,
        "refreshed": refreshed,
        **more,
    }


class Agent:
    """Answers a conversation from a table of tokens."""

    def __init__(self, reasons: dict[str, str], newer: dict[str, str | None], refreshed: set[str]) -> None:
        self.reasons, self.newer, self.refreshed = reasons, newer, refreshed
        self.asked: list[tuple[str, str]] = []
        self.nonces: list[bytes] = []

    def hold(self, conversation: Generator[Question, Answer, Any]) -> Any:
        try:
            question = next(conversation)
            while True:
                question = conversation.send(self.answer(question))
        except StopIteration as stop:
            return stop.value

    def answer(self, question: Question) -> Answer:
        sent = question.fields()
        token = sent["token"]
        self.asked.append((question.op, token))
        if question.op == "refresh_license":
            return Answer(sent, {"token": self.newer[token]})
        self.nonces.append(sent["nonce"])
        return Answer(sent, verdict(sent, self.reasons[token], refreshed=token in self.refreshed))


class Kept(list[tuple[str, str]]):
    def __call__(self, old: str, new: str) -> None:
        self.append((old, new))


def run(old: str, new: str, *, token: str | None = "new", refreshed: bool = True) -> tuple[Verdict, Kept, Agent]:
    agent = Agent({"old": old, "new": new}, {"old": token}, {"old"} if refreshed else set())
    kept = Kept()
    return agent.hold(validate_and_refresh("old", kept)), kept, agent


@pytest.mark.parametrize(
    ("old", "new", "swapped", "told"),
    [
        ("ok", "ok", True, "ok"),
        ("secret_invalidated", "ok", True, "ok"),
        ("unknown_secret", "ok", True, "ok"),
        ("expired", "revoked", True, "revoked"),
        ("ok", "not_yet_valid", False, "ok"),
        ("ok", "bad_signature", False, "ok"),
    ],
)
def test_a_newer_token_is_kept_unless_it_would_end_a_valid_license(old: str, new: str, swapped: bool, told: str) -> None:
    result, kept, agent = run(old, new)
    assert result.reason is Reason(told)
    assert result.refresh_error is None
    assert kept == ([("old", "new")] if swapped else [])
    assert agent.asked == [("validate_license", "old"), ("refresh_license", "old"), ("validate_license", "new")]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/shop/license.token"), "/shop/license.token: Permission denied"),
        (OSError("the till's own"), "the till's own"),
        (ValueError("a bug of the till"), "ValueError: a bug of the till"),
    ],
)
def test_a_newer_token_that_cannot_be_stored_costs_no_verdict(error: Exception, says: str) -> None:
    def fails(_old: str, _new: str) -> None:
        raise error

    agent = Agent({"old": "secret_invalidated", "new": "ok"}, {"old": "new"}, {"old"})
    found = agent.hold(validate_and_refresh("old", fails))
    assert found.valid
    assert found.refresh_error is not None and found.refresh_error.endswith(says)


@pytest.mark.parametrize("unanswered", [1, 2])
@pytest.mark.parametrize("error", [AgentUnavailable("gone"), AgentRefused(ErrorCode.RATE_LIMITED, "too many")])
def test_a_question_after_the_verdict_that_fails_costs_no_verdict(unanswered: int, error: Exception) -> None:
    agent, kept = Agent({"old": "ok", "new": "ok"}, {"old": "new"}, {"old"}), Kept()
    conversation = validate_and_refresh("old", kept)
    question = next(conversation)
    for _time in range(unanswered):
        question = conversation.send(agent.answer(question))
    with pytest.raises(StopIteration) as stopped:
        conversation.throw(error)
    assert stopped.value.value.valid
    assert str(error) in stopped.value.value.refresh_error
    assert kept == []


def test_the_token_of_another_license_reaches_no_callback() -> None:
    agent, kept = Agent({"old": "ok", "new": "ok"}, {"old": "new"}, {"old"}), Kept()
    conversation = validate_and_refresh("old", kept)
    question = conversation.send(agent.answer(next(conversation)))
    assert question.op == "refresh_license"
    with pytest.raises(StopIteration) as stopped:
        conversation.send(Answer(question.fields(), {"token": "new", "for_token": refresh_digest("another")}))
    assert stopped.value.value.valid
    assert "another license" in stopped.value.value.refresh_error
    assert kept == []


def test_a_first_question_that_fails_is_the_callers_error() -> None:
    conversation = validate_and_refresh("old", Kept())
    next(conversation)
    with pytest.raises(AgentUnavailable):
        conversation.throw(AgentUnavailable("gone"))


class Shop:
    """A place for tokens that refuses them until it is repaired."""

    def __init__(self) -> None:
        self.now, self.tries, self.broken, self.obstacle = 0.0, 0, True, "a"
        self.agent = Agent({"old": "secret_invalidated", "new": "ok", "newest": "ok"}, {"old": "new"}, {"old"})
        self.unstored = UnstoredTokens(lambda: self.now)

    def keep(self, _old: str, _new: str) -> None:
        self.tries += 1
        if self.broken:
            raise PermissionError(13, "Permission denied", "/shop/license.token")

    def validate(self) -> Verdict:
        found = self.agent.hold(
            validate_and_refresh("old", self.keep, self.unstored, place="/shop", obstacle=lambda: self.obstacle)
        )
        assert found.valid
        return found


def test_storing_is_tried_again_after_pauses_only() -> None:
    shop = Shop()
    tries = []
    for second in range(0, 3 * 3600, 10):
        shop.now = float(second)
        assert shop.validate().refresh_error == "the newer token could not be stored: /shop/license.token: Permission denied"
        if shop.tries > len(tries):
            tries.append(second)
    assert tries == [0, 60, 180, 420, 900, 1860, 3780, 7380]


def test_a_newer_token_that_could_not_be_stored_costs_one_question() -> None:
    shop = Shop()
    shop.validate()
    assert len(shop.agent.asked) == 3
    shop.agent.asked.clear()
    shop.validate()
    assert shop.agent.asked == [("validate_license", "new")]


def test_storing_is_tried_again_when_the_obstacle_has_changed() -> None:
    shop = Shop()
    shop.validate()
    shop.validate()
    assert shop.tries == 1
    shop.broken, shop.obstacle = False, "b"
    assert shop.validate().refresh_error is None
    assert shop.tries == 2


def test_a_still_newer_token_is_stored_at_once() -> None:
    shop = Shop()
    shop.validate()
    shop.agent.newer["old"] = "newest"
    shop.agent.refreshed.add("new")
    shop.validate()
    assert shop.tries == 2
    shop.validate()
    assert shop.tries == 2


def test_a_newer_token_that_has_become_invalid_does_not_hide_the_old_one() -> None:
    shop = Shop()
    shop.agent.reasons["old"] = "ok"
    shop.validate()
    shop.agent.reasons["new"] = "revoked"
    assert shop.validate().reason is Reason.OK


def test_so_many_tokens_are_remembered_and_no_more() -> None:
    unstored = UnstoredTokens(lambda: 0.0)
    for number in range(MAX_REMEMBERED + 1):
        unstored.failed(number, "new", "why", None)
    assert unstored.find(0) is None and unstored.find(1) is not None and unstored.find(MAX_REMEMBERED) is not None


def test_without_a_newer_token_one_question_is_enough() -> None:
    result, kept, agent = run("ok", "ok", refreshed=False)
    assert result.valid
    assert kept == []
    assert agent.asked == [("validate_license", "old")]


def test_a_newer_token_that_has_gone_again_changes_nothing() -> None:
    result, kept, agent = run("expired", "ok", token=None)
    assert result.reason is Reason.EXPIRED
    assert kept == []
    assert len(agent.asked) == 2


def test_without_a_callback_newer_tokens_stay_with_the_agent() -> None:
    agent = Agent({"old": "ok"}, {}, {"old"})
    assert agent.hold(validate_and_refresh("old", None)).refreshed
    assert agent.asked == [("validate_license", "old")]


def test_each_attempt_has_a_nonce_of_its_own() -> None:
    conversation = validate_and_refresh("old", None)
    question = next(conversation)
    nonces = {question.fields()["nonce"] for _time in range(50)}
    assert len(nonces) == 50
    assert {len(nonce) for nonce in nonces} == {16}
    conversation.close()


def test_the_reply_is_held_against_the_nonce_of_its_own_attempt() -> None:
    conversation = validate_and_refresh("old", None)
    question = next(conversation)
    first, second = question.fields(), question.fields()
    with pytest.raises(RemoteProtocolError, match="nonce"):
        conversation.send(Answer(second, verdict(first)))


@pytest.mark.parametrize("call", [lambda token: validate_and_refresh(token, None), ask_refresh])
@pytest.mark.parametrize("token", ["", "é", "x" * 16_385])
def test_a_token_that_may_not_be_sent_is_refused_before_a_question(call: Any, token: str) -> None:
    with pytest.raises(LocalProtocolError):
        next(call(token))


def test_info_and_ping_send_no_fields() -> None:
    for conversation, op in ((ask_info(), "agent_info"), (ask_ping(), "ping")):
        question = next(conversation)
        assert (question.op, question.fields()) == (op, {})
        conversation.close()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400])
def test_a_token_file_is_replaced_as_a_whole_and_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "license.token"
    path.write_text("old\n")
    path.chmod(mode)
    before = path.stat().st_ino
    with path.open() as open_before:
        file = TokenFile(path)
        assert file.read() == "old"
        file.replace("old", "new")
        assert open_before.read() == "old\n"
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == mode
    assert path.stat().st_ino != before
    assert os.listdir(tmp_path) == ["license.token"]


def test_a_token_file_that_cannot_be_replaced_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "license.token"
    path.write_text("old\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        TokenFile(path).replace("old", "new")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["license.token"]


def test_what_a_killed_run_left_does_not_stop_a_replacement(tmp_path: Path) -> None:
    # In a container the process id is the same at each start.
    path = tmp_path / "license.token"
    path.write_text("old\n")
    Path(f"{path}.{os.getpid()}.new").write_text("ne")
    TokenFile(path).replace("old", "new")
    assert path.read_text() == "new\n"
