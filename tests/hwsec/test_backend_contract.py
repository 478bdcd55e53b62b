"""Every backend keeps the contract of hwsec/backend.py: one suite for memory, software and TPM."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hwsec.backend import (
    NONCE_MAX,
    Anchor,
    Backend,
    BackendState,
    BackendStatus,
    CertifiedKey,
    SoftwareEvidence,
    TpmEvidence,
)
from hwsec.errors import ActivationRefused, AlreadyEnrolled, AuditEmpty, BackendUnavailable, NoEndorsementKey, NotEnrolled
from tests.hwsec.conftest import MACHINES, Machine

CURVE = ec.SECP256R1()
ANCHOR = Anchor(2, bytes(range(32)), version=7, valid_from=1, valid_until=2**40, grace_until=2**63, state=255)

NEEDS_ENROLMENT: dict[str, Callable[[Backend], object]] = {
    "kek": lambda b: b.kek().__enter__(),
    "read_anchor": lambda b: b.read_anchor(),
    "write_anchor": lambda b: b.write_anchor(ANCHOR),
    "increment": lambda b: b.increment(),
    "read_audit": lambda b: b.read_audit(),
    "extend_audit": lambda b: b.extend_audit(bytes(32)),
    "certify_audit": lambda b: b.certify_audit(b"nonce"),
    "attestation_public": lambda b: b.attestation_public(),
    "identity_public": lambda b: b.identity_public(),
    "sign": lambda b: b.sign(b"message"),
    "agreement_public": lambda b: b.agreement_public(),
    "evidence": lambda b: b.evidence(b"nonce"),
    "activate": lambda b: b.activate(b"blob", b"secret"),
    "agree": lambda b: b.agree(point_of(ec.generate_private_key(CURVE))),
}


def point_of(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def kek_of(backend: Backend) -> bytes:
    with backend.kek() as kek:
        return bytes(kek.view)


def reopened(machine: Machine) -> Backend:
    backend = machine.backend()
    backend.open()
    return backend


# Enrolment


def test_what_was_not_created_cannot_be_opened(machine: Machine) -> None:
    with pytest.raises(NotEnrolled):
        machine.backend().open()


def test_nothing_works_before_enrolment(machine: Machine) -> None:
    backend = machine.backend()
    for operation in NEEDS_ENROLMENT:
        assert_not_enrolled(backend, operation)


def assert_not_enrolled(backend: Backend, operation: str) -> None:
    try:
        NEEDS_ENROLMENT[operation](backend)
    except NotEnrolled:
        return
    pytest.fail(f"{operation} was not refused")


def test_the_kek_is_the_same_after_each_start(machine: Machine, backend: Backend) -> None:
    first = kek_of(backend)
    assert len(first) == 32
    assert len(set(first)) > 8
    assert kek_of(backend) == first
    for _start in range(2):
        assert kek_of(reopened(machine)) == first


def test_two_machines_have_two_keks(machine: Machine, backend: Backend, tmp_path: Path) -> None:
    other_machine = MACHINES[machine.name](tmp_path / "other")
    try:
        other = other_machine.backend()
        other.create()
        assert kek_of(other) != kek_of(backend)
        assert other.agreement_public() != backend.agreement_public()
    finally:
        other_machine.end()


def test_a_second_enrolment_is_refused_and_harms_nothing(machine: Machine, backend: Backend) -> None:
    backend.write_anchor(ANCHOR)
    before = kek_of(backend), backend.read_anchor(), backend.agreement_public()
    with pytest.raises(AlreadyEnrolled):
        backend.create()
    with pytest.raises(AlreadyEnrolled):
        machine.backend().create()
    after = reopened(machine)
    assert (kek_of(after), after.read_anchor(), after.agreement_public()) == before


# KEK


def test_the_kek_is_gone_after_its_block(backend: Backend) -> None:
    with backend.kek() as kek:
        view = kek.view
        assert any(view)
    try:
        left = bytes(view)
    except ValueError:
        return  # the view has been released
    assert not any(left)


def test_kek_blocks_nest(backend: Backend) -> None:
    with backend.kek() as outer, backend.kek() as inner:
        assert outer.view == inner.view
        assert outer is not inner


def test_an_error_inside_a_kek_block_passes_through(backend: Backend) -> None:
    before = kek_of(backend)
    with pytest.raises(ZeroDivisionError), backend.kek():
        raise ZeroDivisionError
    assert kek_of(backend) == before


# Anchor and counter


def test_at_first_there_is_no_anchor(machine: Machine, backend: Backend) -> None:
    anchor, counter = backend.read_anchor()
    assert anchor is None
    assert counter > 0
    assert reopened(machine).read_anchor() == (None, counter)


def test_an_anchor_stays_as_written_and_moves_no_counter(machine: Machine, backend: Backend) -> None:
    counter = backend.read_anchor()[1]
    backend.write_anchor(Anchor(1, bytes(32)))
    backend.write_anchor(ANCHOR)
    assert backend.read_anchor() == (ANCHOR, counter)
    assert reopened(machine).read_anchor() == (ANCHOR, counter)


def test_the_counter_goes_up_by_one_and_never_back(machine: Machine, backend: Backend) -> None:
    backend.write_anchor(ANCHOR)
    expected = backend.read_anchor()[1]
    for _start in range(3):
        for _step in range(3):
            expected += 1
            assert backend.increment() == expected
            assert backend.read_anchor() == (ANCHOR, expected)
        backend = reopened(machine)
        assert backend.read_anchor() == (ANCHOR, expected)


# Audit


def test_the_audit_value_is_the_fold_of_its_heads(machine: Machine, backend: Backend) -> None:
    expected = bytes(32)
    assert backend.read_audit() == expected
    for number in range(3):
        head = hashlib.sha256(bytes([number])).digest()
        expected = hashlib.sha256(expected + head).digest()
        assert backend.extend_audit(head) == expected
        assert backend.read_audit() == expected
    backend = reopened(machine)
    assert backend.read_audit() == expected
    expected = hashlib.sha256(expected + b"after").digest()
    assert backend.extend_audit(b"after") == expected == backend.read_audit()


def test_anchor_counter_and_audit_value_do_not_touch_each_other(backend: Backend) -> None:
    backend.write_anchor(ANCHOR)
    counter = backend.increment()
    audit = backend.extend_audit(bytes(32))
    assert backend.read_anchor() == (ANCHOR, counter)
    assert backend.read_audit() == audit


# Signatures


def verified(point: bytes, signature: bytes, message: bytes) -> bool:
    assert len(signature) == 64
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)
    try:
        key.verify(der, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def test_the_three_keys_are_three_and_stay(machine: Machine, backend: Backend) -> None:
    def points(of: Backend) -> tuple[bytes, bytes, bytes]:
        return of.attestation_public(), of.identity_public(), of.agreement_public()

    first = points(backend)
    assert len(set(first)) == 3
    for point in first:
        assert len(point) == 65
        ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point)
    assert points(reopened(machine)) == first


def test_a_message_is_signed_by_the_identity_key(machine: Machine, backend: Backend) -> None:
    for message in (b"", b"message", bytes(100_000)):
        signature = backend.sign(message)
        assert verified(backend.identity_public(), signature, message)
        assert not verified(backend.identity_public(), signature, message + b"x")
        assert not verified(backend.attestation_public(), signature, message)
    point = backend.identity_public()
    assert verified(point, reopened(machine).sign(b"after"), b"after")


def test_signatures_keep_their_length(backend: Backend) -> None:
    """One in 128 has an r or s with a leading zero, which a TPM leaves out."""
    for number in range(300 if backend.name == "memory" else 60):
        message = number.to_bytes(2, "big")
        assert verified(backend.identity_public(), backend.sign(message), message)


def test_before_the_first_extension_there_is_nothing_to_certify(backend: Backend) -> None:
    with pytest.raises(AuditEmpty):
        backend.certify_audit(b"nonce")
    backend.extend_audit(bytes(32))
    backend.certify_audit(b"nonce")


@pytest.mark.parametrize("nonce", [b"", b"n", bytes(range(NONCE_MAX))], ids=len)
def test_a_certification_names_nonce_and_audit_value(machine: Machine, backend: Backend, nonce: bytes) -> None:
    audit = backend.extend_audit(b"head")
    for start in range(2):
        agent = reopened(machine) if start else backend
        certification = agent.certify_audit(nonce)
        assert verified(agent.attestation_public(), certification.signature, certification.attested)
        assert nonce in certification.attested
        assert audit in certification.attested
        assert not verified(agent.identity_public(), certification.signature, certification.attested)
    later = reopened(machine)
    after = later.extend_audit(b"more")
    assert after in later.certify_audit(nonce).attested
    assert audit not in later.certify_audit(nonce).attested


def test_a_nonce_that_is_too_long_is_a_value_error(backend: Backend) -> None:
    backend.extend_audit(b"head")
    with pytest.raises(ValueError, match="nonce"):
        backend.certify_audit(bytes(NONCE_MAX + 1))


@pytest.mark.parametrize("machine", ["memory", "software"], indirect=True)
def test_the_form_without_a_tpm(backend: Backend) -> None:
    audit = backend.extend_audit(b"head")
    assert backend.certify_audit(b"abc").attested == b"LASW\x03abc" + audit


# Enrollment with a server


def test_only_a_tpm_has_an_endorsement_key(machine: Machine, tmp_path: Path) -> None:
    backend = machine.backend()
    before = backend.endorsement()
    backend.create()
    after = reopened(machine).endorsement()
    assert before == after
    if machine.name != "tpm":
        assert after is None
        return
    assert after is not None
    assert hashlib.sha256(after.public).hexdigest() == machine.backend().measure_hardware_id()
    assert after.certificate is None, "this TPM was not made by a manufacturer"


@pytest.mark.parametrize("nonce", [b"", b"n", bytes(range(NONCE_MAX))], ids=len)
def test_evidence_names_keys_and_nonce(machine: Machine, backend: Backend, nonce: bytes) -> None:
    for start in range(2):
        agent = reopened(machine) if start else backend
        evidence = agent.evidence(nonce)
        attester, points = agent.attestation_public(), (agent.identity_public(), agent.agreement_public())
        if isinstance(evidence, SoftwareEvidence):
            assert machine.name != "tpm"
            assert (evidence.attestation, evidence.identity, evidence.agreement) == (attester, *points)
            signed = b"LASE" + bytes([len(nonce)]) + nonce + points[0] + points[1]
            assert verified(attester, evidence.signature, signed)
            continue
        assert machine.name == "tpm"
        assert coordinates(attester) in evidence.attestation
        for certified, point in zip((evidence.identity, evidence.agreement), points, strict=True):
            assert coordinates(point) in certified.public
            assert verified(attester, certified.signature, certified.attest)
            assert name(certified) in certified.attest
            assert nonce in certified.attest


def coordinates(point: bytes) -> bytes:
    return b"\x00\x20" + point[1:33] + b"\x00\x20" + point[33:]


def name(key: CertifiedKey) -> bytes:
    return b"\x00\x0b" + hashlib.sha256(key.public).digest()


def test_evidence_differs_with_the_nonce_and_names_the_same_keys(backend: Backend) -> None:
    first, second = backend.evidence(b"first"), backend.evidence(b"second")
    assert first.attestation == second.attestation
    if isinstance(first, SoftwareEvidence):
        assert isinstance(second, SoftwareEvidence)
        assert first.signature != second.signature
    else:
        assert isinstance(second, TpmEvidence)
        assert first.identity.public == second.identity.public
        assert first.identity.attest != second.identity.attest


def test_evidence_with_a_nonce_that_is_too_long_is_a_value_error(backend: Backend) -> None:
    with pytest.raises(ValueError, match="nonce"):
        backend.evidence(bytes(NONCE_MAX + 1))


@pytest.mark.parametrize(
    ("blob", "secret"),
    [(b"", b""), (b"blob", b"secret"), (bytes(68), bytes(68)), (bytes(128), bytes(512)), (bytes(129), b""), (b"", bytes(513))],
)
def test_what_is_no_credential_is_refused_and_harms_nothing(backend: Backend, blob: bytes, secret: bytes) -> None:
    with pytest.raises(ActivationRefused if backend.name == "tpm" else NoEndorsementKey):
        backend.activate(blob, secret)
    assert backend.status().available
    assert len(kek_of(backend)) == 32


# Key agreement


def test_both_sides_agree(machine: Machine, backend: Backend) -> None:
    ours = backend.agreement_public()
    assert len(ours) == 65
    assert reopened(machine).agreement_public() == ours
    backend = reopened(machine)
    agent = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, ours)
    for _peer in range(3):
        peer = ec.generate_private_key(CURVE)
        with backend.agree(point_of(peer)) as shared:
            assert len(shared) == 32
            assert bytes(shared.view) == peer.exchange(ec.ECDH(), agent)


def test_a_shared_value_with_a_leading_zero_keeps_its_place(backend: Backend) -> None:
    """A TPM gives the coordinate without leading zeros; SP 800-56A wants the field's full length."""
    agent = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, backend.agreement_public())
    for scalar in range(1, 10_000):
        peer = ec.derive_private_key(scalar, CURVE)
        expected = peer.exchange(ec.ECDH(), agent)
        if expected[0] == 0:
            break
    assert expected[0] == 0
    with backend.agree(point_of(peer)) as shared:
        assert bytes(shared.view) == expected


BAD_POINTS = {
    "empty": b"",
    "zeros": bytes(65),
    "infinity": b"\x00",
    "not on the curve": b"\x04" + b"\x01" * 64,
    "the origin": b"\x04" + bytes(64),
    "beyond the field": b"\x04" + b"\xff" * 64,
    "too short": b"\x04" + b"\x01" * 63,
    "too long": b"\x04" + b"\x01" * 65,
    "compressed": ec.derive_private_key(5, CURVE).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint),
    "hybrid": b"\x06" + point_of(ec.derive_private_key(5, CURVE))[1:],
    "of another curve": ec.derive_private_key(5, ec.SECP256K1())
    .public_key()
    .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
}


def test_a_bad_point_is_a_value_error_and_harms_nothing(backend: Backend) -> None:
    for name, point in BAD_POINTS.items():
        try:
            backend.agree(point).close()
        except ValueError:
            continue
        pytest.fail(f"accepted a point that is {name}")
    peer = ec.generate_private_key(CURVE)
    agent = ec.EllipticCurvePublicKey.from_encoded_point(CURVE, backend.agreement_public())
    with backend.agree(point_of(peer)) as shared:
        assert bytes(shared.view) == peer.exchange(ec.ECDH(), agent)


# Random numbers, status, end


def test_random_gives_as_much_as_asked(backend: Backend) -> None:
    for size in (0, 1, 16, 32, 33, 1000, 8160, 8161, 20_000):
        assert len(backend.random(size)) == size
    long = backend.random(20_000)
    chunks = {long[start : start + 32] for start in range(0, 20_000, 32)}
    assert len(chunks) == 20_000 // 32
    assert len({backend.random(16) for _time in range(20)}) == 20


def test_the_clock_goes_on_and_needs_no_enrolment(machine: Machine) -> None:
    backend = machine.backend()
    first = backend.clock()
    backend.create()
    second = backend.clock()
    assert second.milliseconds >= first.milliseconds >= 0
    assert (second.reset_count, second.restart_count) == (first.reset_count, first.restart_count)
    assert isinstance(first.safe, bool)
    backend.close()
    assert machine.backend().clock().reset_count == first.reset_count


def test_a_machine_has_one_hardware_id(machine: Machine, backend: Backend, tmp_path: Path) -> None:
    first = backend.status().hardware_id
    assert first is not None
    assert len(bytes.fromhex(first)) == 32
    again = reopened(machine)
    assert again.status().hardware_id == first
    assert again.measure_hardware_id() == first
    other_machine = MACHINES[machine.name](tmp_path / "other")
    try:
        other = other_machine.backend()
        other.create()
        assert other.status().hardware_id not in (None, first)
    finally:
        other_machine.end()


def test_status_tells_and_never_raises(machine: Machine) -> None:
    backend = machine.backend()
    assert backend.status().available
    backend.create()
    status = backend.status()
    assert (status.name, status.available, status.state) == (machine.name, True, BackendState.AVAILABLE)
    assert status.binding == "none"
    assert backend.name == machine.name
    assert status.protects_stolen_disk is (machine.name == "tpm")
    assert status.detail
    backend.close()
    assert backend.status().name == machine.name


def test_a_closed_backend_refuses_until_it_is_opened(backend: Backend) -> None:
    before = kek_of(backend), backend.read_anchor(), backend.read_audit()
    backend.close()
    backend.close()
    for operation in NEEDS_ENROLMENT:
        assert_not_enrolled(backend, operation)
    backend.open()
    assert (kek_of(backend), backend.read_anchor(), backend.read_audit()) == before


@pytest.mark.parametrize("machine", ["memory", "tpm"], indirect=True)
def test_hardware_that_does_not_answer_is_a_typed_state(machine: Machine, backend: Backend) -> None:
    backend.write_anchor(ANCHOR)
    backend.extend_audit(b"head")
    before = kek_of(backend), backend.read_anchor(), backend.read_audit(), backend.agreement_public()
    machine.cut()
    assert not backend.status().available
    assert backend.status().state is BackendState.ABSENT
    for operation, call in NEEDS_ENROLMENT.items():
        if not operation.endswith("_public"):  # they may be known without asking
            with pytest.raises(BackendUnavailable):
                call(backend)
    with pytest.raises(BackendUnavailable):
        backend.random(16)
    assert not backend.status().available
    machine.mend()
    assert (kek_of(backend), backend.read_anchor(), backend.read_audit(), backend.agreement_public()) == before
    assert backend.status().available
    machine.cut()
    backend.close()
    with pytest.raises(BackendUnavailable):
        backend.open()
    with pytest.raises(BackendUnavailable):
        machine.backend().open()
    machine.mend()
    assert kek_of(reopened(machine)) == before[0]


@pytest.mark.parametrize("machine", ["memory", "tpm"], indirect=True)
def test_enrolment_without_hardware_is_a_typed_state_and_can_be_repeated(machine: Machine) -> None:
    machine.cut()
    with pytest.raises(BackendUnavailable):
        machine.backend().create()
    machine.mend()
    backend = machine.backend()
    backend.create()
    assert len(kek_of(backend)) == 32


# Values


def test_a_status_cannot_contradict_itself() -> None:
    assert BackendStatus("tpm", True, "", True).state is BackendState.AVAILABLE
    assert BackendStatus("tpm", False, "", True).state is BackendState.ABSENT
    assert BackendStatus("tpm", False, "", True, state=BackendState.HUNG).state is BackendState.HUNG
    with pytest.raises(ValueError, match="hung"):
        BackendStatus("tpm", True, "", True, state=BackendState.HUNG)
