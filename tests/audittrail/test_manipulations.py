"""No manipulation of a copied log ends `intact`, whatever keys the auditor has; what was not checked is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from audittrail import anchor, archive
from audittrail.chain import CERTIFIED, CHECKPOINT, Chain, fold_checkpoint, heads_digest, heads_fields
from audittrail.check import verify_log
from audittrail.record import PREV
from audittrail.report import INCOMPLETE, INTACT, TAMPERED, Head, Keys
from audittrail.whole import anchors_path, plain_files, read_anchors
from tests.audittrail.madelog import NOON, Machine, point_of, software_certificate
from tests.audittrail.test_chain import rehash

OURS, OTHER = Machine(1), Machine(2)


@dataclass
class Copy:
    """A copy of our log, and a log of another machine to take parts from."""

    log: Path
    other: Path

    def plain(self) -> list[Path]:
        return plain_files(self.log)

    def archives(self, kind: str = "") -> list[Path]:
        return [path for path in archive.archives(self.log) if kind in path.name]

    def lines(self) -> list[bytes]:
        """Of the open file."""
        return self.log.read_bytes().splitlines(keepends=True)

    def put(self, lines: list[bytes]) -> None:
        self.log.write_bytes(b"".join(lines))

    def everything_else_goes(self) -> None:
        for path in self.log.parent.iterdir():
            if path != self.log:
                path.unlink()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return OURS.write(tmp_path_factory.mktemp("ours")), OTHER.write(tmp_path_factory.mktemp("other"))


@pytest.fixture
def copy(templates: tuple[Path, Path], tmp_path: Path) -> Copy:
    for source, name in zip(templates, ("ours", "other"), strict=True):
        shutil.copytree(source.parent, tmp_path / name)
    return Copy(tmp_path / "ours" / "audit.log", tmp_path / "other" / "audit.log")


def rechained(lines: list[bytes], start: int, change: Callable[[dict[str, object]], None]) -> list[bytes]:
    """The lines, with those from `start` on changed and their hashes made new, as somebody who knows the format can do."""
    heads, out = {}, lines[:start]
    for line in lines[:start]:
        heads[json.loads(line)["class"]] = line[-67:-3]
    number = json.loads(lines[0])["seq"] + start
    for line in lines[start:]:
        record = json.loads(line)
        change(record)
        if record.pop("gone", False):
            continue
        kind = record["class"]
        prev = heads.get(kind, line[PREV])
        record["seq"], number = number, number + 1
        body = json.dumps({k: v for k, v in record.items() if k not in ("prev", "hash")}, separators=(",", ":")).encode()
        out.append(rehash(body[:-1], prev))
        heads[kind] = out[-1][-67:-3]
    return out


# Each takes a copy and changes it.


def edit_a_record(copy: Copy) -> None:
    copy.log.write_bytes(copy.log.read_bytes().replace(b'"n":3', b'"n":4', 1))


def edit_a_record_with_its_hash(copy: Copy) -> None:
    lines = copy.lines()
    body = lines[3].replace(b'"n":3', b'"n":4')
    lines[3] = rehash(body[: body.index(b',"prev":"')], body[PREV])
    copy.put(lines)


def edit_and_make_all_later_hashes(copy: Copy) -> None:
    copy.put(rechained(copy.lines(), 3, lambda record: record.update(n=77) if record.get("n") == 3 else None))


def edit_and_leave_all_later_checkpoints_out(copy: Copy) -> None:
    def change(record: dict[str, object]) -> None:
        record["n"] = 77
        record["gone"] = record["event"] in (CHECKPOINT, CERTIFIED)

    copy.put(rechained(copy.lines(), 3, change))


def leave_the_last_certificate_out(copy: Copy) -> None:
    copy.put(rechained(copy.lines(), 8, lambda record: record.update(gone=record["event"] == CERTIFIED)))


def forge_the_last_certificate(copy: Copy) -> None:
    def change(record: dict[str, object]) -> None:
        if record["event"] == CERTIFIED:
            record["signature"] = "A" * 86 + "=="

    copy.put(rechained(copy.lines(), 8, change))


def drop_the_first_line(copy: Copy) -> None:
    copy.put(copy.lines()[1:])


def drop_a_line(copy: Copy) -> None:
    copy.put(copy.lines()[:4] + copy.lines()[5:])


def drop_a_checkpoint(copy: Copy) -> None:
    copy.put([line for line in copy.lines() if b'"audit.checkpoint"' not in line])


def swap_two_lines(copy: Copy) -> None:
    lines = copy.lines()
    lines[4], lines[5] = lines[5], lines[4]
    copy.put(lines)


def double_a_line(copy: Copy) -> None:
    lines = copy.lines()
    copy.put([*lines[:4], lines[3], *lines[4:]])


def append_a_line_of_another_machine(copy: Copy) -> None:
    copy.put([*copy.lines(), copy.other.read_bytes().splitlines(keepends=True)[-1]])


def drop_the_last_line(copy: Copy) -> None:
    copy.put(copy.lines()[:-1])


def append_a_line_that_fits(copy: Copy) -> None:
    a_last_line_with("sense", b'"event":"admin.request"')(copy)


def cut_in_a_line(copy: Copy) -> None:
    copy.log.write_bytes(copy.log.read_bytes()[:-9])


def cut_before_the_head(copy: Copy) -> None:
    copy.put(copy.lines()[:6])


def cut_the_open_file_to_nothing(copy: Copy) -> None:
    copy.put([])


def remove_the_open_file(copy: Copy) -> None:
    copy.log.unlink()


def keep_the_last_line_only(copy: Copy) -> None:
    copy.everything_else_goes()
    copy.put(copy.lines()[-1:])


def keep_the_open_file_only(copy: Copy) -> None:
    copy.everything_else_goes()


def keep_nothing(copy: Copy) -> None:
    copy.everything_else_goes()
    copy.put([])


def remove_the_first_plain_segment(copy: Copy) -> None:
    copy.plain()[0].unlink()


def remove_a_later_plain_segment(copy: Copy) -> None:
    copy.plain()[1].unlink()


def remove_all_plain_segments(copy: Copy) -> None:
    for path in copy.plain()[:-1]:
        path.unlink()


def remove_all_plain_files(copy: Copy) -> None:
    for path in copy.plain():
        path.unlink()


def swap_two_segments(copy: Copy) -> None:
    one, other = copy.plain()[:2]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def remove_all_archives(copy: Copy) -> None:
    for path in copy.archives():
        path.unlink()


def remove_the_first_archive(copy: Copy) -> None:
    copy.archives()[0].unlink()


def remove_the_last_archive(copy: Copy) -> None:
    copy.archives()[-1].unlink()


def remove_an_archive_of(kind: str, place: int) -> Callable[[Copy], None]:
    def change(copy: Copy) -> None:
        copy.archives(kind)[place].unlink()

    change.__name__ = f"remove_archive_{place}_of_{kind}"
    return change


def remove_the_archives_of_a_class(copy: Copy) -> None:
    for path in copy.archives("security"):
        path.unlink()


def remove_archives_and_anchors(copy: Copy) -> None:
    remove_all_archives(copy)
    anchors_path(copy.log).unlink()


def double_an_archive(copy: Copy) -> None:
    path = copy.archives()[0]
    path.with_name("audit-000000000002-security.archive").write_bytes(path.read_bytes())


def put_an_archive_of_another_machine(copy: Copy) -> None:
    for path in copy.archives("security")[:1]:
        path.write_bytes((copy.other.parent / path.name).read_bytes())


def put_all_archives_of_another_machine(copy: Copy) -> None:
    for path in copy.archives():
        path.write_bytes((copy.other.parent / path.name).read_bytes())


def put_an_archive_that_lies(copy: Copy) -> None:
    """Its header is that of the true one; the content is somebody else's, encrypted for the operator."""
    path = copy.archives("security")[1]
    header, _ = archive.read_header(path.read_bytes())
    _, content = archive.unseal_for_operator((copy.other.parent / path.name).read_bytes(), OTHER.operator)
    path.write_bytes(archive.seal(header, content, OURS.machine_key, OURS.operator.public_key()))


def put_an_archive_that_only_the_machine_opens(copy: Copy) -> None:
    path = copy.archives("security")[1]
    header, content = archive.unseal_for_operator(path.read_bytes(), OURS.operator)
    path.write_bytes(archive.seal(header, content, OTHER.machine_key, None))


def flip_a_byte_of_an_archive(copy: Copy) -> None:
    data = bytearray(copy.archives()[0].read_bytes())
    data[-20] ^= 1
    copy.archives()[0].write_bytes(data)


def flip_a_byte_of_an_archives_key(copy: Copy) -> None:
    path = copy.archives("security")[1]
    path.write_bytes(path.read_bytes().replace(b'"operator":{"nonce":"', b'"operator":{"nonce":"AAAA', 1))


def cut_an_archive(copy: Copy) -> None:
    path = copy.archives()[-1]
    path.write_bytes(path.read_bytes()[:-40])


def empty_an_archive(copy: Copy) -> None:
    copy.archives()[-1].write_bytes(b"")


def add_a_file_that_is_no_archive(copy: Copy) -> None:
    copy.log.with_name("audit-000000000003-ota.archive").write_bytes(b"LAARCH1\n\0\0\0\x02{}")


def remove_the_anchors(copy: Copy) -> None:
    anchors_path(copy.log).unlink()


def put(data: bytes, name: str) -> Callable[[Copy], None]:
    def change(copy: Copy) -> None:
        anchors_path(copy.log).write_bytes(data)

    change.__name__ = f"anchors_are_{name}"
    return change


def edit_the_anchors(name: str, **changes: object) -> Callable[[Copy], None]:
    def change(copy: Copy) -> None:
        found = {kind: msgspec.structs.replace(each, **changes) for kind, each in read_anchors(copy.log).items()}
        anchors_path(copy.log).write_bytes(anchor.encode(found))

    change.__name__ = f"anchors_with_{name}"
    return change


def put_the_anchors_of_another_machine(copy: Copy) -> None:
    anchors_path(copy.log).write_bytes(anchors_path(copy.other).read_bytes())


def forge_anchors_and_remove_all_archives(copy: Copy) -> None:
    """As somebody does who knows the format, without the identity key: all numbers and hashes fit."""
    forged = dict(read_anchors(copy.log))
    for path in copy.archives():
        header, _ = archive.read_header(path.read_bytes())
        before = forged[header.kind].records if header.kind in forged else 0
        forged[header.kind] = anchor.Removed(
            header.kind, header.last_seq, header.head, before + header.records, NOON, "retention", bytes(64)
        )
        path.unlink()
    anchors_path(copy.log).write_bytes(anchor.encode(forged))


def forge_an_anchor_for_what_never_was(copy: Copy) -> None:
    found = read_anchors(copy.log) | {"ota": anchor.Removed("ota", 1, "0" * 64, 1, NOON, "retention", bytes(64))}
    anchors_path(copy.log).write_bytes(anchor.encode(found))


def put_the_whole_log_of_another_machine(copy: Copy) -> None:
    shutil.rmtree(copy.log.parent)
    shutil.copytree(copy.other.parent, copy.log.parent)


def put_a_log_that_was_made_up(copy: Copy) -> None:
    copy.everything_else_goes()
    chain = Chain()
    copy.put([chain.append(NOON + n, n, "license.validated", "ok", {"n": n}) for n in range(100)])


def put_a_log_that_was_made_up_over_the_parts(copy: Copy) -> None:
    chain = Chain()
    for path in copy.plain():
        path.unlink()
    copy.put([chain.append(NOON + n, n, "license.validated", "ok", {"n": n}) for n in range(100)])


def put_a_log_that_was_made_up_around_a_true_certificate(copy: Copy) -> None:
    """The certificate is the machine's own; a checkpoint says that its value was sealed before."""
    true = next(json.loads(line) for line in copy.lines() if b'"audit.certified"' in line)
    value = next(json.loads(line)["value"] for line in copy.lines() if b'"audit.checkpoint"' in line)
    copy.everything_else_goes()
    chain = Chain()
    lines = [chain.append(NOON + n, n, "license.validated", "ok", {"n": n}) for n in range(50)]
    after = fold_checkpoint(bytes.fromhex(value), heads_digest(chain.heads)).hex()
    fields = {"heads": heads_fields(chain.heads), "before": value, "value": after, "reseal": True}
    lines.append(chain.append(NOON + 60, 60, CHECKPOINT, "ok", fields))
    fields = {"attested": true["attested"], "signature": true["signature"]}
    copy.put([*lines, chain.append(NOON + 60, 60, CERTIFIED, "ok", fields)])


def put_a_log_that_the_machines_own_keys_made_anew(copy: Copy) -> None:
    """As somebody does who controls the agent: the keys sign, but the sealed value only goes on from where it was."""
    value = next(json.loads(line)["value"] for line in copy.lines() if b'"audit.checkpoint"' in line)
    copy.everything_else_goes()
    controlled = Machine(1, value=bytes.fromhex(value))
    copy.put([*[controlled.add(NOON + n, "license.validated", n=n) for n in range(9)], *controlled.checkpoint(NOON + 10)])


def put_a_log_that_another_key_certified(copy: Copy) -> None:
    copy.everything_else_goes()
    stranger = Machine(3)
    copy.put([*[stranger.add(NOON + n, "license.validated", n=n) for n in range(9)], *stranger.checkpoint(NOON + 10)])


def a_last_line_with(name: str, member: bytes) -> Callable[[Copy], None]:
    def change(copy: Copy) -> None:
        lines = copy.lines()
        seq, head = json.loads(lines[-1])["seq"] + 1, OURS.chain.heads[1]
        body = b'{"seq":%d,"class":"security","time":"2027-01-20T08:00:30.000000Z",' % seq + member
        copy.put([*lines, rehash(body, head)])

    change.__name__ = f"a_last_line_with_{name}"
    return change


MANIPULATIONS: list[Callable[[Copy], None]] = [
    edit_a_record,
    edit_a_record_with_its_hash,
    edit_and_make_all_later_hashes,
    edit_and_leave_all_later_checkpoints_out,
    leave_the_last_certificate_out,
    forge_the_last_certificate,
    drop_the_first_line,
    drop_a_line,
    drop_a_checkpoint,
    swap_two_lines,
    double_a_line,
    append_a_line_of_another_machine,
    drop_the_last_line,
    append_a_line_that_fits,
    cut_in_a_line,
    cut_before_the_head,
    cut_the_open_file_to_nothing,
    remove_the_open_file,
    keep_the_last_line_only,
    keep_the_open_file_only,
    keep_nothing,
    remove_the_first_plain_segment,
    remove_a_later_plain_segment,
    remove_all_plain_segments,
    remove_all_plain_files,
    swap_two_segments,
    remove_all_archives,
    remove_the_first_archive,
    remove_the_last_archive,
    *(remove_an_archive_of(kind, place) for kind in ("security", "ota") for place in (0, 1, 2)),
    remove_an_archive_of("application", 0),
    remove_the_archives_of_a_class,
    remove_archives_and_anchors,
    double_an_archive,
    put_an_archive_of_another_machine,
    put_all_archives_of_another_machine,
    put_an_archive_that_lies,
    put_an_archive_that_only_the_machine_opens,
    flip_a_byte_of_an_archive,
    flip_a_byte_of_an_archives_key,
    cut_an_archive,
    empty_an_archive,
    add_a_file_that_is_no_archive,
    remove_the_anchors,
    put(b"", "empty"),
    put(b"[]", "none"),
    put(b"\xff\x00junk", "garbage"),
    put(b'[{"kind":"security"}]', "half"),
    edit_the_anchors("zero_signatures", signature=bytes(64)),
    edit_the_anchors("no_signatures", signature=b""),
    edit_the_anchors("more_records", records=18),
    edit_the_anchors("a_later_end", last_seq=40),
    edit_the_anchors("another_hash", head="1" * 64),
    edit_the_anchors("another_reason", reason="space"),
    put_the_anchors_of_another_machine,
    forge_anchors_and_remove_all_archives,
    forge_an_anchor_for_what_never_was,
    put_the_whole_log_of_another_machine,
    put_a_log_that_was_made_up,
    put_a_log_that_was_made_up_over_the_parts,
    put_a_log_that_was_made_up_around_a_true_certificate,
    put_a_log_that_the_machines_own_keys_made_anew,
    put_a_log_that_another_key_certified,
    a_last_line_with("bad_utf8", b'"event":"x\xff"'),
    a_last_line_with("an_overlong_form", b'"event":"x\xc0\xae"'),
    a_last_line_with("nul", b'"event":"x\x00y"'),
    a_last_line_with("a_control_character", b'"event":"x\x1b[2Ky"'),
    a_last_line_with("a_doubled_member", b'"event":"x","outcome":"refused","outcome":"ok"'),
    a_last_line_with("a_doubled_inner_member", b'"event":"x","actor":{"uid":0,"uid":1000}'),
    a_last_line_with("another_class_too", b'"event":"x","class":"ota"'),
    a_last_line_with("no_json", b'"event":}{'),
    a_last_line_with("nan", b'"event":NaN'),
]

AFTER_THE_HEAD = {drop_the_last_line, append_a_line_that_fits, leave_the_last_certificate_out}
"""What is after the newest head and the newest certificate that is left: the report says that the end is open."""
AFTER_A_CERTIFICATE = {
    cut_before_the_head,
    cut_the_open_file_to_nothing,
    remove_the_open_file,
    edit_and_leave_all_later_checkpoints_out,
    *AFTER_THE_HEAD,
}
"""What nobody can find without a head: the log ends at an earlier certificate, and what follows it is minutes long."""
INCOMPLETE_WITH_ALL = {put_an_archive_that_only_the_machine_opens}
"""What no key of the auditor's opens."""


def keys(archive_key: bool, identity: bool, attestation: bool) -> Keys:
    have = OURS.keys()
    return Keys(
        have.unseal if archive_key else None, have.identity if identity else None, have.attestation if attestation else None
    )


OPTIONS = ("--archive-key", "--identity-key", "--attestation-key")
SOME = [keys(bool(n & 1), bool(n & 2), bool(n & 4)) for n in range(7)]


def test_the_log_as_it_was_is_intact_with_all_keys_and_incomplete_without_any(copy: Copy) -> None:
    whole = verify_log(copy.log, OURS.keys(), OURS.server_head())
    assert (whole.outcome, whole.gaps, whole.found.last_seq) == (INTACT, [], OURS.chain.seq)
    assert whole.acknowledged == OURS.head[0] == whole.found.covered
    assert verify_log(copy.log, OURS.keys(), open_end=True).outcome == INTACT
    assert [gap.needs for gap in verify_log(copy.log, OURS.keys()).gaps] == [
        "--head FILE (from 'license-server audit-head'), or --open-end to do without"
    ]
    for given in SOME:
        report = verify_log(copy.log, given, OURS.server_head())
        assert report.outcome == INCOMPLETE
        needed = " ".join(gap.needs for gap in report.gaps)
        assert [given.unseal, given.identity, given.attestation] == [
            None if option in needed else getattr(given, name)
            for option, name in (
                ("--archive-key", "unseal"),
                ("--identity-key", "identity"),
                ("--attestation-key", "attestation"),
            )
        ]


@pytest.mark.parametrize("change", MANIPULATIONS, ids=lambda change: change.__name__)
def test_no_manipulation_is_intact(copy: Copy, change: Callable[[Copy], None]) -> None:
    change(copy)
    report = verify_log(copy.log, OURS.keys(), OURS.server_head())
    expected = INCOMPLETE if change in INCOMPLETE_WITH_ALL else INTACT if change in AFTER_THE_HEAD else TAMPERED
    assert report.outcome == expected, report
    assert report.acknowledged < report.found.last_seq or expected != INTACT
    without = verify_log(copy.log, OURS.keys(), open_end=True)
    assert (without.outcome == INTACT) == (change in AFTER_A_CERTIFICATE), without
    assert without.end_open
    for given in SOME:
        for head in (None, OURS.server_head()):
            assert verify_log(copy.log, given, head, open_end=head is None).outcome != INTACT


def test_what_a_key_can_tell_no_other_key_hides(copy: Copy) -> None:
    """Tampered outranks incomplete: what one key finds counts although others are missing."""
    edit_the_anchors("zero_signatures", signature=bytes(64))(copy)
    assert verify_log(copy.log, keys(False, True, False)).outcome == TAMPERED
    assert verify_log(copy.log, keys(True, False, True), open_end=True).outcome == INCOMPLETE


@pytest.mark.parametrize(
    ("head", "outcome"),
    [
        (lambda: Head(OURS.head[0], "0" * 64, "x"), TAMPERED),
        (lambda: Head(OURS.head[0] + 1, OURS.head[1], "x"), TAMPERED),
        (lambda: Head(OURS.chain.seq + 1, OURS.head[1], "x"), TAMPERED),
        (lambda: Head(10**15, OURS.head[1], "x"), TAMPERED),
        (lambda: Head(0, OURS.head[1], "x"), INCOMPLETE),
        (OTHER.server_head, TAMPERED),
    ],
    ids=["digest", "no_checkpoint", "beyond", "far", "before", "another_agent"],
)
def test_heads_that_do_not_fit(copy: Copy, head: Callable[[], Head], outcome: str) -> None:
    assert verify_log(copy.log, OURS.keys(), head()).outcome == outcome


def test_a_head_in_an_archive_needs_its_key(copy: Copy) -> None:
    first = next(
        (json.loads(line)["seq"], line)
        for path in copy.archives("security")
        for line in archive.lines(archive.unseal_for_operator(path.read_bytes(), OURS.operator)[1])
        if b'"audit.checkpoint"' in line
    )
    heads = json.loads(first[1])["heads"]
    head = Head(first[0], heads_digest([text.encode() for text in heads.values()]).hex(), "x")
    assert verify_log(copy.log, OURS.keys(), head).outcome == INTACT
    report = verify_log(copy.log, replace(OURS.keys(), unseal=None), head)
    assert report.outcome == INCOMPLETE
    assert any("it is in an archive" in gap.what for gap in report.gaps)


@pytest.mark.parametrize(
    ("wrong", "outcome"),
    [
        ({"identity": point_of(OTHER.identity)}, TAMPERED),
        ({"identity": point_of(OURS.attestation)}, TAMPERED),
        ({"identity": bytes(65)}, TAMPERED),
        ({"attestation": point_of(OTHER.attestation)}, TAMPERED),
        ({"attestation": point_of(OURS.identity)}, TAMPERED),
        ({"unseal": OTHER.keys().unseal}, INCOMPLETE),
    ],
    ids=["identity", "attestation_as_identity", "no_point", "attestation", "identity_as_attestation", "archive"],
)
def test_wrong_keys(copy: Copy, wrong: dict[str, object], outcome: str) -> None:
    assert verify_log(copy.log, replace(OURS.keys(), **wrong), OURS.server_head()).outcome == outcome  # type: ignore[arg-type]


def test_records_after_the_last_certificate_are_few_or_the_check_is_incomplete(tmp_path: Path) -> None:
    machine, log = Machine(4), tmp_path / "audit.log"
    lines = [machine.add(NOON, "agent.started"), *machine.checkpoint(NOON)]
    late = [machine.add(NOON + 90_000 + n, "admin.request") for n in range(3)]
    log.write_bytes(b"".join(lines + late))
    assert verify_log(log, machine.keys(), open_end=True).outcome == INTACT
    late += machine.checkpoint(NOON + 90_010, certified=False)
    log.write_bytes(b"".join(lines + late))
    assert verify_log(log, machine.keys(), open_end=True).outcome == INTACT
    log.write_bytes(b"".join(lines + late + machine.checkpoint(NOON + 90_020, certified=False)))
    assert verify_log(log, machine.keys(), open_end=True).outcome == INCOMPLETE
    assert verify_log(log, machine.keys(), machine.server_head()).outcome == INTACT


def test_a_log_without_any_certificate_is_incomplete(tmp_path: Path) -> None:
    machine, log = Machine(5), tmp_path / "audit.log"
    log.write_bytes(b"".join([machine.add(NOON, "agent.started"), *machine.checkpoint(NOON, certified=False)]))
    report = verify_log(log, machine.keys(), open_end=True)
    assert report.outcome == INCOMPLETE
    assert "certified" in report.gaps[0].needs


def test_a_certificate_counts_for_the_value_after_a_checkpoint_only(tmp_path: Path) -> None:
    machine, log = Machine(6), tmp_path / "audit.log"
    lines = [machine.add(NOON, "agent.started"), *machine.checkpoint(NOON, certified=False)]
    machine.value = bytes(32)
    assert software_certificate(machine.value)
    log.write_bytes(b"".join([*lines, machine.certificate(NOON)]))
    assert verify_log(log, machine.keys(), open_end=True).outcome == INCOMPLETE


def test_the_table_is_not_empty_of_effect(copy: Copy) -> None:
    """Each manipulation changes the files; otherwise it would show nothing."""

    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in copy.log.parent.iterdir()}

    whole = state()
    assert len(MANIPULATIONS) > 60
    for change in MANIPULATIONS:
        change(copy)
        assert state() != whole, change.__name__
        shutil.rmtree(copy.log.parent)
        copy.log.parent.mkdir()
        for name, data in whole.items():
            (copy.log.parent / name).write_bytes(data)
