"""Defines the errors of the local protocol.

Codes are append-only: a number is never given another meaning, and one that falls out of use stays reserved. What the daemon
cannot map to a code becomes INTERNAL without detail.
"""

from enum import IntEnum
from typing import Self


class ErrorCode(IntEnum):
    """What an error reply carries in `error.code`."""

    INTERNAL = 1
    """The daemon failed in a way that it does not describe to its peer; the journal has the details."""
    FRAME_TOO_LARGE = 2
    """The length prefix is above the ceiling. The connection is closed."""
    BAD_MESSAGE = 3
    """The body is not one MessagePack map with text keys, each at most once. The connection is closed."""
    UNSUPPORTED_VERSION = 4
    """`v` is not a version that the daemon speaks; the text names those that it does."""
    UNKNOWN_OP = 5
    BAD_REQUEST = 6
    """A field is missing, unknown, of the wrong type or out of its bounds; the text names it."""
    FORBIDDEN = 7
    """The kernel says that the peer is a user who is not on the allow-list. The connection is closed."""
    RATE_LIMITED = 8
    """Too many requests, connections or nonces from this user. Wait a second."""
    NONCE_REPLAYED = 9
    """This user has used this nonce before. A client makes a fresh one for each attempt."""
    AGENT_MISCONFIGURED = 10
    """The daemon runs, but cannot work until an administrator fixes what its journal names."""
    SHUTTING_DOWN = 11
    """The daemon is stopping. Connect again."""
    TIMED_OUT = 12
    """The peer was silent, or left a frame unfinished, for too long. The connection is closed."""
    NOT_FOUND = 13
    """What the request names does not exist (a secret version, a license)."""
    REFUSED = 14
    """The request is well formed, and the daemon's rules forbid it; the text says which."""
    UNAVAILABLE = 15
    """Something that the daemon needs for this request is not working at the moment (TPM, disk)."""
    UNAUTHENTICATED = 16
    """An administrator's certificate must sign this request, or the one that did does not count; the text says why."""


class LicenseAgentError(Exception):
    """The base of every error of the client library: a handler for it catches them all.

    A part of the protocol that the daemon shares raises some of them too.
    """


class ProtocolError(LicenseAgentError):
    """A rule of the protocol was broken.

    Attributes:
        code: the number on the wire.
        request_id: the request that it answers, where that is known.
    """

    def __init__(self, code: ErrorCode, text: str, request_id: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.request_id = request_id

    def __reduce__(self) -> tuple[type[Self], tuple[ErrorCode, str, int | None]]:
        # A till's worker process sends its error to the parent.
        return type(self), (self.code, self.text, self.request_id)


class LocalProtocolError(ProtocolError):
    """We were about to break a rule of the protocol ourselves; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer broke a rule of the protocol."""
