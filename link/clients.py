"""Says what each user of the link's socket may ask for. Nothing here performs IO.

The updater reads what strangers published, so it may do one thing: GET from the repository of updates, without an identity.
"""

from dataclasses import dataclass

from ipc.linkmessages import MAX_SESSIONS, MAX_UPDATER_SESSIONS, FailCode, Fetch, Hello

from .config import OTA, UPSTREAMS, LinkConfig


@dataclass(frozen=True, slots=True)
class Client:
    """A user of the link's socket.

    Attributes:
        name: for the log.
        upstreams: those that it may use.
        methods: those of HTTP that it may use.
        identifies: whether it may bring a TLS client certificate, and name an upstream that link.toml does not.
        sessions: most connections at once.
    """

    name: str
    upstreams: frozenset[str]
    methods: frozenset[str]
    identifies: bool
    sessions: int


CORE = Client("the core", frozenset(UPSTREAMS), frozenset({"GET", "POST"}), True, MAX_SESSIONS)
UPDATER = Client("the updater", frozenset({OTA}), frozenset({"GET"}), False, MAX_UPDATER_SESSIONS)


class NotAllowed(Exception):
    """The user may not ask for this; the text says what, and who may.

    Attributes:
        code: NOT_ALLOWED.
    """

    code = FailCode.NOT_ALLOWED


def client_of(uid: int, config: LinkConfig) -> Client | None:
    """Who a user is to the link; None for a user who may not use it."""
    if uid == config.core_uid:
        return CORE
    return UPDATER if config.updater_uid is not None and uid == config.updater_uid else None


def check_hello(client: Client, hello: Hello, descriptors: int) -> None:
    """Checks what a hello brings.

    Args:
        client: who sent it.
        hello: as it was decoded.
        descriptors: how many came with it.

    Raises:
        NotAllowed: a certificate, a key or an upstream from a client that may bring none.
    """
    if not client.identifies and (hello.certificates is not None or hello.provisioning is not None or descriptors):
        raise NotAllowed(f"{client.name} brings no certificate, no key and no upstream of its own")


def check_request(client: Client, fetch: Fetch) -> None:
    """Checks what a fetch asks for.

    Raises:
        NotAllowed: the client may not use this upstream or this method.
    """
    if fetch.upstream not in client.upstreams or fetch.method not in client.methods or (fetch.body and not client.identifies):
        allowed = f"{' and '.join(sorted(client.methods))} from {', '.join(sorted(client.upstreams))}"
        raise NotAllowed(f"{client.name} may not {fetch.method} from the upstream {fetch.upstream}; it may {allowed}")
