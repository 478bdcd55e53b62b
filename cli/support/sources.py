"""Reads what a support bundle is made of. What cannot be read is a reason, and stops nothing.

Everything comes through `Sources`: the running agent, programs, files. Tests put others in its place.
"""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.files import os_problem
from common.version import VERSION
from ipc.errors import LicenseAgentError
from ipc.posclient.policy import AgentUnavailable

from ..agent import Agent
from ..doctor.machine import Ran, run_program

UNITS = (
    "license-agent.service",
    "license-agent-pos.socket",
    "license-agent-admin.socket",
    "license-agent-link.service",
    "license-agent-link.socket",
    "license-agent-installer.service",
    "license-agent-installer.socket",
    "license-agent-apply.service",
    "license-agent-apply.path",
    "license-agent-upgrade.service",
    "license-agent-upgrade.path",
    "license-agent-rescue.service",
    "license-agent-rescue.timer",
    "license-agent-updater.service",
    "license-agent-updater.socket",
)
_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,ActiveEnterTimestamp,UnitFileState,FragmentPath,"
    "DropInPaths"
)
JOURNAL_LINES = 3000
"""Of each unit."""
MAX_MEMBER_BYTES = 4 * 1024 * 1024
AUDIT_RECORDS = 1000
_LICENSE_MEMBERS = frozenset({"license", "license_id", "licenses", "seat", "seats", "floating"})


class NotRead(Exception):
    """A member cannot be made; the text says why."""


@dataclass
class Sources:
    """Where a bundle's members come from.

    Attributes:
        agent: the running agent.
        config: its configuration file.
        link: the link's.
        run: runs a program.
        now: seconds since 1970 UTC.
        root: below which files are read.
    """

    agent: Agent
    config: Path = Path("/etc/license-agent/config.toml")
    link: Path = Path("/etc/license-agent/link.toml")
    run: Callable[[Sequence[str]], Ran] = run_program
    now: Callable[[], float] = time.time
    root: Path = field(default=Path("/"))
    # Why the agent does not answer: it is not waited for again.
    _silent: str = field(default="", init=False)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The agent's reply; raises NotRead."""
        return self._replied(lambda: self.agent.ask(op, **fields))

    def health(self) -> dict[str, Any]:
        """The reply to `status`; of an agent that does not answer, what that means. Raises NotRead."""
        reply = self._replied(self.agent.ask_health)
        findings = reply["health"]["findings"]
        if [finding["code"] for finding in findings] == ["no_answer"]:
            self._silent = findings[0]["text"]
        return reply

    def _replied(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self._silent:
            raise NotRead(self._silent)
        try:
            return ask()
        except AgentUnavailable as error:
            self._silent = str(error)
            raise NotRead(self._silent) from None
        except OSError as error:
            raise NotRead(os_problem(error)) from None
        except LicenseAgentError as error:
            raise NotRead(str(error)) from None

    def output(self, *command: str) -> str:
        """What a program prints; raises NotRead."""
        try:
            done = self.run(command)
        except FileNotFoundError:
            raise NotRead(f"{command[0]} is not installed") from None
        except (OSError, subprocess.SubprocessError) as error:
            raise NotRead(f"{command[0]}: {error}") from None
        if done.status != 0 and not done.stdout.strip():
            raise NotRead(f"{command[0]} ended with status {done.status}: {' '.join(done.stderr.split())[:300]}")
        return done.stdout

    def file(self, path: Path) -> str:
        """The end of a file; raises NotRead."""
        try:
            with (self.root / path.relative_to("/")).open("rb") as opened:
                return opened.read(MAX_MEMBER_BYTES).decode("utf-8", "replace")
        except OSError as error:
            raise NotRead(os_problem(error)) from None


Member = tuple[str, str, Callable[[], str]]
"""Name in the archive, what it is, and what makes it."""


def members(sources: Sources, *, licenses: bool) -> Iterator[Member]:
    """What a bundle has, in order.

    Args:
        sources: where it comes from.
        licenses: whether the ids of licenses stay in the audit records.
    """
    ask = sources.ask
    yield "status.json", "the agent's state and health", lambda: _json(sources.health())
    yield "doctor.json", "the checks of 'license-agent-cli doctor'", lambda: _doctor(sources)
    yield "config.json", "the configuration in force", lambda: _json(ask("config_show"))
    yield "config.toml", "the agent's configuration file", lambda: sources.file(sources.config)
    yield "link.toml", "the link's configuration file", lambda: _without_webhook_path(sources.file(sources.link))
    yield "secrets.json", "versions, states and dates of the secrets; no secret", lambda: _json(ask("secrets"))
    yield "policy.json", "the binding to PCRs", lambda: _json(ask("policy_show", pcrs=[]))
    yield "metrics.prom", "the metrics", lambda: str(ask("metrics")["text"])
    yield "audit-verify.json", "the check of the audit log", lambda: _json(ask("audit_verify"))
    yield "audit-records.jsonl", "the newest audit records", lambda: _records(sources, licenses)
    yield "versions.txt", "versions of packages, kernel and firmware", lambda: _versions(sources)
    yield "tpm.txt", "the TPM's properties", lambda: sources.output("tpm2_getcap", "properties-fixed")
    for unit in UNITS:
        read = partial(sources.output, "systemctl", "show", f"--property={_PROPERTIES}", unit)
        yield f"units/{unit}.txt", f"state of {unit}", read
    for unit in UNITS:
        if unit.endswith(".service"):
            yield f"journal/{unit}.txt", f"journal of {unit}", partial(_journal, sources, unit)


_PATH = re.compile(r"(https?://[^/\"'\s]+)/[^\"'\s]+")


def _without_webhook_path(text: str) -> str:
    """The link's configuration without the path of the webhook: with many receivers, who knows it may write there."""
    within, lines = False, []
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            within = "webhook" in line
        lines.append(_PATH.sub(r"\1/[the path was removed]", line) if within or "webhook" in line else line)
    return "".join(lines)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=False) + "\n"


def _doctor(sources: Sources) -> str:
    # Only here: the checks are needed by nothing else.
    from ..doctor.machine import Machine
    from ..doctor.report import view
    from ..doctor.table import CHECKS

    machine = Machine(sources.agent, sources.now(), agent_uid=sources.agent.agent_uid)
    machine.config = sources.config
    return _json(view([check.make(machine) for check in CHECKS]))


def _records(sources: Sources, licenses: bool) -> str:
    lines = sources.ask("audit_tail", after_seq=-1, limit=AUDIT_RECORDS)["records"]
    names: dict[str, str] = {}
    shown = lines if licenses else [json.dumps(_without_licenses(json.loads(line), names)) for line in lines]
    return "".join(f"{line}\n" for line in shown)


def _without_licenses(value: Any, names: dict[str, str], within: bool = False) -> Any:
    """A record whose ids of licenses are numbers: the same license has the same one."""
    if isinstance(value, dict):
        return {key: _without_licenses(each, names, within or key in _LICENSE_MEMBERS) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_licenses(each, names, within) for each in value]
    if within and isinstance(value, str):
        return names.setdefault(value, f"license {len(names) + 1}")
    return value


def _journal(sources: Sources, unit: str) -> str:
    text = sources.output(
        "journalctl", f"--unit={unit}", f"--lines={JOURNAL_LINES}", "--no-pager", "--utc", "--output=short-iso"
    )
    if not text.strip() or text.strip() == "-- No entries --":
        raise NotRead("the journal has no entry of it that this user may read (root and the group systemd-journal may)")
    return text


def _versions(sources: Sources) -> str:
    kernel = os.uname()
    lines = [
        f"license-agent-cli {VERSION}, Python {platform.python_version()}",
        f"kernel {kernel.release} {kernel.machine} ({kernel.version})",
    ]
    for path in ("/etc/os-release", "/sys/class/tpm/tpm0/tpm_version_major", *_DMI):
        try:
            lines.append(f"{path}: {' '.join(sources.file(Path(path)).split())}")
        except NotRead as error:
            lines.append(f"{path}: not read: {error}")
    try:
        lines += sources.output("dpkg-query", "--show", "license-agent*").splitlines()
    except NotRead as error:
        lines.append(f"packages: not read: {error}")
    return "\n".join([*lines, ""])


_DMI = tuple(f"/sys/class/dmi/id/{name}" for name in ("sys_vendor", "product_name", "bios_version", "bios_date"))
