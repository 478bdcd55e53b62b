"""The license server as a process, over real mutual TLS, on SQLite and on PostgreSQL: who gets in, and what is answered."""

import contextlib
import json
import re
import select
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import sqlalchemy
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.exchange import (
    Cause,
    ConfirmReply,
    ConfirmRotation,
    RefusalCode,
    Refused,
    RevocationList,
    RevocationReply,
    RotateReply,
    RotateSecret,
    SecretStatus,
    StatusReply,
)
from server.base.limits import ADDRESS_RATE, AGENT_RATE, MAX_BODY_BYTES
from server.registry.models.core import ServerKey
from tests.support.apiclient import PREFIX, Device
from tests.support.apiserver import ApiServer, open_delivery
from tests.support.clientpki import authority, leaf
from tests.support.postgres import Postgres
from tests.support.waiting import READY_S, wait_until

STATUS: dict[str, Any] = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
ROOT = Path(__file__).resolve().parents[2]
ROTATE: dict[str, Any] = {**STATUS, "cause": Cause.DUE}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with contextlib.ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            postgres: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(postgres.database())
        made = stack.enter_context(ApiServer.made(tmp_path_factory.mktemp("server") / "s", url))
        made.start("--ops", "127.0.0.1:0", "--openapi")
        yield made


@pytest.fixture(scope="module")
def device(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return new_device(server, tmp_path_factory.mktemp("device"))


def new_device(server: ApiServer, directory: Path) -> Device:
    device = Device(server.base, server.root, directory)
    device.provision(server.claim(), server.pins)
    return device


def refused(device: Device, response: httpx.Response, request: Any, code: RefusalCode) -> None:
    with pytest.raises(Refused) as caught:
        device.read(response, RotateReply, request.request_id)
    assert caught.value.refusal.code is code


def erred(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code


# The main path


def test_a_device_is_provisioned_and_its_secret_rotated(server: ApiServer, tmp_path: Path) -> None:
    device = Device(server.base, server.root, tmp_path)
    claim = server.claim()
    first = device.provision(claim, server.pins)
    again = device.provision(claim, server.pins)
    assert (first.serial, first.agent_id, first.attestation) == (again.serial, again.agent_id, "software")
    with device.client() as client:
        asked = device.request(RotateSecret, device.challenge(client), **ROTATE)
        delivery = device.read(device.post(client, asked), RotateReply, asked.request_id).delivery
        version, check = open_delivery(device, delivery)
        confirm = device.request(ConfirmRotation, device.challenge(client), secret_version=version, key_check=check)
        assert device.read(device.post(client, confirm), ConfirmReply, confirm.request_id).secret_version == version
        fields = STATUS | {"current_secret_version": version, "key_check": check, "highest_version": version}
        asked = device.request(SecretStatus, device.challenge(client), **fields)
        status = device.read(device.post(client, asked), StatusReply, asked.request_id)
        assert (status.secret_version, status.rotate_now) == (version, False)


def test_a_status_and_the_revocations_can_be_had_by_get(device: Device) -> None:
    with device.client() as client:
        for kind, reply, fields in ((SecretStatus, StatusReply, STATUS), (RevocationList, RevocationReply, {})):
            asked = device.request(kind, device.challenge(client), **fields)
            path = f"{PREFIX}/{'secret-status' if kind is SecretStatus else 'revocation-list'}"
            response = client.get(path, headers={"Agent-Request": device.sign(asked)})
            assert response.status_code == 200, response.text
            device.read(response, reply, asked.request_id)


def test_the_same_request_gets_the_same_bytes(device: Device) -> None:
    with device.client() as client, device.client() as other:
        asked = device.request(RotateSecret, device.challenge(client), **ROTATE)
        body = {"request": device.sign(asked)}
        first = client.post(f"{PREFIX}/rotate-secret", json=body)
        assert first.status_code == 200
        assert other.post(f"{PREFIX}/rotate-secret", json=body).content == first.content


def test_the_key_set_need_not_be_sent_twice(device: Device) -> None:
    with device.client(with_certificate=False) as client:
        first = client.get(f"{PREFIX}/key-set")
        assert first.headers["content-type"] == "application/jose"
        second = client.get(f"{PREFIX}/key-set", headers={"If-None-Match": first.headers["etag"]})
        assert (second.status_code, second.content) == (304, b"")


# Who gets in


def test_without_a_certificate_there_is_no_challenge(device: Device) -> None:
    with device.client(with_certificate=False) as client:
        erred(client.post(f"{PREFIX}/challenge", json={}), 401, "unknown_agent")
        erred(client.post(f"{PREFIX}/secret-status", json={"request": "a.b.c"}), 401, "unknown_agent")
        erred(client.get(f"{PREFIX}/secret-status", headers={"Agent-Request": "a.b.c"}), 401, "unknown_agent")


@pytest.mark.parametrize("header", ["Client-Certificate", "client-certificate", "X-SSL-Client-Cert", "Client-Cert"])
def test_a_header_makes_nobody_an_agent(device: Device, header: str) -> None:
    from urllib.parse import quote

    with device.client(with_certificate=False) as client:
        response = client.post(f"{PREFIX}/challenge", json={}, headers={header: quote(device.certificates[0])})
        erred(response, 401, "unknown_agent")


def test_a_certificate_of_another_ca_ends_the_handshake(device: Device, tmp_path: Path) -> None:
    context = device.context(with_certificate=False)
    context.load_cert_chain(*leaf(authority("Issuing CA"), "pos-1").files(tmp_path, "other"))
    with pytest.raises(httpx.TransportError), httpx.Client(base_url=device.base, verify=context, trust_env=False) as client:
        client.post(f"{PREFIX}/challenge", json={})


def test_tls_1_2_is_refused(device: Device) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=device.root)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = httpx.URL(device.base).host, httpx.URL(device.base).port
    with socket.create_connection((host, port or 0), timeout=READY_S) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname=host)


def test_revoking_counts_on_a_connection_that_is_open(server: ApiServer, tmp_path: Path) -> None:
    device = new_device(server, tmp_path)
    with device.client() as client:
        challenge = device.challenge(client)
        asked = device.request(SecretStatus, challenge, **STATUS)
        assert device.post(client, asked).status_code == 200
        server.revoke(device.agent_id)
        asked = device.request(SecretStatus, challenge, **STATUS)
        response = device.post(client, asked)
        assert response.status_code == 403
        refused(device, response, asked, RefusalCode.AGENT_REVOKED)
    with pytest.raises(Refused, match="revoked"):
        device.provision(server.claim(), server.pins)


def test_provisioning_anew_ends_the_certificates_before(server: ApiServer, tmp_path: Path) -> None:
    device, claim = Device(server.base, server.root, tmp_path), server.claim()
    device.provision(claim, server.pins)
    with device.client() as before:
        challenge = device.challenge(before)
        device.provision(claim, server.pins)
        asked = device.request(SecretStatus, challenge, **STATUS)
        erred(device.post(before, asked), 401, "unknown_agent")


# What is not answered


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"request": 7}', b'{"request": "a.b.c", "x": 1}', b"\xff", b"[" * 20_000])
def test_rubbish_is_told_to_be_rubbish(device: Device, body: bytes) -> None:
    with device.client() as client:
        response = client.post(f"{PREFIX}/rotate-secret", content=body, headers={"Content-Type": "application/json"})
        erred(response, 400, "bad_request")


def test_another_content_type_is_refused(device: Device) -> None:
    with device.client() as client:
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
            erred(client.post(f"{PREFIX}/challenge", content=b"{}", headers=headers), 415, "bad_request")


def test_paths_and_methods_that_are_none_are_told_in_our_form(device: Device) -> None:
    with device.client() as client:
        erred(client.get(f"{PREFIX}/nothing"), 404, "bad_request")
        erred(client.get("/docs"), 404, "bad_request")
        erred(client.get(f"{PREFIX}/rotate-secret"), 405, "bad_request")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_is_too_large_is_not_read(device: Device, chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 4096

    content: Any = pieces() if chunked else b" " * (MAX_BODY_BYTES + 1)
    with device.client() as client:
        try:
            response = client.post(f"{PREFIX}/challenge", content=content, headers={"Content-Type": "application/json"})
        except httpx.TransportError:  # the server may have closed before all was sent
            return
        erred(response, 413, "bad_request")


def test_another_key_signs_nothing(device: Device) -> None:
    with device.client() as client:
        asked = device.request(SecretStatus, device.challenge(client), **STATUS)
        text = device.sign(asked, ec.generate_private_key(ec.SECP256R1()))
        erred(client.post(f"{PREFIX}/secret-status", json={"request": text}), 403, "bad_signature")


def test_a_challenge_of_another_certificate_is_stale(server: ApiServer, device: Device, tmp_path: Path) -> None:
    other = new_device(server, tmp_path)
    with device.client() as client, other.client() as others:
        asked = device.request(SecretStatus, other.challenge(others), **STATUS)
        response = device.post(client, asked)
        assert response.status_code == 409
        refused(device, response, asked, RefusalCode.STALE_CHALLENGE)


def test_a_request_id_is_for_one_request(device: Device) -> None:
    with device.client() as client:
        challenge = device.challenge(client)
        asked = device.request(SecretStatus, challenge, **STATUS)
        assert device.post(client, asked).status_code == 200
        other = device.request(SecretStatus, challenge, **STATUS | {"serial": 2}, request_id=asked.request_id)
        response = device.post(client, other)
        assert response.status_code == 409
        refused(device, response, other, RefusalCode.REPLAYED)


def test_a_future_version_is_refused_by_name(device: Device) -> None:
    with device.client() as client:
        asked = device.request(SecretStatus, device.challenge(client), **STATUS)
        future = msgspec.to_builtins(asked) | {"v": 2, "more": {}}
        response = client.post(f"{PREFIX}/secret-status", json={"request": device.sign(future)})
        assert response.status_code == 409
        refused(device, response, asked, RefusalCode.UNSUPPORTED_VERSION)


def test_a_claim_that_is_none_makes_no_agent(device: Device, server: ApiServer, tmp_path: Path) -> None:
    other = Device(server.base, server.root, tmp_path)
    with pytest.raises(Refused, match="claim"):
        other.provision("guess-0123456789abcdef", server.pins)


# Operators


def test_health_readiness_and_metrics(server: ApiServer, device: Device) -> None:
    with httpx.Client(base_url=server.ops, trust_env=False) as client:
        assert client.get("/healthz").json() == {"status": "live"}
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True), ready.text
        text = client.get("/metrics").text
    assert 'license_server_requests_total{endpoint="provision/complete",outcome="ok"}' in text
    assert 'license_server_agents{status="active"}' in text
    assert 'license_server_days_remaining{name="tls"}' in text
    assert "license_server_request_seconds_bucket" in text and "license_server_provisioned_total" in text
    assert "python_gc" not in text


def test_the_openapi_document_is_served_when_asked_for(server: ApiServer, device: Device) -> None:
    with device.client() as client:
        document = client.get(f"{PREFIX}/openapi.json").json()
    assert document["openapi"].startswith("3.1") and f"{PREFIX}/rotate-secret" in document["paths"]


def test_the_log_has_no_token_and_no_claim(server: ApiServer) -> None:
    log = server.log()
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line["event"] == "serving" for line in lines)
    assert "eyJ" not in log and not any(claim in log for claim in server.claims)
    assert {"refused"} <= {line["event"] for line in lines}


# Starting, stopping, limits: servers of their own, on SQLite


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer.made(tmp_path / "server") as made:
        yield made


def test_a_new_tls_certificate_is_taken_over_without_a_restart(own: ApiServer, tmp_path: Path) -> None:
    own.start()
    device = new_device(own, tmp_path)
    with device.client() as client:
        before = own.certificate()
        challenge = device.challenge(client)
        own.run("keys", "rotate", "tls")
        assert own.certificate() == before
        own.signal(signal.SIGHUP)
        own.wait_for("reloaded")
        assert own.certificate() != before
        assert device.post(client, device.request(SecretStatus, challenge, **STATUS)).status_code == 200
    with device.client() as client:
        device.challenge(client)


def test_a_reload_drops_the_cas_that_have_been_ended(own: ApiServer, tmp_path: Path) -> None:
    own.start()
    device = new_device(own, tmp_path)
    first, second = (str(own.directory.parent / name) for name in (f"{own.directory.name}.root", "second.root"))
    with own.server_side() as server_side:
        old = {row.kind: row.kid for row in server_side.key_lifecycle.listed()}
    own.run("keys", "rotate", "root", "--root-key", first, "--new-root-key", second)
    own.run("keys", "rotate", "issuing-ca", "--root-key", second)
    with device.client() as client:
        device.challenge(client)
    own.run("keys", "end", "--id", old["root"], "--root-key", second)
    # What a later rotation does when the old CA's own end has come.
    with own.server_side() as server_side, server_side.database.write() as session:
        row = session.get(ServerKey, old["issuing-ca"])
        assert row is not None and row.state == "retired"
        row.state = "ended"
    begins = len(own.log())
    own.signal(signal.SIGHUP)
    own.wait_for("was reloaded", begins)
    with device.client() as client, pytest.raises(httpx.TransportError):
        device.challenge(client)


def test_a_certificate_that_cannot_be_loaded_fails_the_units_reload_and_stops_nothing(own: ApiServer, tmp_path: Path) -> None:
    unit = (ROOT / "systemd" / "license-server.service").read_text()
    checked = re.findall(r"^ExecReload=/usr/bin/license-server (.*)$", unit, re.MULTILINE)
    assert checked == ["serve --dir /var/lib/license-server $SERVE_OPTIONS --check"]
    options = ("serve", "--bind", "127.0.0.1:0", "--check")
    own.start()
    device = new_device(own, tmp_path)
    assert own.run(*options) == ""
    with own.server_side() as server_side, server_side.database.write() as session:
        for row in session.scalars(sqlalchemy.select(ServerKey).where(ServerKey.kind == "tls")):
            row.certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    told = own.fails(*options)
    assert "cannot be loaded" in told and "keys rotate tls" in told
    begins = len(own.log())
    own.signal(signal.SIGHUP)
    assert "serve --check" in own.wait_for("could not be reloaded", begins)
    with device.client() as client:
        device.challenge(client)


def test_readiness_tells_the_truth_when_the_database_is_gone(own: ApiServer, tmp_path: Path) -> None:
    own.start("--ops", "127.0.0.1:0")
    device = new_device(own, tmp_path)
    with httpx.Client(base_url=own.ops, trust_env=False, timeout=READY_S) as ops, device.client() as client:
        assert ops.get("/readyz").status_code == 200
        own.break_database()
        ready = ops.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"] == "ok") == (503, False)
        assert ops.get("/healthz").status_code == 200
        response = client.post(f"{PREFIX}/challenge", json={})
        assert response.status_code in (200, 503)
        asked = device.request(SecretStatus, "A" * 75, **STATUS)
        response = device.post(client, asked)
        erred(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) > 0


def test_too_many_requests_are_held_back(own: ApiServer, tmp_path: Path) -> None:
    own.start()
    device = new_device(own, tmp_path)
    with device.client() as client:
        responses = [client.post(f"{PREFIX}/challenge", json={}) for _ in range(AGENT_RATE.burst * 2)]
        late = [response for response in responses if response.status_code == 429]
        assert late and {response.status_code for response in responses} == {200, 429}
        assert int(late[0].headers["retry-after"]) >= 1
        erred(late[0], 429, "rate_limited")
    with device.client(with_certificate=False) as client:
        responses = [client.get(f"{PREFIX}/key-set") for _ in range(ADDRESS_RATE.burst * 2)]
        assert {response.status_code for response in responses} == {200, 429}


def test_a_stop_finishes_what_is_under_way(own: ApiServer, tmp_path: Path) -> None:
    own.start()
    device = new_device(own, tmp_path)
    with device.client() as client:
        device.challenge(client)
        assert own.stop() == 0
    assert '"event":"stopped"' in own.log()


def test_what_hinders_the_start_is_told_in_words(own: ApiServer, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "already in use" in own.fails("serve", "--bind", f"127.0.0.1:{port}")
    assert "loopback" in own.fails("serve", "--bind", "127.0.0.1:0", "--ops", "0.0.0.0:0")
    assert "--bind" in own.fails("serve")
    assert "--unix" in own.fails("serve", "--bind", "127.0.0.1:0", "--unix", str(tmp_path / "s"))
    assert "HOST:PORT" in own.fails("serve", "--bind", "nonsense")
    assert "no *.pem" in own.fails("serve", "--bind", "127.0.0.1:0", "--ek-roots", str(tmp_path))


def test_the_policy_refuses_software_devices(own: ApiServer, tmp_path: Path) -> None:
    own.start("--accept", "attested,tpm-unattested")
    with pytest.raises(Refused, match="does not accept"):
        new_device(own, tmp_path)


def test_readiness_is_told_to_systemd(own: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(READY_S)
        own.start(environment={"NOTIFY_SOCKET": str(path)})
        assert notify.recv(100) == b"READY=1"
        own.stop()
        assert notify.recv(100) == b"STOPPING=1"


def test_a_slow_client_holds_nobody_up(own: ApiServer, tmp_path: Path) -> None:
    own.start()
    device = new_device(own, tmp_path)
    host, port = httpx.URL(own.base).host, httpx.URL(own.base).port or 0
    with contextlib.ExitStack() as stack:

        def answered_while_a_slow_one_is_served() -> bool:
            for _ in range(20):
                raw = stack.enter_context(socket.create_connection((host, port), timeout=READY_S))
                slow = stack.enter_context(device.context().wrap_socket(raw, server_hostname=host))
                slow.sendall(b"POST /api/v1/challenge HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")
            half_open = stack.enter_context(socket.create_connection((host, port), timeout=READY_S))
            half_open.sendall(b"\x16\x03\x01")
            with device.client() as client:
                device.challenge(client)
            # The server has not cut it off yet; on a slow machine it may have, and that shows nothing.
            return not select.select([slow], [], [], 0)[0]

        wait_until(answered_while_a_slow_one_is_served, "answers come only when the slow ones have gone")
