"""Makes an admin CA and issues administrators' certificates. Pure: keys, names and times in, certificates out.

What is made here is exactly what `chain` accepts.
"""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from contracts.admin.adminauth import BREAK_GLASS_URI, MAX_NAME_CHARS, ROLE_URI, ROLES
from contracts.claims import AGENT_ID

BACKDATED = datetime.timedelta(hours=1)
"""A machine whose clock is a little behind accepts a new certificate at once."""


class BadRequest(Exception):
    """Nothing can be issued for this; the message says why."""


def make_ca(key: ec.EllipticCurvePrivateKey, name: str, now: datetime.datetime, days: int) -> x509.Certificate:
    """A certificate of a new admin CA, signed by itself.

    Args:
        key: of the CA, P-256.
        name: its common name.
        now: with a time zone.
        days: until it ends.

    Raises:
        BadRequest: the name cannot be used.
    """
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return builder.add_extension(_issuer_of(key), critical=False).sign(key, hashes.SHA256())


def issue(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    role: str,
    now: datetime.datetime,
    days: int,
    break_glass: str | None = None,
) -> x509.Certificate:
    """An administrator's certificate.

    Args:
        ca: certificate of the CA.
        ca_key: its key.
        key: of the administrator, P-256.
        name: their common name.
        role: one of `contracts.admin.adminauth.ROLES`.
        now: with a time zone.
        days: until it ends; the CA must not end before.
        break_glass: the agent for which it is a break-glass certificate; None for an ordinary one.

    Raises:
        BadRequest: it cannot be issued.
    """
    if role not in ROLES:
        raise BadRequest(f"there is no role {role}")
    if now + datetime.timedelta(days=days) > ca.not_valid_after_utc:
        raise BadRequest(f"the CA ends at {ca.not_valid_after_utc:%Y-%m-%d}, before this certificate would: choose fewer days")
    if not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("the administrator's key is not a P-256 key")
    builder = _builder(_subject(name), ca.subject, key, now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    uris = [f"{ROLE_URI}{role}"]
    if break_glass is not None:
        if AGENT_ID.fullmatch(break_glass) is None:
            raise BadRequest(f"'{break_glass}' is no agent id")
        uris.append(f"{BREAK_GLASS_URI}{break_glass}")
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    builder = builder.add_extension(names, critical=False).add_extension(_issuer_of(ca_key), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _subject(name: str) -> x509.Name:
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise BadRequest(f"a name has 1 to {MAX_NAME_CHARS} printable characters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _issuer_of(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
