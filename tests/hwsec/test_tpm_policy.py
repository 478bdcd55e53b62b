"""The KEK bound to PCRs, on a TPM: what the vendor has signed opens it, and nothing else does."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import hwsec.objectfile
import hwsec.tpm2.sealer
from common.files import write_atomic
from hwsec.backend import Anchor, BackendState, TpmEvidence
from hwsec.errors import (
    ActivationRefused,
    BackendUnavailable,
    ForeignHardware,
    HwsecError,
    NvGone,
    PcrMismatch,
    PcrUninitialized,
)
from hwsec.nv.layout import NV_POLICY_COUNTER
from hwsec.objectfile import MAGIC
from hwsec.pcr.policy import (
    EO_UNSIGNED_LE,
    NO_BINDING,
    POLICY_REF,
    Binding,
    SignedPolicy,
    encode_policy,
    kek_policy,
    pcr_digest,
    pcr_selection,
    policy_auth_value,
    policy_nv,
    policy_pcr,
    sign_pcr_policy,
)
from hwsec.tpm import NV_BASE, TpmBackend
from hwsec.tpm2.policy import assert_auth_value, assert_signed
from tests.hwsec.auth_values import auth_values
from tests.hwsec.conftest import TpmMachine
from tests.hwsec.memory_scan import lingering, scan_after_each_stop

pytestmark = pytest.mark.system

tpm2_pytss = pytest.importorskip("tpm2_pytss")

VENDOR = ec.derive_private_key(7, ec.SECP256R1())
KEY = VENDOR.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
STRANGER = ec.derive_private_key(8, ec.SECP256R1())
SECURE_BOOT = Binding("secure-boot", (), KEY)
BOTH = Binding("custom", (7, 11), KEY)
ANCHOR = Anchor(1, bytes(32))


def kek_of(backend: TpmBackend) -> bytes:
    with backend.kek() as kek:
        return bytes(kek.view)


def extended(value: bytes, event: str) -> bytes:
    return hashlib.sha256(value + hashlib.sha256(event.encode()).digest()).digest()


def extend(backend: TpmBackend, index: int, event: str) -> None:
    """As firmware or a boot loader would, over the connection that is there."""
    backend.read_pcrs([index])
    # TPML_DIGEST_VALUES (Part 2, 10.9.6): one digest, SHA-256
    marshalled = bytes.fromhex("00000001000b") + hashlib.sha256(event.encode()).digest()
    digests = tpm2_pytss.TPML_DIGEST_VALUES.unmarshal(marshalled)[0]
    backend._tpm.run(lambda e: e.pcr_extend(tpm2_pytss.ESYS_TR(index), digests))


class Bound:
    """A machine whose PCRs 7 and 11 have been extended, and the vendor's office."""

    def __init__(self, directory: Path) -> None:
        self.machine = TpmMachine(directory)
        self.policies = directory / "policies"
        self.policies.mkdir()
        self._last: TpmBackend | None = None

    def boot(self, loader: str = "loader 1") -> None:
        """What stands in the PCRs after a start."""
        backend = self.backend()
        extend(backend, 7, "secure boot on")
        extend(backend, 11, loader)
        backend.close()

    def reboot(self, loader: str = "loader 1") -> None:
        if self._last is not None:
            self._last.close()
        self.machine.swtpm.restart()
        self.boot(loader)

    def backend(self, binding: Binding = NO_BINDING) -> TpmBackend:
        if self._last is not None:
            self._last.close()
        self._last = TpmBackend(
            self.machine.swtpm.tcti,
            self.machine.objects,
            binding=binding,
            policies=self.policies,
            monotonic=self.machine.naps.monotonic,
            sleep=self.machine.naps.sleep,
        )
        return self._last

    def opened(self) -> TpmBackend:
        backend = self.backend()
        backend.open()
        return backend

    def install(
        self, values: dict[int, bytes], number: int = 1, key: ec.EllipticCurvePrivateKey = VENDOR, name: str = ""
    ) -> SignedPolicy:
        policy = sign_pcr_policy(key, values, number)
        name = name or f"{len(list(self.policies.iterdir())):03}.json"
        write_atomic(self.policies / name, encode_policy(policy))
        return policy

    def install_for_now(self, pcrs: tuple[int, ...] = (7, 11), number: int = 1, name: str = "") -> SignedPolicy:
        assert self._last is not None
        return self.install(self._last.read_pcrs(pcrs), number, name=name)

    def enroll(self, binding: Binding = BOTH) -> TpmBackend:
        backend = self.backend(binding)
        self.install_for_now(binding.pcrs)
        backend.create()
        return backend

    def end(self) -> None:
        if self._last is not None:
            self._last.close()
        self.machine.end()


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Bound]:
    made = Bound(tmp_path / "machine")
    try:
        made.boot()
        yield made
    finally:
        made.end()


# The TPM agrees


def test_the_tpm_computes_the_digests_that_we_compute(bound: Bound) -> None:
    backend = bound.enroll()
    values = backend.read_pcrs((7, 11))
    t, tpm = tpm2_pytss, backend._tpm
    with backend._key_auth(backend._require_objects(), "policy counter") as auth:
        backend._sealer.policy_number(auth)  # from now on it is known
    signed = sign_pcr_policy(VENDOR, values, 3)

    def digest(session: Any) -> bytes:
        return bytes(tpm.run(lambda e: e.policy_get_digest(session)))

    with tpm.fresh_session(t.TPM2_SE.POLICY) as session:
        selection = t.TPML_PCR_SELECTION.unmarshal(pcr_selection(values))[0]
        tpm.run(lambda e: e.policy_pcr(session, pcr_digest(values), selection))
        assert digest(session) == policy_pcr(bytes(32), values)
        operand = (3).to_bytes(8, "big")
        with backend._nv.lent(NV_POLICY_COUNTER) as counter:
            tpm.run(lambda e: e.policy_nv(counter, counter, session, operand, EO_UNSIGNED_LE, 0, session1=tpm.session))
            name = bytes(tpm.run(lambda e: e.tr_get_name(counter)))
        assert digest(session) == policy_nv(policy_pcr(bytes(32), values), operand, 0, EO_UNSIGNED_LE, name) == signed.approved
        tpm.run(lambda e: e.policy_auth_value(session))
        assert digest(session) == policy_auth_value(signed.approved)
    with tpm.fresh_session(t.TPM2_SE.POLICY) as session:
        assert_signed(tpm, session, signed, KEY, backend._nv.lent(NV_POLICY_COUNTER))
        assert_auth_value(tpm, session)
        assert digest(session) == kek_policy(BOTH)


def test_pcrs_are_read_as_many_as_there_are(bound: Bound) -> None:
    backend = bound.backend()
    values = backend.read_pcrs(range(24))
    assert list(values) == list(range(24))
    assert values[7] == extended(bytes(32), "secure boot on")
    assert values[11] == extended(bytes(32), "loader 1")
    assert values[0] == bytes(32)
    assert values[17] == b"\xff" * 32
    assert backend.read_pcrs([11, 7, 11]) == {7: values[7], 11: values[11]}
    assert backend.read_pcrs([]) == {}


# Unsealing


@pytest.mark.parametrize("binding", [SECURE_BOOT, BOTH], ids=lambda binding: binding.kind)
def test_a_bound_kek_opens_in_the_signed_state(bound: Bound, binding: Binding) -> None:
    backend = bound.enroll(binding)
    first = kek_of(backend)
    backend.write_anchor(ANCHOR)
    assert backend.status().binding == binding.kind
    for _start in range(2):
        bound.reboot()
        backend = bound.opened()
        assert kek_of(backend) == first
        assert backend.read_anchor()[0] == ANCHOR
        assert backend.binding == binding
        assert (backend.status().state, backend.status().binding) == (BackendState.AVAILABLE, binding.kind)


def test_in_another_state_the_kek_is_closed_and_the_keys_work(bound: Bound) -> None:
    backend = bound.enroll()
    first = kek_of(backend)
    points = backend.identity_public(), backend.agreement_public()
    bound.reboot("loader of somebody else")
    backend = bound.opened()
    for use in (lambda: kek_of(backend), backend.read_anchor, backend.increment, backend.read_audit):
        with pytest.raises(PcrMismatch, match=r"^PCR 11 has"):
            use()
    status = backend.status()
    assert (status.available, status.state, status.binding) == (False, BackendState.PCR_MISMATCH, "custom")
    assert "PCR 11" in status.detail
    assert (backend.identity_public(), backend.agreement_public()) == points
    assert len(backend.sign(b"request")) == 64
    assert backend.endorsement() is not None
    assert isinstance(backend.evidence(b"nonce"), TpmEvidence)
    with pytest.raises(ActivationRefused):
        backend.activate(bytes(68), bytes(68))
    peer = ec.generate_private_key(ec.SECP256R1())
    with backend.agree(peer.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)) as shared:
        agent = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), points[1])
        assert bytes(shared.view) == peer.exchange(ec.ECDH(), agent)
    assert len(backend.random(8)) == 8
    bound.reboot()
    assert kek_of(bound.opened()) == first


def test_a_policy_that_was_installed_ahead_opens_it_after_the_update(bound: Bound) -> None:
    backend = bound.enroll()
    first = kek_of(backend)
    values = backend.read_pcrs((7, 11))
    bound.install({**values, 11: extended(bytes(32), "loader 2")})
    assert kek_of(backend) == first
    bound.reboot("loader 2")
    assert kek_of(bound.opened()) == first
    bound.reboot("loader 1")
    assert kek_of(bound.opened()) == first


def test_a_policy_installed_afterwards_opens_it_without_a_restart(bound: Bound) -> None:
    backend = bound.enroll()
    first = kek_of(backend)
    extend(backend, 11, "kernel")
    with pytest.raises(PcrMismatch):
        kek_of(backend)
    bound.install_for_now()
    assert kek_of(backend) == first
    assert backend.status().available


def test_files_that_are_no_policies_are_named_in_the_refusal(bound: Bound) -> None:
    backend = bound.enroll()
    (bound.policies / "broken.json").write_bytes(b"{}")
    assert kek_of(backend)
    extend(backend, 11, "kernel")
    with pytest.raises(PcrMismatch, match=r"broken\.json"):
        kek_of(backend)


def test_without_its_policies_the_kek_is_closed(bound: Bound) -> None:
    backend = bound.enroll()
    for path in bound.policies.iterdir():
        path.unlink()
    with pytest.raises(PcrMismatch, match="no policy"):
        kek_of(backend)
    bound.policies.rmdir()
    with pytest.raises(PcrMismatch, match="no policy"):
        kek_of(backend)


# What the TPM itself refuses: our own checks are left out


def without_our_checks(monkeypatch: pytest.MonkeyPatch, policy: SignedPolicy) -> None:
    monkeypatch.setattr(hwsec.tpm2.sealer, "choose_policy", lambda *_arguments: policy)


def test_the_tpm_refuses_a_strangers_signature(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bound.enroll()
    without_our_checks(monkeypatch, sign_pcr_policy(STRANGER, backend.read_pcrs((7, 11)), 5))
    with pytest.raises(HwsecError):
        kek_of(backend)


def test_the_tpm_refuses_a_changed_number(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bound.enroll()
    without_our_checks(monkeypatch, replace(sign_pcr_policy(VENDOR, backend.read_pcrs((7, 11)), 5), number=6))
    with pytest.raises(HwsecError):
        kek_of(backend)


def test_the_tpm_refuses_a_policy_for_other_values(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bound.enroll()
    values = backend.read_pcrs((7, 11))
    without_our_checks(monkeypatch, sign_pcr_policy(VENDOR, {**values, 7: bytes(range(32))}, 5))
    with pytest.raises(PcrMismatch):
        kek_of(backend)


def test_the_tpm_refuses_a_revoked_policy(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bound.enroll()
    old = bound.install_for_now(number=2)
    bound.install_for_now(number=3)
    backend.revoke_policies(3)
    without_our_checks(monkeypatch, old)
    with pytest.raises(PcrMismatch):
        kek_of(backend)


@pytest.mark.parametrize(
    "binding",
    [NO_BINDING, Binding("custom", (7, 11), STRANGER.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))],
)
def test_a_binding_changed_in_the_file_opens_nothing(bound: Bound, binding: Binding) -> None:
    backend = bound.enroll()
    bound.install(backend.read_pcrs((7, 11)), key=STRANGER)
    objects = msgspec.msgpack.decode(bound.machine.objects.read_bytes()[40:])
    objects["kek"]["binding"] = msgspec.to_builtins(binding, builtin_types=(bytes,))
    body = msgspec.msgpack.encode(objects)
    for path in (bound.machine.objects, bound.machine.twin):
        path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    backend = bound.opened()
    assert backend.binding == binding
    with pytest.raises(PcrMismatch, match="another policy"):
        kek_of(backend)


# PCRs that move meanwhile


def before_each(monkeypatch: pytest.MonkeyPatch, command: str, action: Callable[[], None], times: int = 100) -> list[None]:
    """Runs `action` right before a command of the TPM, the first `times` times."""
    done: list[None] = []
    original = getattr(tpm2_pytss.ESAPI, command)

    def hooked(*arguments: object, **named: object) -> object:
        if len(done) < times:
            done.append(None)
            action()
        return original(*arguments, **named)

    monkeypatch.setattr(tpm2_pytss.ESAPI, command, hooked)
    return done


@pytest.mark.parametrize("command", ["policy_pcr", "policy_nv", "unseal"])
def test_a_pcr_extended_meanwhile_costs_an_attempt(bound: Bound, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Also one that we do not look at: after PolicyPCR, the TPM notices only that there was an extension."""
    backend = bound.enroll()
    first = kek_of(backend)
    done = before_each(monkeypatch, command, lambda: extend(backend, 8, "grub command"), times=2)
    assert kek_of(backend) == first
    assert len(done) == (1 if command == "policy_pcr" else 2)


@pytest.mark.parametrize("command", ["policy_pcr", "policy_nv", "unseal"])
def test_a_selected_pcr_extended_meanwhile_is_a_mismatch(bound: Bound, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    backend = bound.enroll()
    before_each(monkeypatch, command, lambda: extend(backend, 11, "kernel"), times=1)
    with pytest.raises(PcrMismatch, match=r"^PCR 11 has"):
        kek_of(backend)


def test_pcrs_that_never_rest_end_in_a_mismatch_and_leak_nothing(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bound.enroll()
    with monkeypatch.context() as patch:
        before_each(patch, "unseal", lambda: extend(backend, 8, "again"))
        for _time in range(4):
            with pytest.raises(PcrMismatch, match="moved"):
                kek_of(backend)
    assert kek_of(backend)


# Memory

_STOPS = """
import os, sys
from pathlib import Path
from hwsec.pcr.policy import NO_BINDING
from hwsec.tpm import TpmBackend

backend = TpmBackend(sys.argv[1], Path(sys.argv[2]), policies=Path(sys.argv[3]))
backend.open()
with backend.kek() as kek:
    os.write(1, kek.view)
stop()
backend.read_anchor()
stop()
bound = backend.binding
backend.rebind(NO_BINDING)
backend.rebind(bound)
stop()
"""


def test_no_copy_of_a_bound_kek_stays_in_the_process(bound: Bound) -> None:
    bound.enroll().close()
    arguments = bound.machine.swtpm.tcti, bound.machine.objects, bound.policies
    scan = scan_after_each_stop(_STOPS, [32, 0, 0], *arguments)
    for step, memory in zip(("kek", "anchor", "rebind"), scan.memories, strict=True):
        assert POLICY_REF in memory, "the scan sees nothing"
        values = {"KEK": scan.told[0], **auth_values(bound.machine.objects, scan.told[0])}
        assert lingering(memory, values) == [], step


# Revocation


def test_revoked_numbers_are_refused_for_ever(bound: Bound) -> None:
    backend = bound.enroll()
    assert backend.policy_number() == 1
    first = kek_of(backend)
    bound.install_for_now(number=3, name="new.json")
    writes = backend.status().nv_writes
    backend.revoke_policies(3)
    assert backend.policy_number() == 3
    assert backend.status().nv_writes == writes + 2
    assert kek_of(backend) == first
    (bound.policies / "new.json").unlink()
    with pytest.raises(PcrMismatch, match="revoked"):
        kek_of(backend)
    bound.reboot()
    backend = bound.opened()
    with pytest.raises(PcrMismatch, match="revoked"):
        kek_of(backend)
    backend.revoke_policies(1)
    assert backend.policy_number() == 3
    bound.install_for_now(number=4)
    assert kek_of(backend) == first


def test_a_revocation_that_would_lock_the_agent_out_is_refused(bound: Bound) -> None:
    backend = bound.enroll()
    bound.install({7: bytes(32), 11: bytes(32)}, number=9)
    with pytest.raises(PcrMismatch, match="revoked"):
        backend.revoke_policies(2)
    assert backend.policy_number() == 1
    assert kek_of(backend)


def test_a_revocation_far_ahead_is_refused(bound: Bound) -> None:
    backend = bound.enroll()
    bound.install_for_now(number=2**40)
    with pytest.raises(ValueError, match="ahead"):
        backend.revoke_policies(2**40)
    assert backend.policy_number() == 1


def test_a_policy_counter_made_anew_by_the_owner_opens_nothing(bound: Bound) -> None:
    backend = bound.enroll()
    backend.close()
    t = tpm2_pytss
    with t.ESAPI(bound.machine.swtpm.tcti) as esys:
        old = esys.tr_from_tpmpublic(NV_BASE + 4)
        public = esys.nv_read_public(old)[0]
        esys.nv_undefine_space(old)
        fresh = t.TPM2B_NV_PUBLIC(
            nvPublic=t.TPMS_NV_PUBLIC(
                nvIndex=NV_BASE + 4,
                nameAlg=t.TPM2_ALG.SHA256,
                attributes=int(public.nvPublic.attributes) & ~int(t.TPMA_NV.WRITTEN),
                dataSize=8,
            )
        )
        index = esys.nv_define_space(b"", fresh)
        esys.nv_increment(index)
        assert bytes(esys.nv_read(index, 8)) != (1).to_bytes(8, "big"), "a counter does not start again"
    backend = bound.opened()
    with pytest.raises(ForeignHardware, match="redefined it"):
        kek_of(backend)
    assert backend.status().state is BackendState.FOREIGN


def test_a_policy_counter_that_is_gone_is_told(bound: Bound) -> None:
    backend = bound.enroll()
    backend.close()
    with tpm2_pytss.ESAPI(bound.machine.swtpm.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(NV_BASE + 4))
    backend = bound.opened()
    with pytest.raises(NvGone, match=f"0x{NV_BASE + 4:08x}"):
        kek_of(backend)


def test_a_new_enrolment_says_which_number_it_needs(bound: Bound) -> None:
    """The counters of the earlier one push the new policy counter up."""
    backend = bound.enroll()
    for _time in range(5):
        backend.increment()
    for _enrolment in range(2):
        for path in (bound.machine.objects, bound.machine.twin):
            path.unlink(missing_ok=True)
        backend = bound.backend(BOTH)
        with contextlib.suppress(PcrMismatch):
            backend.create()
    with pytest.raises(PcrMismatch, match="a number from"):
        backend.create()
    bound.install_for_now(number=50)
    backend = bound.backend(BOTH)
    backend.create()
    assert kek_of(backend)


# Enrolment


def test_an_enrolment_without_a_fitting_policy_leaves_nothing_and_can_be_repeated(bound: Bound) -> None:
    backend = bound.backend(BOTH)
    with pytest.raises(PcrMismatch, match="no policy"):
        backend.create()
    assert not bound.machine.objects.exists()
    assert not bound.machine.twin.exists()
    bound.install({index: bytes(32) for index in (7, 11)}, number=10)
    with pytest.raises(PcrMismatch, match="PCR 7, 11"):
        bound.backend(BOTH).create()
    backend = bound.backend(BOTH)
    bound.install_for_now(number=10)
    backend.create()
    assert kek_of(backend)


def test_blank_pcrs_bind_nothing(tmp_path: Path) -> None:
    """A plain swtpm has zeros in all of them."""
    bound = Bound(tmp_path / "machine")
    try:
        backend = bound.backend(SECURE_BOOT)
        assert backend.status().state is BackendState.PCR_UNINITIALIZED
        bound.install_for_now((7,))
        with pytest.raises(PcrUninitialized, match="PCR 7"):
            backend.create()
        assert not bound.machine.objects.exists()
        extend(backend, 7, "secure boot on")
        assert backend.status().available
    finally:
        bound.end()


def test_pcrs_that_are_blank_after_a_start_are_told_apart_from_others(bound: Bound) -> None:
    bound.enroll().close()
    bound.machine.swtpm.restart()
    backend = bound.opened()
    with pytest.raises(PcrUninitialized):
        kek_of(backend)
    assert backend.status().state is BackendState.PCR_UNINITIALIZED


# Binding anew


def test_a_kek_is_bound_anew_and_stays_the_same(bound: Bound) -> None:
    backend = bound.backend()
    backend.create()
    first = kek_of(backend)
    backend.write_anchor(ANCHOR)
    points = backend.attestation_public(), backend.identity_public(), backend.agreement_public()
    for binding in (SECURE_BOOT, BOTH, NO_BINDING, BOTH):
        if binding.pcrs:
            bound.install_for_now(binding.pcrs)
        backend.rebind(binding)
        assert backend.binding == binding
        assert bound.machine.objects.read_bytes() == bound.machine.twin.read_bytes()
        for agent in range(2):
            backend = bound.opened() if agent else backend
            assert kek_of(backend) == first
            assert backend.binding == binding
            assert backend.status().binding == binding.kind
    assert backend.read_anchor()[0] == ANCHOR
    assert (backend.attestation_public(), backend.identity_public(), backend.agreement_public()) == points
    extend(backend, 11, "kernel")
    with pytest.raises(PcrMismatch):
        kek_of(backend)


def test_a_binding_that_could_not_be_opened_is_refused(bound: Bound) -> None:
    backend = bound.backend()
    backend.create()
    first, file = kek_of(backend), bound.machine.objects.read_bytes()
    with pytest.raises(PcrMismatch):
        backend.rebind(BOTH)
    with pytest.raises(PcrUninitialized):
        backend.rebind(Binding("custom", (0,), KEY))
    assert bound.machine.objects.read_bytes() == bound.machine.twin.read_bytes() == file
    assert kek_of(backend) == first
    assert backend.binding == NO_BINDING


def test_a_bound_kek_cannot_be_unbound_in_another_state(bound: Bound) -> None:
    backend = bound.enroll()
    extend(backend, 11, "kernel")
    with pytest.raises(PcrMismatch):
        backend.rebind(NO_BINDING)
    assert backend.binding == BOTH


@pytest.mark.parametrize("step", [1, 2])
def test_a_rebinding_that_is_cut_leaves_the_old_binding_or_the_new(
    bound: Bound, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    backend = bound.backend()
    backend.create()
    first = kek_of(backend)
    bound.install_for_now((7, 11))
    calls = 0

    def cut(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        write_atomic(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(hwsec.objectfile, "write_atomic", cut)
        with pytest.raises(KeyboardInterrupt):
            backend.rebind(BOTH)
    backend = bound.opened()
    assert kek_of(backend) == first
    assert backend.binding in (NO_BINDING, BOTH)
    assert bound.machine.objects.read_bytes() == bound.machine.twin.read_bytes()


def test_a_disk_that_takes_no_new_binding_is_a_typed_state(bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    backend = bound.backend()
    backend.create()
    first = kek_of(backend)
    bound.install_for_now((7, 11))
    with monkeypatch.context() as patch:
        patch.setattr(hwsec.objectfile, "write_atomic", full)
        with pytest.raises(BackendUnavailable, match="No space"):
            backend.rebind(BOTH)
    assert kek_of(backend) == first
    assert bound.opened().binding == NO_BINDING
