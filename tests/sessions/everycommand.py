"""Runs every command of `license-agent-cli` with --json on a stand, and compares each output with its published schema."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import cli.status.status
from agentd.audit.archiver import archive_segment
from cli.main import main
from cli.outputs import OUTPUTS
from tests.support.adminpki import Ca
from tests.support.outputs import problems
from tests.support.stand import BIN, Stand

ELSEWHERE = {
    "provision": "tests/support/chain.py",
    **dict.fromkeys(("policy show", "policy install", "policy bind", "policy revoke"), "tests/integration/test_policies.py"),
    "break-glass begin": "tests/agentd/admin/test_break_glass.py",
    "clock confirm": "tests/integration/test_server_clock.py",
    **dict.fromkeys(
        ("ota check", "ota install", "ota rehearse", "ota_update", "ota rollback", "ota unlock", "ota pause", "ota history"),
        "tests/agentd/admin/handlers/test_update_handlers.py",
    ),
}
"""Commands that do not succeed on this stand, and the file that compares their output with the schema."""


class Terminal:
    """Runs commands in this process, as a user of the stand who wants JSON."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.seen: set[str] = set()
        self.problems: list[str] = []
        self._runner = CliRunner(env={**stand.info["env"], "PATH": f"{BIN}:{os.environ['PATH']}"})

    def run(self, command: str, *arguments: str, option: str = "") -> Any:
        """What a command prints, once it is compared with the schema of the command, or of the command with an option."""
        words = [*command.split(), *option.split(), *arguments]
        done = self._runner.invoke(main, ["--json", *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        key = f"{command} {option}" if f"{command} {option}" in OUTPUTS else command
        try:
            lines = OUTPUTS[key].lines
            documents = [json.loads(line) for line in done.stdout.splitlines()] if lines else [json.loads(done.stdout)]
        except ValueError:
            raise AssertionError((words, done.stdout, done.stderr)) from None
        assert documents, words
        for document in documents:
            self.problems += [f"{' '.join(words)}: {problem}" for problem in problems(key, document)]
        self.seen.add(key)
        return documents if lines else documents[0]

    def tool(self, program: str, *arguments: str) -> str:
        done = self.stand.run(program, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def run_every_command(stand: Stand, place: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Runs all commands but those of ELSEWHERE. The stand is changed by that.

    Args:
        stand: with the software backend and a server.
        place: an empty directory.
        monkeypatch: ends `status --watch` as Ctrl-C does.
    """
    terminal = Terminal(stand)
    run, tool, tokens = terminal.run, terminal.tool, stand.info["tokens"]
    config = Path(stand.info["config"])
    text = config.read_text()
    if "degraded_switch" not in text:  # a session may have allowed it
        text = text.replace("[agent]\n", '[agent]\ndegraded_switch = "allowed"\n')
    recipient = pyrage.x25519.Identity.generate().to_public()
    timed = f'[backup]\ndirectory = "{place}/backups"\nrecipients = "{recipient}"\n'
    config.write_text(f"{text}\n[alerts]\nwebhook = true\n{timed}")
    assert run("reload")["problems"] == []
    _licenses(run, tokens)
    _secrets(terminal, place)
    _audit(terminal, place)
    _upkeep(terminal, place)
    run("clock challenge")
    challenge = run("clock challenge")["challenge"]
    (place / "time").write_text(tool("license-server", "sign-time", "--agent", "pos-001", "--challenge", challenge))
    run("clock reset", str(place / "time"))
    run("contact")
    run("rotate")
    run("certificate renew")
    for mode in ("on", "show", "off"):
        run(f"degraded {mode}")
    run("status")
    run("healthcheck")
    run("metrics")

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.status.status.time, "sleep", interrupted)
    run("status", option="--watch")
    return terminal


def _licenses(run: Callable[..., Any], tokens: dict[str, str]) -> None:
    for token in tokens.values():
        run("license check", token)
        run("why", token)
    run("license import", tokens["valid"])
    run("why", "demo-valid")


def _secrets(terminal: Terminal, place: Path) -> None:
    terminal.run("secrets")
    (place / "delivery").write_text(terminal.tool("license-server", "rotate", "--agent", "pos-001"))
    terminal.run("secrets install", str(place / "delivery"))
    terminal.run("secrets invalidate", "2", "--yes")


def _audit(terminal: Terminal, place: Path) -> None:
    run = terminal.run
    run("keys", "identity")
    run("audit verify")
    for command in ("tail", "export", "search"):
        run(f"audit {command}")
    log = place / "audit.log"
    log.write_bytes(Path(terminal.stand.info["audit_log"]).read_bytes())
    run("audit verify", "--file", str(log), "--open-end")
    key = ec.generate_private_key(ec.SECP256R1())
    (place / "operator.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for archive in archive_segment(log, "audit", 1_800_000_000, memoryview(bytes(32)), key.public_key(), lambda: None):
        run("audit open", str(archive), "--archive-key", str(place / "operator.key"))


def _upkeep(terminal: Terminal, place: Path) -> None:
    run = terminal.run
    run("config check")
    run("config show")
    run("doctor", "--host")
    run("doctor nftables", "--link-uid", "1")
    run("support-bundle", str(place / "bundle.tar.gz"))
    key, kept = pyrage.x25519.Identity.generate(), place / "backup.age"
    (place / "backup.key").write_text(f"{key}\n")
    config = ("--config", terminal.stand.info["config"])
    run("backup run", *config)
    run("backup create", "--to", str(kept), "--recipient", str(key.to_public()), *config)
    run("backup verify", str(kept), "--identity", str(place / "backup.key"))
    run("backup restore", str(kept), "--identity", str(place / "backup.key"), "--plan", *config)
    run("ota status")
    run("ota windows")
    run("webhook status")
    run("webhook test")
    run("webhook retry")
    made = run("webhook-key new", "--out", str(place / "hook"))
    run("webhook-key show-id")
    run("webhook-key end", "--id", made["key_id"], "--yes")
    run("admin-ca show")
    (place / "ca.pem").write_bytes(Ca().pem)
    run("admin-ca revoke", str(place / "ca.pem"))
    run("break-glass end")
    if os.geteuid() == 0:
        run("admin-ca install", str(place / "ca.pem"), "--yes", *config)
        run("admin-ca end", "--yes", *config)
    else:  # both are root's, and end as `admin-ca show` does
        terminal.seen |= {"admin-ca install", "admin-ca end"}
