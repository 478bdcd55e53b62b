"""The machine's licenses are judged again whenever an answer may be another, and at no other time."""

from agentd.licenses.holdings import Holdings
from agentd.licenses.inventory import KEPT_S, MAX_LICENSES
from agentd.secrets.revocations import Revocations
from agentd.secrets.withheld import Withheld
from agentd.telemetry.views import EXPIRING_S, licenses_view
from ipc.answers import LicenseReason
from tests.agentd.world import DAY, T0, World, meta, token

NOW = T0 + 100


def world_with(*tokens: str, **license: object) -> tuple[World, Holdings]:
    world = World(meta())
    for text in tokens or (token(**license),):
        world.validator.import_token(text, NOW)
    return world, Holdings(world.validator)


def reason_of(holdings: Holdings, now: int = NOW, feature: str = "till") -> LicenseReason | None:
    held = holdings.at(now).choose(feature, None)
    return None if held is None else held.reason


def test_a_license_that_came_by_a_reissue_answers() -> None:
    world, holdings = world_with()
    held = holdings.at(NOW).choose("till", None)
    assert held is not None
    assert (held.license_id, held.valid, held.expires_at) == ("license-1", True, T0 + 30 * DAY)
    assert holdings.at(NOW).choose("bakery", None) is None
    world.vault.close()


def test_they_are_judged_once_while_nothing_changes() -> None:
    world, holdings = world_with()
    first = holdings.at(NOW)
    assert holdings.at(NOW + 50) is first
    world.validator.import_token(token(jti="license-2", exp=T0 + 40 * DAY), NOW)
    assert holdings.at(NOW + 50) is not first and len(holdings.at(NOW + 50)) == 2
    held = holdings.at(NOW).choose("till", None)
    assert held is not None and held.license_id == "license-2"
    world.vault.close()


def test_time_changes_the_answer_at_the_second_and_also_back() -> None:
    world, holdings = world_with(exp=T0 + 200, nbf=T0 + 150)
    assert reason_of(holdings, T0 + 149) is LicenseReason.NOT_YET_VALID
    assert reason_of(holdings, T0 + 150) is LicenseReason.OK
    assert reason_of(holdings, T0 + 199) is LicenseReason.OK
    assert reason_of(holdings, T0 + 200) is LicenseReason.EXPIRED
    assert reason_of(holdings, T0 + 199) is LicenseReason.OK
    world.vault.close()


def test_a_suspension_counts_at_once_and_can_be_taken_back() -> None:
    world, holdings = world_with()
    world.validator.withheld = Withheld(number=1, suspended={"license-1": T0 + 30 * DAY})
    assert reason_of(holdings) is LicenseReason.SUSPENDED
    world.validator.withheld = Withheld(number=2, removed={"license-1": T0 + 30 * DAY})
    assert reason_of(holdings) is LicenseReason.REVOKED
    world.validator.withheld = Withheld(number=3)
    assert reason_of(holdings) is LicenseReason.OK
    world.validator.withheld = Withheld(number=4, suspended={"license-1": T0 + 30 * DAY})
    world.validator.revocations = Revocations(revoked=frozenset({"license-1"}))
    assert reason_of(holdings) is LicenseReason.REVOKED  # for good
    world.vault.close()


def test_a_revocation_counts_at_once() -> None:
    world, holdings = world_with()
    assert reason_of(holdings) is LicenseReason.OK
    world.validator.revocations = Revocations(revoked=frozenset({"license-1"}))
    assert reason_of(holdings) is LicenseReason.REVOKED
    world.vault.close()


def test_a_license_that_the_server_takes_away_is_gone_at_once() -> None:
    world, holdings = world_with()
    assert reason_of(holdings) is LicenseReason.OK
    world.inventory.release("license-1")
    assert reason_of(holdings) is None
    world.inventory.hold("license-1", T0, token(), 1, T0 + 30 * DAY, NOW)
    assert reason_of(holdings) is LicenseReason.OK
    world.vault.close()


def test_a_newer_token_takes_the_place_of_the_older() -> None:
    world, holdings = world_with()
    world.validator.import_token(token(iat=T0 + 50, features=("bakery",)), NOW)
    assert reason_of(holdings) is None and reason_of(holdings, feature="bakery") is LicenseReason.OK
    world.vault.close()


def test_what_was_judged_counts_as_used_and_as_not_logged_yet() -> None:
    world, holdings = world_with()
    world.inventory.saw(token(), "license-1", NOW)
    assert reason_of(holdings) is LicenseReason.OK
    assert world.inventory.licenses() == ["license-1"]
    other = token(jti="license-2")
    world.inventory.keep("license-2", T0, other, 1)
    holdings.at(NOW)
    assert world.inventory.licenses() == ["license-1", "license-2"]
    assert world.validator.look(other, NOW).first
    world.vault.close()


def test_a_secret_without_a_successor_gives_the_reason_that_a_token_gets() -> None:
    world, holdings = world_with()
    end = T0 + 8 * DAY
    assert reason_of(holdings, end - 1) is LicenseReason.OK
    assert reason_of(holdings, end) is LicenseReason.DEGRADED_EXPIRED
    # A new run of the agent has opened nothing yet.
    anew = World(meta())
    anew.inventory.keep("license-1", T0, token(), 1)
    fresh = Holdings(anew.validator)
    assert reason_of(fresh, end, "bakery") is LicenseReason.DEGRADED_EXPIRED
    assert reason_of(fresh, end - 1, "bakery") is None and reason_of(fresh, end - 1) is LicenseReason.OK
    for each in (world, anew):
        each.vault.close()


def test_a_license_whose_secret_is_gone_counts_while_it_was_used_lately() -> None:
    world, holdings = world_with()
    world.rotate(meta(2, start=T0 + DAY))
    world.invalidate(1, NOW)
    assert reason_of(holdings, T0 + DAY) is LicenseReason.SECRET_INVALIDATED
    held = holdings.at(T0 + DAY).choose("anything", None)
    assert held is not None and not held.opened
    world.inventory.forget_old(NOW + KEPT_S + 2 * DAY)
    world.ring.touch()
    assert reason_of(holdings, T0 + DAY) is None
    world.vault.close()


def test_an_inventory_that_was_changed_on_disk_licenses_nothing() -> None:
    world = World(meta())
    world.inventory.keep("license-2", T0, token(jti="license-1"), 1)  # a token of another license
    world.inventory.keep("license-3", T0, "garbage", 1)
    world.inventory.keep("license-4", T0, token(aud="pos-002", jti="license-4"), 1)
    holdings = Holdings(world.validator)
    assert [(held.license_id, held.reason.value) for held in holdings.at(NOW).after("")] == [
        ("license-3", "malformed"),
        ("license-4", "wrong_audience"),
    ]
    assert reason_of(holdings) is LicenseReason.WRONG_AUDIENCE
    world.vault.close()


def test_ten_thousand_licenses_are_no_more_than_the_inventory_holds() -> None:
    world = World(meta())
    for number in range(10_000):
        world.inventory.keep(f"license-{number}", T0, "garbage" if number % 100 else token(jti=f"license-{number}"), 1)
    holdings = Holdings(world.validator)
    assert len(holdings.at(NOW)) == MAX_LICENSES
    assert reason_of(holdings) is LicenseReason.OK
    world.vault.close()


def test_those_that_end_soon_are_counted_but_no_seats() -> None:
    ends = {"soon": NOW + EXPIRING_S, "later": NOW + EXPIRING_S + 1, "seat": NOW + 600, "ended": NOW - 1}
    world, holdings = world_with(*(token(jti=name, exp=exp) for name, exp in ends.items() if name != "ended"))
    world.validator.withheld = Withheld(number=1, suspended={"later": T0 + 30 * DAY})
    assert licenses_view(holdings, ["seat"], NOW) == {
        "held": 3, "valid": 2, "suspended": 1, "expiring": 1, "next_end": NOW + EXPIRING_S
    }  # fmt: skip
    assert licenses_view(holdings, [], NOW + EXPIRING_S)["valid"] == 0
    world.vault.close()
