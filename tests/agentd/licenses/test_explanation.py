"""An explanation names the check that decided, and says of the others no more than is known."""

import itertools
import json
from collections.abc import Callable

import pytest

from agentd.base.errors import NoSuchLicense
from agentd.licenses.explanation import FAILED, PASSED, UNKNOWN, explain_license, explain_token
from agentd.licenses.seats import Floating
from agentd.secrets.revocations import Revocations
from agentd.secrets.withheld import Withheld
from ipc.answers import Reason
from server.keys.jose import issue_token, new_signing_key
from tests.agentd.world import DAY, T0, World, meta, secret, token
from tests.contracts.world import CLAIMS

NOW = T0 + 100
END = T0 + 30 * DAY
Change = Callable[[World], None]

REASONS_OF = {
    None: {Reason.OK},
    1: {Reason.MALFORMED},
    2: {Reason.WRONG_AUDIENCE},
    3: {Reason.UNKNOWN_SECRET},
    4: {Reason.SECRET_INVALIDATED, Reason.DEGRADED_EXPIRED},
    5: {Reason.BAD_SIGNATURE, Reason.MALFORMED, Reason.WRONG_AUDIENCE},
    6: {Reason.REVOKED},
    7: {Reason.NOT_YET_VALID},
    8: {Reason.EXPIRED},
    9: {Reason.REVOCATIONS_STALE},
}
"""What each deciding check may give; None where all have passed."""

TOKENS = {
    "good": token(),
    "cut": token().rpartition(".")[0],
    "text": "x",
    "of another machine": token(aud="pos-002"),
    "of another server": issue_token(CLAIMS, secret(1), 1, new_signing_key()),
    "of another issuer": token(iss="https://other"),
    "changed": token()[:-4] + "AAAA",
    "of no secret": token(9),
    "early": token(nbf=NOW + 1),
    "late": token(exp=NOW),
}


def _refuse_stale(world: World) -> None:
    world.validator.revocations = Revocations(number=1, next_update=NOW)
    world.validator.refuse_stale_revocations(True)


CHANGES: dict[str, Change] = {
    "no change": lambda _world: None,
    "revoked": lambda world: setattr(world.validator, "revocations", Revocations(number=1, revoked=frozenset({"license-1"}))),
    "suspended": lambda world: setattr(world.validator, "withheld", Withheld(number=1, suspended={"license-1": END})),
    "invalidated": lambda world: world.invalidate(1),
    "stale": _refuse_stale,
}


@pytest.mark.parametrize(("text", "change"), list(itertools.product(TOKENS, CHANGES)))
@pytest.mark.parametrize("now", [NOW, T0 + 9 * DAY, T0 + 40 * DAY])
@pytest.mark.parametrize("before", [False, True], ids=["first seen", "seen before"])
def test_the_first_check_that_fails_decides(
    make_world: Callable[..., World], text: str, change: str, now: int, before: bool
) -> None:
    world = make_world()
    if before:
        world.validator.look(TOKENS[text], NOW)
    CHANGES[change](world)
    found = explain_token(world.validator, TOKENS[text], now)
    ruling = world.validator.validate(TOKENS[text], now)
    assert found["reason"] == ruling.verdict.reason.value
    assert ruling.verdict.reason in REASONS_OF[found["check"]]
    results = [check["result"] for check in found["checks"]]
    assert [check["number"] for check in found["checks"]] == list(range(1, 10))
    decided = len(results) if found["check"] is None else found["check"] - 1
    assert results[:decided] == [PASSED] * decided
    if found["check"] is not None:
        assert results[decided] == FAILED
    # The token itself is in no reply, nor is what the issuer attached to the license.
    assert TOKENS[text] not in json.dumps(found) or TOKENS[text] == "x"
    assert "metadata" not in found


def test_a_later_check_is_judged_where_its_facts_are_known(make_world: Callable[..., World]) -> None:
    world, text = make_world(), token(exp=NOW)
    world.validator.withheld = Withheld(number=1, suspended={"license-1": END})
    found = explain_token(world.validator, text, NOW)
    results = {check["number"]: check["result"] for check in found["checks"]}
    assert (found["check"], found["withheld"], found["revoked"]) == (6, "suspended", False)
    assert (results[6], results[7], results[8], results[9]) == (FAILED, PASSED, FAILED, PASSED)


def test_what_cannot_be_known_is_no_pass(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.invalidate(1)
    results = {check["number"]: check["result"] for check in explain_token(world.validator, token(), NOW)["checks"]}
    assert [results[number] for number in (5, 6, 7, 8)] == [UNKNOWN] * 4


def test_the_secret_is_named_with_its_dates_as_far_as_the_agent_has_it(make_world: Callable[..., World]) -> None:
    world = make_world(meta(1, "GRACE"), meta(2, start=T0 + 1))
    secret_ = explain_token(world.validator, token(1), NOW)["secret"]
    assert secret_ == {"version": 1, "newest": 2, "state": "GRACE", "grace_until": T0 + 8 * DAY, "invalidated_at": None}
    world.invalidate(1, NOW)
    assert explain_token(world.validator, token(1), NOW)["secret"]["invalidated_at"] == NOW
    assert explain_token(world.validator, token(7), NOW)["secret"] == {
        "version": 7, "newest": 2, "state": None, "grace_until": None, "invalidated_at": None
    }  # fmt: skip


def test_a_newer_token_is_named_with_its_verdict(make_world: Callable[..., World]) -> None:
    world = make_world(meta(1, "GRACE"), meta(2, start=T0 + 1))
    old, new = token(1), token(2, iat=CLAIMS.iat + 1)
    world.validator.import_token(new, NOW)
    assert explain_token(world.validator, old, NOW)["newest"] == {"reason": "ok", "secret_version": 2}
    assert explain_token(world.validator, new, NOW)["newest"] is None


def test_by_its_id_the_newest_token_is_explained(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.validator.import_token(token(), NOW)
    found = explain_license(world.validator, "license-1", NOW)
    assert (found["token"], found["reason"], found["check"], found["license"]) == ("kept", "ok", None, "license-1")


def test_a_license_without_a_token_is_explained_by_what_is_known_of_it(make_world: Callable[..., World]) -> None:
    world = make_world()
    with pytest.raises(NoSuchLicense) as refused:
        explain_license(world.validator, "license-1", NOW)
    assert "license-1" not in str(refused.value)  # what was given may be a secret, and the text is logged
    world.validator.look(token(), NOW)  # a till has shown it; the agent keeps no token that it was only shown
    found = explain_license(world.validator, "license-1", NOW)
    assert (found["token"], found["reason"], found["check"]) == (None, "no_license", None)
    world.validator.withheld = Withheld(number=1, removed={"license-1": END})
    found = explain_license(world.validator, "license-1", NOW)
    assert (found["reason"], found["check"], found["withheld"]) == ("revoked", 6, "removed")


def test_a_floating_license_is_explained_by_its_seat(make_world: Callable[..., World]) -> None:
    world, floating = make_world(), Floating(None, ("till",), END, 600)
    world.validator.seats.replace({"floating-1": floating}, [])
    found = explain_license(world.validator, "floating-1", NOW)
    assert (found["reason"], found["seat"]["offered"], found["seat"]["seat"]) == ("no_seat", True, None)
    floating.seat, floating.lease_until, floating.grace_until = "license-1", NOW + 10, NOW + 20
    world.validator.import_token(token(), NOW)
    found = explain_license(world.validator, "floating-1", NOW)
    assert (found["license"], found["reason"]) == ("license-1", "ok")
    assert found["seat"] == {
        "floating": "floating-1", "offered": True, "seat": "license-1", "renewed_from": NOW + 10, "ends": NOW + 20
    }  # fmt: skip
