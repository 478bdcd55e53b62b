"""Directive, repository and machine agree, or the judgement says in which point they do not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from contracts.directive import MAX_NUMBER_AHEAD, Directive
from tests.updatetrust.facts import AGENT, FLOORS, STATE, TRUST, directive, target
from tests.vectors.make_directive import NOW
from updatetrust.judgement import Code, Disagreement, Installed, MachineState, agree, effective_floors, judge
from updatetrust.target import Kind, Target
from updatetrust.trustfile import UpdateTrust
from updatetrust.version import Version

V = Version.parse
END = directive().not_after


@dataclass(frozen=True)
class Facts:
    """What is judged; without changes all of it agrees."""

    directive: Directive = field(default_factory=directive)
    target: Target | None = field(default_factory=target)
    trust: UpdateTrust = TRUST
    floors: Mapping[str, Version] = field(default_factory=lambda: FLOORS)
    agent: Version = AGENT
    state: MachineState = STATE
    now: int = NOW


def judged(facts: Facts) -> Target:
    return judge(facts.directive, facts.target, facts.trust, facts.floors, facts.agent, facts.state, facts.now)


def agreed(facts: Facts) -> Target:
    return agree(facts.directive, facts.target, facts.trust, facts.floors, facts.agent, facts.now)


def running(version: str | None, kind: Kind = Kind.SLOTS) -> MachineState:
    return replace(STATE, products={"pos": Installed(kind, None if version is None else V(version))})


GOOD: dict[str, Facts] = {
    "as it should be": Facts(),
    "the last second": Facts(now=END),
    "a clock before the directive's time is only a floor": Facts(now=0),
    "the first version on this machine": Facts(state=running(None)),
    "the version that runs, once more": Facts(state=running("3.2.1")),
    "released in the directive's last second": Facts(target=target(released_at=END)),
    "at the floor": Facts(floors={"pos": V("3.2.1")}),
    "a downgrade that is marked": Facts(directive=directive(downgrade=True), state=running("3.3.0")),
    "an upgrade that is marked as a downgrade": Facts(directive=directive(downgrade=True)),
    "the second kind of hardware": Facts(trust=msgspec.structs.replace(TRUST, hardware="till-arm")),
    "a directive after a withdrawn one": Facts(state=replace(STATE, withdrawn=6)),
    "a number as far ahead as may be": Facts(directive=directive(number=END + MAX_NUMBER_AHEAD), now=END),
    "the first directive": Facts(directive=directive(number=1), state=replace(STATE, executed=0)),
}
BAD: list[tuple[Code, str, Facts]] = [
    (Code.ORDERS_NOTHING, "a withdrawal", Facts(directive=directive(withdraws=6))),
    (Code.OTHER_AGENT, "a directive of another agent", Facts(directive=directive(agent_id="pos-000002"))),
    (Code.DIRECTIVE_EXPIRED, "an expired directive", Facts(now=END + 1)),
    (Code.NOT_IN_REPOSITORY, "the server orders what the vendor never signed", Facts(target=None)),
    (Code.NOT_IN_REPOSITORY, "another target was looked up", Facts(target=target(path="pos/pos-3.2.2.tar.zst"))),
    (Code.LENGTH_DIFFERS, "another length", Facts(target=target(length=13))),
    (Code.DIGEST_DIFFERS, "another package under the same path", Facts(target=target(sha256="0" * 64))),
    (Code.VERSION_DIFFERS, "the directive calls an old package new", Facts(directive=directive(version="9.9"))),
    (Code.VERSION_DIFFERS, "the same version in other words", Facts(directive=directive(version="3.2.1.0"))),
    (Code.BUILD_DIFFERS, "another build", Facts(directive=directive(build_id="ci-1"))),
    (Code.RELEASED_LATER, "a stolen pipeline's key dates a package centuries ahead", Facts(target=target(released_at=END + 1))),
    (Code.OTHER_HARDWARE, "a package for other hardware", Facts(target=target(hardware=["till-arm"]))),
    (Code.AGENT_TOO_OLD, "an agent that is too old", Facts(target=target(min_agent="0.1.1"))),
    (Code.AGENT_TOO_OLD, "an agent before the release that is needed", Facts(agent=V("0.1.0-rc.1"))),
    (Code.NO_FLOOR, "a product that the offline key does not know", Facts(floors={"license-agent": V("0")})),
    (Code.BELOW_FLOOR, "a stolen server key brings back an old version", Facts(floors={"pos": V("3.2.2")})),
    (Code.BELOW_FLOOR, "a downgrade below the floor", Facts(directive=directive(downgrade=True), floors={"pos": V("3.2.2")})),
    (Code.NUMBER_AHEAD, "a stolen server key signs the last number", Facts(directive=directive(number=2**53 - 1))),
    (Code.NUMBER_AHEAD, "one second too far", Facts(directive=directive(number=END + MAX_NUMBER_AHEAD + 1), now=END)),
    (Code.DIRECTIVE_WITHDRAWN, "a captured core keeps a withdrawn directive", Facts(state=replace(STATE, withdrawn=7))),
    (Code.DIRECTIVE_WITHDRAWN, "one before a withdrawn one", Facts(state=replace(STATE, withdrawn=9))),
    (Code.DIRECTIVE_REPLAYED, "a directive that was executed", Facts(state=replace(STATE, executed=7))),
    (Code.DIRECTIVE_REPLAYED, "one before it", Facts(directive=directive(number=3))),
    (Code.OTHER_PRODUCT, "a product that this machine has not", Facts(state=replace(STATE, products={}))),
    (Code.KIND_DIFFERS, "a package of another kind", Facts(target=target(kind="deb"))),
    (Code.KIND_DIFFERS, "an image of SWUpdate", Facts(target=target(kind="swu"))),
    (Code.DOWNGRADE_NOT_ALLOWED, "a captured core orders an old signed image", Facts(state=running("3.2.2"))),
    (Code.DOWNGRADE_NOT_ALLOWED, "a release back to its pre-release", Facts(
        directive=directive(version="3.2.1-rc.1"), target=target(version="3.2.1-rc.1"), state=running("3.2.1"))),
]  # fmt: skip
ROOTS_ONLY = {
    Code.NUMBER_AHEAD,
    Code.DIRECTIVE_WITHDRAWN,
    Code.DIRECTIVE_REPLAYED,
    Code.KIND_DIFFERS,
    Code.DOWNGRADE_NOT_ALLOWED,
}


@pytest.mark.parametrize("facts", GOOD.values(), ids=GOOD)
def test_what_agrees_is_installed(facts: Facts) -> None:
    assert judged(facts) == agreed(facts) == facts.target


@pytest.mark.parametrize(("code", "name", "facts"), BAD, ids=[name for _, name, _ in BAD])
def test_each_disagreement_has_its_code(code: Code, name: str, facts: Facts) -> None:
    with pytest.raises(Disagreement) as caught:
        judged(facts)
    assert caught.value.code is code and f"({code.value})" in str(caught.value)
    if code in ROOTS_ONLY or facts.state.products == {}:
        assert agreed(facts) == facts.target
    else:
        with pytest.raises(Disagreement) as early:
            agreed(facts)
        assert early.value.code is code


def test_every_code_has_its_case() -> None:
    assert {code for code, _, _ in BAD} == set(Code)


@pytest.mark.parametrize("member", ["product", "target", "sha256", "length", "version", "build_id"])
def test_directive_and_repository_agree_in_each_member(member: str) -> None:
    """No value of one of them alone is believed: whichever of the six differs, nothing is installed."""
    other: dict[str, dict[str, Any]] = {
        "product": {"product": "pot", "target": "pot/pos-3.2.1.tar.zst"},
        "target": {"target": "pos/other"},
        "sha256": {"sha256": "1" * 64},
        "length": {"length": 1},
        "version": {"version": "4"},
        "build_id": {"build_id": "x"},
    }
    with pytest.raises(Disagreement) as caught:
        judged(Facts(directive=directive(**other[member])))
    assert caught.value.code in {
        Code.NOT_IN_REPOSITORY, Code.DIGEST_DIFFERS, Code.LENGTH_DIFFERS, Code.VERSION_DIFFERS, Code.BUILD_DIFFERS,
    }  # fmt: skip


def test_the_higher_floor_counts_and_only_for_what_the_vendor_names() -> None:
    signed = {"pos": V("3.0"), "license-agent": V("0.1")}
    kept = {"pos": V("3.1"), "license-agent": V("0.0.9"), "old": V("1")}
    assert effective_floors(kept, signed) == {"pos": V("3.1"), "license-agent": V("0.1")}
    assert effective_floors({}, signed) == signed and effective_floors(kept, {}) == {}
