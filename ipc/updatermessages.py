"""Defines the messages between core and updater, and all their bounds. Nothing here performs IO.

One order for each connection: the core sends it, the updater answers with any number of `Progress` and one other message, and
closes. A core that closes its end ends the work; what was downloaded is kept, and the same order goes on from there.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from .frames import encode_frame
from .messages import Request, RequestDecoder

UPDATER_VERSION: Final = 1
UPDATER_MAX_FRAME_BYTES = 128 * 1024
"""Ceiling of a frame: the largest key set with a directive fits, and so do the longest notes."""
UPDATER_ORDER_TIMEOUT_S = 5.0
"""A connection that has not sent its order after so long is closed."""
PROGRESS_S = 0.5
"""The least time between two `Progress`."""
MAX_DIRECTIVE_CHARS = 2048
MAX_KEY_SET_CHARS = 64 * 1024
MAX_NOTES_CHARS = 4000
MAX_PACKAGE_BYTES = 2**34
MAX_KEPT = 16
"""Packages that `discard` may name."""
MIN_RATE_BYTES_S, MAX_RATE_BYTES_S = 1024, 2**34

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, Meta(ge=0, le=MAX_PACKAGE_BYTES)]
Instant = Annotated[int, Meta(ge=0, le=253_402_300_799)]
Directive = Annotated[str, Meta(min_length=1, max_length=MAX_DIRECTIVE_CHARS)]
KeySet = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_SET_CHARS)]
Rate = Annotated[int, Meta(ge=MIN_RATE_BYTES_S, le=MAX_RATE_BYTES_S)]
Short = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=500)]
Code = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,47}\Z")]


class UpdaterCode(StrEnum):
    """Why an order failed. `Failure` carries one of these, or a code of `updatetrust.judgement`. The list is append-only."""

    MALFORMED = "malformed"
    """The order breaks a rule of this protocol."""
    NOT_ALLOWED = "not-allowed"
    """The user on the socket is not the core's."""
    TRUST = "trust"
    """`update-trust.json` is missing or cannot be used."""
    LINK = "link"
    """The link cannot be reached, or broke off, or its configuration does not allow the download."""
    UNREACHABLE = "unreachable"
    """The repository cannot be reached, or it is not the right server."""
    SLOW = "slow"
    """The repository sends less than the least rate."""
    REDIRECT = "redirect"
    """The repository answered with a redirect."""
    BAD_RESPONSE = "bad-response"
    """The answer is not HTTP as the link accepts it, or it ended too early."""
    TOO_LONG = "too-long"
    """The repository sends more than was asked for, or than there can be."""
    NO_RANGES = "no-ranges"
    """The repository answers a request for a part with something else."""
    CHANGED = "changed"
    """The file in the repository changed while it was downloaded."""
    STATUS = "status"
    """The repository answered with an HTTP status that brings no file."""
    LENGTH = "length-differs"
    """The file has another length than the directive and the repository's metadata say."""
    DIGEST = "digest-differs"
    """The file has another SHA-256 than the directive and the repository's metadata say."""
    DAMAGED = "damaged"
    """What an earlier order had downloaded does not fit the rest. It was dropped, and the next order begins from zero."""
    NO_SPACE = "no-space"
    """There is no room for the package."""
    DISK = "disk"
    """A file cannot be read or written."""
    METADATA = "metadata"
    """The repository's metadata is wrong: a signature, a version or a form."""
    EXPIRED = "metadata-expired"
    """The repository's metadata is out of date: what is there may be old."""
    SIGNATURE = "signature"
    """Directive or key set are not signed as they must be."""
    BUNDLE = "bundle"
    """The file is not an update bundle, or a part of it is missing."""
    INTERNAL = "internal"
    """The updater failed in a way that only its log describes."""


class Describe(Request, tag="describe", frozen=True):
    """Asks what the updater can do."""


class Refresh(Request, tag="refresh", frozen=True):
    """Asks what a directive would install, by the repository's metadata of now. No package is downloaded.

    Attributes:
        directive: JWS.
        key_set: JWS of the key set that has the key of the directive, after those that lead to it: one a line, oldest first.
        now: the core's time, seconds since 1970 UTC.
    """

    directive: Directive
    key_set: KeySet
    now: Instant


class Look(Request, tag="look", frozen=True):
    """Asks how long the repository's metadata of now is valid, without a directive. No package is downloaded.

    Attributes:
        now: as in `Refresh`.
    """

    now: Instant


class Stage(Request, tag="stage", frozen=True):
    """Orders a download. Members as in `Refresh`.

    Attributes:
        rate: most bytes a second; None for as fast as it goes.
    """

    directive: Directive
    key_set: KeySet
    now: Instant
    rate: Rate | None


class TakeBundle(Request, tag="take_bundle", frozen=True):
    """Hands over an update bundle as one descriptor, in the same `sendmsg` (SCM_RIGHTS): a regular file, open for reading.

    Attributes:
        directive: JWS; None for the one in the bundle.
        key_set: as in `Refresh`; None for what the bundle has.
        now: as in `Refresh`.
    """

    directive: Directive | None
    key_set: KeySet | None
    now: Instant


class Discard(Request, tag="discard", frozen=True):
    """Orders to remove what is staged or half downloaded, except these packages."""

    keep: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_KEPT)]


class Description(Request, tag="description", frozen=True):
    """What the updater can do.

    Attributes:
        program: version of the program.
        orders: that it carries out, besides `describe`.
        staged: SHA-256 of each package that is verified and on disk.
    """

    program: Short
    orders: Annotated[tuple[Short, ...], Meta(max_length=32)]
    staged: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_KEPT)]


class Offer(Request, tag="offer", frozen=True):
    """What a directive would install: the vendor has signed it, and directive and repository agree on it.

    Attributes:
        product: what is installed.
        version: the package's.
        build_id: the package's.
        kind: how it is installed.
        notes: the vendor's words on it.
        sha256: of the package.
        length: of the package, bytes.
        staged: whether it is on disk already.
        metadata_expires: when the repository's metadata is out of date, seconds since 1970 UTC.
        signed_until: when the first of the roles ends that people sign, seconds since 1970 UTC; 0 from an updater that does not
            say.
        signed_role: that role's name.
    """

    product: Short
    version: Short
    build_id: Short
    kind: Short
    notes: Annotated[str, Meta(max_length=MAX_NOTES_CHARS)]
    sha256: Sha256
    length: Size
    staged: bool
    metadata_expires: Instant
    signed_until: Instant = 0
    signed_role: Short = ""


class Seen(Request, tag="seen", frozen=True):
    """How long the repository's metadata is valid.

    Attributes:
        metadata_expires: when the first of it ends, seconds since 1970 UTC.
        signed_until: when the first role ends that people sign, seconds since 1970 UTC.
        signed_role: its name.
    """

    metadata_expires: Instant
    signed_until: Instant
    signed_role: Short


class Progress(Request, tag="progress", frozen=True):
    """Bytes of the package that are on disk, and how many there will be."""

    done: Size
    total: Size


class Staged(Request, tag="staged", frozen=True):
    """The package is verified and on disk, with what the installer needs to verify it again.

    Attributes:
        name: of its directory in the staging directory: the SHA-256.
        sha256: of the package.
        length: of the package, bytes.
        product: what it is for.
        version: the package's.
        build_id: the package's.
    """

    name: Sha256
    sha256: Sha256
    length: Size
    product: Short
    version: Short
    build_id: Short


class Done(Request, tag="done", frozen=True):
    """The order is carried out."""


class Failure(Request, tag="failed", frozen=True):
    """The order failed. `id` is 0 where the order's id could not be read.

    Attributes:
        code: of `UpdaterCode` or of `updatetrust.judgement`.
        text: the same for people.
        network: whether the network, or the repository's server, is the reason. Then it is no failed attempt of an update.
    """

    code: Code
    text: Text
    network: bool


ToUpdater = Describe | Refresh | Look | Stage | TakeBundle | Discard
FromUpdater = Description | Offer | Seen | Progress | Staged | Done | Failure

_encoder = msgspec.msgpack.Encoder()


def to_updater_decoder() -> RequestDecoder[Any]:
    """Decodes orders; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(ToUpdater)


def from_updater_decoder() -> RequestDecoder[Any]:
    """Decodes answers; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(FromUpdater)


def encode_updater(message: Request) -> bytes:
    """The frame of a message of either side.

    Raises:
        LocalProtocolError: it does not fit a frame.
    """
    return encode_frame(_encoder.encode(message), UPDATER_MAX_FRAME_BYTES)
