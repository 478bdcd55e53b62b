"""The manufacturer's word for an endorsement key: from the right CA, for the right key, at the right time, and for this use."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from server.enrollment.endorsement import AttestationError, verify_ek_certificate
from tests.server.attestationworld import EK_ECC, area, flipped, new_key, rsa_area
from tests.support.waiting import READY_S

NOW = datetime(2030, 6, 1, tzinfo=UTC)
EK = new_key()
PUBLIC = area(EK_ECC, EK)
EK_USE = x509.ObjectIdentifier("2.23.133.8.1")
TPM_NAME = x509.Name(
    [
        x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00001014"),
        x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "test"),
        x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.3"), "id:20240125"),
    ]
)


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(**allowed: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign"
    return x509.KeyUsage(**dict.fromkeys(names.split(), False) | allowed, encipher_only=False, decipher_only=False)


Extensions = tuple[tuple[x509.ExtensionType, bool], ...]
CA_USE: Extensions = ((x509.BasicConstraints(True, None), True), (usage(key_cert_sign=True), True))
EK_USES: Extensions = (
    (x509.BasicConstraints(False, None), True),
    (usage(key_agreement=True), True),
    (x509.ExtendedKeyUsage([EK_USE]), False),
    (x509.SubjectAlternativeName([x509.DirectoryName(TPM_NAME)]), True),
)


@dataclass
class Authority:
    """A CA, made by the one above it or by itself."""

    name: str
    above: "Authority | None" = None
    key: Any = field(default_factory=new_key)
    extensions: Extensions = CA_USE
    since: datetime = NOW - timedelta(days=1000)
    until: datetime = NOW + timedelta(days=1000)
    algorithm: Any = field(default_factory=hashes.SHA256)

    @property
    def certificate(self) -> x509.Certificate:
        issuer = self if self.above is None else self.above
        return issuer.certify(named(self.name), self.key.public_key(), self.extensions, self.since, self.until)

    def certify(
        self,
        subject: x509.Name,
        key: Any,
        extensions: Extensions,
        since: datetime = NOW - timedelta(days=10),
        until: datetime = NOW + timedelta(days=10),
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(named(self.name), subject, key, 7, since, until)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, self.algorithm)

    def endorse(self, extensions: Extensions = EK_USES, key: Any = None, **times: datetime) -> bytes:
        public = EK.public_key() if key is None else key
        return self.certify(x509.Name([]), public, extensions, **times).public_bytes(Encoding.DER)


ROOT = Authority("root")
LOWER = Authority("lower", ROOT)
ROOTS = [ROOT.certificate]
GOOD = ROOT.endorse()


def refuse(der: bytes, match: str, roots: list[x509.Certificate] | None = None, **arguments: Any) -> None:
    with pytest.raises(AttestationError, match=match):
        verify_ek_certificate(der, PUBLIC, ROOTS if roots is None else roots, arguments.pop("now", NOW), **arguments)


# Right


def test_a_certificate_of_a_root_is_believed() -> None:
    verify_ek_certificate(ROOT.endorse(), PUBLIC, [Authority("other").certificate, *ROOTS], NOW)


def test_one_through_an_intermediate_is_believed() -> None:
    lowest = Authority("lowest", LOWER)
    between = [lowest.certificate, LOWER.certificate, Authority("unrelated").certificate]
    verify_ek_certificate(lowest.endorse(), PUBLIC, ROOTS, NOW, between)
    verify_ek_certificate(lowest.endorse(), PUBLIC, ROOTS, NOW, between[::-1])
    verify_ek_certificate(LOWER.endorse(), PUBLIC, [LOWER.certificate], NOW)


def test_one_for_an_rsa_key_is_believed() -> None:
    key = rsa.generate_private_key(65537, 2048)
    uses = (EK_USES[0], (usage(key_encipherment=True), True), *EK_USES[2:])
    authority = Authority("rsa root", key=rsa.generate_private_key(65537, 2048), algorithm=hashes.SHA384())
    verify_ek_certificate(authority.endorse(uses, key.public_key()), rsa_area(key), [authority.certificate], NOW)
    with pytest.raises(AttestationError, match="another key"):
        verify_ek_certificate(authority.endorse(uses, key.public_key()), PUBLIC, [authority.certificate], NOW)
    with pytest.raises(AttestationError, match="does not allow"):
        verify_ek_certificate(authority.endorse(EK_USES, key.public_key()), rsa_area(key), [authority.certificate], NOW)
    with pytest.raises(AttestationError, match="does not lead"):
        verify_ek_certificate(ROOT.endorse(uses, key.public_key()), rsa_area(key), [authority.certificate], NOW)


def test_the_names_may_stand_in_several_places() -> None:
    """Makers write one relative name with three parts, three with one, or three directory names."""
    parts = list(TPM_NAME)
    one = x509.Name([x509.RelativeDistinguishedName(parts)])
    several = [x509.DirectoryName(x509.Name([part])) for part in parts]
    for names in ([x509.DirectoryName(one)], several, [x509.DNSName("tpm.example"), *several]):
        uses = (*EK_USES[:3], (x509.SubjectAlternativeName(names), False))
        verify_ek_certificate(ROOT.endorse(uses), PUBLIC, ROOTS, NOW)


def test_validity_includes_its_ends() -> None:
    der = ROOT.endorse(since=NOW, until=NOW)
    verify_ek_certificate(der, PUBLIC, ROOTS, NOW)
    refuse(der, "not valid yet", now=NOW - timedelta(seconds=1))
    refuse(der, "expired", now=NOW + timedelta(seconds=1))


# Wrong


def without(extensions: Extensions, kind: type[x509.ExtensionType], *instead: tuple[x509.ExtensionType, bool]) -> Extensions:
    return (*(each for each in extensions if not isinstance(each[0], kind)), *instead)


def alternative(*oids: str) -> tuple[x509.ExtensionType, bool]:
    name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), "x") for oid in oids])
    return x509.SubjectAlternativeName([x509.DirectoryName(name)]), True


LEAVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "another key": (lambda: ROOT.endorse(key=new_key().public_key()), "another key"),
    "another kind of key": (lambda: ROOT.endorse(key=ed25519.Ed25519PrivateKey.generate().public_key()), "another key"),
    "not valid yet": (lambda: ROOT.endorse(since=NOW + timedelta(days=1)), "not valid yet"),
    "expired": (lambda: ROOT.endorse(until=NOW - timedelta(days=1)), "has expired"),
    "another CA": (lambda: Authority("other").endorse(), "no trusted certificate"),
    "another CA of the same name": (lambda: Authority("root").endorse(), "has not signed it"),
    "by itself": (lambda: Authority("root", key=EK).endorse(), "has not signed it"),
    "an unknown intermediate": (lambda: LOWER.endorse(), "no trusted certificate"),
    "a CA's": (lambda: ROOT.endorse((CA_USE[0], *EK_USES[1:])), "is a CA certificate"),
    "no use": (lambda: ROOT.endorse(without(EK_USES, x509.KeyUsage)), "does not allow"),
    "another use": (
        lambda: ROOT.endorse(without(EK_USES, x509.KeyUsage, (usage(digital_signature=True), True))),
        "does not allow",
    ),
    "another extended use": (
        lambda: ROOT.endorse(
            without(EK_USES, x509.ExtendedKeyUsage, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False))
        ),
        "another extended key usage",
    ),
    "no names": (lambda: ROOT.endorse(EK_USES[:3]), "manufacturer"),
    "no manufacturer": (lambda: ROOT.endorse((*EK_USES[:3], alternative("2.23.133.2.2", "2.23.133.2.3"))), "manufacturer"),
    "no model": (lambda: ROOT.endorse((*EK_USES[:3], alternative("2.23.133.2.1", "2.23.133.2.3"))), "model"),
    "no version": (lambda: ROOT.endorse((*EK_USES[:3], alternative("2.23.133.2.1", "2.23.133.2.2"))), "version"),
    "a host's": (
        lambda: ROOT.endorse((*EK_USES[:3], (x509.SubjectAlternativeName([x509.DNSName("tpm.example")]), True))),
        "manufacturer",
    ),
    "an extension that is not known": (
        lambda: ROOT.endorse((*EK_USES, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True))),
        "critical extension 1.2.3.4",
    ),
    "an old hash": (
        lambda: Authority("root", key=ROOT.key, algorithm=hashes.SHA224()).endorse(),
        "too weak",
    ),
    "too long": (
        lambda: ROOT.endorse((*EK_USES, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(4096)), False))),
        "the limit is 4096",
    ),
    "more behind it": (lambda: ROOT.endorse() + b"\0", "cannot be read"),
    "in PEM": (lambda: x509.load_der_x509_certificate(ROOT.endorse()).public_bytes(Encoding.PEM), "cannot be read"),
    "nothing": (lambda: b"", "cannot be read"),
    "a CA's certificate": (lambda: ROOTS[0].public_bytes(Encoding.DER), "another key"),
}


@pytest.mark.parametrize("case", LEAVES)
def test_a_certificate_that_does_not_hold_is_refused(case: str) -> None:
    make, reason = LEAVES[case]
    refuse(make(), reason)


AUTHORITIES: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"until": NOW - timedelta(seconds=1)}, "issuer's certificate has expired"),
    "not valid yet": ({"since": NOW + timedelta(seconds=1)}, "issuer's certificate is not valid yet"),
    "without the CA bit": ({"extensions": ((x509.BasicConstraints(False, None), True), CA_USE[1])}, "is not a CA certificate"),
    "without constraints": ({"extensions": CA_USE[1:]}, "is not a CA certificate"),
    "without a use": ({"extensions": CA_USE[:1]}, "is not a CA certificate"),
    "with another use": (
        {"extensions": (CA_USE[0], (usage(digital_signature=True, crl_sign=True), True))},
        "is not a CA certificate",
    ),
    "with names that it may certify": (
        {"extensions": (*CA_USE, (x509.NameConstraints([x509.DNSName("example")], None), True))},
        "critical extension",
    ),
    "with a weak curve": ({"key": ec.generate_private_key(ec.SECP224R1())}, "too weak"),
    "with another kind of key": ({"key": ed25519.Ed25519PrivateKey.generate(), "algorithm": None}, "too weak"),
    "with a short key": ({"key": rsa.generate_private_key(65537, 1024)}, "too weak"),
}


@pytest.mark.parametrize("case", AUTHORITIES)
def test_an_issuer_that_may_not_issue_is_refused_as_root_and_between(case: str) -> None:
    """Trusted or not: what the operator has configured may have expired."""
    changed, reason = AUTHORITIES[case]
    root = Authority("own root", **changed)
    refuse(root.endorse(), reason, [root.certificate])
    between = Authority("between", ROOT, **changed)
    refuse(between.endorse(), reason, intermediates=[between.certificate])


def test_a_chain_has_no_more_links_than_its_cas_allow() -> None:
    def allowing(count: int) -> Authority:
        return Authority("strict", extensions=((x509.BasicConstraints(True, count), True), CA_USE[1]))

    root = allowing(0)
    verify_ek_certificate(root.endorse(), PUBLIC, [root.certificate], NOW)
    lower = Authority("lower", root)
    refuse(lower.endorse(), "length", [root.certificate], intermediates=[lower.certificate])
    root = allowing(1)
    lower = Authority("lower", root)
    verify_ek_certificate(lower.endorse(), PUBLIC, [root.certificate], NOW, [lower.certificate])


def test_an_intermediate_alone_is_no_root() -> None:
    refuse(LOWER.endorse(), "does not lead to a trusted root", [], intermediates=[LOWER.certificate])
    refuse(ROOT.endorse(), "does not lead to a trusted root", [], intermediates=ROOTS)


def test_chains_end() -> None:
    """CAs that have certified each other, and one that is longer than any maker's."""
    first, second = Authority("first"), Authority("second")
    ring = [Authority("first", second, first.key).certificate, Authority("second", first, second.key).certificate]
    refuse(first.endorse(), "does not lead", intermediates=ring)
    chain = [ROOT]
    for number in range(6):
        chain.append(Authority(f"number {number}", chain[-1]))
    refuse(chain[-1].endorse(), "does not lead", intermediates=[each.certificate for each in chain[1:]])
    verify_ek_certificate(chain[4].endorse(), PUBLIC, ROOTS, NOW, [each.certificate for each in chain[1:]])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_root_that_cannot_be_read_spoils_no_other() -> None:
    der = bytearray(ROOTS[0].public_bytes(Encoding.DER))
    der[der.index(b"\x0c\x04root", der.index(b"\x0c\x04root") + 1)] = 0x0D  # the string in its subject
    broken = x509.load_der_x509_certificate(bytes(der))
    refuse(GOOD, "cannot be read", [broken])
    verify_ek_certificate(GOOD, PUBLIC, [broken, *ROOTS], NOW)


def test_name_constraints_that_are_not_critical_are_no_reason_to_refuse() -> None:
    constraints = x509.NameConstraints([x509.DNSName("example")], None)
    authority = Authority("constrained", extensions=(*CA_USE, (constraints, False)))
    verify_ek_certificate(authority.endorse(), PUBLIC, [authority.certificate], NOW)


def test_constraints_of_directory_names_are_not_passed_over() -> None:
    constraints = x509.NameConstraints(None, [x509.DirectoryName(named("no TPM"))])
    authority = Authority("constrained", extensions=(*CA_USE, (constraints, False)))
    refuse(authority.endorse(), "issuer's certificate has name constraints that are not supported", [authority.certificate])


EXTENSIONS: tuple[x509.ExtensionType, ...] = (
    x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"),
    x509.ExtendedKeyUsage([EK_USE]),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    x509.SubjectAlternativeName([x509.DNSName("example")]),
    x509.AuthorityKeyIdentifier(bytes(20), None, None),
    x509.SubjectKeyIdentifier(bytes(20)),
    x509.InhibitAnyPolicy(0),
)


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda extension: type(extension).__name__)
def test_a_ca_that_insists_on_an_extension_is_refused_as_root_and_between(extension: x509.ExtensionType) -> None:
    """One that we do not apply, known to the library or not. Not critical, it changes nothing."""
    root = Authority("own root", extensions=(*CA_USE, (extension, True)))
    refuse(root.endorse(), "issuer's certificate has a critical extension that is not supported", [root.certificate])
    between = Authority("between", ROOT, extensions=(*CA_USE, (extension, True)))
    refuse(between.endorse(), "issuer's certificate has a critical", intermediates=[between.certificate])
    if not isinstance(extension, x509.UnrecognizedExtension | x509.InhibitAnyPolicy):
        mild = Authority("mild", extensions=(*CA_USE, (extension, False)))
        verify_ek_certificate(mild.endorse(), PUBLIC, [mild.certificate], NOW)


def test_without_roots_nothing_is_trusted() -> None:
    refuse(GOOD, "does not lead to a trusted root: no trusted certificate", [])


def test_an_endorsement_key_of_another_template_has_no_certificate() -> None:
    with pytest.raises(AttestationError, match="attribute"):
        verify_ek_certificate(ROOT.endorse(), area(EK_ECC[:7] + b"\xf2" + EK_ECC[8:], EK), ROOTS, NOW)


# Garbage


# Before the signature stands how many of its last bits are unused: no part of its value, and nobody signs it.
UNUSED_BITS = len(GOOD) - len(x509.load_der_x509_certificate(GOOD).signature) - 1


def says_something_else(der: bytes) -> bool:
    return der[:UNUSED_BITS] + der[UNUSED_BITS + 1 :] != GOOD[:UNUSED_BITS] + GOOD[UNUSED_BITS + 1 :]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what the library reads and does not like
def test_every_byte_counts() -> None:
    for place in range(len(GOOD)):
        for bit in (0x01, 0x80):
            changed = flipped(GOOD, place, bit)
            if says_something_else(changed):
                refuse(changed, "certificate")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary(max_size=300), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_garbage_is_a_typed_error(data: bytes, place: int, cut: int) -> None:
    refuse(data, "certificate")
    changed = GOOD[:place] + data + GOOD[place + cut :]
    if says_something_else(changed):
        refuse(changed, "certificate")


# A TPM that was made by a manufacturer


SETUP = "/usr/share/swtpm/swtpm-localca"


@pytest.mark.skipif(shutil.which("swtpm_setup") is None or not Path(SETUP).exists(), reason="swtpm_setup is not installed")
@pytest.mark.system
def test_a_manufactured_tpm_has_a_certificate_that_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swtpm_setup writes one for the RSA key, and a certificate authority of its own for the purpose."""
    from hwsec.tpm import TpmBackend
    from hwsec.tpm2 import endorsement
    from tests.support.swtpm import Swtpm

    authority, state = tmp_path / "ca", tmp_path / "state"
    authority.mkdir()
    state.mkdir()
    (tmp_path / "localca.conf").write_text(
        f"statedir = {authority}\nsigningkey = {authority}/key.pem\nissuercert = {authority}/issuer.pem\n"
        f"certserial = {authority}/serial\n"
    )
    (tmp_path / "localca.options").write_text("--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n")
    (tmp_path / "setup.conf").write_text(
        f"create_certs_tool={SETUP}\ncreate_certs_tool_config={tmp_path}/localca.conf\n"
        f"create_certs_tool_options={tmp_path}/localca.options\nactive_pcr_banks = sha256\n"
    )
    command = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--config", str(tmp_path / "setup.conf")]
    made = subprocess.run([*command, "--create-ek-cert"], capture_output=True, text=True, timeout=READY_S, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    monkeypatch.setattr(endorsement, "KINDS", endorsement.KINDS[1:])
    with Swtpm(state) as chip:
        backend = TpmBackend(chip.tcti, tmp_path / "objects")
        found = backend.endorsement()
        backend.close()
    assert found is not None
    assert found.certificate is not None
    (issuer,) = x509.load_pem_x509_certificates((authority / "issuer.pem").read_bytes())
    roots = x509.load_pem_x509_certificates((authority / "swtpm-localca-rootca-cert.pem").read_bytes())
    now = datetime.now(UTC)
    verify_ek_certificate(found.certificate, found.public, roots, now, [issuer])
    verify_ek_certificate(found.certificate, found.public, [issuer], now)
    with pytest.raises(AttestationError, match="does not lead"):
        verify_ek_certificate(found.certificate, found.public, ROOTS, now, [issuer])
    with pytest.raises(AttestationError, match="another key"):
        verify_ek_certificate(found.certificate, PUBLIC, roots, now, [issuer])
