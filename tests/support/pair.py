"""An agent and its server in one process, with everything between them in the hands of the test.

Both are wired by their own composition roots: the agent over a memory device, the server over SQLite. A `Fate` says what
happens to messages and where either side is stopped. Stopped means that nothing more of that process runs, and that another
process goes on with what was committed.
"""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agentd.base.clock.clock import Clock
from agentd.base.clock.timeanchor import Reading
from agentd.base.config.config import Config, parse_config
from agentd.rotation.runner import RotationRunner
from agentd.rotation.table import Step
from agentd.secrets.open import make_store
from agentd.secrets.record import AgentRecord, SealedTlsKey, SealedTlsKeys, ServerRecord
from agentd.sockets.connection import Hub
from agentd.sync.cycle import FAILURES, ContactCycle
from agentd.telemetry.views import server_time_view
from agentd.uplink.certificates import BLOB_NAME
from agentd.uplink.tlskey import new_key
from agentd.uplink.transport import API, NoContact, Response
from agentd.wiring import Agent, assemble, connect
from contracts.exchange import Cause
from contracts.jose import jwk_from_point
from hwsec.backend import Backend
from hwsec.owner import HardwareOwner
from hwsec.sealedblob import seal_blob
from hwsec.store import Contents
from hwsec.vault import Vault
from server.enrollment.by_hand import read_request
from server.exchange.capabilities import signed_list
from server.exchange.service import Exchange as ServerExchange
from server.licensing.licenses.licenses import Order
from server.web.peers import Peer, peer_of
from server.wiring import Plan, create_server, wire, wire_exchange
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice
from tests.support.serverside import ServerSide, open_server

AGENT = "pos-001"
LICENSE = "license-1"
START = 1_800_000_000
DAY = 86_400
_owner: list[HardwareOwner] = []


def shared_owner() -> HardwareOwner:
    """One hardware thread for all pairs: they never end by themselves."""
    if not _owner:
        _owner.append(HardwareOwner("pairs"))
    return _owner[0]


class Stopped(BaseException):
    """The process was stopped here; nothing of it may catch this."""


@dataclass
class Fate:
    """What goes wrong, once.

    Attributes:
        agent_stops: the agent's step after which it is stopped.
        server_stops: purpose of the request, and where in it the server is stopped: `before` it acts, after it has `acted`, or
            after it has `kept` its answer.
        message: purpose of a message, and what becomes of it: `request_lost`, `reply_lost`, `duplicated`, `delayed` (the
            request is lost for the agent and reaches the server after the next one), `replayed` (an earlier reply comes
            instead).
    """

    agent_stops: str | None = None
    server_stops: tuple[str, str] | None = None
    message: tuple[str, str] | None = None


@dataclass
class Truth:
    """The time as it is, which no machine need know. Seconds since `START`."""

    seconds: float = 0.0

    @property
    def now(self) -> int:
        return START + int(self.seconds)


class StillClock(Clock):
    """The clocks of a machine that the test starts, stops and sets.

    Args:
        truth: the time as it is; None for one of its own.

    Attributes:
        off: how far the machine's own clock is from the truth, in seconds.
        slept: for how long it has slept since it was started; CLOCK_MONOTONIC stands still meanwhile.
        booted: when the machine was started, as `seconds`.
        boots: how often it was.
    """

    def __init__(self, truth: Truth | None = None) -> None:
        self.truth = Truth() if truth is None else truth
        self.off = self.slept = 0.0
        self.booted = self.truth.seconds - 1000.0
        self.boots = 1
        self._restarted()

    def _restarted(self) -> None:
        """Another process: it knows only what it reads."""
        super().__init__(
            lambda: START + self.seconds + self.off,
            lambda: self.seconds - self.booted - self.slept,
            lambda: self.seconds - self.booted,
            lambda: Reading(int((self.seconds - self.booted) * 1000), self.boots),
        )

    @property
    def seconds(self) -> float:
        """The truth, in seconds since `START`."""
        return self.truth.seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self.truth.seconds = value

    def starts(self) -> None:
        """The machine starts, after it was off; the agent's process must be restarted too."""
        self.booted, self.slept = self.seconds - 20, 0.0
        self.boots += 1


@dataclass
class Server:
    """The server's process."""

    directory: Path
    truth: Truth
    server_side: ServerSide = field(init=False)
    exchange: ServerExchange = field(init=False)
    ahead: int = 0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.server_side = open_server(self.directory)
        self._wire()

    def _wire(self) -> None:
        self.exchange = wire_exchange(self.server_side.server)

    def restart(self) -> None:
        """Another process takes over. It gets the pool of connections of the one before, for speed; nothing else is left."""
        place, database, master = self.server_side.place, self.server_side.database, self.server_side.master
        self.server_side = ServerSide(wire(place, database, master, os.urandom))
        self._wire()

    @property
    def now(self) -> int:
        return self.truth.now + self.ahead


class Wire:
    """Carries messages between the two, as the fate will have it.

    Attributes:
        cut: no message passes.
        capabilities: the answer in place of the server's list of capabilities; None lets that pass.
        holds_back: seconds by which the reply to a purpose is late.
        seen: the purposes of all requests so far.
        listed: how often the list of capabilities was fetched.
    """

    def __init__(self, server: Server, peer: Peer) -> None:
        self.server = server
        self.peer = peer
        self.fate = Fate()
        self.cut = False
        self.capabilities: Response | None = None
        self.holds_back: dict[str, int] = {}
        self.seen: list[str] = []
        self.listed = 0
        self._late: list[tuple[str, str]] = []
        self._replies: list[bytes] = []

    @contextlib.asynccontextmanager
    async def open(self, certificates: str | None = None, key: bytearray | None = None) -> AsyncIterator[None]:
        """A connection with that client certificate; only its key is not looked at."""
        assert certificates and key
        self.peer = _peer(certificates)
        yield

    async def __call__(self, method: str, path: str, body: bytes) -> Response:
        if self.cut:
            raise NoContact("the server is cut off")
        name = path.removeprefix(f"{API}/")
        name, _, root = name.partition("?root=")
        if name == "key-set":
            keys = self.server.server_side.keys
            return Response(200, ((keys.key_set_of(root) if root else None) or keys.key_set()).encode())
        if name == "capabilities":
            self.listed += 1
            return self.capabilities or Response(200, signed_list(self.server.server_side.keys, self.server.now).encode())
        if name == "challenge":
            found = self.server.exchange.admit(self.peer, self.server.now)
            if not isinstance(found, str):
                return Response(found.status, found.body().encode())
            return Response(200, json.dumps({"challenge": found}).encode())
        self.seen.append(name)
        text = json.loads(body)["request"]
        late, self._late = self._late, []
        answer = self._carry(name, text)
        for old in late:
            self._ask(*old)
        self.server.truth.seconds += self.holds_back.get(name, 0)
        return answer

    def _carry(self, name: str, text: str) -> Response:
        fate = None
        if self.fate.message is not None and self.fate.message[0] == name:
            fate, self.fate.message = self.fate.message[1], None
        if fate == "delayed":
            self._late.append((name, text))
        if fate in ("request_lost", "delayed"):
            raise NoContact("the request was lost")
        if fate == "duplicated":
            self._ask(name, text)
        answer = self._ask(name, text)
        if fate == "reply_lost":
            raise NoContact("the reply was lost")
        if fate == "replayed" and self._replies:
            return Response(200, self._replies[-1])
        self._replies.append(answer.body)
        return answer

    def _ask(self, name: str, text: str) -> Response:
        where = None
        if self.server_stops(name):
            where = self.fate.server_stops[1] if self.fate.server_stops else None
            self.fate.server_stops = None
        if where == "before":
            self.server.restart()
            raise NoContact("the server was stopped")
        if where == "acted":
            self.server.exchange._stores.replies.keep = _stop  # type: ignore[method-assign, assignment]
            with contextlib.suppress(Stopped):
                self.server.exchange.handle(name, self.peer, text, self.server.now)
            self.server.restart()
            raise NoContact("the server was stopped")
        answer = self.server.exchange.handle(name, self.peer, text, self.server.now)
        if where == "kept":
            self.server.restart()
            raise NoContact("the server was stopped")
        retry = None if answer.retry_after_s is None else float(answer.retry_after_s)
        return Response(answer.status, answer.body().encode(), retry)

    def server_stops(self, name: str) -> bool:
        return self.fate.server_stops is not None and self.fate.server_stops[0] == name


def _peer(pem: str) -> Peer:
    return peer_of(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))


def _stop(*_args: Any) -> None:
    raise Stopped


class AgentProcess:
    """One run of the agent."""

    def __init__(self, config: Config, backend: Backend, wire: Wire, clock: StillClock) -> None:
        self.wire = wire
        hub = Hub(clock.monotonic)
        # Nothing ends a tick here: the log is written when something must be durable, and at the end.
        hub.schedule = lambda: None  # type: ignore[method-assign]
        made = assemble(config, clock, hub, shared_owner(), lambda _config, _vault: backend)
        self.agent: Agent = connect(made, wire, self._trace)
        self.core, self.store, self.ring, self.validator = made.core, made.store, made.store.ring, made.validator

    @property
    def rotation(self) -> RotationRunner:
        """What rotates."""
        assert self.agent.rotation is not None
        return self.agent.rotation

    @property
    def cycle(self) -> ContactCycle:
        """What contacts the server."""
        assert self.agent.parts.cycle is not None
        return self.agent.parts.cycle

    @property
    def server(self) -> ServerRecord:
        """The server as the agent knows it."""
        assert self.store.record.server is not None
        return self.store.record.server

    def status(self) -> Any:
        """What `status` shows of the server's time; None where there is nothing to show."""
        return server_time_view(self.store)

    def metrics(self) -> str:
        """The text of the metrics."""
        return self.agent.publisher.render_metrics().decode()

    async def contact(self, cause: Cause | None) -> None:
        """One contact, and what the daemon does after one that succeeded."""
        await self.cycle.contact(cause)
        await self.validator.inventory.save()

    def _trace(self, step: str) -> None:
        if self.wire.fate.agent_stops == step:
            self.wire.fate.agent_stops = None
            raise Stopped

    def end(self) -> None:
        """The process is gone; what was not committed is lost."""
        self.core.audit.discard()
        self.core.vault.close()


class Pair:
    """An agent and its server.

    Args:
        directory: of both; made by `prepare`.
        device: what the agent's keys are in; or what makes a backend for each start.
        server: of another pair, for a second machine with the same identity, or of a fleet; None for the one in the directory.
        agent_id: the agent's.
    """

    def __init__(
        self,
        directory: Path,
        device: MemoryDevice | Callable[[], Backend],
        peer: Peer,
        token: str,
        server: Server | None = None,
        agent_id: str = AGENT,
    ) -> None:
        self.clock = StillClock(None if server is None else server.truth)
        self.server = Server(directory / "server", self.clock.truth) if server is None else server
        self.wire = Wire(self.server, peer)
        self.device = device
        self.config = config_of(directory, agent_id)
        self.token = token
        self.stops = 0
        self.agent = self._start()

    def _start(self) -> AgentProcess:
        device = self.device
        backend = MemoryBackend(device) if isinstance(device, MemoryDevice) else device()
        return AgentProcess(self.config, backend, self.wire, self.clock)

    def restart_agent(self) -> None:
        self.agent.end()
        self.clock._restarted()
        self.agent = self._start()

    def contact(self, cause: Cause | None = None) -> BaseException | None:
        """One contact; what it ended with. An agent that is stopped in it is started again."""
        try:
            asyncio.run(self.agent.contact(cause))
        except Stopped as stopped:
            self.stops += 1
            self.restart_agent()
            return stopped
        except FAILURES as error:
            return error
        return None

    def until_settled(self, most: int = 8) -> int:
        """Contacts until nothing is left to do; how many it took."""
        for count in range(1, most + 1):
            self.clock.seconds += 1
            if self.contact() is None and self.agent.rotation.rotation.step is Step.IDLE:
                return count
        raise AssertionError(f"not settled after {most} contacts: {self.agent.rotation.rotation}")

    def valid(self, token: str | None = None) -> bool:
        return self.agent.validator.validate(token or self.token, self.clock.now()).verdict.valid

    def close(self) -> None:
        self.agent.end()
        self.server.server_side.close()


def config_of(directory: Path, agent_id: str = AGENT) -> Config:
    text = f'[agent]\nid = "{agent_id}"\n[tpm]\nenabled = false\n'
    text += f'fallback_encrypted_storage = "{directory}/state/secret.enc"\n'
    return parse_config(f'{text}[paths]\nstate_dir = "{directory}/state"\nlog_dir = "{directory}/log"\n', "test")


def enroll(
    server_side: ServerSide, directory: Path, now: int, agent_id: str = AGENT, backend: Backend | None = None
) -> tuple[MemoryDevice, Peer]:
    """Makes an agent that has not contacted its server yet; over a memory device of its own, or over a backend."""
    for name in ("state", "log"):
        (directory / name).mkdir(parents=True)
    device = MemoryDevice()
    backend = MemoryBackend(device) if backend is None else backend
    backend.create()
    keys = {name: jwk_from_point(getattr(backend, f"{name}_public")()) for name in ("agreement", "identity", "attestation")}
    content = {"agent_id": agent_id, "backend": "software", **{f"{name}_key": jwk for name, jwk in keys.items()}}
    server_side.agents.enroll_by_hand(agent_id, None, "software", read_request(content).keys, now)
    config, vault = config_of(directory, agent_id), Vault()
    scalar, csr = new_key(agent_id, vault)
    certificates = tuple(server_side.certificates.renew(agent_id, csr, now))
    with backend.kek() as kek, vault.open(scalar) as key:
        sealed = seal_blob(kek, BLOB_NAME, key.view)
    server = ServerRecord(
        agent_id=agent_id,
        serial=1,
        url="https://server",
        pins=("sha256:" + "0" * 64,),
        roots=server_side.keys.root_pins(),
        key_set=server_side.keys.key_set_number(),
        key_set_expires=START + 365 * DAY,
        attestation="software",
    )
    tls = SealedTlsKeys(current=SealedTlsKey(certificates=certificates, sealed=sealed))
    record = AgentRecord(server_side.keys.trust(), server=server, tls=tls)
    make_store(config, backend, vault).commit(Contents((), record.sections()))
    vault.close()
    return device, _peer(certificates[0])


def prepare(directory: Path, interval: int = DAY, grace: int = 7 * DAY) -> Callable[[Path], Pair]:
    """Makes a pair with secret version 1 and one license; returns what copies it to an empty place."""
    device = MemoryDevice()
    pair = first_pair(directory, MemoryBackend(device), device, interval, grace)
    token, template, peer = pair.token, directory / "template", pair.wire.peer
    pair.close()
    snapshot = MemoryDevice(**vars(device))

    def copy(place: Path) -> Pair:
        shutil.copytree(template, place)
        settings = place / "server" / "settings.toml"
        settings.write_text(settings.read_text().replace(str(template), str(place)))
        settings.chmod(0o600)
        return Pair(place, MemoryDevice(**vars(snapshot)), peer, token)

    return copy


def first_pair(
    directory: Path,
    backend: Backend,
    device: MemoryDevice | Callable[[], Backend],
    interval: int = DAY,
    grace: int = 7 * DAY,
) -> Pair:
    """A pair with secret version 1 and one license, below `directory`; `device` is as for `Pair`, and has made `backend`."""
    template = directory / "template"
    template.mkdir(parents=True, exist_ok=True)
    plan = Plan("server", ("localhost",), template / "root.key", None, interval, grace)
    create_server(template / "server", plan, START)
    server_side = open_server(template / "server")
    _device, peer = enroll(server_side, template, START, backend=backend)
    pair = Pair(template, device, peer, "")
    if pair.contact() is not None:
        raise AssertionError("the first contact failed")
    token = server_side.licenses.issue(AGENT, Order(LICENSE, "shop", ("till",), {}, START, START + 300 * DAY), START)
    if not pair.valid(token):
        raise AssertionError("the first license is not valid")
    asyncio.run(pair.agent.validator.inventory.save())
    pair.token = token
    server_side.close()
    return pair
