"""The validator rules on a token, cached or not, by what is so at the time; the ring hands out only allowed changes."""

from collections.abc import Callable
from typing import Any

import pytest

from agentd.base.errors import NoSuchVersion, Refused
from agentd.licenses import validator as validator_module
from agentd.secrets.lifecycle import MAX_VERSIONS, Limits, State
from contracts.jose import b64encode
from hwsec.store import Contents
from ipc.answers import Reason
from server.keys.jose import issue_token, new_signing_key
from tests.agentd.world import DAY, T0, World, meta, secret, token
from tests.contracts.world import AGENT, CLAIMS, LICENSE_KEY

Make = Callable[..., World]
NOW = T0 + 100


def reason(world: World, text: str, now: int = NOW) -> Reason:
    return world.validator.validate(text, now).verdict.reason


def test_a_good_license_passes(make_world: Make) -> None:
    ruling = make_world().validator.validate(token(), NOW)
    verdict = ruling.verdict
    assert (verdict.valid, ruling.license_id, verdict.features) == (True, "license-1", ("till", "scale"))
    assert (verdict.secret_state, ruling.secret_version) == ("ACTIVE", 1)


def test_each_refusal_has_its_reason(make_world: Make) -> None:
    world = make_world()
    good = token()
    foreign = issue_token(CLAIMS, secret(1), 1, new_signing_key())
    cases = {
        good[:-4] + "AAAA": Reason.BAD_SIGNATURE,
        foreign: Reason.BAD_SIGNATURE,
        "x": Reason.MALFORMED,
        "é": Reason.MALFORMED,
        "": Reason.MALFORMED,
        token(aud="pos-002"): Reason.WRONG_AUDIENCE,
        token(2): Reason.UNKNOWN_SECRET,
        token(nbf=NOW + 1): Reason.NOT_YET_VALID,
        token(exp=NOW): Reason.EXPIRED,
        token(iss="https://other"): Reason.BAD_SIGNATURE,
    }
    for text, expected in cases.items():
        for _time in range(2):
            verdict = world.validator.validate(text, NOW).verdict
            assert (verdict.reason, verdict.valid) == (expected, False)
            assert (verdict.features, verdict.metadata) == ((), {})


def test_a_cached_token_is_judged_anew_when_time_passes(make_world: Make) -> None:
    world, text = make_world(), token(nbf=NOW, exp=NOW + 2 * DAY)
    expected = [
        (NOW - 1, Reason.NOT_YET_VALID),
        (NOW, Reason.OK),
        (NOW + 2 * DAY - 1, Reason.OK),
        (NOW + 2 * DAY, Reason.EXPIRED),
        (T0 + 8 * DAY, Reason.DEGRADED_EXPIRED),
    ]
    for now, wanted in [*expected, *reversed(expected), *expected]:
        assert reason(world, text, now) is wanted
    assert world.validator.is_known(text)


def test_what_is_cached_is_not_opened_again(make_world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world, text, opened = make_world(), token(), []
    real = validator_module.open_token
    monkeypatch.setattr(validator_module, "open_token", lambda *args: opened.append(1) or real(*args))
    for seconds in range(50):
        assert reason(world, text, NOW + seconds) is Reason.OK
    assert len(opened) == 1


def test_the_cache_is_bounded(make_world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validator_module, "CACHED_TOKENS", 4)
    world = make_world()
    texts = [token(jti=str(number)) for number in range(6)]
    for text in texts:
        reason(world, text)
        reason(world, texts[0])
    assert len(world.validator._cache) == 4
    assert world.validator.is_known(texts[0])
    assert [world.validator.is_known(text) for text in texts[1:]] == [False, False, True, True, True]


def test_refused_tokens_are_not_cached(make_world: Make) -> None:
    world = make_world()
    for text in ("x", token(2), token()[:-4] + "AAAA"):
        reason(world, text)
        assert not world.validator.is_known(text)


def test_a_token_under_a_superseded_secret_passes_until_grace_ends(make_world: Make) -> None:
    world, text = make_world(), token()
    assert not world.validator.validate(text, NOW).verdict.reissue_due
    world.rotate(meta(2, start=T0 + DAY))
    verdict = world.validator.validate(text, NOW).verdict
    assert (verdict.valid, verdict.secret_state, verdict.reissue_due, verdict.refresh_by) == (True, "GRACE", True, T0 + 8 * DAY)
    assert reason(world, text, T0 + 8 * DAY) is Reason.SECRET_INVALIDATED
    assert reason(world, token(2), T0 + 8 * DAY) is Reason.OK


def test_without_a_successor_the_agent_is_degraded_and_in_the_end_refuses(make_world: Make) -> None:
    world = make_world()
    ring = world.ring
    assert [ring.overdue(T0 + seconds) for seconds in (0, DAY - 1, DAY, 9 * DAY)] == [False, False, True, True]
    assert reason(world, token(), T0 + 8 * DAY - 1) is Reason.OK
    assert reason(world, token(), T0 + 8 * DAY) is Reason.DEGRADED_EXPIRED
    world.rotate(meta(2, start=T0 + DAY))
    assert not ring.overdue(T0 + DAY)


def test_an_empty_agent_knows_no_secret_and_is_not_degraded(make_world: Make) -> None:
    world = make_world()
    world.ring.replace(Contents())
    assert reason(world, token()) is Reason.UNKNOWN_SECRET
    assert not world.ring.overdue(NOW)
    assert world.ring.newest is None


def test_an_invalidated_secret_takes_its_licenses_and_what_is_cached_of_them(make_world: Make) -> None:
    world = make_world(meta(1, "GRACE"), meta(2, start=T0))
    old, new = token(1), token(2)
    assert reason(world, old) is reason(world, new) is Reason.OK
    world.invalidate(1, NOW)
    assert not world.validator.is_known(old)
    assert world.validator.is_known(new)
    verdict = world.validator.validate(old, NOW).verdict
    assert (verdict.reason, verdict.secret_state, verdict.reissue_due) == (Reason.SECRET_INVALIDATED, "INVALIDATED", True)
    assert reason(world, new) is Reason.OK
    stored = world.ring.versions[0]
    assert (stored.secret, stored.meta.state, stored.meta.invalidated_at) == (None, "INVALIDATED", NOW)


def test_invalidating_is_refused_where_it_cannot_be(make_world: Make) -> None:
    world = make_world()
    with pytest.raises(NoSuchVersion):
        world.ring.with_invalidated(7, NOW, {})
    world.invalidate(1)
    with pytest.raises(Refused, match="before"):
        world.ring.with_invalidated(1, NOW, {})
    expired = make_world(meta(1))
    assert expired.ring.with_invalidated(1, T0 + 100 * DAY, {}).versions[0].meta.state == "INVALIDATED"


def test_nothing_changes_before_it_is_committed(make_world: Make) -> None:
    world = make_world()
    world.ring.with_invalidated(1, NOW, {})
    world.ring.with_new_secret(world.stored(meta(2)), {})
    assert reason(world, token()) is Reason.OK
    assert [stored.meta.state for stored in world.ring.versions] == ["ACTIVE"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_replayed_secret_is_refused(make_world: Make, version: int) -> None:
    world = make_world(meta(3))
    with pytest.raises(Refused, match="replayed"):
        world.ring.with_new_secret(world.stored(meta(version, start=T0 + DAY)), {})


def test_a_secret_that_begins_before_the_present_one_is_refused(make_world: Make) -> None:
    world = make_world(meta(3))
    with pytest.raises(Refused, match="valid_from"):
        world.ring.with_new_secret(world.stored(meta(4, start=T0 - 1)), {})
    assert world.ring.with_new_secret(world.stored(meta(9, start=T0)), {"s": b"x"}).sections == {"s": b"x"}


def test_a_new_secret_supersedes_all_that_live(make_world: Make) -> None:
    world = make_world(meta(1, "INVALIDATED"), meta(2, "GRACE"), meta(3))
    contents = world.ring.with_new_secret(world.stored(meta(4)), {})
    assert [stored.meta.state for stored in contents.versions] == ["INVALIDATED", "GRACE", "GRACE", "ACTIVE"]


def test_the_oldest_that_were_given_up_make_room_first(make_world: Make) -> None:
    states = ["GRACE"] * (MAX_VERSIONS - 1) + ["ACTIVE"]
    world = make_world(*(meta(number + 1, state) for number, state in enumerate(states)))
    contents = world.ring.with_new_secret(world.stored(meta(50)), {})
    assert [stored.meta.version for stored in contents.versions] == [*range(2, MAX_VERSIONS + 1), 50]
    states[4] = states[7] = "INVALIDATED"
    world = make_world(*(meta(number + 1, state) for number, state in enumerate(states)))
    contents = world.ring.with_new_secret(world.stored(meta(50)), {})
    assert len(contents.versions) == MAX_VERSIONS
    assert 5 not in [stored.meta.version for stored in contents.versions]
    assert 8 in [stored.meta.version for stored in contents.versions]


def test_shorter_local_periods_are_in_force_at_once(make_world: Make) -> None:
    world, text = make_world(), token()
    assert reason(world, text, T0 + 2 * DAY) is Reason.OK
    world.ring.limits = Limits(DAY, 3600)
    assert reason(world, text, T0 + 2 * DAY) is Reason.DEGRADED_EXPIRED
    assert world.ring.state_of(world.ring.versions[0], T0 + 2 * DAY) is State.INVALIDATED


def test_an_imported_token_is_handed_over_for_the_old_one(make_world: Make) -> None:
    world = make_world(meta(1, "GRACE"), meta(2))
    old, new, other = token(1), token(2, iat=NOW), token(2, jti="license-2")
    assert world.validator.refreshed_token(old, NOW) is None
    assert not world.validator.validate(old, NOW).verdict.refreshed
    assert world.validator.judge_import(new, NOW).verdict.valid
    assert world.inventory.newest("license-1") is None
    world.validator.import_token(new, NOW)
    assert world.validator.validate(old, NOW).verdict.refreshed
    assert world.validator.refreshed_token(old, NOW) == new
    assert world.validator.refreshed_token(new, NOW) is None
    assert not world.validator.validate(new, NOW).verdict.refreshed
    assert world.validator.refreshed_token(other, NOW) is None


def test_a_license_is_known_by_its_token_also_when_the_secret_is_gone(make_world: Make) -> None:
    world = make_world(meta(1, "GRACE"), meta(2))
    old, new = token(1), token(2, iat=NOW)
    world.validator.validate(old, NOW)
    world.validator.import_token(new, NOW)
    world.invalidate(1)
    verdict = world.validator.validate(old, NOW).verdict
    assert (verdict.reason, verdict.refreshed) == (Reason.SECRET_INVALIDATED, True)
    assert world.validator.refreshed_token(old, NOW) == new


def test_the_newer_token_of_another_license_is_never_handed_out(make_world: Make) -> None:
    world = make_world()
    old, of_another = token(), token(iat=NOW, jti="license-2")
    assert world.validator.validate(old, NOW).verdict.valid
    # As a changed or damaged file of the inventory would have it.
    world.inventory.keep("license-1", NOW, of_another, 1)
    assert world.validator.refreshed(old, NOW) is None
    own = token(iat=NOW + 1)
    world.inventory.keep("license-1", NOW + 1, own, 1)
    assert world.validator.refreshed(old, NOW) == ("license-1", own)


def test_a_till_that_never_stores_the_newer_token_gets_it_for_years(make_world: Make) -> None:
    far = T0 + 1000 * DAY
    world = make_world(meta(1, "GRACE"), meta(2, valid_until=far, grace_until=far))
    old, new = token(1), token(2, iat=NOW, exp=far)
    world.validator.validate(old, NOW)
    world.validator.import_token(new, NOW)
    world.invalidate(1)
    for day in range(0, 400, 7):
        world.inventory.forget_old(NOW + day * DAY)
        assert world.validator.refreshed_token(old, NOW + day * DAY) == new
    world.inventory.forget_old(NOW + 500 * DAY)
    assert world.validator.refreshed_token(old, NOW + 500 * DAY) is None


def test_only_valid_tokens_are_imported(make_world: Make) -> None:
    world = make_world()
    for text in ("x", token(exp=NOW), token(2), token()[:-4] + "AAAA"):
        with pytest.raises(Refused, match="not accepted"):
            world.validator.import_token(text, NOW)
    assert world.validator.judge_import(token(nbf=NOW + 5), NOW).verdict.reason is Reason.NOT_YET_VALID


def test_an_older_token_does_not_replace_a_newer_one(make_world: Make) -> None:
    world = make_world()
    newer, older = token(iat=NOW), token(iat=NOW - 5)
    world.validator.import_token(newer, NOW)
    world.validator.import_token(older, NOW)
    assert world.validator.refreshed_token(older, NOW) == newer


@pytest.mark.parametrize("text", ["", "x", "é", "a.b.c.d.e", b64encode(bytes(40))])
def test_what_is_no_token_has_no_newer_one(make_world: Make, text: str) -> None:
    assert make_world().validator.refreshed_token(text, NOW) is None


def test_a_license_that_is_used_every_day_is_remembered(make_world: Make) -> None:
    world, text = make_world(meta(1, valid_until=T0 + 300 * DAY, grace_until=T0 + 300 * DAY)), token(exp=T0 + 300 * DAY)
    for day in range(100):
        assert reason(world, text, NOW + day * DAY) is Reason.OK
        world.inventory.forget_old(NOW + day * DAY)
    assert world.inventory.license_of(text) == "license-1"


def test_a_secret_of_another_process_is_a_fault_not_a_verdict(make_world: Make) -> None:
    one, other = make_world(), make_world()
    stolen: Any = other.ring.versions
    one.ring.replace(Contents(stolen))
    with pytest.raises(RuntimeError):
        one.validator.validate(token(), NOW)
    assert one.validator.agent_id == AGENT
    assert LICENSE_KEY


def test_opened_tokens_are_looked_through_only_after_a_change_of_secrets(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply may bring many licenses, and each starts an epoch: none of them destroys a secret."""
    world = make_world()
    looked: list[int] = []
    usable = world.ring.usable

    def counted(version: int) -> bool:
        looked.append(version)
        return usable(version)

    monkeypatch.setattr(world.ring, "usable", counted)
    for number in range(8):
        world.validator.import_token(token(1, jti=f"license-{number}"), T0)
    assert len(looked) == 0
    world.rotate(meta(2, start=T0 + DAY))
    world.validator.validate(token(2), T0 + DAY)
    assert len(looked) == 8
