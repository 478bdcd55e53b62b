"""A valid license is inside nbf and exp, not revoked, its secret not past grace; a ruling holds exactly as long as it says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.licenses.verdict import Ruling, judge, refusal
from agentd.secrets.lifecycle import Limits, State
from agentd.secrets.ring import standing_of
from contracts.claims import Claims
from hwsec.storeformat import VersionMeta
from ipc.answers import Reason
from tests.agentd.world import DAY, T0, meta
from tests.contracts.world import CLAIMS

NO_LIMITS = Limits()
LICENSE = replace(CLAIMS, nbf=T0 + 100, exp=T0 + 3 * DAY)


def ruled(
    claims: Claims, of: VersionMeta, newest: bool, now: int, limits: Limits, revoked: frozenset[str], newer: bool
) -> Ruling:
    return judge(claims, of.version, standing_of(of, now, limits, newest=newest), now, revoked, newer)


def reason(now: int, *, state: str = "ACTIVE", newest: bool = True, revoked: frozenset[str] = frozenset()) -> Reason:
    return ruled(LICENSE, meta(state=state), newest, now, NO_LIMITS, revoked, False).verdict.reason


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(99, Reason.NOT_YET_VALID), (100, Reason.OK), (DAY, Reason.OK), (3 * DAY - 1, Reason.OK), (3 * DAY, Reason.EXPIRED)],
)
def test_a_license_begins_at_nbf_and_has_ended_at_exp(seconds: int, expected: Reason) -> None:
    assert reason(T0 + seconds) is expected


def test_past_grace_the_reason_tells_an_unreachable_server_from_a_secret_given_up() -> None:
    end = T0 + 8 * DAY
    assert reason(end) is Reason.DEGRADED_EXPIRED
    assert reason(end, newest=False) is Reason.SECRET_INVALIDATED
    assert reason(end, state="GRACE", newest=False) is Reason.SECRET_INVALIDATED
    assert reason(T0 + 200, state="INVALIDATED") is Reason.SECRET_INVALIDATED
    assert reason(T0 + 200, state="GRACE", newest=False) is Reason.OK


def test_a_revoked_license_is_refused_also_when_it_has_ended() -> None:
    for seconds in (50, 200, 4 * DAY):
        assert reason(T0 + seconds, revoked=frozenset({LICENSE.jti})) is Reason.REVOKED
    assert reason(T0 + 200, revoked=frozenset({"other"})) is Reason.OK


def test_features_are_told_only_of_a_valid_license() -> None:
    valid = ruled(LICENSE, meta(), True, T0 + 200, NO_LIMITS, frozenset(), False).verdict
    ended = ruled(LICENSE, meta(), True, T0 + 3 * DAY, NO_LIMITS, frozenset(), False).verdict
    assert (valid.features, valid.metadata, valid.expires_at) == (LICENSE.features, LICENSE.metadata, LICENSE.exp)
    assert (ended.features, ended.metadata, ended.expires_at) == ((), {}, LICENSE.exp)


def test_a_superseded_secret_calls_for_a_new_token_until_its_grace_ends() -> None:
    verdict = ruled(LICENSE, meta(state="GRACE"), False, T0 + 200, NO_LIMITS, frozenset(), True).verdict
    assert (verdict.reissue_due, verdict.refresh_by, verdict.refreshed) == (True, T0 + 8 * DAY, True)
    shorter = ruled(LICENSE, meta(state="GRACE"), False, T0 + 200, Limits(None, DAY), frozenset(), True).verdict
    assert shorter.refresh_by == T0 + 2 * DAY
    newest = ruled(LICENSE, meta(), True, T0 + 200, NO_LIMITS, frozenset(), False).verdict
    assert (newest.reissue_due, newest.refresh_by) == (False, None)


times = st.integers(-2 * DAY, 12 * DAY).map(lambda seconds: T0 + seconds)


@given(
    st.sampled_from(list(State)), st.booleans(), times, times, times,
    st.builds(Limits, st.none() | st.integers(60, 5 * DAY), st.none() | st.integers(60, 20 * DAY)),
    st.floats(0, 1),
)  # fmt: skip
def test_a_ruling_holds_from_since_to_until(
    state: State, newest: bool, nbf: int, exp: int, now: int, local: Limits, where: float
) -> None:
    claims = replace(CLAIMS, nbf=min(nbf, exp), exp=max(nbf, exp) + 1)
    ruling = ruled(claims, meta(state=state.value), newest, now, local, frozenset(), False)
    assert ruling.since == now < ruling.until
    last = min(ruling.until, now + 100 * DAY) - 1
    for moment in {now, last, now + int((last - now) * where)}:
        assert ruled(claims, meta(state=state.value), newest, moment, local, frozenset(), False).verdict == ruling.verdict


@pytest.mark.parametrize("state", [None, *State])
def test_a_refusal_tells_the_state_and_no_license(state: State | None) -> None:
    ruling = refusal(Reason.BAD_SIGNATURE, 4, state)
    verdict = ruling.verdict
    assert (verdict.valid, ruling.license_id, verdict.features, ruling.secret_version) == (False, None, (), 4)
    assert verdict.secret_state == (None if state is None else state.value)
    assert verdict.reissue_due == (state is State.INVALIDATED)


@pytest.mark.parametrize(("seconds", "expected"), [(49, Reason.NOT_YET_VALID), (50, Reason.OK), (3 * DAY, Reason.EXPIRED)])
def test_a_license_may_begin_by_the_latest_time_that_it_may_be(seconds: int, expected: Reason) -> None:
    standing = standing_of(meta(), T0 + seconds, NO_LIMITS, newest=True)
    ruling = judge(LICENSE, 1, standing, T0 + seconds, frozenset(), False, ahead=50)
    assert ruling.verdict.reason is expected
    if expected is Reason.NOT_YET_VALID:
        assert ruling.until == T0 + 50
