"""Collects what a backup of this agent contains, and decides whether a backup fits this machine and what restoring it changes.

A backup holds no key that opens anything: the TPM's objects in it open in their TPM only, and the key of the software backend
is not in it. The newest commit is the only store that a machine accepts (threat-model T5), so a backup brings secrets back as
long as none has been committed since; otherwise the server gives new ones.
"""

import base64
import contextlib
import dataclasses
import hashlib
import re
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from agentd.base.clock.clock import Clock
from agentd.base.config.config import Config
from agentd.base.errors import StartError
from agentd.base.identity import FILE_NAME, copies
from agentd.secrets.open import make_backend
from common.files import write_atomic
from hwsec.errors import ForeignHardware, NotEnrolled, StoreCorrupt
from hwsec.storeformat import StoreBody, decode_store
from hwsec.vault import Vault

from .recovery import locked, note

FORMAT = "license-agent-backup"
VERSION_OF_FORMAT = 1
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_BACKUP_BYTES = 64 * 1024 * 1024
"""Of a backup before it is encrypted."""
CONFIGURATION = ("config.toml", "link.toml")
"""Files of the configuration, by their names in a backup; root puts them back, since the agent's user may not."""
TRIES = 5
_NAME = re.compile(
    r"config\.toml|link\.toml|agent\.json|tpm\.objects|[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.(?:store|enc)|rotation\.json|licenses\.json"
    r"|policies/[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.json"
)
"""Names of files in a backup. Nobody vouches for them: none may lead elsewhere."""


class File(msgspec.Struct, frozen=True):
    """One file of a backup.

    Attributes:
        sha256: of its content, hex.
        data: its content, base64.
    """

    sha256: str
    data: str


class Backup(msgspec.Struct, frozen=True):
    """A backup before it is encrypted.

    Attributes:
        format: `FORMAT`.
        version: of the format; a reader refuses a higher one.
        program: version of the program that made it.
        created: seconds since 1970 UTC, by the machine's clock.
        agent_id: whose backup it is; empty before the device is provisioned.
        backend: `tpm` or `software`.
        generation: of the store in it; 0 without one.
        files: by name.
    """

    format: str
    version: int
    program: str
    created: int
    agent_id: str
    backend: str
    generation: int
    files: dict[str, File]

    def content(self, name: str) -> bytes | None:
        """The content of a file; None if the backup does not have it."""
        file = self.files.get(name)
        return None if file is None else base64.b64decode(file.data)


class Fit(StrEnum):
    """Whether a backup can be restored on this machine."""

    CURRENT = "current"
    """Its store is the newest commit: everything comes back."""
    OLDER = "older"
    """Secrets have been committed since: the server has to give new ones."""
    OTHER_MACHINE = "other_machine"
    """This machine's hardware does not open it."""
    OTHER_AGENT = "other_agent"
    """This machine is another agent by now."""
    NO_KEY = "no_key"
    """The software backend's key, which is in no backup, is not on this machine."""
    EMPTY = "empty"
    """It has no store: the device was not provisioned."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restoration would do.

    Attributes:
        fit: whether it can be done.
        text: why.
        next_step: what to do.
        generation: of the backup's store.
        newest: of the newest commit on this machine, if its hardware says so.
        files: `same`, `differs` or `missing` on this machine, by name.
    """

    fit: Fit
    text: str
    next_step: str
    generation: int
    newest: int | None
    files: dict[str, str]


_NEXT = {
    Fit.CURRENT: "run the command without --plan, with the agent stopped",
    Fit.OLDER: "if the machine's own store is damaged or lost: 'license-agent recover reinitialize', then provision it again",
    Fit.OTHER_MACHINE: "provision this machine; if a mainboard was replaced: 'license-agent recover reinitialize' first",
    Fit.OTHER_AGENT: "use a backup of this agent",
    Fit.NO_KEY: "put the key directory back; without it, 'license-agent recover reinitialize', then provision again",
    Fit.EMPTY: "provision this machine",
}


def _places(config: Config, file: Path) -> dict[str, Path]:
    """Where each file is, by its name in a backup."""
    state = config.paths.state_dir
    store = config.store_file
    places = {
        "config.toml": file,
        "link.toml": file.with_name("link.toml"),
        FILE_NAME: state / FILE_NAME,
        store.name: store,
        config.rotation_journal.name: config.rotation_journal,
        config.inventory_file.name: config.inventory_file,
    }
    if config.tpm.enabled:
        places["tpm.objects"] = state / "tpm.objects"
    if config.policies_dir.is_dir():
        places |= {f"policies/{path.name}": path for path in sorted(config.policies_dir.glob("*.json"))}
    return places


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_FILE_BYTES:
        raise StartError(f"{path} is larger than any file of the agent")
    return data


def _snapshot(config: Config, file: Path) -> dict[str, bytes]:
    """The files of one moment: what is read twice in a row without a change.

    Raises:
        StartError: they change all the time.
        OSError: one cannot be read.
    """
    before: dict[str, bytes] | None = None
    for _ in range(TRIES):
        found = {name: data for name, path in _places(config, file).items() if (data := _read(path)) is not None}
        if found == before:
            return found
        before = found
    raise StartError("the agent's files change while they are read; try again")


def collect(config: Config, file: Path, program: str, created: int) -> bytes:
    """A backup of this agent, not yet encrypted; the agent may run.

    Args:
        config: of the agent.
        file: the configuration file.
        program: version of this program.
        created: seconds since 1970 UTC.

    Raises:
        StartError: the files change all the time, or the store is not one.
        OSError: a file cannot be read.
    """
    found = _snapshot(config, file)
    store = found.get(config.store_file.name)
    backup = Backup(
        format=FORMAT,
        version=VERSION_OF_FORMAT,
        program=program,
        created=created,
        agent_id=config.agent.id,
        backend="tpm" if config.tpm.enabled else "software",
        generation=0 if store is None else _generation(store),
        files={name: File(hashlib.sha256(data).hexdigest(), base64.b64encode(data).decode()) for name, data in found.items()},
    )
    return msgspec.json.encode(backup) + b"\n"


def _generation(store: bytes) -> int:
    """The generation that a store says it has; nothing vouches for it before its tag is checked."""
    try:
        return msgspec.msgpack.decode(store[8:-32], type=StoreBody).generation
    except msgspec.MsgspecError:
        raise StartError("the store on this machine is not one; run 'license-agent recover show'") from None


def parse(data: bytes) -> Backup:
    """A backup that was decrypted.

    Raises:
        StartError: it is not one, it is of a newer program, or a file in it is damaged.
    """
    try:
        backup = msgspec.json.decode(data, type=Backup)
    except msgspec.MsgspecError as error:
        raise StartError(f"this is not a backup of the agent: {error}") from None
    if backup.format != FORMAT:
        raise StartError("this is not a backup of the agent")
    if backup.version > VERSION_OF_FORMAT:
        raise StartError(f"the backup is of a newer program ({backup.program}); use that one")
    for name, file in backup.files.items():
        if not _NAME.fullmatch(name):
            raise StartError(f"the backup has a file that the agent does not have: {name[:100]!r}")
        try:
            content = base64.b64decode(file.data, validate=True)
        except ValueError:
            raise StartError(f"{name} in the backup is damaged") from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise StartError(f"{name} in the backup is damaged: its digest does not fit")
    return backup


def plan(config: Config, file: Path, backup: Backup) -> Plan:
    """What restoring a backup would do. Changes nothing, and the agent may run.

    Args:
        config: of this machine, as the backup's configuration says it.
        file: the configuration file.
        backup: parsed.

    Raises:
        HwsecError: the hardware does not work, so nobody can say.
        OSError: the state directory cannot be used.
    """
    fit, text, newest = _fit(config, backup)
    places = _places(config, file)
    files = {}
    for name in backup.files:
        present = _read(places[name]) if name in places else None
        files[name] = "missing" if present is None else "same" if present == backup.content(name) else "differs"
    return Plan(fit, text, _NEXT[fit], backup.generation, newest, files)


def _fit(config: Config, backup: Backup) -> tuple[Fit, str, int | None]:
    store = backup.content(config.store_file.name)
    if store is None or not backup.agent_id:
        return Fit.EMPTY, "the backup is of a device that was not provisioned", None
    if config.agent.id and config.agent.id != backup.agent_id:
        return Fit.OTHER_AGENT, f"this machine is the agent {config.agent.id}, the backup is of {backup.agent_id}", None
    # Beside the files in use: what is tried here is not yet restored.
    with tempfile.TemporaryDirectory(prefix="restore-", dir=config.paths.state_dir) as place:
        scratch = dataclasses.replace(config, paths=dataclasses.replace(config.paths, state_dir=Path(place)))
        objects = backup.content("tpm.objects")
        if objects is not None:
            for path in copies(Path(place) / "tpm.objects")[:2]:
                write_atomic(path, objects)
        try:
            with contextlib.closing(make_backend(scratch, Vault())) as backend:
                backend.open()
                anchor, _ = backend.read_anchor()
                with backend.kek() as kek:
                    body = decode_store(kek, store)
        except NotEnrolled as error:
            return Fit.NO_KEY, str(error), None
        except StoreCorrupt:
            return Fit.OTHER_MACHINE, "the keys of this machine do not open the backup's store", None
        except ForeignHardware as error:
            return Fit.OTHER_MACHINE, f"this machine's hardware does not open the backup: {error}", None
    newest = 0 if anchor is None else anchor.generation
    if body.agent_id != backup.agent_id:
        return Fit.OTHER_AGENT, f"the store in the backup is of the agent {body.agent_id}", newest
    if anchor is not None and anchor.digest == hashlib.sha256(store).digest():
        return Fit.CURRENT, f"the backup has the newest commit, generation {newest}", newest
    return Fit.OLDER, f"the backup is of generation {body.generation}, the newest commit is {newest}", newest


def restore(config: Config, file: Path, backup: Backup, clock: Clock) -> Plan:
    """Puts the files of the state directory back; returns the plan that was carried out.

    Raises:
        StartError: the daemon runs, the log cannot be written, or the backup does not fit; the text has the next step.
        HwsecError: the hardware does not work.
        OSError: a file cannot be written; the same command again finishes the work.
    """
    with locked(config):
        found = plan(config, file, backup)
        if found.fit is not Fit.CURRENT:
            raise StartError(f"{found.text}; nothing was restored. Next: {found.next_step}")
        note(config, clock, "backup.restored", generation=found.generation, created=backup.created, files=len(backup.files))
        for name in backup.files:
            content = backup.content(name)
            if name not in CONFIGURATION and content is not None:
                for path in _targets(config, name):
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                    write_atomic(path, content)
        return found


def _targets(config: Config, name: str) -> tuple[Path, ...]:
    """Where a file of the state directory belongs; a sealed one has a twin."""
    if name == config.store_file.name:
        return copies(config.store_file)[:2]
    path = config.paths.state_dir / name
    return copies(path)[:2] if name == "tpm.objects" else (path,)
