"""A machine to update: an updater and an installer in memory that outlive the agent, as the real processes do.

The installer follows the protocol's law: it switches only what it has prepared, carries a directive out once, keeps the version
before until the commit, and each order may be repeated. A call may be set to fail, to be unreachable, or to kill the agent
after it has had its effect and before its answer comes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.core import Core
from agentd.audit.file import AuditFile
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig
from agentd.ota.acts import UpdateActs
from agentd.ota.consent import Mode
from agentd.ota.effects import Machine
from agentd.ota.register import Register
from agentd.ota.runner import UpdateRunner
from agentd.ota.settings import Settings
from agentd.ota.sides import Declined, Offered, Progress, Proof, Seen, Unreachable
from agentd.ota.table import Installed, Order
from audittrail.chain import Chain
from hwsec.vault import Vault
from tests.agentd.world import core_of

NOW = 1_800_000_000
NEW = Order(
    number=7, product="pos", version="2.0.0", build_id="b2", sha256="ab" * 32, directive="d", key_set="k",
    received=NOW, not_before=NOW - 10, not_after=NOW + 30 * 86_400,
)  # fmt: skip
AT_ONCE = Settings(notice_s=0, consent=Mode.NONE)


class Killed(BaseException):
    """The agent was killed."""


@dataclass
class Calls:
    """What calls do besides their work: raise before it, or kill after it."""

    before: dict[str, list[Exception]] = field(default_factory=dict)
    kill_after: str = ""
    made: list[str] = field(default_factory=list)

    def begin(self, name: str) -> None:
        self.made.append(name)
        if waiting := self.before.get(name):
            raise waiting.pop(0)

    def end(self, name: str) -> None:
        if name == self.kill_after:
            self.kill_after = ""
            raise Killed(name)


class MemoryUpdater:
    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.staged: set[str] = set()
        self.offer = Offered("pos", "2.0.0", "b2", NEW.sha256, 1000, "what is new", NOW + 86_400)

    async def refresh(self, order: Order, now: int) -> Offered:
        self.calls.begin("refresh")
        return self.offer

    async def look(self, now: int) -> Seen:
        self.calls.begin("look")
        return Seen(self.offer.metadata_expires, self.offer.signed_until, self.offer.signed_role)

    async def stage(self, order: Order, now: int, rate: int | None, progress: Progress) -> None:
        self.calls.begin("stage")
        progress(500, 1000)
        await asyncio.sleep(0)
        self.staged.add(order.sha256)
        self.calls.end("stage")

    async def take(self, package: int, now: int, progress: Progress) -> Offered:
        self.calls.begin("take")
        self.staged.add(self.offer.sha256)
        return self.offer

    async def discard(self, keep: tuple[str, ...]) -> None:
        self.calls.begin("discard")
        self.staged &= set(keep)


class MemoryInstaller:
    def __init__(self, calls: Calls, updater: MemoryUpdater) -> None:
        self.calls = calls
        self.updater = updater
        self.active, self.previous, self.in_trial = ("1.0.0", "b1"), ("", ""), False
        self.prepared: set[str] = set()
        self.switched: list[str] = []
        self.withdrawals: list[tuple[str, str]] = []
        self.healthy = True
        self.problem = ""

    async def products(self) -> dict[str, Installed]:
        self.calls.begin("products")
        if self.problem:
            return {"pos": Installed(version="", code="machine", problem=self.problem)}
        version, build = self.active
        return {
            "pos": Installed(
                version=version,
                build_id=build,
                in_trial=self.in_trial,
                begun=self.in_trial or bool(self.prepared),
                previous=self.previous[0],
            )
        }

    async def prepare(self, product: str, sha256: str, progress: Progress) -> None:
        self.calls.begin("prepare")
        if sha256 not in self.updater.staged:
            raise Declined("not-staged", "the package is not staged")
        self.prepared.add(sha256)
        self.calls.end("prepare")

    async def switch(self, product: str, sha256: str) -> None:
        self.calls.begin("switch")
        if sha256 not in self.prepared or sha256 in self.switched:
            raise Declined("directive-replayed", "this was switched before, or never prepared")
        self.switched.append(sha256)
        self.previous, self.active, self.in_trial = self.active, ("2.0.0", "b2"), True
        self.calls.end("switch")

    async def prove(self, product: str) -> Proof:
        self.calls.begin("prove")
        self.calls.end("prove")
        return Proof(self.healthy, "" if self.healthy else "bin/check: exit status 1")

    async def commit(self, product: str) -> None:
        self.calls.begin("commit")
        self.in_trial = False
        self.prepared.clear()
        self.calls.end("commit")

    async def roll_back(self, product: str, reason: str) -> None:
        self.calls.begin("roll_back")
        if self.in_trial or not self.prepared:
            if not self.previous[0]:
                raise Declined("no-version-before", "there is no version before")
            self.active, self.previous, self.in_trial = self.previous, ("", ""), False
        self.prepared.clear()
        self.calls.end("roll_back")

    async def withdraw(self, directive: str, key_set: str) -> None:
        self.calls.begin("withdraw")
        self.withdrawals.append((directive, key_set))


class UpdatedMachine:
    """Everything but the agent's process; `start` makes a new one of those over the same disk."""

    def __init__(self, directory: Path, settings: Settings = AT_ONCE) -> None:
        self.directory = directory
        self.settings = settings
        self.calls = Calls()
        self.updater = MemoryUpdater(self.calls)
        self.installer = MemoryInstaller(self.calls, self.updater)
        self.wall, self.mono = float(NOW), 1000.0
        self.licensed, self.problem, self.withdrawn = True, "", False
        self.backups = 0
        self.vault = Vault()
        file = AuditFile(directory / "audit.log")
        file.open()
        self.clock = Clock(wall=lambda: self.wall, monotonic=lambda: self.mono)
        self.audit = AuditLog(
            file, Chain(), CoalescedEvents(directory / "audit.repeats"), self.clock, AuditConfig(), lambda: None
        )
        self.core: Core = core_of(self.clock, self.audit, self.vault)
        self.journal = directory / "ota.json"

    def start(self, trace: Callable[[str], None] = lambda _step: None) -> UpdateRunner:
        self.register = Register(self.directory / "ota-register.json", self.audit)

        async def backup() -> str:
            self.backups += 1
            self.calls.begin("backup")
            return "ota-backup.json"

        async def withdrawn(_number: int) -> bool:
            self.calls.begin("withdrawn")
            return self.withdrawn

        machine = Machine(
            self.updater, self.installer, self.register, backup, lambda: self.licensed, lambda: self.problem, withdrawn
        )
        self.runner = UpdateRunner(self.core, self.journal, machine, self.settings, lambda: 0.5, trace)
        self.acts = UpdateActs(self.core, self.runner, self.updater, self.installer)
        return self.runner

    async def settle(self, runner: UpdateRunner, rounds: int = 60, step_s: float = 61.0) -> None:
        """Runs and lets time pass until the update has ended."""
        for _ in range(rounds):
            await runner.run()
            if runner.update.step in ("idle", "locked"):
                return
            self.wall += step_s
            self.mono += step_s
        raise AssertionError(f"the update is {runner.update.step}: {runner.problem or runner.waits}")

    def records(self) -> list[dict[str, Any]]:
        self.audit.flush()
        return [msgspec.json.decode(line) for line in (self.directory / "audit.log").read_bytes().splitlines()]

    def close(self) -> None:
        self.audit.discard()
        self.vault.close()


def unreachable(times: int) -> list[Exception]:
    return [Unreachable("the repository cannot be reached") for _ in range(times)]
