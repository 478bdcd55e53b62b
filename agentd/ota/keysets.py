"""Collects the key sets that lead from a root of the license server that this machine's root trusts to the set of now.

Root's file may name a root that has handed over since. Updater and installer trust the sets in between only as far as each is
signed by a root that the one before it named, so what is collected here decides nothing.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agentd.uplink.transport import NoContact
from contracts.contact.updates import Hardware
from contracts.jose import BadSignature, MalformedToken
from contracts.keyset import MAX_KEY_SETS, SignedKeySet, verify_key_set

log = logging.getLogger(__name__)

Fetch = Callable[[str | None], Awaitable[str]]
"""Returns the newest key set, or the newest one that the root with this pin has signed. Raises NoContact."""


class _Trusted(msgspec.Struct, frozen=True):
    """The part of update-trust.json that is looked at."""

    license_roots: tuple[str, ...]


def trusted_roots(path: Path) -> tuple[str, ...]:
    """The pins of the roots in update-trust.json; none if it cannot be read, which updater and installer then say."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Trusted).license_roots
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return ()


class _Machine(msgspec.Struct, frozen=True):
    hardware: Hardware


def trusted_hardware(path: Path) -> str | None:
    """Which kind of machine this is, by update-trust.json; None if that cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Machine).hardware
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # `trusted_roots` has written why


async def key_sets(fetch: Fetch, roots: tuple[str, ...]) -> str:
    """The key set of now, after those that lead to it; one a line.

    Args:
        fetch: from the server.
        roots: pins of the roots that are trusted to begin with.

    Raises:
        NoContact: the set of now did not come.
    """
    newest = await fetch(None)
    between: list[str] = []
    above = -1
    while roots and len(between) < MAX_KEY_SETS - 1 and not _signed_by(newest, roots):
        step = await _next(fetch, roots, above)
        if step is None:
            break
        text, found = step
        between.append(text)
        roots, above = found.content.roots, found.content.number
    return "\n".join((*between, newest))


def _signed_by(text: str, roots: tuple[str, ...]) -> bool:
    try:
        verify_key_set(text, roots)
    except (MalformedToken, BadSignature):
        return False
    return True


async def _next(fetch: Fetch, roots: tuple[str, ...], above: int) -> tuple[str, SignedKeySet] | None:
    """The newest set that one of the roots has signed."""
    best: tuple[str, SignedKeySet] | None = None
    for root in roots:
        try:
            text = await fetch(root)
            found = verify_key_set(text, (root,), above)
        except (NoContact, MalformedToken, BadSignature):
            continue
        if best is None or found.content.number > best[1].content.number:
            best = text, found
    return best
