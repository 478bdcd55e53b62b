"""One wrong answer of the TPM costs a fresh connection, and nothing else. Somebody who goes on gets no further than that."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from hwsec.backend import Anchor, BackendState
from hwsec.errors import BackendUnavailable, ForeignHardware, HwsecError, LockedOut, NvGone, UnreliableHardware
from hwsec.repetition import CONNECTIONS, QUIET_S, SPAN_S
from hwsec.tpm import NV_BASE, TpmBackend
from tests.hwsec.busfaults import FAULTS, Once, commands_of, flipped, leave_alone, refusal
from tests.hwsec.conftest import TpmMachine
from tests.hwsec.relay import Exchange, Relay
from tests.hwsec.test_tpm_bus import LOAD, NV_EXTEND, NV_READ, SIGN, kek_of
from tests.support.swtpm import Swtpm

pytestmark = pytest.mark.system

pytest.importorskip("tpm2_pytss")

GET_CAPABILITY, CREATE_PRIMARY, NV_READ_PUBLIC, READ_PUBLIC, NV_INCREMENT = 0x17A, 0x131, 0x169, 0x173, 0x134


@dataclass
class Life:
    """An enrolled agent behind a relay, over any number of starts."""

    machine: TpmMachine
    relay: Relay
    backend: TpmBackend

    def start(self) -> None:
        self.backend.close()
        self.backend = self.machine.over(self.relay.tcti)

    def start_for(self, use: str) -> None:
        """Starts, and opens the backend unless that is the use."""
        self.start()
        if use != OPENING:
            self.backend.open()

    # Its uses, after an open; what each gave, where it does not change.

    def audit(self) -> object:
        backend = self.backend
        before = backend.read_audit()
        extended = backend.extend_audit(b"head")
        assert extended == hashlib.sha256(before + b"head").digest()
        assert backend.read_audit() == extended, "it was extended once"
        return None

    def anchor(self) -> object:
        backend = self.backend
        anchor, count = backend.read_anchor()
        assert anchor is not None and anchor.generation == count
        backend.write_anchor(Anchor(count + 1, bytes(32)))
        assert backend.increment() == count + 1
        assert backend.read_anchor() == (Anchor(count + 1, bytes(32)), count + 1)
        return None

    def agreed(self) -> object:
        with self.backend.agree(self.backend.agreement_public()) as shared:
            return bytes(shared.view)

    def signed(self) -> object:
        return len(self.backend.sign(b"message"))

    def certified(self) -> object:
        return len(self.backend.certify_audit(b"nonce").signature)

    def hierarchies_open(self) -> object:
        status = self.backend.status()
        assert status.available, status.detail
        return status.hierarchies_open

    def all_uses(self) -> dict[str, object]:
        """Opens the backend and uses all of it."""
        return {name: use(self) for name, use in USES.items()}


OPENING = "open"
USES: dict[str, Callable[[Life], object]] = {
    OPENING: lambda life: life.backend.open(),
    "audit": Life.audit,
    "anchor": Life.anchor,
    "agreed": Life.agreed,
    "signature": Life.signed,
    "certification": Life.certified,
    "hierarchies": Life.hierarchies_open,
    "kek": lambda life: kek_of(life.backend),
    "hardware id": lambda life: life.backend.measure_hardware_id(),
    "endorsement": lambda life: life.backend.endorsement(),
    "clock": lambda life: life.backend.clock().reset_count,
    "policy number": lambda life: life.backend.policy_number(),
    "pcrs": lambda life: life.backend.read_pcrs([0, 7]),
}


@contextmanager
def living(tpm: TpmMachine) -> Iterator[Life]:
    backend = tpm.enroll()
    backend.write_anchor(Anchor(2, bytes(32)))
    backend.increment()
    backend.extend_audit(b"first")
    backend.close()
    with Relay(tpm.swtpm.port) as relay:
        made = Life(tpm, relay, tpm.over(relay.tcti))
        try:
            yield made
        finally:
            leave_alone(relay)
            made.backend.close()


@pytest.fixture
def life(tpm: TpmMachine) -> Iterator[Life]:
    with living(tpm) as made:
        yield made


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory, enrolled_tpm: Path) -> list[tuple[str, int, int]]:
    """Use, code and occurrence of the first and of the last response to each command that there is, in order of the uses."""
    machine = TpmMachine(tmp_path_factory.mktemp("counted") / "machine", enrolled_tpm)
    found: dict[tuple[int, str], tuple[str, int, int]] = {}
    try:
        with living(machine) as made:
            for name, use in USES.items():
                made.start_for(name)
                for code, count in commands_of(made.relay, partial(use, made)).items():
                    found.setdefault((code, "first"), (name, code, 1))
                    found[code, "last"] = name, code, count
    finally:
        machine.end()
    order = list(USES)
    return sorted(set(found.values()), key=lambda each: (order.index(each[0]), *each[1:]))


# One wrong answer


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_answer_is_asked_for_again(life: Life, responses: list[tuple[str, int, int]], fault: str) -> None:
    """To the first and to the last response of each command that there is; another use gets what it should afterwards."""
    life.start()
    expected = life.all_uses()
    others = cycle(USES)
    for name, code, occurrence in responses:
        case = f"{name}: {code:#x}, {occurrence}"
        life.start_for(name)
        once = Once(life.relay, FAULTS[fault], code, occurrence)
        assert USES[name](life) == expected[name], case
        assert once.happened, case
        leave_alone(life.relay)
        other = next(others)
        assert USES[other](life) == expected[other], f"{case}, then {other}"
        assert life.backend.status().state is BackendState.AVAILABLE, case
    assert len(responses) >= 20
    assert life.all_uses() == expected


def test_an_enrollment_survives_one_wrong_answer_to_each_command(tpm: TpmMachine) -> None:
    with Relay(tpm.swtpm.port) as relay:

        def enroll() -> None:
            for path in (tpm.objects, tpm.twin):
                path.unlink(missing_ok=True)
            backend = tpm.over(relay.tcti)
            try:
                backend.create()
                assert backend.read_anchor()[0] is None
                assert backend.read_audit() == bytes(32)
                assert backend.status().available
            finally:
                backend.close()

        for code, count in commands_of(relay, enroll).items():
            once = Once(relay, FAULTS["a bit of the code"], code, count)
            enroll()
            assert once.happened, hex(code)


# Who goes on


MADE_UP: dict[str, tuple[int, int, type[HwsecError]]] = {
    "an auth value that is refused": (NV_READ, 0x98E, ForeignHardware),
    "an index that was never written": (NV_READ, 0x14A, UnreliableHardware),
    "an index that is gone": (NV_READ_PUBLIC, 0x18B, UnreliableHardware),
    "objects of another TPM": (LOAD, 0x1DF, ForeignHardware),
    "a lockout": (LOAD, 0x921, LockedOut),
    "a fault": (NV_READ, 0x101, BackendUnavailable),
}


@pytest.mark.parametrize("what", MADE_UP)
def test_a_made_up_refusal_is_believed_only_after_repetition_over_time(life: Life, what: str) -> None:
    """Where the TPM can be asked to sign the opposite, it is never believed."""
    code, response, expected = MADE_UP[what]
    life.backend.open()
    expected_kek, anchor = kek_of(life.backend), life.backend.read_anchor()
    life.start()
    life.backend.open()
    begun, generation = life.machine.naps.monotonic(), life.backend._tpm.generation
    life.relay.answer = lambda exchange: refusal(response) if exchange.code == code else exchange.response
    with pytest.raises(expected):
        life.backend.read_anchor()
    assert life.machine.naps.monotonic() - begun >= SPAN_S
    assert life.backend._tpm.generation - generation >= CONNECTIONS - 1
    leave_alone(life.relay)
    assert life.backend.read_anchor() == anchor
    assert kek_of(life.backend) == expected_kek
    assert life.backend.status().available


def test_a_bus_that_stays_disturbed_is_a_state_that_ends_when_it_does(life: Life) -> None:
    backend = life.backend
    backend.open()
    before = backend.read_audit()
    life.relay.answer = lambda exchange: flipped(exchange, -1) if exchange.code == NV_READ else exchange.response
    with pytest.raises(UnreliableHardware, match="do not fit") as told:
        backend.read_audit()
    assert told.value.state is BackendState.UNRELIABLE
    status = backend.status()
    assert (status.available, status.state) == (False, BackendState.UNRELIABLE)
    assert "read_audit" in status.detail
    assert status.unfitting >= 5
    assert len(backend.sign(b"message")) == 64, "other calls go on"
    leave_alone(life.relay)
    assert backend.status().state is BackendState.UNRELIABLE, "for as long as an alert takes to be raised"
    life.machine.naps.sleep(QUIET_S)
    backend.sign(b"message")
    assert backend.status().available
    assert backend.read_audit() == before


def test_answers_that_change_are_not_believed(life: Life) -> None:
    codes = iter([0x98E, 0x18B, 0x14A, 0x921, 0x101] * 3)
    life.backend.open()
    life.relay.answer = lambda exchange: refusal(next(codes)) if exchange.code == SIGN else exchange.response
    with pytest.raises(UnreliableHardware):
        life.backend.sign(b"message")
    leave_alone(life.relay)
    assert life.backend.sign(b"message")
    assert life.backend.status().available, "the same call has got its answer"


@pytest.mark.parametrize("code", [NV_EXTEND, NV_INCREMENT], ids=["NV_Extend", "NV_Increment"])
@pytest.mark.parametrize("lost", [1, 3])
def test_an_effect_whose_answer_is_lost_happens_once(life: Life, code: int, lost: int) -> None:
    life.backend.open()
    left = [lost]

    def answer(exchange: Exchange) -> bytes:
        if exchange.code != code or not exchange.succeeded or not left[0]:
            return exchange.response
        left[0] -= 1
        return refusal(0x918)  # as if the session had been flushed before

    life.relay.answer = answer
    before, count = life.backend.read_audit(), life.backend.read_anchor()[1]
    del life.relay.log[:]
    if code == NV_EXTEND:
        assert life.backend.extend_audit(b"head") == hashlib.sha256(before + b"head").digest()
        assert life.backend.read_audit() == hashlib.sha256(before + b"head").digest()
    else:
        assert life.backend.increment() == count + 1
        assert life.backend.read_anchor()[1] == count + 1
    assert len(life.relay.of(code)) == 1


# What is so is still found


def test_another_tpm_is_named_after_repetition(life: Life, tmp_path_factory: pytest.TempPathFactory) -> None:
    with Swtpm(tmp_path_factory.mktemp("other")) as chip, Relay(chip.port) as relay:
        backend = life.machine.over(relay.tcti)
        begun = life.machine.naps.monotonic()
        with pytest.raises(ForeignHardware, match="another TPM"):
            backend.open()
        assert life.machine.naps.monotonic() - begun >= SPAN_S
        backend.close()


def test_an_index_that_is_gone_is_the_tpms_signed_word(life: Life) -> None:
    """Neither repetition nor time is needed."""
    life.backend.open()
    kek_of(life.backend)
    life.backend._tpm.run(lambda e: e.nv_undefine_space(e.tr_from_tpmpublic(NV_BASE + 3), session1=life.backend._tpm.session))
    slept = life.machine.naps.slept
    with pytest.raises(NvGone):
        life.backend.read_audit()
    assert life.machine.naps.slept == slept
    assert life.backend.status().state is BackendState.NV_GONE


def test_a_hidden_index_is_not_gone(life: Life) -> None:
    """The list of handles is authenticated: a changed one does not fit."""

    def hide(exchange: Exchange) -> bytes:
        index = (NV_BASE + 3).to_bytes(4, "big")
        return exchange.response.replace(index, (NV_BASE + 0x100).to_bytes(4, "big"))

    life.backend.open()
    life.relay.answer = lambda exchange: hide(exchange) if exchange.code == GET_CAPABILITY else exchange.response
    assert life.backend.status().state is BackendState.UNRELIABLE
    leave_alone(life.relay)
    assert life.backend.status().available
