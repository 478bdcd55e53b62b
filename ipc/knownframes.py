"""Recognizes frames of `validate_license` whose token came before by their bytes, without decoding. Nothing here performs IO.

A till validates the same license again and again; its frames differ in the id and the nonce only. MessagePack is free of
prefixes: bytes that were decoded between two values mean the same between any two others. So a frame that has the length, the
head and the rest of one that the strict decoder took, with an id in its shortest form between them and 16 bytes at the end, is
a request that the decoder would take too, with the same token, that id and those 16 bytes as its nonce.
"""

from typing import Final

import msgspec

from .bounds import HEADER_BYTES, MAX_ID, NONCE_BYTES
from .messages import ValidateLicense

_HEAD: Final = b"\x85\xa1v\x01\xa2id"
_NONCE_HEAD: Final = b"\xa5nonce\xc4\x10"
_ID_AT: Final = HEADER_BYTES + len(_HEAD)
_TOKEN_END: Final = NONCE_BYTES + len(_NONCE_HEAD)
_KEY_BYTES: Final = 16

_encode = msgspec.msgpack.Encoder().encode
_ID_FORMS: Final = tuple(
    (len(_encode(least)), _encode(least), _encode(most))
    for least, most in ((0, 127), (128, 2**8 - 1), (2**8, 2**16 - 1), (2**16, 2**32 - 1), (2**32, MAX_ID))
)
"""The shortest forms of an id: bytes, the first id and the last one. In between the bytes are in the order of the numbers."""


class KnownFrame:
    """What the frames of one token have in common.

    Args:
        rest: the bytes between id and nonce.
    """

    __slots__ = ("_forms", "_rest")

    def __init__(self, rest: bytes) -> None:
        self._rest = rest
        self._forms = {}
        for size, least, most in _ID_FORMS:
            length = len(_HEAD) + size + len(rest) + NONCE_BYTES
            head = length.to_bytes(HEADER_BYTES, "big") + _HEAD
            self._forms[HEADER_BYTES + length] = (head, _ID_AT + size, least, most)

    def id_in(self, frame: bytes) -> bytes | None:
        """The encoded id of a frame that is of this token; None of any other."""
        form = self._forms.get(len(frame))
        if form is None:
            return None
        head, end, least, most = form
        if frame.startswith(self._rest, end) and frame.startswith(head) and least <= (found := frame[_ID_AT:end]) <= most:
            return found
        return None


def key_of(frame: bytes) -> bytes:
    """What tells the frames of different tokens apart in a table: the end of the token."""
    return frame[-_TOKEN_END - _KEY_BYTES : -_TOKEN_END]


def known_from(body: bytes, request: ValidateLicense) -> KnownFrame | None:
    """What the frames of a token have in common; None where the client encodes in another order, or more wordily, than ours.

    Args:
        body: of a frame.
        request: what the strict decoder made of it.
    """
    rest = _encode({"op": "validate_license", "token": request.token})[1:] + _NONCE_HEAD
    return KnownFrame(rest) if body == _HEAD + _encode(request.id) + rest + request.nonce else None
