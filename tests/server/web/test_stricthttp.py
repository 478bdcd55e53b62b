"""Malformed and ambiguous HTTP at the TLS listener, on raw sockets: each is refused and ends its connection; none smuggles."""

import contextlib
import json
import ssl
from collections.abc import Iterator

import pytest

from common.stricthttp import problem_of_head
from server.web.listeners import tcp_socket
from server.web.tlscontext import server_context
from tests.server.web.test_transport import CA, Running, connect, exchange, post
from tests.support.clientpki import leaf

pytestmark = pytest.mark.system

H = b"Host: h\r\nContent-Type: application/json\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
REFUSED: dict[str, bytes] = {
    # Two lengths (RFC 9112, 6.3)
    "length and chunks": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and length": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 0\r\nContent-Length: 2\r\n\r\n{}",
    "the same length twice": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: -2\r\n\r\n{}",
    "a hexadecimal length": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with a separator": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 1_0\r\n\r\n{}",
    "no length": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length:\r\n\r\n",
    # Transfer codings
    "two codings": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "another coding": b"POST /x HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"POST /x HTTP/1.1\r\n" + H + b"Transfer-Encoding: identity\r\n\r\n",
    "a coding with a parameter": b"POST /x HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked;x\r\n\r\n0\r\n\r\n",
    "a coding in quotes": b"POST /x HTTP/1.1\r\n" + H + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a coding after a vertical tab": b"POST /x HTTP/1.1\r\n" + H + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /x HTTP/1.0\r\n" + H + CHUNKED + b"\r\n0\r\n\r\n",
    # Chunks
    "a chunk without its end": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + b"\r\n2\r\n{}XX0\r\n\r\n",
    "a chunk's size that is none": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + b"\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + b"\r\n-2\r\n{}\r\n0\r\n\r\n",
    "trailer fields": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + b"\r\n2\r\n{}\r\n0\r\nHost: other\r\n\r\n",
    # Lines and fields (RFC 9112, 2.2 and 5)
    "obs-fold": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\nX: a\r\n b\r\n\r\n{}",
    "a folded length": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length:\r\n 2\r\n\r\n{}",
    "a folded coding": b"POST /x HTTP/1.1\r\n" + H + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
    "a line that begins with a blank": b"POST /x HTTP/1.1\r\n Host: h\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "a blank before the colon": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length : 2\r\n\r\n{}",
    "a tab before the colon": b"POST /x HTTP/1.1\r\n" + H + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "a field without a colon": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length\r\n\r\n",
    "a field without a name": b"POST /x HTTP/1.1\r\n" + H + b": x\r\n\r\n",
    "bare line feeds": b"POST /x HTTP/1.1\nHost: h\nContent-Type: application/json\nContent-Length: 2\n\n{}",
    "one bare line feed": b"POST /x HTTP/1.1\r\n" + H + b"X: a\nContent-Length: 2\r\n\r\n{}",
    "a bare carriage return": b"POST /x HTTP/1.1\r\n" + H + b"X: a\rContent-Length: 2\r\n\r\n{}",
    "NUL in a value": b"POST /x HTTP/1.1\r\n" + H + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "a control character in a value": b"POST /x HTTP/1.1\r\n" + H + b"X: a\x01b\r\nContent-Length: 2\r\n\r\n{}",
    "NUL in a name": b"POST /x HTTP/1.1\r\n" + H + b"X\x00: a\r\nContent-Length: 2\r\n\r\n{}",
    "two hosts": b"POST /x HTTP/1.1\r\n" + H + b"Host: other\r\nContent-Length: 2\r\n\r\n{}",
    "no host": b"POST /x HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    # Request line
    "an empty line first": b"\r\nPOST /x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "two blanks": b"POST  /x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "a tab": b"POST\t/x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "a blank at the end": b"POST /x HTTP/1.1 \r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"POST /x HTTP/1.2\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "another version": b"POST /x HTTP/9.9\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "another protocol": b"POST /x ICAP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "a whole URL": b"POST http://other/x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "CONNECT": b"CONNECT other:443 HTTP/1.1\r\n" + H + b"\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n",
    "a method that is none": b"PO ST /x HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
    "bytes": bytes(range(128, 256)) + b"\r\n\r\n",
    "TLS in TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
TAKEN: dict[str, bytes] = {
    "a length": post(b"{}"),
    "chunks": b"POST /x HTTP/1.1\r\n" + H + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks in capitals": b"POST /x HTTP/1.1\r\n" + H + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "blanks around a value": b"POST /x HTTP/1.1\r\n" + H + b"Content-Length: \t 2 \t\r\n\r\n{}",
    "a tab and bytes in a value": b"POST /x HTTP/1.1\r\n" + H + b"X: a\tb\xe9\r\nContent-Length: 2\r\n\r\n{}",
    "an empty value": b"POST /x HTTP/1.1\r\n" + H + b"X:\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/1.0": b"POST /x HTTP/1.0\r\n" + H + b"Content-Length: 2\r\n\r\n{}",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    identity = leaf(CA, "server", server=True)
    made = Running(tcp_socket("127.0.0.1", 0, "bind"), server_context(identity.pem + CA.pem, identity.key_pem, CA.pem))
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def no_rate(running: Running) -> None:
    running.server.config.loaded_app._addresses.levels.clear()


def all_of(sock: ssl.SSLSocket) -> bytes:
    """What comes until the server closes."""
    data = b""
    with contextlib.suppress(OSError):
        while piece := sock.recv(65_536):
            data += piece
    return data


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
def test_what_has_more_than_one_reading_is_refused(running: Running, request_: bytes, bytewise: bool) -> None:
    before = len(running.seen)
    with connect(running.port) as sock:
        with contextlib.suppress(OSError):  # the server may refuse before all is sent
            for piece in [request_[n : n + 1] for n in range(len(request_))] if bytewise else [request_]:
                sock.sendall(piece)
        answer = all_of(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"connection: close" in head.lower(), answer
    assert json.loads(body)["error"]["code"] == "bad_request", "one answer, in our form, and nothing after it"
    assert all(status >= 400 for status, _code in running.seen[before:]), "it reached the application"


@pytest.mark.parametrize("request_", TAKEN.values(), ids=TAKEN)
def test_what_has_one_reading_is_taken(running: Running, request_: bytes) -> None:
    with connect(running.port) as sock:
        status, body = exchange(sock, request_)
        assert (status, json.loads(body)["size"]) == (200, 2)
        if b"HTTP/1.0" not in request_:
            assert exchange(sock, post(b"{}"))[0] == 200


def test_a_head_that_has_not_arrived_yet_is_no_problem() -> None:
    whole = TAKEN["a length"]
    for end in range(len(whole) + 1):
        assert problem_of_head(whole[:end]) is None, whole[:end]
