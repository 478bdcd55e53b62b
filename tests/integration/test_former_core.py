"""Until an update of the agent is committed the version before may run again, so it must read all that the new one has written.

The core of the last release writes an agent's files, today's goes through a trial with them, the former one reads them again,
and then today's once more. The former core is the code of that release, in a process of its own.
"""

import asyncio
import base64
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.base.alerts import WEBHOOK_FAILING
from agentd.base.clock.signedtime import Standing
from agentd.base.clock.timeanchor import Reading
from agentd.base.identity import write_agent_id
from agentd.daemon import Daemon
from agentd.ota.journal import read_journal
from agentd.rotation.table import Step
from agentd.secrets.open import machine_id
from agentd.secrets.record import (
    SECTION_HARDWARE,
    SECTIONS,
    AdminAccess,
    AgentRecord,
    SettledKeySet,
    UnconfirmedTime,
    UsedBreakGlass,
)
from hwsec.software import PBKDF2_FLOOR, SoftwareBackend
from hwsec.vault import Vault
from server.licensing.licenses.licenses import Order
from tests.agentd.file_examples import FROZEN, STORE, bytes_of
from tests.agentd.ota.test_journal import WHOLE as JOURNAL
from tests.support.licensing import suspend
from tests.support.mixed import last_release
from tests.support.pair import AGENT, LICENSE, START, AgentProcess, Pair, first_pair
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
FORMER_CORE = Path(__file__).parents[1] / "support" / "former_core.py"
OWN, GONE = "of this machine", "suspended"
UNREAD = {"store.repaired", "licenses.corrupt", "state.restored", "audit.torn_line", "audit.count_refused", "audit.gap"}
"""Events that say that a file was not as it should be."""


class Former:
    """The core of the last release, one start for each call."""

    def __init__(self, pair: Pair, keys: Path) -> None:
        self._pair = pair
        paths = pair.config.paths
        self._config = (
            f'[agent]\nid = "{AGENT}"\n[tpm]\nenabled = false\n'
            f'fallback_encrypted_storage = "{pair.config.tpm.fallback_encrypted_storage}"\n'
            f'[paths]\nstate_dir = "{paths.state_dir}"\nlog_dir = "{paths.log_dir}"\nkey_dir = "{keys}"\n'
        )
        # -I: what lies beside the program must not take the place of the release's modules.
        command: list[str | Path] = [last_release() / "python", "-I", FORMER_CORE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def start(self, *tokens: str) -> dict[str, Any]:
        """What it finds; it changes each of its files."""
        clock = self._pair.clock
        clock.seconds += 60
        order = {
            "config": self._config,
            "wall": START + clock.seconds,
            "boot_ms": int((clock.seconds - clock.booted) * 1000),
            "boots": clock.boots,
            "tokens": tokens,
        }
        return self._ask(order)

    def reads(self, directory: Path) -> dict[str, Any]:
        """What it reads in single files."""
        return self._ask({"examples": str(directory)})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate(timeout=READY_S)[1])
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        self.process.communicate(timeout=READY_S)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[tuple[Pair, Former]]:
    keys = tmp_path / "keys"
    keys.mkdir()
    backend = SoftwareBackend(keys, machine_id(), Vault(), PBKDF2_FLOOR)
    pair = first_pair(tmp_path, backend, lambda: SoftwareBackend(keys, machine_id(), Vault()))
    write_agent_id(pair.config, AGENT)
    issue(pair, OWN)
    issue(pair, GONE)
    pair.agent.end()
    former = Former(pair, keys)
    yield pair, former
    former.end()
    pair.close()


def issue(pair: Pair, jti: str) -> None:
    pair.server.server_side.licenses.issue(AGENT, Order(jti, "shop", ("till",), {}, START, START + 10**7), pair.server.now)


def run(pair: Pair, story: Callable[[AgentProcess, Daemon], Any]) -> None:
    """A run of today's core, to its orderly end."""
    pair.clock.seconds += 60
    pair.clock._restarted()
    pair.agent = pair._start()

    async def whole() -> None:
        daemon = Daemon(pair.agent.agent)
        await daemon.start()
        await story(pair.agent, daemon)
        await daemon.finish()

    asyncio.run(whole())


def everything(process: AgentProcess) -> dict[str, Any]:
    """Something for each section that the last release does not know."""
    record = process.store.record
    assert record.time is not None and record.server is not None
    return {
        "unconfirmed": UnconfirmedTime(standing=Standing.PROVISIONAL, time=record.time, clock=START),
        "settled": SettledKeySet(trust_file=record.trust_file, roots=record.server.roots),
        "access": AdminAccess(
            revoked=("ab" * 32,), break_glass=(UsedBreakGlass(certificate="cd" * 32, began=Reading(1, 2), ends=START),)
        ),
    }


def held(record: AgentRecord) -> AgentRecord:
    """A record without the time, which each core sets for itself."""
    return replace(record, time=None)


def unread(events: list[list[str]]) -> list[list[str]]:
    return [each for each in events if each[0] in UNREAD or each[0].startswith("alert.") or each[1] == "mismatch"]


def events_of(pair: Pair) -> list[list[str]]:
    lines = pair.config.audit_log.read_bytes().splitlines()
    return [[each["event"], each["outcome"]] for each in map(msgspec.json.decode, lines)]


def check_examples(former: Former, directory: Path) -> None:
    """The frozen examples of today's files (tests/agentd/test_files.py), each with all of its members."""
    directory.mkdir()
    content = {name.removeprefix(f"{STORE}, section "): bytes_of(text) for name, text in FROZEN.items()}
    for name, data in content.items():
        (directory / name).write_bytes(data)
    found = former.reads(directory)
    for name in ("server", "server_time", "tls", "revocations", "rotation.json"):
        assert found.pop(name) == json.loads(content[name])
    assert found == {
        "licenses.json": [True, ["license-1"]],
        "state.json": "state.json",
        "audit.repeats": ["license.validated"],
        "audit.anchors": ["security"],
        "audit.log": 5,
        "tpm.objects": ["custom", "ab" * 32],
    }


def test_the_former_core_reads_what_a_trial_has_written(machine: tuple[Pair, Former], tmp_path: Path) -> None:
    pair, former = machine
    config = pair.config
    check_examples(former, tmp_path / "examples")

    found = former.start(pair.token)
    assert (
        found["verdicts"] == {pair.token: [True, "ok"]}
        and found["verified"] == [True, None, []]
        and not unread(found["events"])
    )
    assert found["rotation"]["step"] == Step.IDLE
    generation = found["generation"]

    # The trial: it goes on with the rotation that the former core has begun, and writes each of its own files.
    kept: list[AgentRecord] = []
    tokens: list[str] = []

    async def trial(process: AgentProcess, daemon: Daemon) -> None:
        begun = process.rotation.rotation
        assert process.store.generation == generation and begun.step is Step.REQUESTED
        finished = msgspec.structs.replace(begun, step=Step.IDLE, version=2)
        assert process.validator.validate(pair.token, pair.clock.now()).verdict.valid
        for _ in range(4):
            pair.clock.seconds += 1
            await process.contact(None)
        assert process.rotation.rotation == finished and process.ring.newest_number == 2
        suspend(pair.server.server_side, GONE, pair.server.now)
        pair.clock.seconds += 1
        await process.contact(None)
        assert process.store.record.withheld.suspended and process.store.record.capabilities
        tokens.extend(filter(None, map(process.validator.inventory.newest, (LICENSE, OWN))))
        assert len(tokens) == 2 and all(process.validator.validate(token, pair.clock.now()).verdict.valid for token in tokens)
        await process.agent.webhook.keys.new({"uid": 0})
        await process.store.keep("trust.updated", everything(process))
        assert process.agent.assembled.usage is not None
        process.agent.assembled.usage.count(LICENSE, "sales", 3, b"a" * 16)
        process.core.audit.record("ota.success", "installed", product="license-agent")
        process.core.audit.raise_alert(WEBHOOK_FAILING, "an alert")
        config.updates_journal.write_bytes(msgspec.json.encode(JOURNAL))
        await daemon.agent.reporter.after_change()
        kept.append(process.store.record)

    run(pair, trial)
    # Then the machine loses power, and what was counted in the last minute is in no record yet.
    pair.clock._restarted()
    pair.agent = pair._start()
    for event in ("license.validated", "license.listed", "usage.counted", "admin.refused", "ota.consent"):
        pair.agent.core.audit.count(event, event, "ok", dict)
    pair.agent.end()

    # Back to the former core.
    found = former.start(*tokens, pair.token)
    assert not unread(found["events"]) and found["verified"] == [True, None, []] and found["inventory_whole"]
    assert found["repairs"] == []
    assert found["versions"] == [[1, "GRACE", True], [2, "ACTIVE", True]]
    assert found["verdicts"] == {token: [True, "ok"] for token in (*tokens, pair.token)}
    assert found["newest"][LICENSE] == tokens[0] and found["last_contact"] is not None
    assert {**found["rotation"], "since": 0} == {"step": "idle", "cause": "forced", "before": 1, "version": 2, "since": 0}
    sections = {name: base64.b64decode(data) for name, data in found["sections"].items()}
    assert sections == kept[0].sections()
    assert {*sections, SECTION_HARDWARE} == SECTIONS  # each of them; the software backend has no hardware id
    assert ["license.validated", "ok"] in found["events"]

    # And today's again: what the former core does not know is still there.
    async def again(process: AgentProcess, daemon: Daemon) -> None:
        assert held(process.store.record) == held(kept[0]) and len(process.agent.assembled.webhook_keys) == 1
        assert process.ring.newest_number == 2 and process.rotation.rotation.step is Step.REQUESTED
        assert daemon.agent.assembled.found.inventory_whole and not daemon.agent.assembled.found.state_corrupt
        assert [each.total for each in process.agent.assembled.usage.totals()] == [3]  # type: ignore[union-attr]
        assert (await process.agent.assembled.keeper.verify_in_turn()).problem is None
        assert read_journal(config.updates_journal) == JOURNAL

    before = len(events_of(pair))
    run(pair, again)
    assert not unread(events_of(pair)[before:])
