"""`count_usage` counts for a license that allows the meter, each id once; a user counts for its own products only."""

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from agentd.base.config.config import PosConfig
from agentd.licenses.usage import Usage
from agentd.pos.service import PosService
from ipc.bounds import COUNTS_BURST, COUNTS_PER_S, MAX_COUNTERS
from ipc.errors import ErrorCode
from tests.agentd.pos.test_machine import hold, records
from tests.agentd.pos.test_service import ME, Till, codes, run
from tests.agentd.world import T0, core_of

Work = Callable[[Till, Usage], Coroutine[Any, Any, None]]


def count(number: int = 1, meter: str = "sales", amount: int = 1, count_id: int | None = None) -> dict[str, Any]:
    used = (number if count_id is None else count_id).to_bytes(16, "big")
    return {"v": 1, "id": number, "op": "count_usage", "meter": meter, "amount": amount, "count_id": used}


def counting(directory: Path, work: Work, **config: Any) -> Till:
    usage: list[Usage] = []

    async def main(till: Till) -> None:
        usage.append(Usage(directory / "usage.counts", "pos-000001", os.urandom, lambda: till.mono))
        core = core_of(till.audit._clock, till.audit, till.world.vault)
        settings = PosConfig(**{"allowed_uids": frozenset({ME}), **config})
        till.service, till.counters = PosService(settings, core, till.world.validator, usage[0]), core.counters
        await work(till, usage[0])

    till = run(directory, main)
    usage[0].close()
    return till


async def totals(usage: Usage) -> dict[tuple[str, str], int]:
    await usage.sync()
    return {(each.license_id, each.meter): each.total for each in usage.totals()}


async def ask(till: Till, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    sock = await till.connect()
    await till.send(sock, *requests)
    return await till.receive(sock, len(requests))


def test_usage_is_counted_for_the_license_that_allows_the_meter(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        hold(till, 1, features=("till",))
        hold(till, 2, features=("meter:sales",))
        first, again = await ask(till, count(7, amount=3), count(8, amount=3, count_id=7))
        wanted = {"v": 1, "id": 7, "count_id": (7).to_bytes(16, "big"), "counted": True, "repeated": False}
        assert first == {**wanted, "reason": "ok", "license": "license-0002"}
        assert again == {**first, "id": 8, "repeated": True}
        assert await totals(usage) == {("license-0002", "sales"): 3}

    till = counting(tmp_path, work)
    found = [(record["event"], record["outcome"], record["meter"], record["license"]) for record in records(till)]
    assert found == [("usage.counted", outcome, "sales", "license-0002") for outcome in ("ok", "repeated")]
    assert {record["class"] for record in records(till)} == {"application"}


def test_usage_that_no_license_allows_is_not_counted_and_its_id_is_not_used(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        hold(till, 1, features=("till",))
        hold(till, 2, features=("meter:washes",), nbf=T0 + 500)
        none, later = await ask(till, count(1), count(2, "washes"))
        assert (none["counted"], none["reason"], none["license"]) == (False, "no_license", None)
        assert (later["counted"], later["reason"], later["license"]) == (False, "not_yet_valid", None)
        assert await totals(usage) == {}
        hold(till, 3, features=("meter:sales",))
        (reply,) = await ask(till, count(1))
        assert (reply["counted"], reply["repeated"]) == (True, False)

    counting(tmp_path, work)


def test_a_repeated_count_is_answered_when_the_license_has_gone(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        hold(till, 1, features=("meter:sales",))
        await ask(till, count(1))
        till.world.inventory.release("license-0001")
        till.world.invalidate(1)
        again, fresh = await ask(till, count(1), count(2))
        assert (again["counted"], again["repeated"], again["license"]) == (True, True, "license-0001")
        assert not fresh["counted"]

    counting(tmp_path, work)


def test_an_id_with_another_meter_or_amount_is_refused(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        hold(till, 1, features=("meter:sales", "meter:washes"))
        replies = await ask(till, count(1), count(2, amount=2, count_id=1), count(3, "washes", count_id=1))
        assert codes(replies[1:]) == [ErrorCode.REFUSED] * 2
        assert await totals(usage) == {("license-0001", "sales"): 1}

    assert counting(tmp_path, work).counters.refused_requests == 2


def test_a_user_counts_for_its_own_products_only(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        hold(till, 1, features=("meter:sales",), metadata={"product": "bakery"})
        (reply,) = await ask(till, count(1))
        assert (reply["counted"], reply["reason"]) == (False, "no_license")

    counting(tmp_path, work, licenses={ME: frozenset({"forecourt"})})


def test_a_user_makes_so_many_counts_at_once_and_repeats_the_others_later(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        hold(till, 1, features=("meter:sales",))
        sock = await till.connect()
        for number in range(COUNTS_BURST):
            await till.send(sock, count(number))
            assert (await till.receive(sock, 1))[0]["counted"]
        await till.send(sock, count(COUNTS_BURST), count(1))
        refused, again = await till.receive(sock, 2)
        assert codes([refused]) == [ErrorCode.RATE_LIMITED] and again["repeated"]
        till.mono += 2 / COUNTS_PER_S
        await till.send(sock, count(COUNTS_BURST))
        assert (await till.receive(sock, 1))[0]["counted"]

    counting(tmp_path, work, rate_per_s=10_000)


def test_more_meters_than_there_is_room_for_wait_for_a_contact(tmp_path: Path) -> None:
    async def work(till: Till, usage: Usage) -> None:
        for number in range(MAX_COUNTERS + 1):
            hold(till, number, features=(f"meter:m{number}",))
        replies = await ask(till, *(count(number, f"m{number}") for number in range(MAX_COUNTERS + 1)))
        assert all(reply["counted"] for reply in replies[:-1]) and codes(replies[-1:]) == [ErrorCode.UNAVAILABLE]

    counting(tmp_path, work)


def test_without_its_file_nothing_is_counted_and_everything_else_is_answered(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1, features=("meter:sales",))
        refused, pong = await ask(till, count(1), {"v": 1, "id": 2, "op": "ping"})
        assert codes([refused]) == [ErrorCode.UNAVAILABLE] and "usage.counts" in refused["error"]["text"]
        assert pong == {"v": 1, "id": 2}

    run(tmp_path, work)


@pytest.mark.parametrize(
    "change",
    [
        {"meter": ""}, {"meter": "Sales"}, {"meter": "sales\n"}, {"meter": "x" * 49}, {"meter": ".x"}, {"amount": 0},
        {"amount": -1}, {"amount": 2**32}, {"amount": 1.0}, {"amount": True}, {"count_id": bytes(15)}, {"count_id": "0" * 16},
        {"nonce": bytes(16)},
    ],
    ids=str,
)  # fmt: skip
def test_another_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    async def work(till: Till, usage: Usage) -> None:
        assert codes(await ask(till, {**count(1), **change})) == [ErrorCode.BAD_REQUEST]

    counting(tmp_path, work)
