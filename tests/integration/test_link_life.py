"""What happens to the way between agent and server over the years: a proxy, a busy server, new certificates and TLS keys."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy import select

from server.registry.models.core import Certificate
from tests.support.chain import Chain, running_chain
from tests.support.hostilelink import Asked, Said, once
from tests.support.pki import Entity
from tests.support.tlspeer import Proxy, TlsPeer, answer


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        yield made


def _certificates(chain: Chain) -> list[tuple[str, str]]:
    """Fingerprint and state of the agent's certificates, the newest last."""
    with chain.server_side() as server_side, server_side.database.read() as session:
        rows = session.scalars(select(Certificate).where(Certificate.agent_id == chain.agent_id)).all()
        return [(row.fingerprint, row.state) for row in sorted(rows, key=lambda row: row.not_after)]


def _in_use(chain: Chain) -> bytes:
    """The certificate that the agent shows."""
    certificate = x509.load_pem_x509_certificate(chain.bad.keys[-1][0].encode())
    return certificate.serial_number.to_bytes(20, "big")


def test_through_a_proxy(chain: Chain) -> None:
    with Proxy() as proxy:
        chain.configure_link(f'[provisioning]\nallowed = true\nproxy = "http://127.0.0.1:{proxy.port}"\n')
        newest = chain.newest()
        assert chain.admin("rotate")["secret_version"] == newest + 1
        assert proxy.asked == [f"CONNECT 127.0.0.1:{chain.relay.port} HTTP/1.1".encode()]
        # The proxy carries TLS only.
        assert proxy.carried.startswith(b"\x16\x03") and b"rotate-secret" not in proxy.carried
    assert "proxy" in chain.asks("contact")
    chain.configure_link("")
    chain.settle()


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(chain: Chain, tmp_path: Path) -> None:
    with chain.server_side() as server_side:
        pem, key_pem = server_side.keys.tls_material()
    certificate, *above = x509.load_pem_x509_certificates(pem.encode())
    key = load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    real = chain.relay.target
    busy = answer(b'{"error": {"code": "unavailable", "text": "later"}}', "503 Busy", "Retry-After: 120\r\n")
    with TlsPeer(tmp_path, Entity(certificate, key, tuple(above)), busy) as peer:
        chain.relay.target = peer.port
        assert "503" in chain.asks("contact")
        status = chain.admin("status")["server"]
        assert 110 <= status["next_contact_s"] <= 120 and "later" in status["problem"]
        assert len(peer.records) == 1
        chain.relay.target = real
    # An administrator need not wait.
    chain.settle()
    assert chain.admin("status")["server"]["failures"] == 0


def test_a_new_certificate_is_used_once_it_has_worked(chain: Chain) -> None:
    chain.settle()
    before, known = _in_use(chain), _certificates(chain)
    chain.admin("certificate_renew")
    assert _in_use(chain) != before
    assert len(_certificates(chain)) == len(known) + 1
    assert [record["outcome"] for record in chain.records("tls.renewed")] == ["begun", "ok"]
    renewed = _in_use(chain)
    chain.kill_agent()
    chain.settle()
    assert _in_use(chain) == renewed, "the new key is in the sealed store"


def test_a_new_certificate_that_does_not_work_is_given_up_and_said_so(chain: Chain) -> None:
    chain.settle()
    before, known = _in_use(chain), {fingerprint for fingerprint, _ in _certificates(chain)}

    def issued_and_revoked(asked: Asked) -> Said:
        said = asked.forward()
        with chain.server_side() as server_side, server_side.database.write() as session:
            rows = session.scalars(select(Certificate).where(Certificate.agent_id == chain.agent_id)).all()
            (new,) = [row for row in rows if row.fingerprint not in known]
            new.state = "revoked"
        return said

    with chain.bad.behaving(once("renew-certificate", issued_and_revoked)):
        chain.admin("certificate_renew")
    shown = [x509.load_pem_x509_certificate(pem.encode()).serial_number.to_bytes(20, "big") for pem, _ in chain.bad.keys[-2:]]
    assert shown[0] != before and shown[1] == before, "the new one was tried, then the old one"
    assert [record["outcome"] for record in chain.records("tls.renewal_failed")] == ["begun", "ok"]
    assert "does not work" in chain.running.log()
    newest = chain.newest()
    assert chain.admin("rotate")["secret_version"] == newest + 1
    assert _in_use(chain) == before


def test_the_servers_tls_key_may_change_since_the_root_is_pinned(chain: Chain) -> None:
    chain.settle()
    before = chain.server.certificate()
    chain.server_cli("keys", "rotate", "tls")
    chain.server.signal(signal.SIGHUP)
    chain.server.wait_for("reloaded")
    assert chain.server.certificate() != before
    chain.relay.cut()
    newest = chain.newest()
    assert chain.admin("rotate")["secret_version"] == newest + 1
    assert chain.admin("status")["server"]["failures"] == 0
    chain.assert_agreed()
