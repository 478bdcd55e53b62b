"""A fleet's configuration from the operator's act to the running agent and back: agent and server in one process.

The wire between them loses, repeats and delays messages; the agent starts again; somebody changes its file.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentd.base.config.config import Config, parse_config
from agentd.daemon import Daemon
from agentd.telemetry.configview import config_view
from agentd.uplink.schedule import CONTACT_SPREAD
from agentd.uplink.transport import Response
from cli.config import config_text
from contracts.contact.configuration import CONFIGURATION
from contracts.exchange import RenewCertificate, purpose_of
from server.agents import device_rows
from server.agents.registry import enrolled
from server.fleet.configuration import drift, settings
from server.registry.models.fleets import DeviceConfiguration, Fleet, FleetMember
from tests.support.pair import AGENT, START, Pair, config_of, prepare

DAY = 86_400
RENEWAL = purpose_of(RenewCertificate)
NIGHT = {"zone": "Europe/Berlin", "days": ["mon"], "start": "22:00", "end": "04:00"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("template"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    with made.server.server_side.database.write() as session:
        device_rows.keep(session, enrolled(session, AGENT), START)
        session.add(
            Fleet(
                id="north", name="", tags="[]", selection=None, rank=1, policy="{}", configuration=None, created_at=START,
                updated_at=START, revision=1,
            )
        )  # fmt: skip
        session.add(FleetMember(fleet_id="north", device_id=AGENT))
    assert made.contact() is None
    yield made
    made.close()


def configure(pair: Pair, members: dict[str, Any]) -> int:
    with pair.server.server_side.database.write() as session:
        return settings.configure(session, "north", members, {}, frozenset(), "sam", START).number


def row(pair: Pair) -> tuple[str, int, str] | None:
    with pair.server.server_side.database.read() as session:
        found = session.get(DeviceConfiguration, AGENT)
        return None if found is None else (found.state, found.number, found.detail)


def drifting(pair: Pair) -> list[str]:
    with pair.server.server_side.database.read() as session:
        return [each.state for each in drift.drifted(session, "north", "", 10)]


def in_force(pair: Pair) -> Config:
    fleet = pair.agent.agent.parts.fleet
    assert fleet is not None
    return fleet.effective.config


def entry(daemon: Daemon, key: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = config_view(daemon.agent.parts.config, {})["entries"]
    return next(each for each in found if each["key"] == key)


def test_what_an_operator_sets_is_in_force_without_a_restart_and_confirmed_in_one_contact(pair: Pair) -> None:
    daemon = Daemon(pair.agent.agent)
    number = configure(pair, {"updates.window": NIGHT, "backup.overdue_hours": 24, "agent.metrics_interval": 60})
    assert drifting(pair) == ["never"]
    pair.wire.seen.clear()
    assert pair.contact() is None
    assert pair.wire.seen.count(CONFIGURATION) == 2, "asked, and confirmed"
    assert row(pair) == ("applied", number, "") and drifting(pair) == []

    async def second() -> None:
        await daemon.tick()

    asyncio.run(second())
    config = daemon.agent.parts.config.config
    assert config.backup.overdue_hours == 24 and config.updates.window is not None
    window = entry(daemon, "updates.window")
    assert (window["value"], window["origin"], "after_restart" in window) == (NIGHT, "fleet", False)
    assert entry(daemon, "updates.notice_h")["origin"] == "default" and entry(daemon, "agent.id")["origin"] == "file"
    text = config_text(config_view(daemon.agent.parts.config, {}))
    assert "22:00 to 04:00 Europe/Berlin, mon" in text and f"fleet north, number {number}" in text
    assert daemon._housekeeping._paces == {"views": 60}


def test_it_counts_after_a_restart_and_without_a_network_and_ends_when_the_fleet_says_so(pair: Pair) -> None:
    configure(pair, {"updates.window": NIGHT})
    assert pair.contact() is None
    pair.wire.cut = True
    pair.restart_agent()
    daemon = Daemon(pair.agent.agent)
    assert entry(daemon, "updates.window")["origin"] == "fleet", "from the first moment"
    assert pair.contact() is not None and in_force(pair).updates.window is not None
    pair.wire.cut = False
    with pair.server.server_side.database.write() as session:
        settings.end(session, "north", START)
    assert pair.contact() is None
    assert in_force(pair) == pair.config and row(pair) == ("applied", 0, "")
    pair.restart_agent()
    assert in_force(pair) == pair.config


def test_the_machines_file_decides_and_the_server_sees_it_at_the_next_contact(pair: Pair) -> None:
    number = configure(pair, {"updates.notice_h": 30})
    assert pair.contact() is None and in_force(pair).updates.notice_h == 30
    daemon = Daemon(pair.agent.agent)
    text = "[fleet]\naccept = []\n"
    forbids = parse_config(text, "config.toml", user=int, group=int)
    state = config_of(Path(pair.config.paths.state_dir).parent)
    daemon._file.read = lambda: (_with(state, forbids), [])
    assert daemon.reload().problems == () and in_force(pair).updates.notice_h == 48
    assert pair.contact() is None
    assert row(pair) == ("limited", number, "updates.notice_h: [fleet] accept of this machine does not name it")
    assert drifting(pair) == ["limited"]
    notes = config_text(config_view(daemon.agent.parts.config, {}))
    assert "NOTE: the fleet's updates.notice_h: [fleet] accept of this machine does not name it" in notes


def _with(config: Config, other: Config) -> Config:
    """A configuration with the section [fleet] of another."""
    return replace(config, fleet=other.fleet)


def test_the_interval_of_contacts_is_the_fleets(pair: Pair) -> None:
    assert pair.agent.cycle.wait_s() > 2000
    configure(pair, {"agent.contact_interval": 600})
    assert pair.contact() is None
    assert 600 * (1 - CONTACT_SPREAD) <= pair.agent.cycle.wait_s() <= 600


def test_the_certificate_is_renewed_when_the_fleet_says_and_not_before(pair: Pair) -> None:
    pair.clock.seconds += 6 * DAY
    pair.wire.seen.clear()
    assert pair.contact() is None and RENEWAL not in pair.wire.seen, "of 30 days, 24 are left"
    number = configure(pair, {"certificates.renew_days_before": 24, "certificates.stagger_days": 1})
    assert pair.contact() is None and row(pair) == ("applied", number, "")
    assert pair.contact() is None and pair.wire.seen.count(RENEWAL) == 1
    assert pair.contact() is None and pair.contact() is None
    assert pair.wire.seen.count(RENEWAL) == 1, "the new one is not renewed at each contact"


def test_a_machine_bounds_how_late_its_certificate_is_renewed(pair: Pair) -> None:
    number = configure(pair, {"certificates.renew_days_before": 1})
    assert pair.contact() is None and in_force(pair).certificates.renew_days_before == 3
    said = "certificates.renew_days_before: 1 is not within this machine's bounds, 3 to 365: it is 3"
    assert row(pair) == ("limited", number, said) and drifting(pair) == ["limited"]


@pytest.mark.parametrize("fate", ["request_lost", "reply_lost", "duplicated", "delayed", "replayed"])
def test_a_link_that_loses_repeats_or_replays_only_delays_it(pair: Pair, fate: str) -> None:
    first = configure(pair, {"updates.notice_h": 30})
    assert pair.contact() is None
    second = configure(pair, {"updates.notice_h": 40})
    pair.wire.fate.message = (CONFIGURATION, fate)
    assert pair.contact() is None, "the contact goes on without it"
    assert in_force(pair).updates.notice_h in (30, 40)
    for _ in range(2):
        pair.clock.seconds += 60
        assert pair.contact() is None
    assert in_force(pair).updates.notice_h == 40 and row(pair) == ("applied", second, "") and second > first


def test_a_server_that_has_not_announced_it_is_never_asked(copy: Callable[[Path], Pair], tmp_path: Path) -> None:
    pair = copy(tmp_path / "old")
    try:
        # The template has had a contact: what it learned is sealed.
        store = pair.agent.store
        names = tuple(name for name in store.record.capabilities if name != CONFIGURATION)
        asyncio.run(store.keep("server.capabilities", {"capabilities": names}, capabilities=list(names)))
        pair.wire.capabilities = Response(404, b"")
        pair.restart_agent()
        pair.wire.seen.clear()
        assert pair.contact() is None and CONFIGURATION not in pair.wire.seen
    finally:
        pair.close()


def test_a_changed_file_raises_an_alert_and_the_next_contact_mends_it(pair: Pair) -> None:
    configure(pair, {"updates.notice_h": 30})
    assert pair.contact() is None
    path = pair.config.fleet_file
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(b".", b"-", 1))
    pair.restart_agent()
    assert in_force(pair).updates.notice_h == 48
    pair.agent.agent.reporter.note()
    raised = [each.event for each in pair.agent.agent.reporter.alerts.raised]
    assert "alert.fleet_configuration" in raised
    assert pair.contact() is None and in_force(pair).updates.notice_h == 30
    pair.agent.agent.reporter.note()
    assert "alert.fleet_configuration" not in [each.event for each in pair.agent.agent.reporter.alerts.raised]


def test_a_registry_that_was_set_back_gives_a_higher_number(pair: Pair) -> None:
    configure(pair, {"updates.notice_h": 30})
    assert pair.contact() is None
    fleet = pair.agent.agent.parts.fleet
    assert fleet is not None and fleet.document is not None
    before = fleet.document.number
    with pair.server.server_side.database.write() as session:
        session.get_one(DeviceConfiguration, AGENT).document = 5
    configure(pair, {"updates.notice_h": 40})
    assert pair.contact() is None
    assert fleet.document.number > before and in_force(pair).updates.notice_h == 40
