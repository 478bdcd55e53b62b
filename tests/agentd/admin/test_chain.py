"""A certificate counts only if the admin CA issued it, for clients, with one role and a P-256 key, and it is its time."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from agentd.admin.chain import NotIssued, Window, judge
from agentd.admin.roles import Role
from contracts.admin.adminauth import ROLE_URI
from contracts.admin.adminca import BadAdminCa, read_admin_ca
from tests.support.adminpki import DAY, T0, Ca, Holder

CA = Ca()
TRUSTED = read_admin_ca(CA.pem)
NOW = Window(T0 + DAY, T0 + DAY + 60)
P384 = ec.generate_private_key(ec.SECP384R1())
BETWEEN = Ca("Between", by=CA)


def judged(*shown: Holder, window: Window = NOW, trusted: Any = TRUSTED) -> Any:
    return judge(trusted, [each.der for each in shown], window)


def outcome(*shown: Holder, window: Window = NOW, trusted: Any = TRUSTED) -> str:
    with pytest.raises(NotIssued) as refused:
        judged(*shown, window=window, trusted=trusted)
    return refused.value.outcome


@pytest.mark.parametrize("role", list(Role))
def test_a_certificate_says_the_role_and_the_name(role: Role) -> None:
    holder = CA.issue("Ann Keeper", role=role.name.lower())
    found = judged(holder)
    assert (found.role, found.name, found.digests, found.ends) == (role, "Ann Keeper", (holder.digest,), T0 + 90 * DAY)


def test_one_certificate_may_be_between() -> None:
    holder = BETWEEN.issue("x")
    assert judged(holder, BETWEEN).digests == (holder.digest, BETWEEN.digest)
    assert outcome(holder) == "other_ca"
    deeper = Ca("Deeper", by=BETWEEN)
    assert outcome(deeper.issue("x"), deeper) == "other_ca"
    assert outcome(deeper.issue("x"), deeper, BETWEEN) == "bad_certificate"


@pytest.mark.parametrize(
    ("reason", "made"),
    [
        ("another CA", Ca().issue("x")),
        ("another CA of the same name", Ca("Admin CA").issue("x")),
        ("a CA itself", CA.issue("x", ca=True)),
        ("the admin CA itself", CA),
        ("not for clients", CA.issue("x", client=False)),
        ("for servers", CA.issue("x", client=False, usage=ExtendedKeyUsageOID.SERVER_AUTH)),
        ("any usage", CA.issue("x", client=False, usage=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)),
        ("may not sign", CA.issue("x", signs=False)),
        ("no role", CA.issue("x", role=None)),
        ("no role among other names", CA.issue("x", "https://example.com/", role=None)),
        ("two roles", CA.issue("x", f"{ROLE_URI}viewer")),
        ("the same role twice", CA.issue("x", f"{ROLE_URI}admin")),
        ("an unknown role", CA.issue("x", role="root")),
        ("a role in capitals", CA.issue("x", role="ADMIN")),
        ("P-384", CA.issue("x", key=P384)),
        ("Ed25519", CA.issue("x", key=ed25519.Ed25519PrivateKey.generate())),
        ("a name with a line break", CA.issue("x\ny")),
        ("an empty certificate", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_administrators_certificate(reason: str, made: Holder | None) -> None:
    shown = [b""] if made is None else [made.der]
    with pytest.raises(NotIssued) as refused:
        judge(TRUSTED, shown, NOW)
    assert refused.value.outcome in ("other_ca", "bad_certificate"), reason


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (CA.issue("x", ca=True), "it is the certificate of a CA"),
        (CA.issue("x", client=False), "the extension extendedKeyUsage is missing"),
        (CA.issue("x", client=False, usage=ExtendedKeyUsageOID.SERVER_AUTH), "it is not for clients (extendedKeyUsage)"),
        (CA.issue("x", signs=False), "its key may not sign (keyUsage)"),
        (Ca("Admin CA").issue("x"), "signature does not match"),
        (CA.issue("x", f"{ROLE_URI}viewer", role="admin"), f"it must name one role as a URI, such as {ROLE_URI}viewer"),
    ],
)
def test_the_refusal_says_what_the_certificate_lacks_in_the_fields_words(made: Holder, said: str) -> None:
    """It is the administrator's error message and the alert's text; the library's names its own functions and our code's."""
    with pytest.raises(NotIssued) as refused:
        judged(made)
    assert str(refused.value).endswith(f": {said}"), str(refused.value)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(NotIssued):
        judge(TRUSTED, [CA.issue("x").der + b"\0"], NOW)
    with pytest.raises(NotIssued):
        judge(TRUSTED, [], NOW)


def test_a_certificate_counts_within_its_dates() -> None:
    holder = CA.issue("x", start=T0 + 10 * DAY, days=10)
    assert judged(holder, window=Window(T0 + 10 * DAY, T0 + 10 * DAY)).name == "x"
    assert judged(holder, window=Window(T0 + 20 * DAY, T0 + 20 * DAY)).name == "x"
    assert outcome(holder, window=Window(T0 + 9 * DAY, T0 + 10 * DAY - 1)) == "not_yet_valid"
    assert outcome(holder, window=Window(T0 + 20 * DAY + 1, T0 + 30 * DAY)) == "expired"


def test_without_an_upper_bound_a_beginning_refuses_nothing() -> None:
    holder = CA.issue("x", start=T0 + 10 * DAY, days=10)
    assert judged(holder, window=Window(T0, None)).name == "x"
    assert outcome(holder, window=Window(T0 + 21 * DAY, None)) == "expired"


def test_a_ca_that_has_ended_vouches_for_nobody() -> None:
    ended = Ca("Ended", days=5)
    assert outcome(ended.issue("x"), trusted=read_admin_ca(ended.pem), window=Window(T0 + 6 * DAY, None)) == "expired"
    # Its successor in the same file does.
    both = read_admin_ca(ended.pem + CA.pem)
    assert judged(CA.issue("x"), trusted=both, window=Window(T0 + 6 * DAY, None)).name == "x"
    assert both.ends == T0 + 3650 * DAY


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no certificate",
        CA.issue("x").pem,
        CA.pem + CA.issue("x").pem,
        Ca(key=P384).pem,
        CA.pem * 9,
        CA.pem[:200],
        CA.key_pem,
    ],
    ids=["empty", "text", "no CA", "one is no CA", "P-384", "too many", "cut", "a key"],
)
def test_a_file_that_holds_anything_but_cas_is_refused(pem: bytes) -> None:
    with pytest.raises(BadAdminCa):
        read_admin_ca(pem)
