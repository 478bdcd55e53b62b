"""Installs delivered secret versions and invalidates old ones.

Each change is logged durably before its effect and committed to the sealed store; only then does the ring go by it.
"""

from typing import Any

from agentd.audit.core import Core
from agentd.base.errors import Refused
from agentd.base.hardware import COMMIT_DEADLINE_S
from contracts.delivery import Delivery, decrypt_secret, verify_delivery
from contracts.jose import MalformedToken
from hwsec.backend import Backend
from hwsec.secretmem import SecretBuffer
from hwsec.store import StoredVersion
from hwsec.storeformat import VersionMeta
from hwsec.vault import SECRET_BYTES, Vault, WrappedSecret

from .lifecycle import State
from .store import Store
from .trusted_time import TrustedTime, utc


class SecretInstaller:
    """Changes which secret versions the agent holds.

    Args:
        store: commits.
        time: takes in the time that a delivery was signed at.
    """

    def __init__(self, core: Core, store: Store, time: TrustedTime) -> None:
        self._core = core
        self._time = time
        self.store = store

    async def install(
        self, delivery_text: str, actor: dict[str, Any], *, answered: int | None = None, prompt: bool = False
    ) -> VersionMeta:
        """Installs a delivered secret version as the new ACTIVE one.

        Args:
            delivery_text: as in `contracts.delivery`.
            actor: who brings it.
            answered: when the server signed the reply that brought it; None if an administrator carried it here.
            prompt: the reply answers a request of just now, so it also says what time it is.

        Raises:
            MalformedToken, BadSignature, WrongAudience: the delivery is not acceptable.
            Refused: it is replayed or out of order.
            HwsecError: the hardware or the disk did not take it; nothing has changed.
            AuditUnavailable: the log cannot be written; nothing has changed.
        """
        core = self._core
        async with core.hardware.turn:
            try:
                meta = await self._install(delivery_text, actor, answered, prompt)
            except BaseException as error:  # it goes on; the log and the counter have each attempt, one that was cut off too
                core.counters.rotations_failed += 1
                core.audit.record("secret.install", "failed", actor=actor, error=type(error).__name__, text=str(error)[:300])
                raise
            core.counters.rotations += 1
            return meta

    async def _install(self, delivery_text: str, actor: dict[str, Any], answered: int | None, prompt: bool) -> VersionMeta:
        core, store, ring = self._core, self.store, self.store.ring
        delivery = verify_delivery(delivery_text, core.agent_id, store.trust)
        if answered is not None:
            _check_dates(delivery, answered)
        _check_end(delivery, core.clock.certain())
        meta = VersionMeta(
            version=delivery.version,
            state=State.ACTIVE.value,
            valid_from=delivery.valid_from,
            valid_until=delivery.valid_until,
            grace_until=delivery.grace_until,
            installed_at=core.clock.now(),
        )
        signed = delivery.issued_at if answered is None else max(answered, delivery.issued_at)
        # A delivery carried by hand may have taken days: unless the clock agrees, it is a lower bound of the time only.
        heard = await self._time.weigh(signed, fresh=prompt or self._time.agrees(signed))
        record = heard.record
        sections = record.sections()
        # Refused before the hardware is asked, if it will be refused.
        ring.with_new_secret(StoredVersion(meta, None), sections, signed)
        wrapped = await core.hardware.run(
            lambda connection: unwrap(connection.backend, core.vault, delivery), COMMIT_DEADLINE_S
        )
        contents = ring.with_new_secret(StoredVersion(meta, wrapped), sections, signed)
        await core.audit.record_durably("secret.install", "begun", actor=actor, secret_version=meta.version, **dates(meta))
        await store.commit(contents, record)
        self._time.go_by(heard)
        core.audit.record("secret.installed", "ok", actor=actor, secret_version=meta.version, generation=store.generation)
        return meta

    async def invalidate(self, version: int, actor: dict[str, Any]) -> None:
        """Ends a version for good and destroys its secret. Raises as `install`; NoSuchVersion too."""
        core, store = self._core, self.store
        async with core.hardware.turn:
            await core.hardware.ready(COMMIT_DEADLINE_S)
            contents = store.ring.with_invalidated(version, core.clock.now(), store.record.sections())
            await core.audit.record_durably("secret.invalidate", "begun", actor=actor, secret_version=version)
            await store.commit(contents, store.record)
            state = State.INVALIDATED.value
            core.audit.record("secret.state_changed", "ok", actor=actor, secret_version=version, state=state)


def _check_dates(delivery: Delivery, answered: int) -> None:
    """Refuses a version that begins later, which would keep out its successors until then, and one that has ended.

    Raises:
        MalformedToken: the delivery does not fit the time of the reply that brought it.
    """
    if delivery.issued_at > answered:
        raise MalformedToken("the delivery was signed later than the reply that brings it")
    if not delivery.valid_from <= answered < delivery.valid_until:
        raise MalformedToken("the delivered secret is not valid at the time of the reply that brings it")


def _check_end(delivery: Delivery, certain: int) -> None:
    """Refuses a version that has ended already: as the newest one it would take the place of one that has not.

    Raises:
        Refused: its grace ended before a time that has certainly passed.
    """
    if delivery.grace_until <= certain:
        raise Refused(
            f"grace of the delivered secret ended on {utc(delivery.grace_until)}, and it is {utc(certain)} at least: "
            "the license server's clock is behind, or the delivery is an old one"
        )


def unwrap(backend: Backend, vault: Vault, delivery: Delivery) -> WrappedSecret:
    """Decrypts a delivered secret into the vault. Its plaintext exists in secret memory only."""
    encrypted = delivery.encrypted
    try:
        agreed = backend.agree(encrypted.peer_point)
    except ValueError as error:
        raise MalformedToken(f"the delivery's epk cannot be used: {error}") from None
    with (
        agreed as shared,
        SecretBuffer(SECRET_BYTES) as key,
        SecretBuffer(SECRET_BYTES) as secret,
    ):
        decrypt_secret(encrypted, shared.view, key.view, secret.view)
        return vault.wrap(secret)


def dates(meta: VersionMeta) -> dict[str, int]:
    """The dates of a version, for the log."""
    return {"valid_from": meta.valid_from, "valid_until": meta.valid_until, "grace_until": meta.grace_until}
