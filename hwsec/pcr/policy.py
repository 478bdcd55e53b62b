"""Computes policies that bind the KEK to states of the machine, and the vendor's signatures over them. Performs no IO.

The KEK's own policy names no PCR value: it says "what the vendor's key has approved, and the auth value" (PolicyAuthorize, then
PolicyAuthValue). What is approved is a set of PCR values together with a number (PolicyPCR, then PolicyNV: policy counter <=
number). So the vendor can approve an update before it is installed, with a key that is never on the machine, and a machine
takes an approval back by raising its counter past the number.

Digests are computed by the formulas of the TPM 2.0 Library Specification, revision 1.59, Part 3, 23; the TPM computes them for
itself, and what does not agree is refused there. This file also runs where the vendor signs, which needs no TPM.
"""

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from common.plain import json_text

from ..errors import PcrMismatch, PcrUninitialized
from ..nv.layout import NV_BASE, NV_POLICY_COUNTER

Kind = Literal["none", "secure-boot", "custom"]

POLICY_REF = b"license-agent pcr policy v1"
"""policyRef of PolicyAuthorize: a signature of the vendor's key made for anything else approves nothing here."""
SECURE_BOOT_PCR = 7
PCR_COUNT = 24
"""TCG PC Client Platform TPM Profile, 4.6: PCRs 0 to 23."""
MAX_NUMBER = 2**63 - 1
MAX_POLICY_BYTES = 16 * 1024

_DIGEST = 32
_ZERO = bytes(_DIGEST)
_POINT = 65
_FORMAT = "license-agent pcr policy 1"

# Part 2, 6.3 and 6.5.2
_ALG_SHA256 = 0x000B
_ALG_NULL = 0x0010
_ALG_ECDSA = 0x0018
_ALG_ECC = 0x0023
_ECC_NIST_P256 = 0x0003
_CC_POLICY_NV = 0x149
_CC_POLICY_AUTHORIZE = 0x16A
_CC_POLICY_AUTH_VALUE = 0x16B
_CC_POLICY_PCR = 0x17F
EO_UNSIGNED_LE = 0x0009
"""TPM2_EO (Part 2, 6.8): the NV index holds a value less than or equal to the operand."""

# Part 2, 8.3.2: userWithAuth, sign
_POLICY_KEY_ATTRIBUTES = 0x00040040
# Part 2, 13.4: AUTHWRITE, TPM_NT_COUNTER, AUTHREAD, NO_DA; WRITTEN is part of the name once it has been incremented.
POLICY_COUNTER_ATTRIBUTES = 0x00000004 | 0x00000010 | 0x00040000 | 0x02000000
_NV_WRITTEN = 0x20000000

_SEPARATOR_ONLY = hashlib.sha256(_ZERO + hashlib.sha256(bytes(4)).digest()).digest()
"""A PCR into which a firmware without Secure Boot has measured EV_SEPARATOR and nothing else."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What states of the machine the KEK is bound to.

    Attributes:
        kind: `none`: no PCR. `secure-boot`: PCR 7, the firmware's Secure Boot policy. `custom`: the PCRs named.
        pcrs: indices in the SHA-256 bank, ascending; may be left empty for `secure-boot`.
        policy_key: the vendor's public key, an uncompressed P-256 point; None for `none`.

    Raises:
        ValueError: these do not fit each other.
    """

    kind: Kind = "none"
    pcrs: tuple[int, ...] = ()
    policy_key: bytes | None = None

    def __post_init__(self) -> None:
        """Checks the attributes against each other."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.kind!r} is no kind of binding: none, secure-boot or custom")
        if self.kind == "secure-boot" and self.pcrs == ():
            object.__setattr__(self, "pcrs", (SECURE_BOOT_PCR,))
        if list(self.pcrs) != sorted(set(self.pcrs)) or any(not 0 <= index < PCR_COUNT for index in self.pcrs):
            raise ValueError(f"{self.pcrs} are not ascending PCR indices from 0 to {PCR_COUNT - 1}")
        if self.kind == "none":
            if self.pcrs or self.policy_key is not None:
                raise ValueError("a binding to nothing has neither PCRs nor a policy key")
            return
        if self.kind == "secure-boot" and self.pcrs != (SECURE_BOOT_PCR,):
            raise ValueError(f"the binding secure-boot means PCR {SECURE_BOOT_PCR} and no other; use custom")
        if not self.pcrs:
            raise ValueError("the binding custom needs at least one PCR")
        if self.policy_key is None:
            raise ValueError("a binding to PCRs needs the vendor's policy key: without it, an update would lock the agent out")
        _public_key(self.policy_key)


NO_BINDING = Binding()


def policy_key_from_pem(pem: bytes) -> bytes:
    """The vendor's public key, from a PEM file, as `Binding` takes it.

    Raises:
        ValueError: it is no public key on P-256.
    """
    key = load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the policy key must be an ECC key on P-256")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    if len(point) != _POINT or point[0] != 4:
        raise ValueError("the policy key is not an uncompressed P-256 point")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


# Digests (Part 3, 23). A policy session starts from 32 zeros and is extended by each assertion.


def _extended(policy: bytes, command: int, *arguments: bytes) -> bytes:
    return hashlib.sha256(policy + struct.pack(">I", command) + b"".join(arguments)).digest()


def pcr_selection(pcrs: Iterable[int]) -> bytes:
    """A marshalled TPML_PCR_SELECTION (Part 2, 10.9.7) of the SHA-256 bank."""
    bits = sum(1 << index for index in set(pcrs))
    return struct.pack(">IHB", 1, _ALG_SHA256, 3) + bits.to_bytes(3, "little")


def pcr_digest(values: Mapping[int, bytes]) -> bytes:
    """SHA-256 over the values in the order of their indices (Part 1, 17.5)."""
    return hashlib.sha256(b"".join(values[index] for index in sorted(values))).digest()


def policy_pcr(policy: bytes, values: Mapping[int, bytes]) -> bytes:
    """`policy` after TPM2_PolicyPCR (Part 3, 23.7)."""
    return _extended(policy, _CC_POLICY_PCR, pcr_selection(values), pcr_digest(values))


def policy_nv(policy: bytes, operand: bytes, offset: int, operation: int, name: bytes) -> bytes:
    """`policy` after TPM2_PolicyNV (Part 3, 23.9) with the NV index of that name."""
    arguments = hashlib.sha256(operand + struct.pack(">HH", offset, operation)).digest()
    return _extended(policy, _CC_POLICY_NV, arguments, name)


def policy_authorize(key_name: bytes, policy_ref: bytes = POLICY_REF) -> bytes:
    """A policy after TPM2_PolicyAuthorize (Part 3, 23.16), which forgets what was asserted before it."""
    return hashlib.sha256(_extended(_ZERO, _CC_POLICY_AUTHORIZE, key_name) + policy_ref).digest()


def policy_auth_value(policy: bytes) -> bytes:
    """`policy` after TPM2_PolicyAuthValue (Part 3, 23.17)."""
    return _extended(policy, _CC_POLICY_AUTH_VALUE)


def kek_policy(binding: Binding) -> bytes:
    """authPolicy of the sealed KEK."""
    if binding.policy_key is None:
        return policy_auth_value(_ZERO)
    return policy_auth_value(policy_authorize(policy_key_name(binding.policy_key)))


def _name(public_area: bytes) -> bytes:
    """A name (Part 1, 16)."""
    return struct.pack(">H", _ALG_SHA256) + hashlib.sha256(public_area).digest()


def policy_key_public(point: bytes) -> bytes:
    """The TPMT_PUBLIC (Part 2, 12.2.4) under which a TPM loads the vendor's key: an ECDSA key with SHA-256 on P-256."""
    return (
        struct.pack(">HHIH", _ALG_ECC, _ALG_SHA256, _POLICY_KEY_ATTRIBUTES, 0)
        + struct.pack(">HHHHH", _ALG_NULL, _ALG_ECDSA, _ALG_SHA256, _ECC_NIST_P256, _ALG_NULL)
        + struct.pack(">H32sH32s", 32, point[1:33], 32, point[33:])
    )


def policy_key_name(point: bytes) -> bytes:
    """Name of the vendor's key."""
    return _name(policy_key_public(point))


def tpmt_signature(signature: bytes) -> bytes:
    """A marshalled TPMT_SIGNATURE (Part 2, 11.3.4): ECDSA with SHA-256.

    Args:
        signature: r || s, 32 bytes each.
    """
    return struct.pack(">HHH32sH32s", _ALG_ECDSA, _ALG_SHA256, 32, signature[:32], 32, signature[32:])


def policy_counter_name(nv_base: int = NV_BASE) -> bytes:
    """Name of the policy counter, once it has been incremented. It is the same on every machine: its auth value has no part."""
    attributes = POLICY_COUNTER_ATTRIBUTES | _NV_WRITTEN
    return _name(struct.pack(">IHIHH", nv_base + NV_POLICY_COUNTER, _ALG_SHA256, attributes, 0, 8))


def approved_policy(pcr_values: Mapping[int, bytes], number: int, nv_base: int = NV_BASE) -> bytes:
    """What the vendor signs: these PCR values, on machines whose policy counter does not exceed `number`."""
    return policy_nv(policy_pcr(_ZERO, pcr_values), number.to_bytes(8, "big"), 0, EO_UNSIGNED_LE, policy_counter_name(nv_base))


# Signed policies


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """PCR values that the vendor has approved. Public: it holds nothing secret.

    Attributes:
        pcrs: index and value (SHA-256 bank), ascending.
        number: machines whose policy counter exceeds it refuse it.
        nv_base: where the machines it is for have their NV indices.
        signature: ES256 over approved policy and `POLICY_REF`, 64 bytes, r || s.
    """

    pcrs: tuple[tuple[int, bytes], ...]
    number: int
    nv_base: int
    signature: bytes

    @property
    def values(self) -> dict[int, bytes]:
        """The PCR values by index."""
        return dict(self.pcrs)

    @property
    def approved(self) -> bytes:
        """Digest of the policy that is signed."""
        return approved_policy(self.values, self.number, self.nv_base)

    def is_signed_by(self, policy_key: bytes) -> bool:
        """Whether the vendor's key has made the signature. The TPM checks it too; here it is for the sake of a clear error."""
        r, s = (int.from_bytes(part, "big") for part in (self.signature[:32], self.signature[32:]))
        try:
            _public_key(policy_key).verify(encode_dss_signature(r, s), self.approved + POLICY_REF, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def sign_pcr_policy(
    private_key: ec.EllipticCurvePrivateKey, pcr_values: Mapping[int, bytes], number: int, nv_base: int = NV_BASE
) -> SignedPolicy:
    """Approves PCR values; run where the vendor keeps the private key, never on a machine.

    Args:
        private_key: on P-256.
        pcr_values: values of the SHA-256 bank by index, 32 bytes each.
        number: from 1; raise it with each set of policies that may have to be revoked without the newer ones. It must not be
            lower than the policy counters of the machines, which start where older counters of the same TPM ended.
        nv_base: where the machines have their NV indices.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not isinstance(private_key.curve, ec.SECP256R1):
        raise ValueError("the policy key must be on P-256")
    pcrs = tuple(sorted(pcr_values.items()))
    _check_policy(pcrs, number, nv_base)
    approved = approved_policy(dict(pcrs), number, nv_base)
    r, s = decode_dss_signature(private_key.sign(approved + POLICY_REF, ec.ECDSA(hashes.SHA256())))
    return SignedPolicy(pcrs, number, nv_base, r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def _check_policy(pcrs: tuple[tuple[int, bytes], ...], number: int, nv_base: int) -> None:
    if not pcrs or any(not 0 <= index < PCR_COUNT for index, _value in pcrs):
        raise ValueError(f"a policy needs PCR indices from 0 to {PCR_COUNT - 1}")
    if any(len(value) != _DIGEST for _index, value in pcrs):
        raise ValueError("a PCR value has 32 bytes")
    if not 1 <= number <= MAX_NUMBER:
        raise ValueError(f"a policy's number lies between 1 and {MAX_NUMBER}")
    if not 0x01000000 <= nv_base <= 0x01FFFFF0:
        raise ValueError(f"0x{nv_base:x} is no place for NV indices")


class _PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Digests, signature: hex in lower case."""

    format: str
    number: int
    nv_base: int
    pcrs: dict[str, str]
    signature: str


def encode_policy(policy: SignedPolicy) -> bytes:
    """The signed policy as a JSON file."""
    file = _PolicyFile(
        format=_FORMAT,
        number=policy.number,
        nv_base=policy.nv_base,
        pcrs={str(index): value.hex() for index, value in policy.pcrs},
        signature=policy.signature.hex(),
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def parse_policy(data: bytes) -> SignedPolicy:
    """The signed policy in a file. That the signature holds is not checked here.

    Raises:
        ValueError: `data` is not what `encode_policy` writes: a field too many or too few, or a value out of its range.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise ValueError(f"a signed policy has at most {MAX_POLICY_BYTES} bytes, not {len(data)}")
    try:
        file = msgspec.json.decode(data, type=_PolicyFile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not a signed policy: {json_text(error)}") from None
    if file.format != _FORMAT:
        raise ValueError(f"the signed policy has the format {file.format!r}, not {_FORMAT!r}")
    if any(not re.fullmatch(r"0|[1-9][0-9]?", index) for index in file.pcrs):
        raise ValueError("the signed policy names PCRs that do not exist")
    pcrs = tuple(sorted((int(index), _hex(value, _DIGEST)) for index, value in file.pcrs.items()))
    _check_policy(pcrs, file.number, file.nv_base)
    return SignedPolicy(pcrs, file.number, file.nv_base, _hex(file.signature, 64))


def _hex(text: str, size: int) -> bytes:
    if not re.fullmatch(r"[0-9a-f]+", text) or len(text) != 2 * size:
        raise ValueError(f"the signed policy holds what is not {size} bytes in hex")
    return bytes.fromhex(text)


# Which policy fits


def check_initialized(binding: Binding, values: Mapping[int, bytes]) -> None:
    """Whether the PCRs of the binding say anything at all.

    Raises:
        PcrUninitialized: one is missing, all zeros or all ones, or is PCR 7 as firmware without Secure Boot leaves it.
    """
    missing = [index for index in binding.pcrs if index not in values]
    if missing:
        raise PcrUninitialized(f"this TPM has no SHA-256 bank for PCR {_list(missing)}: switch the bank on in the firmware")
    blank = [index for index in binding.pcrs if values[index] in (_ZERO, b"\xff" * _DIGEST)]
    if blank:
        raise PcrUninitialized(
            f"PCR {_list(blank)} has never been extended on this machine, so a binding to it would prove nothing: "
            "switch measured boot on in the firmware, or choose other PCRs"
        )
    if binding.kind == "secure-boot" and values[SECURE_BOOT_PCR] == _SEPARATOR_ONLY:
        raise PcrUninitialized(
            f"PCR {SECURE_BOOT_PCR} holds the separator only: the firmware knows no Secure Boot, choose another binding"
        )


def choose_policy(
    policies: Iterable[SignedPolicy], binding: Binding, values: Mapping[int, bytes], counter: int, nv_base: int
) -> SignedPolicy:
    """The signed policy for the present state of the machine; the one with the highest number, if several fit.

    Raises:
        PcrUninitialized: a PCR of the binding proves nothing.
        PcrMismatch: none fits; the text says why not.
    """
    check_initialized(binding, values)
    if binding.policy_key is None:
        raise ValueError("a binding to nothing needs no policy")
    present = tuple((index, values[index]) for index in binding.pcrs)
    ours = [
        policy
        for policy in policies
        if policy.nv_base == nv_base and tuple(policy.values) == binding.pcrs and policy.is_signed_by(binding.policy_key)
    ]
    fitting = [policy for policy in ours if policy.pcrs == present]
    valid = [policy for policy in fitting if policy.number >= counter]
    if valid:
        return max(valid, key=lambda policy: policy.number)
    if fitting:
        newest = max(policy.number for policy in fitting)
        raise PcrMismatch(
            f"the policy for the present values of PCR {_list(binding.pcrs)} has been revoked: its number is {newest}, the "
            f"policy counter is at {counter}; install one with a number from {counter} on"
        )
    if not ours:
        raise PcrMismatch(f"no policy for PCR {_list(binding.pcrs)} that the vendor's key has signed is installed")
    differing = min(([index for index in binding.pcrs if policy.values[index] != values[index]] for policy in ours), key=len)
    raise PcrMismatch(
        f"PCR {_list(differing)} has a value that no signed policy knows: firmware, boot loader or kernel have changed; "
        "install the vendor's policy for this state, or go back to the one before"
    )


def _list(indices: Iterable[int]) -> str:
    return ", ".join(map(str, indices))
