"""Declares the request by which an agent learns which licenses it has, and the reply. Pure.

Used only between an agent and a server that have both announced `sync-licenses`. Every change of an agent's licenses has a
number; the agent says up to which one it knows them. Each entry of a reply says how one license is now, so it may be applied
twice, and what a reply does not name has not changed. A larger number of entries comes in pages.

A reply answers the agent's own request, so it is never an old one: a lower number means that the server was restored from a
backup, and a license that was suspended may come back.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.claims import MAX_ID_CHARS
from contracts.exchange import MAX_LICENSES_PER_REQUEST, LicenseId, Number, Reply, Request, SecretVersion, Time, Token

SYNC = "sync-licenses"
"""The capability, and the purpose."""

MAX_CHANGES_PER_REPLY = MAX_LICENSES_PER_REQUEST
MAX_CURSOR_CHARS = MAX_ID_CHARS + 8

Cursor = Annotated[str, Meta(max_length=MAX_CURSOR_CHARS)]


class Standing(StrEnum):
    """How a license of an agent is."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """It is refused until it is active again."""
    REMOVED = "removed"
    """It belongs to this agent no longer; it may come back."""


class LicenseChange(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How one license is now.

    Attributes:
        license: its id.
        standing: how it is.
        expires: when it ends, seconds since 1970 UTC; later nobody need remember how it was.
        token: a new one if it is active; else None.
    """

    license: LicenseId
    standing: Standing
    expires: Time
    token: Token | None = None


class SyncLicenses(Request, frozen=True):
    """Asks which of the agent's licenses have changed.

    Attributes:
        license_number: up to which the agent knows its licenses; 0 to learn of all.
        secret_version: the newest version that the agent holds; tokens are made with it.
        after: of the reply before; empty for the first page.
    """

    license_number: Number
    secret_version: SecretVersion
    after: Cursor


class SyncReply(Reply, frozen=True):
    """What has changed.

    Attributes:
        license_number: the agent knows its licenses up to this number once it has all pages. That of the first page counts:
            what changes in between has a higher one.
        changes: each license at most once.
        after: where the next page begins; None after the last one.
    """

    license_number: Number
    changes: Annotated[tuple[LicenseChange, ...], Meta(max_length=MAX_CHANGES_PER_REPLY)]
    after: Cursor | None
