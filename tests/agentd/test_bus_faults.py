"""One wrong answer of the TPM stops no start, no rotation, no verification of the log and no invalidation."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.admin.handlers.audit_handlers import AuditHandlers
from agentd.base.alerts import TPM_UNAVAILABLE, TPM_UNRELIABLE
from contracts.exchange import Cause
from hwsec.backend import BackendState
from hwsec.errors import HwsecError, UnreliableHardware
from hwsec.repetition import QUIET_S
from hwsec.tpm import TpmBackend
from ipc.messages import AuditVerify
from ipc.peer import Peer
from tests.hwsec.busfaults import FAULTS, Once, commands_of, flipped, leave_alone
from tests.hwsec.conftest import TpmMachine
from tests.hwsec.relay import Relay
from tests.support.pair import Pair, first_pair

pytestmark = pytest.mark.system

pytest.importorskip("tpm2_pytss")

ME = Peer(5, 5, 1)
ACTOR = {"uid": 0, "gid": 0, "pid": 1}
NV_READ, SIGN = 0x14E, 0x15D
SOME = ("a bit of the code", "the HMAC", "an earlier answer", "TPM_RC_AUTH_FAIL", "TPM_RC_HANDLE", "TPM_RC_NV_UNINITIALIZED")


class Till:
    """A pair whose agent has a TPM, with somebody between the two."""

    def __init__(self, directory: Path, relay: Relay, machine: TpmMachine) -> None:
        self.relay = relay
        self.machine = machine
        self._backend: TpmBackend | None = None
        self.pair: Pair = first_pair(directory, self.backend(), self.backend)

    def backend(self) -> TpmBackend:
        self.close_backend()
        self._backend = self.machine.over(self.relay.tcti)
        return self._backend

    def close_backend(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def disconnect(self) -> None:
        assert self._backend is not None
        self._backend._tpm.disconnect()

    # What an administrator does

    def start(self) -> None:
        self.pair.restart_agent()
        asyncio.run(self.pair.agent.agent.assembled.checkpoint.make())

    def rotate(self) -> None:
        before = self.pair.agent.ring.newest
        self.pair.clock.seconds += 18 * 3600  # more versions than the server keeps alive would be refused
        # Asked for once a day: each time here, so that each run sends the same commands.
        self.pair.agent.cycle._negotiation._asked_at = None
        problem = self.pair.contact(Cause.FORCED)
        assert problem is None, problem
        after = self.pair.agent.ring.newest
        assert before is not None and after is not None and after.meta.version == before.meta.version + 1

    def verify(self) -> None:
        made = self.pair.agent.agent.assembled
        asyncio.run(made.checkpoint.make())
        handler = AuditHandlers(made.core.audit, made.keeper, made.checkpoint).table()[AuditVerify]
        found = asyncio.run(handler(AuditVerify(v=1, id=1), ME))
        assert found["ok"], found["problem"]

    def invalidate(self) -> None:
        made = self.pair.agent.agent.assembled
        oldest = next(each for each in made.store.ring.versions if each.secret is not None)
        asyncio.run(made.installer.invalidate(oldest.meta.version, ACTOR))

    def alerts(self) -> list[str]:
        self.pair.agent.core.audit.flush()
        return [line for line in self.pair.config.audit_log.read_text().splitlines() if '"alert.' in line]


USES: dict[str, Callable[[Till], None]] = {
    "start": Till.start,
    "rotate": Till.rotate,
    "audit verify": Till.verify,
    "invalidate": Till.invalidate,
}


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Till]:
    machine = TpmMachine(directory / "machine")
    try:
        with Relay(machine.swtpm.port) as relay:
            made = Till(directory, relay, machine)
            yield made
            leave_alone(relay)
            made.pair.close()
            made.close_backend()
    finally:
        machine.end()


@pytest.fixture
def till(tmp_path: Path) -> Iterator[Till]:
    with running(tmp_path) as made:
        yield made


class Used:
    """A till that is used in one way again and again.

    Attributes:
        commands: what the TPM is sent each time, and how often.
    """

    def __init__(self, till: Till, use: str) -> None:
        self.till = till
        self.act = USES[use]
        till.start()
        # What is learned and stored once: the server's capabilities, and which licenses there are.
        assert till.pair.contact() is None
        self.prepare()
        self.commands = commands_of(till.relay, lambda: self.act(till))

    def prepare(self) -> None:
        if self.act is Till.invalidate:
            self.till.rotate()
        self.till.disconnect()  # so that each run sends the same commands


@pytest.fixture(scope="module")
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """One for all faults of a use: each of them leaves a till behind that works as before, and to make one takes long."""
    with running(tmp_path_factory.mktemp("till")) as till:
        yield Used(till, request.param)


@pytest.mark.parametrize("fault", SOME)
@pytest.mark.parametrize("used", USES, indirect=True)
def test_one_wrong_answer_stops_nothing(used: Used, fault: str) -> None:
    till, act = used.till, used.act
    leave_alone(till.relay)
    for code, count in used.commands.items():
        used.prepare()
        once = Once(till.relay, FAULTS[fault], code, count)
        act(till)
        assert once.happened, hex(code)
        leave_alone(till.relay)
        if act in (Till.start, Till.verify):
            assert till.pair.valid()
    till.verify()
    assert till.alerts() == []


def test_a_disturbed_bus_is_told_while_it_lasts_and_needs_no_restart(till: Till) -> None:
    pair, reporter = till.pair, till.pair.agent.agent.reporter
    asyncio.run(reporter.watch_hardware())
    till.relay.answer = lambda exchange: flipped(exchange, -1) if exchange.code in (NV_READ, SIGN) else exchange.response
    with pytest.raises(UnreliableHardware):
        till.invalidate()
    assert isinstance(pair.contact(Cause.FORCED), HwsecError)
    assert pair.valid(), "validations go on"
    asyncio.run(reporter.watch_hardware())
    assert reporter.alerts.raised == (TPM_UNRELIABLE,)
    text = pair.agent.agent.publisher.render_metrics().decode()
    assert 'license_agent_tpm_state{state="unreliable"} 1.0' in text
    assert "license_agent_tpm_available 0.0" in text
    unfitting = next(line for line in text.splitlines() if line.startswith("license_agent_tpm_unfitting_answers_total "))
    assert float(unfitting.split()[1]) >= 5
    leave_alone(till.relay)
    till.rotate()
    till.verify()
    till.invalidate()
    till.machine.naps.sleep(QUIET_S)
    till.verify()
    asyncio.run(reporter.watch_hardware())
    assert reporter.alerts.raised == ()
    assert pair.agent.store.status.state is BackendState.AVAILABLE
    told = till.alerts()
    assert [TPM_UNAVAILABLE.event in line for line in told] == [False, False], told


def test_another_tpm_is_found_while_the_agent_runs(till: Till) -> None:
    """And told as what it is, not as a disturbed bus."""
    till.machine.swtpm.stop()
    till.machine.swtpm.clear()
    till.machine.swtpm.start()
    reporter = till.pair.agent.agent.reporter
    asyncio.run(reporter.watch_hardware())
    assert till.pair.agent.store.status.state is BackendState.FOREIGN
    assert reporter.alerts.raised == (TPM_UNAVAILABLE,)
    assert till.pair.valid()
