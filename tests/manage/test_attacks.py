"""Attacks on the REST interface: who has no certificate, who alters what was signed, and who only wants it to stop."""

import contextlib
import json
import os
import re
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from manage.door import MAX_CONNECTIONS_EACH, MAX_HANDSHAKES
from manage.http import MAX_BODY_BYTES
from manage.talks import MAX_TALKS_EACH
from tests.server.web.test_stricthttp import REFUSED
from tests.support.adminpki import Ca
from tests.support.manage import CA, START, Client, Manage, agent_running, both, issued, managed
from tests.support.waiting import READY_S

pytestmark = [pytest.mark.system, pytest.mark.root]


@pytest.fixture(scope="module")
def manage() -> Iterator[Manage]:
    with both() as running:
        yield running


def raw(client: Client) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", client.manage.port), READY_S)
    return client.context.wrap_socket(connection, server_hostname="127.0.0.1")


def everything(connection: ssl.SSLSocket) -> bytes:
    """What comes until the other side ends the connection."""
    found = b""
    with contextlib.suppress(OSError):
        while data := connection.recv(65536):
            found += data
    return found


# The outer lock


def refused_by_tls(client: Client, *causes: str) -> None:
    """No answer comes, and the journal says why."""
    with pytest.raises(OSError):
        client.ask("GET", "/system/info")
    client.manage.told(*causes)


def test_without_a_certificate_of_the_admin_ca_nothing_is_answered(manage: Manage) -> None:
    stranger = Ca("Admin CA", start=START)  # the same name, another key
    refused_by_tls(Client(manage, None), "the client has shown no certificate")
    refused_by_tls(
        Client(manage, stranger.issue("keeper", start=START, days=7200)), "unable to get local issuer", "signature failure"
    )
    refused_by_tls(Client(manage, CA.issue("old", start=START, days=1)), "certificate has expired")
    refused_by_tls(Client(manage, CA.issue("early", start=START + 7000 * 86400, days=100)), "certificate is not yet valid")
    server_only = CA.issue("server", start=START, days=7200, client=False, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    refused_by_tls(Client(manage, server_only), "unsuitable certificate purpose", "unsupported certificate purpose")
    assert Client(manage, issued("viewer")).ask("GET", "/system/info").status == 200


def test_tls_1_2_is_refused(manage: Manage) -> None:
    refused_by_tls(Client(manage, issued("admin"), version=ssl.TLSVersion.TLSv1_2), "UNSUPPORTED_PROTOCOL")


def test_plain_http_is_refused(manage: Manage) -> None:
    with socket.create_connection(("127.0.0.1", manage.port), READY_S) as connection:
        connection.sendall(b"GET /system/info HTTP/1.1\r\nHost: h\r\n\r\n")
        with contextlib.suppress(OSError):
            assert b"HTTP" not in connection.recv(65536)


def test_a_revoked_certificate_gets_nothing(manage: Manage) -> None:
    lost, keeper = issued("admin"), Client(manage, issued("admin"))
    client = Client(manage, lost)
    session = client.session()
    given = client.challenge()
    assert client.read("/v1/status", session).status == 200
    assert keeper.act("admin_revoke", {"digests": [lost.digest]}).status == 200
    # The agent judges each act and each read; this program's own look at the list may be seconds old.
    assert client.act("reload", given=given).status in (401, 403)
    assert client.read("/v1/status", session).status in (401, 403)
    fresh = issued("admin")  # what this program has not seen before it asks about at once
    assert keeper.act("admin_revoke", {"digests": [fresh.digest]}).status == 200
    for method, path in (("GET", "/system/info"), ("GET", "/v1/health"), ("POST", "/v1/challenges")):
        assert Client(manage, fresh).ask(method, path).problem == "certificate-revoked"
    # Somebody else's connection does not carry it either.
    answer = keeper.act("reload", signer=fresh)
    assert answer.problem == "not-accepted" and "revoked" in answer.json["detail"]


# Challenges and acts


def test_a_challenge_serves_once_and_one_certificate(manage: Manage) -> None:
    client, other = Client(manage, issued("admin")), Client(manage, issued("admin"))
    given = client.challenge()
    order = {**client.signed(given, "ping", {}), "op": "ping"}
    assert other.ask("POST", "/v1/acts", order).problem == "unknown-challenge"  # and it is not used up by that
    assert client.ask("POST", "/v1/acts", order).status == 200
    assert client.ask("POST", "/v1/acts", order).problem == "unknown-challenge"
    assert client.act("ping", given={**client.challenge(), "challenge": given["challenge"]}).problem == "not-accepted"
    assert client.act("ping", given={**given, "id": "0" * 32}).problem == "unknown-challenge"


def test_a_signature_for_another_agent_or_boot_does_not_count(manage: Manage) -> None:
    client = Client(manage, issued("admin"))
    for changes in ({"agent_id": "pos-010"}, {"boot_id": "00" * 16}):
        assert client.act("ping", given={**client.challenge(), **changes}).problem == "not-accepted"


class Captured:
    """The interface as an attacker would have it: between its process and the agent, everything can be altered."""

    def __init__(self, path: Path, agent: Path) -> None:
        self.agent = agent
        self.altered: list[tuple[bytes, bytes]] = []
        self.seen: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen(16)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(READY_S)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                front, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._pass_on, args=(front,)))
                self._threads[-1].start()

    def _pass_on(self, front: socket.socket) -> None:
        with front, socket.socket(socket.AF_UNIX) as back, contextlib.suppress(OSError):
            back.connect(str(self.agent))
            while True:
                for source in select.select([front, back], [], [])[0]:
                    if not (data := source.recv(65536)):
                        return
                    if source is back:
                        front.sendall(data)
                        continue
                    self.seen.append(data)
                    for old, new in self.altered:
                        data = data.replace(old, new)
                    back.sendall(data)


def test_a_captured_interface_alters_and_repeats_nothing_that_was_signed() -> None:
    """Threat model: it can delay and drop. What reaches the agent otherwise than it was signed is refused there."""
    with managed() as manage, agent_running(manage), contextlib.ExitStack() as ends:
        path = manage.directory / "captured.sock"
        captured = Captured(path, manage.bench.run_dir / "admin.sock")
        ends.callback(captured.close)
        manage.configure(socket=str(path))
        bench = manage.bench
        for version in (1, 2):
            bench.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(bench.root / f"delivery{version}"))
        with manage.running():
            client = Client(manage, issued("admin"))
            delivery = (bench.root / "delivery1").read_text().strip()
            assert client.act("secret_install", {"delivery": delivery}).status == 200
            assert client.act("degraded_switch", {"on": False}).status in (200, 403)
            for old, new, op, params in (
                (b"\xa7version\x02", b"\xa7version\x01", "secret_invalidate", {"version": 2}),
                (b"\xa6reload", b"\xa6rotate", "reload", {}),
                (b"\xa2on\xc2", b"\xa2on\xc3", "degraded_switch", {"on": False}),
            ):
                captured.altered = [(old, new)]
                before = len(bench.records())
                answer = client.act(op, params)
                assert answer.problem == "not-accepted", (op, answer)
                captured.altered = []
                done = [each for each in bench.records()[before:] if each["event"] in ("secret.invalidate", "admin.request")]
                assert all(each.get("op") in ("challenge", "certificate_check") for each in done), done
            # What it has seen once, it sends again: on its own connection, with a challenge of its own, and as it was.
            assert client.act("reload").status == 200
            (frame,) = [each for each in captured.seen if b"\xa6signed" in each and b"\xa6reload" in each][-1:]
            with socket.socket(socket.AF_UNIX) as own:
                own.connect(str(captured.agent))
                own.settimeout(READY_S)
                for sent in (_frame({"v": 1, "id": 1, "op": "challenge"}), frame):
                    own.sendall(sent)
                    reply = own.recv(65536)
                assert b"no challenge" not in reply and b"does not cover" in reply
            secrets = client.read("/v1/secrets", client.session()).json["secrets"]
            assert [each["state"] for each in secrets] == ["ACTIVE"]


def _frame(message: dict[str, Any]) -> bytes:
    import msgpack

    body: bytes = msgpack.packb(message)
    return len(body).to_bytes(4, "big") + body


# HTTP


@pytest.mark.parametrize("name", REFUSED)
def test_what_another_server_could_read_otherwise_ends_the_connection(manage: Manage, name: str) -> None:
    with raw(Client(manage, issued("viewer"))) as connection:
        connection.sendall(REFUSED[name])
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 400 ") and len(re.findall(rb"HTTP/1\.1 \d", answer)) == 1, answer
    assert b"connection: close" in answer.lower() and json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 400


def test_a_folded_header_is_refused(manage: Manage) -> None:
    with raw(Client(manage, issued("viewer"))) as connection:
        connection.sendall(b"GET /system/info HTTP/1.1\r\nHost: h\r\nX-A: b\r\n folded\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(manage: Manage) -> None:
    client = Client(manage, issued("admin"))
    with raw(client) as connection:
        connection.sendall(b"POST /v1/acts HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 413 ")
    with raw(client) as connection:
        connection.sendall(b"POST /v1/acts HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _time in range(2 * MAX_BODY_BYTES // 4096):
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert b"HTTP/1.1 413 " in everything(connection)


def test_odd_bodies_are_refused(manage: Manage) -> None:
    client = Client(manage, issued("admin"))
    order = {**client.signed(client.challenge(), "ping", {}), "op": "ping"}
    for body in (b"", b"{", b"[]", b"null", b"[" * 50_000, b'{"op": "\xff"}', json.dumps({**order, "more": 1}).encode()):
        assert client.ask("POST", "/v1/acts", body).problem == "bad-request", body[:40]
    for changes in ({"signature": "!"}, {"certificates": []}, {"certificates": ["AA"] * 3}, {"params": []}, {"challenge": "x"}):
        assert client.ask("POST", "/v1/acts", {**order, **changes}).problem == "bad-request", changes
    assert client.ask("POST", "/v1/acts", order, content_type="text/plain").problem == "not-json"


# Those who want it to stop


def test_connections_that_only_hold_their_place_keep_nobody_out(manage: Manage) -> None:
    """Slow-loris before the handshake by anybody, after it by one certificate."""
    slow, client = Client(manage, issued("viewer")), Client(manage, issued("admin"))
    with contextlib.ExitStack() as held:
        for _time in range(3 * MAX_HANDSHAKES):
            held.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", manage.port), READY_S)))
        assert client.ask("GET", "/system/info").status == 200
        for _time in range(2 * MAX_CONNECTIONS_EACH):
            connection = held.enter_context(contextlib.closing(raw(slow)))
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /system/info HTTP/1.1\r\nHost:")
        assert client.ask("GET", "/system/info").status == 200
        # What has begun ends by itself, with an answer that says why.
        assert b" 408 " in everything(connection)


def test_a_flood_of_one_certificate_is_limited_and_others_are_unaffected(manage: Manage) -> None:
    loud, client = Client(manage, issued("viewer")), Client(manage, issued("admin"))
    limited = 0
    with contextlib.closing(loud.connect()) as connection:
        for _time in range(300):
            connection.request("GET", "/openapi.json")
            reply = connection.getresponse()
            reply.read()
            if reply.status == 429:
                limited += 1
                assert int(reply.headers["retry-after"]) >= 1
                if limited == 20:
                    break
    assert limited
    assert client.act("ping").status == 200


def test_who_asks_for_challenges_only_takes_their_own_room(manage: Manage) -> None:
    greedy, client = Client(manage, issued("viewer")), Client(manage, issued("admin"))
    first = greedy.challenge()
    for _time in range(2 * MAX_TALKS_EACH):
        last = greedy.challenge()
    assert greedy.act("ping", given=first).problem == "unknown-challenge"  # it has made room
    assert greedy.act("ping", given=last).status == 200
    assert client.act("ping").status == 200
    sessions = [greedy.session() for _time in range(MAX_TALKS_EACH)]
    refused = greedy.ask("POST", "/v1/challenges")
    assert refused.problem == "too-many-conversations" and int(refused.headers["retry-after"]) > 0
    assert client.act("ping").status == 200
    for session in sessions:
        assert greedy.ask("DELETE", f"/v1/sessions/{session}").status == 204
    assert greedy.act("ping").status == 200


def test_refused_acts_of_one_certificate_are_stopped_here(manage: Manage) -> None:
    """The agent answers its user late after failures, and everybody here is one user to it."""
    guesser, client = Client(manage, issued("viewer")), Client(manage, issued("admin"))
    wrong = issued("admin")
    kinds = []
    given = guesser.challenge()
    for _time in range(8):
        order = {**guesser.signed(given, "status", {}, wrong), "op": "reload"}
        answer = guesser.ask("POST", "/v1/acts", order)
        kinds.append(answer.problem)
        given = answer.json.get("challenge", given)
    assert kinds[:5] == ["not-accepted"] * 5 and kinds[-1] == "rate-limited"
    assert client.act("ping").status == 200


# What is missing


def test_without_the_agent_the_cause_is_told_and_what_to_do() -> None:
    with managed() as manage, manage.running():
        client = Client(manage, issued("admin"))
        for method, path in (("GET", "/system/info"), ("POST", "/v1/challenges")):
            answer = client.ask(method, path)
            assert answer.problem == "agent-unavailable"
            assert "admin.sock" in answer.json["detail"] and "systemctl start license-agent" in answer.json["next"]
        assert client.ask("GET", "/openapi.json").status == 200
        with agent_running(manage):
            assert client.ask("GET", "/system/info").status == 200
            session = client.session()
            assert client.read("/v1/status", session).status == 200
        assert client.read("/v1/status", session).status in (503, 504)  # the session has ended with the agent
        with agent_running(manage):
            assert client.ask("GET", "/system/info").status == 200
            assert client.read("/v1/status", session).problem == "no-session"
            assert client.act("ping").status == 200


def test_a_user_whom_the_agent_does_not_let_in_is_told_how_to_allow_it() -> None:
    with managed() as manage:
        manage.bench.write_config()  # without the interface's user
        with agent_running(manage), manage.running():
            answer = Client(manage, issued("admin")).ask("GET", "/system/info")
            assert answer.problem == "agent-unavailable"
            assert "allowed_uids" in answer.json["next"] and "license-agent-manage" in answer.json["next"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "localhost", "::ffff:127.0.0.1", "", "127.0.0.1:80"])
def test_another_address_than_loopback_is_refused(address: str) -> None:
    with managed() as manage:
        manage.configure(listen=f'address = "{address}"\n')
        for command in ("check-config", "serve"):
            done = manage.command(command)
            assert done.returncode == 78 and "loopback" in done.stderr, done.stderr


def test_files_that_others_could_have_written_or_read_are_refused(tmp_path: Path) -> None:
    with managed() as manage:
        assert manage.command("check-config").returncode == 0
        for path, mode, owner in (
            (manage.key, 0o644, manage.uid),
            (manage.key, 0o660, 0),
            (manage.certificate, 0o666, 0),
            (manage.admin_ca, 0o644, manage.uid),
            (manage.admin_ca, 0o664, 0),
            (manage.config, 0o646, 0),
        ):
            before = os.stat(path)
            os.chown(path, owner, -1)
            path.chmod(mode)
            done = manage.command("check-config")
            assert done.returncode == 78 and str(path) in done.stderr, (path, mode, done.stderr)
            os.chown(path, before.st_uid, -1)
            path.chmod(before.st_mode & 0o777)
        for content in (b"", b"nonsense", issued("admin").key_pem):
            manage.certificate.write_bytes(content)
            assert manage.command("check-config").returncode == 78


def test_the_port_of_somebody_else_is_refused_in_clear_words(manage: Manage) -> None:
    done = manage.command("serve")
    assert done.returncode == 69 and f"port {manage.port}" in done.stderr and "[listen]" in done.stderr
