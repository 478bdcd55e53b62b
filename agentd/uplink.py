"""Builds what keeps a provisioned agent in touch with its server, from the parts of a daemon. Starts nothing."""

from collections.abc import Awaitable, Callable

from .assembly import Parts
from .carrier import Carrier
from .certificates import TlsKeys
from .contacts import Contacts
from .exchange import Exchange
from .linkclient import LinkClient
from .rotor import Rotor
from .secretops import SecretOps
from .serverword import ServerWord


def make_contacts(
    parts: Parts, ops: SecretOps, heard: Callable[[], Awaitable[None]], keep_book: Callable[[], Awaitable[None]]
) -> Contacts | None:
    """What keeps in touch with the server; None for an agent whose secrets are carried by hand.

    Args:
        parts: of the daemon.
        ops: commits.
        heard: called after each contact that succeeded.
        keep_book: makes durable what the license book has learned.
    """
    binding, tls = parts.binding, parts.tls
    if binding is None or tls is None:
        return None
    config, engine, vault = parts.config, parts.engine, parts.hardware.vault
    word = ServerWord(ops, engine, parts.clock, parts.audit, binding)
    configured = config.server.cert_pin

    def pins() -> tuple[str, ...]:
        return configured or word.binding.pins

    carrier = Carrier(LinkClient(config.link_socket), "server", config.server.url or binding.url, pins, parts.clock)
    certificates = TlsKeys(
        engine.agent_id, tls.stored, tls.current, tls.following, carrier, ops, vault, parts.audit, parts.clock
    )
    exchange = Exchange(engine.agent_id, lambda: engine.trust, parts.hardware, parts.clock, carrier, lambda: certificates.ends)
    rotor = Rotor(config.rotation_journal, ops, engine, vault, exchange, parts.audit, parts.clock, binding.serial, keep_book)
    return Contacts(
        engine.agent_id,
        exchange,
        certificates,
        rotor,
        engine,
        word,
        parts.audit,
        parts.clock,
        parts.counters,
        lambda: ops.sealed_head,
        heard,
    )
