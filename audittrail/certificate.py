"""Reads certificates of checkpoints: the hardware's signed statement of the audit value. Nothing here performs IO.

A TPM gives a TPMS_ATTEST of TPM2_NV_Certify over the audit NV index (TPM 2.0 Library, Part 3, 31.16; Part 2, 10.12), signed by
its attestation key. The software backend, which has no hardware to speak for it, signs a form of its own that no TPM makes.
"""

from dataclasses import dataclass

_GENERATED = 0xFF544347  # TPM_GENERATED_VALUE, Part 2, 6.2: no other signature of a restricted key begins like this
_ATTEST_NV = 0x8014  # TPM_ST_ATTEST_NV, Part 2, 6.9
_CLOCK_INFO_BYTES = 8 + 4 + 4 + 1
_FIRMWARE_BYTES = 8
_SOFTWARE = b"LASW"
VALUE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was certified.

    Attributes:
        value: the audit value, 32 bytes.
        nonce: what the asker gave, so that an old certificate is not taken for a new one.
        by_tpm: False for the software backend's.
        index_name: name of the NV index; it tells its attributes. Empty for software.
        reset_count: of the TPM; 0 for software.
    """

    value: bytes
    nonce: bytes
    by_tpm: bool
    index_name: bytes = b""
    reset_count: int = 0


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise ValueError("the certificate is cut short")
        self._at += size
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        """A TPM2B structure: two bytes of length, then the content."""
        return self.take(self.number(2))

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("the certificate has more bytes than it should")


def parse(attested: bytes) -> Certificate:
    """What `attested` says. Its signature is another matter.

    Raises:
        ValueError: it is no certificate of an audit value.
    """
    reader = _Reader(attested)
    if attested.startswith(_SOFTWARE):
        reader.take(len(_SOFTWARE))
        nonce = reader.take(reader.number(1))
        value = reader.take(VALUE_BYTES)
        reader.end()
        return Certificate(value, nonce, by_tpm=False)
    if reader.number(4) != _GENERATED or reader.number(2) != _ATTEST_NV:
        raise ValueError("not a TPM's certificate of an NV index")
    reader.sized()
    nonce = reader.sized()
    clock = reader.take(_CLOCK_INFO_BYTES)
    reader.take(_FIRMWARE_BYTES)
    name, offset, value = reader.sized(), reader.number(2), reader.sized()
    reader.end()
    if offset != 0 or len(value) != VALUE_BYTES:
        raise ValueError("the certificate is not over a whole audit value")
    return Certificate(value, nonce, by_tpm=True, index_name=name, reset_count=int.from_bytes(clock[8:12], "big"))
