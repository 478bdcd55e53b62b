"""Who the agent is: the configuration and what the server called it must agree, and one of them is enough."""

from pathlib import Path

import pytest

from agentd.base.config.config import Config, ConfigError, PathsConfig
from agentd.base.identity import FILE_NAME, identified, write_agent_id


def _config(directory: Path, agent_id: str = "") -> Config:
    return Config(paths=PathsConfig(state_dir=directory)).with_agent_id(agent_id)


def test_the_configuration_alone_is_enough(tmp_path: Path) -> None:
    assert identified(_config(tmp_path, "pos-1")).agent.id == "pos-1"
    assert identified(_config(tmp_path)).agent.id == ""


def test_what_the_server_said_is_enough(tmp_path: Path) -> None:
    write_agent_id(_config(tmp_path), "pos-7")
    assert identified(_config(tmp_path)).agent.id == "pos-7"
    assert identified(_config(tmp_path, "pos-7")).agent.id == "pos-7"
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_they_must_agree(tmp_path: Path) -> None:
    write_agent_id(_config(tmp_path), "pos-7")
    with pytest.raises(ConfigError, match=r"'pos-8'.*'pos-7'"):
        identified(_config(tmp_path, "pos-8"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"agent_id": 5}', b'{"agent_id": "a b"}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_file_is_told_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=r"put the agent's id into \[agent\] id"):
        identified(_config(tmp_path))
