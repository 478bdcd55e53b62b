"""Keeps the reply to a request with an idempotency key, so that the same request, sent again, is not performed again.

The reply is committed with what the act has done. It is sealed: it may have a token in it. Of the request an HMAC is kept: it
may name a person, and a plain digest would tell who guesses the name. Keys belong to one account and act.
"""

import hashlib
import hmac
import json
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from server.base.errors import Invalid
from server.registry.cipher import Cipher
from server.registry.models.operators import OperatorReply

KEPT_S = 86_400
_NEW = text(
    "INSERT INTO operator_reply (id, digest, sealed, kept_until) VALUES (:id, :digest, NULL, :until) "
    "ON CONFLICT (id) DO NOTHING"
)


class KeyReused(Invalid):
    """An idempotency key came again with another request."""


def digest_of(act: str, body: str) -> str:
    """The SHA-256 of an act's name and its body in canonical JSON, in hex."""
    return hashlib.sha256(json.dumps([act, body], separators=(",", ":")).encode()).hexdigest()


def place_of(account: str, act: str, key: str) -> str:
    """Where the reply is kept."""
    return hashlib.sha256(json.dumps([account, act, key]).encode()).hexdigest()


def kept(session: Session, cipher: Cipher, place: str, digest: str, now: int, *, begin: bool = True) -> str | None:
    """The kept reply; None for a request that is new, which then has this place.

    Two requests with one key at once wait for each other here: PostgreSQL lets the second insert wait for the first one.

    Args:
        session: of a writing transaction.
        cipher: opens the reply.
        place: of `place_of`.
        digest: of the request.
        now: seconds since 1970 UTC.
        begin: whether to reserve the place until the transaction ends.

    Raises:
        KeyReused: the key came before, with another request.
    """
    known = _known_by(cipher, digest)
    if begin:
        session.execute(_NEW, {"id": place, "digest": known, "until": now + KEPT_S})
    row = session.get(OperatorReply, place, with_for_update=True, populate_existing=True)
    if row is not None and row.kept_until <= now:
        row.digest, row.sealed, row.kept_until = known, None, now + KEPT_S
    if row is None or row.sealed is None:
        return None
    if not hmac.compare_digest(row.digest, known):
        raise KeyReused("this Idempotency-Key came before, with another request: send a new key, or the same request as before")
    return cipher.open("operator_reply", place, "sealed", row.sealed).decode()


def keep(session: Session, cipher: Cipher, place: str, digest: str, reply: str, now: int) -> None:
    """Keeps a reply for `KEPT_S` seconds."""
    sealed = cipher.seal("operator_reply", place, "sealed", reply.encode())
    session.merge(OperatorReply(id=place, digest=_known_by(cipher, digest), sealed=sealed, kept_until=now + KEPT_S))


def _known_by(cipher: Cipher, digest: str) -> str:
    return hmac.digest(cipher.request_key(), digest.encode(), "sha256").hex()


def canonical(body: Any) -> str:
    """A form in JSON of which there is one only: members sorted, no spaces."""
    return json.dumps(body.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
