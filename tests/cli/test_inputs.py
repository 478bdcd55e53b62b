"""Tokens on the command line: directly, from standard input, from a file."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main

TOKEN = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("short", "this is not an enrollment token: it is too short"),
        ("", "it is empty"),
        ("token.txt", "did you mean '@FILE'?"),
        ("@missing", "missing cannot be read: No such file or directory"),
        ("@utf16", "utf16 is UTF-16; save it as plain text"),
        ("@binary", "binary is not text"),
        (f'"{TOKEN}"', "it is in quotes"),
        (f"{TOKEN} {TOKEN}", "it contains blanks"),
    ],
)
def test_an_enrollment_token_that_cannot_be_one_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("utf16").write_text(TOKEN, "utf-16")
    Path("binary").write_bytes(b"\x80\x81\x82")
    options = ["--socket", "none.sock", "provision", "--server", "https://s", "--root", "sha256:0", "--claim", claim]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 2 and said in done.output and TOKEN not in done.output


@pytest.mark.parametrize("claim", [TOKEN, "@file", "@marked", "-"])
def test_an_enrollment_token_is_read_from_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text(f"{TOKEN}\n")
    Path("marked").write_text(f"{TOKEN}\n", "utf-8-sig")
    options = ["--socket", "none.sock", "provision", "--server", "https://s", "--root", "sha256:0", "--claim", claim]
    done = CliRunner().invoke(main, options, input=f"{TOKEN}\n")
    assert "does not exist: is the agent running?" in str(done.exception), done.output


def test_a_directory_and_a_device_are_no_files_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("directory")
    done = CliRunner().invoke(main, ["license", "check", "@/dev/null"])
    assert done.exit_code == 2 and "/dev/null is not a file with a token" in done.output
    assert isinstance(CliRunner().invoke(main, ["license", "check", "@directory"]).exception, IsADirectoryError)
