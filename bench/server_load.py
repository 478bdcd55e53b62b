"""The license server under check-ins of many agents: mutual TLS 1.3, every request signed and fresh, every reply kept.

A check-in is one `secret-status` with a challenge that the agent has already. `server_floor` is the floor. What counts is the
processor time of all processes of the server; PostgreSQL's own is reported beside it. Agents stay within their rate limit.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.exchange import REQUEST_TYPE, SecretStatus
from contracts.jose import jwk_from_point
from server.agents.activation import ProvenDevice
from server.base.limits import AGENT_RATE
from server.exchange.challenges import new_challenge
from server.wiring import Server, open_server
from stand.programs import READY_S, free_ports

from .load import percentile

CONNECT_AGAIN = 5
"""Requests of each agent that come over a new connection each."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Load:
    """What was measured of one server. Times in seconds, memory in bytes.

    Attributes:
        rate: check-ins a second, over kept connections.
        cpu: processor time of a check-in over a kept connection.
        cpu_connecting: processor time of a check-in with a connection of its own.
        database: PostgreSQL's processor time of a check-in over a kept connection; 0 for SQLite.
        p95: of the times of check-ins over kept connections, with all agents asking as fast as they can.
        p99: the same.
        connection: memory of an open connection.
    """

    rate: float
    cpu: float
    cpu_connecting: float
    database: float
    p95: float
    p99: float
    connection: float


@dataclass
class Agent:
    """One simulated agent: its TLS, and requests that are signed already."""

    name: str
    key: bytes
    context: ssl.SSLContext
    requests: list[bytes]


def make_agents(server_side: Server, count: int, requests: int, directory: Path) -> list[Agent]:
    """Agents of a server, activated in its database without the network."""
    assert requests <= AGENT_RATE.burst
    root = server_side.keys.client_ca_pem()
    now, agents = int(time.time()), []
    for number in range(count):
        identity, agreement, tls = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(tls, hashes.SHA256())
        hw_id = os.urandom(32).hex()
        pem = csr.public_bytes(Encoding.PEM).decode()
        keys = _jwk(identity), _jwk(agreement), _jwk(identity)
        device = ProvenDevice(hw_id, "software", "software", *keys, pem, None)
        with server_side.database.write() as session:
            token = server_side.enrollment_tokens.create(session, None, False, 3600, now)
            token_id = server_side.enrollment_tokens.use(session, token, hw_id, now)
            made = server_side.activation.activate(session, token_id, device, now)
            server_side.secrets.rotate_by_hand(session, made.agent_id, now)
            held = server_side.secrets.listed(session, made.agent_id)[-1]
        files = directory / f"{number}.pem", directory / f"{number}.key"
        files[0].write_text("".join(made.certificates))
        files[1].write_bytes(tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=root)
        context.load_cert_chain(*files)
        own = x509.load_pem_x509_certificate(made.certificates[0].encode())
        challenge = new_challenge(server_side.keys.challenge_key(), own.fingerprint(hashes.SHA256()).hex(), now, os.urandom(16))
        point = identity.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        posts = [_post(made.agent_id, challenge, identity, held.key_check) for _ in range(requests)]
        agents.append(Agent(made.agent_id, point, context, posts))
    return agents


def _jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    return jwk_from_point(key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def _post(agent_id: str, challenge: str, key: ec.EllipticCurvePrivateKey, check: str) -> bytes:
    content = SecretStatus(
        agent_id=agent_id,
        request_id=os.urandom(16).hex(),
        challenge=challenge,
        timestamp=0,
        current_secret_version=1,
        key_check=check,
        highest_version=1,
        serial=1,
        license_number=0,
    )
    header = {"alg": "ES256", "typ": REQUEST_TYPE, "kid": agent_id}
    text = jws.serialize_compact(header, msgspec.json.encode(content), ECKey.import_key(key), algorithms=["ES256"])
    body = b'{"request":"' + text.encode() + b'"}'
    lines = ["POST /api/v1/secret-status HTTP/1.1", "Host: bench", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    began = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"bench: the server answered {head[:40]!r}")
    size = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(size)
    return time.perf_counter() - began


async def _load(port: int, agents: list[Agent], pid: int) -> Load:
    before = _rss(pid)
    opened = [await asyncio.open_connection("127.0.0.1", port, ssl=agent.context) for agent in agents]
    # The first request of each is not counted; it makes what a connection needs.
    for (reader, writer), agent in zip(opened, agents, strict=True):
        await _one(reader, writer, agent.requests[0])
    memory = (_rss(pid) - before) / len(agents)
    kept = slice(1, -CONNECT_AGAIN)

    async def talk(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], agent: Agent) -> list[float]:
        reader, writer = connection
        return [await _one(reader, writer, request) for request in agent.requests[kept]]

    cpu, database = _cpu_of(pid), _cpu_of_postgresql()
    began = time.perf_counter()
    times = await asyncio.gather(*(talk(*each) for each in zip(opened, agents, strict=True)))
    seconds = time.perf_counter() - began
    cpu, database = _cpu_of(pid) - cpu, _cpu_of_postgresql() - database
    for _reader, writer in opened:
        writer.transport.abort()
    flat = [value for each in times for value in each]
    connecting = _cpu_of(pid)
    for number in range(-CONNECT_AGAIN, 0):
        for agent in agents:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=agent.context)
            await _one(reader, writer, agent.requests[number])
            writer.transport.abort()
    connecting = (_cpu_of(pid) - connecting) / (CONNECT_AGAIN * len(agents))
    asked = len(flat)
    p95, p99 = percentile(flat, 0.95), percentile(flat, 0.99)
    return Load(asked / seconds, cpu / asked, connecting, database / asked, p95, p99, memory)


def _cpu_of(pid: int) -> float:
    """Processor time of a process and of its children."""
    return sum(_ticks(each) for each in (pid, *_children(pid))) / _TICK


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in lists for word in path.read_text().split()]


def _cpu_of_postgresql() -> float:
    """Processor time of all PostgreSQL servers of this machine."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text() == "postgres\n":
                found += int(path.with_name("schedstat").read_text().split()[0])
    return found / 1e9


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


@contextmanager
def _running(command: list[str], directory: Path) -> Iterator[tuple[int, int]]:
    """A server on a port of loopback: port and process id."""
    port = free_ports()
    with (directory / "bench.log").open("ab") as log:
        process = subprocess.Popen([*command, "--bind", f"127.0.0.1:{port}"], stderr=log)
    try:
        ends = time.monotonic() + READY_S
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"bench: the server did not come up; see {directory / 'bench.log'}")
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(READY_S)


def load_of(command: list[str], directory: Path, agents: list[Agent]) -> Load:
    """What a server that is started with this command, and `--bind`, does for these agents."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, _running(command, directory) as (port, pid):
        return runner.run(_load(port, agents, pid))


def measure(directory: Path, url: str | None, count: int, requests: int) -> tuple[Load, Load]:
    """The server and the floor.

    Args:
        directory: for the server and the agents' files; made anew.
        url: of its database; None for SQLite.
        count: agents, each with a connection.
        requests: of each agent, more than `CONNECT_AGAIN`.
    """
    command = str(Path(sys.executable).with_name("license-server"))
    where = [] if url is None else ["--database", url]
    home = directory / "server"
    directory.mkdir(parents=True)
    made = [command, "init", "--dir", str(home), "--root-key", str(directory / "root.key"), *where]
    subprocess.run(made, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    server_side = open_server(home)
    agents = make_agents(server_side, count, requests, directory)
    server_side.close()
    keys = directory / "keys"
    keys.write_text("".join(f"{agent.name} {agent.key.hex()}\n" for agent in agents))
    floor_command = [sys.executable, "-m", "bench.server_floor", "--dir", str(home), "--keys", str(keys)]
    floor = load_of(floor_command, directory, agents)
    return load_of([command, "serve", "--dir", str(home)], directory, agents), floor
