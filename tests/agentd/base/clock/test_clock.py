"""The agent's time: never before what has certainly passed, and not beyond what can have passed while the machine ran."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd import RELEASED
from agentd.base.clock.clock import Clock
from agentd.base.clock.timeanchor import TOLERANCE_S, Reading, Since, TimeAnchor, since, tolerance
from agentd.secrets.record import AgentRecord, read_record
from hwsec.errors import StoreCorrupt
from ipc.answers import Reason
from tests.agentd.world import World, meta, token
from tests.contracts.world import TRUST_FILE

SIGNED = 1_800_000_000
DAY = 86_400
IN_2099 = 4_086_000_000


class Machine:
    """A machine with a wall clock, a boot clock and, if wanted, a TPM's clock."""

    def __init__(self, *, tpm: bool = True) -> None:
        self.true = float(SIGNED)
        self.wall_off = 0.0
        self.booted = SIGNED - 1000.0
        self.boots = 1
        self.tpm_ms: int | None = 5_000_000 if tpm else None
        self.clock = self.start()
        self.anchor: TimeAnchor | None = None

    def start(self) -> Clock:
        self.clock = Clock(lambda: self.true + self.wall_off, lambda: self.true - self.booted)
        return self.clock

    def readings(self) -> tuple[Reading, Reading | None]:
        boot = Reading(int((self.true - self.booted) * 1000), self.boots)
        return boot, None if self.tpm_ms is None else Reading(self.tpm_ms, self.boots)

    def signed(self, time: int, *, fresh: bool = True) -> None:
        boot, tpm = self.readings()
        self.anchor = TimeAnchor(time, fresh, boot, tpm)
        self.clock.set_anchor(self.anchor, boot, tpm)

    def runs(self, seconds: float) -> None:
        self.true += seconds
        if self.tpm_ms is not None:
            self.tpm_ms += int(seconds * 1000)

    def agent_restarts(self) -> None:
        self.start()
        assert self.anchor is not None
        self.clock.set_anchor(self.anchor, *self.readings())

    def is_off(self, seconds: float) -> None:
        self.true += seconds
        self.booted = self.true
        self.boots += 1
        self.runs(10)
        self.agent_restarts()


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.signed(SIGNED)
    return made


def test_a_clock_that_is_right_is_believed(machine: Machine) -> None:
    for _ in range(50):
        machine.runs(DAY)
        assert machine.clock.now() == int(machine.true)
        assert not machine.clock.suspect()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("wrong", [IN_2099, 1, 0, SIGNED - DAY, SIGNED + 40 * DAY])
def test_a_wrong_clock_while_the_machine_runs_changes_little(machine: Machine, wrong: int, restart: bool) -> None:
    machine.runs(3600)
    machine.wall_off = wrong - machine.true
    if restart:
        machine.agent_restarts()
    assert abs(machine.clock.now() - machine.true) <= tolerance(3600) + 1
    assert machine.clock.suspect()
    machine.runs(60)
    machine.wall_off = 0
    if restart:
        machine.agent_restarts()
    assert machine.clock.now() == int(machine.true)
    assert not machine.clock.suspect()


def test_after_the_machine_was_off_a_later_time_is_believed_and_an_earlier_one_is_not(machine: Machine) -> None:
    machine.runs(5000)
    machine.is_off(7 * DAY)
    assert machine.clock.now() == int(machine.true)
    machine.wall_off = -8 * DAY
    assert machine.clock.now() == SIGNED + 5000 + 10
    assert machine.clock.suspect()
    machine.wall_off = IN_2099 - machine.true
    assert machine.clock.now() == pytest.approx(IN_2099, abs=1)
    # Nothing that cannot be undone goes by it.
    assert machine.clock.certain() == SIGNED + 5000 + 10
    machine.wall_off = 0
    assert machine.clock.now() == int(machine.true)


def test_without_a_tpm_the_time_before_the_restart_is_forgotten() -> None:
    machine = Machine(tpm=False)
    machine.signed(SIGNED)
    machine.runs(5000)
    machine.is_off(DAY)
    machine.runs(90)
    assert machine.clock.floor == SIGNED + 100


def test_a_cleared_tpm_weakens_the_floor_and_nothing_more(machine: Machine) -> None:
    machine.runs(50_000)
    machine.tpm_ms = 3_000
    machine.is_off(DAY)
    assert machine.clock.floor == SIGNED + 13


def test_a_time_that_was_carried_is_a_lower_bound_only(machine: Machine) -> None:
    machine.runs(5 * DAY)
    machine.signed(SIGNED + DAY, fresh=False)
    assert machine.clock.now() == int(machine.true)
    machine.wall_off = -30 * DAY
    assert machine.clock.now() == SIGNED + DAY


def test_before_the_server_has_spoken_only_the_release_is_certain() -> None:
    machine = Machine()
    assert machine.clock.now() == SIGNED
    machine.wall_off = -SIGNED
    assert (machine.clock.now(), machine.clock.suspect(), machine.clock.certain()) == (RELEASED, True, RELEASED)


def test_the_server_may_lower_the_floor(machine: Machine) -> None:
    machine.signed(IN_2099)
    assert machine.clock.now() == IN_2099
    machine.signed(SIGNED)
    assert (machine.clock.now(), machine.clock.suspect()) == (SIGNED, False)


def test_a_small_difference_is_not_suspect(machine: Machine) -> None:
    for off in (-TOLERANCE_S + 1, TOLERANCE_S - 1):
        machine.wall_off = off
        assert not machine.clock.suspect()
    assert machine.clock.now() == SIGNED + TOLERANCE_S - 1
    machine.wall_off = -TOLERANCE_S + 1
    assert machine.clock.now() == SIGNED


def test_the_time_for_which_the_machine_slept_counts() -> None:
    times = {"wall": float(SIGNED), "mono": 100.0, "boot": 500.0}
    clock = Clock(lambda: times["wall"], lambda: times["mono"], lambda: times["boot"])
    anchor = TimeAnchor(SIGNED, True, Reading(500_000, 1))
    clock.set_anchor(anchor, anchor.boot, None)
    times["boot"] += 8 * 3600
    times["wall"] += 8 * 3600
    assert clock.floor == SIGNED
    clock.notice_sleep()
    clock.notice_sleep()
    assert (clock.floor, clock.now(), clock.suspect()) == (SIGNED + 8 * 3600, SIGNED + 8 * 3600, False)


def test_counters_may_drift_for_a_month(machine: Machine) -> None:
    machine.runs(30 * DAY)
    machine.wall_off = 30 * DAY * 400 / 1e6
    assert not machine.clock.suspect()


readings = st.builds(Reading, st.integers(0, 2**63), st.integers(0, 3))


@given(
    st.builds(TimeAnchor, st.integers(0, IN_2099), st.booleans(), readings, st.none() | readings),
    readings,
    st.none() | readings,
)
def test_any_counters_give_a_bound(anchor: TimeAnchor, boot: Reading, tpm: Reading | None) -> None:
    passed = since(anchor, boot, tpm)
    assert passed.least_ms >= 0
    assert read_record(AgentRecord(TRUST_FILE, time=anchor).sections()).time == anchor
    if passed.running:
        assert passed == Since(boot.milliseconds - anchor.boot.milliseconds, True)


@pytest.mark.parametrize("data", [b"", b"1800000000", b"{}", b'{"signed":1}', b"\xff", b"["])
def test_an_anchor_that_cannot_be_read_is_an_error(data: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="server_time"):
        read_record({"trust": TRUST_FILE, "server_time": data})


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("wrong", [IN_2099, 0])
def test_a_clock_that_jumps_and_comes_back_costs_no_license_and_revives_none(wrong: int, restart: bool) -> None:
    machine, world = Machine(), World(meta(start=SIGNED))
    machine.signed(SIGNED)
    machine.runs(3600)
    valid, expired = token(nbf=SIGNED, exp=SIGNED + DAY), token(nbf=SIGNED - DAY, exp=SIGNED + 1800, jti="old")
    before = world.ring.versions

    def verdicts() -> tuple[bool, Reason]:
        now = machine.clock.now()
        return world.validator.validate(valid, now).verdict.valid, world.validator.validate(expired, now).verdict.reason

    assert verdicts() == (True, Reason.EXPIRED)
    machine.wall_off = wrong - machine.true
    if restart:
        machine.agent_restarts()
    assert verdicts() == (True, Reason.EXPIRED)
    machine.runs(60)
    assert verdicts() == (True, Reason.EXPIRED)
    machine.wall_off = 0
    if restart:
        machine.agent_restarts()
    assert verdicts() == (True, Reason.EXPIRED)
    assert world.ring.versions == before
    world.vault.close()


# A signed time that is not taken


def test_an_unconfirmed_time_moves_only_the_latest(machine: Machine) -> None:
    machine.is_off(7 * DAY)  # nothing bounds the time from above
    machine.wall_off = -40 * DAY
    before = machine.clock.now()
    boot, _tpm = machine.readings()
    assert (machine.clock.latest(), machine.clock.ceiling()) == (before, None)
    machine.clock.set_unconfirmed(TimeAnchor(SIGNED + 9 * DAY, True, boot), boot)
    assert (machine.clock.now(), machine.clock.certain(), machine.clock.latest()) == (before, before, SIGNED + 9 * DAY)
    machine.runs(3600)
    assert machine.clock.latest() == SIGNED + 9 * DAY + 3600
    machine.clock.set_unconfirmed(None)
    assert machine.clock.latest() == machine.clock.now() == before + 3600


def test_a_machine_that_knows_the_time_has_no_later_one(machine: Machine) -> None:
    boot, _tpm = machine.readings()
    machine.clock.set_unconfirmed(TimeAnchor(SIGNED + 400 * DAY, True, boot), boot)
    assert machine.clock.latest() == machine.clock.now() == SIGNED
    assert machine.clock.ceiling() == SIGNED + TOLERANCE_S


def test_an_unconfirmed_time_goes_on_while_the_machine_sleeps() -> None:
    times = {"wall": 0.0, "mono": 100.0, "boot": 500.0}
    clock = Clock(lambda: times["wall"], lambda: times["mono"], lambda: times["boot"])
    reading = Reading(500_000, 1)
    clock.set_unconfirmed(TimeAnchor(SIGNED, True, reading), reading)
    times["boot"] += 8 * 3600
    clock.notice_sleep()
    assert clock.latest() == SIGNED + 8 * 3600


def test_the_witnesses_are_those_of_the_machine(machine: Machine) -> None:
    machine.runs(3600)
    machine.wall_off = 5
    seen = machine.clock.witnesses()
    assert (seen.floor, seen.wall) == (SIGNED + 3600, SIGNED + 3605)
    assert seen.exact_s == pytest.approx(tolerance(3600))
    machine.is_off(DAY)
    assert machine.clock.witnesses().exact_s is None
