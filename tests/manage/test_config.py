"""What manage.toml may say."""

import pytest

from manage.config import DEFAULT_ADDRESS, DEFAULT_CA, DEFAULT_PORT, DEFAULT_SOCKET, parse_config
from settings.errors import ConfigError

TLS = '[tls]\ncertificate = "/etc/c.pem"\nkey = "/etc/k.pem"\n'
USERS = {"license-agent": 900}.__getitem__


def problems(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "manage.toml", USERS)
    return "\n".join(caught.value.problems)


def test_certificate_and_key_are_enough() -> None:
    config = parse_config(TLS, "manage.toml", USERS)
    assert (config.address, config.port, config.agent_uid) == (DEFAULT_ADDRESS, DEFAULT_PORT, 900)
    assert (config.admin_ca, config.socket) == (DEFAULT_CA, DEFAULT_SOCKET)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1"])
def test_every_address_of_loopback_may_be_listened_on(address: str) -> None:
    assert parse_config(f'[listen]\naddress = "{address}"\n{TLS}', "manage.toml", USERS).address == address


@pytest.mark.parametrize(
    "value",
    ['"0.0.0.0"', '"::"', '"10.0.0.1"', '"localhost"', '"::ffff:127.0.0.1"', '"::1%lo"', '""', "true", "2130706433", '["::1"]'],
)
def test_no_other_address_may(value: str) -> None:
    found = problems(f"[listen]\naddress = {value}\n{TLS}")
    assert "'address' in [listen]" in found and "loopback" in found and "SSH" in found


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = problems('[listen]\nport = 80\naddres = "::1"\n[tls]\nkey = "k.pem"\n[web]\n')
    for text in (
        "'port' in [listen]",
        "'addres'",
        "did you mean 'address'?",
        "'certificate' is missing",
        "'key' in [tls]",
        "[web]",
    ):
        assert text in found, text


def test_an_agent_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match="'user' in \\[agent\\]"):
        parse_config(TLS, "manage.toml", {}.__getitem__)
    assert parse_config(f"{TLS}[agent]\nuser = 64991\n", "manage.toml", {}.__getitem__).agent_uid == 64991
