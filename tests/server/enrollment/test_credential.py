"""Both sides together: the server's credential in a real TPM, and that TPM's evidence before the server."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import msgspec
import pytest

from contracts.enrollment.evidence import Endorsement, SoftwareEvidence, TpmEvidence
from contracts.jose import b64encode
from hwsec.backend import Evidence
from hwsec.errors import ActivationRefused
from hwsec.software import PBKDF2_FLOOR, SoftwareBackend
from hwsec.tpm import TpmBackend
from hwsec.tpm2 import endorsement, templates
from hwsec.vault import Vault
from server.enrollment import credential, tpm_public
from server.enrollment.attestation import AttestationError, read_evidence
from server.enrollment.credential import SECRET_MAX, make_credential
from server.enrollment.endorsement import hardware_id
from server.enrollment.tpm_public import endorsement_key
from tests.hwsec.conftest import TpmMachine
from tests.server.attestationworld import AGREEMENT, AK, EK_ECC, EK_RSA, IDENTITY, NONCE, area, name, new_key

pytestmark = pytest.mark.system

t = pytest.importorskip("tpm2_pytss")
from tpm2_pytss import utils  # noqa: E402

SECRET = bytes(range(200, 232))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TpmBackend]:
    machine = TpmMachine(tmp_path_factory.mktemp("device"))
    try:
        backend = machine.backend()
        backend.create()
        yield backend
    finally:
        machine.end()


@pytest.fixture(params=["ecc", "rsa"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "rsa":
        monkeypatch.setattr(endorsement, "KINDS", endorsement.KINDS[1:])
    return str(request.param)


def public_of(device: TpmBackend) -> bytes:
    found = device.endorsement()
    assert found is not None
    return found.public


def on_the_wire(evidence: Evidence) -> dict[str, Any]:
    """As an agent sends it: each bytes value in base64url."""

    def texts(value: Any) -> Any:
        return {key: texts(inner) for key, inner in value.items()} if isinstance(value, dict) else b64encode(value)

    return {key: texts(value) for key, value in asdict(evidence).items()}


def test_both_sides_have_the_same_templates() -> None:
    assert AK + bytes(4) == templates.ATTESTATION
    assert IDENTITY + bytes(4) == templates.IDENTITY
    assert AGREEMENT + bytes(4) == templates.AGREEMENT
    assert EK_ECC + (b"\0\x20" + bytes(32)) * 2 == templates.EK_ECC
    assert EK_RSA + b"\1\0" + bytes(256) == templates.EK_RSA
    for template, area_of in (
        (tpm_public.ATTESTATION, templates.ATTESTATION),
        (tpm_public.IDENTITY, templates.IDENTITY),
        (tpm_public.AGREEMENT, templates.AGREEMENT),
        (tpm_public.ENDORSEMENT_ECC, templates.EK_ECC),
        (tpm_public.ENDORSEMENT_RSA, templates.EK_RSA),
    ):
        assert tpm_public.parse_area(area_of, "template").template == template


# Credential


def test_the_servers_credential_is_opened_by_the_tpm(device: TpmBackend, kind: str) -> None:
    public = public_of(device)
    endorsement_key(public)
    assert hardware_id(public) == device.measure_hardware_id()
    attestation = device.evidence(NONCE)
    for size in (1, 16, SECRET_MAX):
        secret = os.urandom(size)
        made = make_credential(public, attestation.attestation, secret, os.urandom)
        assert device.activate(*made) == secret
        assert secret not in made[0] + made[1] or size == 1
    assert len(made[0]) == 2 + 32 + 2 + 32
    assert len(made[1]) == {"ecc": 68, "rsa": 256}[kind]


def test_no_two_credentials_are_alike(device: TpmBackend, kind: str) -> None:
    public, attestation = public_of(device), device.evidence(NONCE).attestation
    made = [make_credential(public, attestation, SECRET, os.urandom) for _time in range(10)]
    assert len({blob for blob, _secret in made}) == len({secret for _blob, secret in made}) == 10


def test_scalars_at_the_edges_work(device: TpmBackend) -> None:
    public, attestation = public_of(device), device.evidence(NONCE).attestation
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for drawn in (0, 1, order - 2, order - 1, order, 2**320 - 1):
        made = make_credential(public, attestation, SECRET, lambda size, drawn=drawn: drawn.to_bytes(size, "big"))  # type: ignore[misc]
        assert device.activate(*made) == SECRET


def test_an_ephemeral_point_with_a_leading_zero_keeps_its_place(device: TpmBackend) -> None:
    """And a shared value likewise; one in 128 has it."""
    public, attestation = public_of(device), device.evidence(NONCE).attestation
    found = 0
    for number in range(1, 2000):
        made = make_credential(public, attestation, SECRET, lambda size, number=number: number.to_bytes(size, "big"))  # type: ignore[misc]
        if made[1][2] == 0 or made[1][36] == 0:
            assert device.activate(*made) == SECRET
            found += 1
        if found == 4:
            return
    pytest.fail("no such point")


def test_another_attestation_key_or_endorsement_key_opens_nothing(device: TpmBackend) -> None:
    public, attestation = public_of(device), device.evidence(NONCE).attestation
    for ek, ak in ((public, area(AK, new_key())), (area(EK_ECC, new_key()), attestation)):
        with pytest.raises(ActivationRefused):
            device.activate(*make_credential(ek, ak, SECRET, os.urandom))


@pytest.mark.parametrize("seed", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_the_credential_is_the_tpm_librarys(monkeypatch: pytest.MonkeyPatch, seed: bytes) -> None:
    attestation = area(AK, new_key())
    public = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(area(EK_ECC, new_key()))[0])
    ak = t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(attestation)[0])
    assert bytes(ak.get_name()) == name(attestation) == tpm_public.parse_area(attestation, "key").name
    monkeypatch.setattr(utils, "_generate_seed", lambda *_arguments: (seed, b"encrypted"))
    blob, _encrypted = utils.make_credential(public, SECRET, ak.get_name())
    assert credential._protect(seed, name(attestation), SECRET) == bytes(blob)


@pytest.mark.parametrize("head", [IDENTITY, AGREEMENT, EK_ECC])
def test_there_is_no_credential_for_a_key_that_could_lie(head: bytes) -> None:
    with pytest.raises(AttestationError):
        make_credential(area(EK_ECC, new_key()), area(head, new_key()), SECRET, os.urandom)
    if head != EK_ECC:
        with pytest.raises(AttestationError):
            make_credential(area(head, new_key()), area(AK, new_key()), SECRET, os.urandom)


@pytest.mark.parametrize("size", [0, SECRET_MAX + 1])
def test_a_credential_has_bounds(size: int) -> None:
    with pytest.raises(ValueError, match="credential"):
        make_credential(area(EK_ECC, new_key()), area(AK, new_key()), bytes(size), os.urandom)


# Evidence


def test_a_tpms_evidence_is_believed(device: TpmBackend) -> None:
    nonce = os.urandom(32)
    content = on_the_wire(device.evidence(nonce))
    msgspec.convert(content, TpmEvidence)
    found = read_evidence(content, nonce, "tpm")
    assert (found.attestation, found.identity, found.agreement) == (
        device.attestation_public(),
        device.identity_public(),
        device.agreement_public(),
    )
    assert found.attestation_name == b"\0\x0b" + hashlib.sha256(device.evidence(nonce).attestation).digest()
    with pytest.raises(AttestationError, match="nonce"):
        read_evidence(content, os.urandom(32), "tpm")


def test_two_devices_cannot_share_evidence(device: TpmBackend, tmp_path: Any) -> None:
    machine = TpmMachine(tmp_path / "second")
    try:
        second = machine.backend()
        second.create()
        theirs = on_the_wire(second.evidence(NONCE))
    finally:
        machine.end()
    ours = on_the_wire(device.evidence(NONCE))
    assert read_evidence(theirs, NONCE, "tpm")
    for part in ("attestation", "identity", "agreement"):
        with pytest.raises(AttestationError, match="not signed by the attestation key"):
            read_evidence(ours | {part: theirs[part]}, NONCE, "tpm")


def test_a_tpm_will_not_sign_what_looks_like_evidence(device: TpmBackend) -> None:
    """The identity key signs anything, so it must not be taken for an attestation key."""
    forged = on_the_wire(device.evidence(NONCE))
    forged["identity"]["signature"] = b64encode(device.sign(device.evidence(NONCE).identity.attest))
    with pytest.raises(AttestationError, match="not signed by the attestation key"):
        read_evidence(forged, NONCE, "tpm")
    with pytest.raises(AttestationError, match="restricted"):
        read_evidence(forged | {"attestation": forged["identity"]["public"]}, NONCE, "tpm")


def test_software_evidence_is_believed_as_software_only(tmp_path: Any, device: TpmBackend) -> None:
    vault = Vault()
    backend = SoftwareBackend(tmp_path, b"machine", vault, PBKDF2_FLOOR)
    backend.create()
    content = on_the_wire(backend.evidence(NONCE))
    msgspec.convert(content, SoftwareEvidence)
    found = read_evidence(content, NONCE, "software")
    assert (found.attestation, found.identity, found.agreement, found.attestation_name) == (
        backend.attestation_public(),
        backend.identity_public(),
        backend.agreement_public(),
        None,
    )
    with pytest.raises(AttestationError):
        read_evidence(content, NONCE, "tpm")
    with pytest.raises(AttestationError):
        read_evidence(on_the_wire(device.evidence(NONCE)), NONCE, "software")
    vault.close()


def test_an_endorsement_fits_the_wire(device: TpmBackend, kind: str) -> None:
    found = device.endorsement()
    assert found is not None
    msgspec.convert({"public": b64encode(found.public), "certificate": b64encode(bytes(4096))}, Endorsement)
    msgspec.convert({"public": b64encode(found.public), "certificate": None}, Endorsement)
