"""Recovers an agent whose hardware or disk has failed: diagnose, repair, enroll again. The daemon must not run meanwhile.

Nothing here moves existing secrets from the TPM to weaker protection: an agent that changes its backend enrolls again and gets
new secrets from the server (threat-model T17).
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentd.audit.file import AuditDamaged, AuditFile
from agentd.base.clock.clock import Clock
from agentd.base.config.config import Config
from agentd.base.errors import StartError
from agentd.base.identity import FILE_NAME, Enrolled, check_fallback, copies, enrolled, traces
from agentd.base.statelock import StateInUse, StateLock
from agentd.secrets.open import make_backend, make_store
from agentd.secrets.pcr_policy import keep_policy, policy_name
from audittrail.archive import archives
from audittrail.chain import Chain, Heads, heads_fields
from audittrail.whole import anchors_path, plain_files
from common.files import fsync_directory, os_problem
from hwsec.errors import HwsecError, NotEnrolled, StoreCorrupt
from hwsec.storeformat import MAX_STORE_BYTES, decode_store
from hwsec.vault import Vault

from .by_hand import initialize


class NeedsServer(StartError):
    """This needs the license server."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why the agent does not start.

    Attributes:
        state: `ok`, or the typed state.
        text: what was found.
        advice: what to do next.
        enrolled: which backends have been initialized.
    """

    state: str
    text: str
    advice: str
    enrolled: Enrolled


def diagnose(config: Config) -> Diagnosis:
    """Opens backend and store as a start would, but repairs nothing and serves nobody.

    Raises:
        StartError: the daemon is running.
    """
    there = enrolled(config)
    with locked(config):
        vault = Vault()
        backend = make_backend(config, vault)
        with contextlib.closing(backend):
            try:
                backend.open()
                status = backend.status()
                if not status.available:
                    return Diagnosis(status.state.value, status.detail, _ADVICE.get(status.state.value, _ASK), there)
                anchor, counter = backend.read_anchor()
            except HwsecError as error:
                state = "not_enrolled" if isinstance(error, NotEnrolled) else error.state.value
                if state == "not_enrolled" and not any(path.exists() for path in traces(config)):
                    return Diagnosis(state, str(error), _NEW, there)
                return Diagnosis(state, str(error), _ADVICE.get(state, _ASK), there)
            generation = 0 if anchor is None else anchor.generation
            found = [path.name for path in copies(config.store_file) if path.exists()]
            text = f"{status.detail}; newest commit {generation}, counter {counter}; store files: {', '.join(found) or 'none'}"
            return Diagnosis("ok", text, "start the agent; if it still refuses, run 'license-agent recover repair'", there)


_ASK = "look at the runbooks in docs/operations.md"
_NEW = "this device is not an agent yet: start the agent and run 'license-agent-cli provision'"
_ADVICE = {
    "not_enrolled": "files of an earlier enrollment exist: restore the missing ones, or 'license-agent recover reinitialize'",
    "absent": "make the TPM answer (firmware, group tss); if it is lost: 'license-agent recover reinitialize'",
    "foreign": "another TPM, one that was cleared, or never initialized: 'license-agent recover reinitialize'",
    "nv_gone": "the TPM was cleared or its indices were deleted: 'license-agent recover reinitialize'",
    "locked_out": "wait until the TPM's lockout has run off, or clear it with the lockout auth (tpm2_dictionarylockout -c)",
    "out_of_sessions": "end what else uses the TPM, or restart the machine",
    "hung": "restart the machine",
    "pcr_mismatch": "install a signed policy for this state ('license-agent recover policy'), or start the former system",
    "pcr_uninitialized": "switch measured boot on in the firmware",
}


def repair(config: Config, clock: Clock) -> list[str]:
    """Brings all copies of the store up to the newest commit, as a start would; returns what was done, a sentence each.

    Raises:
        StartError: the daemon is running, or the audit log cannot be written.
        HwsecError: the hardware does not work, or no copy is whole.
    """
    with locked(config):
        vault = Vault()
        with contextlib.closing(make_backend(config, vault)) as backend:
            backend.open()
            loaded = make_store(config, backend, vault).load()
        for text in loaded.repairs:
            note(config, clock, "store.repaired", text=text)
        return list(loaded.repairs)


def reinitialize(config: Config, trust: bytes | None, clock: Clock) -> dict[str, object] | None:
    """Ends an earlier enrollment, makes new keys, and returns the enrollment request.

    Sealed files of the TPM and the stores are moved aside; key material of the software backend is deleted.

    Raises:
        StartError: the daemon is running, the policy forbids it, or the audit log cannot be written.
        HwsecError: the hardware does not work.
    """
    check_fallback(config)
    with locked(config):
        was = enrolled(config)
        kind = "tpm" if config.tpm.enabled else "software"
        # Logged before it is done: a log that cannot be written must not hide that the secrets were removed.
        heads = note(config, clock, "agent.reinitialize", "begun", backend=kind, had_tpm=was.tpm, had_software=was.software)
        name = time.strftime("replaced-%Y%m%dT%H%M%SZ", time.gmtime(clock.wall()))
        _set_aside(config, name)
        _set_log_aside(config, name)
        request = None if trust is None else initialize(config, trust)
        note(config, clock, "agent.reinitialized", backend=kind, former_log=name, former_heads=heads_fields(heads))
        return request


def _set_log_aside(config: Config, name: str) -> None:
    """Moves the log aside as a whole: the keys that seal, certify and encrypt it end here."""
    log = config.audit_log
    directory = log.parent / name
    directory.mkdir(mode=0o750, exist_ok=True)
    for path in (*archives(log), *plain_files(log), anchors_path(log), log.with_name(log.name + ".torn")):
        if path.exists():
            path.replace(directory / path.name)
    fsync_directory(log.parent)


def _set_aside(config: Config, name: str) -> None:
    directory = config.paths.state_dir / name
    directory.mkdir(mode=0o700, exist_ok=True)
    state = config.paths.state_dir
    files = (state / "tpm.objects", state / "secrets.store", config.tpm.fallback_encrypted_storage)
    for path in (copy for file in files for copy in copies(file)):
        if path.exists():
            path.replace(directory / path.name)
    for path in (config.rotation_journal, state / FILE_NAME):
        if path.exists():
            path.replace(directory / path.name)
    for path in (config.paths.key_dir / "software.key", config.paths.key_dir / "software.anchor"):
        path.unlink(missing_ok=True)
    fsync_directory(state)


def install_policy(config: Config, data: bytes, clock: Clock) -> str:
    """Stores a signed policy while the daemon cannot start without one; returns its file's name.

    Raises:
        StartError: it cannot be read, the daemon is running, or the audit log cannot be written.
        OSError: the disk does not take it.
    """
    try:
        name = policy_name(data)
    except ValueError as error:
        raise StartError(str(error)) from None
    with locked(config):
        note(config, clock, "tpm.policy_installed", file=name)
        keep_policy(config.policies_dir, name, data)
    return name


def restore(config: Config, copy: Path) -> None:
    """Examines an older copy of the store.

    Raises:
        NeedsServer: it is this agent's; using it would revive what has ended since, so the server must issue new secrets.
        StoreCorrupt: it is not a copy of this agent's store.
        StartError: the daemon is running.
        HwsecError: the hardware does not work.
        OSError: it cannot be read.
    """
    with copy.open("rb") as file:
        data = file.read(MAX_STORE_BYTES + 1)
    with locked(config), contextlib.closing(make_backend(config, Vault())) as backend:
        backend.open()
        anchor, _ = backend.read_anchor()
        with backend.kek() as kek:
            body = decode_store(kek, data)
    if body.agent_id != config.agent.id:
        raise StoreCorrupt(f"{copy} is of the agent {body.agent_id!r}")
    newest = 0 if anchor is None else anchor.generation
    raise NeedsServer(
        f"{copy} is of generation {body.generation}, the newest commit is {newest}: an older store comes back only with "
        "new secrets from the license server; until this agent can ask for them, run 'license-agent recover reinitialize'"
    )


@contextlib.contextmanager
def locked(config: Config) -> Iterator[None]:
    """Keeps the daemon, and other commands, from the state directory within a block.

    Raises:
        StartError: one of them is at work.
    """
    try:
        lock = StateLock(config.paths.state_dir)
    except StateInUse as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{config.paths.state_dir} cannot be used: {error.strerror}") from None
    try:
        yield
    finally:
        lock.close()


def note(config: Config, clock: Clock, event: str, outcome: str = "ok", **fields: object) -> Heads:
    """Logs a record durably; the daemon does not run, so this process may write its log. Returns where the chains stand."""
    file = AuditFile(config.audit_log)
    try:
        end = file.open()
        chain = Chain(end.seq, end.heads)
        line = chain.append(clock.wall(), clock.monotonic(), event, outcome, {"actor": {"uid": os.getuid()}, **fields})
        file.write(line)
        file.sync()
        return chain.heads
    except AuditDamaged as error:
        raise StartError(f"the audit log cannot be written, so nothing is done: {error}") from None
    except OSError as error:
        raise StartError(f"the audit log cannot be written, so nothing is done: {os_problem(error)}") from None
    finally:
        file.close()
