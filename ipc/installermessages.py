"""Defines the orders that the core may send to the installer. Nothing here performs IO.

One order for each connection: the core sends it, the installer answers and closes. `prepare` reports progress too.
No order carries a path, a command or a version to choose: what is installed, both signatures say.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from .frames import encode_frame
from .messages import Request, RequestDecoder

INSTALLER_VERSION: Final = 1
INSTALLER_MAX_FRAME_BYTES = 128 * 1024
"""Ceiling of a frame: the largest key sets with a directive fit."""
ORDER_TIMEOUT_S = 5.0
"""A connection that has not sent its order after so long is closed."""
MAX_DIRECTIVE_CHARS = 2048
MAX_KEY_SET_CHARS = 64 * 1024
MAX_INSTALLED_PRODUCTS = 16
MAX_CHECKS = 8

Product = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Short = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=500)]
State = Literal["idle", "staged", "switched", "proving"]


class Describe(Request, tag="describe", frozen=True):
    """Asks what the installer can do."""


class Products(Request, tag="products", frozen=True):
    """Asks which products this machine has, and how far an update of each is."""


class Prepare(Request, tag="prepare", frozen=True):
    """Judge the package that the updater has staged, and unpack it beside the version that runs.

    Attributes:
        product: what it is for.
        sha256: of the package, and its name in the staging directory.
    """

    product: Product
    sha256: Sha256


class Switch(Request, tag="switch", frozen=True):
    """Make the prepared version the current one, and restart the product. Fields as in `prepare`."""

    product: Product
    sha256: Sha256


class Prove(Request, tag="prove", frozen=True):
    """Find out whether the product works."""

    product: Product


class Commit(Request, tag="commit", frozen=True):
    """Keep the version that was proved."""

    product: Product


class RollBack(Request, tag="roll_back", frozen=True):
    """End the update and go back to the version that was committed last.

    Attributes:
        product: of which.
        reason: for the installer's log.
    """

    product: Product
    reason: Text


class Withdraw(Request, tag="withdraw", frozen=True):
    """Remember that the license server has withdrawn a directive.

    Attributes:
        directive: JWS of the directive that withdraws it.
        key_set: key set that has its key, after those that lead to it, one a line.
    """

    directive: Annotated[str, Meta(min_length=1, max_length=MAX_DIRECTIVE_CHARS)]
    key_set: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_SET_CHARS)]


class Description(Request, tag="description", frozen=True):
    """What the installer can do.

    Attributes:
        program: version of the program.
        orders: the orders that it carries out, besides `describe`.
    """

    program: Short
    orders: Annotated[tuple[str, ...], Meta(max_length=32)]


class Installed(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A version on this machine."""

    version: Short
    build_id: Short


class Problem(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Why the installer cannot say what is installed of a product.

    Attributes:
        code: as in `Refused`.
        text: for people.
    """

    code: Short
    text: Text


class ProductState(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One product.

    Attributes:
        product: its name.
        backend: how it is installed.
        running: the version that was committed last; None before the first.
        previous: the other version that is complete on this machine, if there is one.
        state: how far an update is.
        pending: the version of that update; None while idle.
        number: of the directive that ordered it; 0 while idle.
        problem: only where nothing can be said of it: then there are no versions, and `state` is idle.
    """

    product: Product
    backend: Short
    running: Installed | None
    previous: Installed | None
    state: State
    pending: Installed | None
    number: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    problem: Problem | msgspec.UnsetType = msgspec.UNSET


class ProductList(Request, tag="product_list", frozen=True):
    """The products of root's configuration."""

    products: Annotated[tuple[ProductState, ...], Meta(max_length=MAX_INSTALLED_PRODUCTS)]


class Progress(Request, tag="progress", frozen=True):
    """How far `prepare` is: bytes that were copied, judged and unpacked, of all."""

    done: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=0)]


class Prepared(Request, tag="prepared", frozen=True):
    """The version is complete beside the one that runs."""

    version: Short
    build_id: Short


class Switched(Request, tag="switched", frozen=True):
    """The version is the current one.

    Attributes:
        restarted: the product was restarted with it.
        text: why not, if it was not.
    """

    restarted: bool
    text: Text


class Check(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: Short
    ok: bool
    text: Text


class Proved(Request, tag="proved", frozen=True):
    """What was found. A check that could not be made is not `ok`.

    Attributes:
        ok: every check is, and there is one.
        checks: in their order.
    """

    ok: bool
    checks: Annotated[tuple[Check, ...], Meta(max_length=MAX_CHECKS)]


class Committed(Request, tag="committed", frozen=True):
    """The version is the good one from now on."""

    version: Short
    build_id: Short


class RolledBack(Request, tag="rolled_back", frozen=True):
    """The update is over.

    Attributes:
        version: the current one again; "" if there was none before.
        restarted: the product was restarted with it; true if it never ran with another.
        text: why not, if it was not.
        config: what of the product's configuration was put back, or why it was not; "" if nothing had to be.
    """

    version: Short
    restarted: bool
    text: Text
    config: Text = ""


class Withdrawn(Request, tag="withdrawn", frozen=True):
    """The directive is void on this machine from now on.

    Attributes:
        number: the highest number of a directive that is void; so is each one below.
    """

    number: Annotated[int, Meta(ge=1, le=2**53 - 1)]


class Refused(Request, tag="declined", frozen=True):
    """The installer does not carry the order out. `id` is 0 where the order's id could not be read.

    Attributes:
        code: the reason, for programs.
        text: the reason, and what to do.
    """

    code: Short
    text: Text


_encoder = msgspec.msgpack.Encoder()


def to_installer_decoder() -> RequestDecoder[Any]:
    """Decodes orders; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(Describe | Products | Prepare | Switch | Prove | Commit | RollBack | Withdraw)


def from_installer_decoder() -> RequestDecoder[Any]:
    """Decodes what the installer sends; what is wrong with others is a `RemoteProtocolError`."""
    return RequestDecoder(
        Description | ProductList | Progress | Prepared | Switched | Proved | Committed | RolledBack | Withdrawn | Refused
    )


def encode_installer(message: Request) -> bytes:
    """The frame of a message of either side.

    Raises:
        LocalProtocolError: it does not fit a frame.
    """
    return encode_frame(_encoder.encode(message), INSTALLER_MAX_FRAME_BYTES)
