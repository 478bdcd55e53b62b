"""What is shown of the configuration is what is in force, and where it comes from."""

import msgspec
import pytest

from agentd.base.config.config import Config, known_keys, parse_config
from agentd.base.configstatus import ConfigStatus
from agentd.telemetry.configview import config_view
from cli.config import config_text

TEXT = """
[agent]
degraded_after = 5
[pos]
allowed_uids = [0, 7]
[pos.licenses]
"7" = ["till"]
[paths]
state_dir = "/var/lib/other"
"""


@pytest.fixture
def config() -> Config:
    return parse_config(TEXT, "/etc/license-agent/config.toml", user=int, group=int)


def test_every_key_is_shown_with_its_default_and_origin(config: Config) -> None:
    reply = config_view(ConfigStatus(config), {"agent.id": "pos-1", "server.cert_pin": ("sha256:x",)})
    entries = {entry["key"]: entry for entry in reply["entries"]}
    assert set(entries) == {f"{section}.{key}" for section, keys in known_keys().items() for key in keys}
    assert entries["agent.degraded_after"] == {"key": "agent.degraded_after", "value": 5, "default": 3, "origin": "file"}
    assert entries["agent.id"]["value"] == "pos-1" and entries["agent.id"]["origin"] == "provisioning"
    assert entries["server.cert_pin"]["value"] == ["sha256:x"]
    assert entries["pos.licenses"]["value"] == {"7": ["till"]} and entries["pos.rate_per_s"]["origin"] == "default"
    assert entries["paths.state_dir"]["value"] == "/var/lib/other"
    assert reply["file"] == "/etc/license-agent/config.toml"
    # A message carries it as it is.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(reply)) == reply


def test_the_file_goes_before_what_the_server_said(config: Config) -> None:
    named = parse_config('[agent]\nid = "shop-1"\n', "x", user=int, group=int)
    entry = next(e for e in config_view(ConfigStatus(named), {"agent.id": "pos-1"})["entries"] if e["key"] == "agent.id")
    assert (entry["value"], entry["origin"]) == ("shop-1", "file")


def test_a_default_that_is_written_out_comes_from_the_file() -> None:
    written = parse_config("[agent]\ndegraded_after = 3\n", "x", user=int, group=int)
    assert written.given == {"agent.degraded_after"} and written == Config()


def test_what_waits_for_a_restart_is_shown_besides(config: Config) -> None:
    status = ConfigStatus(Config())
    status.loaded(config, Config(), ["paths"])
    reply = config_view(status, {})
    entries = {entry["key"]: entry for entry in reply["entries"]}
    assert entries["paths.state_dir"]["value"] == "/var/lib/license-agent"
    assert entries["paths.state_dir"]["after_restart"] == "/var/lib/other"
    text = config_text(reply)
    assert "after a restart: /var/lib/other" in text and "systemctl restart license-agent" in text


def test_the_text_names_users_and_says_what_is_on_disk(config: Config) -> None:
    reply = config_view(ConfigStatus(config, unloaded=True), {})
    text = config_text(reply)
    assert "0 (root), 7" in text and "0x01" in text and "run 'systemctl reload license-agent'" in text
    assert "default: 3" in text and "default: -" not in text
    assert "the file on disk is refused" in config_text({**reply, "problems": ["x"]})
