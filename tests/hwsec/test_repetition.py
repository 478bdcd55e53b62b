"""When an answer that nobody signs is believed, and when the TPM counts as unreliable: without a TPM."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.statetable import UnknownTransition
from hwsec.errors import (
    BackendState,
    BackendUnavailable,
    ForeignHardware,
    HwsecError,
    LockedOut,
    NvGone,
    UnreliableHardware,
    unsigned,
)
from hwsec.repetition import (
    CONNECTIONS,
    DELAYS_S,
    LIMIT_S,
    QUIET_S,
    SPAN_S,
    TRANSITIONS,
    Doubts,
    Event,
    Repeater,
    Trust,
    Unsigned,
    Verdict,
)

Answer = Callable[[], object]


class Bench:
    """A repeater whose attempts are scripted, with a clock that only sleeping and answering move on."""

    def __init__(self, takes_s: float = 0.01) -> None:
        self.now = 0.0
        self.takes_s = takes_s
        self.connections = 1
        self.attempts = 0
        self.given_up = False
        self.doubts = Doubts()
        self.repeater = Repeater(self._reconnect, lambda: self.given_up, self.doubts, lambda: self.now, self._sleep)

    def _reconnect(self) -> None:
        self.connections += 1

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def settle(self, *script: Answer, call: str = "sign") -> object:
        """Runs a call whose attempts end as scripted; the last line is repeated."""

        def attempt() -> object:
            self.now += self.takes_s
            line = script[min(self.attempts, len(script) - 1)]
            self.attempts += 1
            return line()

        self.attempts = 0
        return self.repeater.settle(call, attempt)


def fits() -> str:
    return "value"


def raising(error: HwsecError, signed: bool = False) -> Answer:
    def line() -> object:
        raise error if signed else unsigned(error)

    return line


FOREIGN = raising(ForeignHardware("other"))
GARBAGE = raising(UnreliableHardware("wrong HMAC"))
SILENT = raising(BackendUnavailable("no answer"))
NOT_SIGNED: dict[str, Answer] = {
    "foreign": FOREIGN,
    "gone": raising(NvGone("index")),
    "locked out": raising(LockedOut("lockout")),
    "garbage": GARBAGE,
    "silent": SILENT,
    "a value": lambda: Unsigned(None),
}


# The table


@pytest.mark.parametrize("state", list(Trust))
@pytest.mark.parametrize("event", list(Event))
def test_every_state_meets_every_event(state: Trust, event: Event) -> None:
    try:
        after = TRANSITIONS.step(state, event)
    except UnknownTransition:
        assert (state, event) not in {(known, what) for known, what, _ in TRANSITIONS}
        return
    if event is Event.FITS:
        assert after is Trust.RELIABLE, "an authenticated answer ends every doubt"
    if after is Trust.CONCLUDED:
        assert event is Event.REPEATED, "nothing else concludes"
    if after is Trust.UNRELIABLE and state is not Trust.UNRELIABLE:
        assert event is Event.SPENT


# One call


@pytest.mark.parametrize("what", NOT_SIGNED)
def test_one_doubtful_answer_costs_nothing_but_a_fresh_connection(what: str) -> None:
    bench = Bench()
    assert bench.settle(NOT_SIGNED[what], fits) == "value"
    assert (bench.connections, bench.attempts, bench.doubts.unreliable) == (2, 2, ())
    assert bench.doubts.unfitting == 1
    assert bench.now < 0.1, "the first repetition comes at once"


@pytest.mark.parametrize("what", NOT_SIGNED)
def test_two_doubtful_answers_conclude_nothing(what: str) -> None:
    bench = Bench()
    assert bench.settle(NOT_SIGNED[what], NOT_SIGNED[what], fits) == "value"


@pytest.mark.parametrize("what", ["foreign", "gone", "locked out"])
def test_what_is_answered_again_and_again_over_fresh_connections_is_believed(what: str) -> None:
    bench = Bench()
    with pytest.raises(HwsecError) as told:
        bench.settle(NOT_SIGNED[what])
    assert not isinstance(told.value, UnreliableHardware)
    assert bench.attempts >= CONNECTIONS and bench.now >= SPAN_S
    assert bench.connections == bench.attempts + 1, "none goes on with a session that may be out of step"
    assert bench.doubts.unreliable == ()


def test_a_value_that_rests_on_refusals_is_believed_in_the_same_way() -> None:
    bench = Bench()
    assert bench.settle(lambda: Unsigned(None)) is None
    assert bench.attempts >= CONNECTIONS and bench.now >= SPAN_S
    assert bench.settle(lambda: Unsigned(None)) is None
    assert bench.attempts == 1, "it is known"


def test_what_was_concluded_is_not_asked_again_and_ends_with_the_first_answer_that_fits() -> None:
    bench = Bench()
    for attempts in (None, 1, 1):
        with pytest.raises(ForeignHardware):
            bench.settle(FOREIGN)
        assert attempts is None or bench.attempts == attempts
    assert bench.settle(fits) == "value"
    assert bench.settle(FOREIGN, fits) == "value", "from the beginning"


def test_answers_that_contradict_each_other_conclude_nothing() -> None:
    bench = Bench()
    with pytest.raises(UnreliableHardware, match="do not fit") as told:
        bench.settle(FOREIGN, FOREIGN, NOT_SIGNED["gone"], FOREIGN, FOREIGN)
    assert told.value.state is BackendState.UNRELIABLE
    assert bench.attempts == len(DELAYS_S) + 1
    assert bench.doubts.unreliable == ("sign",)


def test_garbage_is_never_a_conclusion() -> None:
    bench = Bench()
    for _time in range(20):
        with pytest.raises(UnreliableHardware):
            bench.settle(GARBAGE)
    assert bench.doubts.unreliable == ("sign",)


def test_silence_is_said_to_be_silence() -> None:
    with pytest.raises(BackendUnavailable) as told:
        Bench().settle(SILENT)
    assert told.value.state is BackendState.ABSENT


def test_a_slow_tpm_is_not_asked_for_ever() -> None:
    bench = Bench(takes_s=LIMIT_S / 2)
    with pytest.raises(UnreliableHardware):
        bench.settle(GARBAGE)
    assert bench.attempts == 2


def test_a_signed_error_is_an_answer() -> None:
    bench = Bench()
    with pytest.raises(NvGone):
        bench.settle(raising(NvGone("index"), signed=True))
    assert (bench.attempts, bench.connections) == (1, 1)


def test_a_call_that_was_given_up_makes_no_further_attempt() -> None:
    bench = Bench()
    bench.given_up = True
    with pytest.raises(UnreliableHardware, match="wrong HMAC"):
        bench.settle(GARBAGE)
    assert bench.attempts == 1


def test_only_the_outermost_call_repeats() -> None:
    bench = Bench()
    inner: list[int] = []

    def outer() -> object:
        inner.append(1)
        return bench.repeater.settle("inner", GARBAGE if len(inner) == 1 else fits)

    assert bench.repeater.settle("outer", outer) == "value"
    assert len(inner) == 2


# Unreliable while it lasts


def test_the_same_call_ends_its_own_doubt_at_once() -> None:
    bench = Bench()
    with pytest.raises(UnreliableHardware):
        bench.settle(GARBAGE)
    assert bench.settle(fits) == "value"
    assert bench.doubts.unreliable == ()


def test_another_call_ends_it_only_after_a_while() -> None:
    bench = Bench()
    with pytest.raises(UnreliableHardware):
        bench.settle(GARBAGE, call="extend")
    bench.settle(fits)
    assert bench.doubts.unreliable == ("extend",)
    bench.now += QUIET_S
    assert bench.doubts.unreliable == ("extend",), "only an answer that fits ends it"
    bench.settle(fits)
    assert bench.doubts.unreliable == ()


@given(st.lists(st.sampled_from(["fits", *NOT_SIGNED]), min_size=1, max_size=12), st.floats(0.0, 2.0))
def test_no_conclusion_without_enough_connections_and_time(script: list[str], takes_s: float) -> None:
    bench = Bench(takes_s)
    lines = [fits if name == "fits" else NOT_SIGNED[name] for name in script]
    try:
        bench.settle(*lines)
    except UnreliableHardware:
        assert bench.doubts.unreliable
    except HwsecError as error:
        assert type(error) is BackendUnavailable or (bench.attempts >= CONNECTIONS and bench.now >= SPAN_S)
    assert bench.attempts <= len(DELAYS_S) + 1


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.floats(0, 3)), min_size=1, max_size=20))
def test_only_an_unbroken_row_of_one_claim_is_believed(answers: list[tuple[str | None, float]]) -> None:
    doubts, now, row, since, last = Doubts(), 0.0, 0, 0.0, None
    for claim, pause in answers:
        now += pause
        row, since = (row + 1, since) if claim is not None and claim == last else (1, now)
        last = claim
        verdict = doubts.doubtful("call", claim, 1, 0.0, now)
        assert (verdict is Verdict.BELIEVE) == (claim is not None and row >= CONNECTIONS and now - since >= SPAN_S)
