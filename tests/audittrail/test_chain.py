"""Whatever is changed, removed, moved or doubled in a log is found, at the line where the chain ceases to hold."""

import hashlib
import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audittrail.chain import (
    CHECKPOINT,
    CLASSES,
    SEGMENT_CLOSED,
    ZERO_HASH,
    Chain,
    fold_checkpoint,
    heads_digest,
    heads_fields,
    retention_class,
    utc_text,
)
from audittrail.verify import Verification, segments, verify_files, verify_lines


def make(count: int = 12, checkpoints: tuple[int, ...] = (4, 9)) -> list[bytes]:
    chain, value, lines = Chain(), bytes(32), []
    for number in range(1, count + 1):
        if number in checkpoints:
            before, value = value, fold_checkpoint(value, heads_digest(chain.heads))
            fields = {"heads": heads_fields(chain.heads), "before": before.hex(), "value": value.hex()}
            lines.append(chain.append(number, number, CHECKPOINT, "ok", fields))
        else:
            event = ("license.validated", "ota.started", "license.validated", "admin.request")[number % 4]
            lines.append(chain.append(1.8e9 + number, number / 3, event, "ok", {"n": number, "name": 'é\n"x'}))
    return lines


LINES = make()


def found(lines: list[bytes]) -> int | None:
    problem = verify_lines(lines).problem
    return None if problem is None else problem.line


def test_a_line_is_what_the_format_says() -> None:
    chain = Chain()
    line = chain.append(1_800_000_000.25, 12.3456789, "agent.started", "ok", {"version": "1"})
    record = json.loads(line)
    assert list(record) == ["seq", "class", "time", "mono", "event", "outcome", "version", "prev", "hash"]
    assert record["time"] == "2027-01-15T08:00:00.250000Z" == utc_text(1_800_000_000.25)
    assert (record["seq"], record["mono"], record["prev"]) == (1, 12.345679, ZERO_HASH.decode())
    digest = hashlib.sha256(line[: line.index(b',"hash":')]).hexdigest().encode()
    assert record["class"] == "security"
    assert (record["hash"].encode(), chain.heads) == (digest, (ZERO_HASH, digest, ZERO_HASH))


@given(st.floats(-1e9, 3e9) | st.integers(0, 2 * 10**15).map(lambda number: number / 1e6 + 5e-7) | st.integers(0, 2**31))
@example(1_800_000_000.9999999)
@example(1_800_000_000.9999995)
@example(-0.0000001)
def test_a_time_is_rounded_as_datetime_does(seconds: float) -> None:
    assert utc_text(seconds) == datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def test_a_chain_verifies() -> None:
    result = verify_lines(LINES)
    assert result.ok
    assert (result.records, result.first_seq, result.last_seq) == (12, 1, 12)
    last = {record["class"]: record["hash"].encode() for record in map(json.loads, LINES)}
    assert result.heads == tuple(last[kind] for kind in CLASSES)
    assert result.begins == {}
    assert result.last_checkpoint == 9
    assert verify_lines([]) == Verification()


def test_each_class_is_a_chain_of_its_own() -> None:
    for kind in CLASSES:
        records = [record for record in map(json.loads, LINES) if record["class"] == kind]
        assert [record["prev"] for record in records] == [ZERO_HASH.decode(), *(record["hash"] for record in records[:-1])]
        assert len(records) > 1


def test_a_class_that_was_removed_leaves_the_others_intact() -> None:
    """As retention does it: application records up to 7 are gone, checkpoints that saw them are still there."""
    lines = [line for line in LINES if (record := json.loads(line))["class"] != "application" or record["seq"] > 7]
    last_removed = next(json.loads(line)["hash"] for line in LINES[:7][::-1] if json.loads(line)["class"] == "application")
    result = verify_lines(lines, whole=False)
    assert (result.problem, result.records) == (None, len(lines))
    assert result.begins["application"][1] == last_removed.encode()
    assert result.heads == verify_lines(LINES).heads


def test_a_class_that_was_removed_entirely_ends_where_the_last_statement_says() -> None:
    lines = [line for line in LINES if json.loads(line)["class"] == "security"]
    result = verify_lines(lines, whole=False)
    assert result.ok
    before = verify_lines(LINES[:8]).heads
    assert result.begins == {"application": (9, before[0]), "security": (3, ZERO_HASH), "ota": (9, before[2])}


@pytest.mark.parametrize(
    ("event", "outcome", "kind"),
    [
        ("license.validated", "ok", "application"),
        ("license.validated", "expired", "application"),
        ("license.validated", "bad_signature", "security"),
        ("license.validated", "wrong_audience", "security"),
        ("license.refreshed", "ok", "application"),
        ("license.listed", "ok", "application"),
        ("license.replayed", "refused", "security"),
        ("request.refused", "rate_limited", "application"),
        ("access.denied", "refused", "security"),
        ("alert.clock_suspect", "raised", "security"),
        ("ota.started", "ok", "ota"),
        ("what.is.new", "ok", "security"),
    ],
)
def test_the_class_of_a_record(event: str, outcome: str, kind: str) -> None:
    assert retention_class(event, outcome) == kind


def test_the_values_of_the_last_two_checkpoints_are_told() -> None:
    lines = make(15, (3, 6, 9))
    result = verify_lines(lines)
    values, value, heads = [], bytes(32), dict.fromkeys(CLASSES, ZERO_HASH.decode())
    for line in lines[:9]:
        record = json.loads(line)
        if record["event"] == CHECKPOINT:
            digest = hashlib.sha256(b"".join(bytes.fromhex(head) for head in heads.values())).digest()
            value = hashlib.sha256(value + digest).digest()
            values.append(value)
        heads[record["class"]] = record["hash"]
    assert result.values == values[1:]


@given(st.integers(0, len(b"".join(LINES)) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_found_in_its_line(place: int, flip: int) -> None:
    data = bytearray(b"".join(LINES))
    number = data[:place].count(b"\n") + 1
    data[place] ^= flip
    assert found(bytes(data).splitlines(keepends=True) if b"\r" not in data else _split(bytes(data))) == number


def _split(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.removesuffix(b"\n").split(b"\n")] if data.endswith(b"\n") else data.split(b"\n")


@given(st.integers(1, len(LINES) - 2))
def test_a_removed_line_is_found_where_it_was(index: int) -> None:
    assert found(LINES[:index] + LINES[index + 1 :]) == index + 1


@given(st.integers(0, len(LINES) - 1), st.integers(0, len(LINES) - 1))
def test_swapped_lines_are_found_at_the_first(one: int, other: int) -> None:
    lines = list(LINES)
    lines[one], lines[other] = lines[other], lines[one]
    first = min(one, other)
    # At the beginning of a log another record may stand; the one after it does not follow.
    expected = None if one == other else first + 1 if first else 2
    assert found(lines) == expected


@given(st.integers(0, len(LINES) - 1), st.integers(0, len(LINES)))
def test_a_line_that_is_put_in_twice_is_found(index: int, place: int) -> None:
    lines = [*LINES[:place], LINES[index], *LINES[place:]]
    assert found(lines) == (2 if place == 0 else place + 2 if place == index else place + 1)


@given(st.data())
def test_a_truncated_last_line_is_found(data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(LINES) - 1))
    size = data.draw(st.integers(1, len(LINES[keep]) - 1))
    lines = [*LINES[:keep], LINES[keep][:size]]
    result = verify_lines(lines)
    assert result.problem is not None
    assert (result.problem.line, result.problem.seq) == (keep + 1, keep + 1)
    assert "cut short" in result.problem.text
    assert (result.records, result.last_seq) == (keep, keep)


def test_a_record_that_was_replaced_with_all_that_follow_fails_its_checkpoint() -> None:
    lines = make()
    chain = Chain(1, verify_lines(lines[:1]).heads)
    forged = [lines[0], chain.append(5, 5, "license.validated", "ok", {"n": "forged"})]
    for line in lines[2:]:
        record = json.loads(line)
        fields = {name: value for name, value in record.items() if name in ("heads", "before", "value", "n", "name")}
        forged.append(chain.append(5, record["mono"], record["event"], "ok", fields))
    result = verify_lines(forged)
    assert result.problem is not None
    assert result.problem.line == 4
    assert result.problem.text == "the last 'application' record before it was removed, replaced or moved"


def test_a_checkpoint_with_new_heads_but_the_old_value_does_not_fit() -> None:
    chain = Chain()
    first = chain.append(1, 1, "admin.request", "ok", {})
    fields = {"heads": heads_fields(chain.heads), "before": "00" * 32, "value": "11" * 32}
    problem = verify_lines([first, chain.append(2, 2, CHECKPOINT, "ok", fields)]).problem
    assert problem is not None
    assert problem.text == "the checkpoint's value does not fit the chain"


@pytest.mark.parametrize("start", [1, 4, 7, 11])
def test_a_log_that_begins_later_verifies(start: int) -> None:
    result = verify_lines(LINES[start:])
    assert result.ok
    assert (result.records, result.first_seq, result.last_seq) == (12 - start, start + 1, 12)
    before = verify_lines(LINES[:start]).heads
    told = {kind: head for kind, (_, head) in result.begins.items()}
    assert told == {kind: head for kind, head in zip(CLASSES, before, strict=True) if kind in told}


def test_the_first_record_of_a_segment_tells_the_chains_of_silent_classes() -> None:
    chain = Chain()
    chain.append(1, 1, "ota.started", "ok", {})
    heads = chain.heads
    opened = chain.append(2, 2, SEGMENT_CLOSED, "ok", {"heads": heads_fields(heads)})
    result = verify_lines([opened])
    assert result.begins == {"application": (2, ZERO_HASH), "security": (2, ZERO_HASH), "ota": (2, heads[2])}
    assert result.heads == chain.heads
    other = Chain(2, (ZERO_HASH, chain.heads[1], b"1" * 64))
    assert verify_lines([opened, other.append(3, 3, "ota.done", "ok", {})]).problem is not None


@given(st.lists(st.integers(0, 12), max_size=4))
def test_segments_are_one_chain(tmp_path_factory: pytest.TempPathFactory, places: list[int]) -> None:
    directory = tmp_path_factory.mktemp("log")
    edges = [0, *sorted(set(places) - {0, 12}), 12]
    parts = [LINES[start:end] for start, end in itertools.pairwise(edges)]
    log = directory / "audit.log"
    for part, first in zip(parts[:-1], edges, strict=False):
        (directory / f"audit-{first + 1:012d}.log").write_bytes(b"".join(part))
    log.write_bytes(b"".join(parts[-1]))
    (directory / "audit.log.torn").write_bytes(b"x")
    assert verify_files(segments(log)) == verify_lines(LINES)
    if len(parts) > 2:
        segments(log)[1].unlink()
        problem = verify_files(segments(log)).problem
        assert problem is not None
        assert (problem.line, problem.file) == (1, str(segments(log)[1]))


def test_a_problem_names_file_line_and_record(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    (tmp_path / "audit-000000000001.log").write_bytes(b"".join(LINES[:5]))
    log.write_bytes(b"".join(LINES[5:8]) + b"x\n")
    result = verify_files(segments(log))
    assert str(result.problem) == f"{log}, line 4 (record 9): not a record of this log"
    assert result.records == 8


def rehash(body: bytes, prev: bytes = ZERO_HASH) -> bytes:
    """A line with any content and a right hash, as somebody who knows the format can make."""
    whole = body + b',"prev":"' + prev
    return whole + b'","hash":"' + hashlib.sha256(whole + b'"').hexdigest().encode() + b'"}\n'


START = b'{"seq":1,"class":"security"'
MARK = b',"event":"audit.checkpoint"'
HEADS = b',"heads":' + json.dumps(heads_fields(Chain().heads)).encode()


@pytest.mark.parametrize(
    "lines",
    [
        [rehash(START + MARK)],
        [rehash(START + MARK + HEADS)],
        [rehash(START + MARK + HEADS + b',"value":"zz","before":"zz"')],
        [rehash(START + MARK + HEADS + b',"value":5,"before":[]')],
        [rehash(START + MARK + HEADS + b',"value":"\xff","before":"00"')],
        [rehash(START + MARK + HEADS + b',"value":"00","before":"00"', b"z" * 64)],
        [rehash(START + MARK + HEADS + b',"value":"00","before":"\\ud800"')],
        [rehash(START + MARK + b',"heads":{"security":"00"},"value":"00","before":"00"')],
        [rehash(START + MARK + b',"heads":{"application":1,"security":2,"ota":3},"value":"00","before":"00"')],
        [rehash(START + MARK + b',"heads":{"application":"","security":"","ota":""},"value":"00","before":"00"')],
        [rehash(b'{"seq":2,"class":"security"' + MARK + b',"value":"00","before":"00"', b"\xff" * 64)],
        [rehash(START + b',"deep":' + b"[" * 3000 + b"]" * 3000 + MARK + b',"value":"00","before":"00"')],
        [rehash(START + b',"a":{' + MARK[1:])],
        [rehash(b'{"seq":1,"event":"x"')],
        [rehash(b'{"seq":1,"class":"other","event":"x"')],
        [rehash(b'{"seq":1,"class":"ota')],
        [rehash(b'{"seq":01,"class":"ota","event":"x"')],
        [b'{"seq":' + b"9" * 5000 + b",\n"],
        [b""],
        [b"\n"],
        [b"{}\n"],
        [b'{"seq":-5,\n'],
        [b'{"seq":1_0,\n'],
    ],
    ids=range(23),
)
def test_crafted_lines_are_a_problem_and_nothing_else(lines: list[bytes]) -> None:
    assert verify_lines(lines).problem is not None


def test_a_crafted_number_beyond_all_bounds_is_a_problem_and_nothing_else() -> None:
    first = rehash(b'{"seq":' + b"9" * 4300 + b',"class":"ota","event":"x"')
    assert verify_lines([first, first]).problem is not None


@given(st.lists(st.binary(max_size=40) | st.sampled_from(LINES), max_size=5))
def test_random_lines_never_raise(lines: list[bytes]) -> None:
    verify_lines(lines)
    verify_lines([line + b"\n" for line in lines])
