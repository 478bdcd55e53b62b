"""What counts as a change of the configuration on disk, and what only looks like a refusal of it."""

import pytest

from agentd.base.config.config import Config, parse_config
from agentd.base.configstatus import ConfigStatus
from agentd.base.confinement import NeedsRestart
from settings.errors import ConfigError

ALLOWED = "[management]\nallowed_uids = [993]\n"


def read(text: str, manage: bool) -> Config:
    """A configuration on a machine with or without the user of the REST interface."""
    return parse_config(text, "c.toml", {"license-agent-manage": 993}.__getitem__ if manage else {}.__getitem__)


@pytest.mark.parametrize(("text", "unloaded"), [("", False), (ALLOWED, True)])
def test_the_rest_interfaces_package_alone_is_no_change(text: str, unloaded: bool) -> None:
    status = ConfigStatus(read(text, manage=False), lambda: (read(text, manage=True), []))
    status.look()
    # Where that user may use the socket, the agent must learn that it demands signatures of it.
    assert status.unloaded is unloaded


def test_another_text_is_a_change() -> None:
    status = ConfigStatus(read("", manage=False), lambda: (read(ALLOWED, manage=True), []))
    status.look()
    assert status.unloaded


def test_what_is_out_of_reach_is_not_wrong_in_the_file() -> None:
    problem: list[Exception] = [NeedsRestart("/dev/tpmrm0 was removed")]

    def fails() -> tuple[Config, list[str]]:
        raise problem[0]

    status = ConfigStatus(Config(), fails)
    status.look()
    assert status.out_of_reach == "/dev/tpmrm0 was removed; restart the agent (systemctl restart license-agent)"
    assert status.problems == (status.out_of_reach,), "a reload is refused for it, and 'config show' shows it"
    problem[0] = ConfigError(["c.toml: no"])
    status.look()
    assert (status.problems, status.out_of_reach) == (("c.toml: no",), "")
    status.out_of_reach = "x"
    status.loaded(Config(), Config(), [])
    assert status.out_of_reach == ""
