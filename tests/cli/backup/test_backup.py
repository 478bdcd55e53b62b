"""Anyone who knows the recipient can make a backup that decrypts: each command says what is wrong, and changes nothing."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
import pytest
from click.testing import CliRunner, Result

from cli.main import main

IDENTITY = pyrage.x25519.Identity.generate()
Content = dict[str, Any]


def file_of(data: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "data": base64.b64encode(data).decode()}


def content() -> Content:
    files = {"config.toml": file_of(b'[agent]\nid = "till-1"\n'), "secret.enc": file_of(b"LASTORE1 and more")}
    head = {"format": "license-agent-backup", "version": 1, "program": "0.2.0", "created": 1_800_000_000}
    return {**head, "agent_id": "till-1", "backend": "software", "generation": 3, "files": files}


def run(directory: Path, data: bytes, *words: str) -> Result:
    (directory / "key").write_text(str(IDENTITY))
    (directory / "agent.backup").write_bytes(pyrage.encrypt(data, [IDENTITY.to_public()]))
    done = CliRunner().invoke(
        main, ["backup", *words, str(directory / "agent.backup"), "--identity", str(directory / "key")], catch_exceptions=True
    )
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


NO_BACKUPS: dict[str, Callable[[Content], Any]] = {
    "no date": lambda made: made.pop("created"),
    "a date beyond all": lambda made: made.update(created=10**30),
    "a date that is no number": lambda made: made.update(created="\x1b[31m"),
    "a date that is a yes": lambda made: made.update(created=True),
    "no generation": lambda made: made.pop("generation"),
    "an agent that is no text": lambda made: made.update(agent_id=["till-1"]),
    "files in a list": lambda made: made.update(files=[]),
    "a file that is no map": lambda made: made["files"].update({"config.toml": "x"}),
    "a file without digest": lambda made: made["files"]["config.toml"].pop("sha256"),
    "no base64": lambda made: made["files"]["config.toml"].update(data="!!!no base64"),
    "half of base64": lambda made: made["files"]["config.toml"].update(data="AAA"),
}


@pytest.mark.parametrize("words", [("verify",), ("restore", "--plan"), ("restore", "--configuration"), ("restore",)])
@pytest.mark.parametrize("name", NO_BACKUPS)
def test_what_has_another_form_is_no_backup(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    made = content()
    NO_BACKUPS[name](made)
    done = run(tmp_path, json.dumps(made).encode(), *words)
    assert done.exit_code == 1 and "decrypts to something else than a backup of the agent" in done.output


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"[" * 200_000, b'{"files": {}}'])
def test_what_is_no_such_json_is_no_backup(tmp_path: Path, data: bytes) -> None:
    done = run(tmp_path, data, "verify")
    assert done.exit_code == 1 and "decrypts to something else than a backup of the agent" in done.output


@pytest.mark.parametrize("words", [("verify",), ("restore", "--configuration")])
def test_a_backup_of_a_newer_program_says_which(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, json.dumps({**content(), "version": 2, "program": "9.1.0"}).encode(), *words)
    assert done.exit_code == 1 and "of a newer program (9.1.0); use that one" in done.output


WRONG: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no store": (lambda made: made["files"].pop("secret.enc"), "no sealed store"),
    "no configuration": (lambda made: made["files"].pop("config.toml"), "no config.toml"),
    "a file elsewhere": (lambda made: made["files"].update({"../x.toml": file_of(b"")}), "../x.toml: the agent has no file"),
    "a file of another's directory": (
        lambda made: made["files"].update({"policies/../x": file_of(b"")}),
        "the agent has no file",
    ),
    "another digest": (lambda made: made["files"]["config.toml"].update(sha256="0" * 64), "config.toml: its digest"),
    "no TOML": (lambda made: made["files"].update({"config.toml": file_of(b"nonsense = [")}), "config.toml: it cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_verify_calls_only_what_would_restore_whole(tmp_path: Path, name: str) -> None:
    made = content()
    WRONG[name][0](made)
    done = run(tmp_path, json.dumps(made).encode(), "verify")
    assert done.exit_code == 1 and done.output.startswith("DAMAGED: ") and WRONG[name][1] in done.output
    assert run(tmp_path, json.dumps(content()).encode(), "verify").output.startswith("whole: ")


@pytest.mark.parametrize("name", ["another digest", "no TOML"])
def test_a_configuration_that_is_damaged_replaces_none(tmp_path: Path, name: str) -> None:
    made, place = content(), tmp_path / "config.toml"
    made["files"]["link.toml"] = file_of(b"[link]\n")
    WRONG[name][0](made)
    place.write_bytes(b"# in use\n")
    words = ("restore", "--configuration", "--config", str(place))
    done = run(tmp_path, json.dumps(made).encode(), *words)
    assert done.exit_code == 1 and WRONG[name][1] in done.output and "nothing was changed" in done.output
    assert place.read_bytes() == b"# in use\n" and not (tmp_path / "link.toml").exists()
    assert run(tmp_path, json.dumps(content()).encode(), *words).exit_code == 0
    assert place.read_bytes() == b'[agent]\nid = "till-1"\n'


def test_what_a_forged_backup_calls_itself_drives_no_terminal(tmp_path: Path) -> None:
    done = run(tmp_path, json.dumps({**content(), "agent_id": "x\x1b[2J"}).encode(), "verify")
    assert "\x1b" not in done.output and "x<U+001B>[2J" in done.output


def test_a_passphrase_that_this_machine_is_too_busy_for_is_no_wrong_one(tmp_path: Path) -> None:
    """age declines a work factor that is far above what it has just measured."""
    (tmp_path / "words").write_text("correct horse battery\n")
    zeros = base64.b64encode(bytes(32)).decode().rstrip("=")
    made = f"age-encryption.org/v1\n-> scrypt {zeros[:22]} 40\n{zeros}\n--- {zeros}\n".encode() + bytes(40)
    (tmp_path / "agent.backup").write_bytes(made)
    done = CliRunner().invoke(
        main, ["backup", "verify", str(tmp_path / "agent.backup"), "--passphrase-file", str(tmp_path / "words")]
    )
    assert done.exit_code == 1 and "too slow or too busy for its passphrase; try again" in done.output
