"""Runs `license-server serve`: wires the API, its listeners, metrics and readiness checks, and reloads TLS on SIGHUP."""

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy.exc import SQLAlchemyError
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.addresses import networks
from common.files import os_problem, write_atomic
from common.logqueue import LogQueue
from common.sd_notify import Notices

from .api.app import PREFIX, create_app
from .api.contactnotes import note_agent, note_ddi
from .api.metrics import Facts, JobFacts, Metrics
from .api.ops import Check, create_ops
from .api.routes import AgentRoutes
from .base.errors import Conflict, RegistryError
from .base.jsonlog import place_of
from .enrollment.service import Policy
from .exchange.content import KINDS
from .fleet.ddi.rollouts import RolloutQueue
from .fleet.fleets import figures
from .fleet.fleets.rotations import rotations
from .fleet.monitoring import observations
from .fleet.monitoring import views as fleetviews
from .fleet.monitoring.contacts import Contacts
from .fleet.monitoring.watch import Watch
from .fleet.rollouts import automatic, views
from .fleet.rollouts.overdue import Overdue
from .hawkbit.listener import LOOK_S as LOOK_FOR_DEVICES_S
from .hawkbit.listener import DdiListener
from .jobs.queue import Jobs, Plan
from .jobs.runner import Runner
from .keys.keyring import Keyring
from .keys.lifecycle import held
from .keys.schedule import planned
from .notify.channels import ALERTMANAGER, MAIL, channels
from .notify.delivery import Deliveries
from .notify.sender import Sender
from .operators.listener import LOOK_S, OperatorListener
from .ota import publishing
from .ota.ends import MetadataEnds
from .ota.repository import Repository
from .registry.allowance import PROCESS_RATE, Allowance
from .registry.clockwatch import Heart
from .web.callers import CannotIdentify, FromProxy, Scope, from_tls
from .web.listeners import WORKERS, Chore, Listener, run, tcp_socket, unix_socket
from .web.middleware import CALLER, Caller, Lots, Middleware, Note
from .web.proxyusers import ProxyUsers
from .web.responses import DATABASE_DOWN
from .web.tlscontext import server_context
from .web.transport import ApiProtocol
from .wiring import Server, housekeeping, wire_enrollment, wire_exchange

ENDPOINTS = frozenset({*KINDS, "challenge", "provision", "provision/complete", "key-set", "capabilities", "openapi.json"})
"""Endpoints that metrics and the log name; every other path is `other`."""
LOOK_FOR_JOBS_S = 30.0
LOOK_FOR_TLS_S = 60.0
"""How soon a process that listens by itself serves a TLS certificate that is new in the registry."""
LOOK_FOR_EVENTS_S = 2.0
"""How soon a webhook sends an event."""
WRITE_CONTACTS_S = 15.0
"""How soon after its end what was noted in an interval is written; `monitoring.intervals.SETTLED_S` is longer."""
HOUSEKEEPING = Plan("housekeeping", every_s=600, lease_s=1800)
KEYS = Plan("keys", every_s=6 * 3600, lease_s=600)
UPDATES = Plan("updates", every_s=3600, lease_s=600)
DEVICES = Plan("devices", every_s=300, lease_s=1800)
ROLLOUTS = Plan("rollouts", every_s=300, lease_s=1800)
MONITORING = Plan("monitoring", every_s=60, lease_s=600)
CHANNELS = {
    ALERTMANAGER: Plan(ALERTMANAGER, every_s=60, lease_s=300),
    MAIL: Plan(MAIL, every_s=30, lease_s=600),
}
UNDATED = frozenset({f"{PREFIX}/key-set", f"{PREFIX}/openapi.json"})
"""Paths that are served whatever the server's clock shows: nothing there is signed or judged by it."""
_log = logging.getLogger("license_server")


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve.

    Attributes:
        bind: host and port of the TLS listener; None behind a proxy.
        unix: path of the socket behind a proxy; None with a TLS listener.
        proxies: UIDs of the users that may connect to that socket.
        ops: host and port of the listener for operators; None for no such listener.
        policy: which devices may become agents.
        with_openapi: whether to serve the OpenAPI document.
        operators: host and port of the operator API; None for no such listener.
        ddi: host and port of the listener for devices that speak hawkBit's DDI; None for no such listener.
    """

    bind: tuple[str, int] | None
    unix: Path | None
    ops: tuple[str, int] | None
    policy: Policy
    with_openapi: bool = False
    proxies: frozenset[int] = frozenset()
    operators: tuple[str, int] | None = None
    ddi: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound, not yet listening: of the API, health and metrics, the operator API, and DDI; None where there is none."""

    api: socket.socket
    ops: socket.socket | None
    operators: socket.socket | None = None
    ddi: socket.socket | None = None


def bind(options: Options, processes: int = 1) -> list[Sockets]:
    """Binds the sockets that processes serve on: all of them the same API, each one its own port for operators.

    Raises:
        RegistryError: an address is in use or cannot be used, or there is none for the API.
    """
    if options.bind is not None:
        api = tcp_socket(*options.bind, "--bind")
    elif options.unix is not None:
        api = unix_socket(options.unix)
    else:
        raise RegistryError("give an address with --bind HOST:PORT, or a socket with --unix PATH")
    operators = None if options.operators is None else tcp_socket(*options.operators, "--operators")
    ddi = None if options.ddi is None else tcp_socket(*options.ddi, "'listen' in [ddi] of settings.toml")
    if options.ops is None:
        return [Sockets(api, None, operators, ddi)] * processes
    host, port = options.ops
    ports = [port + number if port else 0 for number in range(processes)]
    return [Sockets(api, tcp_socket(host, each, "--ops", loopback_only=True), operators, ddi) for each in ports]


def serve(
    server: Server,
    options: Options,
    lines: LogQueue,
    sockets: Sockets,
    ready: Callable[[], None],
    until: int | None = None,
    alive: tuple[Callable[[], None], float] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT. SIGHUP reloads the TLS certificate.

    Args:
        server: open.
        options: how to serve.
        lines: the process's log, which is kept flowing meanwhile.
        sockets: of `bind`.
        ready: called when all listen.
        until: a descriptor; to serve ends when it is readable.
        alive: called by the event loop, every so many seconds.

    Raises:
        RegistryError: it cannot start; the text says why and what to do.
    """
    has_updates = server.database.is_sqlite or Repository(server.place.updates).exists
    plans = (HOUSEKEEPING, KEYS, DEVICES, ROLLOUTS, MONITORING, *((UPDATES,) if has_updates else ()))
    sending = channels(server.place.alerts, server.database, time.time)
    jobs = Jobs(server.database, (*plans, *(CHANNELS[name] for name in sending)), _holder())
    updates = MetadataEnds(Repository(server.place.updates))
    metrics = Metrics(
        partial(_facts_or_none, server, jobs, options.bind is not None, updates), time.time, lambda: lines.dropped
    )
    exchange, contacts = wire_exchange(server), Contacts(time.time)
    app = create_app(exchange, wire_enrollment(server, options.policy), server.keys, with_openapi=options.with_openapi)
    context = None if options.bind is None else _context(server.keys)
    servers, names = [], []
    identify = from_tls if context is not None else FromProxy(lambda: _authorities(server.keys))
    threads = ThreadPoolExecutor(WORKERS, "request")
    admitting = Middleware(
        AgentRoutes(app, exchange, threads),
        identify,
        _observer(metrics, contacts),
        clock_trusted=server.clock.surely_trusted,
        clock_problem=lambda: _clock_problem(server),
        undated=UNDATED,
        lots=_lots(server),
    )
    protocol: Callable[..., H11Protocol] = ApiProtocol
    if context is not None:
        names.append(_name(sockets.api.getsockname()))
    else:
        protocol = partial(ApiProtocol, admits=ProxyUsers(options.proxies, time.monotonic).admits)
        names.append(str(options.unix))
    listener = Listener(admitting, sockets.api, protocol, context)
    servers.append(listener)
    if sockets.ops is not None:
        names.append("operators: " + _name(sockets.ops.getsockname()))
        servers.append(Listener(create_ops(checks(server), metrics.text), sockets.ops, H11Protocol, None))
    operators = None
    if sockets.operators is not None:
        operators = OperatorListener(server, sockets.operators, _lots(server), metrics.count_operator)
        names.append("operator API: " + _name(sockets.operators.getsockname()))
        servers.append(operators.listener)
    ddi = None
    if sockets.ddi is not None and server.place.ddi is not None:
        heard = partial(note_ddi, contacts)
        ddi = DdiListener(server, server.place.ddi, RolloutQueue(), sockets.ddi, _lots(server), metrics.count_ddi, heard)
        names.append("DDI: " + _name(sockets.ddi.getsockname()))
        servers.append(ddi.listener)
    notices = Notices()
    background: set[asyncio.Task[None]] = set()

    def serving() -> None:
        background.add(asyncio.get_running_loop().create_task(lines.keep_flowing(asyncio.sleep)))
        if alive is not None:
            background.add(asyncio.get_running_loop().create_task(_beat(*alive)))
        _log.info("serving", extra={"fields": {"listeners": names}})
        notices.send("READY=1")
        ready()

    def hangup() -> None:
        if context is not None:
            _reload(server.keys, listener)
        if operators is not None:
            operators.look()
        if ddi is not None:
            ddi.look()

    work: dict[str, Callable[[int], None]] = {
        HOUSEKEEPING.name: partial(_keep_house, server),
        KEYS.name: partial(_keep_keys, server, context is not None),
        UPDATES.name: partial(keep_updates, server),
        DEVICES.name: partial(count_devices, server),
        ROLLOUTS.name: partial(keep_rollouts, server),
        MONITORING.name: partial(watch_fleets, server),
        **sending,
    }
    runner = Runner(jobs, work, time.time)
    deliveries = _deliveries(server)
    chores = [
        Chore(partial(_do_jobs, server, runner), LOOK_FOR_JOBS_S),
        Chore(partial(_deliver, server, deliveries), LOOK_FOR_EVENTS_S, deliveries.stop),
        Chore(partial(write_contacts, server, contacts), WRITE_CONTACTS_S),
    ]
    if context is not None:
        chores.append(Chore(TlsWatch(server.keys, partial(_reload, server.keys, listener)).look, LOOK_FOR_TLS_S))
    if operators is not None:
        chores.append(Chore(operators.look, LOOK_S))
    if ddi is not None:
        chores.append(Chore(ddi.look, LOOK_FOR_DEVICES_S))
    try:
        with Heart(server.clock):
            run(servers, serving, hangup, chores, until)
    finally:
        write_contacts(server, contacts, everything=True)
        notices.last("STOPPING=1")
        _log.info("stopped")


async def _beat(act: Callable[[], None], every_s: float) -> None:
    while True:
        act()
        await asyncio.sleep(every_s)


def _context(keys: Keyring) -> ssl.SSLContext:
    chain, key = keys.tls_material()
    return server_context(chain, key, keys.client_ca_pem())


def _do_jobs(server: Server, runner: Runner) -> None:
    if _clock_problem(server) is None:
        runner.run()


def _deliveries(server: Server) -> Deliveries:
    """What delivers events to webhooks.

    Raises:
        RegistryError: the CAs that the settings name cannot be loaded.
    """
    place = server.place
    try:
        context = ssl.create_default_context(cafile=None if place.webhook_ca is None else str(place.webhook_ca))
    except OSError as problem:  # ssl.SSLError is one
        raise RegistryError(
            f"the CAs in {place.webhook_ca} ('webhook_ca' of settings.toml) cannot be loaded: {os_problem(problem)}"
        ) from None
    sender = Sender(networks(place.webhook_networks), context)
    return Deliveries(server.database, server.cipher, server.webhooks, sender, _holder(), time.time)


def _deliver(server: Server, deliveries: Deliveries) -> None:
    if _clock_problem(server) is None:
        deliveries.run()


def _holder() -> str:
    return f"{socket.gethostname()[:100]}/{os.getpid()}"


def _keep_house(server: Server, now: int) -> None:
    removed = housekeeping(server).run(now)
    if removed.rows:
        _log.info("housekeeping", extra={"fields": {"removed": removed.rows}})


def _keep_keys(server: Server, makes_tls: bool, now: int) -> None:
    for change in server.succession.run(now, makes_tls=makes_tls):
        fields = {"kind": change.kind, "kid": change.kid, "before": change.before}
        _log.info("a key of the server was replaced on schedule", extra={"fields": fields})


def keep_updates(server: Server, now: int) -> None:
    """Signs the online roles of the update repository again where they end soon; nothing where there is no repository."""
    repository = Repository(server.place.updates)
    if not repository.exists:
        return
    try:
        server.keys.check_clock()
        signed = publishing.renew(server.database, server.cipher, repository, now)
    except Conflict:
        return  # somebody publishes at this moment, and signs both
    if signed:
        _log.info("update metadata was signed again", extra={"fields": {"files": signed}})


def count_devices(server: Server, now: int) -> None:
    """Counts devices and fleets for metrics and lists."""
    figures.count(server.database, now)


def keep_rollouts(server: Server, now: int) -> None:
    """Ends what has lasted too long in rollouts, begins those whose notice is over, and starts those of new releases."""
    done = Overdue(server.database).run(now)
    if done:
        _log.info("devices of rollouts were overdue", extra={"fields": {"devices": done}})
    if automatic.any_on(server.database):
        server.keys.check_clock()
        started = automatic.start_new(server.database, now)
        if started:
            _log.info("rollouts of new releases were started", extra={"fields": {"rollouts": started}})


def watch_fleets(server: Server, now: int) -> None:
    """Judges the intervals of fleets that are over."""
    Watch(server.database).run(now)


def write_contacts(server: Server, contacts: Contacts, *, everything: bool = False) -> None:
    """Writes which devices have contacted this process in the intervals that are over; raises nothing: the next call goes on.

    Args:
        server: open.
        contacts: of this process.
        everything: the present interval too, since the process ends.
    """
    try:
        observations.write(server.database, contacts, everything=everything)
    except (RegistryError, SQLAlchemyError) as problem:
        _log.error("the contacts of devices could not be written", extra={"fields": {"kind": type(problem).__name__}})


class TlsWatch:
    """Notices a TLS certificate that is new in the registry: another process may have made it on schedule.

    Args:
        keys: has the certificate.
        reload: serves it.
    """

    def __init__(self, keys: Keyring, reload: Callable[[], None]) -> None:
        self._keys = keys
        self._reload = reload
        self._served = keys.tls_material()[0]

    def look(self) -> None:
        """Calls `reload` if the certificate has changed since the last look; raises nothing."""
        try:
            present = self._keys.tls_material()[0]
        except (RegistryError, SQLAlchemyError):
            return  # the next look tries again
        if present != self._served:
            self._reload()
            self._served = present


def _authorities(keys: Keyring) -> str:
    try:
        return keys.present_client_cas()
    except (RegistryError, SQLAlchemyError):
        raise CannotIdentify from None


def check(server: Server) -> None:
    """Loads the certificate and the client CAs as a start and SIGHUP do, without serving.

    Raises:
        RegistryError: they cannot be used; the text says why and what to do.
    """
    try:
        _context(server.keys)
    except (ssl.SSLError, ValueError) as problem:
        raise RegistryError(
            f"the registry's TLS certificate or client CAs cannot be loaded ({type(problem).__name__}: {problem}); a running "
            "server keeps those that it has. Make a new certificate with 'license-server keys rotate tls', or restore a backup"
        ) from None


def _reload(keys: Keyring, listener: Listener) -> None:
    """Loads the certificate and the client CAs again, without those that have ended. If that fails, the present ones stay."""
    try:
        listener.use(_context(keys))
    except Exception as problem:  # noqa: BLE001 - a running server keeps running
        _log.error(
            "the TLS certificate could not be reloaded: 'license-server serve --check' says why",
            extra={"fields": {"kind": type(problem).__name__, "at": place_of(problem)}},
        )
    else:
        _log.info("the TLS certificate was reloaded")


def _lots(server: Server) -> Lots | None:
    """With SQLite this is the only process that serves."""
    if server.database.is_sqlite:
        return None
    allowance = Allowance(server.database)

    def take(name: str, now: int) -> bool:
        try:
            return allowance.take_lot(name, now)
        except SQLAlchemyError:
            return True  # the request itself will find out that the database does not answer

    return Lots(PROCESS_RATE, take)


def _clock_problem(server: Server) -> str | None:
    try:
        return server.clock.problem()
    except SQLAlchemyError:
        return DATABASE_DOWN.text


def checks(server: Server, wall: Callable[[], float] = time.time) -> dict[str, Check]:
    """The readiness checks, by name."""

    def database() -> str | None:
        try:
            server.database.ready()
        except RegistryError as problem:
            return str(problem)
        return None

    def keys() -> str | None:
        server.keys.tls_material()
        server.keys.key_set()
        ended = [name for name, end in server.key_lifecycle.expiring(int(wall()), 0) if end <= wall()]
        return f"expired: {', '.join(ended)}; run 'license-server keys rotate'" if ended else None

    def disk() -> str | None:
        directory = server.place.directory
        try:
            with tempfile.TemporaryFile(dir=directory) as file:
                file.write(b"\0")
                file.flush()
                os.fsync(file.fileno())
        except OSError as problem:
            return f"{directory} is not writable: {problem.strerror}"
        return None

    return {"database": database, "keys": keys, "disk": disk, "clock": server.clock.problem}


def facts(server: Server, jobs: Jobs, makes_tls: bool, updates: MetadataEnds | None = None) -> Facts:
    """What `/metrics` says of the registry. Its time does not depend on the size of the fleet.

    Args:
        server: open.
        jobs: of the registry.
        makes_tls: whether this process serves a new TLS certificate by itself.
        updates: knows when update metadata ends; None where that is of no interest.
    """
    with server.database.read() as session:
        agents, halted, devices = server.agents.count(session), server.clones.count(session), figures.known(session)
        counted, renewed = views.figures(session), rotations(session)
        watched = fleetviews.figures(session, int(time.time()))
    ends: dict[str, int] = {}
    rows = server.key_lifecycle.listed()
    unattended = {plan.kind for plan in planned(held(rows)) if plan.next_kid is not None}
    if makes_tls:
        unattended.add("tls")
    for row in rows:
        if row.state == "active":
            ends[row.kind] = min(row.expires_at, ends.get(row.kind, row.expires_at))
    standings = jobs.standings(int(time.time()))
    jobs_facts = [JobFacts(*astuple(each)) for each in standings]
    metadata = {} if updates is None else updates.by_role()
    trusted = server.clock.problem() is None
    own = agents, ends, halted, trusted, jobs_facts, frozenset(unattended), metadata
    return Facts(*own, devices, counted, renewed, watched)


def _facts_or_none(server: Server, jobs: Jobs, makes_tls: bool, updates: MetadataEnds) -> Facts | None:
    """None while the registry cannot be read: what this process has counted is served all the same."""
    try:
        return facts(server, jobs, makes_tls, updates)
    except (RegistryError, SQLAlchemyError) as problem:
        _log.warning("the registry cannot be read for /metrics", extra={"fields": {"kind": type(problem).__name__}})
        return None


def endpoint_of(path: str) -> str:
    """The name of a path's endpoint in metrics and the log."""
    name = path.removeprefix(f"{PREFIX}/")
    return name if name in ENDPOINTS else "other"


def _observer(metrics: Metrics, contacts: Contacts) -> Callable[[Scope, Note, int, float], None]:
    def observe(scope: Scope, note: Note, status: int, seconds: float) -> None:
        endpoint = endpoint_of(scope["path"])
        metrics.count(endpoint, status, note.code, seconds)
        note_agent(contacts, scope, note, endpoint, status, seconds)
        if status >= 400:
            fields: dict[str, Any] = {"endpoint": endpoint, "status": status, "code": note.code, "ms": round(seconds * 1000)}
            _log.info("refused", extra={"fields": fields | _caller_of(scope)})

    return observe


def _caller_of(scope: Scope) -> dict[str, str]:
    """Whose request it was, for the log: what TLS or the proxy says, never what the request says."""
    caller: Caller | None = scope["extensions"].get(CALLER)
    if caller is None:
        return {}
    found = {"address": caller.address[:64]}
    if caller.certificate is not None:
        found |= {"agent": caller.certificate.agent_id, "certificate": caller.certificate.number}
    return found


def _name(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"


def load_roots(directory: Path) -> list[x509.Certificate]:
    """Loads TPM manufacturers' CAs: every certificate in the files *.pem and *.der of a directory.

    Raises:
        RegistryError: the directory has no such file, or a file has no certificate.
    """
    roots: list[x509.Certificate] = []
    try:
        for path in sorted(directory.glob("*.pem")):
            roots += x509.load_pem_x509_certificates(path.read_bytes())
        for path in sorted(directory.glob("*.der")):
            roots.append(x509.load_der_x509_certificate(path.read_bytes()))
    except ValueError:
        raise RegistryError(f"{path} holds no certificate that can be read; remove the file or replace it") from None
    except OSError as problem:
        raise RegistryError(f"{os_problem(problem)}: make it readable, or remove the file") from None
    if not roots:
        raise RegistryError(f"{directory} has no *.pem or *.der file; put the manufacturers' root certificates there")
    return roots


def write_tls_files(keys: Keyring, directory: Path) -> None:
    """Writes `server.pem`, `server.key` (mode 0600) and `clients.pem`, for nginx."""
    chain, key = keys.tls_material()
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, data, mode in (
        ("server.pem", chain.encode(), 0o644),
        ("server.key", key, 0o600),
        ("clients.pem", keys.client_ca_pem().encode(), 0o644),
    ):
        write_atomic(directory / name, data, mode)
