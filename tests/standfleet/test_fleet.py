"""A fleet in time of its own: when machines come, how they come back, and what the summary says of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from contracts.contact.updates import UpdatesReply
from contracts.jose import b64encode
from standfleet.fleet import Fleet, Plan
from standfleet.machine import Machine, make
from standfleet.profiles import Profile
from standfleet.summary import Summary, quantile
from standfleet.wire import Answer, NoAnswer

OLD = ("1.0", "b0")


class Server:
    """Answers like the server, or not at all."""

    def __init__(self) -> None:
        self.fails: str | None = None
        self.status = 200
        self.asked: list[str] = []

    @asynccontextmanager
    async def line(self, machine: Machine) -> AsyncIterator["Line"]:
        yield Line(self, machine)


class Line:
    def __init__(self, server: Server, machine: Machine) -> None:
        self.server, self.machine = server, machine

    async def post(self, path: str, _content: Any) -> Answer:
        if self.server.fails:
            raise NoAnswer(self.server.fails)
        if self.server.status != 200:
            body = {"error": {"code": "rate_limited", "text": "too many"}}
            return Answer(self.server.status, msgspec.json.encode(body), 120.0, 0.01)
        if path == "challenge":
            return Answer(200, b'{"challenge":"cccccccccccccccc"}', None, 0.01)
        self.server.asked.append(self.machine.agent_id)
        reply = UpdatesReply(
            agent_id="a", request_id="0" * 32, issued_at=1, directive=None, acknowledged=(), paused=False
        )  # fmt: skip
        text = f"h.{b64encode(msgspec.json.encode(reply))}.s"
        return Answer(200, msgspec.json.encode({"reply": text}), None, 0.03)


def fleet(server: Server, count: int = 200, **more: Any) -> Fleet:
    machines = [make(1, number, more.get("profile", Profile.SOUND), OLD) for number in range(1, count + 1)]
    return Fleet(machines, server, 8, wall=lambda: 1e9, steady=lambda: 0.0)  # type: ignore[arg-type]


def test_machines_are_spread_over_the_interval_and_come_again() -> None:
    server = Server()
    made = fleet(server)
    summary = asyncio.run(made.run(Plan(lasts=2 * 1800)))
    assert len(set(server.asked)) == 200 and 380 <= summary.contacts <= 520
    assert summary.virtual_s == 3600 and summary.failed == {} and quantile(summary.waits, 0.99) == 0.03
    again = asyncio.run(made.run(Plan(lasts=1800)))
    assert again.virtual_s == 5400, "time goes on"


def test_all_come_back_from_an_outage_within_a_quarter_of_an_hour_and_not_together() -> None:
    server = Server()
    summary = asyncio.run(fleet(server, 600).run(Plan(lasts=9000, outage=(1800, 5400))))
    assert len(summary.returns) == 600 and summary.unreachable > 600
    assert min(summary.returns) >= 0 and max(summary.returns) <= 900
    assert summary.busiest < 150, "without the agents' own spread all of them would come in the first minute"
    assert summary.told()["returned"] == 600 and "600 machines came back within" in "\n".join(summary.lines())


def test_a_server_that_does_not_answer_and_one_that_refuses_are_counted_apart() -> None:
    server = Server()
    server.fails = "no connection: Connection refused"
    made = fleet(server, 10)
    summary = asyncio.run(made.run(Plan(lasts=1800)))
    assert summary.contacts == 0 and set(summary.failed) == {server.fails}
    server.fails, server.status = None, 429
    before = sum(summary.failed.values())
    summary = asyncio.run(made.run(Plan(lasts=1800)))
    assert set(summary.refused) == {"rate_limited"} and sum(summary.failed.values()) == before
    assert summary.refused["rate_limited"] <= 10 * 1800 / 120, "who is told to wait two minutes waits"


def test_a_clone_contacts_the_server_beside_the_first_one() -> None:
    server = Server()
    made = fleet(server, 5, profile=Profile.CLONED)
    asyncio.run(made.run(Plan(lasts=1800)))
    assert len(made.machines) == 10 and min(server.asked.count(name) for name in set(server.asked)) >= 2


def test_it_ends_early_when_what_is_waited_for_has_happened() -> None:
    server = Server()
    made = fleet(server)
    asyncio.run(made.run(Plan(lasts=1800), until=lambda: len(server.asked) >= 50))
    assert 50 <= len(server.asked) <= 60


@pytest.mark.parametrize(("part", "value"), [(0.5, 2.0), (0.99, 4.0), (0.0, 1.0)])
def test_quantiles(part: float, value: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], part) == value
    assert quantile([], part) == 0.0


def test_the_summary_names_what_went_wrong() -> None:
    summary = Summary(machines=3, contacts=2, seconds=1.0)
    summary.refused["agent_revoked"] = 4
    summary.failed["no response within 60 s"] = 1
    lines = "\n".join(summary.lines())
    assert "the server refused: 4 agent_revoked" in lines and "did not answer: 1 no response" in lines
