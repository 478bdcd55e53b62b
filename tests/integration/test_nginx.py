"""The license server behind nginx, with the site that we ship: the same main path, and headers that clients make up."""

import contextlib
import grp
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from contracts.exchange import (
    Cause,
    ConfirmReply,
    ConfirmRotation,
    RefusalCode,
    Refused,
    RenewCertificate,
    RenewReply,
    RotateReply,
    RotateSecret,
    SecretStatus,
)
from tests.support.apiclient import PREFIX, Device
from tests.support.apiserver import ApiServer, open_delivery
from tests.support.clientpki import authority, leaf
from tests.support.swtpm import free_port_pair
from tests.support.waiting import READY_S, answers, wait_until

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
SITE = Path(__file__).parents[2] / "packaging" / "server" / "nginx.conf"
STATUS: dict[str, Any] = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}
MAIN = """
daemon off;
{user}
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    include {dir}/site.conf;
}}
"""


@contextlib.contextmanager
def founded_long_ago(directory: Path) -> Iterator[None]:
    """Commands within the block find the clock 60 days back, until the offset in the file is another."""
    offset = directory / "offset"
    offset.write_text(str(-60 * 86_400))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(SITE.parents[2] / "tests" / "support" / "wrongclock"))
        patched.setenv("WRONG_CLOCK", str(offset))
        yield


@contextlib.contextmanager
def nginx(made: ApiServer, directory: Path, user: str) -> Iterator[None]:
    """nginx in front of a server that serves on `directory / "api.sock"`, with the site that we ship."""
    tls, port = directory / "tls", free_port_pair()
    made.run("tls-files", "--out", str(tls))
    site = SITE.read_text()
    for old, new in (
        ("/etc/license-server/tls", str(tls)),
        ("/run/license-server/api.sock", str(directory / "api.sock")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
    ):
        assert old in site
        site = site.replace(old, new)
    (directory / "site.conf").write_text(site)
    (directory / "nginx.conf").write_text(MAIN.format(dir=directory, user=f"user {user};" if os.geteuid() == 0 else ""))
    process = subprocess.Popen([NGINX, "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")])
    try:
        wait_until(lambda: answers(port), "nginx does not listen", lives=lambda: process.poll() is None)
        made.base = f"https://127.0.0.1:{port}"
        yield
    finally:
        process.terminate()
        process.wait(READY_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    directory = tmp_path_factory.mktemp("nginx")
    with founded_long_ago(directory), ApiServer.made(directory / "server", unix=directory / "api.sock") as made:
        (directory / "offset").write_text("0")
        made.start()
        # The directories of tests are for one user; as root, nginx would drop to another one.
        with nginx(made, directory, pwd.getpwuid(os.geteuid()).pw_name):
            yield made


@pytest.fixture(scope="module")
def device(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Device:
    device = Device(server.base, server.root, tmp_path_factory.mktemp("device"))
    device.provision(server.claim(), server.pins)
    return device


def test_the_main_path_goes_through_nginx(device: Device) -> None:
    with device.client() as client:
        asked = device.request(RotateSecret, device.challenge(client), **STATUS, cause=Cause.DUE)
        delivery = device.read(device.post(client, asked), RotateReply, asked.request_id).delivery
        version, check = open_delivery(device, delivery)
        confirm = device.request(ConfirmRotation, device.challenge(client), secret_version=version, key_check=check)
        assert device.read(device.post(client, confirm), ConfirmReply, confirm.request_id).secret_version == version
        status = device.request(SecretStatus, device.challenge(client), **STATUS)
        response = client.get(f"{PREFIX}/secret-status", headers={"Agent-Request": device.sign(status)})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", ["Client-Certificate", "client-certificate", "CLIENT-CERTIFICATE", "Client_Certificate"])
def test_a_certificate_that_a_client_writes_into_the_header_is_nobodys(device: Device, name: str) -> None:
    with device.client(with_certificate=False) as client:
        forged = [(name, quote(device.certificates[0])), (name, quote(device.certificates[0]))]
        for headers in (forged[:1], forged):
            response = client.post(f"{PREFIX}/challenge", json={}, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "unknown_agent")


def test_the_header_does_not_change_who_one_is(server: ApiServer, device: Device, tmp_path: Path) -> None:
    other = Device(server.base, server.root, tmp_path)
    other.provision(server.claim(), server.pins)
    with other.client(headers={"Client-Certificate": quote(device.certificates[0])}) as client:
        asked = other.request(SecretStatus, other.challenge(client), **STATUS)
        assert other.post(client, asked).status_code == 200
        as_device = device.request(SecretStatus, device.challenge(client), **STATUS)
        assert device.post(client, as_device).status_code == 403


def test_a_certificate_of_another_ca_is_refused_by_nginx(device: Device, tmp_path: Path) -> None:
    context = device.context(with_certificate=False)
    context.load_cert_chain(*leaf(authority("Issuing CA"), "pos-1").files(tmp_path, "other"))
    with httpx.Client(base_url=device.base, verify=context, trust_env=False) as client:
        erred(client.post(f"{PREFIX}/challenge", json={}), 401, "unknown_agent")


@pytest.mark.parametrize("days", [-31, 8], ids=["expired", "not yet valid"])
def test_a_certificate_outside_its_dates_is_renewed_through_nginx(
    server: ApiServer, device: Device, tmp_path: Path, days: int
) -> None:
    other = Device(server.base, server.root, tmp_path)
    other.provision(server.claim(), server.pins)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(other.tls, hashes.SHA256())
    pem = csr.public_bytes(Encoding.PEM).decode()
    with server.server_side() as side:
        other.certificates = tuple(side.certificates.renew(other.agent_id, pem, int(time.time()) + days * 86_400))
    with other.client(patient=True) as client:
        response = client.post(f"{PREFIX}/challenge", json={})
        assert response.status_code == (200 if days < 0 else 401), response.text
        challenge = response.json()["challenge"]
        refused = other.post(client, other.request(SecretStatus, challenge, **STATUS))
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unknown_agent")
        assert "is not valid before" in refused.json()["error"]["text"]
        asked = other.request(RenewCertificate, challenge, csr=pem)
        other.certificates = other.read(other.post(client, asked), RenewReply, asked.request_id).certificates
    with other.client(patient=True) as client:
        asked = other.request(SecretStatus, other.challenge(client), **STATUS)
        assert other.post(client, asked).status_code == 200


def test_an_expired_certificate_of_another_ca_is_nobodys(device: Device, tmp_path: Path) -> None:
    context = device.context(with_certificate=False)
    stranger = leaf(authority("Issuing CA"), device.agent_id, begins_h=-3, ends_h=-1)
    context.load_cert_chain(*stranger.files(tmp_path, "other"))
    with httpx.Client(base_url=device.base, verify=context, trust_env=False) as client:
        response = client.post(f"{PREFIX}/challenge", json={})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unknown_agent")
        assert "challenge" not in response.json()


def test_nothing_below_tls_1_3(device: Device) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=device.root)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    url = httpx.URL(device.base)
    with socket.create_connection((url.host, url.port or 0), timeout=READY_S) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname=url.host)


def test_revoking_counts_on_a_connection_that_is_open(server: ApiServer, tmp_path: Path) -> None:
    device = Device(server.base, server.root, tmp_path)
    device.provision(server.claim(), server.pins)
    with device.client() as client:
        challenge = device.challenge(client)
        assert device.post(client, device.request(SecretStatus, challenge, **STATUS)).status_code == 200
        server.revoke(device.agent_id)
        asked = device.request(SecretStatus, challenge, **STATUS)
        with pytest.raises(Refused) as caught:
            device.read(device.post(client, asked), RotateReply, asked.request_id)
        assert caught.value.refusal.code is RefusalCode.AGENT_REVOKED


def test_a_request_that_is_too_large_ends_at_nginx(device: Device) -> None:
    with device.client() as client:
        response = client.post(f"{PREFIX}/challenge", content=b" " * 70_000, headers={"Content-Type": "application/json"})
        erred(response, 413, "bad_request")


def erred(response: httpx.Response, status: int, code: str) -> None:
    """It is an error in the API's form, whoever answers."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    content = response.json()
    assert content.keys() == {"error"} and content["error"].keys() == {"code", "text"} and content["error"]["code"] == code
    assert response.headers["cache-control"] == "no-store" and "nginx/" not in response.headers.get("server", "")


def test_what_nginx_answers_by_itself_is_in_our_form(device: Device) -> None:
    with device.client() as client:
        erred(client.get("/other"), 404, "bad_request")
        erred(client.get(f"{PREFIX}/nothing"), 404, "bad_request")
        erred(client.get(f"{PREFIX}/key-set", headers={"X": "y" * 20_000}), 400, "bad_request")
        erred(client.get(f"{PREFIX}/{'x' * 20_000}"), 400, "bad_request")
    url = httpx.URL(device.base)
    with httpx.Client(base_url=f"http://{url.host}:{url.port}", trust_env=False) as client:
        erred(client.get(f"{PREFIX}/key-set"), 400, "bad_request")


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /api/v1/challenge HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/challenge HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /api/v1/key-set HTTP/1.1\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /api/v1/key-set HTTP/9.9\r\nHost: h\r\n\r\n",
    ],
)
def test_a_malformed_request_is_answered_in_our_form(device: Device, request_: bytes) -> None:
    url, data = httpx.URL(device.base), b""
    with (
        socket.create_connection((url.host, url.port or 0), timeout=READY_S) as raw,
        device.context().wrap_socket(raw, server_hostname=url.host) as sock,
    ):
        sock.sendall(request_)
        with contextlib.suppress(OSError):
            while piece := sock.recv(65_536):
                data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "bad_request"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts nginx as its own user")
def test_nginx_own_user_is_served_once_it_may_open_the_socket() -> None:
    """The steps of the guide, and what an operator sees who has left one out. The socket's group stands for being in it."""
    with tempfile.TemporaryDirectory(prefix="la-nginx-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        with ApiServer.made(directory / "server", unix=directory / "api.sock") as server:
            server.proxy_user = "www-data"
            server.start()
            with nginx(server, directory, "www-data"):
                device = Device(server.base, server.root, directory)
                with device.client(with_certificate=False) as client:
                    response = client.get(f"{PREFIX}/key-set")
                    erred(response, 503, "unavailable")
                    assert response.headers["retry-after"] == "30"
                    assert "(13: Permission denied)" in (directory / "error.log").read_text()
                    os.chown(directory / "api.sock", -1, grp.getgrnam("www-data").gr_gid)
                    assert client.get(f"{PREFIX}/key-set").status_code == 200
                device.provision(server.claim(), server.pins)
                with device.client() as client:
                    device.challenge(client)
                    server.stop()
                    erred(client.post(f"{PREFIX}/challenge", json={}), 503, "unavailable")
                server.proxy_user = "daemon"
                server.start()
                os.chown(directory / "api.sock", -1, grp.getgrnam("www-data").gr_gid)
                with device.client() as client:
                    erred(client.post(f"{PREFIX}/challenge", json={}), 503, "unavailable")
                assert "www-data (33)" in server.wait_for("a connection was refused")


def test_the_site_overwrites_exactly_the_headers_that_are_believed() -> None:
    from server.web.callers import ADDRESS_HEADER, CERTIFICATE_HEADER

    written = dict(re.findall(r"proxy_set_header (Client-\S+) (\S+);", SITE.read_text()))
    assert {name.lower().encode() for name in written} == {ADDRESS_HEADER, CERTIFICATE_HEADER}
    assert written["Client-Certificate"] == "$ssl_client_escaped_cert"
