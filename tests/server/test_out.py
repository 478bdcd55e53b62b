"""No secret is made that cannot be written down."""

from pathlib import Path

from click.testing import CliRunner

from server.licensing import Licensing, new_server_settings
from server.main import main
from server.minting import new_signing_key
from server.registry import Registry


def test_a_rotation_whose_output_cannot_be_written_makes_no_version(tmp_path: Path) -> None:
    Registry.create(tmp_path, new_server_settings("server"))
    registry = Registry(tmp_path)
    key = {name: value for name, value in new_signing_key().items() if name != "d"}
    Licensing(registry, bytes).enroll({"agent_id": "a", "agreement_key": key, "backend": "tpm"}, 1)
    command = ["rotate", "--dir", str(tmp_path), "--agent", "a", "--out"]
    done = CliRunner().invoke(main, [*command, "/nonexistent/x"])
    assert done.exit_code == 2
    assert "cannot be written" in done.output
    assert registry.secrets("a") == []
    assert CliRunner().invoke(main, [*command, str(tmp_path / "out")]).exit_code == 0
    assert len(registry.secrets("a")) == 1
    registry.close()
