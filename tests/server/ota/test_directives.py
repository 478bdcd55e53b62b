"""What agents are ordered to install, over signed requests; on both databases."""

from collections.abc import Iterator
from typing import Any

import pytest

from contracts.contact.updates import Outcome, OutcomeState, RunningVersion, UpdatesReply, UpdatesRequest
from contracts.directive import Directive, verify_directive
from server.accounts.roles import Role
from server.acts.approvals import ApprovalNeeded
from server.acts.caller import Caller, local
from server.base.errors import Conflict, Invalid, NotFound
from server.licensing.lists.agent_view import view
from server.ota import publishing
from server.ota.directive_states import DIRECTIVE_STATES, EVENT_OF, OPEN, Event, State
from server.ota.packages import Package
from server.ota.windows import parse_window
from server.ota.words import CANDIDATE, DAY_S, RELEASES
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW
from tests.server.licensing.states.test_changes import make_till
from tests.server.ota.vendor import HARDWARE, target_of
from tests.support.serverside import ServerSide

OLD, NEW, TRIAL = (f"pos/pos-{version}-{build}" for version, build in (("1.0.0", "b1"), ("1.1.0", "b2"), ("1.2.0", "b3")))


class Shop:
    """A till, an operator, and three packages."""

    def __init__(self, server: ServerSide) -> None:
        self.server, self.till, self.desk = server, make_till(server, 1), Desk(server)
        self.agent = self.till.agent.agent_id
        self.operator: Caller = account(server, "olga", Role.SUPPORT)
        names = ((RELEASES, "1.0.0", "b1"), (RELEASES, "1.1.0", "b2"), (CANDIDATE, "1.2.0", "b3"))
        with server.database.write() as session:
            packages = [Package(role, target_of(version, build)) for role, version, build in names]
            publishing.record(session, packages, NOW)

    def do(self, act: str, caller: Caller | None = None, /, **body: Any) -> Any:
        return self.desk.do(f"updates.{act}", caller or self.operator, self.till.now, agent_id=self.agent, **body)

    def assign(self, target: str = NEW, **body: Any) -> Any:
        return self.do("assign", target=target, **body)

    def ask(self, directive: int = 0, runs: str = "", outcomes: tuple[Outcome, ...] = (), **more: Any) -> UpdatesReply:
        version, _, build = runs.removeprefix("pos/pos-").partition("-")
        running = (RunningVersion(product="pos", version=version, build_id=build),) if runs else ()
        reply: UpdatesReply = self.till.ask(
            UpdatesRequest, UpdatesReply, running=running, directive=directive, outcomes=outcomes, **more
        )
        return reply

    def directive(self, directive: int = 0, runs: str = "") -> Directive | None:
        reply = self.ask(directive, runs)
        trust = self.till.agent.trust
        assert trust is not None
        return None if reply.directive is None else verify_directive(reply.directive, trust)

    def states(self) -> dict[int, str]:
        return {row.number: row.state for row in self.do("show").directives}


def said(number: int, state: OutcomeState, detail: str = "") -> tuple[Outcome, ...]:
    return (Outcome(number=number, state=state, detail=detail, at=NOW),)


@pytest.fixture
def shop(server: ServerSide) -> Iterator[Shop]:
    yield Shop(server)


def test_a_directive_is_delivered_installed_and_proved(shop: Shop) -> None:
    assert shop.ask(runs=OLD).directive is None
    row = shop.assign(window={"zone": "Europe/Berlin", "days": ["mon"], "start": "22:00", "end": "05:00"})
    found = shop.directive(runs=OLD)
    assert found is not None
    assert (found.number, found.target, found.version, found.build_id) == (row.number, NEW, "1.1.0", "b2")
    assert (found.agent_id, found.product, found.downgrade, found.withdraws) == (shop.agent, "pos", False, None)
    assert found.notice_until == shop.till.now + 2 * DAY_S and found.window is not None and found.window.start == "22:00"
    assert shop.states() == {row.number: "ordered"}
    again = shop.directive(row.number, runs=OLD)
    assert again == found and shop.states() == {row.number: "delivered"}
    reply = shop.ask(row.number, OLD, said(row.number, OutcomeState.PROGRESS, "downloading"))
    assert reply.acknowledged == (row.number,) and reply.directive is not None
    assert shop.states() == {row.number: "under-way"}
    # What a client claims is not yet what it runs.
    assert shop.ask(row.number, OLD, said(row.number, OutcomeState.COMMITTED)).directive is None
    assert shop.states() == {row.number: "installed"}
    assert shop.ask(row.number, NEW).directive is None
    assert shop.states() == {row.number: "proved"}
    shown = shop.do("show")
    assert shown.directives[0].detail == "", "what was said while it was under way is over"
    assert [(each.product, each.version, each.build_id) for each in shown.running] == [("pos", "1.1.0", "b2")]
    kinds = [each.event for each in shop.server.audit.tail(20)]
    assert kinds.index("update.assigned") < kinds.index("agent.update_installed") < kinds.index("agent.update_proved")


@pytest.mark.parametrize(
    ("state", "after", "counts"),
    [
        (OutcomeState.ROLLED_BACK, "rolled-back", False),
        (OutcomeState.REFUSED, "refused", False),
        (OutcomeState.LOCKED, "locked", True),
        (OutcomeState.PROGRESS, "under-way", True),
    ],
)
def test_an_outcome_is_noted_once_and_acknowledged_always(shop: Shop, state: OutcomeState, after: str, counts: bool) -> None:
    number = shop.assign().number
    for _ in range(2):
        reply = shop.ask(number, OLD, (*said(number, state, "why"), *said(7, state)))
        assert reply.acknowledged == (number, 7)
        assert (reply.directive is not None) is counts
    row = shop.do("show").directives[0]
    assert (row.state, row.detail) == (after, "why")
    assert len([each for each in shop.server.audit.tail(20) if each.event.startswith("agent.update_")]) == (
        0 if state is OutcomeState.PROGRESS else 1
    )


def test_one_directive_counts_at_a_time(shop: Shop) -> None:
    first = shop.assign()
    with pytest.raises(Conflict, match=f"directive {first.number} for {NEW} still counts"):
        shop.assign()
    second = shop.assign(replace=True)
    assert second.number > first.number
    assert shop.states() == {first.number: "superseded", second.number: "ordered"}
    found = shop.directive()
    assert found is not None and found.number == second.number


def test_a_directive_is_withdrawn_by_another_one(shop: Shop) -> None:
    first = shop.assign()
    shop.ask(first.number)
    row = shop.do("withdraw")
    found = shop.directive(first.number)
    assert found is not None and (found.number, found.withdraws, found.target) == (row.number, first.number, NEW)
    assert shop.states() == {first.number: "withdrawn", row.number: "ordered"}
    assert shop.directive(row.number) is None
    with pytest.raises(NotFound, match="no directive counts"):
        shop.do("withdraw")
    # It was too late: the agent says what it has done, and that counts.
    shop.ask(row.number, OLD, said(first.number, OutcomeState.COMMITTED))
    assert shop.states()[first.number] == "installed"


def test_a_directive_ends(shop: Shop) -> None:
    number = shop.assign(not_after=shop.till.now + 3600).number
    shop.till.now += 3600
    assert shop.directive(number) is None
    assert shop.states() == {number: "expired"}
    assert shop.assign().number > number


def test_numbers_grow_also_behind_a_registry_that_was_restored(shop: Shop) -> None:
    """The agent knows a directive of before: what the registry has does not count, and the next one is above it."""
    number = shop.assign().number
    known = number + 10**6
    assert shop.directive(known) is None
    assert shop.states() == {number: "superseded"}
    assert [each.outcome for each in shop.server.audit.tail(9) if each.event == "update.lost"] == ["alert"]
    assert shop.assign().number > known


def test_updates_pause_for_one_agent_or_all(shop: Shop) -> None:
    number = shop.assign().number
    guard = account(shop.server, "gerd", Role.SECURITY_OFFICER)
    shop.do("pause")
    assert shop.ask().paused and shop.ask().directive is not None
    shop.do("resume")
    assert not shop.ask().paused
    shop.desk.do("updates.pause_all", shop.operator, shop.till.now)
    assert shop.ask(number).paused and shop.do("show").paused
    shop.desk.do("updates.resume_all", guard, shop.till.now)
    assert not shop.ask(number).paused


def test_a_package_for_other_hardware_is_not_ordered(shop: Shop) -> None:
    """What the agent has not said is not known, and refuses nothing: its machine judges."""
    assert shop.assign().hardware is None and shop.do("show").hardware is None
    shop.ask(hardware="till-arm")
    with pytest.raises(Conflict, match=rf"{NEW} is for .*, and agent '{shop.agent}' is a till-arm: it would refuse it"):
        shop.assign(replace=True)
    shop.ask()  # a release that does not say it, as after a rollback
    assert shop.do("show").hardware == "till-arm"
    shop.ask(hardware=HARDWARE[0])
    assert shop.assign(replace=True).hardware == shop.do("show").hardware == HARDWARE[0]
    with shop.server.database.read() as session:
        found = view(session, shop.agent, shop.till.now)
    assert found.update_hardware == found.as_json(shop.till.now)["update_hardware"] == HARDWARE[0]


def test_a_downgrade_takes_two_people(shop: Shop) -> None:
    shop.ask(runs=NEW)
    with pytest.raises(Conflict, match="give --downgrade"):
        shop.assign(OLD)
    guard, other = (account(shop.server, name, Role.SECURITY_OFFICER) for name in ("gerd", "hans"))
    with pytest.raises(ApprovalNeeded) as asked:
        shop.do("downgrade", guard, target=OLD)
    approval = asked.value.approval.approval_id
    shop.desk.do("approvals.approve", other, shop.till.now, approval_id=approval)
    row = shop.do("downgrade", guard, target=OLD, approval=approval)
    found = shop.directive(runs=NEW)
    assert found is not None and (found.number, found.downgrade) == (row.number, True)


def test_nobody_is_asked_to_approve_what_the_machine_would_refuse(shop: Shop) -> None:
    shop.ask(runs=NEW, hardware="till-arm")
    guard = account(shop.server, "gerd", Role.SECURITY_OFFICER)
    for _ in range(2):
        with pytest.raises(Conflict, match="is a till-arm: it would refuse it"):
            shop.do("downgrade", guard, target=OLD)
    with pytest.raises(NotFound, match="no package"):
        shop.do("downgrade", guard, target="pos/nothing")
    with pytest.raises(Conflict, match="is ordered to install nothing"):
        shop.do("bundle", guard, target=OLD, days=3)
    assert not shop.desk.do("approvals.list", guard, shop.till.now).items
    shop.ask(runs=NEW, hardware=HARDWARE[0])
    with pytest.raises(ApprovalNeeded):
        shop.do("downgrade", guard, target=OLD)
    assert len(shop.desk.do("approvals.list", guard, shop.till.now).items) == 1


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown package": ({"target": "pos/nothing"}, NotFound, "no package"),
    "candidate": ({"target": TRIAL}, Conflict, "is a candidate"),
    "over already": ({"not_before": NOW - 99, "not_after": NOW - 9}, Invalid, "ends later than now"),
    "too long": ({"not_after": NOW + 400 * DAY_S}, Invalid, "within 366 days"),
    "begins later than it ends": ({"not_before": NOW + 99, "not_after": NOW + 50}, Invalid, "does not fit together"),
    "a window without length": (
        {"window": {"zone": "UTC", "days": ["mon"], "start": "22:00", "end": "22:00"}}, Invalid, "start and end must differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_ordered(shop: Shop, name: str) -> None:
    body, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        shop.assign(**({"target": NEW} | body))
    assert shop.states() == {}


def test_a_candidate_is_tried_and_a_withdrawn_package_never_ordered(shop: Shop) -> None:
    assert shop.assign(TRIAL, candidate=True).target == TRIAL
    with shop.server.database.write() as session:
        publishing.record(session, [Package(RELEASES, target_of("1.0.0", "b1"))], NOW)
    with pytest.raises(NotFound, match="has no package"):
        shop.assign(NEW, replace=True)
    rows = shop.desk.do("updates.packages", local(), NOW).items
    assert {row.path: row.role for row in rows} == {OLD: "releases", NEW: "withdrawn", TRIAL: "withdrawn"}


def test_an_agent_that_is_revoked_is_given_nothing(shop: Shop) -> None:
    shop.desk.do("agents.revoke", local(), shop.till.now, agent_id=shop.agent)
    with pytest.raises(Conflict, match="is revoked"):
        shop.assign()


# The table


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_what_ends_a_directive_does_not_open_it_again(state: State, event: Event) -> None:
    known = {(before, what): after for before, what, after in DIRECTIVE_STATES}
    after = known.get((state, event))
    assert after is None or state in OPEN or after not in OPEN


def test_every_outcome_does_something() -> None:
    assert EVENT_OF.keys() == set(OutcomeState)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("mon-fri 22:00-05:00 Europe/Berlin", "mon tue wed thu fri"),
        ("daily 01:00-02:00 UTC", "mon tue wed thu fri sat sun"),
        ("sun,fri-sat 01:00-02:00 UTC", "fri sat sun"),
        ("sat-mon 01:00-02:00 UTC", "mon sat sun"),
    ],
)
def test_a_window_is_read(text: str, days: str) -> None:
    assert " ".join(parse_window(text).days) == days


@pytest.mark.parametrize("text", ["", "mon 22:00 UTC", "xyz 22:00-23:00 UTC", "mon 22:00-22:00 UTC", "mon- 1:00-2:00 UTC"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|day"):
        parse_window(text)
