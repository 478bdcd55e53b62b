"""A server with a device that speaks DDI, and rollouts that the tests make up; requests go to the gate without a socket."""

import asyncio
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from common.files import write_atomic
from server.base.ddisettings import DdiPlace
from server.base.settings import SETTINGS, Place, settings_of
from server.fleet.ddi import credentials, devices
from server.fleet.ddi.actions import Actions
from server.fleet.ddi.queue import Order, Queue, Report, Standing
from server.hawkbit.endpoints import Endpoints
from server.hawkbit.gate import Gate
from server.registry.database import sqlite_url
from server.registry.later import Records
from server.registry.models.ddi import DdiAction
from server.registry.models.fleets import Fleet, FleetMember
from server.registry.models.updates import UpdatePackage
from server.web.peers import Peer
from server.web.transport import PEER_EXTENSION
from tests.server.devices import NOW
from tests.support.serverside import ServerSide, open_server

PACKAGE = bytes(range(256)) * 40
PATH, VERSION = "pos/pos-2.1.swu", "2.1"
PLACE = DdiPlace(("127.0.0.1", 0), "https://updates.example:8444", "default", 300)
BASE = "/default/controller/v1"


@dataclass
class Rollouts:
    """Rollouts that do what the test says.

    Attributes:
        orders: what each device may be offered or go on with.
        taken_back: devices whose rollout does not want them any more.
        closed: devices whose window is closed.
        reports: what was reported.
    """

    orders: dict[str, Order] = field(default_factory=dict)
    taken_back: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    reports: list[tuple[str, Report]] = field(default_factory=list)

    def pending(self, _session: Session, device_id: str) -> bool:
        return device_id in self.orders and device_id not in self.taken_back

    def open_for(self, session: Session, device_id: str, _now: int, _records: Records) -> Order | None:
        if not self.pending(session, device_id):
            return None
        return dataclasses.replace(self.orders[device_id], may_begin=device_id not in self.closed)

    def standing(self, _session: Session, _rollout_id: str, device_id: str, _now: int) -> Standing:
        return Standing(device_id not in self.taken_back, device_id not in self.closed)

    def report(self, _session: Session, _rollout_id: str, device_id: str, what: Report, _detail: str, _now: int) -> None:
        self.reports.append((device_id, what))


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class World:
    def __init__(self, server: ServerSide, repository: Path, queue: Queue | None = None) -> None:
        self.server, self.repository = server, repository
        self.now = float(NOW)
        self.rollouts = Rollouts()
        self.seen: list[str] = []
        endpoints = Endpoints(server.database, Actions(queue or self.rollouts, 300), PLACE, repository, lambda: self.now)
        self.gate = Gate(
            endpoints, server.database, "default", self.seen.append, wall=lambda: self.now, steady=lambda: self.now
        )
        self.tokens: dict[str, str] = {}

    # What operators have done

    def add(self, device_id: str, fleet: str | None = None) -> str:
        """Adds a device and gives it a token."""
        with self.server.database.write() as session:
            devices.add(session, device_id, "", NOW)
            self.tokens[device_id] = credentials.make_target(session, device_id, NOW).text
            if fleet is not None:
                session.add(FleetMember(fleet_id=fleet, device_id=device_id))
        return self.tokens[device_id]

    def fleet(self, fleet_id: str, rank: int = 1, **policy: Any) -> None:
        with self.server.database.write() as session:
            session.add(
                Fleet(id=fleet_id, name="", tags="[]", selection=None, rank=rank, policy=json.dumps(policy), configuration=None,
                      created_at=NOW, updated_at=NOW, revision=1)
            )  # fmt: skip

    def publish(self, path: str = PATH, version: str = VERSION, kind: str = "swu", content: bytes = PACKAGE) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        product, _, name = path.partition("/")
        file = self.repository / "targets" / product / f"{sha256}.{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        with self.server.database.write() as session:
            session.add(
                UpdatePackage(path=path, product=product, version=version, build_id=f"ci-{version}", kind=kind,
                              hardware='["pos-x200"]', sha256=sha256, length=len(content), role="releases",
                              published_at=NOW, updated_at=NOW)
            )  # fmt: skip

    def order(self, device_id: str, path: str = PATH, version: str = VERSION, fleet: str = "shops") -> None:
        self.rollouts.orders[device_id] = Order(f"r-{version}", fleet, path)

    def state(self, number: int) -> str:
        with self.server.database.read() as session:
            action = session.get(DdiAction, number)
            assert action is not None
            return action.state

    # What a device asks

    def ask(
        self,
        method: str,
        path: str,
        device: str | None = None,
        body: Any = None,
        *,
        peer: Peer | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        raw: bytes | None = None,
    ) -> Response:
        """One request.

        Args:
            method: of HTTP.
            path: with the query; behind `BASE` if it does not begin with `/`.
            device: whose token it has; None for none.
            body: becomes JSON.
            peer: the client certificate of the connection.
            headers: further ones.
            raw: the body as it is.
        """
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        sent = [(name.lower().encode(), value.encode()) for name, value in headers]
        if device is not None:
            sent.append((b"authorization", f"TargetToken {self.tokens[device]}".encode()))
        if content and not any(name == b"content-type" for name, _ in sent):
            sent.append((b"content-type", b"application/json"))
        target, _, query = (path if path.startswith("/") else f"{BASE}/{path}").partition("?")
        scope: dict[str, Any] = {
            "type": "http", "method": method, "raw_path": target.encode(), "path": target, "query_string": query.encode(),
            "headers": sent, "client": ("192.0.2.7", 5), "extensions": {} if peer is None else {PEER_EXTENSION: peer},
        }  # fmt: skip
        return asyncio.run(_asked(self.gate, scope, content))

    def poll(self, device: str) -> dict[str, Any]:
        """What a device is told at a poll; each comes after a pause."""
        self.now += 60
        response = self.ask("GET", device, device)
        assert response.status == 200, response.body
        found: dict[str, Any] = response.json
        return found

    def offered(self, device: str) -> int:
        """The number of the action that a device is shown."""
        href = self.poll(device)["_links"]["deploymentBase"]["href"]
        return int(href.rpartition("/")[2].partition("?")[0])

    def feedback(self, device: str, number: int, execution: str, finished: str = "none", **more: Any) -> Response:
        status = {"execution": execution, "result": {"finished": finished}, "details": more.pop("details", [])}
        return self.ask("POST", f"{device}/deploymentBase/{number}/feedback", device, {"status": status, **more})

    def attributes(self, device: str, mode: str | None = None, **data: str) -> Response:
        named = {name.replace("__", "."): value for name, value in data.items()}
        return self.ask("PUT", f"{device}/configData", device, {"data": named, **({} if mode is None else {"mode": mode})})


async def _asked(gate: Gate, scope: dict[str, Any], content: bytes) -> Response:
    status, headers, body, sent = 0, {}, bytearray(), False
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await never.wait()
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update({name.decode(): value.decode() for name, value in message["headers"]})
        else:
            body.extend(message.get("body", b""))

    await gate(scope, receive, send)
    return Response(status, headers, bytes(body))


@pytest.fixture
def world(tmp_path: Path, founded: Callable[[str | None], Path]) -> Iterator[World]:
    """On SQLite, with a fleet `shops` and a device `till-1` in it, and a package."""
    shutil.copytree(founded(None), tmp_path, dirs_exist_ok=True)
    made = tmp_path / "server"
    write_atomic(made / SETTINGS, settings_of(Place(made, sqlite_url(made / "server.db"), str(made / "master.key"))))
    server = open_server(made)
    found = World(server, tmp_path / "updates")
    found.fleet("shops")
    found.add("till-1", "shops")
    found.publish()
    yield found
    server.close()
