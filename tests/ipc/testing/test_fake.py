"""The fake is deterministic, says that it is one, and keeps away from the real agent's place."""

import io
import json
import logging
import stat
from pathlib import Path

import msgpack
import pytest

from contracts.claims import AGENT_ID as REAL_ID
from contracts.jose import MalformedToken
from contracts.licensetoken import parse_token
from ipc.answers import NEAREST_FIRST, LicenseReason, Reason
from ipc.clientwire import FAKE_FIELD
from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused, AgentUnavailable
from ipc.posclient.trust import DEFAULT_POS_SOCKET
from ipc.testing import FakeLicenseAgent
from ipc.testing.__main__ import answer, serve
from ipc.testing.base import MACHINE_REASONS
from ipc.testing.model import AGENT_ID, GRACE_S, INTERVAL_S, License, Model
from ipc.testing.service import Service, encode

NOW, DAY = 1_800_000_000, 86_400
pytestmark = pytest.mark.system


def license_for(days: int = 400, license_id: str = "l") -> License:
    return License(license_id, ("sales",), {}, NOW, NOW + days * DAY)


def test_the_same_acts_give_the_same_bytes() -> None:
    def run() -> list[bytes]:
        model = Model(NOW)
        service = Service(model, lambda: 0.0)
        token = model.issue(license_for())
        replies = []
        for number in range(20):
            nonce = number.to_bytes(16, "big")
            body = {"v": 1, "id": number, "op": "validate_license", "token": token, "nonce": nonce}
            replies.append(service.answer(msgpack.packb(body)))
            model.advance(DAY)
        return replies

    assert run() == run()


def test_a_secret_is_followed_by_the_next_while_the_server_answers() -> None:
    model = Model(NOW)
    token = model.issue(license_for())
    assert model.verdict(token).secret_state == "ACTIVE"
    model.advance(INTERVAL_S)
    verdict = model.verdict(token)
    assert (verdict.secret_state, verdict.refreshed, verdict.refresh_by) == ("GRACE", True, NOW + INTERVAL_S + GRACE_S)
    model.advance(GRACE_S)
    assert model.verdict(token).reason is Reason.SECRET_INVALIDATED
    found = model.refreshed(token)
    assert found is not None and model.verdict(found[1]).valid


def test_a_secret_without_a_successor_ends_in_degraded_mode() -> None:
    model = Model(NOW, server_answers=False)
    token = model.issue(license_for())
    assert not model.verdict(token).degraded
    model.advance(INTERVAL_S)
    assert model.verdict(token).valid and model.verdict(token).degraded
    model.advance(GRACE_S)
    assert model.verdict(token).reason is Reason.DEGRADED_EXPIRED
    model.server_answers = True
    model.catch_up()
    assert model.verdict(token).reason is Reason.SECRET_INVALIDATED and model.verdict(token).refreshed


def test_only_what_was_valid_here_is_reissued() -> None:
    model = Model(NOW)
    used, unused, ended = (model.issue(license_for(days, name)) for days, name in ((9, "a"), (9, "b"), (1, "c")))
    for token in (used, ended):
        assert model.verdict(token).valid
    model.advance(2 * DAY)
    assert model.refreshed(used) is not None
    assert model.refreshed(unused) is None and model.refreshed(ended) is None


def test_a_changed_token_is_refused() -> None:
    model = Model(NOW)
    token = model.issue(license_for())
    for place, letter in enumerate(token):
        for other in "0x.":
            if letter != other:
                assert not model.verdict(token[:place] + other + token[place + 1 :]).valid


def test_a_real_agent_refuses_its_tokens() -> None:
    with FakeLicenseAgent() as agent:
        for reason in Reason:
            with pytest.raises(MalformedToken):
                parse_token(agent.token(reason))


def test_its_id_is_one_that_no_agent_can_have() -> None:
    assert REAL_ID.fullmatch("pos-001") and not REAL_ID.fullmatch(AGENT_ID)


def test_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert msgpack.unpackb(encode({"v": 1})[4:])[FAKE_FIELD] is True
    with caplog.at_level(logging.WARNING, "license_agent_client"), FakeLicenseAgent() as agent, agent.client() as client:
        assert "it is for tests only" in caplog.text
        caplog.clear()
        assert client.validate(agent.issue()).valid
        assert "comes from a fake" in caplog.text
        info = client.info()
        assert info.agent_id == AGENT_ID and "licenses nothing" in info.agent_version


def test_the_agents_private_tree_does_not_have_it() -> None:
    script = (Path(__file__).parents[3] / "packaging" / "install-tree").read_text("utf-8")
    assert "-name testing" in script and FakeLicenseAgent.__module__.split(".")[1] == "testing"


def test_it_does_not_go_where_the_real_agent_is(socket_dir: Path) -> None:
    with pytest.raises(ValueError, match="belongs to the real agent"):
        FakeLicenseAgent(Path(DEFAULT_POS_SOCKET).parent)
    with pytest.raises(OSError, match="at most 107 bytes"):
        FakeLicenseAgent(socket_dir / ("x" * 120))
    with FakeLicenseAgent(socket_dir) as agent, agent.client() as client:
        client.ping()
    assert list(socket_dir.iterdir()) == []


def test_only_its_user_reaches_it() -> None:
    with FakeLicenseAgent() as agent:
        place = Path(agent.socket).parent
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not place.exists()


def test_it_refuses_at_will() -> None:
    with FakeLicenseAgent() as agent, agent.client(deadline=0.2) as client:
        agent.refuse(ErrorCode.FORBIDDEN)
        with pytest.raises(AgentRefused) as caught:
            client.ping()
        assert caught.value.code is ErrorCode.FORBIDDEN
        agent.refuse(ErrorCode.UNAVAILABLE)
        with pytest.raises(AgentUnavailable):
            client.ping()
        agent.refuse(None)
        client.ping()
        agent.suspect_clock()
        assert client.validate(agent.issue()).clock_suspect


def test_a_suspended_license_is_revoked_for_a_token_and_comes_back() -> None:
    with FakeLicenseAgent(now=NOW) as agent, agent.client() as client:
        token, other = agent.deliver(features=("a",)), agent.deliver(features=("b",))
        agent.suspend(token)
        assert client.validate(token).reason is Reason.REVOKED
        assert (client.require("a").reason, client.require("b").reason) == (LicenseReason.SUSPENDED, LicenseReason.OK)
        agent.revoke(other)
        assert client.require("b").reason is LicenseReason.REVOKED
        agent.suspend(token, on=False)
        assert client.validate(token).valid and client.require("a").valid


def test_the_fakes_choice_is_the_agents() -> None:
    """Every pair of licenses: the better one answers, by the order that the agent goes by too."""
    with FakeLicenseAgent(now=NOW) as agent, agent.client() as client:
        makers = {
            LicenseReason.OK: lambda feature: agent.deliver(features=(feature,)),
            LicenseReason.NOT_YET_VALID: lambda feature: agent.deliver(features=(feature,), begins_in=DAY),
            LicenseReason.SUSPENDED: lambda feature: agent.suspend(agent.deliver(features=(feature,))),
            LicenseReason.EXPIRED: lambda feature: agent.deliver(features=(feature,), begins_in=-DAY, expires_in=-1),
            LicenseReason.REVOKED: lambda feature: agent.revoke(agent.deliver(features=(feature,))),
        }
        for one in makers:
            for other in makers:
                feature = f"{one}-{other}"
                makers[one](feature)
                makers[other](feature)
                assert client.require(feature).reason is min(one, other, key=NEAREST_FIRST.index)


def test_it_says_what_was_counted() -> None:
    with FakeLicenseAgent(now=NOW) as agent, agent.client() as client:
        assert client.count_usage("sales").reason is LicenseReason.NO_LICENSE
        agent.deliver(features=("meter:sales",), license_id="l")
        first = client.count_usage("sales", 3)
        assert client.count_usage("sales", 3, count_id=first.count_id).repeated
        agent.stop()
        agent.start()
        assert client.count_usage("sales", 3, count_id=first.count_id).repeated
        client.count_usage("sales", 2)
        assert agent.usage() == {("l", "sales"): 5}


def test_time_is_what_the_test_says() -> None:
    with FakeLicenseAgent(now=NOW) as agent, agent.client() as client:
        token = agent.issue(expires_in=60)
        assert client.info().time == NOW
        agent.advance(59)
        assert client.validate(token).valid
        agent.advance(1)
        assert client.validate(token).reason is Reason.EXPIRED
        with pytest.raises(ValueError, match="does not go back"):
            agent.advance(-1)


def test_other_languages_drive_it_by_lines() -> None:
    acts = ['{"act": "issue", "license_id": "a"}', '{"act": "rotate"}', '{"act": "bake"}', "no json", '{"act": "stop", "x": 1}']
    written = io.StringIO()
    serve(io.StringIO("\n".join(acts)), written)
    first, token, version, *errors = [json.loads(line) for line in written.getvalue().splitlines()]
    assert set(first["tokens"]) == {reason.value for reason in Reason if reason not in MACHINE_REASONS}
    assert token["result"].startswith("fake-token.") and version["result"] > 1
    assert [list(error) for error in errors] == [["error"]] * 3 and "bake" in errors[0]["error"]


def test_each_act_of_a_line_is_done() -> None:
    with FakeLicenseAgent() as agent, agent.client(deadline=0.2) as client:
        token = answer(agent, '{"act": "token", "reason": "ok", "features": ["fuel"]}')["result"]
        assert client.validate(token).features == ("fuel",)
        assert answer(agent, '{"act": "refuse", "code": "FORBIDDEN"}') == {"result": None}
        with pytest.raises(AgentRefused):
            client.ping()
        answer(agent, '{"act": "reset"}')
        answer(agent, json.dumps({"act": "revoke", "token": token}))
        assert client.validate(token).reason is Reason.REVOKED
        assert "error" in answer(agent, '{"act": "revoke", "token": "x"}')
        answer(agent, '{"act": "stop"}')
        with pytest.raises(AgentUnavailable):
            client.ping()
        answer(agent, '{"act": "start"}')
        client.ping()
