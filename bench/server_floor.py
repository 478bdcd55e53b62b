"""The floor of the license server: the least that any server of its kind does for a check-in.

uvicorn with httptools and starlette, mutual TLS 1.3, and in a thread (a commit waits for the disk) one ES256 signature checked,
one made, one prepared upsert that stores the reply, and a durable commit: the same driver, database and socket as the license
server's. It checks nothing else.
"""

import argparse
import asyncio
import base64
import sqlite3
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psycopg
import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from sqlalchemy.engine import make_url
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from server.web.listeners import WORKERS, host_and_port
from server.web.tlscontext import server_context
from server.wiring import open_server

ECDSA = ec.ECDSA(hashes.SHA256())
Store = Callable[[str, str, str], None]
"""Stores a reply: agent, request, reply."""


def _store(url: str, directory: Path) -> Store:
    """A table of its own in the server's database; each thread has its connection."""
    parsed = make_url(url)
    threads = threading.local()
    if parsed.get_backend_name() == "sqlite":
        turn = threading.Lock()

        def lite() -> sqlite3.Connection:
            made = sqlite3.connect(directory / "floor.db", isolation_level=None)
            for pragma in ("journal_mode = WAL", "synchronous = FULL"):
                made.execute(f"PRAGMA {pragma}")
            return made

        lite().execute("CREATE TABLE reply (agent TEXT PRIMARY KEY, request TEXT, reply TEXT)")

        def in_sqlite(agent: str, request: str, reply: str) -> None:
            if not hasattr(threads, "lite"):
                threads.lite = lite()
            with turn:
                threads.lite.execute("BEGIN IMMEDIATE")
                threads.lite.execute("INSERT OR REPLACE INTO reply VALUES (?, ?, ?)", (agent, request, reply))
                threads.lite.execute("COMMIT")

        return in_sqlite
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as first:
        first.execute("CREATE TABLE floor_reply (agent text PRIMARY KEY, request text, reply text)")
    upsert = (
        "INSERT INTO floor_reply VALUES (%s, %s, %s) "
        "ON CONFLICT (agent) DO UPDATE SET request = excluded.request, reply = excluded.reply"
    )

    def in_postgresql(agent: str, request: str, reply: str) -> None:
        if not hasattr(threads, "large"):
            threads.large = psycopg.connect(plain, prepare_threshold=0)
        threads.large.execute(upsert, (agent, request, reply))
        threads.large.commit()

    return in_postgresql


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def app(store: Store, keys: dict[str, ec.EllipticCurvePublicKey]) -> Starlette:
    """The application.

    Args:
        store: stores a reply.
        keys: the agents' public keys, by agent.
    """
    own = ec.generate_private_key(ec.SECP256R1())
    decode, encode = msgspec.json.decode, msgspec.json.encode

    def answer(body: bytes) -> JSONResponse:
        text = decode(body)["request"]
        signed, _, signature = text.rpartition(".")
        header, _, payload = signed.partition(".")
        agent = decode(_bytes(header))["kid"]
        raw = _bytes(signature)
        halves = (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        keys[agent].verify(encode_dss_signature(*halves), signed.encode(), ECDSA)
        asked = decode(_bytes(payload))
        content = {"agent_id": agent, "request_id": asked["request_id"], "secret_version": 0, "rotate_now": False}
        said = _b64(encode({"alg": "ES256", "typ": "reply", "kid": "floor"})) + "." + _b64(encode(content))
        r, s = decode_dss_signature(own.sign(said.encode(), ECDSA))
        reply = f"{said}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        store(agent, asked["request_id"], reply)
        return JSONResponse({"reply": reply})

    threads = ThreadPoolExecutor(WORKERS)

    async def check_in(request: Request) -> JSONResponse:
        return await asyncio.get_running_loop().run_in_executor(threads, answer, await request.body())

    return Starlette(routes=[Route("/api/v1/secret-status", check_in, methods=["POST"])])


def _context(directory: Path) -> tuple[ssl.SSLContext, str]:
    with_keys = open_server(directory)
    try:
        return server_context(*with_keys.keys.tls_material(), with_keys.keys.client_ca_pem()), with_keys.place.url
    finally:
        with_keys.close()


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--bind", required=True)
    parser.add_argument("--keys", type=Path, required=True, help="lines: agent, its public key (uncompressed point, hex)")
    options = parser.parse_args()
    context, url = _context(options.dir)
    keys = {}
    for line in options.keys.read_text().splitlines():
        agent, point = line.split()
        keys[agent] = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(point))
    host, port = host_and_port(options.bind)
    config = uvicorn.Config(
        app(_store(url, options.dir), keys), host, port, http="httptools", loop="uvloop", access_log=False, lifespan="off",
        log_config=None, server_header=False,
    )  # fmt: skip
    config.load()
    config.ssl = context
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
