"""Whatever state the hardware gets into while the daemon runs: licenses are validated, the state is told, a stop ends soon."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from agentd.base.clock.clock import Clock
from agentd.base.config.config import parse_config
from agentd.base.errors import StopError
from agentd.daemon import Daemon
from agentd.enrollment import by_hand
from agentd.sockets.connection import Hub
from agentd.wiring import assemble, connect
from contracts.jose import jwk_from_point
from hwsec.backend import BackendStatus
from hwsec.errors import (
    BackendUnavailable,
    ForeignHardware,
    HwsecError,
    LockedOut,
    NvGone,
    OutOfSessions,
    PcrMismatch,
    PcrUninitialized,
)
from hwsec.owner import HardwareOwner
from ipc.peer import Peer
from server.enrollment.by_hand import read_request
from server.licensing.licenses.licenses import Order
from server.wiring import Plan, create_server
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice
from tests.support.serverside import open_server
from tests.support.waiting import READY_S

ME = Peer(5, 5, 1)
ACTOR = {"uid": 0, "gid": 0, "pid": 1}


class FailingBackend(MemoryBackend):
    """Fails as it is told, in everything."""

    failure: type[HwsecError] | None = None

    def __getattribute__(self, name: str) -> Any:
        failure = object.__getattribute__(self, "failure")
        if failure is not None and not name.startswith("_") and name not in ("name", "failure", "close", "status"):
            raise failure("as the test wants it")
        return object.__getattribute__(self, name)

    def status(self) -> BackendStatus:
        failure = object.__getattribute__(self, "failure")
        if failure is None:
            return super().status()
        return BackendStatus("memory", False, "as the test wants it", True, state=failure.state)


class Caller:
    peer = ME

    def throttle(self, _seconds: float) -> None:
        raise AssertionError("nobody is too fast here")


@pytest.mark.parametrize(
    "failure", [BackendUnavailable, LockedOut, OutOfSessions, PcrMismatch, PcrUninitialized, NvGone, ForeignHardware]
)
def test_licenses_are_validated_through_every_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[HwsecError]
) -> None:
    for name in ("state", "log", "keys"):
        (tmp_path / name).mkdir()
    paths = "".join(f'{key} = "{tmp_path}/{name}"\n' for key, name in (("state_dir", "state"), ("log_dir", "log")))
    text = f'[agent]\nid = "pos-1"\n[tpm]\nenabled = false\nfallback_encrypted_storage = "{tmp_path}/state/secret.enc"\n'
    config = parse_config(text + f"[pos]\nallowed_uids = [5]\n[paths]\n{paths}", "test")
    device = MemoryDevice()
    made: list[FailingBackend] = []

    def make_backend(_config: Any, _vault: Any) -> FailingBackend:
        made.append(FailingBackend(device))
        return made[-1]

    monkeypatch.setattr(by_hand, "make_backend", make_backend)
    create_server(tmp_path / "server", Plan("server", ("localhost",), tmp_path / "root.key", None), int(time.time()))
    server = open_server(tmp_path / "server", lambda size: b"s" * size)
    by_hand.initialize(config, server.keys.trust())
    agreement = jwk_from_point(_opened(device).agreement_public())
    asked = read_request({"agent_id": "pos-1", "agreement_key": agreement, "backend": "tpm"})
    server.agents.enroll_by_hand("pos-1", None, "tpm", asked.keys, 1)
    now = int(time.time())
    delivery = server.secrets.rotate_by_hand("pos-1", now)
    orders = [Order(f"l-{n}", "s", ("f",), {}, now, now + 999) for n in range(4)]
    tokens = [server.licenses.issue("pos-1", order, now) for order in orders]

    async def main() -> None:
        owner, clock = HardwareOwner(), Clock()
        hub = Hub(clock.monotonic)
        agent = connect(await owner.run(lambda: assemble(config, clock, hub, owner, make_backend), 30))
        daemon, installer, store = Daemon(agent), agent.assembled.installer, agent.assembled.store
        await daemon.start()
        await installer.install(delivery, ACTOR)
        validate = _validator(daemon)
        assert validate(tokens[0])
        made[-1].failure = failure
        assert (await store.refresh_status()).state is failure.state
        assert validate(tokens[0]) and validate(tokens[1])
        for _ in range(3):
            await daemon.tick()
        with pytest.raises(HwsecError):
            await installer.install(server.secrets.rotate_by_hand("pos-1", now), ACTOR)
        with pytest.raises(HwsecError):
            await installer.invalidate(1, ACTOR)
        assert validate(tokens[0]) and validate(tokens[2])
        made[-1].failure = None
        assert (await store.refresh_status()).available
        await installer.install(server.secrets.rotate_by_hand("pos-1", now), ACTOR)
        assert validate(tokens[0])
        made[-1].failure = failure

        def fail(_descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        # The disk fails too, at the last moment.
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(StopError, match=r"audit\.log: Input/output error; the last records .* with 'dmesg'"):
                async with asyncio.timeout(READY_S):  # it waits for nothing that does not come
                    await daemon.finish()

    with contextlib.closing(server):
        asyncio.run(main())


def _opened(device: MemoryDevice) -> MemoryBackend:
    backend = MemoryBackend(device)
    backend.open()
    return backend


def _validator(daemon: Daemon) -> Callable[[str], bool]:
    counter = iter(range(1000))

    def validate(token: str) -> bool:
        number = next(counter)
        request = {"v": 1, "id": 1, "op": "validate_license", "token": token, "nonce": number.to_bytes(16, "big")}
        reply = daemon.pos.handle(msgpack.packb(request), Caller())  # type: ignore[arg-type]
        assert reply is not None
        valid: bool = msgpack.unpackb(reply[4:])["valid"]
        return valid

    return validate
