"""The operator API in several processes on one PostgreSQL: a request with a key is done once, and no limit is there twice."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.accounts import tokens
from server.accounts.roles import Role
from server.base.limits import AGENT_RATE
from server.registry.allowance import LOT, LOT_REFILL_S
from tests.support.apiserver import ApiServer
from tests.support.operators import Operators
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

WORKERS = 2


@pytest.fixture(scope="module")
def operators(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    directory: Path = tmp_path_factory.mktemp("several") / "server"
    with postgres.database() as url, ApiServer.made(directory, url) as made:
        made.start("--operators", "127.0.0.1:0", "--workers", str(WORKERS))
        made.operators = f"https://127.0.0.1:{port_of(made)}/operator/v1"
        yield Operators(made, tmp_path_factory.mktemp("files"))


def port_of(server: ApiServer) -> str:
    """The workers say where they serve, each in a line of its own."""

    def lines() -> list[str]:
        return [line for line in server.log().splitlines() if "operator API: " in line]

    wait_until(lambda: len(lines()) == WORKERS, "not all workers serve")
    ports = {line.partition("operator API: 127.0.0.1:")[2].partition('"')[0] for line in lines()}
    (port,) = ports
    return port


def test_one_request_with_one_key_is_done_once_whichever_process_gets_it(operators: Operators) -> None:
    token = operators.program("shop", Role.SUPPORT, ["enrollment:read", "enrollment:write"])
    clients = [operators.client(token=token) for _ in range(8)]
    start, texts = threading.Barrier(len(clients)), []

    def send(client: httpx.Client) -> None:
        start.wait()
        made = client.post("/enrollment-tokens", json={}, headers={"idempotency-key": "once"})
        texts.append((made.status_code, made.json().get("text")))

    threads = [threading.Thread(target=send, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in texts} == {200}
    assert len({text for _, text in texts}) == 1
    assert len(clients[0].get("/enrollment-tokens").json()["items"]) == 1
    for client in clients:
        client.close()


def test_a_revoked_token_counts_in_no_process(operators: Operators) -> None:
    token = operators.program("gone", Role.VIEWER, ["agents:read"])
    clients = [operators.client(token=token) for _ in range(6)]
    assert {client.get("/agents").status_code for client in clients} == {200}
    with operators.server.server_side() as side, side.database.write() as session:
        tokens.revoke(session, token.split("_")[1], "local", int(time.time()))
    assert {client.get("/agents").status_code for client in clients} == {401}
    for client in clients:
        client.close()


def test_an_account_has_one_allowance_in_all_processes(operators: Operators) -> None:
    token = operators.program("flood", Role.VIEWER, ["agents:read"])
    clients = [operators.client(token=token) for _ in range(6)]
    began, done = time.monotonic(), 0
    for number in range(200):
        done += clients[number % len(clients)].get("/me").status_code == 200
    seconds = time.monotonic() - began
    per_second = AGENT_RATE.per_second + WORKERS * LOT / LOT_REFILL_S
    most = AGENT_RATE.burst + WORKERS * LOT + per_second * (seconds + 1)
    assert done <= most
    assert done < 200
    for client in clients:
        client.close()
