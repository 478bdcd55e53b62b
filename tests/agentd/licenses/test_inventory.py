"""The license inventory remembers which licenses are in use and keeps only newer tokens, within its bounds."""

import asyncio
from pathlib import Path

import pytest

from agentd.licenses.inventory import MAX_LICENSES, MAX_TOKENS, LicenseInventory

DAY = 86_400


def test_only_a_newer_token_is_kept() -> None:
    inventory = LicenseInventory()
    assert inventory.keep("l", 10, "a", 1)
    assert not inventory.keep("l", 10, "b", 1)
    assert not inventory.keep("l", 9, "b", 5)
    assert inventory.keep("l", 10, "c", 2)
    assert inventory.keep("l", 11, "d", 1)
    assert inventory.newest("l") == "d"
    assert inventory.newest("other") is None
    assert inventory.newer("l", 10, 9)
    assert not inventory.newer("l", 11, 1)


def test_an_inventory_is_read_back_and_written_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "licenses.json"
    inventory = LicenseInventory(path)
    asyncio.run(inventory.save())
    assert not path.exists()
    inventory.saw("token", "l", 5 * DAY)
    inventory.keep("l", 10, "newer", 1)
    asyncio.run(inventory.save())
    path.replace(tmp_path / "written")
    inventory.saw("token", "l", 5 * DAY + 9)
    asyncio.run(inventory.save())
    assert not path.exists()
    other = LicenseInventory(tmp_path / "written")
    assert other.load()
    assert (other.license_of("token"), other.newest("l")) == ("l", "newer")


def test_an_inventory_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    inventory = LicenseInventory(tmp_path / "none" / "licenses.json")
    inventory.saw("token", "l", 5 * DAY)
    with pytest.raises(OSError, match=r"licenses\.json"):
        asyncio.run(inventory.save())
    (tmp_path / "none").mkdir()
    asyncio.run(inventory.save())
    assert LicenseInventory(tmp_path / "none" / "licenses.json").load()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"newest":5}', b"\xff", b'{"seen":{"x":{}}}'])
def test_an_inventory_that_cannot_be_read_begins_empty(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "licenses.json"
    inventory = LicenseInventory(path)
    assert inventory.load()
    path.write_bytes(data)
    assert not inventory.load()
    assert inventory.license_of("token") is None


def test_an_inventory_is_bounded() -> None:
    inventory = LicenseInventory()
    for number in range(MAX_TOKENS + 5):
        inventory.saw(f"t{number}", "l", number * DAY if number < 10 else 20_000 * DAY)
    assert inventory.license_of("t0") is None
    assert inventory.license_of(f"t{MAX_TOKENS + 4}") == "l"
    for number in range(MAX_LICENSES + 1):
        inventory.keep(f"l{number}", 1, "t", 1)
    assert (inventory.newest("l0"), inventory.newest("l1")) == (None, "t")


def test_tokens_that_nobody_uses_are_dropped_after_ninety_days() -> None:
    inventory = LicenseInventory()
    inventory.saw("token", "l", 1000 * DAY)
    inventory.forget_old(1090 * DAY)
    assert inventory.license_of("token") == "l"
    inventory.forget_old(1091 * DAY)
    assert inventory.license_of("token") is None


@pytest.mark.parametrize("text", ["é", "\u20ac" * 5])
def test_a_text_that_is_no_token_is_a_license_that_we_do_not_know(text: str) -> None:
    assert LicenseInventory().license_of(text) is None
