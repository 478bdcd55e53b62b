"""Makes the keys that requests to the webhook are signed with, keeps them sealed, and signs. Two count while one is replaced.

A key leaves the agent once, in the reply to the administrator who makes it. In memory it rests in the vault, so that an alert
about a TPM that fails can still be signed.
"""

import base64
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.base.hardware import HardwareConnection
from agentd.secrets.record import SealedWebhookKey
from agentd.secrets.store import Store
from common.webhooksignature import header_value, signature
from hwsec.errors import BlobCorrupt
from hwsec.sealedblob import open_blob, seal_blob
from hwsec.secretmem import SecretBuffer, wipe_bytes
from hwsec.vault import SECRET_BYTES, Vault, WrappedSecret, os_random_into

log = logging.getLogger(__name__)

KEY_PREFIX = "lawh_"
"""Begins a key in the form that people copy, so that scanners of source code find one that was committed."""
HEADER = "license-agent-signature"
MOST = 2


@dataclass(frozen=True, slots=True)
class WebhookKey:
    """A key, ready for use; `sealed` is the same at rest."""

    sealed: SealedWebhookKey
    wrapped: WrappedSecret


def _blob_name(key_id: str) -> str:
    return f"webhook-key {key_id}"


def open_webhook_keys(kek: SecretBuffer, vault: Vault, sealed: Sequence[SealedWebhookKey]) -> tuple[WebhookKey, ...]:
    """The keys of the store. One that cannot be opened is left out and logged: it is no reason to refuse verdicts."""
    opened = []
    for each in sealed:
        try:
            with open_blob(kek, _blob_name(each.id), each.sealed) as key:
                opened.append(WebhookKey(each, vault.wrap(key)))
        except (BlobCorrupt, ValueError) as error:
            log.error("the webhook's key %s cannot be opened (%s); make another with 'webhook-key new'", each.id, error)
    return tuple(opened)


def key_text(key: SecretBuffer) -> bytearray:
    """A key as people copy it, all of whose characters are the key of the HMAC. The caller wipes it."""
    encoded = base64.urlsafe_b64encode(key.view)
    try:
        with memoryview(encoded) as source:
            size = len(encoded.rstrip(b"="))
            text = bytearray(len(KEY_PREFIX) + size)
            text[: len(KEY_PREFIX)] = KEY_PREFIX.encode()
            text[len(KEY_PREFIX) :] = source[:size]
        return text
    finally:
        wipe_bytes(encoded)


class WebhookKeys:
    """The webhook's keys at work.

    Args:
        store: commits them.
        opened: from the store, the present one first.
    """

    def __init__(self, core: Core, store: Store, opened: tuple[WebhookKey, ...]) -> None:
        self._core = core
        self._store = store
        self._keys = opened

    def __bool__(self) -> bool:
        return bool(self._keys)

    def view(self) -> list[dict[str, Any]]:
        """The keys without what is secret, the present one first."""
        return [{"id": key.sealed.id, "created_at": key.sealed.created_at} for key in self._keys]

    def signed(self, body: bytes, at: int) -> str:
        """The value of the header for a body, signed at a time in seconds since 1970 UTC."""
        found = []
        for key in self._keys:
            with self._core.vault.open(key.wrapped) as opened:
                text = key_text(opened)
            try:
                found.append(signature(body, at, text))
            finally:
                text[:] = bytes(len(text))
        return header_value(at, found)

    async def new(self, actor: dict[str, Any]) -> tuple[str, str]:
        """Makes a key, which signs besides the present one until that is ended. Returns its id, and the key as people copy it.

        Raises:
            Refused: two keys sign already.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        if len(self._keys) >= MOST:
            raise Refused("two keys sign already; end the former one first: 'license-agent-cli webhook-key end'")
        key_id = os.urandom(4).hex()
        with SecretBuffer(SECRET_BYTES) as key:
            os_random_into(key.view)
            wrapped = self._core.vault.wrap(key)
            text = key_text(key)
        try:
            # The reply is a message like any other; its copies in memory end with it.
            shown = text.decode("ascii")
        finally:
            text[:] = bytes(len(text))
        made = SealedWebhookKey(
            id=key_id,
            created_at=self._core.clock.now(),
            sealed=await self._store.on_hardware(lambda connection: self._seal(connection, key_id, wrapped)),
        )
        await self._keep("webhook.key_created", (WebhookKey(made, wrapped), *self._keys), key=key_id, actor=actor)
        return key_id, shown

    async def end(self, key_id: str, actor: dict[str, Any]) -> str:
        """Ends a key: nothing is signed with it any more.

        Args:
            key_id: of the key; empty for the former one of two.
            actor: who wants it.

        Returns:
            The id of the key that was ended.

        Raises:
            Refused: there is no such key.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        if not key_id:
            if len(self._keys) < MOST:
                raise Refused(
                    "no key is being replaced; to end the only one, name it: 'license-agent-cli webhook-key end --id ID'"
                )
            key_id = self._keys[-1].sealed.id
        left = tuple(key for key in self._keys if key.sealed.id != key_id)
        if len(left) == len(self._keys):
            raise Refused(f"there is no key {key_id}; 'license-agent-cli webhook-key show-id' lists them")
        await self._keep("webhook.key_ended", left, key=key_id, actor=actor)
        return key_id

    def _seal(self, connection: HardwareConnection, key_id: str, wrapped: WrappedSecret) -> bytes:
        with connection.backend.kek() as kek, self._core.vault.open(wrapped) as key:
            return seal_blob(kek, _blob_name(key_id), key.view)

    async def _keep(self, event: str, keys: tuple[WebhookKey, ...], **fields: Any) -> None:
        await self._store.keep(event, {"webhook_keys": tuple(key.sealed for key in keys)}, **fields)
        self._keys = keys
