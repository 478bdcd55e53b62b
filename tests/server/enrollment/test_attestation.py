"""The server believes keys only if all of what is shown for them holds."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from contracts.jose import b64decode, b64encode
from server.enrollment.attestation import AttestationError, read_evidence
from server.enrollment.endorsement import hardware_id
from server.enrollment.tpm_public import AREA_MAX, ATTESTATION, ecc_key, endorsement_key, parse_area, require_template
from tests.server.attestationworld import (
    AGREEMENT,
    AK,
    EK_ECC,
    EK_RSA,
    IDENTITY,
    NONCE,
    PaperTpm,
    area,
    attest,
    flipped,
    name,
    new_key,
    point,
    rsa_area,
    sign,
    sized,
)

TPM = PaperTpm()
FIXED_PARENT, ORIGIN, WITH_AUTH, BY_POLICY, NO_DA, SIGN = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 10, 1 << 18


def refuse(evidence: Any, match: str | None = None, kind: Literal["tpm", "software"] = "tpm", nonce: bytes = NONCE) -> None:
    with pytest.raises(AttestationError, match=match):
        read_evidence(evidence, nonce, kind)


# TPM


def test_what_holds_is_believed() -> None:
    found = read_evidence(TPM.evidence(), NONCE, "tpm")
    assert (found.attestation, found.identity, found.agreement) == (
        point(TPM.attestation),
        point(TPM.identity),
        point(TPM.agreement),
    )
    assert found.attestation_name == name(TPM.area("attestation"))


def test_a_tpm_that_leaves_leading_zeros_out_is_one_too() -> None:
    key = next(key for key in iter(new_key, None) if point(key)[1] == 0)
    device = PaperTpm(identity=key)
    short = IDENTITY + sized(point(key)[2:33]) + sized(point(key)[33:])
    evidence = device.evidence()
    evidence["identity"] = device.certified(short, attest(name(short)))
    assert read_evidence(evidence, NONCE, "tpm").identity == point(key)


@pytest.mark.parametrize("which", ["attestation", "identity", "agreement"])
@pytest.mark.parametrize("bit", range(32))
def test_each_attribute_counts(which: str, bit: int) -> None:
    device = PaperTpm()
    head = bytearray(device.heads[which])
    head[4:8] = (int.from_bytes(head[4:8], "big") ^ 1 << bit).to_bytes(4, "big")
    device.heads[which] = bytes(head)
    refuse(device.evidence(), "attribute")


@pytest.mark.parametrize("which", ["attestation", "identity", "agreement"])
def test_each_byte_before_the_key_counts(which: str) -> None:
    for place in range(len(AK)):
        for bit in (0x01, 0x10, 0x80):
            device = PaperTpm(TPM.attestation, TPM.identity, TPM.agreement)
            device.heads[which] = flipped(device.heads[which], place, bit)
            refuse(device.evidence())


HEADS = {
    "an attestation key that is not restricted": ("attestation", IDENTITY, "restricted"),
    "an attestation key that decrypts": ("attestation", AGREEMENT, "restricted, sign"),
    "a restricted identity key": ("identity", AK, "restricted"),
    "an identity key that decrypts": ("identity", AGREEMENT, "sign"),
    "an agreement key that signs": ("agreement", IDENTITY, "decrypt"),
    "an agreement key with a policy": (
        "agreement",
        AGREEMENT[:8] + sized(bytes(32)) + AGREEMENT[10:],
        "policy",
    ),
    "an identity key with another curve": ("identity", IDENTITY[:-4] + b"\0\4\0\x10", "curve"),
    "an identity key with another hash": ("identity", IDENTITY[:-5] + b"\x0c" + IDENTITY[-4:], "scheme"),
    "an identity key without a scheme": ("identity", IDENTITY[:-8] + b"\0\x10" + IDENTITY[-4:], "scheme"),
    "an identity key with a key derivation": ("identity", IDENTITY[:-2] + b"\0\x20\0\x0b", "derivation"),
    "an identity key of another type": ("identity", b"\0\x08" + IDENTITY[2:], "neither"),
    "an attestation key with a cipher": (
        "attestation",
        AK[:10] + bytes.fromhex("000600800043") + AK[12:],
        "symmetric",
    ),
    "an attestation key with another name algorithm": ("attestation", AK[:3] + b"\x0c" + AK[4:], "name algorithm"),
    "an attestation key that is an endorsement key": ("attestation", EK_ECC, "sign"),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_key_of_another_template_is_refused(case: str) -> None:
    which, head, reason = HEADS[case]
    device = PaperTpm()
    device.heads[which] = head
    refuse(device.evidence(), reason)


def test_the_reason_names_key_and_attribute() -> None:
    device = PaperTpm()
    device.heads["identity"] = (
        IDENTITY[:4] + (FIXED_PARENT | ORIGIN | WITH_AUTH | NO_DA | SIGN).to_bytes(4, "big") + IDENTITY[8:]
    )
    refuse(device.evidence(), "^the identity key lacks the attribute fixedTPM$")
    device.heads["identity"] = IDENTITY[:4] + (0x00040472 | BY_POLICY | 1 << 30).to_bytes(4, "big") + IDENTITY[8:]
    refuse(device.evidence(), "^the identity key has the attribute adminWithPolicy, 0x40000000, which it must not have$")


def other(evidence: dict[str, Any], which: str, **changed: str) -> dict[str, Any]:
    result = copy.deepcopy(evidence)
    result[which] |= changed
    return result


ATTESTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another nonce": (lambda public: attest(name(public), flipped(NONCE, 31)), "nonce"),
    "no nonce": (lambda public: attest(name(public), b""), "nonce"),
    "a longer nonce": (lambda public: attest(name(public), NONCE + b"\0"), "nonce"),
    "a shorter nonce": (lambda public: attest(name(public), NONCE[:-1]), "nonce"),
    "another key": (lambda public: attest(name(area(IDENTITY, new_key()))), "another key"),
    "no key": (lambda public: attest(b""), "is malformed"),
    "a name of another algorithm": (lambda public: attest(b"\0\x0c" + hashlib.sha256(public).digest()), "another key"),
    "a handle for a name": (lambda public: attest(b"\x81\0\0\1"), "is malformed"),
    "another magic number": (lambda public: attest(name(public), magic=b"LASE"), "was not generated by a TPM"),
    "a quote": (lambda public: attest(name(public), kind=b"\x80\x18"), "does not certify a key"),
    "an attestation of NV": (lambda public: attest(name(public), kind=b"\x80\x14"), "does not certify a key"),
    "more behind it": (lambda public: attest(name(public)) + b"\0", "has extra bytes at its end"),
    "less": (lambda public: attest(name(public))[:-1], "is truncated"),
    "nothing": (lambda public: b"\xff", "is truncated"),
    "a clock that is neither safe nor not": (lambda public: attest(name(public), safe=b"\2"), "is malformed"),
    "no signer": (lambda public: attest(name(public), signer=b""), "is malformed"),
    "no qualified name": (lambda public: attest(name(public), qualified=b""), "is malformed"),
    "too much": (lambda public: attest(name(public)) + bytes(1024), "malformed evidence"),
}


@pytest.mark.parametrize("which", ["identity", "agreement"])
@pytest.mark.parametrize("case", ATTESTS)
def test_an_attestation_about_something_else_is_refused(which: str, case: str) -> None:
    """All of them signed by the attestation key, as it would not in a TPM."""
    make, reason = ATTESTS[case]
    evidence = TPM.evidence()
    evidence[which] = TPM.certified(TPM.area(which), make(TPM.area(which)))
    refuse(evidence, reason)


@pytest.mark.parametrize("which", ["identity", "agreement"])
def test_a_signature_of_another_key_is_refused(which: str) -> None:
    attested = attest(name(TPM.area(which)))
    for signer in (new_key(), TPM.identity, TPM.agreement):
        evidence = TPM.evidence()
        evidence[which] = TPM.certified(TPM.area(which), attested, signer)
        refuse(evidence, "not signed by the attestation key")


@pytest.mark.parametrize("which", ["identity", "agreement"])
def test_every_byte_of_what_is_certified_counts(which: str) -> None:
    evidence = TPM.evidence()
    for part, text in evidence[which].items():
        data = b64decode(text)
        for place in range(len(data)):
            refuse(other(evidence, which, **{part: b64encode(flipped(data, place))}))
        refuse(other(evidence, which, **{part: b64encode(data[:-1])}))
        refuse(other(evidence, which, **{part: b64encode(data + b"\0")}))


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64, bytes(63) + b"\1"], ids=["zeros", "ones", "r is zero"])
def test_odd_signatures_are_refused(signature: bytes) -> None:
    refuse(other(TPM.evidence(), "identity", signature=b64encode(signature)), "not signed")


def test_keys_cannot_be_exchanged_for_each_other() -> None:
    evidence = TPM.evidence()
    refuse(evidence | {"identity": evidence["agreement"]}, "identity key")
    refuse(evidence | {"identity": evidence["agreement"], "agreement": evidence["identity"]})
    refuse(evidence | {"attestation": b64encode(TPM.area("identity"))}, "attestation key")
    refuse(evidence | {"attestation": PaperTpm().evidence()["attestation"]}, "not signed")


def test_one_key_in_two_places_is_refused() -> None:
    key = new_key()
    refuse(PaperTpm(identity=key, agreement=key).evidence(), "must be three")
    refuse(PaperTpm(attestation=key, identity=key).evidence(), "must be three")
    refuse(PaperTpm(identity=key, agreement=key).software_evidence(), "must be three", "software")


def test_an_attestation_is_good_for_its_nonce_only() -> None:
    refuse(TPM.evidence(), "nonce", nonce=bytes(32))
    refuse(TPM.evidence(bytes(32)), "nonce")


@pytest.mark.parametrize("size", [0, 15, 33])
def test_a_server_that_forgets_its_nonce_is_told(size: int) -> None:
    for kind, evidence in (("tpm", TPM.evidence(bytes(size))), ("software", TPM.software_evidence(bytes(size)))):
        with pytest.raises(ValueError, match="nonce"):
            read_evidence(evidence, bytes(size), kind)  # type: ignore[arg-type]


# Software


def test_what_software_names_is_believed() -> None:
    found = read_evidence(TPM.software_evidence(), NONCE, "software")
    assert (found.attestation, found.identity, found.agreement, found.attestation_name) == (
        point(TPM.attestation),
        point(TPM.identity),
        point(TPM.agreement),
        None,
    )


def test_every_byte_of_software_evidence_counts() -> None:
    evidence = TPM.software_evidence()
    for part, text in evidence.items():
        data = b64decode(text)
        for place in range(len(data)):
            refuse(evidence | {part: b64encode(flipped(data, place))}, kind="software")
        refuse(evidence | {part: b64encode(data[:-1])}, kind="software")
        refuse(evidence | {part: b64encode(data + b"\0")}, kind="software")


def test_software_evidence_is_good_for_its_nonce_and_order_only() -> None:
    evidence = TPM.software_evidence()
    refuse(evidence, "not signed", "software", bytes(32))
    refuse(evidence | {"identity": evidence["agreement"], "agreement": evidence["identity"]}, "not signed", "software")
    shifted = NONCE[:-1]
    refuse(TPM.software_evidence(shifted), "not signed", "software")


@pytest.mark.parametrize("form", [0, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("which", ["attestation", "identity", "agreement"])
def test_a_point_has_one_form(which: str, form: int) -> None:
    """Signed as it stands there, so that nothing but the form is wrong."""
    points = {each: point(getattr(TPM, each)) for each in ("attestation", "identity", "agreement")}
    points[which] = bytes([form]) + points[which][1:]
    signature = sign(TPM.attestation, b"LASE" + bytes([32]) + NONCE + points["identity"] + points["agreement"])
    evidence = {each: b64encode(value) for each, value in points.items()} | {"signature": b64encode(signature)}
    refuse(evidence, f"the {which} key is not an uncompressed point", "software")


def test_other_things_that_a_key_has_signed_are_no_evidence() -> None:
    """The audit value's certification begins with other letters."""
    identity, agreement = point(TPM.identity), point(TPM.agreement)
    signed = b"LASW" + bytes([32]) + NONCE + identity + agreement
    evidence = TPM.software_evidence() | {"signature": b64encode(sign(TPM.attestation, signed))}
    refuse(evidence, "not signed", "software")


def test_one_kind_is_not_taken_for_the_other() -> None:
    refuse(TPM.software_evidence(), "malformed evidence for tpm", "tpm")
    refuse(TPM.evidence(), "malformed evidence for software", "software")
    software_key = TPM.software_evidence()
    refuse(TPM.evidence() | {"attestation": software_key["attestation"]}, kind="tpm")


# Endorsement keys


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_endorsement_keys_of_the_two_templates_are_taken(rsa_key: rsa.RSAPrivateKey) -> None:
    for public in (area(EK_ECC, new_key()), rsa_area(rsa_key)):
        endorsement_key(public)
        assert hardware_id(public) == hashlib.sha256(public).hexdigest()


def endorsement_errors(rsa_key: rsa.RSAPrivateKey) -> Iterator[tuple[str, bytes]]:
    ecc = area(EK_ECC, new_key())
    for head, whole in ((EK_ECC, ecc), (EK_RSA, rsa_area(rsa_key))):
        for place in range(len(head) + 2):
            for bit in (0x01, 0x04, 0x40):
                yield f"byte {place}", flipped(whole, place, bit)
        for size in range(len(whole)):
            yield "cut", whole[:size]
        yield "longer", whole + b"\0"
    key = next(key for key in iter(new_key, None) if point(key)[1] == 0)
    yield "written in another form", EK_ECC + sized(point(key)[2:33]) + sized(point(key)[33:])
    yield "a zero more", EK_ECC + sized(b"\0" + point(new_key())[1:33]) + sized(point(new_key())[33:])
    yield "not on the curve", EK_ECC + sized(bytes(31) + b"\1") + sized(bytes(31) + b"\1")
    yield "beyond the field", EK_ECC + sized(b"\xff" * 32) * 2
    yield "zero", EK_ECC + sized(bytes(32)) * 2
    modulus = rsa_key.public_key().public_numbers().n
    yield "even", EK_RSA + sized((modulus - 1).to_bytes(256, "big"))
    yield "small", EK_RSA + sized((modulus >> 1 | 1).to_bytes(256, "big"))
    yield "a zero modulus", EK_RSA + sized(bytes(256))
    yield "with an exponent", EK_RSA[:-4] + b"\0\1\0\1" + sized(modulus.to_bytes(256, "big"))
    for head in (AK, IDENTITY, AGREEMENT):
        yield "another key of the TPM", area(head, new_key())
    yield "the high range's template", area(flipped(EK_ECC, 7, 0x40), new_key())


def test_an_area_has_a_bound() -> None:
    with pytest.raises(AttestationError, match=r"has 1025 bytes; the limit is 1024$"):
        endorsement_key(EK_ECC + bytes(AREA_MAX + 1 - len(EK_ECC)))


def test_all_else_is_no_endorsement_key(rsa_key: rsa.RSAPrivateKey) -> None:
    count = 0
    for case, public in endorsement_errors(rsa_key):
        count += 1
        for check in (endorsement_key, hardware_id):
            try:
                check(public)
            except AttestationError:
                continue
            pytest.fail(f"accepted: {case}")
    assert count > 500


# Garbage


@given(st.binary(max_size=AREA_MAX + 10), st.sampled_from([b"", AK, IDENTITY, EK_ECC, EK_RSA, AK[:20], EK_RSA[:50]]))
def test_garbage_for_an_area_is_a_typed_error(data: bytes, before: bytes) -> None:
    def attestation_key(public: bytes) -> None:
        read = parse_area(public, "key")
        require_template(read, ATTESTATION, "key")
        ecc_key(read, "key")

    for check in (endorsement_key, attestation_key):
        with pytest.raises(AttestationError) as caught:
            check(before + data)
        assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=90) | st.binary(max_size=200).map(b64encode),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(["tpm", "software"]), st.data())
def test_garbage_for_evidence_is_a_typed_error(kind: Literal["tpm", "software"], data: st.DataObject) -> None:
    evidence: dict[str, Any] = TPM.evidence() if kind == "tpm" else dict(TPM.software_evidence())
    where = data.draw(st.sampled_from(sorted(evidence)))
    if isinstance(evidence[where], dict) and data.draw(st.booleans()):
        evidence[where][data.draw(st.sampled_from(sorted(evidence[where])))] = data.draw(json_values)
    else:
        evidence[where] = data.draw(json_values)
    refuse(evidence, kind=kind)
    refuse(data.draw(st.dictionaries(st.text(max_size=10), json_values, max_size=3)), kind=kind)


@given(st.binary(max_size=1024))
def test_garbage_that_the_attestation_key_has_signed_is_a_typed_error(data: bytes) -> None:
    for attested in (data, b"\xffTCG\x80\x17" + data[:1000]):
        if attested:
            refuse(other(TPM.evidence(), "identity", **TPM.certified(TPM.area("identity"), attested)))
