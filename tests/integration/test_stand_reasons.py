"""`license-stand` brings about every reason of the POS protocol, and what else happens to a till, by real causes."""

import json
from collections.abc import Iterator

import pytest
from license_agent_client import AgentUnavailable, LicenseClient, Reason

from stand.reasons import CHANGES_THE_STAND
from tests.support.stand import Stand, running_stand
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
VERSIONS = 15
"""Live secret versions of one agent; the server refuses more."""


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        yield running


def act(stand: Stand, *words: str, fine: int = 0) -> str:
    """What a command of the stand prints: standard output if it is to succeed, else its errors."""
    done = stand.run("license-stand", *words, "--dir", str(stand.root))
    assert done.returncode == fine, (words, done.stdout, done.stderr)
    return (done.stderr if fine else done.stdout).strip()


def judged(stand: Stand, token: str) -> Reason:
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        return client.validate(token).reason


@pytest.mark.parametrize("reason", [Reason(reason.value) for reason in sorted(CHANGES_THE_STAND)], ids=str)
def test_a_reason_of_the_machine_is_given_to_all_until_the_next_reason(stand: Stand, reason: Reason) -> None:
    """Every reason's own token: tests/integration/test_till_guide.py."""
    for _ in range(2):  # the second time from the state that the first left
        assert judged(stand, act(stand, "reason", reason.value)) is reason
        assert judged(stand, act(stand, "issue")) is reason
    assert judged(stand, act(stand, "reason", "ok", "--feature", "fuel")) is Reason.OK
    assert not (stand.root / "etc" / "config.usual").exists()


def test_with_a_tpm_it_is_the_same() -> None:
    with running_stand("tpm") as stand:
        for reason in Reason:
            assert judged(stand, act(stand, "reason", reason.value)) is reason


def test_a_license_is_revoked_by_its_id(stand: Stand) -> None:
    act(stand, "reason", "ok")
    token = act(stand, "issue", "--license-id", "shop-7")
    assert judged(stand, token) is Reason.OK
    act(stand, "revoke", "shop-7")
    assert judged(stand, token) is Reason.REVOKED
    assert "there is no license 'shop-8'" in act(stand, "revoke", "shop-8", fine=1)
    act(stand, "server", "stop")
    assert "license-stand server start" in act(stand, "revoke", "shop-7", fine=1)
    act(stand, "reason", "ok")


def test_degraded_mode_shows_in_verdicts_until_it_is_switched_off(stand: Stand) -> None:
    token = act(stand, "reason", "ok")
    with LicenseClient(stand.info["pos_socket"], deadline=READY_S) as client:
        for words, degraded in ((("degrade",), True), (("degrade", "off"), False), (("degrade", "on"), True)):
            act(stand, *words)
            verdict = client.validate(token)
            assert verdict.valid and verdict.degraded is degraded
    act(stand, "reason", "ok")
    shown = json.loads(stand.run("license-agent-cli", "--json", "degraded", "show").stdout)
    assert shown["held"] is False and shown["mode"] == "online"


def test_while_the_agent_is_stopped_callers_get_no_answer(stand: Stand) -> None:
    token = act(stand, "reason", "ok")
    act(stand, "agent", "stop")
    assert stand.info["agent_pid"] == 0
    assert "stopped already" in act(stand, "agent", "stop", fine=1)
    assert "license-stand agent start" in act(stand, "restart", fine=1)
    with LicenseClient(stand.info["pos_socket"], deadline=0.2) as client, pytest.raises(AgentUnavailable):
        client.validate(token)
    act(stand, "agent", "start")
    assert "running already" in act(stand, "agent", "start", fine=1)
    assert judged(stand, token) is Reason.OK


def test_a_secret_that_was_left_on_the_server_stands_in_no_way(stand: Stand) -> None:
    delivery = stand.root / "delivery"
    act(stand, "degrade")  # a contact, such as the one soon after a start, would bring the secret
    made = stand.run("license-server", "rotate", "--agent", "pos-001", "--out", str(delivery))
    assert made.returncode == 0, made.stderr
    assert judged(stand, act(stand, "issue")) is Reason.UNKNOWN_SECRET
    assert judged(stand, act(stand, "reason", "ok")) is Reason.OK


def test_a_developer_may_rotate_as_often_as_he_likes(stand: Stand) -> None:
    """The server keeps 15 live versions of an agent at most: a shop rotates once a day, a test suite in each test."""
    act(stand, "reason", "ok")
    made = [
        stand.run("license-server", "rotate", "--agent", "pos-001", "--out", str(stand.root / "delivery")).returncode
        for _ in range(VERSIONS + 1)
    ]
    assert made[-1] == 1, "the server refuses no more"
    for _ in range(2):
        act(stand, "rotate")
    assert judged(stand, act(stand, "issue")) is Reason.OK


def test_without_a_server_what_needs_one_says_so() -> None:
    with running_stand("software", "--by-hand") as stand:
        needed = {Reason.REVOKED, Reason.REVOCATIONS_STALE}
        for reason in Reason:
            if reason in needed:
                assert "--by-hand" in act(stand, "reason", reason.value, fine=1)
            else:
                assert judged(stand, act(stand, "reason", reason.value)) is reason
        for words in (("revoke", "x"), ("degrade",)):
            assert "--by-hand" in act(stand, *words, fine=1)
