"""2,000 virtual machines at a real server: a rollout with a bad build stops and goes back, and all come back from an outage."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apiserver import ApiServer
from tests.support.postgres import Postgres
from tests.support.virtualfleet import (
    ManyMachines,
    Size,
    a_bad_build_is_stopped,
    all_come_back_from_an_outage,
    socket_of,
)

pytestmark = pytest.mark.system
SIZE = Size(machines=2000, enrolled=3, groups=(20, 30, 60), connections=16, asking=200)


@pytest.fixture
def world(postgres: Postgres) -> Iterator[ManyMachines]:
    with postgres.database() as url, tempfile.TemporaryDirectory(prefix="la-") as name:
        directory = Path(name)
        with ApiServer.made(directory / "server", url, unix=socket_of(directory)) as server:
            server.start()
            yield ManyMachines(server, SIZE)


def test_a_bad_build_stops_in_its_group_and_all_come_back_from_an_outage(world: ManyMachines) -> None:
    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")

    asyncio.run(world.enter())
    a_bad_build_is_stopped(world, say)
    all_come_back_from_an_outage(world, say)
