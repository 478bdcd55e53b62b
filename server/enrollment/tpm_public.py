"""Parses the public areas of TPM keys strictly, and compares each with the one template that it must have.

Parts and sections named here are those of the TPM 2.0 Library Specification, revision 1.59. The device makes its keys from
templates of its own; a test compares the two. Pure: bytes in, values out.
"""

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec, rsa

AREA_MAX = 1024
"""Bytes of the longest TPMT_PUBLIC that is parsed; the longest that is accepted has 314."""

# TPM_ALG_ID (Part 2, 6.3), TPM_ECC_CURVE (6.4)
ALG_RSA, ALG_SHA256, ALG_NULL, ALG_ECDSA, ALG_ECDH, ALG_ECC = 0x0001, 0x000B, 0x0010, 0x0018, 0x0019, 0x0023
_ALG_AES, _ALG_CFB = 0x0006, 0x0043
_NIST_P256 = 0x0003

_COORDINATE = 32
_MODULUS_BITS = 2048
_EXPONENT = 65537  # what 0 stands for (Part 2, 12.2.3.5)

# TPMA_OBJECT (Part 2, 8.3.2)
_BITS = {
    "fixedTPM": 1,
    "stClear": 2,
    "fixedParent": 4,
    "sensitiveDataOrigin": 5,
    "userWithAuth": 6,
    "adminWithPolicy": 7,
    "noDA": 10,
    "encryptedDuplication": 11,
    "restricted": 16,
    "decrypt": 17,
    "sign": 18,
    "x509sign": 19,
}


class AttestationError(Exception):
    """A device's evidence is wrong. The text says what is wrong, and contains no secret."""


def _bits(*names: str) -> int:
    return sum(1 << _BITS[name] for name in names)


@dataclass(frozen=True, slots=True)
class Template:
    """A public area without the key itself.

    Attributes:
        kind: TPMI_ALG_PUBLIC, RSA or ECC.
        name_alg: hash of the Name.
        attributes: TPMA_OBJECT.
        policy: authPolicy.
        symmetric: TPMT_SYM_DEF_OBJECT: algorithm, then key bits and mode unless it is NULL.
        scheme: TPMT_ECC_SCHEME or TPMT_RSA_SCHEME: algorithm, then hash unless it is NULL.
        size: TPM_ECC_CURVE, or bits of the modulus.
        last: TPMT_KDF_SCHEME's algorithm, or the exponent.
    """

    kind: int
    name_alg: int
    attributes: int
    policy: bytes
    symmetric: tuple[int, ...]
    scheme: tuple[int, ...]
    size: int
    last: int


@dataclass(frozen=True, slots=True)
class PublicArea:
    """A TPMT_PUBLIC (Part 2, 12.2.4).

    Attributes:
        template: all but the key.
        unique: the two coordinates, or the modulus, as they stand in the area.
        name: its Name (Part 1, 16): the name algorithm, then SHA-256 over the area.
    """

    template: Template
    unique: tuple[bytes, ...]
    name: bytes


def _ecc(attributes: int, scheme: tuple[int, ...], symmetric: tuple[int, ...] = (ALG_NULL,), policy: bytes = b"") -> Template:
    return Template(ALG_ECC, ALG_SHA256, attributes, policy, symmetric, scheme, _NIST_P256, ALG_NULL)


_OURS = _bits("fixedTPM", "fixedParent", "sensitiveDataOrigin", "userWithAuth", "noDA")
ATTESTATION = _ecc(_OURS | _bits("restricted", "sign"), (ALG_ECDSA, ALG_SHA256))
"""Restricted: it signs nothing that looks like the TPM's own word and is not (Part 1, 25.3)."""
IDENTITY = _ecc(_OURS | _bits("sign"), (ALG_ECDSA, ALG_SHA256))
AGREEMENT = _ecc(_OURS | _bits("decrypt"), (ALG_ECDH, ALG_SHA256))

# TCG EK Credential Profile 2.5, B.3.4 (template L-2) and B.3.3 (L-1). PolicyA: TPM2_PolicySecret(TPM_RH_ENDORSEMENT).
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_EK = _bits("fixedTPM", "fixedParent", "sensitiveDataOrigin", "adminWithPolicy", "restricted", "decrypt")
_AES_128_CFB = (_ALG_AES, 128, _ALG_CFB)
ENDORSEMENT_ECC = _ecc(_EK, (ALG_NULL,), _AES_128_CFB, _POLICY_A)
ENDORSEMENT_RSA = Template(ALG_RSA, ALG_SHA256, _EK, _POLICY_A, _AES_128_CFB, (ALG_NULL,), _MODULUS_BITS, 0)


class Reader:
    """Takes marshalled values from the front of some bytes; all numbers are big-endian (Part 2, 4.2).

    Args:
        data: the bytes.
        what: names them in errors.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """The next `size` bytes; AttestationError if there are fewer."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise AttestationError(f"{self._what} is truncated")
        return self._data[start : self._at]

    def number(self, size: int) -> int:
        """The next `size` bytes as a number."""
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """A TPM2B: two bytes of length, then as many."""
        return self.take(self.number(2))

    def end(self) -> None:
        """Raises AttestationError if there are more bytes."""
        if self._at != len(self._data):
            raise AttestationError(f"{self._what} has extra bytes at its end")


def parse_area(data: bytes, what: str) -> PublicArea:
    """Parses the public area of an ECC or RSA key.

    Args:
        data: marshalled TPMT_PUBLIC.
        what: names the key in errors.

    Raises:
        AttestationError: the bytes are not a public area.
    """
    if len(data) > AREA_MAX:
        raise AttestationError(f"the public area of the {what} has {len(data)} bytes; the limit is {AREA_MAX}")
    reader = Reader(data, f"the public area of the {what}")
    kind, name_alg, attributes = reader.number(2), reader.number(2), reader.number(4)
    policy = reader.sized()
    if kind not in (ALG_ECC, ALG_RSA):
        raise AttestationError(f"the {what} is of type 0x{kind:04x}, neither ECC nor RSA")
    symmetric = _algorithm(reader, 2)
    scheme = _algorithm(reader, 1)
    if kind == ALG_ECC:
        size, last = reader.number(2), reader.number(2)
        unique: tuple[bytes, ...] = (reader.sized(), reader.sized()) if last == ALG_NULL else ()
    else:
        size, last = reader.number(2), reader.number(4)
        unique = (reader.sized(),)
    if unique:  # a key derivation scheme, which none of ours has, is refused by its template
        reader.end()
    template = Template(kind, name_alg, attributes, policy, symmetric, scheme, size, last)
    return PublicArea(template, unique, ALG_SHA256.to_bytes(2, "big") + hashlib.sha256(data).digest())


def _algorithm(reader: Reader, details: int) -> tuple[int, ...]:
    """An algorithm with so many details of two bytes, or NULL without any (Part 2, 11.1.7 and 11.2.4.3)."""
    algorithm = reader.number(2)
    if algorithm == ALG_NULL:
        return (algorithm,)
    return (algorithm, *(reader.number(2) for _detail in range(details)))


def require_template(area: PublicArea, template: Template, what: str) -> None:
    """Raises AttestationError if the area differs from the template; the text says in what."""
    found = area.template
    if found == template:
        return
    if missing := _named(template.attributes & ~found.attributes):
        raise AttestationError(f"the {what} lacks the attribute {missing}")
    if excess := _named(found.attributes & ~template.attributes):
        raise AttestationError(f"the {what} has the attribute {excess}, which it must not have")
    names = {"kind": "type", "name_alg": "name algorithm", "size": "size or curve", "last": "exponent or key derivation"}
    for field in Template.__slots__:
        if getattr(found, field) != getattr(template, field):
            raise AttestationError(f"the {what} has another {names.get(field, field)} than its template")


def _named(attributes: int) -> str:
    known = [name for name, bit in _BITS.items() if attributes >> bit & 1]
    rest = attributes & ~sum(1 << bit for bit in _BITS.values())
    return ", ".join([*known, *([f"0x{rest:08x}"] if rest else [])])


def ecc_key(area: PublicArea, what: str) -> ec.EllipticCurvePublicKey:
    """The key of an area on P-256.

    Raises:
        AttestationError: it is not a point of the curve.
    """
    if any(not 0 < len(each) <= _COORDINATE for each in area.unique):
        raise AttestationError(f"a coordinate of the {what} has more than {_COORDINATE} bytes, or none")
    # Some TPMs leave leading zeros out.
    point = b"\x04" + b"".join(each.rjust(_COORDINATE, b"\0") for each in area.unique)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise AttestationError(f"the {what} is not a point of P-256") from None


def rsa_key(area: PublicArea, what: str) -> rsa.RSAPublicKey:
    """The key of an area with a modulus of 2048 bits and the default exponent.

    Raises:
        AttestationError: it has another modulus.
    """
    modulus = int.from_bytes(area.unique[0], "big")
    if len(area.unique[0]) != _MODULUS_BITS // 8 or modulus.bit_length() != _MODULUS_BITS or not modulus & 1:
        raise AttestationError(f"the modulus of the {what} is not an odd number of {_MODULUS_BITS} bits")
    try:
        return rsa.RSAPublicNumbers(_EXPONENT, modulus).public_key()
    except ValueError:
        raise AttestationError(f"the {what} is not an RSA key") from None


def point_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """The uncompressed point (SEC 1, 2.3.3): 65 bytes."""
    numbers = key.public_numbers()
    return b"\x04" + numbers.x.to_bytes(_COORDINATE, "big") + numbers.y.to_bytes(_COORDINATE, "big")


def endorsement_key(ek_public: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The endorsement key in a public area, which must have one of the two fixed templates, in its canonical form.

    Raises:
        AttestationError: the area has another template or form.
    """
    what = "endorsement key"
    area = parse_area(ek_public, what)
    if area.template.kind == ALG_RSA:
        require_template(area, ENDORSEMENT_RSA, what)
        return rsa_key(area, what)
    require_template(area, ENDORSEMENT_ECC, what)
    if any(len(each) != _COORDINATE for each in area.unique):
        # Otherwise one TPM could have two hardware ids.
        raise AttestationError(f"the coordinates of the endorsement key must have {_COORDINATE} bytes each")
    return ecc_key(area, what)
