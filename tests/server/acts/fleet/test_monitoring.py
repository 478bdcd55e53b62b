"""Acts on the monitoring of fleets, from a contact that fails to the alert that somebody silences."""

from typing import Any

import pytest

from server.accounts.roles import Role
from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.fleets import figures
from server.fleet.monitoring import observations
from server.fleet.monitoring.contacts import Contacts, Failure
from server.fleet.monitoring.intervals import INTERVAL_S, SETTLED_S, interval_of
from server.fleet.monitoring.watch import Watch
from tests.server.acts.operators import Desk, account
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide


class Shop:
    """A fleet of all agents, of which there are 6, judged by 5 contacts at least and at once."""

    def __init__(self, server: ServerSide) -> None:
        self.server, self.desk = server, Desk(server)
        self.at = interval_of(NOW)
        self.olga = account(server, "olga", Role.SECURITY_OFFICER)
        for number in range(1, 7):
            Device(number).come(server)
        self.do("fleets.create", fleet_id="all", selection="kind=agent")
        wish = {"window": 1, "raise_after": 1, "clear_after": 1, "min_contacts": 5, "late": {"critical": 0.5}}
        self.do("fleets.set_thresholds", fleet_id="all", **wish)
        Watch(server.database).run(self.now)

    @property
    def now(self) -> int:
        return self.at + INTERVAL_S + SETTLED_S

    def do(self, act: str, **body: Any) -> Any:
        return self.desk.do(act, self.olga, self.now, **body)

    def goes(self, failing: int) -> None:
        """An interval in which all agents come, and some fail."""
        self.at += INTERVAL_S
        contacts = Contacts(lambda: float(self.at))
        for number in range(1, 7):
            contacts.note(f"pos-{number:06}", 0.3, Failure.REFUSED if number <= failing else Failure.NONE)
        observations.write(self.server.database, contacts, everything=True)
        figures.count(self.server.database, self.now)
        Watch(self.server.database).run(self.now)


@pytest.fixture
def shop(server: ServerSide) -> Shop:
    return Shop(server)


def test_from_failing_contacts_to_an_alert_and_its_end(shop: Shop) -> None:
    empty = shop.do("fleets.health", fleet_id="all")
    assert (empty.contacts, empty.error_rate, empty.alerts) == (0, None, ())
    shop.goes(3)
    found = shop.do("fleets.health", fleet_id="all")
    assert (found.contacts, found.error_rate, found.devices, found.weeks) == (6, 0.5, 6, 0)
    assert found.latency_p95_s == pytest.approx(0.4875)
    assert {(each.kind, each.severity, each.state) for each in found.conditions} == {
        ("error-rate", "warning", "raised"), ("error-rate", "critical", "raised"),
    }  # fmt: skip
    [alert] = shop.do("fleet_alerts.list", fleet="all").items
    assert alert == found.alerts[0] == shop.do("fleet_alerts.show", alert_id=alert.alert_id)
    assert (alert.severity, alert.value, alert.told) == ("critical", 0.5, True)
    taken = shop.do("fleet_alerts.acknowledge", alert_id=alert.alert_id)
    assert (taken.state, taken.acknowledged_by) == ("acknowledged", "olga")
    with pytest.raises(Conflict):
        shop.do("fleet_alerts.acknowledge", alert_id=alert.alert_id)
    shop.goes(0)
    assert shop.do("fleet_alerts.list").items == ()
    [over] = shop.do("fleet_alerts.list", cleared=True).items
    assert (over.alert_id, over.state) == (alert.alert_id, "cleared")


def test_observations_come_in_pages_the_newest_first(shop: Shop) -> None:
    for failing in (1, 2, 3):
        shop.goes(failing)
    first = shop.do("fleets.observations", fleet_id="all", limit=2)
    rest = shop.do("fleets.observations", fleet_id="all", limit=9, after=first.after)
    assert [(row.contacts, row.failed) for row in (*first.items, *rest.items)][:3] == [(6, 3), (6, 2), (6, 1)]
    assert rest.after is None


def test_a_silence_is_made_listed_and_ended(shop: Shop) -> None:
    made = shop.do("fleet_alerts.silence", fleet_id="all", kind="error-rate", ends_at=shop.now + 3600, comment="we move")
    shop.goes(6)
    assert [each.told for each in shop.do("fleet_alerts.list").items] == [False]
    assert shop.do("fleet_alerts.silences").items == (made,)
    ended = shop.do("fleet_alerts.end_silence", silence_id=made.silence_id)
    assert (ended.ends_at, shop.do("fleet_alerts.silences").items) == (shop.now, ())
    shop.goes(6)
    assert [each.told for each in shop.do("fleet_alerts.list").items] == [True]
    for ends_at, problem in ((shop.now, "in the future"), (shop.now + 31 * 86_400, "30 days")):
        with pytest.raises(Invalid, match=problem):
            shop.do("fleet_alerts.silence", ends_at=ends_at)


def test_thresholds_are_read_as_they_were_set(shop: Shop) -> None:
    found = shop.do("fleets.thresholds", fleet_id="all")
    assert (found.window, found.late.critical, found.error_rate.warning, found.zone) == (1, 0.5, 0.05, "UTC")
    changed = shop.do("fleets.set_thresholds", fleet_id="all", zone="Europe/Berlin", error_rate={})
    assert (changed.zone, changed.error_rate.warning, changed.late.critical) == ("Europe/Berlin", None, 0.5)
    assert changed.revision == found.revision + 1
    for wish in ({}, {"zone": "Mars/Olympus"}, {"error_rate": {"warning": 0.5, "critical": 0.1}}):
        with pytest.raises(Invalid):
            shop.do("fleets.set_thresholds", fleet_id="all", **wish)


@pytest.mark.parametrize("act", ["fleets.health", "fleets.observations", "fleets.thresholds"])
def test_a_fleet_that_does_not_exist_is_told(shop: Shop, act: str) -> None:
    with pytest.raises(NotFound, match="there is no fleet 'nobody'"):
        shop.do(act, fleet_id="nobody")
    with pytest.raises(NotFound, match="there is no fleet 'nobody'"):
        shop.do("fleet_alerts.list", fleet="nobody")
