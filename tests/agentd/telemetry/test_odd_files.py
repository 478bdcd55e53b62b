"""A directory in the place of a file stops nothing: what no verdict depends on starts empty."""

from pathlib import Path

from agentd.licenses.inventory import LicenseInventory
from agentd.telemetry.statefile import Origin, StateFile


def test_an_inventory_that_cannot_be_read_starts_empty(tmp_path: Path) -> None:
    assert LicenseInventory(tmp_path / "none").load()
    inventory = LicenseInventory(tmp_path)
    assert not inventory.load()
    assert inventory.newest("l") is None


def test_a_state_file_that_cannot_be_read_is_taken_from_its_backup(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = StateFile(path)
    state.write({"last_server_contact": 5})
    path.unlink()
    path.mkdir()
    kept, origin, corrupt = state.read()
    assert (kept.last_server_contact, origin, corrupt) == (5, Origin.BACKUP, True)
