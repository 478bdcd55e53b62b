"""An agent and its server in one process, with everything between them in the hands of the test.

The agent's parts are the real ones over a memory device, the server's the real ones over SQLite. What carries messages, and
where either of them is stopped, is told by a `Fate`. Stopped means: nothing more of that process runs, and another one takes
over what was committed.
"""

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agentd.base.clock import Clock
from agentd.base.config import Config, parse_config
from agentd.base.hardware import Hardware
from agentd.licenses import revocations
from agentd.licenses.inventory import LicenseBook
from agentd.licenses.validator import Engine
from agentd.rotation.runner import Rotor
from agentd.rotation.table import Step
from agentd.secrets.installer import SECTION_BINDING, SECTION_REVOCATIONS, SECTION_TRUST, SecretOps
from agentd.sync.cycle import FAILURES, Contacts
from agentd.sync.updates import ServerWord
from agentd.telemetry.metrics import Counters
from agentd.uplink.client import API, Answer, Exchange, NoContact
from agentd.uplink.server_record import Binding
from agentd.uplink.server_record import decode as decode_binding
from agentd.wiring import book_path, limits_of, make_store, open_audit
from contracts.claims import MAX_TIME
from contracts.exchange import Cause
from contracts.jose import jwk_from_point
from contracts.trust import parse_trust
from hwsec.owner import HardwareOwner
from hwsec.store import Contents
from hwsec.vault import Vault
from server.enrollment.by_hand import read_request
from server.exchange.service import Exchange as ServerExchange
from server.licensing.licenses import Order
from server.web.peers import Peer, peer_of
from server.wiring import Office, Plan, found_office, open_office, wired
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice

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


class StillClock(Clock):
    """A clock that the test moves.

    Attributes:
        seconds: since `START`.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(lambda: START + self.seconds, lambda: 1000 + self.seconds)


@dataclass
class Server:
    """The server's process."""

    directory: Path
    clock: StillClock
    office: Office = field(init=False)
    exchange: ServerExchange = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.office = open_office(self.directory)
        self._wire()

    def _wire(self) -> None:
        office = self.office
        self.exchange = ServerExchange(office.keys, office.agents, office.secrets, office.licenses, os.urandom)

    def restart(self) -> None:
        """Another process takes over. It gets the pool of connections of the one before, for speed; nothing else is left."""
        place, database, master = self.office.place, self.office.database, self.office.master
        self.office = wired(place, database, master, os.urandom)
        self._wire()

    @property
    def now(self) -> int:
        return int(self.clock.wall())


class Wire:
    """Carries messages between the two, as the fate will have it."""

    def __init__(self, server: Server, peer: Peer) -> None:
        self.server = server
        self.peer = peer
        self.fate = Fate()
        self.cut = False
        self.seen: list[str] = []
        self._late: list[tuple[str, str]] = []
        self._replies: list[bytes] = []

    async def __call__(self, method: str, path: str, body: bytes) -> Answer:
        if self.cut:
            raise NoContact("the server is cut off")
        name = path.removeprefix(f"{API}/")
        name, _, root = name.partition("?root=")
        if name == "key-set":
            keys = self.server.office.keys
            return Answer(200, ((keys.key_set_of(root) if root else None) or keys.key_set()).encode())
        if name == "challenge":
            return Answer(
                200, json.dumps({"challenge": self.server.exchange.challenge(self.peer.fingerprint, self.server.now)}).encode()
            )
        self.seen.append(name)
        text = json.loads(body)["request"]
        late, self._late = self._late, []
        answer = self._carry(name, text)
        for old in late:
            self._ask(*old)
        return answer

    def _carry(self, name: str, text: str) -> Answer:
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
            return Answer(200, self._replies[-1])
        self._replies.append(answer.body)
        return answer

    def _ask(self, name: str, text: str) -> Answer:
        where = None
        if self.server_stops(name):
            where = self.fate.server_stops[1] if self.fate.server_stops else None
            self.fate.server_stops = None
        if where == "before":
            self.server.restart()
            raise NoContact("the server was stopped")
        if where == "acted":
            agents = self.server.office.agents
            agents.keep_answer = _stop  # type: ignore[method-assign, assignment]
            with contextlib.suppress(Stopped):
                self.server.exchange.handle(name, self.peer, text, self.server.now)
            self.server.restart()
            raise NoContact("the server was stopped")
        answer = self.server.exchange.handle(name, self.peer, text, self.server.now)
        if where == "kept":
            self.server.restart()
            raise NoContact("the server was stopped")
        retry = None if answer.retry_after_s is None else float(answer.retry_after_s)
        return Answer(answer.status, answer.body().encode(), retry)

    def server_stops(self, name: str) -> bool:
        return self.fate.server_stops is not None and self.fate.server_stops[0] == name


def _stop(*_args: Any) -> None:
    raise Stopped


class NoTls:
    """Stands for the TLS keys: the wire needs none."""

    ends = START + 30 * DAY

    def connected(self) -> Any:
        @contextlib.asynccontextmanager
        async def block() -> Any:
            yield

        return block()

    async def renew_if_due(self, _exchange: Exchange) -> None:
        return

    async def renew(self, _exchange: Exchange) -> None:
        return


class AgentProcess:
    """One run of the agent."""

    def __init__(self, config: Config, device: MemoryDevice, wire: Wire, clock: StillClock, trust: bytes) -> None:
        self.wire = wire
        self.clock = clock
        self.config = config
        self.vault = Vault()
        backend = MemoryBackend(device)
        backend.open()
        loaded = make_store(config, backend, self.vault).load()
        self.book = LicenseBook()
        self.book.load(book_path(config))
        self.engine = Engine(AGENT, parse_trust(trust), self.vault, self.book, limits_of(config))
        self.engine.take_over(loaded.contents)
        self.audit, _end = open_audit(config, clock, lambda: None)
        hardware = Hardware(
            backend, lambda made, trace: make_store(config, made, self.vault, trace), None, self.vault, shared_owner()
        )
        counters = Counters()
        self.ops = SecretOps(
            hardware,
            self.engine,
            self.audit,
            clock,
            counters,
            loaded.contents.sections,
            loaded.generation,
            (bytes(32),),
        )
        self.exchange = Exchange(AGENT, lambda: self.engine.trust, hardware, clock, wire, lambda: MAX_TIME)
        self.rotor = Rotor(
            config.rotation_journal,
            self.ops,
            self.engine,
            self.vault,
            self.exchange,
            self.audit,
            clock,
            1,
            self._keep_book,
            self._trace,
        )
        sections = loaded.contents.sections
        if SECTION_REVOCATIONS in sections:
            self.engine.revocations = revocations.decode(sections[SECTION_REVOCATIONS])
        if SECTION_TRUST in sections:
            self.engine.trust = parse_trust(sections[SECTION_TRUST])
        kept = sections.get(SECTION_BINDING)
        binding = (
            decode_binding(kept)
            if kept is not None
            else Binding(
                agent_id=AGENT,
                serial=1,
                url="https://server",
                pins=("sha256:" + "0" * 64,),
                roots=wire.server.office.keys.root_pins(),
                key_set=wire.server.office.keys.key_set_number(),
                key_set_expires=START + 365 * DAY,
                attestation="software",
            )
        )
        self.word = ServerWord(self.ops, self.engine, clock, self.audit, binding)
        self.contacts = Contacts(
            AGENT,
            self.exchange,
            NoTls(),
            self.rotor,
            self.engine,
            self.word,
            self.audit,
            clock,
            counters,
            lambda: None,
            self._heard,
            lambda: 0.5,
        )

    async def _heard(self) -> None:
        self.save_book()

    async def _keep_book(self) -> None:
        self.save_book()

    def save_book(self) -> None:
        data = self.book.take_unsaved()
        if data is not None:
            book_path(self.config).write_bytes(data)

    def _trace(self, step: str) -> None:
        if self.wire.fate.agent_stops == step:
            self.wire.fate.agent_stops = None
            raise Stopped

    def end(self) -> None:
        """The process is gone; what was not committed is lost."""
        self.audit.discard()
        self.vault.close()


class Pair:
    """An agent and its server.

    Args:
        directory: of both; made by `prepare`.
    """

    def __init__(self, directory: Path, device: MemoryDevice, peer: Peer, token: str, trust: bytes) -> None:
        self.clock = StillClock()
        self.server = Server(directory / "server", self.clock)
        self.wire = Wire(self.server, peer)
        self.device = device
        self.config = _config(directory)
        self._trust = trust
        self.token = token
        self.stops = 0
        self.agent = self._start()

    def _start(self) -> AgentProcess:
        return AgentProcess(self.config, self.device, self.wire, self.clock, self._trust)

    def restart_agent(self) -> None:
        self.agent.end()
        self.agent = self._start()

    def contact(self, cause: Cause | None = None) -> BaseException | None:
        """One contact; what it ended with. An agent that is stopped in it is started again."""
        try:
            asyncio.run(self.agent.contacts.contact(cause))
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
            if self.contact() is None and self.agent.rotor.rotation.step is Step.IDLE:
                return count
        raise AssertionError(f"not settled after {most} contacts: {self.agent.rotor.rotation}")

    def valid(self, token: str | None = None) -> bool:
        verdict = self.agent.engine.validate(token or self.token, self.clock.now())
        return verdict.valid

    def close(self) -> None:
        self.agent.end()
        self.server.office.close()


def _config(directory: Path) -> Config:
    text = f'[agent]\nid = "{AGENT}"\n[tpm]\nenabled = false\nfallback_encrypted_storage = "{directory}/state/secret.enc"\n'
    return parse_config(f'{text}[paths]\nstate_dir = "{directory}/state"\nlog_dir = "{directory}/log"\n', "test")


def prepare(directory: Path, interval: int = DAY, grace: int = 7 * DAY) -> Callable[[Path], Pair]:
    """Makes a pair with secret version 1 and one license; returns what copies it to an empty place."""
    template = directory / "template"
    for name in ("state", "log"):
        (template / name).mkdir(parents=True)
    plan = Plan("server", ("localhost",), template / "root.key", None, interval, grace)
    found_office(template / "server", plan, START)
    office = open_office(template / "server")
    device = MemoryDevice()
    backend = MemoryBackend(device)
    backend.create()
    keys = {name: jwk_from_point(getattr(backend, f"{name}_public")()) for name in ("agreement", "identity", "attestation")}
    content = {"agent_id": AGENT, "backend": "software", **{f"{name}_key": jwk for name, jwk in keys.items()}}
    office.agents.enroll_by_hand(AGENT, None, "software", read_request(content).keys, START)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = office.agents.renew_certificate(AGENT, csr.public_bytes(Encoding.PEM).decode(), START)[0]
    peer = peer_of(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))
    trust = office.keys.trust()
    config, vault = _config(template), Vault()
    make_store(config, backend, vault).commit(Contents((), {"trust": trust}))
    vault.close()
    pair = Pair(template, device, peer, "", trust)
    if pair.contact() is not None:
        raise AssertionError("the first contact failed")
    token = office.licenses.issue(AGENT, Order(LICENSE, "shop", ("till",), {}, START, START + 300 * DAY), START)
    if not pair.valid(token):
        raise AssertionError("the first license is not valid")
    pair.agent.save_book()
    pair.close()
    office.close()
    snapshot = MemoryDevice(**vars(device))

    def copy(place: Path) -> Pair:
        shutil.copytree(template, place)
        settings = place / "server" / "settings.toml"
        settings.write_text(settings.read_text().replace(str(template), str(place)))
        settings.chmod(0o600)
        return Pair(place, MemoryDevice(**vars(snapshot)), peer, token, trust)

    return copy
