"""People sign in at the operator API with an OpenID provider: a real one, over TLS, and one that lies or is gone."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.accounts import accounts
from server.accounts.roles import Role
from server.registry import audit
from tests.integration.test_operator_api import problem
from tests.support.apiserver import ApiServer, run
from tests.support.identity import API, CLIENT, IdentityProvider, private_key
from tests.support.openid import Documents, claims, es256, signed
from tests.support.operators import Operators, Person, operators_server
from tests.support.pki import DAY, SERVER, Entity, make
from tests.support.tlspeer import TlsPeer

LOOPBACK = "127.0.0.0/8"


@pytest.fixture(scope="module")
def authority() -> Entity:
    now = int(time.time())
    return make("provider's CA", authority=True, begins=now - DAY, ends=now + DAY)


@pytest.fixture(scope="module")
def entity(authority: Entity) -> Entity:
    now = int(time.time())
    return make("provider", authority, hosts=["127.0.0.1"], usage=SERVER, begins=now - DAY, ends=now + DAY)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with operators_server(request, tmp_path_factory.mktemp("openid") / "server") as made:
        yield made


@pytest.fixture(scope="module")
def operators(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Operators:
    return Operators(server, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def root(operators: Operators) -> Person:
    return operators.person("root", Role.ADMINISTRATOR)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory, entity: Entity, authority: Entity) -> Iterator[IdentityProvider]:
    with IdentityProvider(tmp_path_factory.mktemp("provider"), entity, authority) as made:
        yield made


def use(server: ApiServer, issuer: str, audience: str, ca: Path, *more: str) -> None:
    where = ["--dir", str(server.directory), "--local", "--reason", "a test"]
    what = ["--issuer", issuer, "--audience", audience, "--ca", str(ca), "--network", LOOPBACK]
    run("accounts", "oidc", "set", *what, *more, *where)


def know(operators: Operators, root: Person, name: str, issuer: str, subject: str, role: Role = Role.VIEWER) -> None:
    """An account for a person of the provider, made over the API."""
    with operators.client(root) as client:
        client.post("/accounts", json={"name": name, "kind": "person", "role": role.value}).raise_for_status()
        body = {"issuer": issuer, "subject": subject}
        client.put(f"/accounts/{name}/subject", json=body, headers={"if-match": "*"}).raise_for_status()


def asked(operators: Operators, token: str, path: str = "/me") -> httpx.Response:
    with operators.client(token=token) as client:
        return client.get(path)


# A real provider


def test_people_sign_in_at_a_real_provider(
    server: ApiServer, operators: Operators, root: Person, identity: IdentityProvider
) -> None:
    tokens = identity.sign_in("anna")
    assert "no OpenID provider" in problem(asked(operators, tokens["access_token"]), 401, "not-signed-in")

    use(server, identity.issuer, API, identity.ca)
    assert "no account" in problem(asked(operators, tokens["access_token"]), 401, "not-signed-in")
    know(operators, root, "anna", identity.issuer, "anna", Role.SUPPORT)
    me = asked(operators, tokens["access_token"]).json()
    assert (me["account"], me["role"], me["via"]) == ("anna", "support", "oidc")
    assert "another audience" in problem(asked(operators, tokens["id_token"]), 401, "not-signed-in")
    assert "no account" in problem(asked(operators, identity.sign_in("eve")["access_token"]), 401, "not-signed-in")
    assert "a program's" in problem(asked(operators, identity.client_token()), 401, "not-signed-in")

    # The ID tokens of a client, in place of the access tokens of an API.
    use(server, identity.issuer, CLIENT, identity.ca)
    assert asked(operators, tokens["id_token"]).json()["account"] == "anna"
    assert "another audience" in problem(asked(operators, tokens["access_token"]), 401, "not-signed-in")


def test_what_they_do_is_in_the_audit_with_who_they_are(
    server: ApiServer, operators: Operators, root: Person, identity: IdentityProvider
) -> None:
    use(server, identity.issuer, API, identity.ca)
    know(operators, root, "berta", identity.issuer, "berta", Role.SUPPORT)
    with operators.client(token=identity.sign_in("berta")["access_token"]) as client:
        made = client.post("/enrollment-tokens", json={"reason": "a new till"})
        assert made.status_code == 200, made.text
    with server.server_side() as side, side.database.read() as session:
        records = audit.tail(session, 50)
    mine = next(each.fields for each in records if each.fields.get("why") == "a new till")
    assert (mine["account"], mine["via"], mine["credential"]) == ("berta", "oidc", f"{identity.issuer} berta")


def test_the_command_line_takes_a_token_of_the_provider(
    server: ApiServer, operators: Operators, root: Person, identity: IdentityProvider, tmp_path: Path
) -> None:
    use(server, identity.issuer, API, identity.ca)
    know(operators, root, "clara", identity.issuer, "clara", Role.ADMINISTRATOR)
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(identity.sign_in("clara")["access_token"])
    base = operators.server.operators.removesuffix("/operator/v1")
    far = ["--server", base, "--auth-root", str(operators.root), "--auth-token", str(file)]
    listed = json.loads(run("accounts", "list", "--json", *far))
    assert ("clara", identity.issuer, "clara") in {(each["name"], each["issuer"], each["subject"]) for each in listed}
    run("accounts", "make", "dora", "--kind", "person", "--role", "viewer", *far)
    run("accounts", "subject", "dora", "--issuer", identity.issuer, "--subject", "dora", *far)
    token = identity.sign_in("dora")["access_token"]
    assert asked(operators, token).json()["account"] == "dora"
    run("accounts", "subject", "dora", "--none", *far)
    problem(asked(operators, token), 401, "not-signed-in")


def test_the_provider_changes_its_keys(
    server: ApiServer, operators: Operators, root: Person, identity: IdentityProvider
) -> None:
    use(server, identity.issuer, API, identity.ca)
    know(operators, root, "emma", identity.issuer, "emma")
    before = identity.sign_in("emma")["access_token"]
    assert asked(operators, before).json()["account"] == "emma"
    identity.stop()
    identity.start([private_key(secrets.token_hex(4))])
    after = identity.sign_in("emma")["access_token"]
    # Whoever sets the provider again makes every process read the keys at once; else it is the next minute's first token.
    assert "no key" in problem(asked(operators, after), 401, "not-signed-in")
    use(server, identity.issuer, API, identity.ca, "--max-age", "3600")
    assert asked(operators, after).json()["account"] == "emma"
    assert "no key" in problem(asked(operators, before), 401, "not-signed-in")


# Approval by two people


def test_one_person_with_two_sign_ins_is_one_person(
    server: ApiServer, operators: Operators, root: Person, identity: IdentityProvider
) -> None:
    use(server, identity.issuer, API, identity.ca)
    olga = operators.person("olga", Role.SECURITY_OFFICER)
    with server.server_side() as side, side.database.write() as session:
        now = int(time.time())
        accounts.set_subject(session, "olga", identity.issuer, "olga", "local", now)
        accounts.create(session, "otto", "person", Role.SECURITY_OFFICER, "local", now)
    token = identity.sign_in("olga")["access_token"]
    with operators.client(olga) as certified, operators.client(token=token) as vouched:
        assert (certified.get("/me").json()["via"], vouched.get("/me").json()["via"]) == ("certificate", "oidc")
        approval = vouched.post("/secrets/rotate", json={}).json()["approval_id"]
        assert "their own" in problem(certified.post(f"/approvals/{approval}/approve", json={}), 403, "not-allowed")
        # The same sign-in, moved to another account meanwhile.
        with server.server_side() as side, side.database.write() as session:
            accounts.set_subject(session, "olga", None, None, "local", int(time.time()))
            accounts.set_subject(session, "otto", identity.issuer, "olga", "local", int(time.time()))
        assert vouched.get("/me").json()["account"] == "otto"
        assert "their own" in problem(vouched.post(f"/approvals/{approval}/approve", json={}), 403, "not-allowed")


# A provider that lies, or is gone


@pytest.fixture
def liar(tmp_path: Path, entity: Entity, authority: Entity) -> Iterator[tuple[Documents, TlsPeer, Path]]:
    """A provider whose keys the test has."""
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.chain_pem)
    with TlsPeer(tmp_path, entity) as peer:
        documents = Documents(f"https://127.0.0.1:{peer.port}", es256())
        peer.behavior = documents
        yield documents, peer, ca


def test_an_account_that_may_not_sign_in_does_not(
    server: ApiServer, operators: Operators, root: Person, liar: tuple[Documents, TlsPeer, Path]
) -> None:
    documents, _, ca = liar
    use(server, documents.issuer, "x", ca)
    token = signed(documents.keys[0], claims(int(time.time()), iss=documents.issuer, aud="x"))
    know(operators, root, "fritz", documents.issuer, "17")
    with operators.client(token=token) as client:
        assert client.get("/me").json()["account"] == "fritz"
        for state, text in (("disabled", "no account"), ("active", ""), ("removed", "no account")):
            with server.server_side() as side, side.database.write() as session:
                accounts.change(session, "fritz", "local", int(time.time()), state=state)
            answer = client.get("/me")
            assert answer.status_code == 200 if not text else text in problem(answer, 401, "not-signed-in")
    with operators.client(root) as client:
        client.post("/accounts", json={"name": "robot", "kind": "program", "role": "viewer"})
        body = {"issuer": documents.issuer, "subject": "17"}
        refused = client.put("/accounts/robot/subject", json=body, headers={"if-match": "*"})
        assert "programs sign in with tokens" in problem(refused, 422, "invalid")
        run("accounts", "oidc", "off", "--dir", str(server.directory), "--local", "--reason", "a test")
    assert "no OpenID provider" in problem(asked(operators, token), 401, "not-signed-in")


def test_a_subject_of_another_issuer_is_another_person(
    server: ApiServer, operators: Operators, root: Person, liar: tuple[Documents, TlsPeer, Path], identity: IdentityProvider
) -> None:
    documents, _, ca = liar
    know(operators, root, "gerd", identity.issuer, "gerd")
    use(server, documents.issuer, API, ca)
    now = int(time.time())
    mine = signed(documents.keys[0], claims(now, iss=documents.issuer, aud=API, sub="gerd"))
    assert "no account" in problem(asked(operators, mine), 401, "not-signed-in")
    theirs = signed(documents.keys[0], claims(now, iss=identity.issuer, aud=API, sub="gerd"))
    assert "another issuer" in problem(asked(operators, theirs), 401, "not-signed-in")


def test_a_provider_that_hangs_stops_nobody_else(
    server: ApiServer, operators: Operators, root: Person, liar: tuple[Documents, TlsPeer, Path]
) -> None:
    documents, _, ca = liar
    use(server, documents.issuer, "x", ca)
    shop = operators.program("shop", Role.VIEWER, ["agents:read"])
    token = signed(documents.keys[0], claims(int(time.time()), iss=documents.issuer, aud="x", sub="nobody"))
    documents.hang = True
    with operators.client(token=token) as waiting, operators.client(root) as person, operators.client(token=shop) as program:
        began = time.monotonic()
        assert "OpenID provider" in problem(waiting.get("/me"), 503, "unavailable")
        assert time.monotonic() - began < 15
        assert person.get("/me").status_code == program.get("/me").status_code == 200
        again = waiting.get("/me")
        assert again.headers["retry-after"]
        problem(again, 503, "unavailable")


def test_a_provider_that_cannot_be_read_is_not_taken(
    server: ApiServer, root: Person, liar: tuple[Documents, TlsPeer, Path]
) -> None:
    documents, _, ca = liar
    local = ["--local", "--reason", "a test"]
    what = ["accounts", "oidc", "set", "--audience", "x"]
    loopback = ["--network", LOOPBACK]
    assert "not public" in server.fails(*what, "--issuer", documents.issuer, "--ca", str(ca), *local)
    assert "does not verify" in server.fails(*what, "--issuer", documents.issuer, *loopback, *local)
    named = ["--issuer", documents.issuer + "/", "--ca", str(ca), *loopback]
    assert "another issuer" in server.fails(*what, *named, *local)
    assert "https URL" in server.fails(*what, "--issuer", "http://127.0.0.1", *loopback, *local)
    good = ["--issuer", documents.issuer, "--ca", str(ca), *loopback]
    assert "--local" in server.fails(*what, *good)
    server.run(*what, *good, *local)
    shown = json.loads(server.run("accounts", "oidc", "show", "--json"))
    assert (shown["issuer"], shown["audience"], shown["problem"]) == (documents.issuer, "x", None)
    documents.status = "500 Internal Server Error"
    assert "500" in server.run("accounts", "oidc", "show")
