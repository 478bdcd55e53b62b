"""Reads certificates of checkpoints: the hardware's signed statement of the audit value. Nothing here performs IO.

A TPM gives a TPMS_ATTEST of TPM2_NV_Certify over the audit NV index (TPM 2.0 Library, Part 3, 31.16; Part 2, 10.12), signed by
its attestation key. The software backend, which has no hardware to speak for it, signs a form of its own that no TPM makes.
"""

_GENERATED = 0xFF544347  # TPM_GENERATED_VALUE, Part 2, 6.2: no other signature of a restricted key begins like this
_ATTEST_NV = 0x8014  # TPM_ST_ATTEST_NV, Part 2, 6.9
_CLOCK_INFO_BYTES = 8 + 4 + 4 + 1
_FIRMWARE_BYTES = 8
_SOFTWARE = b"LASW"
VALUE_BYTES = 32


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


def certified_value(attested: bytes) -> bytes:
    """Returns the audit value, 32 bytes, that `attested` is about. Does not check its signature.

    Raises:
        ValueError: it is not a certificate of an audit value.
    """
    reader = _Reader(attested)
    if attested.startswith(_SOFTWARE):
        reader.take(len(_SOFTWARE))
        reader.take(reader.number(1))  # the nonce
        value = reader.take(VALUE_BYTES)
        reader.end()
        return value
    if reader.number(4) != _GENERATED or reader.number(2) != _ATTEST_NV:
        raise ValueError("not a TPM's certificate of an NV index")
    reader.sized()  # who signed
    reader.sized()  # the nonce
    reader.take(_CLOCK_INFO_BYTES + _FIRMWARE_BYTES)
    reader.sized()  # the index's name
    offset, value = reader.number(2), reader.sized()
    reader.end()
    if offset != 0 or len(value) != VALUE_BYTES:
        raise ValueError("the certificate is not over a whole audit value")
    return value
