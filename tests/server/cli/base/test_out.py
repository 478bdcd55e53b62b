"""No secret is made that cannot be written down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from server.keys.jose import new_signing_key
from server.main import main
from tests.support.serverside import open_server
from tests.support.waiting import READY_S


def test_a_rotation_whose_output_cannot_be_written_makes_no_version(tmp_path: Path) -> None:
    where = ["--dir", str(tmp_path / "server")]
    assert CliRunner().invoke(main, ["init", *where]).exit_code == 0
    key = {name: value for name, value in new_signing_key().items() if name != "d"}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"agent_id": "a", "agreement_key": key, "backend": "tpm"}))
    assert CliRunner().invoke(main, ["enroll", *where, "--request", str(request)]).exit_code == 0
    server = open_server(tmp_path / "server")
    command = ["rotate", *where, "--agent", "a", "--out"]
    done = CliRunner().invoke(main, [*command, "/nonexistent/x"])
    assert done.exit_code == 2
    assert "cannot be written" in done.output
    assert server.secrets.listed("a") == []
    assert CliRunner().invoke(main, [*command, str(tmp_path / "out")]).exit_code == 0
    assert len(server.secrets.listed("a")) == 1
    server.close()


@pytest.mark.system
@pytest.mark.parametrize("out", [(), ("--out", "/dev/full")], ids=["standard output", "a device"])
def test_what_is_done_and_could_not_be_handed_out_says_how_to_get_it(tmp_path: Path, out: tuple[str, ...]) -> None:
    where = ("--dir", str(tmp_path / "server"))
    key = {name: value for name, value in new_signing_key().items() if name != "d"}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"agent_id": "a", "agreement_key": key, "backend": "tpm"}))
    for arguments in (
        ("init",),
        ("enroll", "--request", str(request)),
        ("rotate", "--agent", "a", "--out", str(tmp_path / "d")),
    ):
        assert CliRunner().invoke(main, [*arguments, *where]).exit_code == 0

    def told(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("license-server")), *arguments, *where, *out]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=READY_S, check=False)
        assert done.returncode == 1
        return done.stderr

    issued = told("issue", "--agent", "a", "--expires", "+30d", "--license-id", "one")
    assert "it is done, but its output could not be written (No space left on device)" in issued
    assert "the license one is issued; 'license-server reissue --agent a' prints its token" in issued
    assert CliRunner().invoke(main, ["reissue", "--agent", "a", *where]).output.count("\n") == 1
    assert "run the command again" in told("reissue", "--agent", "a")
    assert "make another" in told("enrollment-token", "make")
