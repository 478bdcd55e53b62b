"""What monitoring asks again and again is counted; every other request of an administrator is a record of its own."""

import json
from pathlib import Path

from agentd.admin.service import AdminService
from agentd.base.config import ManagementConfig
from ipc.messages import Ping
from ipc.peer import Peer
from tests.agentd.pos.test_service import Till, run

ROOT = Peer(0, 0, 0)


def test_pings_are_counted_in_one_record(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        service = AdminService(ManagementConfig(), till.audit, till.counters, lambda: till.mono, {})
        for number in range(5):
            assert b"error" not in await service._reply(Ping(v=1, id=number), ROOT)
        till.audit.emit_counts()
        till.audit.flush()

    till = run(tmp_path, work)
    (record,) = [json.loads(line) for data in till.file.lines for line in data.splitlines()]
    assert (record["event"], record["op"], record["count"], record["actor"]["uid"]) == ("admin.request", "ping", 5, 0)
