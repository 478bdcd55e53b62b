"""Two seats for three tills: real agents, links and a real server; a till asks, and its agent contacts the server by itself."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agentd.sync.cycle import SEAT_PAUSE_S
from tests.support.chain import Chain, running_chain
from tests.support.hostilelink import Asked, Failure, always
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def tills() -> Iterator[list[Chain]]:
    with ExitStack() as stack:
        first = stack.enter_context(running_chain())
        made = [first, *(stack.enter_context(running_chain(beside=first)) for _ in range(2))]
        first.server_cli("customers", "create", "c-1")
        first.server_cli("sites", "create", "s-1", "--customer", "c-1")
        first.server_cli("issue", "--site", "s-1", "--feature", "kiosk", "--expires", "+30d", "--license-id", "pool")
        first.server_cli("seats", "set", "pool", "--seats", "2")
        for till in made:
            first.server_cli("agents", "assign", till.agent_id, "s-1")
        yield made


def required(till: Chain) -> tuple[bool, str]:
    with till.pos() as client:
        found = client.require("kiosk")
        return found.valid, str(found.reason)


def contact(till: Chain) -> None:
    wait_until(lambda: till.asks("contact") == "", till.log, pause_s=0.3)


def taken(till: Chain) -> list[str]:
    """Who has a seat, by the server."""
    return sorted(row["agent_id"] for row in json.loads(till.server_cli("seats", "show", "pool", "--json")))


def test_two_of_three_tills_work_and_the_third_does_when_a_seat_is_free(tills: list[Chain]) -> None:
    first, second, third = tills
    for till in tills:
        contact(till)
        assert required(till) == (False, "no_seat")
    for till in tills:
        contact(till)
    assert [required(till) for till in tills] == [(True, "ok"), (True, "ok"), (False, "no_seat")]
    assert taken(first) == sorted([first.agent_id, second.agent_id])
    assert json.loads(first.server_cli("seats", "list", "--json"))[0]["taken"] == 2
    # Restarted agents and a restarted server change nothing of it.
    first.kill_agent()
    first.kill_server()
    first.start_server()
    assert required(first) == (True, "ok")
    contact(third)
    assert required(third) == (False, "no_seat")
    # The second till leaves the site: its seat goes to the third.
    first.server_cli("agents", "assign", second.agent_id)
    contact(second)
    assert required(second) == (False, "no_license")
    second.kill_agent()
    assert required(second)[0] is False
    third.kill_agent()  # forgets that it was refused a moment ago
    contact(third)
    assert required(third) == (False, "no_seat")
    contact(third)
    assert required(third) == (True, "ok") and taken(first) == sorted([first.agent_id, third.agent_id])


def test_a_till_that_waits_brings_about_a_contact_and_a_lost_reply_costs_no_seat(tills: list[Chain]) -> None:
    first, second, third = tills

    def lost(asked: Asked) -> Failure:
        asked.forward()
        return Failure()

    contact(first)
    required(first)  # takes a seat, if no test before has
    contact(first)
    assert required(first) == (True, "ok")
    first.server_cli("agents", "assign", second.agent_id, "s-1")
    contact(second)
    first.server_cli("agents", "assign", third.agent_id)
    contact(third)
    assert required(third)[0] is False and taken(first) == [first.agent_id]
    with second.bad.behaving(always("lease-seats", lost)):  # also of a contact that the till begins by itself
        assert required(second) == (False, "no_seat")
        soon = second.admin("status")["server"]["next_contact_s"] <= SEAT_PAUSE_S
        assert soon or second.agent_id in taken(first)  # on a slow machine that contact is over already
        assert second.asks("contact")
        assert second.agent_id in taken(first) and len(taken(first)) == 2
    contact(second)
    contact(second)
    assert required(second) == (True, "ok") and len(taken(first)) == 2
