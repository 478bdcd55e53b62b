"""Several processes on one PostgreSQL: revocation, limits, repeated requests, crashes, reload and stop, with real TLS."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.exchange import RefusalCode, Refused, SecretStatus, StatusReply
from server.base.limits import AGENT_RATE
from server.registry.allowance import LOT
from tests.support.apiclient import PREFIX, Device
from tests.support.apiserver import ApiServer
from tests.support.ownpostgres import OwnPostgres
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

WORKERS = 3
STATUS: dict[str, Any] = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1}


class Several(ApiServer):
    """A server with workers."""

    def workers(self) -> list[int]:
        assert self._process is not None
        return [int(word) for word in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()]

    def worker_of(self, client: httpx.Client) -> int:
        """The process that a client's connection belongs to."""
        (own,) = [each.get_extra_info("client_addr")[1] for each in _streams(client)]
        for pid in self.workers():
            inodes = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if _is_socket(path)}
            for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[2].split(":")[1], 16) == own and f"socket:[{fields[9]}]" in inodes:
                    return pid
        raise AssertionError


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(path).startswith("socket:")
    return False


def _streams(client: httpx.Client) -> list[Any]:
    pool = client._transport._pool  # type: ignore[attr-defined]
    return [each._connection._network_stream for each in pool.connections if not each.is_closed()]


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    with postgres.database() as url, Several.made(tmp_path_factory.mktemp("server") / "s", url) as made:
        assert isinstance(made, Several)
        made.start("--ops", "127.0.0.1:0", "--workers", str(WORKERS))
        made.wait_for(f'"workers":{WORKERS}')
        yield made


@pytest.fixture
def device(server: Several, tmp_path: Path) -> Device:
    made = Device(server.base, server.root, tmp_path)
    made.provision(server.claim(), server.pins)
    return made


@contextlib.contextmanager
def a_client_of_each(server: Several, device: Device) -> Iterator[list[httpx.Client]]:
    """A client of each worker, with its connection open."""
    found: dict[int, httpx.Client] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(device.client())
            client.get(f"{PREFIX}/key-set").raise_for_status()
            found.setdefault(server.worker_of(client), client)
            if len(found) == WORKERS:
                break
        assert len(found) >= 2, "all connections went to one worker"
        yield list(found.values())


def test_a_revoked_agent_is_refused_by_every_process_from_the_next_request_on(server: Several, device: Device) -> None:
    with a_client_of_each(server, device) as clients:
        for client in clients:
            request = device.request(SecretStatus, device.challenge(client), **STATUS)
            assert device.read(device.post(client, request), StatusReply, request.request_id).secret_version == 0
        server.revoke(device.agent_id)
        for client in clients:
            challenge = client.post(f"{PREFIX}/challenge", json={})
            assert challenge.status_code == 200  # it learns why by a request
            request = device.request(SecretStatus, challenge.json()["challenge"], **STATUS)
            response = device.post(client, request)
            with pytest.raises(Refused) as caught:
                device.read(response, StatusReply, request.request_id)
            assert caught.value.refusal.code is RefusalCode.AGENT_REVOKED


def test_a_request_that_comes_to_two_processes_acts_once_and_gets_one_reply(server: Several, device: Device) -> None:
    with a_client_of_each(server, device) as clients:
        first = device.request(SecretStatus, device.challenge(clients[0]), **STATUS)
        device.post(clients[0], first)  # the certificate has been used
        request = device.request(SecretStatus, device.challenge(clients[0]), **STATUS)
        text = {"request": device.sign(request)}
        replies = {client.post(f"{PREFIX}/secret-status", json=text).text for client in clients}
        assert len(replies) == 1
        device.read(httpx.Response(200, text=replies.pop()), StatusReply, request.request_id)


def test_the_limit_of_an_agent_holds_over_all_processes(server: Several, device: Device) -> None:
    with a_client_of_each(server, device) as clients:
        began, passed = time.monotonic(), 0
        for number in range(3 * AGENT_RATE.burst):
            passed += clients[number % len(clients)].post(f"{PREFIX}/challenge", json={}).status_code == 200
        seconds = time.monotonic() - began
    # One lot more for each process, and what came back meanwhile, whole lots of it at most one more.
    assert (
        passed <= AGENT_RATE.burst + (WORKERS - 1) * LOT + AGENT_RATE.per_second * seconds + WORKERS * (seconds / 4 + 1) + LOT
    )
    assert passed >= AGENT_RATE.burst - LOT


def test_a_worker_that_is_killed_comes_back_and_the_others_serve_on(server: Several, device: Device) -> None:
    before = server.workers()
    begins = len(server.log())
    os.kill(before[0], signal.SIGKILL)
    with device.client() as client:
        assert client.get(f"{PREFIX}/key-set").status_code == 200
    server.wait_for('"event":"a worker has ended"', begins)
    wait_until(lambda: len(server.workers()) == WORKERS, "no worker came back")
    server.wait_for('"event":"serving","listeners"', begins)
    assert before[0] not in server.workers() and set(before[1:]) < set(server.workers())


class Impatient(Several):
    """Replaces a worker that has been silent for three seconds."""

    program = (sys.executable, "-c", "import server.workers as w; w.SILENT_S = 3.0; from server.main import entry; entry()")


def test_a_worker_that_hangs_is_replaced_and_the_others_serve_on(postgres: Postgres, tmp_path: Path) -> None:
    with postgres.database() as url, Impatient.made(tmp_path / "s", url) as server:
        assert isinstance(server, Impatient)
        server.start("--workers", "2")
        server.wait_for('"workers":2')
        device = Device(server.base, server.root, tmp_path)
        halted, other = server.workers()
        begins = len(server.log())
        os.kill(halted, signal.SIGSTOP)
        server.wait_for("a worker gives no sign of life; it is killed", begins)
        wait_until(lambda: halted not in server.workers() and len(server.workers()) == 2, "it was not replaced")
        assert other in server.workers()
        server.wait_for('"event":"serving","listeners"', begins)
        device.provision(server.claim(), server.pins)
        assert server.stop() == 0


def test_a_reload_reaches_every_worker(server: Several) -> None:
    begins = len(server.log())
    server.signal(signal.SIGHUP)
    reloaded = '"event":"the TLS certificate was reloaded"'
    wait_until(lambda: server.log()[begins:].count(reloaded) == WORKERS, "not every worker has reloaded")


def test_workers_end_with_the_process_that_started_them(server: Several, postgres: Postgres, tmp_path: Path) -> None:
    with postgres.database() as url, Several.made(tmp_path / "s", url) as other:
        assert isinstance(other, Several)
        other.start("--workers", "2")
        other.wait_for('"workers":2')
        pids = other.workers()
        other.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "a worker has stayed")
        other.start("--workers", "2")
        other.wait_for('"workers":2', len(other.log()) - 1)
        pids = other.workers()
        assert other.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_sqlite_has_one_process(tmp_path: Path) -> None:
    with ApiServer.made(tmp_path / "s") as one:
        said = one.fails("serve", "--bind", "127.0.0.1:0", "--workers", "2")
        assert "SQLite has one writer at a time" in said and "PostgreSQL" in said
        assert "for processes that" in one.fails("serve", "--bind", "127.0.0.1:0", "--worker", "77,88")


def test_more_workers_than_postgresql_has_connections_for_are_refused(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="la-", ignore_cleanup_errors=True) as place,
        OwnPostgres.made(Path(place), "max_connections=40") as postgres,
        ApiServer.made(tmp_path / "s", postgres.url) as one,
    ):
        said = one.fails("serve", "--bind", "127.0.0.1:0", "--workers", "3")
        assert "3 workers" in said and "PostgreSQL takes 37" in said and "at most 1 workers" in said
