"""The forms of evidence are strict, and as large as what they carry may be."""

from typing import Any

import msgspec
import pytest

from contracts.enrollment.evidence import CertifiedKey, Endorsement, SoftwareEvidence, TpmEvidence
from contracts.jose import b64encode

AREA, SIGNATURE, POINT = b64encode(bytes(90)), b64encode(bytes(64)), b64encode(bytes(65))
CERTIFIED = {"public": AREA, "attest": AREA, "signature": SIGNATURE}
FORMS: dict[Any, dict[str, Any]] = {
    Endorsement: {"public": AREA, "certificate": b64encode(bytes(1000))},
    CertifiedKey: CERTIFIED,
    TpmEvidence: {"attestation": AREA, "identity": CERTIFIED, "agreement": CERTIFIED},
    SoftwareEvidence: {"attestation": POINT, "identity": POINT, "agreement": POINT, "signature": SIGNATURE},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_goes_there_and_back(form: Any) -> None:
    value = msgspec.convert(FORMS[form], form)
    assert msgspec.json.decode(msgspec.json.encode(value), type=form) == value
    assert msgspec.to_builtins(value) == FORMS[form]


@pytest.mark.parametrize("form", FORMS)
def test_each_member_is_needed_and_no_other_is_taken(form: Any) -> None:
    content = FORMS[form]
    for member in content:
        less = {name: value for name, value in content.items() if name != member}
        if member == "certificate":
            assert msgspec.convert(less, form).certificate is None
            continue
        with pytest.raises(msgspec.ValidationError, match=member):
            msgspec.convert(less, form)
    with pytest.raises(msgspec.ValidationError, match="more"):
        msgspec.convert(content | {"more": AREA}, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", ["", "a=", "a+b/", "ä" * 90, 7, None, [], True, AREA + " " * 3], ids=repr)
def test_each_member_is_base64url(form: Any, wrong: Any) -> None:
    for member in FORMS[form]:
        if (member, wrong) != ("certificate", None):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert(FORMS[form] | {member: wrong}, form)


BOUNDS = [
    (Endorsement, "public", 1024),
    (Endorsement, "certificate", 4096),
    (CertifiedKey, "public", 1024),
    (CertifiedKey, "attest", 1024),
    (TpmEvidence, "attestation", 1024),
]


@pytest.mark.parametrize(("form", "member", "most"), BOUNDS)
def test_members_have_bounds(form: Any, member: str, most: int) -> None:
    msgspec.convert(FORMS[form] | {member: b64encode(bytes(most))}, form)
    with pytest.raises(msgspec.ValidationError, match=member):
        msgspec.convert(FORMS[form] | {member: b64encode(bytes(most + 1))}, form)


@pytest.mark.parametrize(
    ("form", "member"),
    [(CertifiedKey, "signature"), *((SoftwareEvidence, member) for member in FORMS[SoftwareEvidence])],
)
def test_points_and_signatures_have_one_length(form: Any, member: str) -> None:
    size = 64 if member == "signature" else 65
    for other in (size - 1, size + 1):
        with pytest.raises(msgspec.ValidationError, match=member):
            msgspec.convert(FORMS[form] | {member: b64encode(bytes(other))}, form)
