"""Encrypts a secret that only one TPM, with one attestation key loaded, can decrypt: TPM2_MakeCredential without a TPM.

Parts and sections named here are those of the TPM 2.0 Library Specification, revision 1.59: Part 1, 24 (credentials), 11.4.10
(key derivation), B.10.4 and C.6.4 (secret sharing by RSA and ECC); Part 3, 12.6. Pure: bytes in, bytes out.
"""

from collections.abc import Callable

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from .tpm_public import ATTESTATION, endorsement_key, parse_area, point_of, require_template

SECRET_MAX = 32
"""Bytes of a credential: a digest of the endorsement key's name algorithm (Part 3, 12.6)."""

_DIGEST = 32
_SYMMETRIC = 16  # AES-128, from the templates of the endorsement key
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def make_credential(
    ek_public: bytes, attestation_public: bytes, secret: bytes, random: Callable[[int], bytes]
) -> tuple[bytes, bytes]:
    """Encrypts `secret` so that a TPM decrypts it only if it has both keys (TPM2_ActivateCredential).

    Args:
        ek_public: the endorsement key's marshalled TPMT_PUBLIC.
        attestation_public: the attestation key's; it must have our template.
        secret: 1 to `SECRET_MAX` bytes.
        random: returns this many random bytes; the padding of RSA takes its own.

    Returns:
        The contents of TPM2B_ID_OBJECT and of TPM2B_ENCRYPTED_SECRET.

    Raises:
        AttestationError: one of the keys has another template.
        ValueError: the secret has another length.
    """
    if not 1 <= len(secret) <= SECRET_MAX:
        raise ValueError(f"a credential has 1 to {SECRET_MAX} bytes, not {len(secret)}")
    endorsement = endorsement_key(ek_public)
    attestation = parse_area(attestation_public, "attestation key")
    require_template(attestation, ATTESTATION, "attestation key")
    if isinstance(endorsement, ec.EllipticCurvePublicKey):
        seed, encrypted = _share_by_ecdh(endorsement, random)
    else:
        seed = random(_DIGEST)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=b"IDENTITY\0")
        encrypted = endorsement.encrypt(seed, oaep)
    return _protect(seed, attestation.name, secret), encrypted


def _share_by_ecdh(endorsement: ec.EllipticCurvePublicKey, random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """The seed, and the ephemeral point as a TPMS_ECC_POINT (Part 1, C.6.4)."""
    # 64 bits more than the order has, so that the remainder is not biased (FIPS 186-5, A.2.1).
    scalar = int.from_bytes(random(_DIGEST + 8), "big") % (_ORDER - 1) + 1
    ephemeral = ec.derive_private_key(scalar, ec.SECP256R1())
    ours, theirs = point_of(ephemeral.public_key()), point_of(endorsement)
    shared = ephemeral.exchange(ec.ECDH(), endorsement)
    # KDFe (Part 1, 11.4.10.3): the label ends with a zero, then come the x coordinates of both parties.
    info = b"IDENTITY\0" + ours[1:33] + theirs[1:33]
    seed = ConcatKDFHash(hashes.SHA256(), _DIGEST, info).derive(shared)
    return seed, _sized(ours[1:33]) + _sized(ours[33:])


def _protect(seed: bytes, name: bytes, secret: bytes) -> bytes:
    """TPMS_ID_OBJECT (Part 2, 12.4.2): encrypted, then authenticated together with the Name of the attestation key."""
    key = _kdfa(seed, b"STORAGE", name, _SYMMETRIC)
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    encrypted = encryptor.update(_sized(secret)) + encryptor.finalize()
    mac = HMAC(_kdfa(seed, b"INTEGRITY", b"", _DIGEST), hashes.SHA256())
    mac.update(encrypted + name)
    return _sized(mac.finalize()) + encrypted


def _kdfa(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2): SP 800-108 in counter mode over HMAC-SHA256; a zero follows the label."""
    return KBKDFHMAC(
        algorithm=hashes.SHA256(),
        mode=Mode.CounterMode,
        length=size,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(key)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
