"""The software backend: the key fits one machine, and files that were damaged or changed end in a typed state."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import hwsec.bootclock
import hwsec.software
from common.files import write_atomic
from hwsec.backend import Anchor, BackendState, HardwareClock
from hwsec.bootclock import boot_clock, read_boot_clock
from hwsec.errors import BackendUnavailable, ForeignHardware, HwsecError, NotEnrolled, OldFormat
from hwsec.software import PBKDF2_CEILING, PBKDF2_FLOOR, PBKDF2_ITERATIONS, SoftwareBackend
from hwsec.vault import Vault
from tests.hwsec.conftest import SoftwareMachine
from tests.hwsec.memory_scan import lingering, scan_after_each_stop

ANCHOR = Anchor(2, bytes(range(32)), version=1)


@pytest.fixture
def enrolled(software: SoftwareMachine) -> SoftwareBackend:
    return software.enroll()


def kek_of(backend: SoftwareBackend) -> bytes:
    with backend.kek() as kek:
        return bytes(kek.view)


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


# Which machine


@pytest.mark.parametrize("machine_id", [b"machine-2", b"", b"machine-1\n"])
def test_another_machine_id_is_foreign(software: SoftwareMachine, enrolled: SoftwareBackend, machine_id: bytes) -> None:
    other = software.backend(machine_id)
    with pytest.raises(ForeignHardware, match="another machine"):
        other.open()
    with pytest.raises(NotEnrolled):
        kek_of(other)


# Iterations


def test_the_default_is_what_owasp_says_and_the_bounds_allow_it() -> None:
    assert PBKDF2_FLOOR < PBKDF2_ITERATIONS < PBKDF2_CEILING
    assert PBKDF2_ITERATIONS >= 600_000


@pytest.mark.parametrize("iterations", [0, 1, PBKDF2_FLOOR - 1, PBKDF2_CEILING + 1])
def test_iterations_that_open_would_refuse_are_not_created(tmp_path: Path, vault: Vault, iterations: int) -> None:
    with pytest.raises(ValueError, match="iterations"):
        SoftwareBackend(tmp_path, b"id", vault, iterations)


@pytest.mark.parametrize("iterations", [-1, 0, 1, PBKDF2_FLOOR - 1, PBKDF2_CEILING + 1, 2**31, 2**40])
def test_a_key_file_with_other_iterations_is_refused_at_once(
    software: SoftwareMachine, enrolled: SoftwareBackend, iterations: int
) -> None:
    content = msgspec.msgpack.decode(software.key_file.read_bytes())
    assert content["iterations"] == PBKDF2_FLOOR
    software.key_file.write_bytes(msgspec.msgpack.encode({**content, "iterations": iterations}))
    begin = time.process_time()
    with pytest.raises(ForeignHardware, match="iterations"):
        software.backend().open()
    assert time.process_time() - begin < 1


# Key file


KEYS = ("attestation", "identity", "agreement")


@pytest.mark.parametrize("field", ["salt", "material", "check"])
def test_each_field_of_the_key_file_is_authenticated(software: SoftwareMachine, enrolled: SoftwareBackend, field: str) -> None:
    content = msgspec.msgpack.decode(software.key_file.read_bytes())
    for changed in (flip(content[field], 3), b""):
        software.key_file.write_bytes(msgspec.msgpack.encode({**content, field: changed}))
        with pytest.raises(ForeignHardware):
            software.backend().open()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("field", ["nonce", "sealed", "public"])
def test_each_field_of_a_key_is_authenticated(
    software: SoftwareMachine, enrolled: SoftwareBackend, key: str, field: str
) -> None:
    content = msgspec.msgpack.decode(software.key_file.read_bytes())
    for changed in (flip(content[key][field], 3), b""):
        software.key_file.write_bytes(msgspec.msgpack.encode({**content, key: {**content[key], field: changed}}))
        with pytest.raises(ForeignHardware):
            software.backend().open()


def test_keys_cannot_be_exchanged_for_each_other(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    content = msgspec.msgpack.decode(software.key_file.read_bytes())
    changed = {**content, "attestation": content["identity"], "identity": content["attestation"]}
    software.key_file.write_bytes(msgspec.msgpack.encode(changed))
    with pytest.raises(ForeignHardware):
        software.backend().open()


def test_a_key_file_of_the_first_format_is_told_from_a_damaged_one(
    software: SoftwareMachine, enrolled: SoftwareBackend
) -> None:
    content = msgspec.msgpack.decode(software.key_file.read_bytes())
    old = {name: content[name] for name in ("iterations", "salt", "material", "check")}
    old |= {f"agreement_{name}": value for name, value in content["agreement"].items()}
    software.key_file.write_bytes(msgspec.msgpack.encode(old))
    with pytest.raises(OldFormat, match="earlier version"):
        software.backend().open()


def test_a_public_key_put_in_by_somebody_else_is_refused(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    """Otherwise the server would encrypt new secrets to him."""
    his = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    content = msgspec.msgpack.decode(software.key_file.read_bytes())
    software.key_file.write_bytes(msgspec.msgpack.encode({**content, "agreement": {**content["agreement"], "public": his}}))
    backend = software.backend()
    with pytest.raises(ForeignHardware):
        backend.open()
    with pytest.raises(NotEnrolled):
        backend.agreement_public()


def test_a_flipped_bit_in_the_key_file_is_a_typed_state(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    whole = software.key_file.read_bytes()
    for position in range(0, len(whole), 17):
        software.key_file.write_bytes(flip(whole, position))
        with pytest.raises((ForeignHardware, NotEnrolled)):
            software.backend().open()


def test_a_truncated_key_file_is_a_typed_state(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    whole = software.key_file.read_bytes()
    for length in range(len(whole)):
        software.key_file.write_bytes(whole[:length])
        with pytest.raises(NotEnrolled, match="damaged"):
            software.backend().open()


def test_a_damaged_key_is_not_an_invitation_to_enroll(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    software.key_file.write_bytes(b"")
    with pytest.raises(HwsecError):
        software.backend().create()
    assert software.key_file.read_bytes() == b""


# Anchor file

READS: list[Callable[[SoftwareBackend], object]] = [
    lambda b: b.read_anchor(),
    lambda b: b.write_anchor(ANCHOR),
    lambda b: b.increment(),
    lambda b: b.read_audit(),
    lambda b: b.extend_audit(b"head"),
]


def test_a_flipped_bit_in_the_anchor_file_is_refused(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    enrolled.write_anchor(ANCHOR)
    whole = software.anchor_file.read_bytes()
    for position in range(len(whole)):
        damaged = flip(whole, position)
        software.anchor_file.write_bytes(damaged)
        for read in READS:
            with pytest.raises(ForeignHardware):
                read(enrolled)
        assert software.anchor_file.read_bytes() == damaged
    software.anchor_file.write_bytes(whole)
    assert enrolled.read_anchor() == (ANCHOR, 1)


def test_a_truncated_anchor_file_is_refused(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    whole = software.anchor_file.read_bytes()
    for length in range(len(whole)):
        software.anchor_file.write_bytes(whole[:length])
        with pytest.raises(ForeignHardware):
            enrolled.read_anchor()


def test_an_anchor_file_that_is_gone_is_told_and_not_made_anew(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    software.anchor_file.unlink()
    for read in READS:
        with pytest.raises(ForeignHardware, match="gone"):
            read(enrolled)
    assert not software.anchor_file.exists()


def test_the_counter_cannot_be_edited(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    enrolled.increment()
    content = msgspec.msgpack.decode(software.anchor_file.read_bytes())
    assert content["counter"] == 2
    software.anchor_file.write_bytes(msgspec.msgpack.encode({**content, "counter": 1}))
    with pytest.raises(ForeignHardware, match="tag"):
        enrolled.read_anchor()


def test_the_anchor_file_of_another_agent_is_refused(
    software: SoftwareMachine, enrolled: SoftwareBackend, tmp_path: Path
) -> None:
    other = SoftwareMachine(tmp_path / "other")
    other.backend().create()
    shutil.copy(other.anchor_file, software.anchor_file)
    with pytest.raises(ForeignHardware, match="tag"):
        enrolled.read_anchor()
    other.end()


# Files as such


def test_the_files_are_private_and_hold_no_key(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    enrolled.write_anchor(ANCHOR)
    files = sorted(software.directory.iterdir())
    assert files == [software.anchor_file, software.key_file]
    kek = kek_of(enrolled)
    for file in files:
        assert file.stat().st_mode & 0o7777 == 0o600
        assert kek not in file.read_bytes()


@pytest.mark.parametrize("step", [1, 2])
def test_an_enrolment_that_was_cut_can_be_repeated(
    software: SoftwareMachine, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    calls = 0

    def cut(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr(hwsec.software, "write_atomic", cut)
    backend = software.backend()
    with pytest.raises(KeyboardInterrupt):
        backend.create()
    with pytest.raises(NotEnrolled):
        kek_of(backend)
    with pytest.raises(NotEnrolled):
        software.backend().open()
    backend = software.backend()
    backend.create()
    assert backend.read_anchor() == (None, 1)


def test_a_directory_that_cannot_be_used_is_a_typed_state(tmp_path: Path, vault: Vault) -> None:
    (tmp_path / "file").write_bytes(b"")
    backend = SoftwareBackend(tmp_path / "file", b"id", vault, PBKDF2_FLOOR)
    with pytest.raises(BackendUnavailable):
        backend.create()
    with pytest.raises(BackendUnavailable):
        backend.open()


def test_a_disk_that_takes_no_more_is_a_typed_state_and_loses_nothing(
    software: SoftwareMachine, enrolled: SoftwareBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    before = enrolled.read_anchor()
    with monkeypatch.context() as patch:
        patch.setattr(hwsec.software, "write_atomic", full)
        with pytest.raises(BackendUnavailable, match="No space"):
            enrolled.increment()
        with pytest.raises(BackendUnavailable, match="No space"):
            enrolled.write_anchor(ANCHOR)
    assert enrolled.read_anchor() == before


# Clock and status


def test_the_clock_is_that_of_the_kernels_run() -> None:
    boot_id = "12345678-9abc-def0-1234-56789abcdef0\n"
    assert boot_clock(boot_id, 5_999_999) == HardwareClock(5, 0x12345678, 0, True)
    assert boot_clock("87654321-9abc-def0-1234-56789abcdef0", 0).reset_count == 0x87654321
    assert read_boot_clock().reset_count == read_boot_clock().reset_count
    assert read_boot_clock().milliseconds > 0


def test_a_kernel_that_tells_no_boot_id_is_a_typed_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hwsec.bootclock, "BOOT_ID", tmp_path / "none")
    with pytest.raises(BackendUnavailable):
        read_boot_clock()
    (tmp_path / "none").write_text("nonsense")
    with pytest.raises(BackendUnavailable):
        read_boot_clock()


def test_a_clock_can_be_passed_in(tmp_path: Path, vault: Vault) -> None:
    told = HardwareClock(1, 2, 3, False)
    assert SoftwareBackend(tmp_path, b"id", vault, PBKDF2_FLOOR, clock=lambda: told).clock() == told


def test_status_names_files_that_are_gone_or_foreign(software: SoftwareMachine, enrolled: SoftwareBackend) -> None:
    whole = software.anchor_file.read_bytes()
    software.anchor_file.write_bytes(flip(whole, len(whole) - 1))
    assert enrolled.status().state is BackendState.FOREIGN
    software.anchor_file.unlink()
    assert enrolled.status().state is BackendState.NV_GONE
    software.anchor_file.write_bytes(whole)
    assert enrolled.status().state is BackendState.AVAILABLE


def test_the_hardware_id_depends_on_machine_and_identity(tmp_path: Path, vault: Vault) -> None:
    def identifier(directory: str, machine_id: bytes) -> str | None:
        (tmp_path / directory).mkdir()
        backend = SoftwareBackend(tmp_path / directory, machine_id, vault, PBKDF2_FLOOR)
        assert backend.status().hardware_id is None
        backend.create()
        return backend.status().hardware_id

    assert len({identifier("a", b"1"), identifier("b", b"1"), identifier("c", b"2")}) == 3


_STOPS_AFTER_EACH_STEP = """
import os, sys
from pathlib import Path
from hwsec.software import PBKDF2_FLOOR, SoftwareBackend
from hwsec.vault import Vault

backend = SoftwareBackend(Path(sys.argv[1]), b"machine-1", Vault(), PBKDF2_FLOOR)
backend.create()
with backend.kek() as kek:
    os.write(1, kek.view)
stop()
backend.open()
stop()
backend.sign(b"message")
stop()
backend.extend_audit(b"head")
backend.certify_audit(b"nonce")
stop()
with backend.agree(backend.agreement_public()) as shared:
    os.write(1, shared.view)
stop()
"""


@pytest.mark.system
def test_no_scalar_and_no_shared_value_stays_in_the_process(tmp_path: Path) -> None:
    """Whole or by halves, also reversed, as the library below keeps numbers."""
    scan = scan_after_each_stop(_STOPS_AFTER_EACH_STEP, [32, 0, 0, 0, 32], tmp_path)
    kek, shared = scan.told[0], scan.told[-1]
    content = msgspec.msgpack.decode((tmp_path / "software.key").read_bytes())
    values = {"KEK": kek, "key material": content["material"], "shared value": shared}
    for purpose in ("attestation", "identity", "agreement"):
        subkey = HKDF(hashes.SHA256(), 32, salt=None, info=f"license-agent software {purpose}".encode()).derive(kek)
        sealed = content[purpose]
        scalar = AESGCM(subkey).decrypt(sealed["nonce"], sealed["sealed"], purpose.encode())
        values[f"scalar of {purpose}"] = scalar
        values[f"reversed scalar of {purpose}"] = scalar[::-1]
    for step, memory in zip(("create", "open", "sign", "certify", "agree"), scan.memories, strict=True):
        assert b"license-agent software" in memory, "the scan sees nothing"
        assert lingering(memory, values) == [], step


def test_the_boot_id_may_come_from_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boot-id").write_text("00000007-0000-4000-8000-000000000000\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_boot_clock().reset_count == 7
    (tmp_path / "boot-id").unlink()
    assert read_boot_clock().reset_count == int(hwsec.bootclock.BOOT_ID.read_text()[:8], 16)
