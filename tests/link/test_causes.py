"""Why a server was not reached: real failures of a real transport on loopback, and a table of the system's own words."""

import asyncio
import errno
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from ipc.linkmessages import FailCode
from link.causes import network_text, tls_text
from link.upstreams import address, explain


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accepts one connection, in a thread that ends with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(100)
                answer(accepted)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def failure(url: str, timeout: float = 10.0) -> tuple[FailCode, str]:
    async def fetch() -> None:
        async with httpx.AsyncHTTPTransport() as transport:
            request = httpx.Request("GET", url, extensions={"timeout": httpx.Timeout(timeout).as_dict()})
            await transport.handle_async_request(request)

    with pytest.raises(Exception) as caught:
        asyncio.run(fetch())
    found = explain(caught.value, address(httpx.URL(url)), proxied=False)
    return found.code, found.text


@pytest.mark.system
def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, text = failure(f"http://127.0.0.1:{port}/")
    assert (code, text) == (
        FailCode.UNREACHABLE,
        f"127.0.0.1:{port}: connection refused: does the server listen on that port?",
    )
    # Both addresses of a name are tried; the cause is in a group then.
    code, text = failure(f"http://localhost:{port}/")
    assert code is FailCode.UNREACHABLE and text.startswith(f"localhost:{port}: connection refused")


@pytest.mark.system
def test_the_server_closes_resets_or_speaks_something_else() -> None:
    with server(lambda _: None) as port:
        assert failure(f"http://127.0.0.1:{port}/") == (
            FailCode.BAD_RESPONSE,
            f"127.0.0.1:{port} closed the connection before it answered",
        )
    with server(lambda peer: peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")) as port:
        code, text = failure(f"http://127.0.0.1:{port}/")
        assert "closed the connection before it answered" in text and str(port) in text
    with server(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        code, text = failure(f"https://127.0.0.1:{port}/")
        assert code is FailCode.TLS and text == (
            f"TLS with 127.0.0.1:{port} failed: it does not speak TLS on that port (WRONG_VERSION_NUMBER)"
        )


@pytest.mark.system
def test_the_server_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, text = failure(f"http://127.0.0.1:{port}/", 0.2)
    assert code is FailCode.TIMEOUT and text.startswith(f"127.0.0.1:{port} accepted the connection and sent no data for ")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EHOSTUNREACH, "x"), "no route to the host"),
        (OSError(errno.ENETUNREACH, "x"), "does this machine have a network?"),
        (PermissionError(errno.EPERM, "x"), "is the address in IPAddressAllow= of license-agent-link.service?"),
        (TimeoutError(errno.ETIMEDOUT, "x"), "is the host up, and is the address in IPAddressAllow="),
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name is not found"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "the name cannot be looked up now"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (ExceptionGroup("g", [OSError("x"), OSError(errno.ECONNREFUSED, "x")]), "connection refused"),
        (httpx.ReadError(""), "it closed the connection before it answered"),
    ],
)
def test_the_words_of_the_system(error: Exception, expected: str) -> None:
    outer = httpx.ConnectError("All connection attempts failed")
    outer.__context__ = error
    assert expected in network_text(outer)
    assert "All connection attempts failed" not in network_text(outer)


def test_time_and_proxy() -> None:
    error = explain(httpx.ConnectTimeout(""), "server:8443", proxied=False)
    assert error.code is FailCode.TIMEOUT and error.text.startswith("server:8443: no answer to connection attempts within 10 s")
    refused = httpx.ConnectError("")
    refused.__context__ = ConnectionRefusedError(errno.ECONNREFUSED, "x")
    error = explain(refused, "server:8443", "proxy:3128", proxied=True)
    assert error.code is FailCode.PROXY and error.text.startswith("the proxy proxy:3128 cannot be used: connection refused")


def test_a_handshake_that_was_broken_off() -> None:
    assert tls_text(ssl.SSLError()) == "the handshake was broken off"
