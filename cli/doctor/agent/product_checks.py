"""Checks what updates install: each product's directory and unit, and the installer's own memory."""

import json
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.doctor.machine import CannotTell, Machine
from cli.doctor.system.unit_checks import INSTALLER, asked
from cli.doctor.verdict import Check, Judgment, fail, note
from common.files import OTHERS_WRITE, PRIVATE
from common.text import quantity

from .update_checks import PRODUCTS, TRUST

OWN = Path("/var/lib/license-agent-installer")
STATE, BEGUN, CURRENT = "state.json", "begun", "current"
SLOTS = ("slots/a", "slots/b")
_RESTORE = f"restore it from a backup of {OWN}; 'The products of a machine' in the reference says what is in it"


@dataclass(frozen=True, slots=True)
class Installable:
    """Whether products can be installed here.

    Attributes:
        trust: whether this machine takes updates at all.
        problems: causes, each with what to do.
        products: that installer.toml names.
        unasked: names of products in slots that nobody asks which version runs.
    """

    trust: bool
    problems: tuple[tuple[str, str], ...] = ()
    products: int = 0
    unasked: tuple[str, ...] = ()


def _look(machine: Machine) -> Installable:
    etc = machine.layout.config
    if machine.stat(etc.with_name(TRUST)) is None:
        return Installable(trust=False)
    try:
        found = tomllib.loads(machine.text_or(etc.with_name(PRODUCTS))).get("product")
    except tomllib.TOMLDecodeError:
        raise CannotTell(f"{PRODUCTS} cannot be read; see updates.allowed") from None
    tables: dict[str, Any] = found if isinstance(found, dict) else {}
    problems, unasked = list(_memory(machine)), []
    for name, table in tables.items():
        if isinstance(table, dict) and table.get("backend") == "slots":
            problems += _place(machine, Path(str(table.get("directory"))))
            problems += _unit(machine, name, str(table.get("unit")))
            if isinstance(table.get("config"), str):
                problems += _roots(machine, Path(table["config"]))
            if "version" not in table:
                unasked.append(name)
    return Installable(True, tuple(problems), len(tables), tuple(unasked))


def _memory(machine: Machine) -> Iterator[tuple[str, str]]:
    """What is wrong with what only root remembers of updates: then every order is declined."""
    own = machine.stat(OWN)
    if own is None:
        return  # the first order makes it
    if own.kind != "directory" or own.uid != 0 or own.mode & PRIVATE:
        yield f"{OWN} is not a directory of root's alone: every update is refused", f"chown root:root {OWN}; chmod 0700 {OWN}"
    try:
        state, begun = machine.stat(OWN / STATE), machine.stat(OWN / BEGUN)
        if state is None and begun is not None:
            yield f"{OWN / STATE} is missing, and was there: every update is refused", _RESTORE
        elif state is not None and not isinstance(json.loads(machine.bytes(OWN / STATE)), dict):
            raise ValueError
    except PermissionError:
        raise CannotTell(f"this user may not look into {OWN}", machine.ask_for_root()) from None
    except ValueError:
        yield f"{OWN / STATE} is damaged: every update is refused", _RESTORE


def _roots(machine: Machine, directory: Path) -> Iterator[tuple[str, str]]:
    """What keeps root from writing into a directory: who may change it, or one above it, could lead root elsewhere."""
    for path in (*reversed(directory.parents), directory):
        found = machine.stat(path)
        if found is None or found.kind != "directory":
            yield f"{path} is not a directory", f"install -d -o root -g root -m 0755 {path}; or correct {PRODUCTS}"
            return
        # In a directory with the sticky bit, others cannot rename what is not theirs.
        shared = found.mode & OTHERS_WRITE and (path == directory or not found.mode & stat.S_ISVTX)
        if found.uid != 0 or shared:
            yield f"others than root may change {path}", f"chown root:root {path}; chmod go-w {path}"


def _place(machine: Machine, directory: Path) -> Iterator[tuple[str, str]]:
    found = machine.stat(directory)
    yield from _roots(machine, directory)
    if found is None or found.kind != "directory":
        return
    target = machine.link_target(directory / CURRENT)
    if target not in SLOTS and (target is not None or machine.stat(directory / CURRENT) is not None):
        yield f"{directory / CURRENT} does not lead to {SLOTS[0]} or {SLOTS[1]}", f"ln -sfn {SLOTS[0]} {directory / CURRENT}"
    (installer,) = asked(machine, "Id,ReadWritePaths", INSTALLER)
    writable = [Path(each.lstrip("-+")) for each in installer.get("ReadWritePaths", "").split()]
    if not any(directory.is_relative_to(each) for each in writable):
        fix = f"systemctl edit {INSTALLER}   # [Service] ReadWritePaths={directory}; and the profile's tunable"
        yield f"{INSTALLER} may not write to {directory}", fix


def _unit(machine: Machine, product: str, unit: str) -> Iterator[tuple[str, str]]:
    known = asked(machine, "Id,LoadState", unit)
    if not known or known[0].get("LoadState") != "loaded":
        yield f"systemd does not know {unit}, which runs {product}", f"install it, or correct 'unit' in {PRODUCTS}"


def _judge(found: Installable) -> Judgment:
    if not found.trust:
        return [note("updates are not enabled on this machine")]
    if found.problems:
        return [fail(cause, fix) for cause, fix in found.problems]
    asked = f"; 'version' in {PRODUCTS} would have {', '.join(found.unasked)} asked which version runs" if found.unasked else ""
    return [note(f"{quantity(found.products, 'product')} can be installed{asked}")]


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "updates.products",
        "Products can be installed, and the installer has its memory",
        "`installer.toml`, the directories of its products, `systemctl show`, `/var/lib/license-agent-installer`",
        _look,
        _judge,
    ),
)
