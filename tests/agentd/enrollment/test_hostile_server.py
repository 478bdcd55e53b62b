"""A server that answers a provisioning with what its own forms allow and the agent cannot use."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.base.clock.clock import Clock
from agentd.base.config.config import parse_config
from agentd.enrollment.provisioning import Provisioner, ProvisioningOrder
from agentd.uplink.linkclient import LinkClient
from agentd.uplink.transport import LinkTransport, NoContact, NotTheServer
from contracts.enrollment.enrollment import Begun
from contracts.jose import b64encode
from contracts.keyset import SignedKeySet
from hwsec.owner import HardwareOwner
from ipc.errors import ErrorCode, LocalProtocolError
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice

OFF_CURVE = {"kty": "EC", "crv": "P-256", "x": b64encode(b"\x01" * 32), "y": b64encode(b"\x02" * 32)}


@pytest.fixture
def backend() -> MemoryBackend:
    made = MemoryBackend(MemoryDevice())
    made.create()
    return made


@pytest.fixture
def provisioner(tmp_path: Path) -> Provisioner:
    text = f'[tpm]\nenabled = false\nfallback_encrypted_storage = "{tmp_path}/state/secret.enc"\n'
    config = parse_config(f'{text}[paths]\nstate_dir = "{tmp_path}/state"\nlog_dir = "{tmp_path}/log"\n', "test")
    return Provisioner(config, HardwareOwner(), LinkClient(tmp_path / "link.sock"), Clock())


def begun(nonce: str) -> Begun:
    return Begun(agent_id="", request_id="0" * 32, issued_at=1, session="0" * 32, nonce=nonce)


@pytest.mark.parametrize("nonce", [b64encode(bytes(33)), b64encode(bytes(1024)), "=", "a"])
def test_a_nonce_that_cannot_be_certified(provisioner: Provisioner, backend: MemoryBackend, nonce: str) -> None:
    with pytest.raises(NotTheServer, match="malformed response"):
        provisioner._complete(backend, begun(nonce), "csr")


def test_an_enrollment_key_that_is_not_on_the_curve(provisioner: Provisioner, backend: MemoryBackend) -> None:
    class Content(msgspec.Struct):
        enrollment_keys: tuple[Any, ...]

    key_set: Any = SignedKeySet(Content((_Key(**OFF_CURVE),)), "root")  # type: ignore[arg-type]
    with pytest.raises(NotTheServer, match="enrollment key"):
        provisioner._begin(backend, ProvisioningOrder("https://server", "root", "token"), key_set)


class _Key(msgspec.Struct):
    kty: str
    crv: str
    x: str
    y: str
    kid: str = "key"


@pytest.mark.parametrize("when", ["open", "fetch"])
def test_what_may_not_be_sent_to_the_link_is_no_contact(when: str) -> None:
    """`LinkSession` documents LocalProtocolError; whoever asks for a contact knows NoContact only."""

    def refuses(*_arguments: Any, **_named: Any) -> Any:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "too long")

    async def work() -> None:
        link: Any = type("Link", (), {"session": refuses})()
        transport = LinkTransport(link, "server", "https://server", lambda: (), Clock())
        if when == "open":
            async with transport.open():
                pass
        else:
            transport._session = type("Session", (), {"fetch": refuses})()  # type: ignore[assignment]
            await transport("POST", "/api/v1/challenge", b"{}")

    with pytest.raises(NoContact):
        asyncio.run(work())
