"""The license server while its database fails: typed answers, metrics that go on, and nothing that was answered is lost."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from contracts.exchange import SecretStatus, StatusReply
from server.registry.models.core import KeptReply
from tests.support.apiclient import PREFIX, Device
from tests.support.apiserver import ApiServer
from tests.support.ownpostgres import OwnPostgres
from tests.support.waiting import READY_S, wait_until

STATUS: dict[str, Any] = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that PostgreSQL's user can reach."""
    with tempfile.TemporaryDirectory(prefix="la-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


class World:
    """A server on PostgreSQL or SQLite, and an agent that checks in again and again."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        server.start("--ops", "127.0.0.1:0")
        self.server = server
        self.device = Device(server.base, server.root, directory)
        self.device.provision(server.claim(), server.pins)
        self.client = self.device.client(patient=True)
        self.ops = httpx.Client(base_url=server.ops, trust_env=False, timeout=READY_S)
        self.answered: list[str] = []
        assert self.check_in() == self.check_in() == 200

    def close(self) -> None:
        self.client.close()
        self.ops.close()

    def check_in(self) -> int:
        """The status of a check-in; 503 comes with a reason and a time to come again."""
        response = self.client.post(f"{PREFIX}/challenge", json={})
        if response.status_code == 200:
            request = self.device.request(SecretStatus, response.json()["challenge"], **STATUS)
            response = self.device.post(self.client, request)
            if response.status_code == 200:
                self.device.read(response, StatusReply, request.request_id)
                self.answered.append(request.request_id)
        if response.status_code != 200:
            assert response.status_code == 503 and int(response.headers["retry-after"]) > 0, response.text
            assert response.json()["error"]["code"] == "unavailable"
        return response.status_code

    def metrics(self) -> str:
        response = self.ops.get("/metrics")
        assert response.status_code == 200 and 'license_server_requests_total{endpoint="secret-status"' in response.text
        return response.text

    def nothing_is_lost(self) -> None:
        with self.server.server_side() as side, side.database.read() as session:
            kept = set(session.scalars(select(KeptReply.request_id)))
        assert set(self.answered) <= kept


@contextlib.contextmanager
def world_on(url: str | None, directory: Path) -> Iterator[World]:
    with ApiServer.made(directory / "s", url) as server:
        world = World(server, directory)
        try:
            yield world
        finally:
            world.close()


def test_postgresql_is_restarted(place: Path, tmp_path: Path) -> None:
    (place / "pg").mkdir()
    with OwnPostgres.made(place / "pg") as postgres, world_on(postgres.url, tmp_path) as world:
        for _ in range(2):
            postgres.stop()
            assert [world.check_in() for _ in range(3)] == [503, 503, 503]
            assert "license_server_registry_up 0.0" in world.metrics()
            assert world.ops.get("/healthz").status_code == 200 and world.ops.get("/readyz").status_code == 503
            postgres.start()
            assert [world.check_in() for _ in range(3)] == [200, 200, 200]
            assert "license_server_registry_up 1.0" in world.metrics()
        world.nothing_is_lost()


def test_postgresql_has_no_connection_left(place: Path, tmp_path: Path) -> None:
    (place / "pg").mkdir()
    with (
        OwnPostgres.made(place / "pg", "max_connections=12", "superuser_reserved_connections=0") as postgres,
        world_on(postgres.url, tmp_path) as world,
        contextlib.ExitStack() as held,
    ):
        with postgres.connect() as own:
            own.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            with contextlib.suppress(Exception):
                for _ in range(12):
                    held.enter_context(postgres.connect())
        with contextlib.suppress(Exception):
            held.enter_context(postgres.connect())
        assert world.check_in() == 503
        assert "license_server_registry_up 0.0" in world.metrics()
        held.close()
        wait_until(lambda: world.check_in() == 200, "no check-in after connections were free again")
        world.nothing_is_lost()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_disk_is_full(place: Path, tmp_path: Path, kind: str) -> None:
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m,mode=0755", "none", disk], check=True)
    try:
        with contextlib.ExitStack() as stack:
            if kind == "sqlite":
                world = stack.enter_context(world_on(None, disk))
            else:
                (disk / "pg").mkdir()
                settings = ("max_wal_size=4MB", "min_wal_size=2MB")
                postgres = stack.enter_context(OwnPostgres.made(disk / "pg", *settings))
                world = stack.enter_context(world_on(postgres.url, tmp_path))
            ballast = disk / "ballast"
            fill(ballast)
            found = [world.check_in() for _ in range(40)]
            assert set(found) <= {200, 503}
            if kind == "sqlite":
                assert found[-1] == 503
            assert "license_server_registry_up" in world.metrics()
            ballast.unlink()
            wait_until(lambda: world.check_in() == 200, "no check-in after there was room again")
            world.nothing_is_lost()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    """Writes until nothing more has room."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
