"""Judged TLS, in memory: nothing is carried before the judge has spoken, and no other way leads out."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from ipc.linkmessages import FailCode
from link.pins import PeerRefused
from link.tls import JudgedObject, JudgingContext
from tests.support.pki import CLIENT, Entity, make

ROOT = make("root", authority=True)
LEAF = make("server", ROOT, hosts=["license.example"])
AGENT = make("agent", ROOT, usage=CLIENT)


class Pair:
    """A judged client and a server of OpenSSL, joined by hand."""

    def __init__(self, directory: Path, context: ssl.SSLContext, entity: Entity = LEAF) -> None:
        self.to_client, self.to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self.to_client, self.to_server, server_hostname="license.example")
        chain, key = directory / "chain", directory / "key"
        chain.write_text(entity.chain_pem)
        key.write_bytes(entity.key_pem)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(chain, key)
        self.server = server.wrap_bio(self.to_server, self.to_client, server_side=True)

    def shake(self) -> None:
        """The handshake up to its end at the client."""
        for side in (self.client, self.server):
            with pytest.raises(ssl.SSLWantReadError):
                side.do_handshake()
        self.client.do_handshake()


def test_the_judge_sees_the_chain_and_the_host(tmp_path: Path) -> None:
    seen: list[tuple[Sequence[bytes], str]] = []
    context = JudgingContext(lambda chain, host: seen.append((chain, host)))
    pair = Pair(tmp_path, context)
    pair.shake()
    pair.server.do_handshake()
    assert seen == [(LEAF.der_chain, "license.example")] and context.accepted == 1
    assert pair.client.version() == "TLSv1.3"
    pair.client.write(b"request")
    assert pair.server.read() == b"request"
    pair.server.write(b"answer")
    assert pair.client.read(100) == b"answer"
    pair.client.do_handshake()
    assert len(seen) == 1  # once for each connection


def test_a_refused_server_gets_not_even_the_end_of_the_handshake(tmp_path: Path) -> None:
    def refuse(_chain: Sequence[bytes], _host: str) -> None:
        raise PeerRefused(FailCode.PIN_MISMATCH, "another")

    context = JudgingContext(refuse)
    pair = Pair(tmp_path, context)
    for side in (pair.client, pair.server):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    assert pair.to_server.pending == 0
    with pytest.raises(PeerRefused):
        pair.client.do_handshake()
    for use in (lambda: pair.client.write(b"request"), lambda: pair.client.read(1)):
        with pytest.raises(ssl.SSLError, match="not been judged"):
            use()
    # Asked again, the judge answers the same.
    with pytest.raises(PeerRefused):
        pair.client.do_handshake()
    assert context.accepted == 0


def test_nothing_is_carried_before_a_handshake(tmp_path: Path) -> None:
    pair = Pair(tmp_path, JudgingContext(lambda _chain, _host: None))
    for use in (lambda: pair.client.write(b"request"), lambda: pair.client.read(1)):
        with pytest.raises(ssl.SSLError, match="not been judged"):
            use()
    assert pair.to_server.pending == 0


def test_there_is_no_way_around_the_judge() -> None:
    context = JudgingContext(lambda _chain, _host: None)
    with pytest.raises(NotImplementedError):
        context.wrap_socket(None)
    assert context.sslobject_class is JudgedObject
    assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
