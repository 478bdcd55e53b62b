"""The commands of `license-agent` that need no daemon."""

import json
import os
from pathlib import Path

import pytest

from agentd.commands import EXIT_OK, check_config, parser

PIN = "sha256:" + "ab" * 32


@pytest.mark.parametrize("as_json", [False, True])
def test_a_key_without_effect_is_warned_of_and_refuses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    certificate, path = tmp_path / "client.pem", tmp_path / "config.toml"
    text = (
        f'[agent]\nid = "pos-1"\n[server]\nurl = "https://x"\ncert_pin = "{PIN}"\nclient_cert = "{certificate}"\n'
        f'[paths]\nstate_dir = "{tmp_path}"\n'
    )
    for file, content in ((certificate, "a certificate"), (path, text)):
        file.touch(mode=0o600)
        file.write_text(content)
        os.chmod(file, 0o600)
    options = parser().parse_args(["--config", str(path), "check-config", *(["--json"] if as_json else [])])
    assert check_config(options) == EXIT_OK
    out, err = capsys.readouterr()
    assert err == (
        f"license-agent: warning: {path}: 'client_cert' in [server] has no effect: the agent gets its certificate when it is "
        "provisioned, and makes the key itself; remove the key\n"
    )
    if as_json:
        assert json.loads(out) == {"ok": True, "file": str(path), "problems": []}
