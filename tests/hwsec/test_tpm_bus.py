"""Somebody between agent and TPM: reads nothing, and what he changes or repeats is noticed."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from hwsec.backend import Anchor
from hwsec.errors import BackendHung, BackendUnavailable, HwsecError, NotEnrolled
from hwsec.nv.budget import BURST
from hwsec.owner import HardwareOwner
from hwsec.tpm import TpmBackend
from tests.hwsec.auth_values import auth_values
from tests.hwsec.conftest import TpmMachine
from tests.hwsec.relay import Exchange, Relay
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

pytest.importorskip("tpm2_pytss")

# Part 2, 6.5.2
CREATE, UNSEAL, NV_READ, PCR_READ, RANDOM, SIGN, NV_DEFINE, START_SESSION = (
    0x153,
    0x15E,
    0x14E,
    0x17E,
    0x17B,
    0x15D,
    0x12A,
    0x176,
)
NV_WRITE, NV_EXTEND, ZGEN, LOAD = 0x137, 0x136, 0x154, 0x157
DECRYPT, ENCRYPT = 0x20, 0x40


def kek_of(backend: TpmBackend) -> bytes:
    with backend.kek() as kek:
        return bytes(kek.view)


@dataclass
class Tapped:
    machine: TpmMachine
    relay: Relay
    backend: TpmBackend


@pytest.fixture
def tapped(tpm: TpmMachine) -> Iterator[Tapped]:
    """An enrolled agent that reaches its TPM through a relay."""
    tpm.enroll().close()
    with Relay(tpm.swtpm.port) as relay:
        made = Tapped(tpm, relay, tpm.over(relay.tcti))
        made.backend.open()
        try:
            yield made
        finally:
            relay.answer = lambda exchange: exchange.response
            made.backend.close()  # not one that a test has replaced: its call still uses it


def response_sessions(exchange: Exchange) -> list[int]:
    """Attributes of the sessions in a response (Part 1, 18.10): behind the parameters, nonce, attributes, HMAC for each."""
    response = exchange.response
    assert response[:2] == b"\x80\x02", "a response without sessions"
    size = 14 if exchange.code == LOAD else 10  # behind the handle, where there is one
    position = size + 4 + int.from_bytes(response[size : size + 4], "big")
    found = []
    while position < len(response):
        position += 2 + int.from_bytes(response[position : position + 2], "big")
        found.append(response[position])
        position += 1
        position += 2 + int.from_bytes(response[position : position + 2], "big")
    return found


# Reading


def test_neither_kek_nor_any_auth_value_is_to_be_read(tpm: TpmMachine) -> None:
    with Relay(tpm.swtpm.port) as relay:
        backend = tpm.over(relay.tcti)
        backend.create()
        backend.write_anchor(Anchor(1, bytes(range(32))))
        backend.read_anchor()
        backend.extend_audit(b"head")
        backend.certify_audit(b"nonce")
        backend.sign(b"message")
        with backend.agree(backend.agreement_public()) as shared:
            secrets = [bytes(shared.view)]
        backend.rebind(backend.binding)
        point = backend.agreement_public()
        kek = kek_of(backend)
        secrets += [kek, *auth_values(tpm.objects, kek).values()]
        backend.status()
        backend.close()
    seen = b"|".join(part for exchange in relay.log for part in exchange)
    assert len(relay.log) > 50
    assert point[1:33] in seen, "the relay sees nothing"
    assert b"nonce" not in seen
    for number, secret in enumerate(secrets):
        assert secret not in seen, f"secret {number}"
        assert secret[:16] not in seen, f"secret {number}, first half"
    unsealed = relay.of(UNSEAL)
    assert len(unsealed) >= 3
    answers = set()
    for exchange in unsealed:
        assert response_sessions(exchange)[0] & ENCRYPT
        answers.add(exchange.response[16:48])
    assert len(answers) == len(unsealed), "the same bytes twice: not encrypted, or with the same key"
    for code in (CREATE, NV_DEFINE):
        assert relay.of(code)
        for exchange in relay.of(code):
            assert response_sessions(exchange)[0] & DECRYPT


REFUSALS: dict[str, Callable[[TpmBackend], object]] = {
    "an index that was never written": lambda b: b.read_audit(),
    "a point that is not on the curve": lambda b: b.agree(b"\x04" + b"\x01" * 64),
    "a key of somebody else": lambda b: b._tpm.run(lambda e: e.unseal(b._tpm.srk, session1=b._tpm.session)),
    "an index that is not there": lambda b: b._tpm.run(lambda e: e.tr_from_tpmpublic(0x01000001)),
    "too many random bytes": lambda b: b._tpm.run(lambda e: e.hash(b"x" * 8, 0xFFFF, session1=b._tpm.session)),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_we_send_stays_encrypted_after_a_refusal(tapped: Tapped, refusal: str) -> None:
    """tpm2-tss forgets the attributes of a session when a command is refused."""
    backend = tapped.backend
    with contextlib.suppress(HwsecError, ValueError):
        REFUSALS[refusal](backend)
    del tapped.relay.log[:]
    backend.write_anchor(Anchor(1, bytes(range(32))))
    backend.extend_audit(b"head of the log")
    backend.sign(b"message")
    with backend.agree(backend.agreement_public()):
        pass
    backend.rebind(backend.binding)
    for code in (NV_WRITE, NV_EXTEND, SIGN, ZGEN, LOAD, CREATE):
        assert tapped.relay.of(code), hex(code)
        for exchange in tapped.relay.of(code):
            assert response_sessions(exchange)[0] & DECRYPT, hex(code)
    assert not any(b"head of the log" in exchange.command for exchange in tapped.relay.log)


def test_each_unsealing_has_a_session_of_its_own(tapped: Tapped) -> None:
    kek_of(tapped.backend)
    before = len(tapped.relay.of(START_SESSION))
    for _time in range(3):
        kek_of(tapped.backend)
    assert len(tapped.relay.of(START_SESSION)) == before + 3


def test_what_looks_random_is_not_only_the_tpms(tapped: Tapped) -> None:
    """The TPM's part crosses the bus encrypted, and is mixed with the kernel's."""
    drawn = tapped.backend.random(32)
    for exchange in tapped.relay.of(RANDOM):
        assert drawn not in exchange.response
        assert response_sessions(exchange)[0] & ENCRYPT


# Changing


class Changer:
    """Flips a bit of each response to one command."""

    def __init__(self, code: int, position: int) -> None:
        self.code = code
        self.position = position
        self.changed = 0

    def __call__(self, exchange: Exchange) -> bytes:
        if exchange.code != self.code or not exchange.succeeded:
            return exchange.response
        self.changed += 1
        at = self.position % len(exchange.response)
        response = exchange.response
        return response[:at] + bytes([response[at] ^ 1]) + response[at + 1 :]


@pytest.mark.parametrize("position", [16, 17, 47, 50, -1, -20, -33])
def test_a_changed_unseal_response_is_noticed(tapped: Tapped, position: int) -> None:
    expected = kek_of(tapped.backend)
    changer = Changer(UNSEAL, position)
    tapped.relay.answer = changer
    with pytest.raises(BackendUnavailable):
        kek_of(tapped.backend)
    assert changer.changed
    tapped.relay.answer = lambda exchange: exchange.response
    assert kek_of(tapped.backend) == expected


@pytest.mark.parametrize("code", [NV_READ, RANDOM, SIGN, PCR_READ], ids=["NV_Read", "GetRandom", "Sign", "PCR_Read"])
@pytest.mark.parametrize("position", [17, -1])
def test_another_changed_response_is_noticed(tapped: Tapped, code: int, position: int) -> None:
    backend = tapped.backend
    backend.write_anchor(Anchor(1, bytes(32)))
    changer = Changer(code, position)
    tapped.relay.answer = changer
    use = {
        NV_READ: backend.read_anchor,
        RANDOM: lambda: backend.random(32),
        SIGN: lambda: backend.sign(b"message"),
        PCR_READ: lambda: backend.read_pcrs([7]),
    }[code]
    with pytest.raises(HwsecError):
        use()
    assert changer.changed


def test_another_code_in_a_response_is_a_typed_state(tapped: Tapped) -> None:
    """Error responses have no HMAC: the bus can always pretend that something fails, and gains nothing but that."""
    for code in (0x98E, 0x99D, 0x128, 0x903, 0x921, 0x14A, 0x18B, 0x9A2, 0xFFF):
        answer = b"\x80\x01" + (10).to_bytes(4, "big") + code.to_bytes(4, "big")
        tapped.relay.answer = lambda exchange, answer=answer: answer if exchange.code == UNSEAL else exchange.response
        with pytest.raises(HwsecError):
            kek_of(tapped.backend)
        tapped.relay.answer = lambda exchange: exchange.response
        assert kek_of(tapped.backend)


# Repeating


@pytest.mark.parametrize("code", [UNSEAL, NV_READ, PCR_READ], ids=["Unseal", "NV_Read", "PCR_Read"])
def test_a_repeated_response_is_noticed(tapped: Tapped, code: int) -> None:
    """Of NV_Read it would be a rollback, of PCR_Read another state of the machine."""
    backend = tapped.backend
    use = {
        UNSEAL: lambda: kek_of(backend),
        NV_READ: lambda: backend.read_anchor(),
        PCR_READ: lambda: backend.read_pcrs([7]),
    }[code]
    backend.write_anchor(Anchor(1, bytes(32)))
    use()
    old = tapped.relay.of(code)[-1].response
    backend.write_anchor(Anchor(2, bytes(32)))
    backend.increment()
    tapped.relay.answer = lambda exchange: old if exchange.code == code and exchange.succeeded else exchange.response
    with pytest.raises(BackendUnavailable):
        use()
    tapped.relay.answer = lambda exchange: exchange.response
    assert backend.read_anchor()[0] == Anchor(2, bytes(32))


# Holding back


def test_a_backend_that_hangs_can_be_replaced(tapped: Tapped) -> None:
    """The abandoned call keeps its connection; the new backend has one of its own, and the same settings."""
    hanging = tapped.backend
    expected = kek_of(hanging)
    hanging.increment()
    owner = HardwareOwner()

    async def scenario() -> bytes:
        tapped.relay.hold()
        with pytest.raises(BackendHung):
            await owner.run(lambda: kek_of(hanging), 0.2)
        # What is held stays held: the old call must not wake up and flush what is no longer its own.
        tapped.relay.pass_what_comes()
        fresh = tapped.backend = hanging.replace()
        assert fresh._tpm is not hanging._tpm

        def use() -> bytes:
            fresh.open()
            return kek_of(fresh)

        return await owner.run(use, 20.0)

    assert asyncio.run(scenario()) == expected
    status = tapped.backend.status()
    assert status.nv_writes == 1
    assert status.nv_budget_left == BURST - 1


def test_closing_a_backend_that_hangs_touches_nothing_it_works_with(tapped: Tapped) -> None:
    """Freed under a running call, the TPM library would take the whole process with it."""
    ended: list[BaseException] = []

    def use() -> None:
        try:
            kek_of(tapped.backend)
        except HwsecError as error:
            ended.append(error)

    arrived = len(tapped.relay.log)
    tapped.relay.hold()
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    while len(tapped.relay.log) == arrived:
        thread.join(0.001)
    tapped.backend.close()
    tapped.backend.close()
    with pytest.raises(NotEnrolled):
        kek_of(tapped.backend)
    tapped.relay.__exit__(None, None, None)
    thread.join(READY_S)
    assert len(ended) == 1


def test_a_relay_that_ends_is_a_typed_state(tapped: Tapped) -> None:
    before = len(os.listdir("/proc/self/fd"))
    tapped.relay.__exit__(None, None, None)
    for _time in range(2):
        with pytest.raises(BackendUnavailable):
            kek_of(tapped.backend)
    assert not tapped.backend.status().available
    assert len(os.listdir("/proc/self/fd")) <= before
