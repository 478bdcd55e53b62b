"""Endorsement key, credential and evidence with a TPM that answers, refuses, is full, is shared with others, or is tapped."""

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hwsec.errors import (
    ActivationRefused,
    BackendUnavailable,
    ForeignHardware,
    HwsecError,
    NoEndorsementKey,
    OutOfSessions,
)
from hwsec.tpm import TpmBackend
from hwsec.tpm2 import endorsement
from hwsec.tpm2.templates import EK_ECC, EK_RSA
from tests.hwsec.auth_values import auth_values
from tests.hwsec.conftest import TpmMachine
from tests.hwsec.memory_scan import lingering, scan_after_each_stop
from tests.hwsec.relay import Relay

t = pytest.importorskip("tpm2_pytss")
from tpm2_pytss import utils  # noqa: E402

pytestmark = pytest.mark.system

SECRET = bytes(range(100, 132))
# Part 2, 6.5.2
ACTIVATE, CERTIFY = 0x147, 0x148
ECC_INDEX, RSA_INDEX = 0x01C0000A, 0x01C00002


@pytest.fixture
def enrolled(tpm: TpmMachine) -> TpmBackend:
    backend = tpm.enroll()
    assert isinstance(backend, TpmBackend)
    return backend


@pytest.fixture
def other(tpm: TpmMachine, enrolled: TpmBackend) -> Iterator[Any]:
    """Another program that may open the TPM, beside the agent."""
    enrolled.random(1)  # the agent has its connection, and has cleared what it found
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        yield esys


@pytest.fixture(params=["ecc", "rsa"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A TPM with the first kind of endorsement key, and one that lacks it."""
    if request.param == "rsa":
        monkeypatch.setattr(endorsement, "KINDS", endorsement.KINDS[1:])
    return str(request.param)


def credential_for(backend: TpmBackend, secret: bytes = SECRET) -> tuple[bytes, bytes]:
    """By the TPM library's own hand."""
    key = backend.endorsement()
    assert key is not None
    public = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(key.public)[0])
    name = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(backend.evidence(b"").attestation)[0]).get_name()
    blob, encrypted = utils.make_credential(public, secret, name)
    return bytes(blob), bytes(encrypted)


def loaded(esys: Any) -> list[int]:
    handles = []
    for first in (t.TPM2_HC.TRANSIENT_FIRST, t.TPM2_HC.HMAC_SESSION_FIRST):
        found = esys.get_capability(t.TPM2_CAP.HANDLES, first, 254)[1]  # its parts lie in its memory
        handles += [int(handle) for handle in found.data.handles]
    return handles


# Endorsement key


def test_the_endorsement_key_is_the_templates(enrolled: TpmBackend, kind: str) -> None:
    found = enrolled.endorsement()
    assert found is not None
    template, unique = {"ecc": (EK_ECC, 2 * 34), "rsa": (EK_RSA, 258)}[kind]
    assert found.public[:-unique] == template[:-unique]
    assert len(found.public) == len(template)
    assert found.public != template
    assert enrolled.measure_hardware_id() == hashlib.sha256(found.public).hexdigest()
    assert enrolled.endorsement() == found


def test_coordinates_have_their_full_length(enrolled: TpmBackend) -> None:
    """A TPM that leaves leading zeros out is the same TPM."""
    point = t.TPMS_ECC_POINT(x=b"\x05" * 31, y=b"\x06" * 30)
    short = t.TPMT_PUBLIC.unmarshal(EK_ECC)[0]
    short.unique.ecc = point
    canonical = endorsement._canonical(enrolled._tpm, short)
    assert canonical[:-68] == EK_ECC[:-68]
    assert canonical[-68:] == b"\0\x20\0" + b"\x05" * 31 + b"\0\x20\0\0" + b"\x06" * 30


def test_where_the_hierarchy_is_taken_there_is_none(enrolled: TpmBackend, other: Any) -> None:
    blob, encrypted = credential_for(enrolled)
    other.hierarchy_change_auth(t.ESYS_TR.ENDORSEMENT, b"taken")
    assert enrolled.endorsement() is None
    assert enrolled.measure_hardware_id() is None
    with pytest.raises(NoEndorsementKey, match="hierarchy"):
        enrolled.activate(blob, encrypted)
    other.tr_set_auth(t.ESYS_TR.ENDORSEMENT, b"taken")
    other.hierarchy_change_auth(t.ESYS_TR.ENDORSEMENT, b"")
    assert enrolled.activate(blob, encrypted) == SECRET


def test_it_is_there_before_the_enrollment_and_after_a_clear_by_the_owner(tpm: TpmMachine) -> None:
    backend = tpm.backend()
    before = backend.endorsement()
    backend.close()
    with t.ESAPI(tpm.swtpm.tcti) as esys:
        esys.clear(t.ESYS_TR.LOCKOUT)
    assert before is not None
    assert tpm.backend().endorsement() == before


# Certificate


def write_index(esys: Any, index: int, data: bytes, attributes: int | None = None, size: int | None = None) -> None:
    bits = t.TPMA_NV
    if attributes is None:
        attributes = bits.AUTHREAD | bits.OWNERREAD
    public = t.TPMS_NV_PUBLIC(
        nvIndex=index,
        nameAlg=t.TPM2_ALG.SHA256,
        attributes=attributes | bits.OWNERWRITE | bits.NO_DA,
        dataSize=len(data) if size is None else size,
    )
    handle = esys.nv_define_space(b"", t.TPM2B_NV_PUBLIC(nvPublic=public))
    for start in range(0, len(data), 512):
        esys.nv_write(handle, data[start : start + 512], start, auth_handle=t.ESYS_TR.OWNER)


def der(size: int) -> bytes:
    return b"\x30\x82" + (size - 4).to_bytes(2, "big") + os.urandom(size - 4)


def certificate_of(backend: TpmBackend) -> bytes | None:
    found = backend.endorsement()
    assert found is not None
    return found.certificate


@pytest.mark.parametrize("size", [300, 1024, 1025, 1900])
def test_a_certificate_is_read_whole(enrolled: TpmBackend, other: Any, kind: str, size: int) -> None:
    certificate = der(size)
    write_index(other, {"ecc": ECC_INDEX, "rsa": RSA_INDEX}[kind], certificate)
    assert certificate_of(enrolled) == certificate


def test_the_other_keys_certificate_is_not_taken(enrolled: TpmBackend, other: Any) -> None:
    write_index(other, RSA_INDEX, der(300))
    assert certificate_of(enrolled) is None


def test_what_fills_the_index_up_is_cut_off(enrolled: TpmBackend, other: Any) -> None:
    certificate = b"\x30\x81\x80" + bytes(128)
    write_index(other, ECC_INDEX, certificate + b"\xff" * 400)
    assert certificate_of(enrolled) == certificate


def test_an_index_that_only_the_owner_reads_is_read_as_owner(enrolled: TpmBackend, other: Any) -> None:
    certificate = der(300)
    write_index(other, ECC_INDEX, certificate, attributes=t.TPMA_NV.OWNERREAD)
    assert certificate_of(enrolled) == certificate


@pytest.mark.parametrize("data", [b"\xff" * 300, der(300)[:200], b"\x30\x82", b"\x30\x03\x01\x01\x00"], ids=len)
def test_what_is_no_certificate_is_none(enrolled: TpmBackend, other: Any, data: bytes) -> None:
    write_index(other, ECC_INDEX, data)
    assert certificate_of(enrolled) is None


def test_an_index_that_cannot_be_read_is_none_and_harms_nothing(enrolled: TpmBackend, other: Any) -> None:
    write_index(other, ECC_INDEX, b"", size=300)
    assert certificate_of(enrolled) is None, "never written"
    other.nv_undefine_space(other.tr_from_tpmpublic(ECC_INDEX))
    write_index(other, ECC_INDEX, der(300), attributes=t.TPMA_NV.PPREAD)
    assert certificate_of(enrolled) is None, "for the platform only"
    assert enrolled.status().available


# Credential


def test_a_credential_is_opened(enrolled: TpmBackend, kind: str) -> None:
    for secret in (SECRET, b"x"):
        assert enrolled.activate(*credential_for(enrolled, secret)) == secret
    enrolled.close()
    enrolled.open()
    assert enrolled.activate(*credential_for(enrolled)) == SECRET


def test_a_changed_credential_is_refused(enrolled: TpmBackend, kind: str) -> None:
    blob, encrypted = credential_for(enrolled)
    for part in range(2):
        for place in range(0, len((blob, encrypted)[part]), 9):
            changed = [bytearray(blob), bytearray(encrypted)]
            changed[part][place] ^= 1
            with pytest.raises(ActivationRefused):
                enrolled.activate(bytes(changed[0]), bytes(changed[1]))
    for cut in (blob[:-1], blob + b"\0", b""):
        with pytest.raises(ActivationRefused):
            enrolled.activate(cut, encrypted)
    assert enrolled.activate(blob, encrypted) == SECRET
    assert enrolled.status().available


def test_a_credential_for_another_attestation_key_is_refused(enrolled: TpmBackend) -> None:
    key = enrolled.endorsement()
    assert key is not None
    public = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(key.public)[0])
    identity = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(enrolled.evidence(b"").identity.public)[0])
    blob, encrypted = utils.make_credential(public, SECRET, identity.get_name())
    with pytest.raises(ActivationRefused, match="another"):
        enrolled.activate(bytes(blob), bytes(encrypted))


def test_a_credential_for_another_tpm_is_refused(enrolled: TpmBackend, tmp_path: Any) -> None:
    machine = TpmMachine(tmp_path / "second")
    try:
        second = machine.backend()
        second.create()
        credential = credential_for(second)
        assert second.activate(*credential) == SECRET
    finally:
        machine.end()
    with pytest.raises(ActivationRefused):
        enrolled.activate(*credential)


# States


USES: dict[str, Callable[[TpmBackend, tuple[bytes, bytes]], object]] = {
    "endorsement": lambda b, credential: b.endorsement(),
    "hardware id": lambda b, credential: b.measure_hardware_id(),
    "evidence": lambda b, credential: b.evidence(b"nonce"),
    "activation": lambda b, credential: b.activate(*credential),
}


def test_nothing_stays_loaded(enrolled: TpmBackend, other: Any) -> None:
    credential = credential_for(enrolled)
    before = loaded(other)
    for use in USES.values():
        for _time in range(3):
            use(enrolled, credential)
        assert loaded(other) == before
    for _time in range(5):
        with pytest.raises(ActivationRefused):
            enrolled.activate(bytes(68), credential[1])
    # Asked over several connections, each with a session of its own.
    enrolled.clock()
    assert len(loaded(other)) == len(before)


def test_no_room_for_an_object_is_a_typed_state(enrolled: TpmBackend, other: Any) -> None:
    """And not an endorsement key that is not there, nor one of another kind."""
    credential = credential_for(enrolled)
    template = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(EK_ECC)[0])
    held = []
    while len(held) < 100:
        try:
            held.append(other.create_primary(None, template, primary_handle=t.ESYS_TR.ENDORSEMENT)[0])
        except t.TSS2_Exception:
            break
    for use in USES.values():
        with pytest.raises(OutOfSessions, match="object"):
            use(enrolled, credential)
    for handle in held:
        other.flush_context(handle)
    for use in USES.values():
        use(enrolled, credential)


def test_no_room_for_a_session_is_a_typed_state(enrolled: TpmBackend, other: Any) -> None:
    credential = credential_for(enrolled)
    none, symmetric = t.ESYS_TR.NONE, t.TPMT_SYM_DEF(algorithm=t.TPM2_ALG.NULL)
    held = []
    while len(held) < 100:
        try:
            held.append(other.start_auth_session(none, none, t.TPM2_SE.POLICY, symmetric, t.TPM2_ALG.SHA256))
        except t.TSS2_Exception:
            break
    for name in ("evidence", "activation"):
        with pytest.raises(OutOfSessions, match="session"):
            USES[name](enrolled, credential)
    for session in held:
        other.flush_context(session)
    for use in USES.values():
        use(enrolled, credential)


def test_a_restart_of_the_tpm_costs_no_call(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    credential = credential_for(enrolled)
    for use in USES.values():
        tpm.swtpm.restart()
        use(enrolled, credential)


def test_another_tpm_says_nothing_for_our_keys(tpm: TpmMachine, enrolled: TpmBackend) -> None:
    credential = credential_for(enrolled)
    tpm.swtpm.stop()
    tpm.swtpm.clear()
    tpm.swtpm.start()
    for name in ("evidence", "activation"):
        with pytest.raises(HwsecError):
            USES[name](enrolled, credential)
        with pytest.raises(ForeignHardware):
            USES[name](enrolled, credential)


# Others


def test_somebody_else_can_neither_certify_nor_activate(tpm: TpmMachine, enrolled: TpmBackend, other: Any) -> None:
    """Even with the blobs, he lacks the auth values."""
    credential = credential_for(enrolled)
    blob, secret = t.TPM2B_ID_OBJECT(credential=credential[0]), t.TPM2B_ENCRYPTED_SECRET(secret=credential[1])
    objects = enrolled._require_objects()
    parent = enrolled._tpm.run(lambda e: e.tr_serialize(enrolled._tpm.srk))
    root = other.tr_deserialize(parent)

    def load(made: Any) -> Any:
        return other.load(root, t.TPM2B_PRIVATE.unmarshal(made.private)[0], t.TPM2B_PUBLIC.unmarshal(made.public)[0])

    attestation = load(objects.attestation)
    ek = other.create_primary(
        None, t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(EK_ECC)[0]), primary_handle=t.ESYS_TR.ENDORSEMENT
    )[0]
    none, symmetric = t.ESYS_TR.NONE, t.TPMT_SYM_DEF(algorithm=t.TPM2_ALG.NULL)
    policy = other.start_auth_session(none, none, t.TPM2_SE.POLICY, symmetric, t.TPM2_ALG.SHA256)
    for auth in (b"", b"guess", bytes(32)):
        other.tr_set_auth(attestation, auth)
        other.policy_secret(t.ESYS_TR.ENDORSEMENT, policy)
        with pytest.raises(t.TSS2_Exception):
            other.activate_credential(attestation, ek, blob, secret, session2=policy)
    for handle in (attestation, ek, policy):
        other.flush_context(handle)
    assert enrolled.activate(*credential) == SECRET


def test_nothing_secret_is_to_be_read_on_the_bus(tpm: TpmMachine) -> None:
    tpm.enroll().close()
    with Relay(tpm.swtpm.port) as relay:
        backend = tpm.over(relay.tcti)
        backend.open()
        credential = credential_for(backend)
        assert backend.activate(*credential) == SECRET
        backend.evidence(b"nonce of the server")
        with backend.kek() as kek:
            secrets = [SECRET, *auth_values(tpm.objects, bytes(kek.view)).values()]
        backend.close()
    seen = b"|".join(part for exchange in relay.log for part in exchange)
    (activated,) = relay.of(ACTIVATE)
    assert credential[1] in activated.command, "the relay sees nothing"
    assert activated.succeeded
    assert len(relay.of(CERTIFY)) == 4, "two keys, twice"
    for number, secret in enumerate(secrets):
        assert secret not in seen, f"secret {number}"
        assert secret[:16] not in seen, f"secret {number}, first half"


@pytest.mark.parametrize("code", [ACTIVATE, CERTIFY, 0x131], ids=["activation", "certification", "creation of the key"])
def test_a_changed_response_is_noticed(tpm: TpmMachine, code: int) -> None:
    tpm.enroll().close()
    with Relay(tpm.swtpm.port) as relay:
        backend = tpm.over(relay.tcti)
        backend.open()
        credential = credential_for(backend)

        def changed(exchange: Any) -> bytes:
            if exchange.code != code or not exchange.succeeded:
                return bytes(exchange.response)
            response = bytearray(exchange.response)
            response[40] ^= 1
            return bytes(response)

        relay.answer = changed
        name = {ACTIVATE: "activation", CERTIFY: "evidence"}.get(code, "endorsement")
        with pytest.raises(BackendUnavailable):
            USES[name](backend, credential)
        relay.answer = lambda exchange: exchange.response
        USES[name](backend, credential)
        backend.close()


_STOPS_AFTER_EACH_STEP = """
import os, sys
from pathlib import Path
from hwsec.errors import ActivationRefused
from hwsec.secretmem import wipe_bytes
from hwsec.tpm import TpmBackend

backend = TpmBackend(sys.argv[1], Path(sys.argv[2]))
backend.open()
with backend.kek() as kek:
    os.write(1, kek.view)
stop()
backend.evidence(b"nonce")
stop()
try:
    backend.activate(bytes(68), bytes(68))
except ActivationRefused:
    stop()
wipe_bytes(backend.activate(bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4])))
stop()
backend.endorsement()
stop()
"""


def test_no_copy_of_a_secret_stays_in_the_process(tpm: TpmMachine) -> None:
    backend = tpm.enroll()
    assert isinstance(backend, TpmBackend)
    secret = os.urandom(32)
    blob, encrypted = credential_for(backend, secret)
    backend.close()
    arguments = (tpm.swtpm.tcti, tpm.objects, blob.hex(), encrypted.hex())
    scan = scan_after_each_stop(_STOPS_AFTER_EACH_STEP, [32, 0, 0, 0, 0], *arguments)
    values = {"KEK": scan.told[0], "credential": secret, **auth_values(tpm.objects, scan.told[0])}
    for step, memory in zip(("open", "evidence", "refusal", "activation", "endorsement"), scan.memories, strict=True):
        assert b"license-agent tpm auth" in memory, "the scan sees nothing"
        assert lingering(memory, values) == [], step
