"""The operator API over real TLS, in a process of its own: signing in, pages, preconditions, two people, curl."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.accounts import accounts, certificates, tokens
from server.accounts.roles import SCOPES, Role
from tests.support.apiclient import Device
from tests.support.apiserver import COMMAND, ApiServer, run
from tests.support.operators import DAY, Operators, Person, operators_server
from tests.support.waiting import READY_S, wait_until

CERTAIN = sorted({"agents:read", "agents:write", "licenses:read", "licenses:write"})


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with operators_server(request, tmp_path_factory.mktemp("operators") / "server") as made:
        yield made


@pytest.fixture(scope="module")
def operators(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Operators:
    return Operators(server, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def root(operators: Operators) -> Person:
    """The first administrator."""
    return operators.person("root", Role.ADMINISTRATOR)


@pytest.fixture(scope="module")
def till(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Device:
    device = Device(server.base, server.root, tmp_path_factory.mktemp("till"))
    device.provision(server.claim(), server.pins)
    with server.server_side() as side:
        side.secrets.rotate_by_hand(device.agent_id, int(time.time()))
    return device


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """The detail of a problem of this status and kind."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert set(content) == {"type", "title", "status", "detail", "next"}
    assert (content["type"], content["status"]) == (f"urn:license-agent:problem:{kind}", status)
    assert content["next"]
    detail: str = content["detail"]
    return detail


# Signing in


def test_a_person_signs_in_with_a_certificate(operators: Operators, root: Person) -> None:
    with operators.client(root) as client:
        me = client.get("/me")
        assert me.json() == {
            "account": "root", "kind": "person", "role": "administrator", "via": "certificate", "scopes": sorted(SCOPES),
            "break_glass": None,
        }  # fmt: skip
        assert me.headers["cache-control"] == "no-store"
        assert client.get("/health").json()["ready"] is True


def test_a_program_signs_in_with_a_token_and_does_what_its_scopes_say(operators: Operators, root: Person, till: Device) -> None:
    token = operators.program("shop", Role.ISSUER, CERTAIN)
    with operators.client(token=token) as client:
        assert client.get("/me").json()["scopes"] == CERTAIN
        order = {"agent_id": till.agent_id, "expires": int(time.time()) + DAY, "features": ["sale"], "reason": "order 17"}
        issued = client.post("/licenses", json=order, headers={"idempotency-key": "order-17"})
        assert issued.status_code == 200, issued.text
        again = client.post("/licenses", json=order, headers={"idempotency-key": "order-17"})
        assert again.json() == issued.json()
        license_id = issued.json()["license"]["license_id"]
        assert client.get(f"/licenses/{license_id}").json()["features"] == ["sale"]
        assert "audit:read" in problem(client.get("/audit"), 403, "not-allowed")
        other = client.post("/licenses", json=order | {"features": []}, headers={"idempotency-key": "order-17"})
        problem(other, 422, "idempotency-key-reused")
    with operators.client(root) as client:
        records = client.get("/audit", params={"limit": 500}).json()["items"]
        mine = next(each for each in records if each["event"] == "license.issued")
        assert (mine["fields"]["account"], mine["fields"]["via"], mine["fields"]["why"]) == ("shop", "token", "order 17")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", "Basic cm9vdDpyb290", f"Bearer lsp_{'a' * 12}_{'A' * 43}"])
def test_nobody_is_signed_in_by_anything_else(operators: Operators, header: str) -> None:
    with operators.client() as client:
        refused = client.get("/me", headers={"authorization": header} if header else {})
        problem(refused, 401, "not-signed-in")
        assert refused.headers["www-authenticate"].startswith("Bearer")


def test_the_certificate_of_an_agent_opens_nothing(operators: Operators, root: Person, till: Device) -> None:
    certificate, key = till.files()
    agent = Person("till", "", Path(certificate), Path(key))
    with operators.client(agent) as client, pytest.raises(httpx.TransportError):
        client.get("/me")


def test_two_credentials_are_one_too_many(operators: Operators, root: Person) -> None:
    token = operators.program("two", Role.VIEWER, ["agents:read"])
    with operators.client(root, token) as client:
        problem(client.get("/me"), 400, "two-credentials")


def test_what_was_revoked_a_moment_ago_in_another_process_does_not_count(
    server: ApiServer, operators: Operators, root: Person
) -> None:
    anna = operators.person("anna", Role.VIEWER)
    token = operators.program("anna-app", Role.VIEWER, ["agents:read"])
    with operators.client(anna) as person, operators.client(token=token) as program:
        assert person.get("/agents").status_code == program.get("/agents").status_code == 200
        now = int(time.time())
        with server.server_side() as side, side.database.write() as session:
            certificates.revoke(session, anna.fingerprint, "local", now)
            tokens.revoke(session, token.split("_")[1], "local", now)
        problem(person.get("/agents"), 401, "not-signed-in")
        problem(program.get("/agents"), 401, "not-signed-in")


def test_a_demoted_person_keeps_nothing_of_their_role(server: ApiServer, operators: Operators, root: Person) -> None:
    dora = operators.person("dora", Role.ADMINISTRATOR)
    with operators.client(dora) as client:
        assert client.get("/accounts").status_code == 200
        with server.server_side() as side, side.database.write() as session:
            accounts.change(session, "dora", "root", int(time.time()), Role.VIEWER)
        problem(client.get("/accounts"), 403, "not-allowed")


def test_an_expired_token_does_not_count(operators: Operators) -> None:
    token = operators.program("brief", Role.VIEWER, ["agents:read"], lifetime=60)
    with operators.server.server_side() as side, side.database.write() as session:
        row = tokens.find(session, token, int(time.time()))
        assert row is not None
        row.expires_at = int(time.time())
    with operators.client(token=token) as client:
        problem(client.get("/me"), 401, "not-signed-in")


# Attacks


def test_a_body_raises_neither_scope_nor_role(operators: Operators, root: Person, till: Device) -> None:
    token = operators.program("greedy", Role.VIEWER, ["licenses:read", "licenses:write", "accounts:write"])
    with operators.client(token=token) as client:
        order = {"agent_id": till.agent_id, "expires": int(time.time()) + DAY}
        for more in ({"role": "administrator"}, {"scopes": ["audit:read"]}, {"account": "root"}, {"approval": "ab"}):
            assert "is not known here" in problem(client.post("/licenses", json=order | more), 400, "malformed")
        problem(client.post("/licenses", json=order), 403, "not-allowed")
        problem(client.post("/accounts", json={"name": "mine", "kind": "person", "role": "administrator"}), 403, "not-allowed")
        headers = {"x-scope": "audit:read", "x-role": "administrator", "client-certificate": "root"}
        problem(client.get("/audit", headers=headers), 403, "not-allowed")


def test_members_that_are_not_for_the_sender_cannot_be_set(operators: Operators, root: Person) -> None:
    with operators.client(root) as client:
        new = {"name": "mass", "kind": "program", "role": "viewer"}
        for more in ({"revision": 9}, {"created_at": 1}, {"state": "removed"}, {"issuer": "x"}, {"may_break_glass": True}):
            problem(client.post("/accounts", json=new | more), 400, "malformed")
        made = client.post("/accounts", json=new)
        assert (made.status_code, made.json()["revision"], made.json()["changed_by"]) == (200, 1, "root")


def test_a_cursor_belongs_to_its_list_and_its_filters(operators: Operators, root: Person) -> None:
    for number in range(3):
        operators.program(f"page-{number}", Role.VIEWER, ["agents:read"])
    with operators.client(root) as client:
        first = client.get("/accounts", params={"limit": 2}).json()
        seen = [each["name"] for each in first["items"]]
        cursor = first["next"]
        while cursor is not None:
            page = client.get("/accounts", params={"limit": 2, "cursor": cursor}).json()
            seen += [each["name"] for each in page["items"]]
            cursor = page["next"]
        assert seen == sorted(set(seen))
        assert {"page-0", "page-1", "page-2", "root"} <= set(seen)
        cursor = first["next"]
        flipped = ("A" if cursor[0] != "A" else "B") + cursor[1:]
        for wrong in (flipped, cursor[:-1], cursor.partition(".")[0], cursor + "A", "x.y"):
            problem(client.get("/accounts", params={"cursor": wrong}), 400, "cursor-refused")
        problem(client.get("/agents", params={"cursor": cursor}), 400, "cursor-refused")
        tokens_of = client.get("/accounts/page-0/tokens", params={"cursor": cursor})
        problem(tokens_of, 400, "cursor-refused")


def test_a_misspelled_filter_is_not_ignored(operators: Operators, root: Person) -> None:
    with operators.client(root) as client:
        problem(client.get("/agents", params={"statuss": "revoked"}), 400, "malformed")
        problem(client.get("/agents", params={"status": "Revoked"}), 400, "malformed")
        problem(client.get("/agents", params={"limit": 501}), 400, "malformed")


def test_a_request_with_two_readings_is_refused(operators: Operators, root: Person) -> None:
    token = operators.program("smuggler", Role.VIEWER, ["agents:read"])
    with operators.client(token=token) as client:
        both = {"content-length": "2", "transfer-encoding": "chunked", "content-type": "application/json"}
        answer = client.post("/agents/x/revoke", content=b"2\r\n{}\r\n0\r\n\r\n", headers=both)
        problem(answer, 400, "malformed")
        assert answer.headers["connection"] == "close"
        twice = [("authorization", f"Bearer {token}"), ("authorization", "Bearer x")]
        request = httpx.Request("GET", f"{operators.server.operators}/me", headers=twice)
        problem(client.send(request), 400, "malformed")


# Changes


def test_a_change_says_which_state_it_is_of(operators: Operators, root: Person) -> None:
    operators.person("eva", Role.VIEWER)
    with operators.client(root) as client:
        tag = client.get("/accounts/eva").headers["etag"]
        problem(client.patch("/accounts/eva", json={"role": "support"}), 428, "precondition-required")
        changed = client.patch("/accounts/eva", json={"role": "support"}, headers={"if-match": tag})
        assert (changed.status_code, changed.json()["role"]) == (200, "support")
        assert changed.headers["etag"] != tag
        problem(client.patch("/accounts/eva", json={"role": "issuer"}, headers={"if-match": tag}), 412, "precondition-failed")
        problem(client.patch("/accounts/nobody", json={"role": "issuer"}, headers={"if-match": "*"}), 404, "not-found")
        problem(client.get("/accounts/nobody"), 404, "not-found")
        problem(client.get("/nothing"), 404, "no-such-path")
        problem(client.delete("/accounts/eva"), 405, "method-not-allowed")
        text = client.post("/accounts", content=b"{}", headers={"content-type": "text/plain"})
        problem(text, 415, "unsupported-media-type")
        large = client.post("/accounts", content=b" " * (1024 * 1024 + 1), headers={"content-type": "application/json"})
        problem(large, 413, "too-large")


def test_the_last_administrator_stays(operators: Operators, root: Person) -> None:
    with operators.client(root) as client:
        every = client.get("/accounts", params={"limit": 500}).json()["items"]
        for each in every:
            if each["role"] == "administrator" and each["name"] != "root":
                client.patch(f"/accounts/{each['name']}", json={"role": "viewer"}, headers={"if-match": "*"})
        refused = client.patch("/accounts/root", json={"role": "viewer"}, headers={"if-match": "*"})
        assert "last administrator" in problem(refused, 409, "conflict")


def test_a_second_person_approves_what_touches_many(operators: Operators, root: Person, till: Device) -> None:
    olga, otto = (operators.person(name, Role.SECURITY_OFFICER) for name in ("olga", "otto"))
    body = {"reason": "the keys were copied"}
    with operators.client(olga) as first, operators.client(otto) as second:
        asked = first.post("/secrets/rotate", json=body)
        assert asked.status_code == 202
        approval = asked.json()["approval_id"]
        problem(first.post(f"/approvals/{approval}/approve", json={}), 403, "not-allowed")
        seen = second.get(f"/approvals/{approval}").json()
        assert (seen["act"], seen["requester"], seen["reason"]) == ("secrets.rotate_all", "olga", "the keys were copied")
        assert second.post(f"/approvals/{approval}/approve", json={}).json()["state"] == "approved"
        problem(second.post("/secrets/rotate", json=body, headers={"approval-id": approval}), 404, "not-found")
        done = first.post("/secrets/rotate", json=body, headers={"approval-id": approval})
        said = done.json()
        assert (said["count"], said["agents"], said["ended"], said["interrupted"]) == (1, 1, True, None)
        problem(first.post("/secrets/rotate", json=body, headers={"approval-id": approval}), 409, "conflict")


def test_emergency_access_begins_and_ends(operators: Operators, root: Person) -> None:
    sam = operators.person("sam", Role.SUPPORT)
    why = {"why": "nobody else can be reached", "lasts_s": 600}
    with operators.client(sam) as client, operators.client(root) as admin:
        problem(client.post("/break-glass", json=why), 403, "not-allowed")
        admin.patch("/accounts/sam", json={"may_break_glass": True}, headers={"if-match": "*"})
        problem(client.get("/audit"), 403, "not-allowed")
        begun = client.post("/break-glass", json=why)
        assert begun.status_code == 200, begun.text
        assert client.get("/audit").status_code == 200
        problem(client.get("/accounts"), 403, "not-allowed")
        ended = admin.post(f"/break-glass/{begun.json()['break_glass_id']}/end", json={})
        assert ended.json()["ended_by"] == "root"
        problem(client.get("/audit"), 403, "not-allowed")


def test_a_program_replaces_its_own_token_and_no_other(operators: Operators, root: Person) -> None:
    token = operators.program("rotor", Role.VIEWER, ["agents:read"])
    other = operators.program("victim", Role.VIEWER, ["agents:read"])
    with operators.client(token=token) as client:
        problem(client.post(f"/tokens/{other.split('_')[1]}/revoke", json={}), 403, "not-allowed")
        made = client.post(f"/tokens/{token.split('_')[1]}/rotate", json={"overlap_s": 0})
        assert made.status_code == 200, made.text
        problem(client.get("/agents"), 401, "not-signed-in")
    with operators.client(token=made.json()["text"]) as client:
        assert client.get("/agents").status_code == 200


# Limits, and a client that is not ours


def test_who_asks_too_much_waits(operators: Operators, root: Person) -> None:
    token = operators.program("flood", Role.VIEWER, ["agents:read"])
    with operators.client(token=token) as client:
        answers = [client.get("/me") for _ in range(90)]
        limited = next(each for each in answers if each.status_code == 429)
        problem(limited, 429, "rate-limited")
        assert int(limited.headers["retry-after"]) >= 1


def test_the_requests_of_operators_are_counted_apart_from_those_of_agents(server: ApiServer, operators: Operators) -> None:
    def count(sample: str) -> float:
        text = httpx.get(f"{server.ops}/metrics").text
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample)), 0.0)

    name = "license_server_operator_"
    answered, refused = f'{name}requests_total{{outcome="ok"}}', f'{name}refusals_total{{code="not-found"}}'
    agents = "license_server_requests_total{"
    before = [count(each) for each in (answered, refused, f"{name}request_seconds_count", agents)]
    with operators.client(operators.person("vera", Role.VIEWER)) as client:
        assert client.get("/products").status_code == 200
        assert client.get("/licenses/none").status_code == 404
    # A response is counted behind it.
    wait_until(lambda: count(f"{name}request_seconds_count") == before[2] + 2, "both requests are counted")
    assert [count(each) for each in (answered, refused, agents)] == [before[0] + 1, before[1] + 1, before[3]]


def test_curl_is_enough(operators: Operators, root: Person) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "install curl"
    base = operators.server.operators
    common = [curl, "--silent", "--show-error", "--cacert", str(operators.root), "--tlsv1.3"]

    def ask(*arguments: str) -> Any:
        done = subprocess.run([*common, *arguments], capture_output=True, text=True, timeout=READY_S, check=True)
        return json.loads(done.stdout)

    mine = ["--cert", str(root.certificate), "--key", str(root.key)]
    assert ask(*mine, f"{base}/me")["account"] == "root"
    new = json.dumps({"name": "curl", "kind": "program", "role": "viewer"})
    assert ask(*mine, "--json", new, f"{base}/accounts")["name"] == "curl"
    token = ask(*mine, "--json", json.dumps({"scopes": ["agents:read"]}), f"{base}/accounts/curl/tokens")["text"]
    bearer = ["--header", f"Authorization: Bearer {token}"]
    assert ask(*bearer, f"{base}/me")["via"] == "token"
    assert ask(*bearer, f"{base}/audit")["status"] == 403
    assert ask(*bearer, f"{base}/openapi.json")["info"]["title"] == "license-server: operators"


def test_the_command_line_is_a_client_like_any_other(operators: Operators, root: Person, tmp_path: Path) -> None:
    server = operators.server.operators.removesuffix("/operator/v1")
    shared = ["--server", server, "--auth-root", str(operators.root)]
    mine = [*shared, "--auth-cert", str(root.certificate), "--auth-key", str(root.key)]
    listed = json.loads(run("accounts", "list", "--json", *mine))
    assert "root" in {each["name"] for each in listed}
    run(*mine, "accounts", "make", "remote", "--kind", "person", "--role", "security_officer", "--reason", "a new colleague")
    files = [str(tmp_path / "remote.key"), str(tmp_path / "remote.pem")]
    run(*mine, "accounts", "certify", "remote", "--key", files[0], "--out", files[1])
    run(*mine, "accounts", "change", "remote", "--emergency", "allowed")
    theirs = [*shared, "--auth-cert", files[1], "--auth-key", files[0]]
    assert "say why in at least 10 characters" in failing(*theirs, "break-glass", "begin", "--why", "x")
    run(*theirs, "break-glass", "begin", "--why", "nobody else is there")
    (mine_open,) = [each for each in json.loads(run(*mine, "break-glass", "list", "--json")) if each["account"] == "remote"]
    run(*theirs, "break-glass", "end", mine_open["break_glass_id"])
    run(*mine, "approvals", "list")
    assert "ask an administrator" in failing(*theirs, "accounts", "make", "x", "--kind", "person", "--role", "viewer")
    assert "sign in with a certificate" in failing(*shared, "accounts", "list")
    token = tmp_path / "token"
    token.write_text(operators.program("console", Role.SECURITY_OFFICER, ["accounts:read"]))
    token.chmod(0o600)
    assert run(*shared, "--auth-token", str(token), "accounts", "list", "--limit", "1").count("\n") == 3
    with operators.client(root) as client:
        records = client.get("/audit", params={"limit": 500}).json()["items"]
        made = next(each for each in records if each["event"] == "account.made" and each["fields"]["name"] == "remote")
        assert (made["fields"]["account"], made["fields"]["why"]) == ("root", "a new colleague")


def failing(*arguments: str) -> str:
    """What a command that fails says."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=READY_S, check=False)
    assert done.returncode == 1, done
    return done.stderr


def test_no_token_is_in_the_log(server: ApiServer) -> None:
    assert "lsp_" not in server.log()
