"""What administrators ask of the daemon, a method for each request."""

import asyncio
from typing import Any, Protocol

from agentd import VERSION
from agentd.audit.file import tail_lines
from agentd.base.confinement import Confinement
from agentd.licenses.validator import EngineRefused
from agentd.pos.service import told
from agentd.secrets.installer import SecretOps
from agentd.secrets.pcr_policy import PolicyOps
from agentd.sockets.unauthorized import actor
from agentd.sync.cycle import Contacts
from agentd.sync.degraded import Degraded
from agentd.telemetry.statefile import Kept
from agentd.telemetry.views import confinement_view, count_states, rotation_view, secrets_view, server_view
from agentd.wiring import Parts, policies_path
from contracts.exchange import Cause
from hwsec.secretmem import secret_memory_kind
from ipc.messages import (
    AuditExport,
    AuditTail,
    AuditVerify,
    CertificateRenew,
    ClockChallenge,
    ClockReset,
    Contact,
    DegradedSwitch,
    LicenseCheck,
    LicenseImport,
    MetricsText,
    PolicyBind,
    PolicyInstall,
    PolicyRevoke,
    PolicyShow,
    Provision,
    Rotate,
    SecretInstall,
    SecretInvalidate,
    SecretList,
    Status,
)
from ipc.peer import Peer

from .service import REPLY_ROOM, Handler


class Host(Protocol):
    """The daemon, as its handlers see it.

    Attributes:
        kept: what only the state file knows.
        started: seconds since 1970 UTC.
        confinement: what the process has put on itself.
        connections: open ones.
    """

    kept: Kept
    started: float
    confinement: Confinement

    @property
    def connections(self) -> int:
        """Open connections."""
        ...

    async def after_change(self) -> None:
        """Seals the log and writes the views."""
        ...

    async def write_book(self) -> None:
        """Writes the license book; raises OSError."""
        ...

    async def heard_from_server(self) -> None:
        """The server's word has reached this machine; seals the log and writes the views."""
        ...

    @property
    def contacts(self) -> Contacts | None:
        """What keeps in touch with the server; None where secrets are carried by hand."""
        ...

    @property
    def mode(self) -> Degraded:
        """Whether the agent works without its server."""
        ...

    def hold(self, on: bool) -> None:
        """Leaves the server alone from now on, or not any more."""
        ...

    def render_metrics(self) -> bytes:
        """The metrics file's text."""
        ...


class Handlers:
    """Answers administrators.

    Args:
        parts: of the daemon.
        ops: changes secrets.
        host: the daemon.
    """

    def __init__(self, parts: Parts, ops: SecretOps, host: Host) -> None:
        self._parts = parts
        self._ops = ops
        self._host = host
        self._policies = PolicyOps(parts.hardware, parts.audit, policies_path(parts.config))

    def table(self) -> dict[type, Handler]:
        """What answers each request."""
        return {
            Status: self._status,
            SecretList: self._secrets,
            SecretInstall: self._install,
            SecretInvalidate: self._invalidate,
            LicenseCheck: self._license_check,
            LicenseImport: self._license_import,
            AuditTail: self._audit_tail,
            AuditExport: self._audit_export,
            AuditVerify: self._audit_verify,
            PolicyShow: self._policy_show,
            PolicyInstall: self._policy_install,
            PolicyBind: self._policy_bind,
            PolicyRevoke: self._policy_revoke,
            ClockChallenge: self._clock_challenge,
            ClockReset: self._clock_reset,
            Provision: self._provision,
            Rotate: self._rotate,
            Contact: self._contact,
            CertificateRenew: self._renew,
            DegradedSwitch: self._switch,
            MetricsText: self._metrics_text,
        }

    async def _status(self, _request: Status, _peer: Peer) -> dict[str, Any]:
        parts, clock = self._parts, self._parts.clock
        status = await self._ops.refresh_status()
        now = clock.now()
        active, grace = count_states(parts.engine, now)
        return {
            "agent_id": parts.engine.agent_id,
            "agent_version": VERSION,
            "uptime_s": int(clock.wall() - self._host.started),
            "backend": {
                "name": status.name,
                "available": status.available,
                "detail": status.detail,
                "protects_stolen_disk": status.protects_stolen_disk,
                "state": status.state.value,
                "binding": status.binding,
                "secret_memory": secret_memory_kind(),
                "nv_writes": status.nv_writes,
                "nv_budget_left": status.nv_budget_left,
                "hierarchies_open": list(status.hierarchies_open),
                "lockout_counter": status.lockout_counter,
                "hardware_id": status.hardware_id,
            },
            "secrets": {"active": active, "grace": grace, "total": len(parts.engine.versions)},
            "rotation": rotation_view(parts.engine),
            "degraded": parts.engine.degraded,
            "degraded_since": self._host.kept.degraded_since,
            "mode": self._host.mode.mode.value,
            "server": None if self._host.contacts is None else server_view(self._host.contacts, now),
            "clock_suspect": clock.suspect(),
            "time": now,
            "validations": parts.counters.validations,
            "validations_failed": parts.counters.validations_failed,
            "unauthorized": parts.counters.unauthorized,
            "connections": self._host.connections,
            "audit": {"seq": parts.audit.seq, "failing": parts.audit.failing},
            "store_generation": self._ops.generation,
            "confinement": confinement_view(self._host.confinement),
        }

    async def _secrets(self, _request: SecretList, _peer: Peer) -> dict[str, Any]:
        return {"secrets": secrets_view(self._parts.engine, self._parts.clock.now())}

    async def _install(self, request: SecretInstall, peer: Peer) -> dict[str, Any]:
        meta = await self._ops.install(request.delivery, actor(peer))
        await self._host.heard_from_server()
        return {"secret_version": meta.version, "generation": self._ops.generation}

    async def _invalidate(self, request: SecretInvalidate, peer: Peer) -> dict[str, Any]:
        await self._ops.invalidate(request.version, actor(peer))
        await self._host.after_change()
        return {"secret_version": request.version, "generation": self._ops.generation}

    async def _license_check(self, request: LicenseCheck, _peer: Peer) -> dict[str, Any]:
        clock = self._parts.clock
        now = clock.now()
        verdict = self._parts.engine.validate(request.token, now)
        return {
            "valid": verdict.valid,
            "reason": verdict.reason.value,
            "features": list(verdict.features),
            "metadata": verdict.metadata or {},
            "reissue_due": verdict.reissue_due,
            "refresh_by": verdict.refresh_by,
            "refreshed": verdict.refreshed,
            "degraded": self._parts.engine.degraded,
            "clock_suspect": clock.suspect(),
            **told(verdict),
        }

    async def _license_import(self, request: LicenseImport, peer: Peer) -> dict[str, Any]:
        engine, now = self._parts.engine, self._parts.clock.now()
        verdict = engine.judge_import(request.token, now)
        await self._parts.audit.record_durably("license.imported", "ok", actor=actor(peer), **told(verdict))
        engine.import_token(request.token, now)
        await self._host.write_book()
        return {"license": verdict.jti, "secret_version": verdict.secret_version}

    async def _audit_tail(self, request: AuditTail, _peer: Peer) -> dict[str, Any]:
        self._parts.audit.flush()
        lines = await asyncio.to_thread(tail_lines, self._parts.config.audit_log, request.after_seq, request.limit, REPLY_ROOM)
        return {"records": [line.decode("utf-8", "replace").rstrip("\n") for line in lines]}

    async def _audit_export(self, request: AuditExport, _peer: Peer) -> dict[str, Any]:
        self._parts.audit.flush()
        lines = await asyncio.to_thread(self._parts.keeper.read, request.after_seq, request.limit, REPLY_ROOM)
        return {"records": [line.decode("utf-8", "replace").rstrip("\n") for line in lines]}

    async def _audit_verify(self, _request: AuditVerify, _peer: Peer) -> dict[str, Any]:
        audit = self._parts.audit
        audit.flush()
        seq, heads = audit.seq, audit.heads
        found = await asyncio.to_thread(self._parts.keeper.verify)
        problem = None if found.problem is None else str(found.problem)
        if problem is None and (found.last_seq < seq or (found.last_seq == seq and found.heads != heads)):
            problem = f"the log ends with record {found.last_seq}, but the agent has written up to {seq}: its end was cut off"
        if problem is None and found.values:
            sealed = await self._ops.sealed_audit_value()
            if sealed not in found.values:
                problem = "the log does not fit the value that is sealed: a checkpoint is missing or was replaced"
        return {**found.told(), "ok": problem is None, "problem": problem}

    async def _policy_show(self, request: PolicyShow, _peer: Peer) -> dict[str, Any]:
        return await self._policies.show(request.pcrs)

    async def _policy_install(self, request: PolicyInstall, peer: Peer) -> dict[str, Any]:
        return {"file": await self._policies.install(request.policy, actor(peer))}

    async def _policy_bind(self, request: PolicyBind, peer: Peer) -> dict[str, Any]:
        await self._policies.bind(request.kind, request.pcrs, request.key, actor(peer))
        await self._ops.refresh_status()
        return {"binding": request.kind}

    async def _policy_revoke(self, request: PolicyRevoke, peer: Peer) -> dict[str, Any]:
        await self._policies.revoke(request.number, actor(peer))
        return {"policy_number": request.number}

    async def _clock_challenge(self, _request: ClockChallenge, _peer: Peer) -> dict[str, Any]:
        return {"agent_id": self._parts.engine.agent_id, "challenge": self._ops.challenge()}

    async def _clock_reset(self, request: ClockReset, peer: Peer) -> dict[str, Any]:
        signed = await self._ops.reset_clock(request.statement, actor(peer))
        await self._host.after_change()
        return {"signed": signed, "time": self._parts.clock.now(), "clock_suspect": self._parts.clock.suspect()}

    # The server

    def _contacts(self) -> Contacts:
        contacts = self._host.contacts
        if contacts is None:
            raise EngineRefused("this agent has no server: it was not provisioned; secrets are carried to it by hand")
        return contacts

    async def _provision(self, _request: Provision, _peer: Peer) -> dict[str, Any]:
        raise EngineRefused("this device is an agent already; 'license-agent recover reinitialize' gives that up")

    async def _rotate(self, _request: Rotate, peer: Peer) -> dict[str, Any]:
        contacts = self._contacts()
        before = contacts.newest
        await self._parts.audit.record_durably("rotation.forced", "begun", actor=actor(peer), secret_version=before)
        await contacts.contact(Cause.FORCED)
        return {"secret_version": contacts.newest, "before": before, "generation": self._ops.generation}

    async def _contact(self, _request: Contact, peer: Peer) -> dict[str, Any]:
        contacts = self._contacts()
        await self._parts.audit.record_durably("server.contact", "begun", actor=actor(peer))
        await contacts.contact()
        return server_view(contacts, self._parts.clock.now())

    async def _renew(self, _request: CertificateRenew, peer: Peer) -> dict[str, Any]:
        contacts = self._contacts()
        await self._parts.audit.record_durably("tls.renewal", "wanted", actor=actor(peer))
        await contacts.contact(renew=True)
        await contacts.contact()
        return {"certificate_ends": int(contacts.certificate_ends)}

    async def _switch(self, request: DegradedSwitch, peer: Peer) -> dict[str, Any]:
        self._contacts()
        if request.on and self._parts.config.agent.degraded_switch != "allowed":
            raise EngineRefused('the configuration forbids it: it needs degraded_switch = "allowed" in [agent]')
        await self._parts.audit.record_durably("degraded.switched", "on" if request.on else "off", actor=actor(peer))
        self._host.hold(request.on)
        await self._host.after_change()
        return {"mode": self._host.mode.mode.value, "held": self._host.mode.held}

    async def _metrics_text(self, _request: MetricsText, _peer: Peer) -> dict[str, Any]:
        return {"text": self._host.render_metrics().decode("utf-8")}
