"""What the agent says of the program that runs, and of certificates that somebody asks about."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentd import VERSION
from agentd.admin.handlers.access_handlers import AccessHandlers
from agentd.admin.handlers.system_handlers import SystemHandlers
from common.version import build_of
from ipc.messages import CertificateCheck, SystemInfo
from ipc.peer import Peer
from tests.agentd.admin.world import AdminSocket, run

PEER = Peer(1000, 1000, 77)


def test_the_running_program_says_which_it_is_and_since_when() -> None:
    now = [1000.0]
    handlers = SystemHandlers(bytes(range(16)), lambda: now[0])
    now[0] += 61.9
    reply = asyncio.run(handlers.table()[SystemInfo](SystemInfo(v=1, id=1), PEER))
    assert reply == {"agent_version": VERSION, "build": None, "uptime_s": 61, "boot_id": bytes(range(16))}


@pytest.mark.parametrize(
    ("path", "build"),
    [
        ("/usr/lib/license-agent/0.1.0+7.gabc~deb12/common/version.py", "0.1.0+7.gabc~deb12"),
        ("/usr/lib/license-agent-manage/0.2.0/common/version.py", "0.2.0"),
        ("/usr/lib/python3/dist-packages/common/version.py", None),
        ("/home/ann/license-agent/common/version.py", None),
    ],
)
def test_the_build_is_the_package_of_the_tree(path: str, build: str | None) -> None:
    assert build_of(Path(path)) == build


@pytest.mark.system
@pytest.mark.parametrize("first", ["settle", "revoke"])
def test_what_is_revoked_while_the_agent_seals_that_certificates_are_required_stays_revoked(tmp_path: Path, first: str) -> None:
    async def work(world: AdminSocket) -> None:
        keep, lost = world.store.keep, "ab" * 32

        async def slowly(event: str, changes: dict[str, Any], **fields: Any) -> None:
            for _turn in range(5):  # the TPM takes its time
                await asyncio.sleep(0)
            await keep(event, changes, **fields)

        world.store.keep = slowly  # type: ignore[method-assign]
        todo = [world.access.settle(), world.access.revoke((lost,), {"uid": 0})]
        await asyncio.gather(*(todo if first == "settle" else reversed(todo)))
        assert world.access.kept.revoked == (lost,) and world.access.kept.latched

    run(tmp_path, work)


@pytest.mark.system
def test_revoked_certificates_are_told_and_no_others(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        handle = AccessHandlers(world.access).table()[CertificateCheck]
        lost, kept = "ab" * 32, "cd" * 32
        await world.access.revoke((lost,), {"uid": 0})
        assert await handle(CertificateCheck(v=1, id=1, digests=(kept, lost)), PEER) == {"revoked": [lost]}
        assert await handle(CertificateCheck(v=1, id=1, digests=(kept,)), PEER) == {"revoked": []}

    run(tmp_path, work)
