"""Public areas (TPMT_PUBLIC: Part 2, 12.2.4) of the keys that we make. Pure bytes: what is created shows on one page.

No key here may be used with an empty auth value but the SRK, which by its TCG template has none and decrypts nothing but
what it is the parent of.
"""

import struct

_ALG_RSA, _ALG_SHA256, _ALG_KEYEDHASH, _ALG_ECC = 0x0001, 0x000B, 0x0008, 0x0023
_ALG_NULL, _ALG_ECDSA, _ALG_ECDH, _ALG_AES, _ALG_CFB = 0x0010, 0x0018, 0x0019, 0x0006, 0x0043
_NIST_P256 = 0x0003

# TPMA_OBJECT (Part 2, 8.3.2)
_FIXED_TPM, _FIXED_PARENT, _ORIGIN = 1 << 1, 1 << 4, 1 << 5
_USER_WITH_AUTH, _ADMIN_WITH_POLICY, _NO_DA = 1 << 6, 1 << 7, 1 << 10
_RESTRICTED, _DECRYPT, _SIGN = 1 << 16, 1 << 17, 1 << 18

_OURS = _FIXED_TPM | _FIXED_PARENT | _NO_DA
_KEY = _OURS | _ORIGIN | _USER_WITH_AUTH

_NO_SYMMETRIC = struct.pack(">H", _ALG_NULL)
_AES128_CFB = struct.pack(">HHH", _ALG_AES, 128, _ALG_CFB)
_ES256 = struct.pack(">HH", _ALG_ECDSA, _ALG_SHA256)


def _head(kind: int, attributes: int, policy: bytes = b"") -> bytes:
    return struct.pack(">HHIH", kind, _ALG_SHA256, attributes, len(policy)) + policy


def _ecc(attributes: int, symmetric: bytes, scheme: bytes, policy: bytes = b"", coordinate: bytes = b"") -> bytes:
    unique = struct.pack(">H", len(coordinate)) + coordinate
    kdf = struct.pack(">H", _ALG_NULL)
    return _head(_ALG_ECC, attributes, policy) + symmetric + scheme + struct.pack(">H", _NIST_P256) + kdf + unique * 2


SRK = _ecc(_KEY | _RESTRICTED | _DECRYPT, _AES128_CFB, struct.pack(">H", _ALG_NULL))
"""TCG TPM v2.0 Provisioning Guidance, 7.5.1: the storage root key, ECC P-256."""

ATTESTATION = _ecc(_KEY | _RESTRICTED | _SIGN, _NO_SYMMETRIC, _ES256)
"""Restricted: signs what the TPM itself says, and no digest that looks like it."""
IDENTITY = _ecc(_KEY | _SIGN, _NO_SYMMETRIC, _ES256)
AGREEMENT = _ecc(_KEY | _DECRYPT, _NO_SYMMETRIC, struct.pack(">HH", _ALG_ECDH, _ALG_SHA256))


def sealed(policy: bytes) -> bytes:
    """A sealed object that only its policy opens: no userWithAuth, so an auth value alone does nothing."""
    return _head(_ALG_KEYEDHASH, _OURS | _ADMIN_WITH_POLICY, policy) + struct.pack(">HH", _ALG_NULL, 0)


# TCG EK Credential Profile 2.5, B.3.3 and B.3.4 (templates L-2 and L-1). PolicyA: PolicySecret of the endorsement hierarchy.
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_EK = _FIXED_TPM | _FIXED_PARENT | _ORIGIN | _ADMIN_WITH_POLICY | _RESTRICTED | _DECRYPT
EK_ECC = _ecc(_EK, _AES128_CFB, struct.pack(">H", _ALG_NULL), _POLICY_A, bytes(32))
EK_RSA = (
    _head(_ALG_RSA, _EK, _POLICY_A)
    + _AES128_CFB
    + struct.pack(">HHI", _ALG_NULL, 2048, 0)
    + struct.pack(">H256s", 256, bytes(256))
)
