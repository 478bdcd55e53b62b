"""`require` and `licenses` are limited, logged and answered as validations are; a user learns of its own products only."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentd.base.config.config import PosConfig
from agentd.licenses.choice import Held
from contracts.claims import MAX_FEATURES, MAX_METADATA
from ipc.bounds import LICENSES_PER_PAGE
from ipc.errors import ErrorCode
from tests.agentd.pos.test_service import ME, Till, codes, run, validate
from tests.agentd.world import DAY, T0, token


def require(number: int = 1, feature: str = "till", product: str | None = None, nonce: int | None = None) -> dict[str, Any]:
    used = (number if nonce is None else nonce).to_bytes(16, "big")
    return {"v": 1, "id": number, "op": "require", "feature": feature, "product": product, "nonce": used}


def licenses(number: int = 1, after: str = "", *, metadata: bool = False, nonce: int | None = None) -> dict[str, Any]:
    used = (number if nonce is None else nonce).to_bytes(16, "big")
    return {"v": 1, "id": number, "op": "licenses", "after": after, "metadata": metadata, "nonce": used}


def hold(till: Till, *numbers: int, **claims: Any) -> None:
    for number in numbers:
        till.world.validator.import_token(token(**{"jti": f"license-{number:04d}", **claims}), T0 + 100)


def records(till: Till) -> list[dict[str, Any]]:
    return [json.loads(line) for data in till.file.lines for line in data.splitlines()]


def test_a_feature_is_answered_with_its_license_and_logged_before_the_reply(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1, metadata={"product": "forecourt", "shop": "7"})
        sock = await till.connect()
        await till.send(sock, require(7))
        (reply,) = await till.receive(sock, 1)
        (record,) = records(till)
        assert reply == {
            "v": 1,
            "id": 7,
            "nonce": (7).to_bytes(16, "big"),
            "valid": True,
            "reason": "ok",
            "license": "license-0001",
            "product": "forecourt",
            "expires_at": T0 + 30 * DAY,
            "features": ["till", "scale"],
            "metadata": {"product": "forecourt", "shop": "7"},
            "secret_state": "ACTIVE",
            "degraded": False,
            "clock_suspect": False,
        }
        assert (record["event"], record["outcome"], record["class"]) == ("license.validated", "ok", "application")
        assert (record["license"], record["feature"], record["product"]) == ("license-0001", "till", None)
        assert record["actor"]["uid"] == ME

    till = run(tmp_path, work)
    assert (till.counters.validations, till.counters.validations_failed) == (1, 0)


def test_no_license_for_a_feature_is_an_answer_and_no_failed_validation(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1)
        sock = await till.connect()
        await till.send(sock, require(1, "bakery"), require(2, "till", "no such product"))
        for reply in await till.receive(sock, 2):
            assert (reply["valid"], reply["reason"], reply["license"], reply["expires_at"]) == (False, "no_license", None, None)
            assert (reply["features"], reply["metadata"]) == ([], {})

    till = run(tmp_path, work)
    assert (till.counters.validations, till.counters.validations_failed) == (0, 0)
    assert [record["outcome"] for record in records(till)] == ["no_license"] * 2


def test_a_license_that_is_not_valid_names_itself_and_unlocks_nothing(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1, nbf=T0 + 500, metadata={"product": "forecourt"})
        sock = await till.connect()
        await till.send(sock, require(1))
        (reply,) = await till.receive(sock, 1)
        assert (reply["valid"], reply["reason"], reply["license"]) == (False, "not_yet_valid", "license-0001")
        assert (reply["features"], reply["metadata"], reply["product"]) == ([], {}, "forecourt")
        await till.send(sock, licenses(2, metadata=True))
        (reply,) = await till.receive(sock, 1)
        (entry,) = reply["licenses"]
        assert (entry["begins_at"], entry["valid"], entry["features"], entry["metadata"]) == (T0 + 500, False, [], {})

    till = run(tmp_path, work)
    assert (till.counters.validations, till.counters.validations_failed) == (1, 1)


def test_a_nonce_is_used_once_across_all_operations(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1)
        sock = await till.connect()
        for number, first in enumerate((require(1, nonce=10), licenses(1, nonce=11), validate(1, nonce=12)), 10):
            await till.send(sock, first)
            assert "error" not in (await till.receive(sock, 1))[0]
            again = (require(2, nonce=number), licenses(3, nonce=number), validate(4, nonce=number))
            await till.send(sock, *again)
            assert codes(await till.receive(sock, 3)) == [ErrorCode.NONCE_REPLAYED] * 3

    till = run(tmp_path, work)
    assert sum(record["event"] == "license.replayed" for record in records(till)) == 9


def test_a_user_learns_of_its_products_only(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1, 2, metadata={"product": "forecourt"}, features=("fuel", "till"))
        hold(till, 3, metadata={"product": "bakery"}, features=("oven", "till"), exp=T0 + 300 * DAY)
        hold(till, 4, metadata={}, features=("oven",))
        sock = await till.connect()
        asked = [
            require(1, "fuel"),
            require(2, "oven"),
            require(3, "oven", "bakery"),
            require(4, "till"),
            require(5, "fuel", "bakery"),
            licenses(6),
            # Whatever it says it has seen, another product's licenses do not come.
            licenses(7, "license-0002"),
            licenses(8, "\U0010ffff"),
        ]
        await till.send(sock, *asked)
        replies = await till.receive(sock, len(asked))
        assert [reply.get("license") for reply in replies[:5]] == ["license-0001", None, None, "license-0001", None]
        assert {reply["reason"] for reply in replies[1:3]} == {"no_license"}
        assert [[entry["license"] for entry in reply["licenses"]] for reply in replies[5:]] == [
            ["license-0001", "license-0002"],
            [],
            [],
        ]
        assert "bakery" not in str(replies[5:]) and "bakery" not in str(replies[1])
        # A token that the user has is judged as ever.
        await till.send(sock, validate(9, token(jti="license-0003", metadata={"product": "bakery"})))
        assert (await till.receive(sock, 1))[0]["valid"]
        till.service.reconfigure(PosConfig(allowed_uids=frozenset({ME}), licenses={ME + 1: frozenset()}))
        await till.send(sock, require(10, "oven"), licenses(11))
        free, every = await till.receive(sock, 2)
        assert free["license"] == "license-0003" and len(every["licenses"]) == 4
        till.service.reconfigure(PosConfig(allowed_uids=frozenset({ME}), licenses={ME: frozenset()}))
        await till.send(sock, require(12, "oven"), licenses(13))
        free, every = await till.receive(sock, 2)
        assert free["reason"] == "no_license" and every["licenses"] == []

    run(tmp_path, work, licenses={ME: frozenset({"forecourt"})})


def test_an_unopened_license_is_listed_to_nobody_who_may_know_of_some_products_only(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        till.world.inventory.keep("license-9", T0, token(99, jti="license-9"), 99)
        sock = await till.connect()
        await till.send(sock, require(1), licenses(2))
        verdict, listed = await till.receive(sock, 2)
        assert (verdict["reason"], verdict["license"], listed["licenses"]) == ("unknown_secret", None, [])
        till.service.reconfigure(PosConfig(allowed_uids=frozenset({ME})))
        await till.send(sock, licenses(3))
        ((entry,),) = [reply["licenses"] for reply in await till.receive(sock, 1)]
        assert (entry["license"], entry["reason"], entry["product"]) == ("license-9", "unknown_secret", None)

    run(tmp_path, work, licenses={ME: frozenset({"forecourt"})})


def test_all_pages_have_every_license_once_whatever_cursor_is_sent(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, *range(3 * LICENSES_PER_PAGE + 1))
        sock = await till.connect()
        found: list[str] = []
        after: str | None = ""
        number = 0
        while after is not None:
            number += 1
            await till.send(sock, licenses(number, after))
            (reply,) = await till.receive(sock, 1)
            assert len(reply["licenses"]) <= LICENSES_PER_PAGE and all(not one["metadata"] for one in reply["licenses"])
            found += [one["license"] for one in reply["licenses"]]
            after = reply["next"]
        assert number == 4 and found == sorted(found) == [f"license-{number:04d}" for number in range(97)]
        # A cursor is an id and nothing else: one that is made up begins elsewhere in the same list.
        for made_up in ("license-0090x", "../../etc", "\0", "x" * 128):
            number += 1
            await till.send(sock, licenses(number, made_up))
            (reply,) = await till.receive(sock, 1)
            assert [one["license"] for one in reply["licenses"]] == [one for one in found if one > made_up][:32]

    run(tmp_path, work)


def test_a_page_of_large_licenses_fits_its_frame(tmp_path: Path) -> None:
    features = tuple(f"{number:02d}" + "ü" * 28 for number in range(MAX_FEATURES))
    metadata = {f"{number:02d}": "ä" * 70 for number in range(MAX_METADATA)}

    async def work(till: Till) -> None:
        hold(till, *range(40), features=features, metadata=metadata)
        sock = await till.connect()
        found, after, number = 0, "", 0
        while after is not None:
            number += 1
            await till.send(sock, licenses(number, after, metadata=True))
            (reply,) = await till.receive(sock, 1)
            assert 0 < len(reply["licenses"]) < LICENSES_PER_PAGE
            assert all(one["metadata"] == metadata for one in reply["licenses"])
            found += len(reply["licenses"])
            after = reply["next"]
        assert found == 40 and number < 12

    run(tmp_path, work)


def test_a_flood_is_refused_and_counted_and_disturbs_no_verdict(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1)
        sock = await till.connect()
        asked = [require(number, f"made up {number}") if number % 2 else licenses(number) for number in range(1, 41)]
        await till.send(sock, *asked)
        replies = await till.receive(sock, 20)
        assert sum("error" not in reply for reply in replies) == 20
        (refused,) = await till.receive(sock, 1)
        assert codes([refused]) == [ErrorCode.RATE_LIMITED]

    till = run(tmp_path, work, rate_per_s=20)
    assert {record["outcome"] for record in records(till)} <= {"no_license", "ok", "rate_limited"}


def test_one_users_questions_are_counted_once_its_budget_is_used_up(tmp_path: Path) -> None:
    async def work(till: Till) -> None:
        hold(till, 1)
        sock = await till.connect()
        for start in range(0, 1200, 100):
            await till.send(sock, *(require(number, f"made up {number}") for number in range(start, start + 100)))
            await till.receive(sock, 100)
        await till.send(sock, require(5000))
        assert (await till.receive(sock, 1))[0]["valid"]
        till.audit.emit_counts()

    till = run(tmp_path, work, rate_per_s=10_000)
    found = records(till)
    counted = [record for record in found if "count" in record]
    assert len(found) - len(counted) == 1001  # the burst, and the first sight of the license
    assert sum(record["count"] for record in counted) == 200 and len(counted) == 1


def test_a_failing_choice_is_internal_and_ends_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Held, _products: object) -> bool:
        raise RuntimeError("broken")

    async def work(till: Till) -> None:
        hold(till, 1)
        sock = await till.connect()
        monkeypatch.setattr(Held, "of", fail)
        await till.send(sock, require(1), licenses(2), validate(3))
        replies = await till.receive(sock, 3)
        assert codes(replies[:2]) == [ErrorCode.INTERNAL] * 2 and replies[2]["valid"]

    run(tmp_path, work)
