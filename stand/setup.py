"""Furnishes a stand: server, link, agent, secrets in three states, and one token of each kind."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import tomli_w

from .commands import Commands
from .programs import READY_S, StandError, Swtpm

AGENT_ID = "pos-001"
OTHER_AGENT_ID = "pos-002"
ROOT_STANDS_IN_UID = 64990
"""Whom the agent runs as when the stand is started by root: a number that names no user."""
LINK_STANDS_IN_UID = 64991
"""Likewise the link: it is another user than the agent."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a stand keeps its things."""

    root: Path

    @property
    def config(self) -> Path:
        """The agent's configuration."""
        return self.root / "etc" / "config.toml"

    @property
    def usual_config(self) -> Path:
        """The agent's configuration as the stand wrote it, while an act has changed it."""
        return self.root / "etc" / "config.usual"

    @property
    def state(self) -> Path:
        """The agent's state directory."""
        return self.root / "state"

    @property
    def keys(self) -> Path:
        """Key material of the software backend."""
        return self.root / "keys"

    @property
    def logs(self) -> Path:
        """The agent's log directory."""
        return self.root / "log"

    @property
    def run(self) -> Path:
        """The sockets."""
        return self.root / "run"

    @property
    def tpm(self) -> Path:
        """State of the simulated TPM."""
        return self.root / "tpm"

    @property
    def server(self) -> Path:
        """The license server's directory."""
        return self.root / "server"

    @property
    def link_config(self) -> Path:
        """The link's configuration."""
        return self.root / "etc" / "link.toml"

    @property
    def link_socket(self) -> Path:
        """Where the agent finds the link."""
        return self.run / "link.sock"

    @property
    def programs(self) -> Path:
        """A copy of our commands, where the agent's user cannot reach them."""
        return self.root / "programs"

    @property
    def info(self) -> Path:
        """What the stand tells others."""
        return self.root / "stand.json"

    @property
    def mark(self) -> Path:
        """Says that the directory is a stand's, which holds a lock on it and removes it when it ends with its files kept."""
        return self.root / ".license-stand"

    def env(self) -> dict[str, str]:
        """Variables under which the other commands work on this stand."""
        return {
            "LICENSE_AGENT_SOCKET": str(self.run / "pos.sock"),
            "LICENSE_AGENT_ADMIN_SOCKET": str(self.run / "admin.sock"),
            "LICENSE_AGENT_CONFIG": str(self.config),
            "LICENSE_SERVER_DIR": str(self.server),
        }


def mark(layout: Layout) -> BinaryIO:
    """Marks the directory as that of a running stand for as long as the file is open, then as that of one that failed."""
    file = layout.mark.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def is_left_over(layout: Layout) -> bool:
    """Whether a directory has the files of a stand that failed or was killed: nobody wants to keep them."""
    try:
        with layout.mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    return True


def clear(layout: Layout) -> None:
    """Removes everything from a stand's directory, its mark last."""
    there = list(layout.root.iterdir()) if layout.root.exists() else []
    for entry in sorted(there, key=lambda entry: entry == layout.mark):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def make_directories(layout: Layout, uid: int | None) -> None:
    """Makes the directories; those of the agent belong to `uid`.

    Raises:
        StandError: the agent's user could not reach them.
    """
    for directory in (layout.root, layout.run, layout.root / "etc"):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.chmod(0o755)
    layout.server.mkdir(mode=0o700)
    for directory in (layout.state, layout.keys, layout.logs, layout.tpm):
        directory.mkdir(mode=0o700)
        if uid is not None:
            os.chown(directory, uid, uid)
    layout.state.chmod(0o711)
    if uid is not None:
        for parent in layout.root.parents:
            if not parent.stat().st_mode & 0o001:
                raise StandError(
                    f"the agent runs as uid {uid} and cannot pass through {parent}: choose another --dir, such as /tmp/stand"
                )


def write_config(layout: Layout, backend: str, tcti: str, uid: int | None, pos: dict[str, int]) -> None:
    """Writes the agent's configuration: the caller may ask and administer.

    Args:
        layout: of the stand.
        backend: `tpm` or `software`.
        tcti: how to reach the TPM.
        uid: whom the agent runs as; None for the caller.
        pos: further keys of `[pos]`.
    """
    caller = os.geteuid()
    content = {
        "agent": {"id": AGENT_ID},
        "tpm": {
            "enabled": backend == "tpm",
            "tcti": tcti,
            "fallback_encrypted_storage": str(layout.state / "secret.enc"),
        },
        "pos": {"allowed_uids": [caller], **pos},
        "management": {"allowed_uids": [caller]},
        "paths": {
            "state_dir": str(layout.state),
            "log_dir": str(layout.logs),
            "run_dir": str(layout.run),
            "key_dir": str(layout.keys),
        },
    }
    layout.config.touch(mode=0o600)
    layout.config.write_text(tomli_w.dumps(content), encoding="utf-8")
    if uid is not None:
        os.chown(layout.config, uid, uid)


def start_tpm(layout: Layout, uid: int | None) -> Swtpm:
    """Starts the simulated TPM."""
    return Swtpm(layout.tpm, uid)


def found_server(commands: Commands, layout: Layout, interval: int | None, grace: int | None) -> None:
    """Makes the license server.

    Args:
        commands: run the server's.
        layout: of the stand.
        interval: seconds between rotations; None for the server's default.
        grace: seconds after that; None for the server's default.
    """
    periods = []
    for name, value in (("--interval", interval), ("--grace", grace)):
        if value is not None:
            periods += [name, str(value)]
    commands.run("license-server", "init", "--dir", str(layout.server), *periods)


def write_link_config(layout: Layout, uid: int | None, url: str, pin: str) -> None:
    """Writes the link's configuration: it serves the agent's user, and reaches this server only."""
    upstream = {"url": url, "pins": [pin]}
    content = {
        "core": {"user": os.geteuid() if uid is None else uid},
        "provisioning": {"allowed": False},
        "upstream": {"server": upstream, "enrollment": upstream},
    }
    layout.link_config.touch(mode=0o644)
    layout.link_config.write_text(tomli_w.dumps(content), encoding="utf-8")


def provision(commands: Commands, layout: Layout, url: str, pin: str) -> None:
    """Makes the device an agent of the server, by a claim, and makes the other agent on the server only."""
    server = ["--dir", str(layout.server)]
    claim = layout.server / "claim"
    commands.run("license-server", "claim", "make", *server, "--out", str(claim))
    commands.run("license-agent-cli", "provision", "--server", url, "--root", pin, "--claim", f"@{claim}", env=layout.env())
    claim.unlink()
    request = layout.server / "request.json"
    # Its licenses are for somebody else; any key will do, since nobody will ever use it.
    request.write_text(json.dumps({"agent_id": OTHER_AGENT_ID, "agreement_key": _OTHER_KEY, "backend": "software"}))
    commands.run("license-server", "enroll", *server, "--request", str(request))
    request.unlink()


_OTHER_KEY = {
    "kty": "EC",
    "crv": "P-256",
    # The generator of P-256 (FIPS 186-5): a point like any other.
    "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
    "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
}


def enroll(commands: Commands, layout: Layout) -> None:
    """Makes server and agent known to each other by files, as for a machine without a network."""
    server = ["--dir", str(layout.server)]
    trust, request = layout.run / "trust.json", layout.run / "request.json"
    commands.run("license-server", "trust", *server, "--out", str(trust))
    printed = commands.run("license-agent", "--config", str(layout.config), "init", "--trust", str(trust))
    for agent_id in (AGENT_ID, OTHER_AGENT_ID):
        # The other agent exists on the server only: its licenses are for somebody else.
        request.write_text(json.dumps({**json.loads(printed), "agent_id": agent_id}), encoding="utf-8")
        commands.run("license-server", "enroll", *server, "--request", str(request))
    request.unlink()
    trust.unlink()


def rotate(commands: Commands, layout: Layout, *, by_hand: bool) -> int:
    """One rotation: a new secret in server and agent, then re-issued tokens. Returns the new version.

    Args:
        commands: run those of server and agent.
        layout: of the stand.
        by_hand: carries it by files; else the agent asks the server.
    """
    env = layout.env()
    if not by_hand:
        return int(json.loads(commands.run("license-agent-cli", "--json", "rotate", env=env))["secret_version"])
    delivery = layout.run / "delivery"
    commands.run("license-server", "rotate", "--agent", AGENT_ID, "--out", str(delivery), env=env)
    try:
        reply = json.loads(commands.run("license-agent-cli", "--json", "secrets", "install", str(delivery), env=env))
    finally:
        delivery.unlink()
    for token in commands.run("license-server", "reissue", "--agent", AGENT_ID, env=env).split():
        commands.run("license-agent-cli", "license", "import", token, env=env)
    return int(reply["secret_version"])


def issue(commands: Commands, layout: Layout, *arguments: str, agent: str = AGENT_ID) -> str:
    """A license token."""
    return commands.run("license-server", "issue", "--agent", agent, *arguments, env=layout.env())


def _for_shop(name: str) -> tuple[str, ...]:
    return (
        "--feature",
        "sales",
        "--feature",
        "fuel",
        "--metadata",
        "shop=Rue du Lac 7",
        "--subject",
        "Demo Shop",
        "--license-id",
        name,
    )


def furnish(commands: Commands, layout: Layout, *, by_hand: bool) -> dict[str, str]:
    """Brings secret version 1 to INVALIDATED, 2 to GRACE and 3 to ACTIVE; returns a token of each kind."""
    step = partial(rotate_secret_only, commands, layout) if by_hand else partial(rotate, commands, layout, by_hand=False)
    if by_hand:
        step()
    else:
        wait_for_first(commands, layout)
    invalidated = issue(commands, layout, *_for_shop("demo-invalidated"), "--expires", "+30d", "--secret-version", "1")
    step()
    grace = issue(commands, layout, *_for_shop("demo-grace"), "--expires", "+30d", "--secret-version", "2")
    step()
    commands.run("license-agent-cli", "secrets", "invalidate", "1", "--yes", env=layout.env())
    valid = issue(commands, layout, *_for_shop("demo-valid"), "--expires", "+30d")
    commands.run("license-server", "rotate", "--agent", OTHER_AGENT_ID, "--out", os.devnull, env=layout.env())
    expired, future, others = (
        issue(commands, layout, *_for_shop(name), *dates, agent=agent)
        for name, dates, agent in (
            ("demo-expired", ("--not-before", "-2d", "--expires", "-1d"), AGENT_ID),
            ("demo-future", ("--not-before", "+1d", "--expires", "+30d"), AGENT_ID),
            ("demo-other", ("--expires", "+30d"), OTHER_AGENT_ID),
        )
    )
    return {
        "valid": valid,
        "expired": expired,
        "not_yet_valid": future,
        "tampered": tamper(valid),
        "malformed": valid.rpartition(".")[0],
        "wrong_audience": others,
        "grace": grace,
        "invalidated": invalidated,
    }


def wait_for_first(commands: Commands, layout: Layout) -> None:
    """Returns when the agent has its first secret: it asks for one by itself.

    Raises:
        StandError: it has none in time.
    """
    ends = time.monotonic() + READY_S
    while time.monotonic() < ends:
        with contextlib.suppress(StandError):
            status = json.loads(commands.run("license-agent-cli", "--json", "status", env=layout.env(), fine=(0, 1, 2)))
            if status.get("secrets", {}).get("active") and (status.get("server") or {}).get("rotation") == "idle":
                return
        time.sleep(0.1)
    raise StandError(f"the agent got no secret from the server within {READY_S:g} s; look at agent.log and server.log")


def rotate_secret_only(commands: Commands, layout: Layout) -> None:
    """A new secret version in server and agent, without re-issuing licenses."""
    delivery = layout.run / "delivery"
    commands.run("license-server", "rotate", "--agent", AGENT_ID, "--out", str(delivery), env=layout.env())
    try:
        commands.run("license-agent-cli", "secrets", "install", str(delivery), env=layout.env())
    finally:
        delivery.unlink()


def tamper(token: str) -> str:
    """The token with one character of its ciphertext changed."""
    start = token.index(".", token.index("..") + 2) + 1
    middle = start + (token.rindex(".") - start) // 2
    return token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]


def write_info(layout: Layout, content: dict[str, object]) -> None:
    """Replaces `stand.json` as a whole, so that a reader never sees half of it."""
    temporary = layout.info.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps({**content, "written_at": int(time.time())}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(layout.info)
