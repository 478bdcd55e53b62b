"""What a backend offers. One contract, kept by the TPM, the software fallback and the memory backend of the tests."""

import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from .secretmem import SecretBuffer

DIGEST_BYTES = 32
POINT_BYTES = 65
"""An uncompressed point of P-256 (SEC 1, 2.3.3)."""

_ANCHOR = struct.Struct(">4sQ32sIQQQB")
_MAGIC = b"LAA1"
ANCHOR_BYTES = _ANCHOR.size


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the TPM keeps about the newest store.

    Attributes:
        generation: number of the commit.
        digest: SHA-256 of the store file.
        version: the active secret's version, 0 if there is none.
        valid_from: seconds since 1970 UTC.
        valid_until: seconds since 1970 UTC.
        grace_until: seconds since 1970 UTC.
        state: a number that the store's user gives meaning to.
    """

    generation: int
    digest: bytes
    version: int = 0
    valid_from: int = 0
    valid_until: int = 0
    grace_until: int = 0
    state: int = 0

    def encode(self) -> bytes:
        """`ANCHOR_BYTES` bytes, as they stand in the NV index."""
        return _ANCHOR.pack(
            _MAGIC,
            self.generation,
            self.digest,
            self.version,
            self.valid_from,
            self.valid_until,
            self.grace_until,
            self.state,
        )

    @classmethod
    def decode(cls, data: bytes) -> "Anchor":
        """The anchor in `data`.

        Raises:
            ValueError: `data` is not an anchor.
        """
        if len(data) != ANCHOR_BYTES or data[:4] != _MAGIC:
            raise ValueError("not an anchor")
        return cls(*_ANCHOR.unpack(data)[1:])


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """For people and metrics.

    Attributes:
        name: `tpm`, `software` or `memory`.
        available: whether it answers now.
        detail: a sentence, or names and figures of the hardware.
        protects_stolen_disk: False for the software backend.
        nv_writes: NV writes of this run.
    """

    name: str
    available: bool
    detail: str
    protects_stolen_disk: bool
    nv_writes: int = 0


class Backend(Protocol):
    """Guards the KEK, the anchor, the audit value and the key-agreement key.

    No method is called from two threads at once. All raise BackendUnavailable when the hardware does not answer. After
    `create` a backend is open. One that is not open, or was closed, raises NotEnrolled for all but `create`, `open`,
    `random`, `status` and `close`.
    """

    @property
    def name(self) -> str:
        """`tpm`, `software` or `memory`."""
        ...

    def create(self) -> None:
        """Makes KEK, anchor, audit value and key-agreement key.

        Raises:
            AlreadyEnrolled: they exist.
        """
        ...

    def open(self) -> None:
        """Makes ready what `create` made.

        Raises:
            NotEnrolled: nothing has been created.
            ForeignHardware: it was created on other hardware.
        """
        ...

    def kek(self) -> AbstractContextManager[SecretBuffer]:
        """The KEK, in secret memory, for the length of a `with` block."""
        ...

    def read_anchor(self) -> tuple[Anchor | None, int]:
        """The anchor last written (None before the first) and the counter."""
        ...

    def write_anchor(self, anchor: Anchor) -> None:
        """First half of a commit: names the new store."""
        ...

    def increment(self) -> int:
        """Second half of a commit: adds 1 to the counter, which never goes back, and returns it."""
        ...

    def read_audit(self) -> bytes:
        """The audit value: 32 bytes, at first zeros."""
        ...

    def extend_audit(self, head: bytes) -> bytes:
        """Sets the audit value to SHA-256(value || head), as TPM2_NV_Extend does, and returns it."""
        ...

    def agreement_public(self) -> bytes:
        """Public point of the key-agreement key: 65 bytes, uncompressed, P-256."""
        ...

    def agree(self, peer_point: bytes) -> SecretBuffer:
        """The x coordinate of the shared point (32 bytes) with a peer's public point; the caller closes it.

        Raises:
            ValueError: it is not an uncompressed point on the curve.
        """
        ...

    def random(self, size: int) -> bytes:
        """Random bytes in which the hardware's generator has a part."""
        ...

    def status(self) -> BackendStatus:
        """Never raises; what cannot be asked is reported as not available."""
        ...

    def close(self) -> None:
        """Gives sessions and objects back. May be called twice."""
        ...
