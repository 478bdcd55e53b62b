"""An operator changes a fleet's settings at the server, and the till has them: real processes, real TLS, a captured link.

Nobody touches the till; its own file decides what of the fleet's settings counts there.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chain import Chain, running_chain
from tests.support.hostilelink import Failure, always
from tests.support.waiting import wait_until

PAUSE_S = 0.3


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        made.server_cli("fleets", "add", "north")
        made.server_cli("fleets", "members", "add", "north", made.agent_id)
        yield made


def contact(chain: Chain) -> None:
    wait_until(lambda: chain.asks("contact") == "", chain.log, pause_s=PAUSE_S)


def entry(chain: Chain, key: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = chain.admin("config_show")["entries"]
    return next(each for each in entries if each["key"] == key)


def comes(chain: Chain, key: str, value: object, origin: str) -> None:
    """What was taken in counts within a second. Each question is a new connection, and the agent takes few in a second."""
    wait_until(lambda: (entry(chain, key)["value"], entry(chain, key)["origin"]) == (value, origin), chain.log, pause_s=PAUSE_S)


def drift(chain: Chain) -> list[tuple[str, str]]:
    return [(each["state"], each["detail"]) for each in json.loads(chain.server_cli("fleets", "drift", "north", "--json"))]


def test_settings_reach_the_till_survive_its_end_and_are_confirmed(chain: Chain) -> None:
    chain.server_cli(
        "fleets", "configure", "north", "--set", "updates.notice_h=36", "--set",
        "updates.window=daily 22:00-04:00 Europe/Berlin",
    )  # fmt: skip
    assert drift(chain) == [("never", "")]
    contact(chain)
    comes(chain, "updates.notice_h", 36, "fleet")
    assert drift(chain) == []
    assert "fleet north, number 1" in chain.cli("config", "show") and "22:00 to 04:00 Europe/Berlin" in chain.cli(
        "ota", "windows"
    )
    found = json.loads(chain.server_cli("fleets", "configuration", "north", "--json"))
    assert found["agents"] == {"sent": 0, "applied": 1, "limited": 0, "refused": 0}
    chain.kill_agent()
    assert entry(chain, "updates.notice_h")["origin"] == "fleet", "from the file, before any contact"
    assert [each["outcome"] for each in chain.records("config.fleet")] == ["applied"]


def test_a_captured_link_that_drops_the_request_is_seen_at_the_server(chain: Chain) -> None:
    chain.server_cli("fleets", "configure", "north", "--set", "updates.notice_h=40")
    with chain.bad.behaving(always("configuration", lambda _asked: Failure())):
        contact(chain)
        assert entry(chain, "updates.notice_h")["value"] == 36, "what was in force stays so"
        assert [state for state, _detail in drift(chain)] == ["behind"]
    contact(chain)
    comes(chain, "updates.notice_h", 40, "fleet")
    assert drift(chain) == []


def test_the_tills_own_file_decides_and_the_operator_sees_why(chain: Chain) -> None:
    before = chain.agent.config.read_text()
    chain.agent.write_raw_config(before + '\n[fleet]\nlimits = { "updates.notice_h" = [48, 60] }\n')
    assert chain.admin("reload")["problems"] == []
    comes(chain, "updates.notice_h", 48, "fleet")
    contact(chain)
    assert drift(chain) == [
        ("limited", "updates.notice_h: 40 is not within this machine's bounds, 48 to 60: it is 48")
    ]  # fmt: skip
    chain.agent.write_raw_config(before)
    assert chain.admin("reload")["problems"] == []
    contact(chain)
    comes(chain, "updates.notice_h", 40, "fleet")
    assert drift(chain) == []


def test_a_file_that_somebody_changed_counts_for_nothing_until_the_next_contact(chain: Chain) -> None:
    path = chain.agent.state / "fleet-configuration.json"
    path.write_bytes(path.read_bytes().replace(b".", b"-", 1))
    with chain.bad.behaving(always("configuration", lambda _asked: Failure())):
        chain.kill_agent()
        comes(chain, "updates.notice_h", 48, "default")
        wait_until(lambda: bool(chain.records("alert.fleet_configuration")), chain.log)
    contact(chain)
    comes(chain, "updates.notice_h", 40, "fleet")


def test_what_the_fleet_had_set_ends_when_the_till_leaves_it(chain: Chain) -> None:
    chain.server_cli("fleets", "members", "remove", "north", chain.agent_id)
    contact(chain)
    comes(chain, "updates.notice_h", 48, "default")
    assert chain.records("config.fleet")[-1]["outcome"] == "removed"
