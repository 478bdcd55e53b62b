"""Certificates outside their dates, and the server's own clock, with the server as a process over real mutual TLS."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete, update

from contracts.exchange import (
    Cause,
    RenewCertificate,
    RenewReply,
    RevocationList,
    RotateSecret,
    SecretStatus,
    StatusReply,
)
from server.registry.models.core import Certificate
from tests.support.apiclient import PREFIX, Device
from tests.support.apiserver import COMMAND, ApiServer
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

STATUS: dict[str, Any] = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
ROTATE: dict[str, Any] = {**STATUS, "cause": Cause.DUE}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with contextlib.ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            postgres: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(postgres.database())
        made = stack.enter_context(ApiServer.made(tmp_path_factory.mktemp("server") / "s", url))
        made.start()
        yield made


def new_device(server: ApiServer, directory: Path) -> Device:
    device = Device(server.base, server.root, directory)
    device.provision(server.claim(), server.pins)
    return device


@pytest.fixture(scope="module")
def provisioned(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return new_device(server, tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def stranger(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return new_device(server, tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def device(provisioned: Device) -> Iterator[Device]:
    kept = provisioned.certificates
    yield provisioned
    provisioned.certificates = kept


def erred(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code


def csr_of(device: Device) -> str:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(device.tls, hashes.SHA256())
    return csr.public_bytes(Encoding.PEM).decode()


def issued(server: ApiServer, device: Device, at: int) -> None:
    """Gives the device a certificate that the server issued at another time."""
    with server.server_side() as side:
        device.certificates = tuple(side.certificates.renew(device.agent_id, csr_of(device), at))


@pytest.mark.parametrize("days", [-31, -400, 8, 400], ids=lambda days: f"issued {days} days from now")
def test_a_certificate_outside_its_dates_opens_its_renewal_and_nothing_else(
    server: ApiServer, device: Device, stranger: Device, days: int
) -> None:
    issued(server, device, int(time.time()) + days * 86_400)
    with device.client(patient=True) as client:
        response = client.post(f"{PREFIX}/challenge", json={})
        if days < 0:
            assert response.status_code == 200
        else:
            erred(response, 401, "unknown_agent")
            assert "is not valid before" in response.json()["error"]["text"]
        challenge = response.json()["challenge"]
        for kind, fields in ((SecretStatus, STATUS), (RotateSecret, ROTATE), (RevocationList, {})):
            response = device.post(client, device.request(kind, challenge, **fields))
            erred(response, 401, "unknown_agent")
            assert "is not valid before" in response.json()["error"]["text"]
        thief = Device(server.base, server.root, device.directory)
        thief.agent_id, thief.key_set, thief.identity, thief.hw_id = device.agent_id, device.key_set, stranger.identity, "thief"
        thief.certificates, thief.tls = device.certificates, device.tls
        forged = thief.request(RenewCertificate, challenge, csr=csr_of(device))
        erred(thief.post(client, forged), 403, "bad_signature")
        asked = device.request(RenewCertificate, challenge, csr=csr_of(device))
        device.certificates = device.read(device.post(client, asked), RenewReply, asked.request_id).certificates
    with device.client(patient=True) as client:
        asked = device.request(SecretStatus, device.challenge(client), **STATUS)
        device.read(device.post(client, asked), StatusReply, asked.request_id)


@pytest.mark.parametrize("days", [-431, 402])
def test_a_certificate_too_far_outside_its_dates_opens_nothing(server: ApiServer, device: Device, days: int) -> None:
    issued(server, device, int(time.time()) + days * 86_400)
    with device.client(patient=True) as client:
        response = client.post(f"{PREFIX}/challenge", json={})
        erred(response, 401, "unknown_agent")
        assert "challenge" not in response.json()


def test_a_revoked_certificate_is_not_renewed_after_its_end(server: ApiServer, device: Device) -> None:
    issued(server, device, int(time.time()) - 31 * 86_400)
    with server.server_side() as side, side.database.write() as session:
        session.execute(update(Certificate).where(Certificate.fingerprint == device.fingerprint).values(state="revoked"))
    with device.client(patient=True) as client:
        erred(client.post(f"{PREFIX}/challenge", json={}), 401, "unknown_agent")


def test_a_certificate_that_the_registry_does_not_know_is_not_renewed_after_its_end(server: ApiServer, device: Device) -> None:
    issued(server, device, int(time.time()) - 31 * 86_400)
    with server.server_side() as side, side.database.write() as session:
        session.execute(delete(Certificate).where(Certificate.fingerprint == device.fingerprint))
    with device.client(patient=True) as client:
        erred(client.post(f"{PREFIX}/challenge", json={}), 401, "unknown_agent")


def test_a_step_of_the_servers_clock_stops_what_is_signed(tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("0")
    shim = Path(__file__).parents[1] / "support" / "wrongclock"
    shifted = {"PYTHONPATH": str(shim), "WRONG_CLOCK": str(offset)}
    with ApiServer.made(tmp_path / "s") as server:
        server.start("--ops", "127.0.0.1:0", environment=shifted)
        device = new_device(server, tmp_path)
        with device.client() as client:
            challenge = device.challenge(client)
            offset.write_text(str(400 * 86_400))
            response = client.post(f"{PREFIX}/challenge", json={})
            erred(response, 503, "unavailable")
            assert "has jumped by 400 days" in response.json()["error"]["text"] and response.headers["retry-after"] == "300"
            asked = device.request(SecretStatus, challenge, **STATUS)
            erred(device.post(client, asked), 503, "unavailable")
            assert client.get(f"{PREFIX}/key-set").status_code == 200
            ready = httpx.get(f"{server.ops}/readyz", trust_env=False)
            assert ready.status_code == 503 and "license-server clock accept" in ready.json()["checks"]["clock"]
            metrics = httpx.get(f"{server.ops}/metrics", trust_env=False).text
            assert "license_server_clock_trusted 0.0" in metrics
            offset.write_text("0")

            def signs() -> bool:
                return client.post(f"{PREFIX}/challenge", json={}).status_code == 200

            wait_until(signs, "the server does not sign again though its clock is right", pause_s=0.5)
        server.stop()
        # The step happens while nothing runs: the last heartbeat is of this boot and tells it.
        offset.write_text(str(8 * 86_400))
        server.start(environment=shifted)
        device.base = server.base
        with device.client(patient=True) as client:
            erred(client.post(f"{PREFIX}/challenge", json={}), 503, "unavailable")
        command = [COMMAND, "clock"]
        environment = os.environ | shifted | {"LICENSE_SERVER_DIR": str(server.directory)}
        shown = subprocess.run([*command, "show"], env=environment, capture_output=True, text=True, check=False)
        assert shown.returncode == 1 and "NOT TRUSTED" in shown.stdout and "has jumped by 8 days" in shown.stdout
        refused = subprocess.run(
            [COMMAND, "rotate", "--agent", device.agent_id], env=environment, capture_output=True, text=True, check=False
        )
        assert refused.returncode == 1 and "has jumped by 8 days" in refused.stderr
        subprocess.run([*command, "accept", "--yes"], env=environment, check=True)
        with device.client(patient=True) as client:
            wait_until(
                lambda: client.post(f"{PREFIX}/challenge", json={}).status_code == 200,
                "the operator's word did not count",
                pause_s=0.5,
            )
