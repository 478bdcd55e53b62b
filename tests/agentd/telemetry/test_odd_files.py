"""A directory in the place of a file stops nothing: what no verdict depends on starts empty."""

from pathlib import Path

from agentd.licenses.inventory import LicenseBook
from agentd.telemetry.statefile import Origin, StateFile


def test_a_license_book_that_cannot_be_read_starts_empty(tmp_path: Path) -> None:
    book = LicenseBook()
    assert book.load(tmp_path / "none")
    assert not book.load(tmp_path)
    assert book.newest("l") is None


def test_a_state_file_that_cannot_be_read_is_taken_from_its_backup(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state = StateFile(path)
    state.write({"last_server_contact": 5})
    path.unlink()
    path.mkdir()
    kept, origin, corrupt = state.read()
    assert (kept.last_server_contact, origin, corrupt) == (5, Origin.BACKUP, True)
