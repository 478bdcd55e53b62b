"""What the server calls proved: only what the agent's signed report says that it runs, whatever else it or anybody says."""

from collections.abc import Iterator

import pytest

from contracts.contact.updates import OutcomeState, RunningVersion, UpdatesReply, UpdatesRequest
from server.ota.directive_states import DIRECTIVE_STATES, EVENT_OF, Event, State
from tests.server.licensing.states.test_changes import make_till
from tests.server.ota.test_directives import NEW, OLD, TRIAL, Shop, said
from tests.support.serverside import ServerSide

on_sqlite = pytest.mark.parametrize("directory", ["sqlite"], indirect=True)
"""Nothing here depends on the database."""


@pytest.fixture
def shop(server: ServerSide) -> Iterator[Shop]:
    yield Shop(server)


def test_only_what_runs_makes_a_directive_proved() -> None:
    assert {event for _, event, after in DIRECTIVE_STATES if after is State.PROVED} == {Event.RUN}
    assert Event.RUN not in EVENT_OF.values(), "no outcome that an agent reports says that"
    assert not [event for before, event, _ in DIRECTIVE_STATES if before is State.PROVED], "and nothing takes it back"


@on_sqlite
def test_no_outcome_that_is_reported_proves_anything(shop: Shop) -> None:
    for order in (tuple(OutcomeState), tuple(reversed(OutcomeState))):
        number = shop.assign(replace=True).number
        for state in order:
            shop.ask(number, OLD, said(number, state))
        assert shop.states()[number] != "proved", order


@on_sqlite
def test_another_build_version_or_product_proves_nothing(shop: Shop) -> None:
    number = shop.assign().number
    for runs in ("", OLD, TRIAL, f"{NEW}x", NEW.replace("1.1.0", "1.1.1")):
        shop.ask(number, runs, said(number, OutcomeState.COMMITTED))
        assert shop.states() == {number: "installed"}, runs
    shop.ask(number, NEW)
    assert shop.states() == {number: "proved"}


@on_sqlite
def test_a_version_that_an_agent_took_back_is_not_proved_by_what_it_says_later(shop: Shop) -> None:
    """It rolled back, and says afterward that it has committed: what it runs is what counts."""
    number = shop.assign().number
    shop.ask(number, OLD, said(number, OutcomeState.ROLLED_BACK, "unproved"))
    shop.ask(number, OLD, said(number, OutcomeState.COMMITTED))
    assert shop.states() == {number: "rolled-back"}


@on_sqlite
def test_what_an_agent_reported_before_does_not_prove_a_later_order(shop: Shop) -> None:
    """The report that counts is that of the contact itself: the build must still run."""
    shop.ask(runs=NEW)
    first = shop.assign()
    assert shop.states() == {first.number: "ordered"}, "what was said before the order is no proof of it"
    shop.ask(first.number, OLD)
    assert shop.states() == {first.number: "delivered"}


@on_sqlite
def test_a_withdrawn_or_superseded_directive_is_not_proved_by_what_runs_anyway(shop: Shop) -> None:
    first = shop.assign().number
    shop.ask(first, OLD)
    second = shop.assign(TRIAL, candidate=True, replace=True).number
    shop.ask(second, NEW)
    assert shop.states()[first] == "superseded"
    shop.do("withdraw")
    shop.ask(second, TRIAL)
    assert shop.states()[second] == "withdrawn"


@on_sqlite
def test_an_agent_proves_nothing_of_another_one(shop: Shop) -> None:
    number = shop.assign().number
    other = make_till(shop.server, 2)
    runs = (RunningVersion(product="pos", version="1.1.0", build_id="b2"),)
    reply: UpdatesReply = other.ask(
        UpdatesRequest, UpdatesReply, running=runs, directive=number, outcomes=said(number, OutcomeState.COMMITTED)
    )
    assert reply.acknowledged == (number,) and shop.states() == {number: "ordered"}
