"""What the server does with its keys and lists, as agents live through it: in process, over a wire in the test's hands."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agentd.secrets import revocations as lists
from contracts.exchange import MAX_REVOKED, Cause
from server.base.errors import RegistryError
from server.keys.rootkey import read_root_key
from server.licensing.licenses.licenses import Order
from tests.support.folders import memory_folder
from tests.support.pair import AGENT, DAY, LICENSE, START, Pair, prepare


@pytest.fixture(scope="module")
def copy() -> Iterator[object]:
    with memory_folder() as directory:
        made = prepare(directory)
        numbers = iter(range(100))
        yield lambda: made(directory / f"pair-{next(numbers)}")


@pytest.fixture
def pair(copy: object) -> Iterator[Pair]:
    made = copy()  # type: ignore[operator]
    yield made
    made.close()


def root_of(pair: Pair) -> ec.EllipticCurvePrivateKey:
    return read_root_key(next(pair.server.directory.parents[1].glob("template/root.key")), None)


def test_every_kind_of_key_is_replaced_under_a_working_agent(pair: Pair) -> None:
    root, keys, changes = root_of(pair), pair.server.server_side.keys, pair.server.server_side.key_lifecycle
    numbers = [keys.key_set_number()]
    for kind in ("license", "rotation", "enrollment", "issuing-ca", "tls"):
        pair.clock.seconds += 10
        changes.rotate(kind, pair.server.now, root)
        numbers.append(keys.key_set_number())
        assert pair.contact(Cause.FORCED) is None, kind
        assert pair.valid(), f"a license of before the new {kind} key"
    assert numbers[:-1] == sorted(set(numbers[:-1])) and numbers[-1] == numbers[-2], "each but that of tls is in a new key set"
    assert pair.agent.server.key_set == numbers[-1]
    renewed = pair.agent.validator.refreshed_token(pair.token, pair.clock.now())
    assert renewed is not None and pair.valid(renewed)


def test_an_agent_that_slept_through_a_new_root_finds_its_way_by_the_old_one(pair: Pair) -> None:
    keys, changes, old = pair.server.server_side.keys, pair.server.server_side.key_lifecycle, root_of(pair)
    kept: list[ec.EllipticCurvePrivateKey] = []
    pin = changes.rotate_root(pair.server.now, old, kept.append)
    # Several sets later, all of them signed by a root that the agent has never heard of.
    for kind in ("rotation", "license", "rotation"):
        pair.clock.seconds += 10
        changes.rotate(kind, pair.server.now, kept[0])
    assert pin not in pair.agent.server.roots
    assert pair.contact(Cause.FORCED) is None
    known = pair.agent.server
    assert known.roots[0] == pin and known.key_set == keys.key_set_number()
    assert pin in known.pins, "TLS goes by the new root, too"
    pair.restart_agent()
    assert pair.contact() is None


def test_a_key_that_was_ended_signs_nothing_any_more(pair: Pair) -> None:
    changes, root = pair.server.server_side.key_lifecycle, root_of(pair)
    old = next(row.kid for row in changes.listed() if row.kind == "license")
    with pytest.raises(RegistryError, match="in use"):
        changes.end(old, pair.server.now, root)
    changes.rotate("license", pair.server.now, root)
    assert pair.contact(Cause.FORCED) is None
    token = pair.agent.validator.refreshed_token(pair.token, pair.clock.now())
    assert token is not None and pair.valid(pair.token)
    changes.end(old, pair.server.now, root)
    assert pair.contact() is None
    assert not pair.valid(pair.token), "made with the key that was ended"
    assert pair.valid(token)


def test_the_first_revocation_list_comes_before_the_first_revocation(pair: Pair) -> None:
    assert pair.agent.validator.revocations.next_update is not None
    pair.agent.validator.refuse_stale_revocations(True)
    assert pair.valid()
    pair.wire.cut = True
    pair.clock.seconds += 8 * DAY - 10
    assert not pair.valid() and pair.agent.validator.revocations.stale(pair.clock.now())


def test_a_list_that_is_older_than_ours_takes_no_revocation_back(pair: Pair) -> None:
    server_side = pair.server.server_side
    second = server_side.licenses.issue(AGENT, Order("license-2", "shop", ("till",), {}, START, START + 99 * DAY), START)
    server_side.licenses.revoke(LICENSE, pair.server.now)
    assert pair.contact() is None and not pair.valid()
    number = pair.agent.validator.revocations.number
    # A server that was restored from an old backup: it has forgotten the revocation, and makes another one.
    older = lists.Revocations(number=number + 5, issued_at=pair.server.now, next_update=pair.server.now + DAY)
    pair.agent.validator.revocations = lists.Revocations(
        number=older.number, issued_at=older.issued_at, next_update=older.next_update, revoked=frozenset({LICENSE})
    )
    server_side.licenses.revoke("license-2", pair.server.now)
    pair.clock.seconds += 2 * DAY
    assert pair.contact(Cause.FORCED) is None, "a lower number must not stop the rotation"
    assert pair.agent.validator.revocations.revoked == {LICENSE, "license-2"}
    assert not pair.valid() and not pair.valid(second)


def test_a_registry_that_was_restored_gives_no_revoked_license_back(pair: Pair, tmp_path: Path) -> None:
    pair.server.server_side.licenses.issue(AGENT, Order("another", "shop", (), {}, START, START + 99 * DAY), START)
    pair.server.server_side.close()
    shutil.copytree(pair.server.directory, tmp_path / "backup")
    pair.server.start()
    pair.server.server_side.licenses.revoke(LICENSE, pair.server.now)
    assert pair.contact() is None and not pair.valid()
    pair.server.server_side.close()
    shutil.rmtree(pair.server.directory)
    shutil.copytree(tmp_path / "backup", pair.server.directory)
    pair.server.start()
    pair.clock.seconds += DAY
    assert pair.contact() is None and not pair.valid()
    # The first revocation after the restore makes a list with a higher number than the agent's.
    pair.server.server_side.licenses.revoke("another", pair.server.now)
    before = pair.agent.validator.revocations.number
    assert pair.contact() is None and pair.agent.validator.revocations.number > before
    assert pair.agent.validator.revocations.revoked == {LICENSE, "another"} and not pair.valid()


def test_what_was_revoked_is_kept_as_far_as_there_is_room() -> None:
    present = lists.Revocations(number=7, revoked=frozenset(f"old-{number:04}" for number in range(MAX_REVOKED)))
    new = lists.Revocations(number=9, next_update=5, revoked=frozenset({"new", "old-0001"}))
    found = lists.joined(new, present)
    assert len(found.revoked) == MAX_REVOKED and new.revoked < found.revoked and found.revoked - present.revoked == {"new"}
    assert (found.number, found.next_update) == (9, 5)
    assert lists.joined(lists.Revocations(number=3), present).number == 7
    full = lists.Revocations(number=9, revoked=frozenset(f"new-{number}" for number in range(MAX_REVOKED)))
    assert lists.joined(full, present).revoked == full.revoked


def test_revocations_of_others_cost_this_agent_no_write(pair: Pair) -> None:
    generation = pair.agent.store.generation
    server_side = pair.server.server_side
    for number in range(5):
        server_side.licenses.issue(AGENT, Order(f"other-{number}", "shop", (), {}, START, START + 5), START)
        server_side.licenses.revoke(f"other-{number}", START + 10)
    pair.clock.seconds += 20
    assert pair.contact() is None
    assert pair.agent.validator.revocations.number >= 5 and pair.agent.store.generation == generation
    assert pair.agent.store.record.revocations.revoked == frozenset()
    assert pair.agent.store.record.revocations.number < 5


def test_a_reply_that_was_held_back_is_a_lower_bound_of_the_time_and_no_more(pair: Pair) -> None:
    assert pair.contact() is None
    prompt = pair.agent.store.record.time
    assert prompt is not None and prompt.fresh
    # The server's clock is ahead by less than the tolerance, so that its time is news even when it comes late.
    pair.server.ahead, pair.wire.holds_back = 200, {"secret-status": 100}
    pair.clock.seconds += 10
    assert pair.contact() is None
    assert not pair.clock.suspect() and pair.valid()
    held = pair.agent.store.record.time
    assert held is not None and held.signed > prompt.signed and not held.fresh
