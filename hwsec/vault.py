"""Keeps secrets encrypted in memory, under a key that exists in this process only, in secret memory.

A secret is opened into secret memory for the length of a `with` block and wiped at its end.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .secretmem import SecretBuffer

SECRET_BYTES = 32
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True, repr=False)
class WrappedSecret:
    """A 32-byte secret as it rests in memory: nonce and AES-256-GCM ciphertext under the process key."""

    nonce: bytes
    ciphertext: bytes

    def __repr__(self) -> str:
        return "<wrapped secret>"


class Vault:
    """Wraps and opens secrets of 32 bytes. Safe to use from several threads."""

    def __init__(self) -> None:
        self._key = SecretBuffer(SECRET_BYTES)
        os_random_into(self._key.view)
        self._scratch = SecretBuffer(SECRET_BYTES)
        self._scratch_lock = threading.Lock()
        self._closed = False
        nonce = os.urandom(_NONCE_BYTES)
        self._nothing = WrappedSecret(nonce, AESGCM(self._key.view).encrypt(nonce, bytes(SECRET_BYTES), None))
        self._opened_nothing = bytearray(SECRET_BYTES)

    def wrap(self, secret: SecretBuffer) -> WrappedSecret:
        """Encrypts a secret for its time at rest. The caller closes `secret`.

        Raises:
            ValueError: `secret` has not 32 bytes, or the vault is closed.
        """
        self._require_open()
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
        nonce = os.urandom(_NONCE_BYTES)
        cipher = AESGCM(self._key.view)
        wrapped = WrappedSecret(nonce, cipher.encrypt(nonce, secret.view, None))
        self._cover_stack(cipher)
        return wrapped

    def _cover_stack(self, cipher: AESGCM) -> None:
        """Overwrites the last block of a secret, which the cipher leaves on the stack, with zeros in the same place."""
        cipher.decrypt_into(self._nothing.nonce, self._nothing.ciphertext, None, self._opened_nothing)

    @contextmanager
    def open(self, wrapped: WrappedSecret) -> Iterator[SecretBuffer]:
        """The secret in clear, in secret memory, until the block ends.

        Raises:
            ValueError: the vault is closed.
            InvalidTag: `wrapped` is not of this vault.
        """
        self._require_open()
        # One scratch page serves nearly every use: a mapping of its own for each would cost more than the decryption.
        shared = self._scratch_lock.acquire(blocking=False)
        buffer = self._scratch if shared else SecretBuffer(SECRET_BYTES)
        try:
            cipher = AESGCM(self._key.view)
            cipher.decrypt_into(wrapped.nonce, wrapped.ciphertext, None, buffer.view)
            self._cover_stack(cipher)
            yield buffer
        finally:
            if not shared:
                buffer.close()
            else:
                if self._closed:
                    buffer.close()
                else:
                    buffer.wipe()
                self._scratch_lock.release()

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the vault is closed")

    def close(self) -> None:
        """Wipes the process key: what was wrapped can no longer be opened. A secret that is open stays until its block ends."""
        self._closed = True
        self._key.close()
        if self._scratch_lock.acquire(blocking=False):
            self._scratch.close()
            self._scratch_lock.release()


def os_random_into(view: memoryview) -> None:
    """Fills `view` with bytes of the kernel's generator, without leaving a copy."""
    with open("/dev/urandom", "rb", buffering=0) as source:
        filled = 0
        while filled < len(view):
            filled += source.readinto(view[filled:]) or 0
