"""Usage from till to report: counted offline, through kills of agent and server, and in the report once; real processes."""

import csv
import io
import os
from collections.abc import Iterator

import pytest
from license_agent_client import UsageCount

from tests.support.chain import Chain, running_chain
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        yield made


def contact(chain: Chain) -> None:
    wait_until(lambda: chain.asks("contact") == "", chain.log, pause_s=0.3)


def count(chain: Chain, amount: int, count_id: bytes | None = None) -> UsageCount:
    with chain.pos() as client:
        return client.count_usage("sales", amount, count_id=count_id)


def reported(chain: Chain) -> int:
    rows = csv.DictReader(io.StringIO(chain.server_cli("reports", "usage", "--sum", "--csv")))
    return sum(int(row["amount"]) for row in rows)


def test_usage_is_counted_offline_and_reported_once(chain: Chain) -> None:
    contact(chain)
    assert not count(chain, 1).counted
    chain.server_cli("issue", "--agent", chain.agent_id, "--license-id", "m", "--feature", "meter:sales", "--expires", "+9d")
    contact(chain)
    first = count(chain, 3)
    assert (first.counted, first.repeated, first.license_id) == (True, False, "m")
    contact(chain)
    assert reported(chain) == 3

    chain.kill_server()
    ids = [os.urandom(16) for _ in range(20)]
    for count_id in ids:
        assert not count(chain, 2, count_id).repeated
    chain.kill_agent()
    assert all(count(chain, 2, count_id).repeated for count_id in ids) and count(chain, 3, first.count_id).repeated
    chain.start_server()
    contact(chain)
    contact(chain)
    assert reported(chain) == 43
    chain.kill_agent()
    contact(chain)
    assert reported(chain) == 43
    records = chain.records("usage.counted")
    assert records and {record["license"] for record in records if record["outcome"] == "ok"} == {"m"}
