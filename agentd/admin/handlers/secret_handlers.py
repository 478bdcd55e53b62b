"""Handles requests that change secrets, the clock and licenses by hand: what an administrator carries to the agent."""

from typing import Any

from agentd.admin.service import Handler
from agentd.audit.core import Core
from agentd.audit.log import actor
from agentd.licenses.validator import Validator
from agentd.secrets.installer import SecretInstaller
from agentd.secrets.trusted_time import TrustedTime
from agentd.telemetry.reporter import Reporter
from ipc.messages import (
    ClockChallenge,
    ClockConfirm,
    ClockReset,
    LicenseCheck,
    LicenseImport,
    SecretInstall,
    SecretInvalidate,
)
from ipc.peer import Peer


class SecretHandlers:
    """Handles requests that change secrets, clock and licenses.

    Args:
        installer: installs and invalidates.
        time: answers challenges.
        validator: rules on tokens.
        reporter: called after each change.
    """

    def __init__(
        self, core: Core, installer: SecretInstaller, time: TrustedTime, validator: Validator, reporter: Reporter
    ) -> None:
        self._core = core
        self._installer = installer
        self._time = time
        self._validator = validator
        self._reporter = reporter

    def table(self) -> dict[type, Handler]:
        """The handler of each request."""
        return {
            SecretInstall: self._install,
            SecretInvalidate: self._invalidate,
            LicenseCheck: self._check,
            LicenseImport: self._import,
            ClockChallenge: self._challenge,
            ClockReset: self._reset,
            ClockConfirm: self._confirm,
        }

    async def _install(self, request: SecretInstall, peer: Peer) -> dict[str, Any]:
        meta = await self._installer.install(request.delivery, actor(peer))
        await self._reporter.heard_from_server()
        return {"secret_version": meta.version, "generation": self._installer.store.generation}

    async def _invalidate(self, request: SecretInvalidate, peer: Peer) -> dict[str, Any]:
        await self._installer.invalidate(request.version, actor(peer))
        await self._reporter.after_change()
        return {"secret_version": request.version, "generation": self._installer.store.generation}

    async def _check(self, request: LicenseCheck, _peer: Peer) -> dict[str, Any]:
        clock = self._core.clock
        ruling = self._validator.validate(request.token, clock.now())
        verdict = ruling.verdict
        return {
            "valid": verdict.valid,
            "reason": verdict.reason.value,
            "features": list(verdict.features),
            "metadata": verdict.metadata,
            "reissue_due": verdict.reissue_due,
            "refresh_by": verdict.refresh_by,
            "refreshed": verdict.refreshed,
            "degraded": self._validator.degraded,
            "clock_suspect": clock.suspect(),
            **ruling.audit_fields(),
        }

    async def _import(self, request: LicenseImport, peer: Peer) -> dict[str, Any]:
        validator, now = self._validator, self._core.clock.now()
        ruling = validator.judge_import(request.token, now)
        await self._core.audit.record_durably("license.imported", "ok", actor=actor(peer), **ruling.audit_fields())
        validator.import_token(request.token, now)
        await validator.inventory.save()
        return {"license": ruling.license_id, "secret_version": ruling.secret_version}

    async def _challenge(self, _request: ClockChallenge, _peer: Peer) -> dict[str, Any]:
        return {"agent_id": self._core.agent_id, "challenge": self._time.challenge()}

    async def _reset(self, request: ClockReset, peer: Peer) -> dict[str, Any]:
        clock = self._core.clock
        signed = await self._time.reset(request.statement, actor(peer))
        await self._reporter.after_change()
        return {"signed": signed, "time": clock.now(), "clock_suspect": clock.suspect()}

    async def _confirm(self, _request: ClockConfirm, peer: Peer) -> dict[str, Any]:
        clock = self._core.clock
        signed = await self._time.confirm(actor(peer))
        await self._reporter.after_change()
        return {"signed": signed, "time": clock.now(), "clock_suspect": clock.suspect()}
