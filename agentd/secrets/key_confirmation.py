"""Computes the agent's side of key confirmation: whether agent and server hold the same secret, without revealing it."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from contracts.jose import b64encode
from hwsec.vault import Vault, WrappedSecret

KEY_CHECK_BYTES = 16


def key_check(vault: Vault, wrapped: WrappedSecret, agent_id: str, version: int) -> str:
    """The check of a secret version, 22 characters of base64url."""
    info = f"license-agent/key-check/{agent_id}/{version}".encode()
    with vault.open(wrapped) as secret:
        made = HKDF(algorithm=hashes.SHA256(), length=KEY_CHECK_BYTES, salt=None, info=info).derive(secret.view)
    return b64encode(made)
