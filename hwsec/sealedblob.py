"""Encrypts a secret of any length under the KEK, as bytes that may be stored anywhere. Nothing here performs IO.

    "LASBLOB1" | nonce (12 bytes) | AES-256-GCM ciphertext with its tag (16 bytes)

The key is derived from the KEK for this purpose alone; head and name are the associated data, so that no blob can replace
another. Nothing here distinguishes an older blob of the same name from the newest: keep blobs in a section of the sealed store,
whose anchor does.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import BlobCorrupt
from .secretmem import SecretBuffer

MAGIC = b"LASBLOB1"
CONTENT_MAX = 64 * 1024
_NONCE = 12
_TAG = 16
_HEAD = len(MAGIC) + _NONCE


def seal_blob(kek: SecretBuffer, name: str, data: bytes | bytearray | memoryview) -> bytes:
    """`data` as it may lie on a disk.

    Args:
        kek: from `Backend.kek`.
        name: what the blob is; the same is needed to open it.
        data: 1 to `CONTENT_MAX` bytes; best a view of secret memory, of which no copy is made.

    Raises:
        ValueError: `data` is empty or too long.
    """
    if not 1 <= len(data) <= CONTENT_MAX:
        raise ValueError(f"a sealed blob holds 1 to {CONTENT_MAX} bytes, not {len(data)}")
    nonce = os.urandom(_NONCE)
    with SecretBuffer(32) as key:
        _derive(kek, key)
        return MAGIC + nonce + AESGCM(key.view).encrypt(nonce, data, _associated(name))


def open_blob(kek: SecretBuffer, name: str, blob: bytes) -> SecretBuffer:
    """What `seal_blob` was given, in secret memory; the caller closes it.

    Raises:
        BlobCorrupt: it does not authenticate under this KEK and this name.
    """
    size = len(blob) - _HEAD - _TAG
    if not 1 <= size <= CONTENT_MAX or not blob.startswith(MAGIC):
        raise BlobCorrupt(f"what is kept as {name!r} is no sealed blob of this version")
    buffer = SecretBuffer(size)
    try:
        with SecretBuffer(32) as key:
            _derive(kek, key)
            AESGCM(key.view).decrypt_into(blob[len(MAGIC) : _HEAD], blob[_HEAD:], _associated(name), buffer.view)
    except InvalidTag:
        buffer.close()
        raise BlobCorrupt(f"the sealed blob {name!r} was changed, or sealed under another key or name") from None
    except BaseException:
        buffer.close()
        raise
    return buffer


def _derive(kek: SecretBuffer, into: SecretBuffer) -> None:
    HKDF(hashes.SHA256(), 32, salt=None, info=b"license-agent blob v1").derive_into(kek.view, into.view)


def _associated(name: str) -> bytes:
    return MAGIC + name.encode()
