"""Checks of the agent's files: owners and modes, sockets, room, the audit log, and who else reads or rotates them."""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audittrail.check import verify_log
from audittrail.report import INCOMPLETE, INTACT, TAMPERED, Keys
from audittrail.rotated import rotated_copies
from audittrail.verify import Problem, bounded_lines, open_regular, verify_lines
from cli import render
from cli.doctor.machine import CannotTell, Machine, Room, Stat
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn

AGENT, ROOT, ADMINS, UPDATERS = "agent", "root", "license-agent-admin", "license-agent-updater"
LITTLE_BYTES, NO_BYTES = 256 * 1024**2, 16 * 1024**2
LITTLE_INODES, NO_INODES = 5_000, 100
METRICS_OLD_S = 120
"""The agent writes its metrics every 15 s."""
COLLECTOR = "/var/lib/prometheus/node-exporter"


@dataclass(frozen=True, slots=True)
class Place:
    """How a file or directory should be.

    Attributes:
        path: where.
        mode: its permission bits.
        owner: `agent` or `root`.
        needed: permission bits without which something does not work.
        group: its group where that matters.
        required: whether it must exist.
    """

    path: Path
    mode: int
    owner: str
    needed: int = 0
    group: str = ""
    required: bool = False


def places(machine: Machine) -> list[Place]:
    """The agent's files and directories, by its configuration; docs/reference.md, "Files", has the same list."""
    at = machine.layout
    return [
        Place(at.config.parent, 0o755, ROOT, 0o111, required=True),
        Place(at.config, 0o600, AGENT, 0o400, required=True),
        Place(at.link, 0o644, ROOT, 0o044, required=True),
        *(Place(at.config.with_name(name), 0o644, ROOT, 0o444) for name in _ROOT_FILES),
        Place(at.config.with_name("installer.toml"), 0o644, ROOT, 0o400),
        Place(at.state, 0o711, AGENT, 0o701, required=True),
        *(Place(at.state / name, 0o600, AGENT) for name in _STATE_FILES),
        Place(at.software_store, 0o600, AGENT),
        Place(at.state / "metrics.prom", 0o644, AGENT, 0o004),
        Place(at.key, 0o700, AGENT, required=True),
        *(Place(at.key / name, 0o600, AGENT) for name in ("software.key", "software.anchor")),
        Place(at.log, 0o750, AGENT, 0o700, required=True),
        Place(at.log / "audit.log", 0o640, AGENT, 0o600),
        Place(at.log / "audit.anchors", 0o640, AGENT),
        Place(at.run, 0o755, ROOT, 0o111, required=True),
    ]


_ROOT_FILES = ("admin-ca.pem", "update-trust.json")
"""What root may write beside the configuration, and processes without root read: whom the agent obeys, and whose word counts
for updates. installer.toml is read by root alone, who may keep it from others."""
_STATE_FILES = (
    "secrets.store",
    "secrets.store.twin",
    "tpm.objects",
    "tpm.objects.twin",
    "agent.json",
    "rotation.json",
    "state.json",
    "licenses.json",
    "usage.counts",
    "audit.repeats",
)


def _sockets(machine: Machine) -> list[Place]:
    run = machine.layout.run
    return [
        Place(run / "pos.sock", 0o666, ROOT, 0o666, required=True),
        Place(run / "admin.sock", 0o660, ROOT, 0o660, ADMINS, required=True),
        Place(run / "link.sock", 0o660, AGENT, 0o660, UPDATERS, required=True),
        Place(run / "installer.sock", 0o600, AGENT, 0o600, required=True),
        Place(run / "updater.sock", 0o600, AGENT, 0o600, required=True),
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """A place with what is there, and the names of users for texts."""

    place: Place
    stat: Stat | None
    owners: frozenset[int]
    owner: str
    group: str
    hidden: bool = False


def _look(machine: Machine, wanted: list[Place]) -> list[Found]:
    core = machine.core_uid
    found = []
    for place in wanted:
        try:
            stat, hidden = machine.stat(place.path), False
        except PermissionError:
            stat, hidden = None, True
        # In a checkout, the user who started it owns what root owns in the package.
        owners = (
            frozenset({core})
            if place.owner == AGENT
            else frozenset({0} if machine.layout.is_packaged else {0, core, machine.uid})
        )
        names = ("", "") if stat is None else (machine.user_name(stat.uid), machine.group_name(stat.gid))
        found.append(Found(place, stat, owners, *names, hidden))
    return found


def _judge_places(found: list[Found]) -> Judgment:
    judged: Judgment = []
    for each in found:
        path, stat, wanted = each.place.path, each.stat, each.place
        owner = "license-agent" if wanted.owner == AGENT else "root"
        if each.hidden:
            judged.append(
                unknown(
                    f"{path} was not checked: this user may not look at it", "run it as root: sudo license-agent-cli doctor"
                )
            )
            continue
        if stat is None:
            if wanted.required:
                judged.append(
                    fail(
                        f"{path} is missing",
                        "systemd-tmpfiles --create license-agent.conf; or: apt install --reinstall license-agent",
                    )
                )
            continue
        if stat.kind == "link":
            judged.append(fail(f"{path} is a symbolic link, which the agent does not follow", f"put the file itself at {path}"))
            continue
        if stat.uid not in each.owners:
            judged.append(fail(f"{path} belongs to {each.owner}, not to {owner}", f"chown {owner} {path}"))
        if wanted.group and wanted.group != each.group:
            judged.append(
                fail(f"{path} belongs to the group {each.group}, not to {wanted.group}", f"chgrp {wanted.group} {path}")
            )
        if stat.mode & ~wanted.mode & 0o777:
            judged.append(
                fail(
                    f"{path} has mode {stat.mode:04o}, so that others may do more than they should",
                    f"chmod {wanted.mode:04o} {path}",
                )
            )
        elif wanted.needed & ~stat.mode:
            judged.append(
                fail(
                    f"{path} has mode {stat.mode:04o}, so that those who need it cannot use it",
                    f"chmod {wanted.mode:04o} {path}",
                )
            )
    return judged


def _judge_sockets(found: list[Found]) -> Judgment:
    gone = [each for each in found if each.stat is None and not each.hidden]
    wrong = [each for each in found if each.stat is not None and each.stat.kind != "socket"]
    return [
        *(
            fail(
                f"{each.place.path} is missing: nobody can connect there",
                f"systemctl restart license-agent-{each.place.path.stem}.socket",
            )
            for each in gone
        ),
        *(
            fail(f"{each.place.path} is no socket", f"systemctl restart license-agent-{each.place.path.stem}.socket")
            for each in wrong
        ),
        *_judge_places([each for each in found if each not in gone and each not in wrong]),
    ]


def _packaged_sockets(machine: Machine) -> list[Found]:
    if not machine.layout.is_packaged:
        raise CannotTell("the sockets of an agent that systemd does not start have modes of their own")
    return _look(machine, _sockets(machine))


def _room(machine: Machine) -> list[tuple[Path, Room]]:
    return [(path, machine.room(path)) for path in (machine.layout.state, machine.layout.log)]


def _judge_room(found: list[tuple[Path, Room]]) -> Judgment:
    judged: Judgment = []
    for path, room in found:
        if room.read_only:
            judged.append(
                fail(
                    f"the file system of {path} is mounted read-only",
                    f"dmesg | tail; then: mount -o remount,rw $(findmnt -n -o TARGET --target {path})",
                )
            )
        for free, little, none, what in (
            (room.free_bytes, LITTLE_BYTES, NO_BYTES, f"{room.free_bytes // 1024**2} MiB"),
            (room.free_inodes, LITTLE_INODES, NO_INODES, f"{room.free_inodes} inodes"),
        ):
            if free is not None and free < little:
                make, text = (fail, "no room is left") if free < none else (warn, "little room is left")
                judged.append(
                    make(
                        f"{text} for {path}: {what}", f"df -h {path}; df -i {path}; remove what fills it, not the agent's files"
                    )
                )
    return judged


@dataclass(frozen=True, slots=True)
class Audit:
    """What a look at the audit log found.

    Attributes:
        outcome: `intact`, `incomplete` or `tampered`.
        problem: where it was tampered with.
        gaps: what was not checked.
        failing: whether the agent cannot write it; None if it does not say.
        deep: whether the agent checked the whole log.
        torn: whether the last line was not finished.
    """

    outcome: str
    problem: str = ""
    gaps: tuple[str, ...] = ()
    failing: bool | None = None
    deep: bool = False
    torn: bool = False


class _Finished:
    """The lines of a file that somebody writes to: without a last one that is not finished yet.

    Attributes:
        torn: whether there was one.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.torn = False

    def __iter__(self) -> Iterator[bytes]:
        held = b""
        for line in self._lines:
            if held:
                yield held
            held = line
        self.torn = bool(held) and not held.endswith(b"\n")
        if held and not self.torn:
            yield held


def _where(log: Path, problem: Problem | None) -> str:
    return "" if problem is None else str(replace(problem, file=str(log)))


def _audit(machine: Machine) -> Audit:
    log = machine.layout.log / "audit.log"
    status = machine.status if machine.agent is not None else {}
    failing = (status.get("audit") or {}).get("failing")
    if machine.deep and failing is not None and machine.agent is not None:
        reply = machine.agent.ask("audit_verify")
        gaps = tuple(f"{gap['what']}; needs {gap['needs']}" for gap in reply.get("unchecked", []))
        return Audit(render.outcome_of(reply), reply["problem"] or "", gaps, failing, deep=True)
    if machine.stat(log) is None:
        raise CannotTell(f"there is no {log} yet")
    try:
        if machine.deep:
            report = verify_log(machine.at(log), Keys(), open_end=True)
            return Audit(report.outcome, str(report.problem or ""), tuple(map(str, report.gaps)), failing)
        with open_regular(machine.at(log)) as file:
            lines = _Finished(bounded_lines(file))
            found = verify_lines(lines)
    except PermissionError:
        raise CannotTell("this user may not read the log", machine.ask_for_root()) from None
    return Audit(INTACT if found.problem is None else TAMPERED, _where(log, found.problem), (), failing, torn=lines.torn)


def _judge_audit(found: Audit) -> Judgment:
    judged: Judgment = []
    if found.failing:
        judged.append(
            fail(
                "the agent cannot write its audit log: records are lost and administrators' changes are refused",
                "make room on the log's disk, and check that it is mounted read-write",
            )
        )
    if found.outcome == TAMPERED:
        judged.append(
            fail(
                f"the audit log was tampered with: {found.problem}",
                "copy the log as evidence, then: license-agent-cli audit verify",
            )
        )
    elif found.outcome == INCOMPLETE:
        judged += [unknown(f"the audit log: {gap}", "license-agent-cli audit verify") for gap in found.gaps]
    if found.torn:
        judged.append(note("the last line was not finished: the agent was writing it, or the power failed meanwhile"))
    if not judged:
        judged.append(
            note("the whole log was checked" if found.deep else "the open file was checked; --deep checks the whole log")
        )
    return judged


@dataclass(frozen=True, slots=True)
class Rotation:
    """Who rotates the log besides the agent: lines of logrotate's files, and what lies beside the log."""

    log: Path
    entries: tuple[tuple[str, str], ...]
    copies: tuple[str, ...]


def _rotation(machine: Machine) -> Rotation:
    log = machine.layout.log / "audit.log"
    machine.names(log.parent)  # raises where this user may not look: then nothing is known of copies
    files = ["/etc/logrotate.conf", *(f"/etc/logrotate.d/{name}" for name in machine.names("/etc/logrotate.d"))]
    entries = []
    for file in files:
        for line in machine.text_or(file).splitlines():
            for word in re.findall(r'"([^"]+)"|(/[^\s"{}]+)', line.partition("#")[0]):
                pattern = word[0] or word[1]
                if pattern.startswith("/") and fnmatch.fnmatchcase(str(log), pattern.rstrip("/")):
                    entries.append((file, pattern))
    return Rotation(log, tuple(entries), tuple(path.name for path in rotated_copies(machine.at(log))))


def _judge_rotation(found: Rotation) -> Judgment:
    judged = [
        fail(
            f"logrotate rotates {found.log}, which the agent does by itself ({file}: {pattern})",
            f"remove {pattern} from {file}",
        )
        for file, pattern in found.entries
    ]
    if found.copies:
        judged.append(
            fail(
                f"a program has rotated the audit log: {', '.join(found.copies[:3])} lies beside it",
                "see the guide 'Keep logrotate away from the audit log'",
            )
        )
    return judged


@dataclass(frozen=True, slots=True)
class Collected:
    """Whether node_exporter reads the agent's metrics.

    Attributes:
        file: the agent's metrics.
        age: seconds since they were written; None if they were never.
        exporter: whether node_exporter is installed.
        directory: where it reads.
        target: where the link in that directory points; None if there is none.
    """

    file: Path
    age: float | None
    exporter: bool
    directory: str
    target: str | None


def _target(machine: Machine, directory: str) -> str | None:
    found = machine.link_target(f"{directory}/license-agent.prom")
    # Debian's packages have relative links.
    return None if found is None else os.path.normpath(os.path.join(directory, found))


def _collected(machine: Machine) -> Collected:
    file = machine.layout.state / "metrics.prom"
    stat = machine.stat(file)
    exporter = machine.stat("/usr/bin/prometheus-node-exporter") is not None
    options = machine.text_or("/etc/default/prometheus-node-exporter")
    lines = "\n".join(line for line in options.splitlines() if not line.lstrip().startswith("#"))
    named = re.search(r"--collector\.textfile\.directory[= ]([^\s\"']+)", lines)
    directory = named[1] if named else COLLECTOR
    return Collected(
        file,
        None if stat is None else machine.now - stat.mtime,
        exporter,
        directory,
        _target(machine, directory),
    )


def _judge_collected(found: Collected) -> Judgment:
    judged: Judgment = []
    if found.age is None:
        judged.append(fail(f"{found.file} is missing: the agent has written no metrics", "see agent.verdict"))
    elif found.age > METRICS_OLD_S:
        judged.append(
            fail(
                f"{found.file} was written {render.in_words(int(found.age))} ago, not within the last 15 s", "see agent.verdict"
            )
        )
    if not found.exporter:
        return judged or [note("the metrics are written; prometheus-node-exporter is not installed")]
    if found.target != str(found.file):
        what = "points elsewhere" if found.target else "is missing"
        judged.append(
            fail(
                f"{found.directory}/license-agent.prom {what}: node_exporter does not read the agent's metrics",
                f"ln -sf {found.file} {found.directory}/license-agent.prom",
            )
        )
    return judged


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "files.modes",
        "Files and directories have their owners and modes",
        "configuration, state, key, log and run directories",
        lambda machine: _look(machine, places(machine)),
        _judge_places,
    ),
    Check(
        "files.sockets",
        "The sockets are there, with their owners and modes",
        "the sockets in the run directory",
        _packaged_sockets,
        _judge_sockets,
    ),
    Check("disk.room", "There is room for state and log", "free bytes and inodes of both file systems", _room, _judge_room),
    Check(
        "audit.log",
        "The audit log is whole and can be written",
        "the open log; with `--deep` all of it, by the agent if it answers",
        _audit,
        _judge_audit,
    ),
    Check(
        "audit.rotation",
        "Nobody else rotates the audit log",
        "`/etc/logrotate.conf`, `/etc/logrotate.d`, files beside the log",
        _rotation,
        _judge_rotation,
    ),
    Check(
        "metrics.collected",
        "Metrics are written and node_exporter reads them",
        "`metrics.prom`, the link to it, options of node_exporter",
        _collected,
        _judge_collected,
    ),
)
