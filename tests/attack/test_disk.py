"""The agent's disk in an attacker's hands: copied to another machine, wound back, mixed, spoiled byte by byte.

Always through the real command: what is not accepted is refused with a sentence and a documented exit status, what can be
mended is mended, and nothing ends in a traceback.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.attack.disk import Disk, assert_clear, disk_of, other_machine_id, refusing
from tests.support.stand import BIN
from tests.support.swtpm import Swtpm
from tests.support.waiting import READY_S

pytestmark = pytest.mark.slow
HURRIED = Path(__file__).parents[1] / "support" / "hurriedagent.py"


@pytest.fixture(scope="module", params=[pytest.param("software", marks=pytest.mark.thorough), "tpm"])
def made(request: pytest.FixtureRequest) -> Iterator[Disk]:
    with disk_of(request.param) as disk:
        yield disk


@pytest.fixture
def disk(made: Disk) -> Disk:
    made.restore(made.newest)
    return made


def _works(disk: Disk) -> str:
    """It starts, with version 1 INVALIDATED and 2 ACTIVE, and stops; returns what it said."""
    with disk.machine.running() as running, disk.client() as client:
        assert client.validate(disk.token).secret_state == "ACTIVE"
        assert client.validate(disk.first_token).reason == "secret_invalidated"
    assert running.process.returncode == 0
    assert_clear(running.log())
    return running.log()


def _only_once(disk: Disk) -> None:
    if disk.machine.tpm is None:
        pytest.skip("tried with a TPM: these files are the same on the software backend")


# Another machine


def test_a_copy_opens_on_no_other_machine(disk: Disk, tmp_path: Path) -> None:
    machine, kept = disk.machine, disk.image()
    if machine.tpm is None:
        for arguments in ([], ["init", "--trust", str(machine.root / "trust.json")]):
            command = other_machine_id(tmp_path, [str(BIN / "license-agent"), *arguments])
            if command is None:
                pytest.skip("only root can play another machine")
            done = subprocess.run(command, env=machine.env, capture_output=True, text=True, check=False, timeout=READY_S)
            assert done.returncode == 69 and "belongs to another machine" in done.stderr
            assert_clear(done.stderr)
    else:
        own = machine.tpm
        with Swtpm(tmp_path / "another") as machine.tpm:
            machine.write_config()
            disk.refused("another TPM", "initialize this agent again")
            said = machine.tool("license-agent", "init", "--trust", str(machine.root / "trust.json"), fine=(69,))
            assert "another TPM" in said
            assert_clear(said)
        machine.tpm = own
    # The other machine has destroyed nothing: it opens where it belongs.
    state = {path: file for path, file in kept.items() if path.parent == machine.state}
    assert {path: file.data for path, file in state.items()} == {path: path.read_bytes() for path in state}
    machine.write_config()
    _works(disk)


def test_a_copy_does_not_open_under_the_other_backend(disk: Disk) -> None:
    machine = disk.machine
    text = machine.config.read_text()
    with Swtpm(machine.root / "spare") as spare:
        tcti = f'tcti = "{spare.tcti}"\n'
        machine.write_raw_config(
            text.replace("enabled = false", f"enabled = true\n{tcti}")
            if machine.tpm is None
            else text.replace("enabled = true", "enabled = false")
        )
        disk.refused("license-agent recover reinitialize")


# Wound back


def test_an_older_store_is_refused(disk: Disk) -> None:
    store, twin, _pending = disk.copies()
    disk.take_from(disk.before, store.name, twin.name)
    disk.refused("is of generation", "an older or foreign copy")
    disk.take_from(disk.older, store.name, twin.name)
    disk.refused("is of generation", "an older or foreign copy")
    # Nothing was thrown away: with the newest twin it goes on.
    disk.take_from(disk.newest, twin.name)
    assert "restored" in _works(disk)


def _rebuilt(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    body = msgspec.msgpack.decode(data[8:-32])
    change(body)
    return data[:8] + msgspec.msgpack.encode(body) + data[-32:]


def test_records_of_an_older_store_do_not_mix(disk: Disk) -> None:
    """The secret that was destroyed would come back."""
    store, twin, _pending = disk.copies()
    newest, before = store.read_bytes(), disk.before[store].data
    old_records = msgspec.msgpack.decode(before[8:-32])["records"]

    def resurrect(body: dict[str, Any]) -> None:
        assert body["records"][0]["sealed"] == b"" and old_records[0]["sealed"]
        body["records"][0] = old_records[0]

    def pardon(body: dict[str, Any]) -> None:
        assert body["records"][0]["meta"]["state"] == "INVALIDATED"
        body["records"][0]["meta"]["state"] = "GRACE"

    def prolong(body: dict[str, Any]) -> None:
        body["records"][1]["meta"]["grace_until"] += 86_400

    def count_on(body: dict[str, Any]) -> None:
        body["generation"] += 1

    def nothing(_body: dict[str, Any]) -> None:
        pass

    assert _rebuilt(newest, nothing) == newest
    for change in (resurrect, pardon, prolong, count_on):
        for path in (store, twin):
            disk.put(path, _rebuilt(newest, change))
        disk.refused("neither", "is whole")

    def to_the_newest_generation(body: dict[str, Any]) -> None:
        body["generation"] = msgspec.msgpack.decode(newest[8:-32])["generation"]

    for path in (store, twin):
        disk.put(path, _rebuilt(before, to_the_newest_generation))
    disk.refused("neither", "is whole")


def test_the_two_file_game(disk: Disk) -> None:
    """A power cut leaves a finished pending file that no anchor names. Whoever kept it cannot put it in later."""
    machine, (store, twin, pending) = disk.machine, disk.copies()
    disk.restore(disk.before)
    with machine.running():
        machine.tool("license-agent-cli", "secrets", "install", str(disk.delivery))
    never_committed = store.read_bytes()
    # The power was cut just before the anchor was written.
    disk.restore(disk.before)
    disk.put(pending, never_committed)
    with machine.running(), disk.client() as client:
        assert client.validate(disk.first_token).secret_state == "GRACE"
        assert not pending.exists()
        assert len(json.loads(machine.tool("license-agent-cli", "--json", "secrets"))["secrets"]) == 2
        # The attacker has kept the file; now something else becomes that generation.
        machine.tool("license-agent-cli", "secrets", "invalidate", "1", "--yes")
    generation = msgspec.msgpack.decode(store.read_bytes()[8:-32])["generation"]
    assert msgspec.msgpack.decode(never_committed[8:-32])["generation"] == generation
    disk.put(pending, never_committed)
    _works(disk)
    assert not pending.exists()
    disk.put(pending, never_committed)
    disk.put(store, never_committed)
    assert "restored" in _works(disk)
    for path in (store, twin, pending):
        disk.put(path, never_committed)
    disk.refused("an older or foreign copy")
    store.unlink()
    twin.unlink()
    disk.refused("an older or foreign copy")


# Spoiled


def _damages(data: bytes, places: int) -> Iterator[tuple[str, bytes]]:
    """Ways to spoil a file: emptied, cut, prolonged, and one bit turned at many places."""
    yield "emptied", b""
    yield "cut to half", data[: len(data) // 2]
    yield "cut by one", data[:-1]
    yield "prolonged", data + b"\0"
    yield "zeros", bytes(len(data))
    for number in range(places):
        place = number * (len(data) - 1) // max(places - 1, 1)
        yield f"bit {number % 8} of byte {place}", _flipped(data, place, number % 8)


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _all_refused(disk: Disk, paths: list[Path], places: int, *words: str, also: Callable[[bytes], bytes] | None = None) -> None:
    """The same damage in all these files is refused, whatever it is, in words that tell what to do."""
    data = paths[0].read_bytes()
    spoiled = [(name, text if also is None else also(text)) for name, text in _damages(data, places)]

    def spoil(text: bytes) -> None:
        for path in paths:
            disk.put(path, text)

    spoil(b"")
    disk.refused(*words[:1])
    with refusing(disk) as agent:
        for name, text in spoiled:
            spoil(text)
            said = agent.try_again()
            assert any(word in said for word in words), f"{name}: {said}"
    spoil(data)
    _works(disk)


def test_a_store_of_which_no_copy_is_whole_is_refused(disk: Disk) -> None:
    store, twin, _pending = disk.copies()
    _all_refused(disk, [store, twin], 4, "neither")


def test_spoiled_key_files_are_refused(disk: Disk) -> None:
    machine = disk.machine
    if machine.tpm is None:
        _all_refused(disk, [machine.keys / "software.key"], 5, "is damaged", "another machine", "iterations")
        disk.restore(disk.newest)
        _all_refused(disk, [machine.keys / "software.anchor"], 3, "is damaged", "was not written by this agent")
    else:
        objects = machine.state / "tpm.objects"
        _all_refused(disk, [objects, machine.state / "tpm.objects.twin"], 8, "are damaged")


def test_spoiled_key_blobs_with_a_good_checksum_are_refused_by_the_tpm(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever edits the file can make the checksum fit; the TPM's own check cannot be made to."""
    if disk.machine.tpm is None:
        pytest.skip("the software backend's key file has no plain checksum")
    # A refusal, which nobody signs, is believed after three seconds; there are thirty of them.
    monkeypatch.setattr(disk.machine, "program", [sys.executable, str(HURRIED)])
    objects, twin = disk.machine.state / "tpm.objects", disk.machine.state / "tpm.objects.twin"
    data = objects.read_bytes()

    def spoil(place: int) -> None:
        body = _flipped(data, place, place % 8)[40:]
        for path in (objects, twin):
            disk.put(path, data[:8] + hashlib.sha256(body).digest() + body)

    # The keys and their auth values are not needed to start; those of the key-agreement key only to take over a secret.
    binding, keys_auth, agreement = data.index(b"binding"), data.index(b"keys_auth"), data.index(b"agreement")
    for path in (objects, twin):
        disk.put(path, b"")
    with refusing(disk) as agent:
        for place in range(40, binding, 11):
            spoil(place)
            said = agent.try_again()
            assert any(word in said for word in _WORDS), f"{place}: {said}"
    for place in (keys_auth + 20, agreement + 60):
        spoil(place)
        with disk.machine.running() as running, disk.client() as client:
            assert client.validate(disk.token).valid
            said = disk.machine.tool("license-agent-cli", "secrets", "install", str(disk.delivery), fine=(4,))
        assert_clear(said + running.log())
        assert "INTERNAL" not in said, said
    for path in (objects, twin):
        disk.put(path, data)
    _works(disk)


_WORDS = ("damaged", "another TPM", "no TPM has made", "TPM refused", "refuses the auth value")


def test_one_spoiled_copy_is_mended_from_its_twin(disk: Disk) -> None:
    store, twin, _pending = disk.copies()
    pairs = [(store, twin), (twin, store)]
    if disk.machine.tpm is not None:
        objects, objects_twin = disk.machine.state / "tpm.objects", disk.machine.state / "tpm.objects.twin"
        pairs = [(store, twin), (twin, store), (objects, objects_twin), (objects_twin, objects)]
    whole = {path: path.read_bytes() for pair in pairs for path in pair}
    for first in range(2):
        for number in range(0, 8, 3):
            for spoiled, _other in pairs[first::2]:
                damages = list(_damages(whole[spoiled], 5))
                disk.put(spoiled, damages[number][1])
            assert "restored" in _works(disk)
            assert {path: path.read_bytes() for path in whole} == whole
    for path in (store, twin):
        path.unlink()
        assert "restored" in _works(disk)
        assert store.read_bytes() == twin.read_bytes() == whole[store]


def test_views_books_and_counts_are_no_reason_not_to_start(disk: Disk) -> None:
    """Verdicts do not depend on them: spoiled in any way, they are mended or begun anew."""
    _only_once(disk)
    state = disk.machine.state
    paths = [state / name for name in ("state.json", "state.json.bak", "licenses.json", "audit.repeats", "metrics.prom")]
    whole = {path: path.read_bytes() for path in paths}
    damages = {path: list(_damages(data, 2)) for path, data in whole.items()}
    for number in range(len(damages[paths[0]])):
        for path in paths:
            disk.put(path, damages[path][number][1])
        said = _works(disk)
        # Without its last line break it is still whole.
        assert ("state.json was corrupt" in said) == (damages[paths[0]][number][0] != "cut by one")
        assert json.loads((state / "state.json").read_bytes())["secrets"][1]["state"] == "ACTIVE"


def _with_checksum(body: dict[str, Any]) -> bytes:
    compact = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**body, "checksum": hashlib.sha256(compact).hexdigest()}).encode()


def _repeats(*slots: bytes) -> bytes:
    data = bytearray(512 * 512)
    for number, slot in enumerate(slots):
        head = b"\x01\0" + len(slot).to_bytes(2, "little") + bytes(4) + (3).to_bytes(8, "little")
        head += bytes.fromhex("0000000000001041") * 2  # the time 262144.0, twice
        data[512 * number : 512 * number + len(head) + len(slot)] = head + slot
    return bytes(data)


_HUGE = b'{"event":"e","number":' + b"9" * 60 + b"}"
_FORGED = b'{"event":"audit.checkpoint","outcome":"ok","before":"zz","value":7,"reseal":true}'


@pytest.mark.parametrize(
    "forged",
    [
        {
            "state.json": _with_checksum({"format": 1, "last_server_contact": 10**40, "degraded_since": -(10**40)}),
            "licenses.json": b'{"newest":{"x":{"iat":' + b"9" * 50 + b',"token":"","version":1}},"seen":{}}',
            "audit.repeats": _repeats(_HUGE, b"{" * 400, b"[]", b"\xff\xfe", b'{"seq":1,"hash":"x","prev":[],"time":{}}'),
        },
        {
            "state.json": _with_checksum({"format": 1, "last_server_contact": 2**63 - 1, "degraded_since": -(2**63)}),
            "licenses.json": b'{"newest":{"":{"iat":-9,"token":"\\ud800","version":-1}},"seen":{"":{"jti":"","day":-9}}}',
            "audit.repeats": _repeats(_FORGED, b'{"event":"\\ud800"}', b'{"event":null,"outcome":[1]}'),
        },
        {
            "state.json": b"[" * 200_000,
            "audit.repeats": b"\xff" * 512 * 512,
            # In a member that is ignored, the way to what is no JSON is longest.
            **dict.fromkeys(("licenses.json", "rotation.json", "webhook.json"), b'{"of a later version":' + b"[" * 200_000),
        },
    ],
    ids=["huge numbers", "edges", "depth"],
)
def test_files_that_are_forged_with_care_are_no_reason_not_to_start(disk: Disk, forged: dict[str, bytes]) -> None:
    _only_once(disk)
    for name, text in forged.items():
        disk.put(disk.machine.state / name, text)
    with disk.machine.running() as running, disk.client() as client:
        assert client.validate(disk.token).valid
        disk.machine.status()
        assert "intact" in disk.machine.tool("license-agent-cli", "audit", "verify")
    assert running.process.returncode == 0
    assert_clear(running.log())


def test_a_spoiled_audit_log_is_refused_or_alerted(disk: Disk) -> None:
    _only_once(disk)
    log = disk.machine.log / "audit.log"
    data = log.read_bytes()
    lines = data.splitlines(keepends=True)
    # Every edit of what is there.
    disk.put(log, data.replace(b'"ok"', b'"no"', 1), 0o640)
    disk.refused("line 1", "evidence")
    with refusing(disk) as agent:
        for place in range(0, len(data) - 1, len(data) // 5):
            disk.put(log, _flipped(data, place, place % 8), 0o640)
            assert "evidence" in agent.try_again()
        for number in (1, len(lines) // 2):
            disk.put(log, b"".join(lines[:number] + lines[number + 1 :]), 0o640)
            assert "evidence" in agent.try_again()
            disk.put(log, b"".join([*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]]), 0o640)
            assert "evidence" in agent.try_again()
    # What only lacks its end starts, and is alerted: the seal knows.
    for text in (b"", data[: len(data) // 2], b"".join(lines[:2])):
        disk.restore(disk.newest)
        disk.put(log, text, 0o640)
        assert "ALERT the audit log does not match its sealed value" in _works(disk)
    disk.restore(disk.newest)
    disk.put(log, data + b'{"seq":', 0o640)
    assert "unfinished line" in _works(disk)


def test_a_spoiled_configuration_is_refused_or_meant(disk: Disk) -> None:
    """One bit may still give a good configuration, of another meaning; it is never a traceback."""
    _only_once(disk)
    machine = disk.machine
    text = machine.config.read_bytes()
    machine.write_raw_config("")
    status, said = machine.run_to_the_end()
    assert status == 78 and said.strip()
    assert_clear(said)
    for name, spoiled in _damages(text, 6):
        disk.put(machine.config, spoiled)
        done = subprocess.run(
            [str(BIN / "license-agent"), "check-config"],
            env=machine.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_S,
        )
        assert done.returncode in (0, 78), f"{name}: {done.stderr}"
        assert_clear(done.stderr)
        assert done.returncode == 0 or done.stderr.strip()
