"""States of a TPM: locked out, out of room, cleared, exchanged, without our indices; and somebody else who may open it."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hwsec import tpm as backend_module
from hwsec.backend import Anchor, BackendState
from hwsec.errors import (
    BackendUnavailable,
    ForeignHardware,
    HardwareReset,
    HwsecError,
    LockedOut,
    NvGone,
    OldFormat,
    OutOfSessions,
)
from hwsec.nv.budget import BURST
from hwsec.objectfile import MAGIC, Blob
from hwsec.tpm import NV_BASE, SRK_HANDLE, TpmBackend
from hwsec.tpm2 import codes
from hwsec.tpm2.templates import SRK
from tests.hwsec.auth_values import auth_values
from tests.hwsec.conftest import TpmMachine
from tests.support.swtpm import Swtpm

pytestmark = pytest.mark.system

t = pytest.importorskip("tpm2_pytss")

ANCHOR = Anchor(2, bytes(range(32)), version=1)


def kek_of(backend: TpmBackend) -> bytes:
    with backend.kek() as kek:
        return bytes(kek.view)


@pytest.fixture
def enrolled(tpm: TpmMachine) -> TpmBackend:
    backend = tpm.enroll()
    assert isinstance(backend, TpmBackend)
    return backend


@pytest.fixture
def other(tpm: TpmMachine, enrolled: TpmBackend) -> Iterator[Any]:
    """Another program that may open the TPM, beside the agent: as a user of group tss could."""
    kek_of(enrolled)  # the agent has its connection, and has cleared what it found
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        yield esys


def refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except t.TSS2_Exception:
        return True
    return False


# Lockout


def fail_until_locked_out(esys: Any) -> None:
    """On an object of one's own, which is not exempt."""
    esys.dictionary_attack_parameters(2, 10_000, 10_000)
    template = t.TPM2B_PUBLIC.parse(
        "ecc256:ecdsa-sha256", objectAttributes="fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
    )
    sensitive = t.TPM2B_SENSITIVE_CREATE(t.TPMS_SENSITIVE_CREATE(userAuth=b"right"))
    handle = esys.create_primary(sensitive, template)[0]
    esys.tr_set_auth(handle, b"wrong")
    for _time in range(3):
        assert refused(lambda: esys.sign(handle, bytes(32), t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL)))
    esys.flush_context(handle)


def test_a_lockout_does_not_touch_what_is_ours(enrolled: TpmBackend, other: Any) -> None:
    expected = kek_of(enrolled)
    assert enrolled.status().lockout_counter == 0
    fail_until_locked_out(other)
    assert kek_of(enrolled) == expected
    enrolled.write_anchor(ANCHOR)
    assert len(enrolled.sign(b"message")) == 64
    enrolled.close()
    enrolled.open()
    assert kek_of(enrolled) == expected
    status = enrolled.status()
    assert status.available
    assert status.lockout_counter == 2


def test_a_locked_lockout_hierarchy_does_not_either(enrolled: TpmBackend, other: Any) -> None:
    other.tr_set_auth(t.ESYS_TR.LOCKOUT, b"wrong")
    assert refused(lambda: other.dictionary_attack_lock_reset(t.ESYS_TR.LOCKOUT))
    other.tr_set_auth(t.ESYS_TR.LOCKOUT, b"")
    assert refused(lambda: other.dictionary_attack_lock_reset(t.ESYS_TR.LOCKOUT))
    assert kek_of(enrolled)
    assert enrolled.status().available


def test_a_root_key_that_is_not_exempt_locks_the_agent_out(tpm: TpmMachine) -> None:
    """A persistent key that somebody else has made is used as it is."""
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        area = t.TPMT_PUBLIC.unmarshal(SRK)[0]
        area.objectAttributes = int(area.objectAttributes) & ~int(t.TPMA_OBJECT.NODA)
        key = esys.create_primary(None, t.TPM2B_PUBLIC(publicArea=area))[0]
        esys.evict_control(t.ESYS_TR.OWNER, key, SRK_HANDLE)
        esys.flush_context(key)
    backend = tpm.backend()
    backend.create()
    expected = kek_of(backend)
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        fail_until_locked_out(esys)
    with pytest.raises(LockedOut):
        kek_of(backend)
    status = backend.status()
    assert (status.available, status.state) == (False, BackendState.LOCKED_OUT)
    assert "locked out" in status.detail
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        esys.dictionary_attack_lock_reset(t.ESYS_TR.LOCKOUT)
    assert kek_of(backend) == expected
    assert backend.status().available


def test_failures_on_our_objects_lock_nobody_out(tpm: TpmMachine, enrolled: TpmBackend, other: Any) -> None:
    for number in (1, 2, 3, 4):
        index = other.tr_from_tpmpublic(NV_BASE + number)
        other.tr_set_auth(index, b"guess")
        for _time in range(5):
            assert refused(lambda index=index: other.nv_read(index, 8))  # type: ignore[misc]
    for handle in loaded_by_other(other, enrolled):
        other.tr_set_auth(handle, b"guess")
        for _time in range(5):
            assert refused(lambda handle=handle: other.sign(handle, bytes(32), NO_SCHEME))  # type: ignore[misc]
    assert enrolled.status().lockout_counter == 0


NO_SCHEME = t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL)


# Room


def occupy_sessions(esys: Any) -> list[Any]:
    held = []
    with contextlib.suppress(t.TSS2_Exception):
        while len(held) < 100:
            none, symmetric = t.ESYS_TR.NONE, t.TPMT_SYM_DEF(algorithm=t.TPM2_ALG.NULL)
            held.append(esys.start_auth_session(none, none, t.TPM2_SE.POLICY, symmetric, t.TPM2_ALG.SHA256))
    return held


def test_no_session_left_is_a_typed_state(enrolled: TpmBackend, other: Any) -> None:
    expected = kek_of(enrolled)
    held = occupy_sessions(other)
    assert held
    for _time in range(2):
        with pytest.raises(OutOfSessions, match="session"):
            kek_of(enrolled)
    status = enrolled.status()
    assert (status.available, status.state) == (False, BackendState.OUT_OF_SESSIONS)
    for session in held:
        other.flush_context(session)
    assert kek_of(enrolled) == expected
    assert enrolled.status().available


def test_no_room_for_an_object_is_a_typed_state(enrolled: TpmBackend, other: Any) -> None:
    expected = kek_of(enrolled)
    template = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(SRK)[0])
    held = []
    with contextlib.suppress(t.TSS2_Exception):
        while len(held) < 100:
            held.append(other.create_primary(None, template)[0])
    assert held
    for use in (lambda: kek_of(enrolled), lambda: enrolled.sign(b"message")):
        with pytest.raises(OutOfSessions, match="object"):
            use()
    assert enrolled.status().state is BackendState.OUT_OF_SESSIONS
    for handle in held:
        other.flush_context(handle)
    assert kek_of(enrolled) == expected


# Gone


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_status_names_the_index_that_is_gone(enrolled: TpmBackend, other: Any, number: int) -> None:
    other.nv_undefine_space(other.tr_from_tpmpublic(NV_BASE + number))
    status = enrolled.status()
    assert (status.available, status.state) == (False, BackendState.NV_GONE)
    assert f"0x{NV_BASE + number:08x}" in status.detail


def test_an_index_deleted_while_the_agent_runs_is_told(enrolled: TpmBackend, other: Any) -> None:
    enrolled.write_anchor(ANCHOR)
    enrolled.extend_audit(b"head")
    enrolled.policy_number()
    for number in (1, 2, 3, 4):
        other.nv_undefine_space(other.tr_from_tpmpublic(NV_BASE + number))
    uses: tuple[Callable[[], object], ...] = (
        enrolled.read_anchor,
        lambda: enrolled.write_anchor(ANCHOR),
        enrolled.increment,
        enrolled.read_audit,
        lambda: enrolled.extend_audit(b"head"),
        lambda: enrolled.certify_audit(b"nonce"),
        enrolled.policy_number,
    )
    for use in uses:
        for _time in range(2):
            with pytest.raises(NvGone):
                use()
    assert kek_of(enrolled)


def test_a_tpm_cleared_while_the_agent_runs_is_foreign(enrolled: TpmBackend, other: Any) -> None:
    other.clear(t.ESYS_TR.LOCKOUT)
    with pytest.raises(HwsecError):  # the connection is lost with what was loaded over it
        kek_of(enrolled)
    with pytest.raises(ForeignHardware, match="cleared"):
        kek_of(enrolled)
    assert enrolled.status().state is BackendState.FOREIGN


def test_another_tpm_is_foreign_to_a_status_too(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    tpm.swtpm.stop()
    tpm.swtpm.clear()
    tpm.swtpm.start()
    enrolled.status()
    status = enrolled.status()
    assert (status.available, status.state, status.hardware_id) == (False, BackendState.FOREIGN, None)


def test_a_status_never_raises(enrolled: TpmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> object:
        raise RuntimeError("the library has a fault")

    monkeypatch.setattr(backend_module.facts, "read_clock", broken)
    assert enrolled.status().state is BackendState.ABSENT
    assert "fault" in enrolled.status().detail


# What a TPM tells


def test_open_hierarchies_are_named(enrolled: TpmBackend, other: Any) -> None:
    assert enrolled.status().hierarchies_open == ("owner", "endorsement", "lockout")
    other.hierarchy_change_auth(t.ESYS_TR.ENDORSEMENT, b"taken")
    assert enrolled.status().hierarchies_open == ("owner", "lockout")
    other.hierarchy_change_auth(t.ESYS_TR.LOCKOUT, b"taken")
    other.hierarchy_change_auth(t.ESYS_TR.OWNER, b"taken")
    assert enrolled.status().hierarchies_open == ()
    assert kek_of(enrolled)


def test_the_hardware_id_is_that_of_the_endorsement_key(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    from tpm2_pytss import utils

    def none(index: int) -> bytes:
        raise utils.NoSuchIndex(index)

    enrolled.close()
    template = utils.create_ek_template("EK-ECC256", none)[1]
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        handle, public, *_ = esys.create_primary(None, template, primary_handle=t.ESYS_TR.ENDORSEMENT)
        expected = hashlib.sha256(bytes(public.publicArea.marshal())).hexdigest()
        esys.flush_context(handle)
    assert tpm.backend().status().hardware_id == expected, "before the enrolment"
    backend = tpm.backend()
    backend.open()
    assert backend.status().hardware_id == expected


def test_the_rsa_template_is_that_of_the_profile() -> None:
    from tpm2_pytss import utils

    from hwsec.tpm2.templates import EK_ECC, EK_RSA

    def none(index: int) -> bytes:
        raise utils.NoSuchIndex(index)

    assert bytes(utils.create_ek_template("EK-RSA2048", none)[1].publicArea.marshal()) == EK_RSA
    assert bytes(utils.create_ek_template("EK-ECC256", none)[1].publicArea.marshal()) == EK_ECC


def test_the_clock_shows_restarts(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    before = enrolled.clock()
    assert enrolled.clock().milliseconds >= before.milliseconds
    tpm.swtpm.restart()
    with contextlib.suppress(BackendUnavailable):
        enrolled.clock()
    assert enrolled.clock().reset_count == before.reset_count + 1


def test_writes_are_held_against_the_budget(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    enrolled.close()
    now = 0.0
    backend = TpmBackend(tpm.swtpm.tcti, tpm.objects, monotonic=lambda: now)
    backend.open()
    assert backend.status().nv_budget_left == BURST
    backend.write_anchor(ANCHOR)
    backend.increment()
    backend.extend_audit(b"head")
    backend.read_anchor()
    assert (backend.status().nv_budget_left, backend.status().nv_writes) == (BURST - 3, 3)
    fresh = backend.replace()
    assert (fresh.status().nv_budget_left, fresh.status().nv_writes) == (BURST - 3, 3)
    now = 86_400.0
    assert backend.status().nv_budget_left == BURST
    backend.close()
    fresh.close()


def test_certified_is_the_index_by_its_name(enrolled: TpmBackend) -> None:
    """What a verifier reads in the attestation (Part 2, 10.12.12)."""
    audit = enrolled.extend_audit(b"head")
    attest = t.TPMS_ATTEST.unmarshal(enrolled.certify_audit(b"nonce").attested)[0]
    assert int(attest.magic) == 0xFF544347
    assert int(attest.type) == int(t.TPM2_ST.ATTEST_NV)
    assert bytes(attest.extraData) == b"nonce"
    certified = attest.attested.nv
    assert (bytes(certified.nvContents), int(certified.offset)) == (audit, 0)
    index = enrolled._tpm.run(lambda e: e.tr_from_tpmpublic(NV_BASE + 3))
    assert bytes(certified.indexName) == bytes(enrolled._tpm.run(lambda e: e.tr_get_name(index)))


# Somebody else with the TPM's full command set


def blobs(backend: TpmBackend) -> dict[str, Blob]:
    objects = backend._require_objects()
    return {
        "kek": objects.kek.blob,
        "attestation": objects.attestation,
        "identity": objects.identity,
        "agreement": objects.agreement,
    }


def load(esys: Any, parent: Any, blob: Blob) -> Any:
    return esys.load(parent, t.TPM2B_PRIVATE.unmarshal(blob.private)[0], t.TPM2B_PUBLIC.unmarshal(blob.public)[0])


def loaded_by_other(esys: Any, backend: TpmBackend) -> Iterator[Any]:
    """Each of our keys in turn, loaded by the other: say that he has got hold of the blobs, though not of the auth values."""
    template = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(SRK)[0])
    for name in ("attestation", "identity", "agreement"):
        parent = esys.create_primary(None, template)[0]
        handle = load(esys, parent, blobs(backend)[name])
        esys.flush_context(parent)
        yield handle
        esys.flush_context(handle)


def test_the_file_of_objects_is_its_owners_alone(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    enrolled.rebind(enrolled.binding)
    for path in (tpm.objects, tpm.twin):
        assert path.stat().st_mode & 0o7777 == 0o600


def test_somebody_else_can_use_none_of_the_keys(enrolled: TpmBackend, other: Any) -> None:
    point = t.TPM2B_ECC_POINT(t.TPMS_ECC_POINT(x=enrolled.agreement_public()[1:33], y=enrolled.agreement_public()[33:]))
    enrolled.extend_audit(b"head")
    audit = other.tr_from_tpmpublic(NV_BASE + 3)
    tried = 0
    for handle in loaded_by_other(other, enrolled):
        for auth in (b"", b"guess", bytes(32)):
            other.tr_set_auth(handle, auth)
            for attempt in (
                lambda handle=handle: other.sign(handle, bytes(32), NO_SCHEME),  # type: ignore[misc]
                lambda handle=handle: other.ecdh_zgen(handle, point),  # type: ignore[misc]
                lambda handle=handle: other.quote(handle, "sha256:7", b""),  # type: ignore[misc]
                lambda handle=handle: other.nv_certify(handle, audit, b"", NO_SCHEME, 32),  # type: ignore[misc]
                lambda handle=handle: other.certify(handle, handle, b"", NO_SCHEME),  # type: ignore[misc]
                lambda handle=handle: other.object_change_auth(handle, handle, b"mine"),  # type: ignore[misc]
            ):
                assert refused(attempt)
                tried += 1
    assert tried == 3 * 3 * 6
    assert len(enrolled.sign(b"message")) == 64


@pytest.mark.parametrize("auth", [b"", b"guess", bytes(32)])
def test_somebody_else_cannot_unseal(enrolled: TpmBackend, other: Any, auth: bytes) -> None:
    template = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(SRK)[0])
    parent = other.create_primary(None, template)[0]
    handle = load(other, parent, blobs(enrolled)["kek"])
    other.flush_context(parent)
    other.tr_set_auth(handle, auth)
    assert refused(lambda: other.unseal(handle)), "by password"
    none, symmetric = t.ESYS_TR.NONE, t.TPMT_SYM_DEF(algorithm=t.TPM2_ALG.NULL)
    for kind, satisfy in (
        (t.TPM2_SE.HMAC, None),
        (t.TPM2_SE.POLICY, None),
        (t.TPM2_SE.POLICY, other.policy_auth_value),
        (t.TPM2_SE.POLICY, other.policy_password),
    ):
        session = other.start_auth_session(none, none, kind, symmetric, t.TPM2_ALG.SHA256)
        if satisfy is not None:
            satisfy(session)
        assert refused(lambda session=session: other.unseal(handle, session1=session))  # type: ignore[misc]
        with contextlib.suppress(t.TSS2_Exception):
            other.flush_context(session)
    other.flush_context(handle)
    assert kek_of(enrolled)


def test_the_right_auth_value_alone_unseals_nothing(tpm: TpmMachine, enrolled: TpmBackend, other: Any) -> None:
    """There is no userWithAuth: only the policy opens it."""
    template = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(SRK)[0])
    parent = other.create_primary(None, template)[0]
    handle = load(other, parent, blobs(enrolled)["kek"])
    other.flush_context(parent)
    other.tr_set_auth(handle, auth_values(tpm.objects, bytes(32))["KEK's auth value"])
    assert refused(lambda: other.unseal(handle))
    other.flush_context(handle)


def test_somebody_else_cannot_use_what_the_agent_has_loaded(
    tpm: TpmMachine, enrolled: TpmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a resource manager he sees the agent's handles, at the very moment of their use."""
    outcomes: list[bool] = []
    sign, unseal = t.ESAPI.sign, t.ESAPI.unseal

    def on_all_handles(attempt: Callable[[Any, Any], object]) -> None:
        with t.ESAPI(tpm.swtpm.tcti) as spy:
            found = spy.get_capability(t.TPM2_CAP.HANDLES, t.TPM2_HC.TRANSIENT_FIRST, 16)[1]
            for number in found.data.handles:
                handle = spy.tr_from_tpmpublic(int(number))
                outcomes.append(refused(lambda handle=handle: attempt(spy, handle)))  # type: ignore[misc]

    def spied_sign(esys: Any, *arguments: Any, **named: Any) -> Any:
        on_all_handles(lambda spy, handle: sign(spy, handle, bytes(32), NO_SCHEME))
        return sign(esys, *arguments, **named)

    def spied_unseal(esys: Any, *arguments: Any, **named: Any) -> Any:
        on_all_handles(unseal)
        return unseal(esys, *arguments, **named)

    kek_of(enrolled)
    monkeypatch.setattr(t.ESAPI, "sign", spied_sign)
    monkeypatch.setattr(t.ESAPI, "unseal", spied_unseal)
    assert len(enrolled.sign(b"message")) == 64
    assert kek_of(enrolled)
    assert outcomes == [True] * 8  # two handles each, at the use and at the command that covers its auth value


def test_somebody_else_cannot_touch_the_policy_counter(enrolled: TpmBackend, other: Any) -> None:
    counter = other.tr_from_tpmpublic(NV_BASE + 4)
    for auth in (b"", b"guess", bytes(32)):
        other.tr_set_auth(counter, auth)
        assert refused(lambda: other.nv_increment(counter))
        assert refused(lambda: other.nv_read(counter, 8))
        assert refused(lambda: other.nv_increment(counter, t.ESYS_TR.OWNER))
        assert refused(lambda: other.nv_read(counter, 8, 0, t.ESYS_TR.OWNER))
    assert enrolled.policy_number() == 1


# Formats


def test_a_file_of_the_first_format_is_told_from_a_damaged_one(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    objects = msgspec.msgpack.decode(tpm.objects.read_bytes()[40:])
    old = {"srk_name": objects["srk_name"], "kek": objects["kek"]["blob"], "agreement": objects["agreement"]}
    body = msgspec.msgpack.encode(old)
    data = hashlib.sha256(body).digest() + body
    for path in (tpm.objects, tpm.twin):
        path.write_bytes(data)
    with pytest.raises(OldFormat, match="earlier version"):
        tpm.backend().open()
    tpm.twin.unlink()
    with pytest.raises(OldFormat, match="earlier version"):
        tpm.backend().open()
    assert tpm.objects.read_bytes() == data, "left as it was"


def test_a_file_with_a_binding_that_contradicts_itself_is_damaged(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    objects = msgspec.msgpack.decode(tpm.objects.read_bytes()[40:])
    objects["kek"]["binding"] = {"kind": "custom", "pcrs": [7], "policy_key": None}
    body = msgspec.msgpack.encode(objects)
    for path in (tpm.objects, tpm.twin):
        path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    with pytest.raises(HwsecError, match="damaged"):
        tpm.backend().open()


# Codes


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0x921, LockedOut),
        (0x901, OutOfSessions),
        (0x902, OutOfSessions),
        (0x903, OutOfSessions),
        (0x904, OutOfSessions),
        (0x905, OutOfSessions),
        (0x906, OutOfSessions),
        (0xB0921, LockedOut),
        (0xC0903, OutOfSessions),
        (0x910, HardwareReset),
        (0x918, HardwareReset),
        (0x98B, HardwareReset),
        (0xA8B, HardwareReset),
        (0x18B, codes.TpmRefusal),
        (0x1CB, codes.TpmRefusal),
        (0x99D, codes.TpmRefusal),
        (0x128, codes.TpmRefusal),
    ],
)
def test_codes_have_their_errors(code: int, kind: type[BackendUnavailable]) -> None:
    assert codes.is_from_tpm(code)
    assert type(codes.refusal(code, "text")) is kind


@pytest.mark.parametrize(("code", "known"), [(0x99D, codes.RC_POLICY_FAIL), (0x1C4, codes.RC_VALUE), (0x18B, codes.RC_HANDLE)])
def test_what_was_at_fault_is_masked_out(code: int, known: int) -> None:
    reason = codes.refusal(code, "text")
    assert isinstance(reason, codes.TpmRefusal)
    assert reason.code == known


@pytest.mark.parametrize("code", [0x7000B, 0xA000A, 0x80001])
def test_what_the_library_says_is_not_the_tpms_word(code: int) -> None:
    assert not codes.is_from_tpm(code)


def test_a_second_chip_is_not_needed_to_tell_a_foreign_one(tpm: TpmMachine, enrolled: TpmBackend, tmp_path: Path) -> None:
    enrolled.close()
    with Swtpm(tmp_path / "other") as chip:
        backend = tpm.over(chip.tcti)
        with pytest.raises(ForeignHardware):
            backend.open()
        assert backend.status().state is BackendState.AVAILABLE, "not open: it is a TPM like any other"
        backend.close()
