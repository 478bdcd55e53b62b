"""100,000 virtual machines at a server on PostgreSQL, by `scripts/soak fleet`: the assertions of the integration test."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.postgresql import postgresql
from tests.support.apiserver import ApiServer
from tests.support.virtualfleet import (
    ManyMachines,
    Size,
    a_bad_build_is_stopped,
    all_come_back_from_an_outage,
    socket_of,
)

pytestmark = pytest.mark.system
MACHINES = int(os.environ.get("SOAK_MACHINES", "100000"))
SIZE = Size(
    machines=MACHINES,
    enrolled=min(100, MACHINES // 10),
    groups=(MACHINES // 200, MACHINES // 100, MACHINES // 50),
    connections=min(512, max(16, MACHINES // 200)),
)


@pytest.fixture
def world() -> Iterator[ManyMachines]:
    # Durable commits on a disk, as a vendor has it: not the PostgreSQL of the other tests.
    with postgresql("shared_buffers=1GB", "max_wal_size=4GB") as url, tempfile.TemporaryDirectory(prefix="la-") as name:
        directory = Path(name)
        with ApiServer.made(directory / "server", url, unix=socket_of(directory)) as server:
            server.start("--workers", "2")
            yield ManyMachines(server, SIZE)


def test_a_fleet_of_many_machines(world: ManyMachines) -> None:
    began = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:7.1f} s  {line}\n")
        sys.stdout.flush()

    say(f"{SIZE.machines:,} machines, of them {SIZE.enrolled} enrolled over the wire; {SIZE.connections} connections")
    asyncio.run(world.enter())
    say("all are agents")
    a_bad_build_is_stopped(world, say)
    all_come_back_from_an_outage(world, say)
