"""A vendor's day, with curl as the client of the operator API: from a customer to a till that works, and what it is told of.

Server, link and agent are processes of their own; nobody carries a token to the till. On both databases.
"""

import csv
import io
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common.webhooksignature import verify
from server.accounts.roles import Role
from server.notify.signature import HEADER
from tests.support.apiclient import Device
from tests.support.chain import Chain, running_chain
from tests.support.operators import Operators
from tests.support.pki import DAY, SERVER, make
from tests.support.postgres import Postgres
from tests.support.tlspeer import TlsPeer, answer
from tests.support.waiting import READY_S, wait_until

YEAR = 365 * DAY
SOLD = 500
KINDS = ["license.assigned", "license.suspended", "license.reinstated", "license.renewed", "license.transferred"]


class Vendor:
    """Asks the operator API with curl.

    Args:
        chain: with the operators' listener.
        operators: of its server.
    """

    def __init__(self, chain: Chain, operators: Operators) -> None:
        self._base = chain.server.operators
        curl = shutil.which("curl")
        assert curl is not None, "install curl"
        self._curl = [curl, "--silent", "--show-error", "--fail-with-body", "--tlsv1.3", "--cacert", str(operators.root)]
        scopes = [f"{subject}:{right}" for subject in ("customers", "licenses", "products") for right in ("read", "write")]
        self._headers = ["--header", f"Authorization: Bearer {operators.program('webshop', Role.ISSUER, scopes)}"]

    def text(self, path: str, *options: str) -> str:
        command = [*self._curl, *self._headers, *options, self._base + path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=READY_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return json.loads(self.text(path, *([] if body is None else ["--json", json.dumps(body)])))


@pytest.fixture(params=["sqlite", "postgresql"])
def chain(request: pytest.FixtureRequest) -> Iterator[Chain]:
    with ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            cluster: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(cluster.database())
        yield stack.enter_context(running_chain(url=url, serve=("--operators", "127.0.0.1:0")))


@pytest.fixture
def receiver(chain: Chain, tmp_path: Path) -> Iterator[TlsPeer]:
    """A receiver of webhooks on loopback, which the server's settings allow and trust."""
    now = int(time.time())
    authority = make("receivers", authority=True, begins=now - DAY, ends=now + DAY)
    shop = make("shop", authority, hosts=["127.0.0.1"], usage=SERVER, begins=now - DAY, ends=now + DAY)
    trusted = tmp_path / "receivers.pem"
    trusted.write_text(authority.chain_pem)
    chain.server.stop()
    with (chain.server.directory / "settings.toml").open("a") as settings:
        settings.write(f'webhook_networks = ["127.0.0.0/8"]\nwebhook_ca = "{trusted}"\n')
    chain.start_server()
    (tmp_path / "peer").mkdir()
    with TlsPeer(tmp_path / "peer", shop, answer(b"ok", "200 OK", "Connection: close\r\n")) as made:
        yield made


def taken(receiver: TlsPeer, secret: str) -> list[tuple[int, str, str]]:
    """Numbers, kinds and subjects of the events that came, in their order; each with a right signature."""
    found = []
    for record in list(receiver.records):
        head, _, body = record.received.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        lower = {name.lower(): value for name, value in headers.items()}
        assert verify(lower[HEADER.lower()], body, secret, int(time.time()))
        assert not verify(lower[HEADER.lower()], body + b" ", secret, int(time.time()))
        event = json.loads(body)
        found.append((event["seq"], event["kind"], event["subject"]))
    return found


def test_a_vendors_day(chain: Chain, receiver: TlsPeer, tmp_path: Path) -> None:
    operators = Operators(chain.server, tmp_path)
    vendor = Vendor(chain, operators)
    with operators.client(operators.person("root", Role.ADMINISTRATOR)) as root:
        added = root.post("/webhooks", json={"url": f"https://127.0.0.1:{receiver.port}/hooks", "kinds": KINDS})
        assert added.status_code == 200, added.text
    secret: str = added.json()["secret"]

    # What is sold, and to whom
    vendor.ask("/customers", {"customer": "c-1042", "fields": {"name": "Corner Shop Ltd"}})
    vendor.ask("/sites", {"site": "main", "customer": "c-1042", "fields": {"address": "1 Main Street"}})
    vendor.ask("/products", {"product": "till", "name": "Till software"})
    vendor.ask("/policies", {"policy": "year", "product": "till", "name": "A year", "features": ["till"], "duration": YEAR})
    begun = time.perf_counter()
    sold = vendor.ask("/licenses/issue-many", {"count": SOLD, "batch": "day", "policy": "year", "site": "main"})
    print(f"{SOLD} licenses in one request over HTTPS: {time.perf_counter() - begun:.2f} s")
    assert (sold["issued"], sold["bad"]) == (SOLD, 0)

    # A till gets its license by contact, and loses and regains it
    def contact() -> None:
        wait_until(lambda: chain.asks("contact") == "", chain.log, pause_s=0.3)

    def required() -> tuple[bool, str]:
        contact()
        with chain.pos() as client:
            found = client.require("till")
            return found.valid, str(found.reason)

    one = "/licenses/day-0001"
    assert required() == (False, "no_license")
    assigned = vendor.ask(f"{one}/assign", {"agent_id": chain.agent_id})
    assert assigned["notices"] == [f"agent {chain.agent_id} gets it at its next contact"]
    assert required() == (True, "ok")
    with chain.pos() as client:
        assert client.require("till", "till").valid and not client.require("till", "kiosk").valid
    vendor.ask(f"{one}/suspend", {"reason": "invoice 4711 is overdue"})
    assert required() == (False, "suspended")
    vendor.ask(f"{one}/reinstate", {"reason": "paid"})
    assert required() == (True, "ok")
    renewed = vendor.ask(f"{one}/renew", {})
    assert renewed["expires"] == sold_until(vendor, "day-0002") + YEAR
    assert required() == (True, "ok")

    # Another till
    other = Device(chain.server.base, chain.server.root, tmp_path)
    other.provision(chain.server.claim(), chain.server.pins)
    moved = vendor.ask(f"{one}/transfer", {"agent_id": other.agent_id})
    assert moved["agent_id"] == other.agent_id
    assert required() == (False, "no_license")

    # Reports add up
    rows = list(csv.DictReader(io.StringIO(vendor.text("/reports/devices", "--header", "Accept: text/csv"))))
    active = {row["agent_id"]: int(row["active"]) for row in rows}
    assert active == {chain.agent_id: 0, other.agent_id: 1}
    ends = vendor.ask(f"/reports/expiry?limit=500&until={int(time.time()) + 2 * YEAR + DAY}")["items"]
    assert len(ends) == SOLD and ends[-1]["license_id"] == "day-0001"
    exported = vendor.text("/exports/licenses?limit=500&customer=c-1042", "--header", "Accept: text/csv")
    states = [row["state"] for row in csv.DictReader(io.StringIO(exported))]
    assert (states.count("active"), states.count("unassigned"), len(states)) == (1, SOLD - 1, SOLD)
    history = [each["event"] for each in vendor.ask(f"{one}/history")["items"]]
    assert history == ["issued", *(kind.removeprefix("license.") for kind in KINDS)]

    # The webhook's receiver got all of it, in order, and no name
    wait_until(lambda: len([record for record in receiver.records if record.done.is_set()]) >= len(KINDS), chain.log)
    events = taken(receiver, secret)
    assert [(kind, subject) for _seq, kind, subject in events] == [(kind, "day-0001") for kind in KINDS]
    assert events == sorted(events)
    kept = chain.server.log().encode() + b"".join(record.received for record in receiver.records)
    assert b"Corner Shop" not in kept and b"Main Street" not in kept


def sold_until(vendor: Vendor, license_id: str) -> int:
    """When a license ends."""
    end: int = vendor.ask(f"/licenses/{license_id}")["expires"]
    return end
