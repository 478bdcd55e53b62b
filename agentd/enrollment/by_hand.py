"""`license-agent init`: makes the keys of a new agent and writes the enrolment request for the server."""

import contextlib
import json
import os
import pwd
from pathlib import Path

from agentd.base.config import Config
from agentd.secrets.installer import SECTION_HARDWARE, SECTION_TRUST
from agentd.wiring import StartError, make_backend, make_store
from contracts.jose import MalformedToken, jwk_from_point
from contracts.trust import parse_trust
from hwsec.errors import AlreadyEnrolled, StoreMissing
from hwsec.secretmem import forbid_dumps
from hwsec.store import Contents
from hwsec.tpm import preload_library
from hwsec.vault import Vault
from ipc.clienttrust import AGENT_USER


def agent_uid() -> int:
    """Whose file the configuration may be, besides root's."""
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam(AGENT_USER).pw_uid
    except KeyError:
        return 0


def unreadable(path: Path, config: Config) -> str | None:
    """Why the installed agent's user cannot read the configuration that root can; None if it can, or nobody else is meant.

    Editors that replace a file leave it to root. The agent would notice at its next start or reload.
    """
    try:
        user, kept = pwd.getpwnam(AGENT_USER), config.paths.state_dir.stat()
        file = path.stat()
    except (KeyError, OSError):
        return None
    if os.geteuid() != 0 or kept.st_uid != user.pw_uid:
        return None
    groups = os.getgrouplist(AGENT_USER, user.pw_gid)
    bit = 0o400 if file.st_uid == user.pw_uid else 0o040 if file.st_gid in groups else 0o004
    return None if file.st_mode & bit else f"{path}: the agent's user cannot read it: run 'chown {AGENT_USER}: {path}'"


def leave_root(config: Config) -> None:
    """As root, goes on as the owner of the state directory, for good; otherwise does nothing.

    Raises:
        StartError: the directory does not exist, or belongs to root.
    """
    if os.geteuid() != 0:
        return
    directory = config.paths.state_dir
    try:
        info = directory.stat()
    except FileNotFoundError:
        raise StartError(f"the directory {directory} does not exist; create it (owner license-agent)") from None
    if info.st_uid == 0:
        raise StartError(f"license-agent does not run as root: give {directory} to its own user (chown license-agent)")
    if config.tpm.enabled:
        # What is imported later might not be readable for that user.
        preload_library()
    try:
        os.initgroups(pwd.getpwuid(info.st_uid).pw_name, info.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(info.st_gid)
    os.setuid(info.st_uid)
    forbid_dumps()


def initialize(config: Config, trust: bytes) -> dict[str, object]:
    """Makes the backend's keys and the first, empty store; returns the enrolment request.

    An initialization that was cut is taken up where it stopped.

    Args:
        config: of the agent.
        trust: content of the server's trust file.

    Raises:
        AlreadyEnrolled: the agent has been initialized.
        HwsecError: the hardware or the disk does not work.
        StartError: the trust file cannot be used.
    """
    try:
        parse_trust(trust)
    except MalformedToken as error:
        raise StartError(f"the trust file cannot be used: {error}") from None
    vault = Vault()
    with contextlib.closing(make_backend(config, vault)) as backend:
        try:
            backend.create()
        except AlreadyEnrolled:
            backend.open()
        store = make_store(config, backend, vault)
        try:
            store.load()
        except StoreMissing:
            if backend.read_anchor()[0] is not None:
                raise
        else:
            raise AlreadyEnrolled(f"{config.store_file} exists already: this agent has been initialized")
        hardware_id = backend.measure_hardware_id()
        sections = {SECTION_TRUST: trust}
        if hardware_id is not None:
            sections[SECTION_HARDWARE] = hardware_id.encode("ascii")
        store.commit(Contents((), sections))
        request: dict[str, object] = {
            "agent_id": config.agent.id,
            "agreement_key": jwk_from_point(backend.agreement_public()),
            "identity_key": jwk_from_point(backend.identity_public()),
            "attestation_key": jwk_from_point(backend.attestation_public()),
            "backend": backend.name,
            "hardware_id": hardware_id,
        }
    vault.close()
    return request


def write_request(request: dict[str, object], out: Path | None) -> str:
    """The request as JSON; also written to `out` if given."""
    text = json.dumps(request, indent=2) + "\n"
    if out is not None:
        out.write_text(text, encoding="utf-8")
    return text
