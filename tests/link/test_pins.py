"""Chains, pins, hosts and times: who is taken for the server."""

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ipc.linkmessages import FailCode
from link.pins import MAX_CHAIN, PeerRefused, is_host, judge, parse_pins
from tests.support.pki import CLIENT, DAY, NOW, SERVER, Entity, make

HOST = "license.example"
ROOT = make("root", authority=True, ends=NOW + 3650 * DAY)
INTER = make("intermediate", ROOT, authority=True)
LEAF = make("server", INTER, hosts=[HOST, "127.0.0.1", "::1"], usage=SERVER)
OTHER = make("other", authority=True)


def verdict(entity: Entity, *pinned: Entity, host: str = HOST, time: int = NOW, chain: list[bytes] | None = None) -> Any:
    """None, or the code of the refusal."""
    try:
        judge(entity.der_chain if chain is None else chain, parse_pins(one.pin for one in pinned), host, time)
    except PeerRefused as refused:
        assert refused.text and "PRIVATE" not in refused.text
        return refused.code
    return None


@pytest.mark.parametrize("pinned", [ROOT, INTER, LEAF], ids=["root", "intermediate", "leaf"])
def test_any_certificate_of_the_chain_may_be_the_pinned_one(pinned: Entity) -> None:
    assert verdict(LEAF, pinned) is None
    assert verdict(LEAF, OTHER, pinned) is None
    assert verdict(LEAF, OTHER) is FailCode.PIN_MISMATCH


@pytest.mark.parametrize("pinned", [ROOT, INTER, LEAF], ids=["root", "intermediate", "leaf"])
def test_host_and_time_hold_whatever_is_pinned(pinned: Entity) -> None:
    for host in ("127.0.0.1", "::1", HOST.upper()):
        assert verdict(LEAF, pinned, host=host) is None
    for host in ("127.0.0.2", "example", "x.license.example", "::2"):
        assert verdict(LEAF, pinned, host=host) is FailCode.TLS
    for time, code in (
        (NOW - 30 * DAY, None),
        (NOW - 30 * DAY - 1, FailCode.TLS),
        (NOW + 30 * DAY, None),
        (NOW + 30 * DAY + 1, FailCode.TLS),
    ):
        assert verdict(LEAF, pinned, time=time) is code


def test_a_name_with_a_star_is_for_one_label() -> None:
    star = make("server", INTER, hosts=["*.license.example"], usage=SERVER)
    assert verdict(star, ROOT, host="a.license.example") is None
    assert verdict(star, ROOT, host="a.b.license.example") is FailCode.TLS
    assert verdict(star, ROOT) is FailCode.TLS


def test_the_common_name_is_no_host() -> None:
    assert verdict(make(HOST, INTER, usage=SERVER), ROOT) is FailCode.TLS
    bare = make(HOST)
    assert verdict(bare, bare) is FailCode.TLS


def test_a_client_s_certificate_is_no_server_s() -> None:
    assert verdict(make("agent", INTER, hosts=[HOST], usage=CLIENT), ROOT) is FailCode.TLS


def test_a_self_signed_certificate_may_be_pinned_alone() -> None:
    alone = make("server", hosts=[HOST])
    authority = make("server", hosts=[HOST], authority=True)
    for entity in (alone, authority):
        assert verdict(entity, entity) is None
        assert verdict(entity, entity, time=NOW + 31 * DAY) is FailCode.TLS
        assert verdict(entity, entity, host="other.example") is FailCode.TLS
        assert verdict(entity, ROOT) is FailCode.PIN_MISMATCH


def test_a_shown_root_vouches_for_nobody_else() -> None:
    stranger = make("server", make("i", OTHER, authority=True), hosts=[HOST], usage=SERVER)
    shown = [stranger.der_chain[0], *ROOT.der_chain]
    assert verdict(stranger, ROOT, chain=shown) is FailCode.TLS
    assert verdict(stranger, ROOT, chain=[*stranger.der_chain, *LEAF.der_chain]) is FailCode.TLS


def test_a_leaf_issues_nothing_though_its_key_is_pinned() -> None:
    child = make("server", LEAF, hosts=[HOST], usage=SERVER)
    assert verdict(child, LEAF) is FailCode.TLS
    assert verdict(child, ROOT) is FailCode.TLS


def test_another_certificate_of_the_pinned_key_is_as_good() -> None:
    # The root's certificate is renewed with its old key.
    renewed = make("root", authority=True, key=ROOT.key, begins=NOW, ends=NOW + 7300 * DAY)
    chain = [*LEAF.der_chain[:2], renewed.certificate.public_bytes(Encoding.DER)]
    assert verdict(LEAF, ROOT, chain=chain) is None


def test_a_missing_intermediate_or_root_is_refused() -> None:
    assert verdict(LEAF, ROOT, chain=[LEAF.der_chain[0], LEAF.der_chain[2]]) is FailCode.TLS
    assert verdict(LEAF, ROOT, chain=LEAF.der_chain[:2]) is FailCode.PIN_MISMATCH
    assert verdict(LEAF, ROOT, chain=[]) is FailCode.TLS


def test_the_order_above_the_leaf_and_surplus_certificates_have_no_meaning() -> None:
    assert verdict(LEAF, ROOT, chain=[LEAF.der_chain[0], *LEAF.der_chain[:0:-1], *OTHER.der_chain]) is None


def test_a_chain_is_bounded_and_each_certificate_is_read() -> None:
    assert verdict(LEAF, ROOT, chain=[*LEAF.der_chain, *OTHER.der_chain * (MAX_CHAIN - 3)]) is None
    assert verdict(LEAF, ROOT, chain=[*LEAF.der_chain, *OTHER.der_chain * (MAX_CHAIN - 2)]) is FailCode.TLS
    assert verdict(LEAF, ROOT, chain=[*LEAF.der_chain, b"\x30\x03\x02\x01\x00"]) is FailCode.TLS


@given(st.integers(0, 1), st.integers(0, 10**6), st.integers(1, 255))
def test_no_changed_byte_of_what_is_signed_is_passed_over(which: int, place: int, change: int) -> None:
    chain = [bytearray(der) for der in LEAF.der_chain]
    signed = (LEAF.certificate, *LEAF.above)[which].tbs_certificate_bytes
    chain[which][chain[which].index(signed) + place % len(signed)] ^= change
    assert verdict(LEAF, ROOT, chain=[bytes(der) for der in chain]) is FailCode.TLS


def test_every_kind_of_damage_is_refused_by_its_code() -> None:
    der = LEAF.der_chain[0]
    # A version of X.509 that there is not: one of the errors that are no ValueError.
    odd = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
    assert odd != der and verdict(LEAF, ROOT, chain=[odd, *LEAF.der_chain[1:]]) is FailCode.TLS
    # A serial number below zero: today a warning of the library.
    start = der.index(b"\xa0\x03\x02\x01\x02") + 7
    negative = der[:start] + bytes([der[start] | 0x80]) + der[start + 1 :]
    assert verdict(LEAF, ROOT, chain=[negative, *LEAF.der_chain[1:]]) is FailCode.TLS


@given(st.lists(st.binary(max_size=100), max_size=10), st.text(max_size=20))
def test_garbage_is_refused(chain: list[bytes], host: str) -> None:
    assert verdict(LEAF, ROOT, chain=chain, host=host) is FailCode.TLS


def test_the_pins_of_a_list_are_their_digests() -> None:
    spki = ROOT.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert parse_pins([ROOT.pin]) == {hashlib.sha256(spki).digest()}


def test_no_pins_are_no_protection() -> None:
    with pytest.raises(ValueError, match="at least one pin"):
        parse_pins([])


@pytest.mark.parametrize("text", ["a", "a.b-c.d1", "1.2.3.4", "::1"])
def test_hosts(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text", ["", "a..b", "-a", "a_b", "a" * 64, ".".join(["a" * 63] * 4), "a\n", "a.", "é"], ids=lambda text: repr(text[:8])
)
def test_no_hosts(text: str) -> None:
    assert not is_host(text)


def between(entity: Entity, earliest: int, latest: int | None) -> str:
    """Empty, or the text of the refusal, of a server judged by a time that lies between two bounds."""
    try:
        judge(entity.der_chain, parse_pins([ROOT.pin]), HOST, earliest, latest)
    except PeerRefused as refused:
        assert refused.code is FailCode.TLS
        return refused.text
    return ""


LATER = make("server", INTER, hosts=[HOST], usage=SERVER, begins=NOW + 8 * DAY, ends=NOW + 20 * DAY)


@pytest.mark.parametrize(
    ("earliest", "latest", "refusal"),
    [
        (NOW, 0, "not valid before 2"),
        (NOW, NOW, "not valid before 2"),
        (NOW, NOW + 8 * DAY - 1, "not valid before 2"),
        (NOW, NOW + 8 * DAY, ""),
        (NOW, None, ""),
        (0, None, ""),
        (NOW + 20 * DAY, None, ""),
        (NOW + 20 * DAY + 1, None, "not valid after 2"),
        (NOW + 20 * DAY + 1, NOW + 90 * DAY, "not valid after 2"),
    ],
)
def test_a_certificate_counts_if_it_is_valid_at_some_time_that_it_may_be(
    earliest: int, latest: int | None, refusal: str
) -> None:
    text = between(LATER, earliest, latest)
    assert refusal in text and bool(text) is bool(refusal), text


def test_the_whole_chain_must_be_valid_at_one_time() -> None:
    ended = make("old", ROOT, authority=True, begins=NOW - 30 * DAY, ends=NOW + 7 * DAY)
    later = make("server", ended, hosts=[HOST], usage=SERVER, begins=NOW + 8 * DAY, ends=NOW + 20 * DAY)
    assert "is not valid for" in between(later, NOW - 60 * DAY, None)
    young = make("young", ROOT, authority=True, begins=NOW + 9 * DAY, ends=NOW + 30 * DAY)
    both = make("server", young, hosts=[HOST], usage=SERVER, begins=NOW + 8 * DAY, ends=NOW + 20 * DAY)
    assert between(both, NOW, None) == "" and between(both, NOW, NOW + 8 * DAY) != ""


def by_roots(entity: Entity, *roots: Entity, host: str = HOST, time: int = NOW) -> Any:
    """None, or the code of the refusal of a server whom CAs of a file must vouch for."""
    try:
        judge(entity.der_chain, frozenset(), host, time, 0, [root.der_chain[0] for root in roots])
    except PeerRefused as refused:
        return refused.code
    return None


def test_a_ca_of_a_file_vouches_in_place_of_a_pin() -> None:
    assert by_roots(LEAF, ROOT) is None and by_roots(LEAF, OTHER, ROOT) is None
    assert by_roots(LEAF, OTHER) is FailCode.TLS
    assert by_roots(LEAF, ROOT, host="x.example") is FailCode.TLS
    assert by_roots(LEAF, ROOT, time=NOW + 31 * DAY) is FailCode.TLS
    assert by_roots(make("client", INTER, hosts=[HOST], usage=CLIENT), ROOT) is FailCode.TLS
    assert by_roots(make("own word", hosts=[HOST], usage=SERVER), ROOT) is FailCode.TLS
