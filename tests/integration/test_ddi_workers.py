"""Two processes serve devices that speak DDI, on PostgreSQL: a block counts in each of them, on connections that are open."""

import http.client
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from server.base.settings import SETTINGS
from server.fleet.ddi import credentials, devices
from server.fleet.devices import blocklist
from server.registry.models.fleets import DeviceSeen
from tests.support.apiserver import ApiServer
from tests.support.postgres import Postgres
from tests.support.swupdates import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def server(postgres: Postgres, tmp_path: Path) -> Iterator[tuple[ApiServer, str]]:
    with postgres.database() as url, ApiServer.made(tmp_path / "server", url) as made:
        settings, port = tmp_path / "server" / SETTINGS, free_port()
        settings.write_text(settings.read_text() + f'[ddi]\nlisten = "127.0.0.1:{port}"\nurl = "https://127.0.0.1:{port}"\n')
        made.start("--workers", "2")
        yield made, f"https://127.0.0.1:{port}"


def test_a_block_counts_in_every_process(server: tuple[ApiServer, str]) -> None:
    made, url = server
    now = int(time.time())
    with made.server_side() as side, side.database.write() as session:
        devices.add(session, "till-1", "", now)
        token = credentials.make_target(session, "till-1", now).text
    context = ssl.create_default_context(cadata=made.root)
    context.check_hostname = False
    address = urlsplit(url)
    clients = [http.client.HTTPSConnection(address.hostname or "", address.port, context=context) for _ in range(6)]

    def ask(client: http.client.HTTPSConnection) -> int:
        client.request("GET", "/default/controller/v1/till-1", headers={"Authorization": f"TargetToken {token}"})
        response = client.getresponse()
        response.read()
        return response.status

    def seen() -> int | None:
        with made.server_side() as side, side.database.read() as session:
            row = session.get(DeviceSeen, "till-1")
            return None if row is None else row.at

    assert [ask(client) for client in clients] == [200] * 6
    assert wait_until(seen, "nobody wrote when the device was seen") >= now
    with made.server_side() as side, side.database.write() as session:
        blocklist.block(session, side.server.agents, "till-1", now)
    assert [ask(client) for client in clients] == [401] * 6
    for client in clients:
        client.close()
