"""Policies and signed policies as values; that a TPM agrees is shown in test_tpm_policy.py."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hwsec.errors import PcrMismatch, PcrUninitialized
from hwsec.nv.layout import NV_BASE
from hwsec.pcr.files import read_policies
from hwsec.pcr.policy import (
    MAX_NUMBER,
    MAX_POLICY_BYTES,
    NO_BINDING,
    Binding,
    SignedPolicy,
    check_initialized,
    choose_policy,
    encode_policy,
    kek_policy,
    parse_policy,
    pcr_selection,
    policy_counter_name,
    policy_key_from_pem,
    sign_pcr_policy,
)

VENDOR = ec.derive_private_key(7, ec.SECP256R1())
KEY = VENDOR.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
OTHER = ec.derive_private_key(8, ec.SECP256R1())
BINDING = Binding("custom", (0, 7), KEY)


def value(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


NOW = {0: value("firmware"), 7: value("secure boot")}


def signed(values: dict[int, bytes] = NOW, number: int = 5, key: ec.EllipticCurvePrivateKey = VENDOR) -> SignedPolicy:
    return sign_pcr_policy(key, values, number)


def chosen(policies: list[SignedPolicy], values: dict[int, bytes] = NOW, counter: int = 1) -> SignedPolicy:
    return choose_policy(policies, BINDING, values, counter, NV_BASE)


# Digests


def test_the_policy_without_a_binding_is_policy_auth_value_alone() -> None:
    """As `tpm2_policyauthvalue` prints it."""
    assert kek_policy(NO_BINDING).hex() == "8fcd2169ab92694e0c633f1ab772842b8241bbc20288981fc7ac1eddc1fddb0e"


def test_the_policy_with_a_binding_names_the_key_and_no_value() -> None:
    assert kek_policy(BINDING) == kek_policy(Binding("custom", (3,), KEY))
    other = OTHER.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert kek_policy(Binding("custom", (0, 7), other)) != kek_policy(BINDING) != kek_policy(NO_BINDING)


def test_a_selection_is_marshalled_as_part_2_says() -> None:
    assert pcr_selection([0, 7]).hex() == "00000001000b03810000"
    assert pcr_selection([23, 8]).hex() == "00000001000b03000180"


def test_the_counters_name_depends_on_its_place_only() -> None:
    assert policy_counter_name() == policy_counter_name(NV_BASE) != policy_counter_name(NV_BASE + 16)
    assert len(policy_counter_name()) == 34


@pytest.mark.parametrize(
    "change",
    [
        lambda p: replace(p, number=p.number + 1),
        lambda p: replace(p, nv_base=p.nv_base + 16),
        lambda p: replace(p, pcrs=((0, value("x")), p.pcrs[1])),
        lambda p: replace(p, pcrs=p.pcrs[:1]),
        lambda p: replace(p, pcrs=((0, p.pcrs[1][1]), (7, p.pcrs[0][1]))),
        lambda p: replace(p, signature=bytes(64)),
        lambda p: replace(p, signature=p.signature[32:] + p.signature[:32]),
    ],
)
def test_the_signature_covers_all_of_a_policy(change: Callable[[SignedPolicy], SignedPolicy]) -> None:
    policy = signed()
    assert policy.is_signed_by(KEY)
    assert not change(policy).is_signed_by(KEY)


@pytest.mark.parametrize(
    ("values", "number", "nv_base"),
    [
        ({}, 1, NV_BASE),
        ({24: bytes(32)}, 1, NV_BASE),
        ({-1: bytes(32)}, 1, NV_BASE),
        ({0: bytes(31)}, 1, NV_BASE),
        (NOW, 0, NV_BASE),
        (NOW, MAX_NUMBER + 1, NV_BASE),
        (NOW, 1, 0x81000000),
    ],
)
def test_nonsense_is_not_signed(values: dict[int, bytes], number: int, nv_base: int) -> None:
    with pytest.raises(ValueError):
        sign_pcr_policy(VENDOR, values, number, nv_base)


def test_a_key_on_another_curve_signs_nothing() -> None:
    with pytest.raises(ValueError, match="P-256"):
        sign_pcr_policy(ec.generate_private_key(ec.SECP384R1()), NOW, 1)


# Bindings


@pytest.mark.parametrize(
    "make",
    [
        lambda: Binding("none", (7,)),
        lambda: Binding("none", (), KEY),
        lambda: Binding("secure-boot"),
        lambda: Binding("secure-boot", (7, 8), KEY),
        lambda: Binding("custom", (), KEY),
        lambda: Binding("custom", (7,)),
        lambda: Binding("custom", (7, 0), KEY),
        lambda: Binding("custom", (7, 7), KEY),
        lambda: Binding("custom", (24,), KEY),
        lambda: Binding("custom", (-1,), KEY),
        lambda: Binding("custom", (7,), KEY[:-1]),
        lambda: Binding("custom", (7,), b"\x04" + bytes(64)),
        lambda: Binding("custom", (7,), b"\x02" + KEY[1:33]),
        lambda: Binding("all", (7,), KEY),
    ],
)
def test_a_binding_that_contradicts_itself_is_refused(make: Callable[[], Binding]) -> None:
    with pytest.raises(ValueError):
        make()


def test_secure_boot_means_pcr_7() -> None:
    assert Binding("secure-boot", (), KEY).pcrs == (7,) == Binding("secure-boot", (7,), KEY).pcrs


def test_the_policy_key_comes_from_a_pem_file() -> None:
    def pem(key: Any) -> bytes:
        return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    assert policy_key_from_pem(pem(VENDOR.public_key())) == KEY
    for bad in (pem(ec.generate_private_key(ec.SECP384R1()).public_key()), b"", b"text"):
        with pytest.raises(ValueError):
            policy_key_from_pem(bad)


# PCRs that prove nothing


@pytest.mark.parametrize("blank", [bytes(32), b"\xff" * 32])
def test_a_blank_pcr_is_uninitialized(blank: bytes) -> None:
    with pytest.raises(PcrUninitialized, match="PCR 7 "):
        check_initialized(BINDING, {**NOW, 7: blank})
    check_initialized(BINDING, NOW)
    check_initialized(NO_BINDING, {})


def test_a_missing_bank_is_uninitialized() -> None:
    with pytest.raises(PcrUninitialized, match="bank"):
        check_initialized(BINDING, {0: NOW[0]})


def test_a_lone_separator_is_no_secure_boot() -> None:
    separator = hashlib.sha256(bytes(32) + hashlib.sha256(bytes(4)).digest()).digest()
    with pytest.raises(PcrUninitialized, match="separator"):
        check_initialized(Binding("secure-boot", (), KEY), {7: separator})
    check_initialized(BINDING, {**NOW, 7: separator})


# Which policy fits


def test_the_highest_number_that_fits_is_chosen() -> None:
    elsewhere = signed({0: value("x"), 7: value("y")}, number=9)
    assert chosen([signed(number=4), elsewhere, signed(number=6), signed(number=5)]).number == 6


def test_a_number_equal_to_the_counter_is_still_valid() -> None:
    assert chosen([signed(number=5)], counter=5).number == 5
    with pytest.raises(PcrMismatch, match="revoked"):
        chosen([signed(number=5)], counter=6)


def test_what_differs_is_named_against_the_nearest_policy() -> None:
    near, far = signed({**NOW, 7: value("x")}), signed({0: value("x"), 7: value("y")})
    with pytest.raises(PcrMismatch, match=r"^PCR 7 has"):
        chosen([far, near])
    with pytest.raises(PcrMismatch, match=r"^PCR 0, 7 has"):
        chosen([far])


@pytest.mark.parametrize(
    "policies",
    [
        [],
        [signed(key=OTHER)],
        [sign_pcr_policy(VENDOR, NOW, 5, NV_BASE + 16)],
        [signed({0: NOW[0]})],
        [signed({**NOW, 8: value("x")})],
        [replace(signed(), number=99)],
    ],
)
def test_policies_for_something_else_are_no_policies(policies: list[SignedPolicy]) -> None:
    with pytest.raises(PcrMismatch, match="no policy for PCR 0, 7"):
        chosen(policies)


# Files


@given(
    pcrs=st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), min_size=1),
    number=st.integers(1, MAX_NUMBER),
    nv_base=st.integers(0x01000000, 0x01FFFFF0),
    signature=st.binary(min_size=64, max_size=64),
)
def test_a_policy_comes_back_from_its_file(pcrs: dict[int, bytes], number: int, nv_base: int, signature: bytes) -> None:
    policy = SignedPolicy(tuple(sorted(pcrs.items())), number, nv_base, signature)
    data = encode_policy(policy)
    assert parse_policy(data) == policy
    assert len(data) <= MAX_POLICY_BYTES


@given(st.binary(max_size=300))
def test_other_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_policy(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.update(extra=1),
        lambda f: f.pop("number"),
        lambda f: f.update(number="5"),
        lambda f: f.update(number=0),
        lambda f: f.update(number=5.0),
        lambda f: f.update(number=2**64),
        lambda f: f.update(format="license-agent pcr policy 2"),
        lambda f: f.update(nv_base=0),
        lambda f: f.update(pcrs={}),
        lambda f: f.update(pcrs={"07": f["pcrs"]["7"]}),
        lambda f: f.update(pcrs={"24": f["pcrs"]["7"]}),
        lambda f: f.update(pcrs={"-1": f["pcrs"]["7"]}),
        lambda f: f.update(pcrs={"seven": f["pcrs"]["7"]}),
        lambda f: f["pcrs"].update({"7": f["pcrs"]["7"].upper()}),
        lambda f: f["pcrs"].update({"7": f["pcrs"]["7"] + "\n"}),
        lambda f: f["pcrs"].update({"7": "00"}),
        lambda f: f.update(signature="00" * 63),
        lambda f: f.update(signature="zz" * 64),
    ],
)
def test_a_file_is_taken_exactly_or_not_at_all(change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(encode_policy(signed()))
    change(content)
    with pytest.raises(ValueError):
        parse_policy(json.dumps(content).encode())


def test_a_file_that_is_too_long_or_too_deep_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        parse_policy(encode_policy(signed()) + b" " * MAX_POLICY_BYTES)
    with pytest.raises(ValueError):
        parse_policy(b"[" * 10_000)


def test_the_directory_gives_policies_and_names_what_is_none(tmp_path: Path) -> None:
    assert read_policies(None).policies == read_policies(tmp_path / "none").policies == ()
    (tmp_path / "b.json").write_bytes(encode_policy(signed(number=2)))
    (tmp_path / "a.json").write_bytes(encode_policy(signed(number=1)))
    (tmp_path / "bad.json").write_bytes(b"{}")
    (tmp_path / "long.json").write_bytes(b" " * 10 * MAX_POLICY_BYTES)
    (tmp_path / "directory.json").mkdir()
    (tmp_path / ".a.json.new").write_bytes(b"half a fi")
    found = read_policies(tmp_path)
    assert [policy.number for policy in found.policies] == [1, 2]
    assert [Path(text.split(": ")[0].split(" cannot")[0]).name for text in found.passed_over] == [
        "bad.json",
        "directory.json",
        "long.json",
    ]


def test_a_path_that_is_no_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert read_policies(tmp_path / "file").passed_over
