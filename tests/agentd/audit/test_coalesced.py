"""What was counted survives the end of the process, and a damaged slot harms nothing but itself."""

import struct
from pathlib import Path

import pytest

from agentd.audit.coalesced import SLOT_BYTES, SLOTS, SPARE_SLOTS, CoalescedEvents, Repeat


def test_counts_survive_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "r"
    table = CoalescedEvents(path)
    for time in range(5):
        assert table.count(("a", 1), 10.0 + time, lambda: {"event": "a"})
    assert table.count("b", 7.0, lambda: {"event": "b"})
    other = CoalescedEvents(path)  # the first one has not been closed
    found = sorted(other.recover(), key=lambda each: each.fields["event"])
    assert found == [Repeat({"event": "a"}, 5, 10.0, 14.0), Repeat({"event": "b"}, 1, 7.0, 7.0)]
    assert other.recover() == []
    assert path.stat().st_mode & 0o777 == 0o600
    table.close()
    other.close()


def test_what_is_drained_is_counted_anew(tmp_path: Path) -> None:
    table = CoalescedEvents(tmp_path / "r")
    table.count("a", 1.0, lambda: {"n": 1})
    assert len(table) == 1
    assert table.drain() == [Repeat({"n": 1}, 1, 1.0, 1.0)]
    assert (table.drain(), len(table)) == ([], 0)
    table.count("a", 2.0, lambda: {"n": 2})
    assert table.drain() == [Repeat({"n": 2}, 1, 2.0, 2.0)]
    table.close()


def test_a_full_table_says_so_and_still_counts_what_it_knows(tmp_path: Path) -> None:
    table = CoalescedEvents(tmp_path / "r")
    assert all(table.count(number, 1.0, dict) for number in range(SLOTS - SPARE_SLOTS))
    assert not table.count("one more", 1.0, dict)
    assert all(table.count(("spare", number), 1.0, dict, spare=True) for number in range(SPARE_SLOTS))
    assert not table.count("one more", 1.0, dict, spare=True)
    assert table.count(0, 2.0, dict)
    assert len(table.drain()) == SLOTS
    assert table.count("one more", 1.0, dict)
    table.close()


def test_what_does_not_fit_a_slot_is_not_counted(tmp_path: Path) -> None:
    table = CoalescedEvents(tmp_path / "r")
    assert not table.count("a", 1.0, lambda: {"text": "x" * 600})
    assert table.drain() == []
    table.close()


@pytest.mark.parametrize("size", [0, 10, SLOTS * SLOT_BYTES - 1, SLOTS * SLOT_BYTES + 1])
def test_a_file_of_another_size_is_made_anew(tmp_path: Path, size: int) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"\x01" * size)
    table = CoalescedEvents(path)
    assert table.recover() == []
    table.close()
    assert path.stat().st_size == SLOTS * SLOT_BYTES


@pytest.mark.parametrize("filling", [b"\x01", b"\xff", b"{", b"1"])
def test_random_slots_are_passed_over(tmp_path: Path, filling: bytes) -> None:
    path = tmp_path / "r"
    path.write_bytes(filling * (SLOTS * SLOT_BYTES))
    table = CoalescedEvents(path)
    assert table.recover() == []
    table.close()


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), 1e300, -1e300], ids=repr)
def test_a_slot_with_an_impossible_time_is_passed_over(tmp_path: Path, moment: float) -> None:
    path = tmp_path / "r"
    table = CoalescedEvents(path)
    table.count("a", 1.0, lambda: {"n": 1})
    table.count("b", 1.0, lambda: {"n": 2})
    table.close()
    data = bytearray(path.read_bytes())
    place = data.index(b'{"n":1}') - 16
    data[place : place + 16] = struct.pack("<dd", moment, moment)
    path.write_bytes(data)
    other = CoalescedEvents(path)
    assert [each.fields for each in other.recover()] == [{"n": 2}]
    other.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"keep")
    (tmp_path / "r").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        CoalescedEvents(tmp_path / "r")
    assert (tmp_path / "target").read_bytes() == b"keep"


def test_what_the_last_release_never_counts_is_in_a_form_that_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "r"
    table = CoalescedEvents(path)
    table.count("a", 1.0, lambda: {"event": "a"})
    table.count("b", 2.0, lambda: {"event": "b"}, times=3, recent=True)
    slots = [path.read_bytes()[slot * SLOT_BYTES + 32 :][:15] for slot in (0, 1)]
    assert slots == [b'{"event":"a"}\0\0', b'[{"event":"b"}]']
    assert table.recover() == [Repeat({"event": "a"}, 1, 1.0, 1.0), Repeat({"event": "b"}, 3, 2.0, 2.0)]
    table.close()
