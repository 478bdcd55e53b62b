"""Which files the daemon may reach, by its configuration. That the kernel keeps to it is in tests/confine."""

from dataclasses import replace
from pathlib import Path

import pytest

from agentd.base.config.config import AuditConfig, Config, PathsConfig, ServerConfig, TpmConfig
from agentd.base.confinement import needs_tcp, rules_for
from confine.landlock import Access

FILE = Path("/etc/license-agent/config.toml")
STATE, LOG, RUN, KEYS = (
    Path(text)
    for text in ("/var/lib/license-agent", "/var/log/license-agent", "/run/license-agent", "/var/lib/license-agent-key")
)


def paths(config: Config, access: Access, own_sockets: bool = False) -> set[Path]:
    return {rule.path for rule in rules_for(config, FILE, own_sockets) if rule.access is access}


def test_with_a_tpm_it_writes_state_and_log_alone() -> None:
    assert paths(Config(), Access.WRITE) == {STATE, LOG}
    assert paths(Config(), Access.DEVICE) == {Path("/dev/null"), Path("/dev/tpmrm0")}
    assert paths(Config(), Access.READ) == {FILE.parent}


def test_without_one_it_writes_the_keys_and_where_its_store_lies_and_reaches_no_device() -> None:
    config = Config(tpm=TpmConfig(enabled=False, fallback_encrypted_storage=Path("/srv/store/secret.enc")))
    assert paths(config, Access.WRITE) == {STATE, LOG, KEYS, Path("/srv/store")}
    assert paths(config, Access.DEVICE) == {Path("/dev/null")}


def test_the_run_directory_is_its_own_only_with_its_own_sockets() -> None:
    assert paths(Config(), Access.WRITE, own_sockets=True) - paths(Config(), Access.WRITE) == {RUN}


def test_what_administrators_replace_is_reached_by_its_directory_but_never_by_the_root() -> None:
    for file, reached in (("/srv/archive/key.pem", "/srv/archive"), ("/key.pem", "/key.pem")):
        config = Config(audit=AuditConfig(archive_key=Path(file)))
        assert paths(config, Access.READ) == {FILE.parent, Path(reached)}


def test_keys_without_effect_open_nothing() -> None:
    config = Config(server=ServerConfig(client_cert=Path("/srv/keys/client.pem"), client_key=Path("/srv/keys/client.key")))
    assert paths(config, Access.READ) == {FILE.parent}


def test_paths_are_those_of_the_configuration() -> None:
    config = Config(paths=PathsConfig(*(Path(f"/x/{name}") for name in ("state", "log", "run", "key"))))
    assert paths(config, Access.WRITE, own_sockets=True) == {Path("/x/state"), Path("/x/log"), Path("/x/run")}


@pytest.mark.parametrize(
    ("tcti", "devices", "tcp"),
    [
        ("device:/dev/tpm7", {"/dev/tpm7"}, False),
        ("device", {"/dev/tpmrm0", "/dev/tpm0"}, False),
        ("tabrmd:bus_type=system", set(), False),
        ("swtpm:host=127.0.0.1,port=2321", set(), True),
        ("mssim", set(), True),
    ],
)
def test_device_and_tcp_follow_from_the_tcti(tcti: str, devices: set[str], tcp: bool) -> None:
    config = Config(tpm=TpmConfig(tcti=tcti))
    assert paths(config, Access.DEVICE) == {Path("/dev/null"), *map(Path, devices)}
    assert needs_tcp(config) is tcp
    assert not needs_tcp(replace(config, tpm=replace(config.tpm, enabled=False)))
