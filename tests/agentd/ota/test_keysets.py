"""Which key sets the core collects for updater and installer: those that lead from root's file to the set of now."""

import asyncio
from pathlib import Path

import pytest

from agentd.ota.keysets import key_sets, trusted_hardware, trusted_roots
from agentd.uplink.transport import NoContact
from contracts.keyset import MAX_KEY_SETS, verify_key_sets
from tests.support.stagedupdates import key_set, pin

FIRST = key_set(4, by="first", roots=(pin("first"), pin("second")))
SECOND = key_set(6, by="second", roots=(pin("second"), pin("third")))
THIRD = key_set(9, by="third", roots=(pin("third"),))


class Server:
    """Has the newest set of each root, as the license server has it.

    Attributes:
        asked: the roots that were asked for; None for the set of now.
    """

    def __init__(self, newest: str, **by_root: str) -> None:
        self._newest = newest
        self._by_root = {pin(name): text for name, text in by_root.items()}
        self.asked: list[str | None] = []

    async def fetch(self, root: str | None) -> str:
        self.asked.append(root)
        # For a root that the server does not know, it sends the set of now.
        return self._newest if root is None else self._by_root.get(root, self._newest)


def collected(server: Server, *roots: str) -> list[str]:
    return asyncio.run(key_sets(server.fetch, tuple(map(pin, roots)))).split("\n")


def test_a_set_of_a_trusted_root_comes_alone() -> None:
    server = Server(FIRST, first=FIRST)
    assert collected(server, "first") == [FIRST] and server.asked == [None]


@pytest.mark.parametrize(("roots", "sets"), [(["first"], [FIRST, SECOND, THIRD]), (["second"], [SECOND, THIRD])])
def test_a_machine_that_missed_handovers_gets_all_that_lead_to_the_set_of_now(roots: list[str], sets: list[str]) -> None:
    found = collected(Server(THIRD, first=FIRST, second=SECOND, third=THIRD), *roots)
    assert found == sets
    assert verify_key_sets("\n".join(found), tuple(map(pin, roots))).content.number == 9


def test_where_nothing_leads_there_the_set_of_now_comes_alone() -> None:
    server = Server(THIRD, first=FIRST, second=key_set(3, by="second"))
    assert collected(server, "stranger") == [THIRD]
    assert collected(server) == [THIRD]


def test_a_server_that_leads_on_and_on_is_not_followed_for_ever() -> None:
    names = [f"root {number}" for number in range(20)]
    sets = {name: key_set(number, by=name, roots=(pin(names[(number + 1) % 20]),)) for number, name in enumerate(names)}
    found = collected(Server(THIRD, **sets), names[0])
    assert len(found) == MAX_KEY_SETS and found[-1] == THIRD


def test_a_root_whose_set_does_not_come_is_passed_over() -> None:
    async def fetch(root: str | None) -> str:
        if root == pin("stranger"):
            raise NoContact("no route")
        return {None: SECOND, pin("first"): FIRST}[root]

    found = asyncio.run(key_sets(fetch, (pin("stranger"), pin("first"))))
    assert found.split("\n") == [FIRST, SECOND]


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"license_roots": 5}'])
def test_a_file_that_cannot_be_read_names_no_roots(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "update-trust.json"
    assert trusted_roots(path) == ()
    path.write_bytes(text)
    assert trusted_roots(path) == ()
    path.write_text('{"v": 1, "license_roots": ["sha256:a", "sha256:b"], "more": 1}')
    assert trusted_roots(path) == ("sha256:a", "sha256:b")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"hardware": "till-x86", "license_roots": []}', "till-x86"),
        (b'{"hardware": "Till X86"}', None),
        (b"{}", None),
        (b"\xff", None),
    ],
)
def test_the_kind_of_machine_is_what_roots_file_says(tmp_path: Path, content: bytes, found: str | None) -> None:
    path = tmp_path / "update-trust.json"
    assert trusted_hardware(path) is None
    path.write_bytes(content)
    assert trusted_hardware(path) == found
