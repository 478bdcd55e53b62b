"""The TPM backend against a real TPM program: what is foreign, broken, tampered with or tapped ends in a typed state."""

import contextlib
import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hwsec.objectfile
from common.files import write_atomic
from hwsec.backend import Anchor
from hwsec.errors import BackendState, BackendUnavailable, ForeignHardware, HardwareReset, HwsecError, NotEnrolled
from hwsec.objectfile import MAGIC, Blob
from hwsec.tpm import NV_BASE, SRK_HANDLE, TpmBackend, preload_library
from tests.hwsec.auth_values import auth_values
from tests.hwsec.conftest import TpmMachine
from tests.hwsec.memory_scan import lingering, scan_after_each_stop
from tests.support.swtpm import Swtpm
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system

tpm2_pytss = pytest.importorskip("tpm2_pytss")

ROOT = Path(__file__).resolve().parents[2]
ANCHOR = Anchor(2, bytes(range(32)), version=1)


def kek_of(backend: TpmBackend) -> bytes:
    with backend.kek() as kek:
        return bytes(kek.view)


@pytest.fixture
def enrolled(tpm: TpmMachine) -> TpmBackend:
    return tpm.enroll()


@contextlib.contextmanager
def owner(tcti: str) -> Iterator[Any]:
    """The TPM as its owner sees it: another program, or an attacker with root."""
    with tpm2_pytss.ESAPI(tcti) as esys:
        yield esys


def make_persistent(tcti: str, template: str) -> None:
    bits = tpm2_pytss.TPMA_OBJECT
    attributes = (
        bits.FIXEDTPM
        | bits.FIXEDPARENT
        | bits.SENSITIVEDATAORIGIN
        | bits.USERWITHAUTH
        | bits.NODA
        | bits.RESTRICTED
        | bits.DECRYPT
    )
    with owner(tcti) as esys:
        public = tpm2_pytss.TPM2B_PUBLIC.parse(template, objectAttributes=attributes)
        key = esys.create_primary(None, public)[0]
        esys.evict_control(tpm2_pytss.ESYS_TR.OWNER, key, SRK_HANDLE)
        esys.flush_context(key)


def evict_persistent(tcti: str) -> None:
    with owner(tcti) as esys:
        esys.evict_control(tpm2_pytss.ESYS_TR.OWNER, esys.tr_from_tpmpublic(SRK_HANDLE), SRK_HANDLE)


# Whose TPM it is


def test_the_objects_of_another_tpm_are_foreign(tpm: TpmMachine, enrolled: TpmBackend, tmp_path: Path) -> None:
    enrolled.close()
    with Swtpm(tmp_path / "other") as other:
        backend = tpm.over(other.tcti)
        with pytest.raises(ForeignHardware, match="another TPM"):
            backend.open()
        with pytest.raises(NotEnrolled):
            kek_of(backend)
        backend.close()


def test_a_cleared_tpm_is_foreign(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    tpm.swtpm.stop()
    tpm.swtpm.clear()
    tpm.swtpm.start()
    with pytest.raises(ForeignHardware, match="cleared"):
        tpm.backend().open()


def test_a_tpm_cleared_by_its_owner_is_foreign(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    enrolled.close()
    with owner(tpm.swtpm.tcti) as esys:
        esys.clear(tpm2_pytss.ESYS_TR.LOCKOUT)
    with pytest.raises(ForeignHardware, match="cleared"):
        tpm.backend().open()


def test_a_tpm_exchanged_while_the_agent_runs_is_given_no_session(
    tpm: TpmMachine, enrolled: TpmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session salted for somebody else's key would let him read what passes."""
    tpm.swtpm.stop()
    tpm.swtpm.clear()
    tpm.swtpm.start()
    sessions: list[object] = []
    start = tpm2_pytss.ESAPI.start_auth_session

    def counted(*arguments: object, **named: object) -> object:
        sessions.append(arguments)
        return start(*arguments, **named)

    monkeypatch.setattr(tpm2_pytss.ESAPI, "start_auth_session", counted)
    with pytest.raises(HwsecError):
        kek_of(enrolled)
    for operation in (enrolled.read_anchor, lambda: kek_of(enrolled), enrolled.increment):
        with pytest.raises(ForeignHardware):
            operation()
    assert sessions == []


def test_the_session_key_is_pinned_in_the_copy_that_encrypts_the_salt(
    enrolled: TpmBackend, tpm: TpmMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever answers a second ReadPublic with the genuine key gains nothing."""
    genuine = enrolled._tpm._esys.read_public(enrolled._tpm.srk)
    monkeypatch.setattr(tpm2_pytss.ESAPI, "read_public", lambda *_args, **_named: genuine)
    create = tpm2_pytss.ESAPI.create_primary

    def other_key(esys: Any, _sensitive: object, public: Any, **named: object) -> object:
        public.publicArea.unique.ecc.x = b"somebody else's"
        return create(esys, None, public, **named)

    monkeypatch.setattr(tpm2_pytss.ESAPI, "create_primary", other_key)
    with pytest.raises(ForeignHardware):
        tpm.backend().open()


def test_a_persistent_root_key_made_after_the_enrolment_does_no_harm(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    before = kek_of(enrolled)
    enrolled.close()
    make_persistent(tpm.swtpm.tcti, "ecc384:aes128cfb")
    backend = tpm.backend()
    backend.open()
    assert kek_of(backend) == before


def test_a_persistent_root_key_is_used_and_pinned(tpm: TpmMachine) -> None:
    make_persistent(tpm.swtpm.tcti, "ecc384:aes128cfb")
    backend = tpm.backend()
    backend.create()
    before = kek_of(backend)
    backend = tpm.backend()
    backend.open()
    assert kek_of(backend) == before
    backend.close()
    evict_persistent(tpm.swtpm.tcti)
    with pytest.raises(ForeignHardware):
        tpm.backend().open()


# NV indices


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_deleted_index_is_told(tpm: TpmMachine, enrolled: TpmBackend, number: int) -> None:
    enrolled.close()
    with owner(tpm.swtpm.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(NV_BASE + number))
    backend = tpm.backend()
    backend.open()
    with pytest.raises(ForeignHardware, match=f"0x{NV_BASE + number:08x}"):
        backend.read_audit() if number == 3 else backend.read_anchor()


def test_an_index_made_anew_by_the_owner_is_not_taken_for_ours(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    """Its auth value derives from the KEK, which the owner of the TPM does not have."""
    enrolled.write_anchor(ANCHOR)
    enrolled.close()
    with owner(tpm.swtpm.tcti) as esys:
        old = esys.tr_from_tpmpublic(NV_BASE + 1)
        public = esys.nv_read_public(old)[0]
        esys.nv_undefine_space(old)
        fresh = tpm2_pytss.TPM2B_NV_PUBLIC(
            nvPublic=tpm2_pytss.TPMS_NV_PUBLIC(
                nvIndex=NV_BASE + 1,
                nameAlg=public.nvPublic.nameAlg,
                attributes=tpm2_pytss.TPMA_NV.AUTHREAD | tpm2_pytss.TPMA_NV.AUTHWRITE | tpm2_pytss.TPMA_NV.NO_DA,
                dataSize=public.nvPublic.dataSize,
            )
        )
        index = esys.nv_define_space(b"", fresh)
        esys.nv_write(index, Anchor(1, bytes(32)).encode())
    backend = tpm.backend()
    backend.open()
    with pytest.raises(HwsecError):
        backend.read_anchor()
    with pytest.raises(HwsecError):
        backend.write_anchor(ANCHOR)


def test_no_index_can_be_used_without_its_auth_value(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    enrolled.write_anchor(ANCHOR)
    enrolled.extend_audit(b"head")
    before = enrolled.read_anchor(), enrolled.read_audit()
    enrolled.close()
    with owner(tpm.swtpm.tcti) as esys:
        anchor, counter, audit = (esys.tr_from_tpmpublic(NV_BASE + number) for number in (1, 2, 3))
        attempts: tuple[Callable[[], object], ...] = (
            lambda: esys.nv_write(anchor, bytes(8)),
            lambda: esys.nv_read(anchor, 8),
            lambda: esys.nv_increment(counter),
            lambda: esys.nv_extend(audit, b"x"),
            lambda: esys.nv_write(anchor, bytes(8), 0, tpm2_pytss.ESYS_TR.OWNER),
            lambda: esys.nv_increment(counter, tpm2_pytss.ESYS_TR.OWNER),
            lambda: esys.nv_extend(audit, b"x", tpm2_pytss.ESYS_TR.OWNER),
        )
        for attempt in attempts:
            with pytest.raises(tpm2_pytss.TSS2_Exception):
                attempt()
    backend = tpm.backend()
    backend.open()
    assert (backend.read_anchor(), backend.read_audit()) == before


# Connection


def test_a_tpm_reset_behind_our_back_costs_no_call(enrolled: TpmBackend) -> None:
    """A machine that slept may find its TPM without its session: the next call makes a new one."""
    before = enrolled.read_anchor()
    flush = bytes.fromhex("8001 0000000e 00000165 02000000")  # TPM2_FlushContext of the first session
    enrolled._tpm._esys.tcti.transmit(flush)
    assert enrolled._tpm._esys.tcti.receive()[6:] == bytes(4)
    assert enrolled.read_anchor() == before
    assert enrolled.status().unfitting == 1


def test_a_tpm_that_somebody_goes_on_flushing_is_a_typed_state(enrolled: TpmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, connect = bytes.fromhex("8001 0000000e 00000165 02000000"), enrolled._tpm.connect

    def flushed(pinned: bytes | None) -> None:
        connect(pinned)
        enrolled._tpm._esys.tcti.transmit(flush)
        enrolled._tpm._esys.tcti.receive()

    with monkeypatch.context() as patched:
        patched.setattr(enrolled._tpm, "connect", flushed)
        with pytest.raises(HardwareReset, match="reset") as told:
            enrolled.read_anchor()
    assert told.value.state is BackendState.ABSENT
    assert enrolled.read_anchor()


def test_a_restart_of_the_tpm_costs_no_call(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    enrolled.write_anchor(ANCHOR)
    before = kek_of(enrolled), enrolled.read_anchor()
    tpm.swtpm.restart()
    assert enrolled.read_anchor() == before[1]
    assert (kek_of(enrolled), enrolled.read_anchor()) == before


@pytest.mark.parametrize("tcti", ["swtpm:host=127.0.0.1,port=1", "device:/dev/no-such-tpm", "nonsense:", "", "swtpm:port=x"])
def test_a_tpm_that_is_not_there_is_a_typed_state(tmp_path: Path, tcti: str) -> None:
    backend = TpmBackend(tcti, tmp_path / "objects")
    with pytest.raises(BackendUnavailable):
        backend.create()
    assert not backend.status().available
    assert list(tmp_path.iterdir()) == []
    backend.close()


def test_a_missing_library_is_an_error_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    preload_library()
    backend = TpmBackend("swtpm:", tmp_path / "objects")
    with pytest.raises(BackendUnavailable, match="tpm2-pytss"):
        backend.create()
    assert not backend.status().available


def test_an_owner_auth_that_we_do_not_have_is_a_typed_state(tpm: TpmMachine) -> None:
    with owner(tpm.swtpm.tcti) as esys:
        esys.hierarchy_change_auth(tpm2_pytss.ESYS_TR.OWNER, b"taken")
    with pytest.raises(BackendUnavailable):
        tpm.backend().create()
    assert not tpm.objects.exists()


def test_closing_after_the_tpm_has_gone_raises_nothing(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    tpm.swtpm.stop()
    enrolled.close()
    enrolled.close()


@pytest.mark.parametrize("step", ["_flush_leftovers", "_find_srk", "start_session"])
def test_a_call_that_was_abandoned_comes_back_and_disturbs_nothing(
    enrolled: TpmBackend, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    enrolled.close()
    late, goes_on, fresh = enrolled, getattr(enrolled._tpm, step), []

    def hangs(*arguments: Any) -> Any:
        # Here it hangs, is abandoned, and comes back when its successor has loaded what it works with.
        monkeypatch.undo()
        fresh.append(late.replace())
        fresh[0].open()
        return goes_on(*arguments)

    monkeypatch.setattr(late._tpm, step, hangs)
    with pytest.raises(BackendUnavailable, match="was closed when it hung"):
        late.open()
    assert fresh[0].sign(b"message") and fresh[0].status().available
    assert not late.status().available
    late.close()
    assert fresh[0].sign(b"message")
    fresh[0].close()


_GIVEN_UP = """
import os, sys
from pathlib import Path
from hwsec.errors import BackendUnavailable
from hwsec.tpm import TpmBackend

backend = TpmBackend(sys.argv[1], Path(sys.argv[2]))
backend.open()
with backend.kek() as kek:
    os.write(1, kek.view)
with backend.agree(backend.agreement_public()) as shared:
    os.write(1, shared.view)
run, command = backend._tpm.run, {"kek": "unseal", "agree": "ecdh_zgen"}[sys.argv[3]]

class Hangs:
    # The command that makes the key is the one that hangs, is given up, and comes back with its answer.
    def __init__(self, esys):
        self.esys = esys
    def __getattr__(self, name):
        found = getattr(self.esys, name)
        def call(*arguments, **options):
            answer = found(*arguments, **options)
            fresh.append(backend.replace())
            return answer
        return call if name == command and not fresh else found

fresh = []
backend._tpm.run = lambda work, refusals=(): run(lambda esys: work(Hangs(esys)), refusals)
try:
    with backend.kek() if sys.argv[3] == "kek" else backend.agree(backend.agreement_public()):
        pass
except BackendUnavailable:
    sys.stderr.write("it went no further")
backend.close()
stop()
"""


@pytest.mark.parametrize("what", ["kek", "agree"])
def test_a_call_that_was_abandoned_leaves_no_key_in_memory(tpm: TpmMachine, what: str) -> None:
    tpm.enroll().close()
    scan = scan_after_each_stop(_GIVEN_UP, [64], tpm.swtpm.tcti, tpm.objects, what)
    (told,) = scan.told
    (memory,) = scan.memories
    assert lingering(memory, {"KEK": told[:32], "shared value": told[32:]}) == []


def test_no_connection_leaks(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    enrolled.close()
    gc.collect()  # what other tests left behind is not to go while we count
    before = len(os.listdir("/proc/self/fd"))
    for _time in range(3):
        enrolled.open()
        enrolled.close()
    tpm.swtpm.stop()
    for _time in range(3):
        assert not enrolled.status().available
    assert len(os.listdir("/proc/self/fd")) == before


_DIES_TEN_TIMES = """
import os, signal, sys
from pathlib import Path
import tpm2_pytss
from hwsec.secretmem import SecretBuffer
from hwsec.tpm import TpmBackend
from hwsec.tpm2.objects import loaded

for _time in range(10):
    child = os.fork()
    if child == 0:
        backend = TpmBackend(sys.argv[1], Path(sys.argv[2]))
        backend.open()
        tpm, blob = backend._tpm, backend._objects.agreement
        with loaded(tpm, blob, SecretBuffer(32)), tpm.fresh_session(tpm2_pytss.TPM2_SE.POLICY):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it did not come as far as being killed"
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=READY_S, check=False)


def test_what_killed_processes_left_in_the_tpm_is_cleared(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    """Each dies with a session and two objects loaded; the TPM has room for three of each."""
    before = kek_of(enrolled)
    enrolled.close()
    finished = run(_DIES_TEN_TIMES, tpm.swtpm.tcti, tpm.objects)
    assert finished.returncode == 0, finished.stderr
    backend = tpm.backend()
    backend.open()
    assert kek_of(backend) == before


# The file of sealed objects


def damage(path: Path, how: Callable[[bytes], bytes | None]) -> None:
    data = how(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_damaged_copy_of_the_objects_is_repaired_from_its_twin(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    expected = kek_of(enrolled)
    whole = tpm.objects.read_bytes()
    assert tpm.twin.read_bytes() == whole
    size = len(whole)
    damages: list[Callable[[bytes], bytes | None]] = [lambda _data: None, lambda data: data + b"\0"]
    damages += [lambda data, length=length: data[:length] for length in (0, 7, 8, 39, 41, size - 1)]  # type: ignore[misc]
    damages += [flip(position) for position in range(0, size, size // 6)]
    for path in (tpm.objects, tpm.twin):
        for number, how in enumerate(damages):
            damage(path, how)
            backend = tpm.backend()
            backend.open()
            assert kek_of(backend) == expected, f"{path.name}, damage {number}"
            assert tpm.objects.read_bytes() == tpm.twin.read_bytes() == whole, f"{path.name}, damage {number}"


def test_two_damaged_copies_are_told(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    for path in (tpm.objects, tpm.twin):
        damage(path, lambda data: data[:-1])
    with pytest.raises(NotEnrolled, match="damaged"):
        tpm.backend().open()


def test_a_full_disk_does_not_keep_a_damaged_copy_from_being_read_around(
    tpm: TpmMachine, enrolled: TpmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    expected = kek_of(enrolled)
    damage(tpm.objects, lambda data: b"")
    monkeypatch.setattr(hwsec.objectfile, "write_atomic", full)
    backend = tpm.backend()
    backend.open()
    assert kek_of(backend) == expected


@pytest.mark.parametrize("field", ["kek", "attestation", "identity", "agreement"])
@pytest.mark.parametrize("part", ["private", "public"])
def test_objects_changed_with_care_are_refused(tpm: TpmMachine, enrolled: TpmBackend, field: str, part: str) -> None:
    """The checksum is no defense, and is not needed as one: the TPM loads only what it has made itself."""
    enrolled.extend_audit(b"head")
    peer = enrolled.agreement_public()
    objects = msgspec.msgpack.decode(tpm.objects.read_bytes()[40:])
    for change in (flip(40), lambda data: data[:-1], lambda _data: b""):
        if field == "kek":
            blob = {**objects["kek"]["blob"], part: change(objects["kek"]["blob"][part])}
            changed = {**objects, "kek": {**objects["kek"], "blob": blob}}
        else:
            changed = {**objects, field: {**objects[field], part: change(objects[field][part])}}
        body = msgspec.msgpack.encode(changed)
        for path in (tpm.objects, tpm.twin):
            path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        backend = tpm.backend()
        with pytest.raises(HwsecError):
            backend.open()
            kek_of(backend)
            backend.agree(peer)
            backend.sign(b"message")
            backend.certify_audit(b"nonce")


def test_a_key_that_the_library_would_not_send_is_foreign_and_costs_no_connection(enrolled: TpmBackend) -> None:
    objects, peer = enrolled._require_objects(), enrolled.agreement_public()
    before = enrolled._tpm.generation
    unsendable = 0
    for place in range(24):
        public = flip(place)(objects.agreement.public)
        enrolled._objects = msgspec.structs.replace(objects, agreement=Blob(objects.agreement.private, public))
        with pytest.raises(HwsecError) as told:
            enrolled.agree(peer)
        if isinstance(told.value, ForeignHardware) and "no TPM has made" in str(told.value):
            unsendable += 1
            assert enrolled._tpm.connected and enrolled._tpm.generation == before, f"{place}: {told.value}"
        enrolled.policy_number()  # others are asked again over fresh connections, since nobody signs the TPM's refusal
        before = enrolled._tpm.generation
    assert unsendable
    enrolled._objects = objects
    enrolled.agree(peer).close()


# Enrolment that was cut


@pytest.mark.parametrize("step", [1, 2])
def test_an_enrolment_cut_before_its_files_can_be_repeated(tpm: TpmMachine, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    calls = 0

    def cut(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr(hwsec.objectfile, "write_atomic", cut)
    backend = tpm.backend()
    with pytest.raises(KeyboardInterrupt):
        backend.create()
    with pytest.raises(NotEnrolled):
        kek_of(backend)
    backend = tpm.backend()
    if step == 1:
        backend.create()
    else:
        backend.open()  # one whole copy is an enrolment
    assert backend.read_anchor()[0] is None
    assert backend.increment() == backend.read_anchor()[1]
    assert len(kek_of(backend)) == 32


# What others could read


def test_no_secret_crosses_the_bus(tpm: TpmMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = tmp_path / "bus.pcapng"
    monkeypatch.setenv("TCTI_PCAP_FILE", str(capture))
    backend = TpmBackend(f"pcap:{tpm.swtpm.tcti}", tpm.objects)
    if "tcti" in (reason := backend.status().detail) and not backend.status().available:
        pytest.skip(f"the capturing TCTI is not installed: {reason}")
    backend.create()
    kek = kek_of(backend)
    secrets = [kek, *auth_values(tpm.objects, kek).values()]
    backend.read_anchor()
    backend.write_anchor(ANCHOR)
    point = backend.agreement_public()
    shared = backend.agree(point)
    secrets.append(bytes(shared.view))
    shared.close()
    backend.close()
    seen = capture.read_bytes()
    assert point[1:33] in seen, "the capture shows nothing"
    for number, secret in enumerate(secrets):
        assert secret not in seen, f"secret {number} crossed the bus in clear"


_STOPS_AFTER_EACH_STEP = """
import os, sys
from pathlib import Path
from hwsec.backend import Anchor
from hwsec.errors import BackendUnavailable
from hwsec.tpm import TpmBackend

backend = TpmBackend(sys.argv[1], Path(sys.argv[2]))
backend.create()
stop()
with backend.kek() as kek:
    os.write(1, kek.view)
stop()
with backend.agree(backend.agreement_public()) as shared:
    os.write(1, shared.view)
stop()
backend.write_anchor(Anchor(2, bytes(32)))
backend.increment()
backend.read_anchor()
backend.extend_audit(b"head")
stop()
backend.sign(b"message")
stop()
backend.certify_audit(b"nonce")
stop()
backend.status()
stop()
backend._tpm._esys.tcti.transmit(bytes.fromhex("8001 0000000e 00000165 02000000"))  # TPM2_FlushContext of the session
backend._tpm._esys.tcti.receive()
try:
    backend.sign(b"message")
except BackendUnavailable:
    backend.sign(b"message")
stop()
backend.rebind(backend.binding)
stop()
backend.close()
stop()
"""


def test_no_copy_of_a_secret_stays_in_the_process(tpm: TpmMachine) -> None:
    """Neither our objects nor the buffers of the TPM library keep one, as soon as the call is over: no auth value either."""
    sizes = [0, 32, 32, 0, 0, 0, 0, 0, 0, 0]
    scan = scan_after_each_stop(_STOPS_AFTER_EACH_STEP, sizes, tpm.swtpm.tcti, tpm.objects)
    _none, kek, shared, *_more = scan.told
    steps = ("create", "kek", "agree", "anchor", "sign", "certify", "status", "a lost connection", "rebind", "close")
    values = {"KEK": kek, "shared value": shared, **auth_values(tpm.objects, kek)}
    for step, memory in zip(steps, scan.memories, strict=True):
        assert b"license-agent tpm auth" in memory, "the scan sees nothing"
        assert lingering(memory, values) == [], step
