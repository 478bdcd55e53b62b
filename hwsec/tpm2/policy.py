"""Reads PCRs, and makes the KEK policy's assertions in a policy session. `hwsec.pcr.policy` says which policy it is."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ..pcr.policy import (
    EO_UNSIGNED_LE,
    POLICY_REF,
    SignedPolicy,
    pcr_digest,
    pcr_selection,
    policy_key_name,
    policy_key_public,
    tpmt_signature,
)
from .codes import RC_PCR_CHANGED, RC_POLICY, RC_VALUE
from .transport import Transport

MOVED = (RC_PCR_CHANGED, RC_VALUE, RC_POLICY)
"""What the TPM answers where PCRs or policy counter have moved since they were read."""
_READ_AT_ONCE = 8  # digests in one answer (Part 2, 10.9.4: TPML_DIGEST)


def _selection(tpm: Transport, indices: Iterable[int]) -> Any:
    return tpm.t.TPML_PCR_SELECTION.unmarshal(pcr_selection(indices))[0]


def read_pcrs(tpm: Transport, indices: Iterable[int]) -> dict[int, bytes]:
    """Values of the SHA-256 bank (TPM2_PCR_Read: Part 3, 22.4). What the TPM does not have is left out.

    Read in a salted session, so that nobody on the bus can make up an answer: the vendor may be about to sign it.
    """
    wanted = sorted(set(indices))
    if not wanted:
        return {}
    with tpm.fresh_session(tpm.t.TPM2_SE.HMAC, encrypts=False, audits=True) as session:
        return _read(tpm, wanted, session)


def _read(tpm: Transport, wanted: list[int], session: Any) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    for start in range(0, len(wanted), _READ_AT_ONCE):
        part = wanted[start : start + _READ_AT_ONCE]
        selection = _selection(tpm, part)
        _counter, read, digests = tpm.run(lambda e, selection=selection: e.pcr_read(selection, session1=session))  # type: ignore[misc]
        marshalled = bytes(read.marshal())
        # One bank was asked for; its three bytes of bits come last, where it is there at all.
        bits = int.from_bytes(marshalled[-3:], "little") if len(marshalled) >= 10 else 0
        present = [index for index in part if bits >> index & 1]
        values.update(zip(present, (bytes(digest) for digest in digests), strict=False))
    return values


def assert_auth_value(tpm: Transport, session: Any) -> None:
    """TPM2_PolicyAuthValue (Part 3, 23.17)."""
    tpm.run(lambda e: e.policy_auth_value(session))


def assert_signed(
    tpm: Transport, session: Any, signed: SignedPolicy, policy_key: bytes, counter: AbstractContextManager[Any]
) -> None:
    """PolicyPCR, PolicyNV and PolicyAuthorize (Part 3, 23.7, 23.9, 23.16).

    Args:
        tpm: the connection.
        session: a new policy session.
        signed: what the vendor has approved.
        policy_key: the vendor's public point.
        counter: gives the handle of the policy counter, its auth value set.

    Raises:
        TpmRefusal: the PCRs have other values, the counter has passed the number, or the signature does not hold.
    """
    values: Mapping[int, bytes] = signed.values
    selection = _selection(tpm, values)
    tpm.run(lambda e: e.policy_pcr(session, pcr_digest(values), selection), MOVED)
    operand = signed.number.to_bytes(8, "big")
    with counter as handle:
        tpm.run(lambda e: e.policy_nv(handle, handle, session, operand, EO_UNSIGNED_LE, 0, session1=tpm.session), MOVED)
    ticket = _ticket(tpm, signed, policy_key)
    name = policy_key_name(policy_key)
    tpm.run(lambda e: e.policy_authorize(session, signed.approved, name, ticket, POLICY_REF), MOVED)


def _ticket(tpm: Transport, signed: SignedPolicy, policy_key: bytes) -> Any:
    """The TPM's own word that the signature holds (TPM2_VerifySignature: Part 3, 20.1), for the policy session."""
    t = tpm.t
    public = tpm.public_template(policy_key_public(policy_key))
    # Not the null hierarchy: its tickets prove nothing (Part 2, 10.7.4).
    key = tpm.run(lambda e: e.load_external(public, hierarchy=t.ESYS_TR.OWNER))
    try:
        digest = hashlib.sha256(signed.approved + POLICY_REF).digest()
        signature = t.TPMT_SIGNATURE.unmarshal(tpmt_signature(signed.signature))[0]
        return tpm.run(lambda e: e.verify_signature(key, digest, signature))
    finally:
        tpm.flush_quietly(key)
