"""`license-server` against a server on another machine, over real TLS: every command works there, or says that it cannot."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import delete, update

from server.accounts import certificates
from server.accounts.roles import Role
from server.main import EXIT_SECOND_PERSON
from server.registry.models.core import Agent, License
from tests.server.cli.test_commands import ARGUMENTS, leaves
from tests.server.devices import make_csr
from tests.support.apiclient import Device
from tests.support.apiserver import ApiServer
from tests.support.manyagents import agent_id, make_agents
from tests.support.operators import Operators, Person, operators_server
from tests.support.servertool import Done, license_server
from tests.support.terminal import at_terminal
from tests.support.waiting import READY_S

PROGRAM = Path(sys.executable).with_name("license-server")
LOCAL = {
    # They make, move or keep a server, or need its keys or the offline root.
    "init", "serve", "migrate", "backup", "restore", "openapi", "tls-files", "trust", "root-pin",
    "root-certificate", "retention",
    "clock show", "clock accept", "keys end", "keys prepare",
    # Work by hand, for machines without a network.
    "enroll", "rotate", "reissue", "sign-time", "audit-head", "periods",
    # No act has them yet.
    "agents show", "agents serial", "agents delete", "accounts oidc set", "accounts oidc show", "accounts oidc off",
    # They publish, or need the keys of the repository that the server has.
    "ota init", "ota publish", "ota export", "ota keys", "ota expiry", "ota change-root", "ota change-targets", "ota trust",
}  # fmt: skip
"""Commands that work on the server's own machine only."""
LOCAL_GROUPS = ("move", "master-key")
OFFLINE = {f"ota {name}" for name in ("new-key", "sign", "check", "add", "promote", "revoke", "prolong")}
"""Commands for files of the vendor's, on whichever machine has them: they know no server."""


def is_local(command: str) -> bool:
    return command in LOCAL or command.split()[0] in LOCAL_GROUPS


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with operators_server(request, tmp_path_factory.mktemp("remote") / "server") as made:
        yield made


@pytest.fixture(scope="module")
def operators(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Operators:
    return Operators(server, tmp_path_factory.mktemp("files"))


@dataclass
class Desk:
    """The command line of operators on another machine.

    Attributes:
        operators: of the server.
        people: who there is: `root` is administrator, `olga` security officer, `vera` viewer.
        till: an agent with a secret.
    """

    operators: Operators
    people: dict[str, Person]
    till: str

    @property
    def url(self) -> str:
        return self.operators.server.operators.removesuffix("/operator/v1")

    def options(self, who: str = "root") -> list[str]:
        person = self.people[who]
        files = ["--auth-cert", str(person.certificate), "--auth-key", str(person.key)]
        return ["--server", self.url, "--auth-root", str(self.operators.root), *files]

    def remote(self, *arguments: object, who: str = "root", code: int = 0) -> Done:
        return self.run(*arguments, *self.options(who), code=code)

    def local(self, *arguments: object, code: int = 0) -> Done:
        return self.run(*arguments, "--dir", self.operators.server.directory, code=code)

    def run(self, *arguments: object, code: int = 0) -> Done:
        done = license_server(*map(str, arguments), env={"XDG_CONFIG_HOME": "/nonexistent"})
        assert done.returncode == code, done
        return done


@pytest.fixture(scope="module")
def desk(server: ApiServer, operators: Operators, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    roles = {"root": Role.ADMINISTRATOR, "olga": Role.SECURITY_OFFICER, "vera": Role.VIEWER}
    people = {name: operators.person(name, role) for name, role in roles.items()}
    device = Device(server.base, server.root, tmp_path_factory.mktemp("till"))
    device.provision(server.claim(), server.pins)
    with server.server_side() as side:
        side.secrets.rotate_by_hand(device.agent_id, int(time.time()))
    return Desk(operators, people, device.agent_id)


def halt(desk: Desk, agent: str) -> None:
    with desk.operators.server.server_side() as side, side.database.write() as session:
        session.execute(update(Agent).where(Agent.id == agent).values(halted_at=1000, halt_reason="why"))


READS = {
    "accounts certificates": "root", "accounts list": "", "accounts tokens": "shop", "agents list": "",
    "agents keys": "TILL identity", "approvals list": "", "break-glass list": "", "clones list": "",
    "ddi devices list": "", "ddi credentials list": "",
    "devices list": "", "devices show": "TILL", "enrollment-token list": "", "events": "", "fleets list": "",
    "rollouts automatic list": "", "rollouts list": "", "fleets alerts list": "", "fleets alerts silences": "",
    "fleets match": "id=pos-*", "keys list": "", "keys schedule": "", "secrets list": "--agent TILL",
    "licenses list": "--agent TILL", "licenses show": "LICENSE", "licenses history": "LICENSE",
    "webhooks list": "", "webhooks dead-letters": "HOOK",
}  # fmt: skip
REMOTE = sorted({" ".join(path) for path, _ in leaves() if not is_local(" ".join(path))} - OFFLINE)


def test_the_list_of_local_commands_names_commands() -> None:
    assert {" ".join(path) for path, _ in leaves()} >= LOCAL | OFFLINE
    assert set(REMOTE) >= set(READS)


@pytest.mark.parametrize("command", REMOTE)
def test_every_other_command_asks_the_server_that_is_named(desk: Desk, command: str, tmp_path: Path) -> None:
    """At a port where nobody listens, so that nothing but the question is tried."""
    own = {
        "accounts certify": ["x", "--key", str(tmp_path / "k"), "--out", str(tmp_path / "c")],
        "accounts subject": ["x", "--none"],
        "ddi devices certificate": ["x", "--csr", str(tmp_path / "csr")],
        "ota bundle": [*ARGUMENTS["ota bundle"], "--package", str(tmp_path / "package")],
    }
    (tmp_path / "package").touch()
    (tmp_path / "csr").write_text("x")
    options = desk.options()
    arguments = own.get(command, ARGUMENTS.get(command, []))
    if command.startswith("webhooks ") and arguments[:1] == ["x"]:
        arguments = ["wh-0123456789ab", *arguments[1:]]
    done = desk.run(*command.split(), *arguments, options[0], "https://127.0.0.1:1", *options[2:], code=1)
    assert "nobody listens there" in done.stderr, done


@pytest.mark.parametrize("command", sorted({" ".join(path) for path, _ in leaves() if is_local(" ".join(path))} - {"openapi"}))
def test_a_command_for_the_servers_machine_says_so(command: str) -> None:
    done = license_server(*command.split(), "--server", "https://127.0.0.1:1", env={"LICENSE_SERVER_DIR": "/nonexistent"})
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "works on the server's own machine only, not with --server" in done.stderr


def test_what_needs_the_root_key_or_the_audit_key_says_so(desk: Desk) -> None:
    for arguments in (["keys", "rotate", "license"], ["keys", "rotate", "root"], ["audit", "--verify"]):
        assert "on the server's own machine only, not with --server" in desk.remote(*arguments, code=1).stderr


def settle(desk: Desk) -> dict[str, str]:
    """Something of everything that is listed; words of `READS` stand for it."""
    accounts = {row["name"] for row in json.loads(desk.remote("accounts", "list", "--json").stdout)}
    if "shop" not in accounts:
        desk.remote("accounts", "make", "shop", "--kind", "program", "--role", "issuer")
        desk.remote("accounts", "token", "shop", "--scope", "agents:read")
        desk.remote("webhooks", "add", "https://till.example/")
    tokens = json.loads(desk.remote("accounts", "tokens", "shop", "--json").stdout)
    if not json.loads(desk.remote("licenses", "list", "--agent", desk.till, "--json").stdout):
        desk.remote("issue", "--agent", desk.till, "--expires", "+30d", "--license-id", "sold")
    hooks = json.loads(desk.remote("webhooks", "list", "--json").stdout)
    return {"TILL": desk.till, "TOKEN": tokens[-1]["token_id"], "HOOK": hooks[-1]["webhook_id"], "LICENSE": "sold"}


@pytest.fixture(scope="module")
def words(desk: Desk) -> dict[str, str]:
    """Once for the commands that read: they change nothing."""
    return settle(desk)


@pytest.mark.parametrize("command", READS)
@pytest.mark.parametrize("form", ["", "--json"])
def test_a_command_that_reads_prints_the_same_from_another_machine(
    desk: Desk, words: dict[str, str], command: str, form: str
) -> None:
    if form and command == "agents keys":
        return
    halt(desk, desk.till)
    arguments = [*command.split(), *(words.get(word, word) for word in READS[command].split()), *form.split()]
    there = desk.remote(*arguments)
    here = desk.local(*arguments)
    # The last use of whoever asks is a matter of the moment.
    assert (there.stdout, there.stderr) == (here.stdout, here.stderr)
    assert there.stdout.strip()


def test_the_audit_names_who_asked_from_where(desk: Desk) -> None:
    desk.remote("secrets", "rotate", "--agent", desk.till, "--reason", "a doubt", who="olga")
    records = json.loads(desk.remote("audit", "-n", "3", "--json", who="olga").stdout)
    assert len(records) == 3
    fields = records[-1]["fields"]
    assert (fields["account"], fields["via"], fields["why"]) == ("olga", "certificate", "a doubt")
    assert "a doubt" in desk.remote("audit", "-n", "3").stdout


def test_agents_are_revoked_retired_and_taken_back(desk: Desk) -> None:
    spare = agent_id(51)
    with desk.operators.server.server_side() as side:
        make_agents(side.database, 51, 52, int(time.time()))
    desk.remote("agents", "revoke", spare)
    assert f"reinstated {spare}; its certificates stay revoked" in desk.remote("agents", "reinstate", spare, "--yes").stderr
    assert "active already" in desk.remote("agents", "reinstate", spare).stderr
    assert f"retired {spare} with 1 license; it stays" in desk.remote("agents", "retire", spare).stderr
    asked = desk.remote("agents", "reinstate", spare, code=1).stderr
    assert "nobody answered yes" in asked
    assert "no agent 'ghost' is enrolled" in desk.remote("agents", "reinstate", "ghost", code=1).stderr
    desk.remote("agents", "reinstate", spare, "--yes")
    assert "role 'viewer'" in desk.remote("agents", "revoke", spare, who="vera", code=1).stderr
    assert "is not halted" in desk.remote("clones", "resume", spare, code=1).stderr
    halt(desk, spare)
    assert "is halted since 1970-01-01 00:16:40Z: why" in desk.remote("clones", "resume", spare, code=1).stderr
    desk.remote("clones", "resume", spare, "--yes")


def test_secrets_tokens_and_webhooks_are_changed(desk: Desk, tmp_path: Path) -> None:
    words = settle(desk)
    desk.remote("secrets", "invalidate", "--agent", desk.till, "1")
    assert "no secret version 9" in desk.remote("secrets", "invalidate", "--agent", desk.till, "9", code=1).stderr
    assert "INVALIDATED" in desk.remote("secrets", "list", "--agent", desk.till).stdout
    desk.remote("enrollment-token", "make", "--factory-only", "--out", tmp_path / "token")
    assert len((tmp_path / "token").read_text().strip()) >= 32
    (row, *_) = json.loads(desk.remote("enrollment-token", "list", "--json", "--limit", "1").stdout)
    assert row["factory_only"] is True
    desk.remote("enrollment-token", "revoke", row["claim_id"])
    hook = words["HOOK"]
    for change in (["pause"], ["resume"], ["test"], ["retry"], ["set", "--kind", "license.*"], ["new-secret"]):
        desk.remote("webhooks", change[0], hook, *change[1:])
    assert "license.*" in desk.remote("webhooks", "list").stdout
    desk.remote("webhooks", "remove", hook)
    assert desk.remote("webhooks", "add", "https://till.example/").stdout.strip()


def test_a_license_is_sold_changed_and_moved(desk: Desk, tmp_path: Path) -> None:
    with desk.operators.server.server_side() as side:
        make_agents(side.database, 61, 63, int(time.time()))
        with side.database.write() as session:  # made without all their claims
            session.execute(delete(License).where(License.agent_id.in_([agent_id(61), agent_id(62)])))
        for number in (61, 62):
            side.secrets.rotate_by_hand(agent_id(number), int(time.time()))
    issue = ["issue", "--agent", agent_id(61), "--expires", "+30d", "--feature", "fuel", "--license-id", "l-1"]
    done = desk.remote(*issue, "--out", tmp_path / "token")
    assert done.stderr.startswith("license l-1: valid from ") and (tmp_path / "token").read_text().strip()
    shown = json.loads(desk.remote("licenses", "show", "l-1", "--json").stdout)
    assert (shown["agent_id"], shown["features"], shown["state"]) == (agent_id(61), ["fuel"], "active")
    assert shown == json.loads(desk.local("licenses", "show", "l-1", "--json").stdout)
    assert "suspended" in desk.remote("licenses", "suspend", "l-1").stdout
    suspended = json.loads(desk.remote("licenses", "list", "--status", "suspended", "--json").stdout)
    assert [row["license_id"] for row in suspended] == ["l-1"]
    assert "active" in desk.remote("licenses", "reinstate", "l-1").stdout
    assert desk.remote("licenses", "renew", "l-1", "--duration", "5d").stdout
    assert "car wash" in desk.remote("licenses", "upgrade", "l-1", "--feature", "car wash").stdout
    moved = desk.remote("licenses", "transfer", "l-1", "--agent", agent_id(62))
    assert "license-server reissue --agent" in moved.stderr and "NOTICE" in moved.stderr
    desk.remote("licenses", "release", "l-1")
    desk.remote("licenses", "assign", "l-1", "--agent", agent_id(61))
    replaced = desk.remote("agents", "replace", agent_id(61), agent_id(62), "--yes").stderr
    assert f"retired {agent_id(61)}; {agent_id(62)} gets " in replaced
    assert "no agent 'ghost'" in desk.remote("agents", "replace", agent_id(62), "ghost", code=1).stderr
    desk.remote("revoke", "l-1", "--reason", "sold by mistake")
    assert "revoked" in desk.remote("licenses", "list", "--status", "revoked").stdout
    history = desk.remote("licenses", "history", "l-1").stdout
    assert "account=root" in history and "why=sold by mistake" in history
    assert "credential=" not in history and "via=" not in history
    assert desk.remote("issue", "--expires", "+1d", "--license-id", "stock").stdout == "stock\n"
    assert "role 'viewer'" in desk.remote("licenses", "suspend", "stock", who="vera", code=1).stderr


def test_keys_are_rotated_and_reverted(desk: Desk) -> None:
    before = json.loads(desk.remote("keys", "list", "--json").stdout)
    said = desk.remote("keys", "rotate", "tls", "--name", "127.0.0.1", "--name", "license.example", who="olga").stderr
    assert "the tls key is now" in said
    assert len(json.loads(desk.remote("keys", "list", "--json").stdout)) == len(before) + 1
    assert "is now" in desk.remote("keys", "revert", "tls").stderr
    assert "keys prepare" in desk.remote("keys", "use-next", "license", code=1).stderr


def test_accounts_and_certificates_are_changed(desk: Desk, tmp_path: Path) -> None:
    desk.remote("accounts", "make", "nils", "--kind", "person", "--role", "viewer")
    desk.remote("accounts", "certify", "nils", "--key", tmp_path / "k", "--out", tmp_path / "c")
    (row,) = json.loads(desk.remote("accounts", "certificates", "nils", "--json").stdout)
    desk.people["nils"] = Person("nils", row["fingerprint"], tmp_path / "c", tmp_path / "k")
    desk.remote("agents", "list", who="nils")
    desk.remote("accounts", "change", "nils", "--emergency", "allowed")
    begun = desk.remote("break-glass", "begin", "--why", "nobody can be reached", who="nils").stderr
    assert "'license-server break-glass end' ends it" in begun
    assert desk.remote("break-glass", "end", who="nils").stderr == f"emergency access {begun.split()[2]} has ended\n"
    assert "you have no emergency access" in desk.remote("break-glass", "end", who="nils", code=1).stderr
    assert "nobody signs in on this machine" in desk.local("break-glass", "end", code=1).stderr
    desk.remote("accounts", "revoke-certificate", row["fingerprint"])
    assert "does not count" in desk.remote("agents", "list", who="nils", code=1).stderr


def test_a_token_signs_a_program_in(desk: Desk, tmp_path: Path) -> None:
    settle(desk)
    file = tmp_path / "token"
    desk.remote("accounts", "token", "shop", "--scope", "agents:read", "--out", file)
    file.chmod(0o600)
    options = ["--server", desk.url, "--auth-root", desk.operators.root, "--auth-token", file]
    assert desk.till in desk.run("agents", "list", *options).stdout
    assert "has not the scope 'events:read'" in desk.run("events", *options, code=1).stderr
    newer = tmp_path / "newer"
    desk.run("accounts", "rotate-token", file.read_text().split("_")[1], "--overlap", "0", "--out", newer, *options)
    assert "this token does not count" in desk.run("agents", "list", *options, code=1).stderr
    newer.chmod(0o600)
    desk.run("accounts", "revoke-token", newer.read_text().split("_")[1], *options[:4], "--auth-token", newer)
    file.chmod(0o644)
    assert "license-server" not in desk.run("agents", "list", *options, code=1).stdout


def test_a_long_list_comes_in_pages(desk: Desk) -> None:
    with desk.operators.server.server_side() as side:
        make_agents(side.database, 100, 1300, int(time.time()))
    rows = json.loads(desk.remote("agents", "list", "--json", "--id-prefix", "pos-000").stdout)
    ids = [row["agent_id"] for row in rows]
    assert ids == sorted(set(ids)) and set(ids) >= {agent_id(number) for number in range(100, 1000)}
    few = json.loads(desk.remote("agents", "list", "--json", "--after", agent_id(150), "--limit", "600").stdout)
    assert [row["agent_id"] for row in few] == [agent_id(number) for number in range(151, 751)]


def test_a_refusal_says_each_thing_once_and_in_words(desk: Desk) -> None:
    """`next` of a problem is for programs: it repeats `detail`, or speaks of members that a person does not see."""
    for arguments, said in (
        (["products", "list", "--json"], ""),
        (["licenses", "show", "ghost"], "'license-server licenses list' lists them\n"),
        (["policies", "create", "y", "--product", "ghost", "--name", "Y"], "'license-server products list' lists them\n"),
        (["accounts", "make", "robot", "--kind", "program", "--role", "administrator"], "and tokens with scopes\n"),
        (["webhooks", "add", "http://shop.example/"], "url: must begin with https:// and have no spaces\n"),
        (["webhooks", "test", "wh-x"], "'license-server webhooks list' lists them\n"),
    ):
        done = desk.remote(*arguments, code=1 if said else 0)
        assert done.stderr.endswith(said) and "next" not in done.stderr, done
    assert "needs security_officer: ask an administrator\n" in desk.remote("agents", "revoke", "x", who="vera", code=1).stderr


@pytest.mark.parametrize("command", ["events", "licenses list", "reports expiry --until 2099-12-31", "reports devices"])
def test_each_list_of_several_pages_is_the_same_from_another_machine(desk: Desk, command: str) -> None:
    """The form of a list says what its place looks like here; over the network it is a cursor, which is longer."""
    many = ["licenses", "issue-many", "--count", "600", "--batch", "stock", "--expires", "2099-01-01"]
    assert json.loads(desk.remote(*many, "--json").stdout)["bad"] == []
    with desk.operators.server.server_side() as side, side.database.read() as session:
        there = session.get(Agent, agent_id(10_000)) is not None
    if not there:
        with desk.operators.server.server_side() as side:
            make_agents(side.database, 10_000, 10_600, int(time.time()))
    done = desk.remote(*command.split(), "--json")
    assert done.stdout == desk.local(*command.split(), "--json").stdout
    assert len(json.loads(done.stdout)) > 500


def test_all_agents_rotate_once_a_second_person_has_approved(desk: Desk) -> None:
    with desk.operators.server.server_side() as side:
        make_agents(side.database, 2000, 3200, int(time.time()))
    said = desk.remote("secrets", "rotate", "--all", who="olga", code=EXIT_SECOND_PERSON).stderr
    assert "another person must approve this until " in said
    asked = said.partition("approvals approve ")[2][:32]
    again = desk.remote("secrets", "rotate", "--all", "--approval", asked, who="olga", code=1).stderr
    assert "it must be approved" in again
    assert "nobody approves their own request" in desk.remote("approvals", "approve", asked, who="olga", code=1).stderr
    assert "may now do secrets.rotate_all once" in desk.remote("approvals", "approve", asked).stderr
    count = len(json.loads(desk.local("agents", "list", "--json").stdout))
    done = desk.remote("secrets", "rotate", "--all", "--approval", asked, who="olga").stderr
    assert done == f"{count} agents will rotate at their next contact\n"
    with desk.operators.server.server_side() as side, side.database.read() as session:
        assert session.query(Agent).where(Agent.urgent.is_(False)).count() == 0
    assert "it must be approved, and counts once" in desk.remote(
        "secrets", "rotate", "--all", "--approval", asked, who="olga", code=1
    ).stderr  # fmt: skip
    other = desk.remote("secrets", "rotate", "--all", who="olga", code=EXIT_SECOND_PERSON).stderr
    desk.remote("approvals", "refuse", other.partition("approvals approve ")[2][:32])


def test_a_rotation_that_was_interrupted_is_resumed(desk: Desk) -> None:
    """The first person's machine lost its power after the first batch."""
    with desk.operators.server.server_side() as side:
        make_agents(side.database, 4000, 5100, int(time.time()))
    said = desk.remote("secrets", "rotate", "--all", who="olga", code=EXIT_SECOND_PERSON).stderr
    asked = said.partition("approvals approve ")[2][:32]
    desk.remote("approvals", "approve", asked)
    with desk.operators.client(desk.people["olga"]) as client:
        begun = client.post("/secrets/rotate", json={}, headers={"approval-id": asked}).json()
    assert (begun["count"], begun["ended"]) == (1000, False)
    total = begun["agents"]
    assert f"{total} agents will rotate" in desk.remote("secrets", "rotate", "--all", "--resume", who="olga").stderr
    assert "was interrupted: run" in desk.remote("secrets", "rotate", "--all", "--resume", who="olga", code=1).stderr


# What goes wrong, in words


def test_a_server_that_is_not_there_or_is_another_one(desk: Desk, tmp_path: Path) -> None:
    options = desk.options()
    nobody = [*options[:1], "https://127.0.0.1:1", *options[2:]]
    assert "nobody listens there" in desk.run("agents", "list", *nobody, code=1).stderr
    name = [*options[:1], "https://no-such-host.invalid:8444", *options[2:]]
    assert "its name is not known" in desk.run("agents", "list", *name, code=1).stderr
    path = [*options[:1], f"{desk.url}/operator/v1", *options[2:]]
    assert "write https://HOST:PORT" in desk.run("agents", "list", *path, code=1).stderr
    port = [*options[:1], "https://127.0.0.1:99999", *options[2:]]
    assert "write https://HOST:PORT" in desk.run("agents", "list", *port, code=1).stderr
    other = tmp_path / "other.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another root")])
    start = x509.load_pem_x509_certificate(desk.operators.root.read_bytes())
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, start.not_valid_before_utc, start.not_valid_after_utc)
    made = made.add_extension(x509.BasicConstraints(True, None), critical=True)
    other.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    wrong = [*options[:3], str(other), *options[4:]]
    assert f"does not come from the root in {other}" in desk.run("agents", "list", *wrong, code=1).stderr
    assert "give the server's own root with --auth-root" in desk.run(
        "agents", "list", *options[:2], *options[4:], code=1
    ).stderr  # fmt: skip
    named = [*options[:1], desk.url.replace("127.0.0.1", "127.0.0.2"), *options[2:]]
    assert "127.0.0.2" in desk.run("agents", "list", *named, code=1).stderr
    other.write_text("nothing\n")
    assert "it must be a PEM file" in desk.run("agents", "list", *wrong, code=1).stderr


def test_a_certificate_that_has_ended_or_is_of_another_ca_is_said(desk: Desk, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = tmp_path / "key"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with desk.operators.server.server_side() as side, side.database.write() as session:
        past = int(time.time()) - 400 * 86_400
        issued = certificates.issue(session, side.keys, side.key_lifecycle, "vera", make_csr(key), 86_400, "local", past)
    ended = tmp_path / "ended.pem"
    ended.write_text(issued.pem)
    options = [*desk.options()[:4], "--auth-cert", ended, "--auth-key", private]
    said = desk.run("agents", "list", *options, code=1).stderr
    assert f"the client certificate {ended} ended at 20" in said and "accounts certify" in said
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    root = x509.load_pem_x509_certificate(desk.operators.root.read_bytes())
    own = x509.CertificateBuilder(subject, subject, key.public_key(), 1, root.not_valid_before_utc, root.not_valid_after_utc)
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(own.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    options = [*desk.options()[:4], "--auth-cert", foreign, "--auth-key", private]
    said = desk.run("agents", "list", *options, code=1).stderr
    assert "a client certificate that is not of its operators" in said or "refuses the client certificate" in said
    options = [*desk.options()[:4], "--auth-cert", desk.people["root"].certificate, "--auth-key", private]
    assert "cannot be loaded" in desk.run("agents", "list", *options, code=1).stderr


def test_no_failure_is_a_traceback_at_a_terminal_and_without_one(desk: Desk, tmp_path: Path) -> None:
    options = desk.options()
    command = [str(PROGRAM), "agents", "reinstate", "ghost", options[0], "https://127.0.0.1:1", *options[2:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=READY_S, stdin=subprocess.DEVNULL, check=False)
    assert (done.returncode, done.stdout) == (1, "") and "Traceback" not in done.stderr
    seen = at_terminal(command, {}, tmp_path)
    assert (seen.status, seen.asked) == (1, False) and "nobody listens there" in seen.output
    seen = at_terminal([str(PROGRAM), "clones", "resume", "ghost", *options], {}, tmp_path)
    assert (seen.status, seen.asked) == (1, False) and "no agent 'ghost' is enrolled" in seen.output


def test_a_port_that_speaks_no_tls_is_said(desk: Desk) -> None:
    options = desk.options()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=_answer, args=(listener,))
        answering.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert "does not speak TLS" in desk.run("agents", "list", options[0], url, *options[2:], code=1).stderr
        answering.join(READY_S)


def _answer(listener: socket.socket) -> None:
    connection, _address = listener.accept()
    with connection:
        connection.settimeout(READY_S)
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_secret_that_could_not_be_written_is_said_to_be_lost(desk: Desk) -> None:
    done = desk.remote("enrollment-token", "make", "--out", "/dev/full", code=1)
    assert "it is done, but its output could not be written" in done.stderr and "revoke this one" in done.stderr
