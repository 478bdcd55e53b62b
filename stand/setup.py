"""Furnishes a stand: server, agent, secrets in three states, and one token of each kind."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from .programs import StandError, Swtpm, run

AGENT_ID = "pos-001"
OTHER_AGENT_ID = "pos-002"
ROOT_STANDS_IN_UID = 64990
"""Whom the agent runs as when the stand is started by root: a number that names no user."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a stand keeps its things."""

    root: Path

    @property
    def config(self) -> Path:
        """The agent's configuration."""
        return self.root / "etc" / "config.toml"

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
    def info(self) -> Path:
        """What the stand tells others."""
        return self.root / "stand.json"

    def env(self) -> dict[str, str]:
        """Variables under which the other commands work on this stand."""
        return {
            "LICENSE_AGENT_SOCKET": str(self.run / "pos.sock"),
            "LICENSE_AGENT_ADMIN_SOCKET": str(self.run / "admin.sock"),
            "LICENSE_AGENT_CONFIG": str(self.config),
            "LICENSE_SERVER_DIR": str(self.server),
        }


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


def enroll(layout: Layout) -> None:
    """Makes server and agent known to each other."""
    server = ["--dir", str(layout.server)]
    run("license-server", "init", *server)
    trust, request = layout.run / "trust.json", layout.run / "request.json"
    run("license-server", "trust", *server, "--out", str(trust))
    printed = run("license-agent", "--config", str(layout.config), "init", "--trust", str(trust))
    for agent_id in (AGENT_ID, OTHER_AGENT_ID):
        # The other agent exists on the server only: its licenses are for somebody else.
        request.write_text(json.dumps({**json.loads(printed), "agent_id": agent_id}), encoding="utf-8")
        run("license-server", "enroll", *server, "--request", str(request))
    request.unlink()
    trust.unlink()


def rotate(layout: Layout) -> int:
    """One rotation, carried by hand: a new secret into the agent, then re-issued tokens. Returns the new version."""
    env = layout.env()
    delivery = layout.run / "delivery"
    run("license-server", "rotate", "--agent", AGENT_ID, "--out", str(delivery), env=env)
    try:
        reply = json.loads(run("license-agent-cli", "--json", "secrets", "install", str(delivery), env=env))
    finally:
        delivery.unlink()
    for token in run("license-server", "reissue", "--agent", AGENT_ID, env=env).split():
        run("license-agent-cli", "license", "import", token, env=env)
    return int(reply["secret_version"])


def issue(layout: Layout, *arguments: str, agent: str = AGENT_ID) -> str:
    """A license token."""
    return run("license-server", "issue", "--agent", agent, *arguments, env=layout.env())


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


def furnish(layout: Layout) -> dict[str, str]:
    """Brings secret version 1 to INVALIDATED, 2 to GRACE and 3 to ACTIVE; returns a token of each kind."""
    _install_first(layout)
    invalidated = issue(layout, *_for_shop("demo-invalidated"), "--expires", "+30d", "--secret-version", "1")
    rotate_secret_only(layout)
    grace = issue(layout, *_for_shop("demo-grace"), "--expires", "+30d", "--secret-version", "2")
    rotate_secret_only(layout)
    run("license-agent-cli", "secrets", "invalidate", "1", "--yes", env=layout.env())
    valid = issue(layout, *_for_shop("demo-valid"), "--expires", "+30d")
    _install_first(layout, OTHER_AGENT_ID)
    return {
        "valid": valid,
        "expired": issue(layout, *_for_shop("demo-expired"), "--not-before", "-2d", "--expires", "-1d"),
        "not_yet_valid": issue(layout, *_for_shop("demo-future"), "--not-before", "+1d", "--expires", "+30d"),
        "tampered": tamper(valid),
        "wrong_audience": issue(layout, *_for_shop("demo-other"), "--expires", "+30d", agent=OTHER_AGENT_ID),
        "grace": grace,
        "invalidated": invalidated,
    }


def _install_first(layout: Layout, agent: str = AGENT_ID) -> None:
    if agent == AGENT_ID:
        rotate_secret_only(layout)
    else:
        run("license-server", "rotate", "--agent", agent, "--out", os.devnull, env=layout.env())


def rotate_secret_only(layout: Layout) -> None:
    """A new secret version in server and agent, without re-issuing licenses."""
    delivery = layout.run / "delivery"
    run("license-server", "rotate", "--agent", AGENT_ID, "--out", str(delivery), env=layout.env())
    try:
        run("license-agent-cli", "secrets", "install", str(delivery), env=layout.env())
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
