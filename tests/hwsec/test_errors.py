"""Each error says what state of the hardware it shows."""

import pytest

from hwsec import errors
from hwsec.backend import BackendState
from hwsec.errors import HwsecError

STATES = {
    "BackendUnavailable": BackendState.ABSENT,
    "BackendHung": BackendState.HUNG,
    "HardwareReset": BackendState.ABSENT,
    "UnreliableHardware": BackendState.UNRELIABLE,
    "LockedOut": BackendState.LOCKED_OUT,
    "OutOfSessions": BackendState.OUT_OF_SESSIONS,
    "ForeignHardware": BackendState.FOREIGN,
    "NvGone": BackendState.NV_GONE,
    "PcrMismatch": BackendState.PCR_MISMATCH,
    "PcrUninitialized": BackendState.PCR_UNINITIALIZED,
}
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HwsecError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_has_its_state(kind: type[HwsecError]) -> None:
    assert kind.state is STATES.get(kind.__name__, BackendState.AVAILABLE)
    assert kind("text").state is kind.state


def test_each_state_has_an_error() -> None:
    assert {kind.state for kind in CLASSES} == set(BackendState)


def test_the_words_of_the_states_stay() -> None:
    assert [str(state) for state in BackendState] == [
        "available",
        "absent",
        "locked_out",
        "hung",
        "pcr_mismatch",
        "pcr_uninitialized",
        "nv_gone",
        "foreign",
        "out_of_sessions",
        "unreliable",
    ]
