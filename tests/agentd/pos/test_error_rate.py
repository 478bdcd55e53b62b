"""Requests that are answered with an error count against the rate limit like all others."""

from pathlib import Path

import msgpack
import pytest

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.file import AuditFile
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig, PosConfig
from agentd.pos.service import PosService
from audittrail.chain import Chain
from hwsec.vault import Vault
from ipc.bounds import THROTTLE_S
from ipc.clientwire import decode_reply
from ipc.errors import ErrorCode, RemoteProtocolError
from ipc.peer import Peer
from tests.agentd.world import core_of


class Caller:
    peer = Peer(5, 5, 1)

    def __init__(self) -> None:
        self.throttled = 0.0

    def throttle(self, seconds: float) -> None:
        self.throttled = seconds


def test_a_flood_of_bad_requests_is_limited(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "audit.log")
    file.open()
    clock = Clock(lambda: 1.8e9, lambda: 10.0)
    audit = AuditLog(file, Chain(), CoalescedEvents(tmp_path / "repeats"), clock, AuditConfig(), lambda: None)
    config = PosConfig(frozenset({5}), rate_per_s=3)
    vault = Vault()
    service = PosService(config, core_of(clock, audit, vault), None)  # type: ignore[arg-type]
    caller, codes = Caller(), []
    for _ in range(5):
        reply = service.handle(msgpack.packb({"v": 1, "id": 1, "op": "nonsense"}), caller)  # type: ignore[arg-type]
        assert reply is not None
        with pytest.raises(RemoteProtocolError) as caught:
            decode_reply(reply[4:], 1)
        codes.append(caught.value.code)
    assert codes == [ErrorCode.UNKNOWN_OP] * 3 + [ErrorCode.RATE_LIMITED] * 2
    assert caller.throttled == THROTTLE_S
    audit.close()
    vault.close()
