"""A state file that is not whole is noticed and restored from its backup."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.telemetry.statefile import Kept, Origin, StateFile, decode_state, encode_state

CONTENT = {"agent_id": "pos-001", "last_server_contact": 5, "degraded_since": None, "secrets": [{"version": 1}]}


def test_a_state_goes_round(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    assert file.read() == (Kept(), Origin.NOTHING, False)
    file.write(CONTENT)
    assert file.read() == (Kept(5, None), Origin.MAIN, False)
    assert decode_state(encode_state(CONTENT)) == {"format": 1, **CONTENT}
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "state.json": 0o600,
        "state.json.bak": 0o600,
    }


@given(st.data())
def test_any_changed_byte_that_matters_is_noticed(data: st.DataObject) -> None:
    whole = bytearray(encode_state(CONTENT))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    found = decode_state(bytes(whole))
    assert found is None or found == {"format": 1, **CONTENT}


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b"\0" * 500, b"\xff\xfe", b"[" * 100_000, b'{"format":1}', b'{"format":2,"checksum":"x"}'],
    ids=lambda data: repr(data[:12]),
)
def test_a_corrupt_state_is_restored_from_its_backup(tmp_path: Path, damage: bytes) -> None:
    file = StateFile(tmp_path / "state.json")
    file.write(CONTENT)
    (tmp_path / "state.json").write_bytes(damage)
    assert file.read() == (Kept(5, None), Origin.BACKUP, True)
    (tmp_path / "state.json.bak").write_bytes(damage)
    assert file.read() == (Kept(), Origin.NOTHING, True)


def test_a_missing_state_is_restored_from_its_backup(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    file.write(CONTENT)
    (tmp_path / "state.json").unlink()
    assert file.read() == (Kept(5, None), Origin.BACKUP, False)


def test_another_time_than_a_number_is_not_kept(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json")
    for value in (True, "5", 5.5, [5]):
        file.write({"last_server_contact": value, "degraded_since": 7})
        assert file.read()[0] == Kept(None, 7)


def test_the_file_is_json_for_people() -> None:
    assert json.loads(encode_state(CONTENT))["secrets"] == [{"version": 1}]
