"""No secret is made that cannot be written down."""

import json
from pathlib import Path

from click.testing import CliRunner

from server.keys.jose import new_signing_key
from server.main import main
from tests.support.serverside import open_server


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
