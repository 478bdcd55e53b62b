"""Knows how administrators are authenticated on this machine, and keeps what must outlive the process in the sealed store.

`required`  an administrator's certificate signs every request, except for what `roles.RULES` leaves to root and monitoring
`uid-only`  the kernel's word for the user is enough, as in release 0.1.0

`[management] authentication` says which; without it, root's admin CA does: `required` while its file exists. Once it was
required, the sealed store keeps it so (`latched`): a file that goes missing leaves recovery, never more. Root ends that by an
act that is audited.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from agentd.audit.log import AuditLog, AuditUnavailable
from agentd.base.alerts import ADMIN_CA_ENDS, ADMIN_CA_UNUSABLE, BREAK_GLASS, Alert
from agentd.base.caller import Caller
from agentd.base.clock.clock import Clock
from agentd.base.errors import Refused
from agentd.secrets.record import NO_ADMIN_ACCESS, AdminAccess, UsedBreakGlass
from agentd.secrets.store import Store
from common.files import os_problem
from contracts.admin.adminauth import BREAK_GLASS_S
from contracts.admin.adminca import MAX_CA_BYTES, AdminCa, BadAdminCa, digest_of, read_admin_ca
from hwsec.errors import HwsecError
from ipc.messages import Request, Signed
from ipc.peer import Peer

from .authentication import Authenticated, Conversation, Grounds, NotAccepted, authenticate, begin_session, in_session
from .chain import Window
from .roles import RULES

log = logging.getLogger(__name__)

ENDS_SOON_S = 30 * 86_400
MAX_BREAK_GLASS = 64
"""Break-glass certificates that the sealed store remembers as used, until they end."""
MAX_REVOKED = 1000
"""Digests of revoked certificates that the sealed store keeps."""
HINT = "this agent asks for an administrator's certificate: --auth-cert FILE --auth-key FILE (license-agent-cli(8))"


class Mode(StrEnum):
    """How administrators are authenticated."""

    REQUIRED = "required"
    UID_ONLY = "uid-only"


def in_force(policy: str | None, *, ca_exists: bool, latched: bool) -> Mode:
    """Which mode is in force.

    Args:
        policy: `[management] authentication`; None where it is not set.
        ca_exists: root has installed an admin CA; also one that cannot be used.
        latched: it was required before, and root has not ended that.
    """
    wanted = policy == Mode.REQUIRED or (policy is None and ca_exists)
    return Mode.REQUIRED if wanted or latched else Mode.UID_ONLY


def read_ca_file(path: Path | None) -> bytes | None:
    """The admin CA's file; None if there is none.

    Raises:
        BadAdminCa: it is not root's alone to write, or cannot be read.
    """
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadAdminCa(os_problem(error)) from None
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BadAdminCa("it must be a file that belongs to root and that nobody else may write to (mode 0644)")
        data = file.read(MAX_CA_BYTES + 1)
    if len(data) > MAX_CA_BYTES:
        raise BadAdminCa(f"it has more than {MAX_CA_BYTES} bytes")
    return data


class Access:
    """Who may do what on the admin socket, now.

    Args:
        agent_id: the agent's; empty for a device that is not one yet.
        boot_id: the kernel's, 16 bytes.
        read_ca: reads the admin CA's file (`read_ca_file`).
        policy: `[management] authentication`.
        store: keeps what must outlive the process; None before the device is an agent.

    Attributes:
        ca: whose certificates count; None while none can be used.
        problem: why the file cannot be used; empty if it can, or does not exist.
    """

    def __init__(
        self,
        agent_id: str,
        boot_id: bytes,
        read_ca: Callable[[], bytes | None],
        policy: str | None,
        clock: Clock,
        audit: AuditLog,
        store: Store | None,
    ) -> None:
        self._agent_id = agent_id
        self._boot_id = boot_id
        self._read_ca = read_ca
        self._policy = policy
        self._clock = clock
        self._audit = audit
        self._store = store
        self._pem: bytes | None = None
        self._seen = False
        self.ca: AdminCa | None = None
        self.problem = ""
        self._raised: set[Alert] = set()
        # What is kept is read, changed and committed by one request at a time.
        self._turn = asyncio.Lock()

    # What is in force

    @property
    def kept(self) -> AdminAccess:
        """What the sealed store keeps."""
        return NO_ADMIN_ACCESS if self._store is None else self._store.record.access

    @property
    def mode(self) -> Mode:
        """How administrators are authenticated now."""
        exists = self.ca is not None or bool(self.problem)
        return in_force(self._policy, ca_exists=exists, latched=self.kept.latched)

    def reconfigure(self, policy: str | None) -> None:
        """Applies a new configuration, and reads the file again."""
        self._policy = policy
        self.look()

    def look(self) -> None:
        """Reads the admin CA's file; blocks for it. Called at the start, after a reload, and every minute."""
        before = (self._pem, self.problem)
        try:
            pem, problem = self._read_ca(), ""
            if pem is None:
                self.ca = None
            elif pem != self._pem or self.ca is None:
                self.ca = read_admin_ca(pem)
        except BadAdminCa as error:
            pem, problem, self.ca = None, str(error), None
        self._pem, self.problem = pem, problem
        if self._seen and (pem, problem) != before:
            digests = [] if self.ca is None else [digest_of(each) for each in self.ca.certificates]
            log.warning("the admin CA has changed")
            self._audit.record("admin.ca_changed", "refused" if problem else "ok", certificates=digests, problem=problem)
        self._seen = True
        self._watch()

    def _watch(self) -> None:
        """Raises and clears the alerts that last."""
        required = self.mode is Mode.REQUIRED
        why = self.problem or "the file does not exist"
        self._set(
            ADMIN_CA_UNUSABLE,
            required and (self.ca is None or self.ca.ends < self._clock.now()),
            f"administrators need certificates, and the admin CA cannot be used: "
            f"{'it has ended' if self.ca is not None else why}; root may look at the agent and recover it",
        )
        left = None if self.ca is None else self.ca.ends - self._clock.now()
        self._set(BREAK_GLASS, bool(self._in_use()), "a break-glass certificate is in use")
        self._set(
            ADMIN_CA_ENDS,
            required and left is not None and 0 <= left <= ENDS_SOON_S,
            f"the admin CA ends in {(left or 0) // 86_400} days; no administrator's certificate counts after that",
        )

    def _set(self, alert: Alert, on: bool, text: str) -> None:
        if on and alert not in self._raised:
            self._raised.add(alert)
            self._audit.raise_alert(alert, text)
        elif not on and alert in self._raised:
            self._raised.discard(alert)
            self._audit.clear_alert(alert, alert.title)

    async def settle(self) -> None:
        """Seals that certificates are required, once they are. Logs a failure; the next call tries again."""
        if self._store is None or self.mode is not Mode.REQUIRED or self.kept.latched:
            return
        try:
            async with self._turn:  # what somebody revokes meanwhile is not taken back by what was read before
                if not self.kept.latched:
                    await self._keep("admin.authentication_required", msgspec.structs.replace(self.kept, latched=True))
        except (HwsecError, AuditUnavailable) as error:
            log.error("that administrators need certificates is not sealed yet: %s", error)

    async def _keep(self, event: str, access: AdminAccess, **fields: Any) -> None:
        if self._store is None:
            raise Refused("this device is not an agent yet: 'license-agent-cli provision' makes it one")
        await self._store.keep(event, {"access": access}, **fields)

    # What administrators change

    async def revoke(self, digests: tuple[str, ...], actor: dict[str, Any]) -> int:
        """Lets certificates not count any more; returns how many do not.

        Raises:
            Refused: the store keeps no more.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        async with self._turn:
            revoked = tuple(sorted({*self.kept.revoked, *digests}))
            if len(revoked) > MAX_REVOKED:
                raise Refused(f"the agent keeps {MAX_REVOKED} revoked certificates at most: install another admin CA instead")
            if revoked != self.kept.revoked:
                access = msgspec.structs.replace(self.kept, revoked=revoked)
                await self._keep("admin.certificate_revoked", access, actor=actor, certificates=list(digests))
        self._watch()
        return len(revoked)

    async def end(self, peer: Peer, actor: dict[str, Any]) -> Mode:
        """Demands no certificates any more; returns what is in force.

        Raises:
            Refused: somebody else than root asks, or the configuration or the admin CA demands them.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        if peer.uid != 0:
            raise Refused("only root on this machine can end that certificates are required")
        exists = self.ca is not None or bool(self.problem)
        if in_force(self._policy, ca_exists=exists, latched=False) is Mode.REQUIRED:
            what = "the admin CA is installed" if self._policy is None else '[management] authentication = "required"'
            raise Refused(f"certificates are required because {what}: change that and reload, then ask again")
        async with self._turn:
            if self.kept.latched:
                access = msgspec.structs.replace(self.kept, latched=False)
                await self._keep("admin.authentication_ended", access, actor=actor)
                log.warning("NOTICE administrators need no certificates any more: root has ended that")
        return self.mode

    # Break-glass

    def _in_use(self) -> tuple[UsedBreakGlass, ...]:
        """The break-glass certificates whose time runs: 4 hours of running time, in the boot of their first act."""
        kept = [each for each in self.kept.break_glass if not each.over]
        if not kept:
            return ()
        boot = self._clock.boot()
        most = BREAK_GLASS_S * 1000
        return tuple(
            each
            for each in kept
            if each.began.epoch == boot.epoch
            and 0 <= boot.milliseconds - each.began.milliseconds < most
            and each.certificate not in self.kept.revoked
        )

    async def begin_break_glass(self, caller: Caller, why: str, actor: dict[str, Any]) -> int:
        """Uses a break-glass certificate from now on; returns for how many seconds. That it is used is sealed first.

        Raises:
            Refused: it was used before.
            HwsecError, AuditUnavailable: nothing has changed.
        """
        async with self._turn:
            now = self._clock.certain()
            used = tuple(each for each in self.kept.break_glass if each.ends >= now)
            if any(each.certificate == caller.certificate for each in used):
                raise Refused("this break-glass certificate was used before: it counts once")
            if len(used) >= MAX_BREAK_GLASS:
                raise Refused(f"the agent remembers {MAX_BREAK_GLASS} used break-glass certificates at most")
            new = UsedBreakGlass(certificate=caller.certificate, began=self._clock.boot(), ends=caller.ends)
            access = msgspec.structs.replace(self.kept, break_glass=(*used, new))
            await self._keep("admin.break_glass", access, actor=actor, why=why)
        text = f"break-glass: {caller.name} administers this agent for {BREAK_GLASS_S // 3600} hours: {why}"
        self._raised.add(BREAK_GLASS)
        self._audit.raise_alert(BREAK_GLASS, text, "begun", actor=actor, why=why)
        return BREAK_GLASS_S

    async def end_break_glass(self, actor: dict[str, Any]) -> int:
        """Lets the break-glass certificates in use count no more; returns how many there were.

        Raises:
            HwsecError, AuditUnavailable: nothing has changed.
        """
        async with self._turn:
            ending = {each.certificate for each in self._in_use()}
            if ending:
                entries = self.kept.break_glass
                over = tuple(msgspec.structs.replace(e, over=True) if e.certificate in ending else e for e in entries)
                access = msgspec.structs.replace(self.kept, break_glass=over)
                await self._keep("admin.break_glass_ended", access, actor=actor, certificates=sorted(ending))
        self._watch()
        return len(ending)

    # Requests

    def challenge(self, talk: Conversation, now: float) -> dict[str, Any]:
        """A new challenge for a connection, with what else the signature covers."""
        talk.ask(os.urandom(32), now)
        return {
            "agent_id": self._agent_id,
            "boot_id": self._boot_id,
            "challenge": talk.challenge,
            "authentication": self.mode.value,
        }

    def permit_unsigned(
        self, request: type[Request], peer: Peer, talk: Conversation, now: float, *, signs: bool = False
    ) -> Peer:
        """Who asks for an operation without a signature.

        Args:
            request: the operation.
            peer: of the connection.
            talk: of the connection.
            now: monotonic seconds.
            signs: whether this user needs signatures in every mode.

        Raises:
            NotAccepted: nobody may, on this connection.
        """
        rule = RULES[request]
        if rule.anyone or (self.mode is Mode.UID_ONLY and not signs):
            return peer
        caller = in_session(request, talk, self._grounds(), now)
        if caller is not None:
            return caller
        if peer.uid == 0 and rule.root:
            return peer
        raise NotAccepted("no_certificate", HINT, suspicious=False)

    def authenticate(self, signed: Signed, talk: Conversation, peer: Peer, now: float) -> Authenticated:
        """The request that an administrator has signed.

        Raises:
            NotAccepted: it is not to be performed.
        """
        return authenticate(signed, talk, peer, self._grounds(), now)

    def _grounds(self) -> Grounds:
        # While nothing bounds the time from above, a certificate counts that is valid at some instant from the floor on.
        clock, ceiling = self._clock, self._clock.ceiling()
        window = Window(clock.certain() if ceiling is None else clock.now(), ceiling)
        in_use = [each.certificate for each in self._in_use()]
        return Grounds(self._agent_id, self._boot_id, self.ca, self.kept.revoked, window, in_use)

    def begin_session(self, talk: Conversation, found: Authenticated, now: float) -> Caller:
        """Lets a connection read from now on."""
        if self.ca is None:
            raise Refused("no certificate counts on this machine")
        return begin_session(talk, found, self.ca, now).caller

    def revoked_among(self, digests: Collection[str]) -> list[str]:
        """Those of these certificates (SHA-256 of the DER, hex) that do not count any more."""
        return [digest for digest in digests if digest in self.kept.revoked]

    def view(self) -> dict[str, Any]:
        """For `status`: which mode is in force, and why."""
        return {
            "mode": self.mode.value,
            "configured": self._policy,
            "latched": self.kept.latched,
            "ca_ends": None if self.ca is None else self.ca.ends,
            "ca_problem": self.problem,
            "revoked": len(self.kept.revoked),
            "break_glass": [each.certificate for each in self._in_use()],
        }

    def details(self) -> dict[str, Any]:
        """The reply to `admin_access`: as `view`, with the CAs and the certificates that do not count."""
        cas = () if self.ca is None else self.ca.certificates
        return {
            **self.view(),
            "cas": [
                {
                    "subject": each.subject.rfc4514_string(),
                    "certificate": digest_of(each),
                    "begins": int(each.not_valid_before_utc.timestamp()),
                    "ends": int(each.not_valid_after_utc.timestamp()),
                }
                for each in cas
            ],
            "revoked_certificates": list(self.kept.revoked),
        }
