"""The REST interface in front of the agent, both as real processes: what administrators do with it."""

import json
from collections.abc import Iterator

import pytest

from common.version import VERSION
from tests.support.manage import Client, Manage, both, issued

# The admin CA's file must belong to root, and the interface has a user of its own.
pytestmark = [pytest.mark.system, pytest.mark.root]


@pytest.fixture(scope="module")
def manage() -> Iterator[Manage]:
    with both() as running:
        yield running


def test_the_running_program_is_told_by_the_certificate_alone(manage: Manage) -> None:
    found = Client(manage, issued("viewer")).ask("GET", "/system/info")
    assert found.status == 200 and found.json["version"] == VERSION and found.json["build"] is None
    assert found.json["uptime_s"] >= 0
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert found.json["boot_id"] == file.read().strip().replace("-", "")


def test_health_is_told_by_the_certificate_alone(manage: Manage) -> None:
    found = Client(manage, issued("viewer")).ask("GET", "/v1/health")
    assert found.status == 200 and found.json["exit_status"] in (0, 1, 2)


def test_a_signed_act_is_performed_and_the_log_names_who_signed(manage: Manage) -> None:
    bench, holder = manage.bench, issued("admin")
    bench.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(bench.root / "delivery"))
    delivery = (bench.root / "delivery").read_text().strip()
    client = Client(manage, holder)
    done = client.act("secret_install", {"delivery": delivery})
    assert done.status == 200 and done.json["result"]["secret_version"] == 1
    again = client.act("secret_invalidate", {"version": 1}, done.json["challenge"])  # the next challenge, without asking
    assert again.status == 200, again
    (record,) = [each for each in bench.records() if each["event"] == "secret.invalidate"]
    actor = record["actor"]
    assert (actor["uid"], actor["name"], actor["certificate"]) == (manage.uid, "the admin", holder.digest)


def test_somebody_else_may_sign_than_holds_the_connection(manage: Manage) -> None:
    signer = issued("admin")
    client = Client(manage, issued("viewer"))
    assert client.act("reload", signer=signer).status == 200
    assert client.act("reload").problem == "refused"  # the viewer's own role is not enough
    record = [each for each in manage.bench.records() if each.get("op") == "reload"][-1]
    assert record["actor"]["certificate"] == signer.digest


def test_reads_need_a_session_and_one_signature_for_all_of_them(manage: Manage) -> None:
    client = Client(manage, issued("admin"))
    assert client.ask("GET", "/v1/status").problem == "no-session"
    session = client.session()
    assert client.read("/v1/status", session).json["agent_id"] == "pos-009"
    assert isinstance(client.read("/v1/secrets", session).json["secrets"], list)
    metrics = client.read("/v1/metrics", session)
    assert metrics.headers["content-type"].startswith("text/plain") and b"license_agent_" in metrics.body
    assert "BEGIN PUBLIC KEY" in client.read("/v1/public-keys", session).json["identity"]
    assert client.read("/v1/access", session).json["mode"] == "required"
    assert client.read("/v1/audit/verification", session).json["outcome"] in ("intact", "incomplete")
    assert client.read("/v1/licenses/no-such-license", session).problem == "not-found"
    first = client.read("/v1/audit?after=-1&limit=2", session).json["records"]
    assert [json.loads(line)["seq"] for line in first] == [1, 2] or len(first) == 2
    later = client.read(f"/v1/audit?after={json.loads(first[1])['seq']}&limit=1", session).json["records"]
    assert json.loads(later[0])["seq"] == json.loads(first[1])["seq"] + 1
    assert client.ask("DELETE", f"/v1/sessions/{session}").status == 204
    assert client.read("/v1/status", session).problem == "no-session"


def test_updates_are_triggered_by_acts_and_read_with_a_session(manage: Manage) -> None:
    client = Client(manage, issued("operator"))
    session = client.session()
    found = client.read("/v1/updates", session).json
    assert (found["enabled"], found["state"], found["update"], found["paused"]) == (True, "idle", None, None)
    assert client.read("/v1/updates/history?count=1", session).json == {"entries": [], "total": 0}
    assert client.read("/v1/updates/history?count=51", session).problem == "bad-request"
    # What the agent says to a trigger comes back as it is: this one has no license server, and nothing to install.
    checked = client.act("ota_check")
    assert checked.problem == "refused" and "no license server" in checked.json["detail"]
    wanted = client.act("ota_install", {"rehearse": False}, checked.json["challenge"])
    assert wanted.problem == "refused" and "no update is offered" in wanted.json["detail"]
    paused = client.act("ota_pause", {"end": False}, wanted.json["challenge"])
    assert paused.json["result"] == {"paused": True}
    assert client.read("/v1/updates", session).json["paused"] == "the operator has paused updates on this machine"
    assert client.read("/v1/status", session).json["updates"]["paused"]
    assert client.act("ota_pause", {"end": True}).status == 200
    record = [each for each in manage.bench.records() if each["event"] == "ota.paused"][-1]
    assert record["actor"]["name"] == "the operator" and record["outcome"] == "ended"
    viewer = Client(manage, issued("viewer"))
    for op, params in (("ota_check", {}), ("ota_install", {"rehearse": False}), ("ota_unlock", {"why": "x"})):
        assert viewer.act(op, params).problem == "refused", op
    assert viewer.ask("GET", "/v1/updates").problem == "no-session"
    client.ask("DELETE", f"/v1/sessions/{session}")


def test_a_session_is_of_one_tls_certificate_and_changes_nothing(manage: Manage) -> None:
    client, other = Client(manage, issued("admin")), Client(manage, issued("admin"))
    session = client.session()
    assert other.read("/v1/status", session).problem == "no-session"
    assert other.ask("DELETE", f"/v1/sessions/{session}").problem == "not-found"
    assert client.read("/v1/status", session).status == 200
    assert client.ask("POST", "/v1/acts", license_agent_session=session).problem == "not-json"
    client.ask("DELETE", f"/v1/sessions/{session}")


def test_a_reply_with_a_challenge_of_its_own_keeps_it(manage: Manage) -> None:
    client = Client(manage, issued("operator"))
    done = client.act("clock_challenge")
    assert done.status == 200, done
    assert done.json["result"]["challenge"] != done.json["challenge"]["challenge"]
    assert client.act("ping", given=done.json["challenge"]).status == 200


def test_a_session_is_no_act(manage: Manage) -> None:
    client = Client(manage, issued("admin"))
    refused = client.act("session_begin")
    assert refused.problem == "bad-parameters" and "/v1/sessions" in refused.json["next"]


def test_what_the_agent_refuses_says_why_and_gives_the_next_challenge(manage: Manage) -> None:
    client = Client(manage, issued("admin"))
    refused = client.act("secret_invalidate", {"version": 4_000_000})
    assert refused.problem == "not-found" and refused.json["code"] == 13
    refused = client.act("secret_invalidate", {"version": 0}, refused.json["challenge"])
    assert refused.problem == "bad-parameters" and "version" in refused.json["detail"]
    refused = client.act("no_such_operation", {}, refused.json["challenge"])
    assert refused.problem == "unknown-operation"
    for params in ({"op": "status"}, {"v": 2}, {"version": 10**30}):
        given = client.challenge()
        order = client.signed(given, "reload", {})
        answer = client.ask("POST", "/v1/acts", {**order, "op": "reload", "params": params})
        assert answer.problem == "bad-parameters", (params, answer)
        assert answer.json["challenge"]["challenge"] == given["challenge"]  # nothing was sent, so nothing is used up
        assert (
            client.ask("POST", "/v1/acts", {**client.signed(answer.json["challenge"], "ping", {}), "op": "ping"}).status == 200
        )


def test_head_options_and_unknown_paths(manage: Manage) -> None:
    client = Client(manage, issued("viewer"))
    head = client.ask("HEAD", "/system/info")
    assert head.status == 200 and not head.body and int(head.headers["content-length"]) > 0
    for path in ("/", "/v1", "/v1/status/", "/v1//status", "/v1/../v1/status", "/%761/status", "/v1/sessions/"):
        assert client.ask("GET", path).problem == "no-such-resource", path
    wrong = client.ask("PUT", "/v1/status", {})
    assert wrong.problem == "method-not-allowed" and wrong.headers["allow"] == "GET, HEAD"
    assert client.ask("GET", "/v1/licenses/%ff").problem == "bad-request"
    assert client.ask("GET", "/v1/audit?after=1&after=2").problem == "bad-request"
    assert client.ask("GET", "/v1/audit?since=1").problem == "bad-request"
    assert client.ask("GET", "/v1/audit?limit=1001").problem == "bad-request"
    assert client.ask("GET", "/v1/audit?limit=%D9%A1").problem == "bad-request"
    assert client.ask("GET", "/openapi.json").json["openapi"] == "3.1.0"
    for answer in (head, wrong):
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
