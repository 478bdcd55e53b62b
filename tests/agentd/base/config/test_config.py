"""A configuration that cannot be used is told with the key, the file and what to do; all of it at once."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from agentd.base.config.config import known_keys, load_config, parse_config
from settings.errors import ConfigError
from tests.support.waiting import READY_S

PIN = "sha256:" + "ab" * 32
SEED = f"""
[server]
url = "https://license-server.example.com"
cert_pin = "{PIN}"
client_cert = "/etc/license-agent/client.pem"
client_key = "/etc/license-agent/client.key"

[agent]
id = "pos-001"
rotation_interval = 86400  # 24 h
grace_period = 604800

[tpm]
enabled = true
fallback_encrypted_storage = "/var/lib/license-agent/secret.enc"

[management]
allowed_uids = [1000, 1001]
"""
AGENT = '[agent]\nid = "pos-001"\n'


def lookup(name: str) -> int:
    return {"till": 1000, "nobody": 65534}[name]


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.toml", lookup, lookup)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(problem.startswith("c.toml: ") for problem in caught.value.problems)
    return caught.value.problems


def test_the_seeds_example_is_a_configuration() -> None:
    config = parse_config(SEED, "c.toml", lookup, lookup)
    assert (config.agent.id, config.agent.rotation_interval, config.agent.grace_period) == ("pos-001", 86400, 604800)
    assert config.server.cert_pin == (PIN,)
    assert config.management.allowed_uids == {1000, 1001}
    assert config.management.signing_uids == frozenset()  # there is no such user
    assert config.tpm.enabled
    assert str(config.tpm.fallback_encrypted_storage) == "/var/lib/license-agent/secret.enc"
    assert str(config.store_file) == "/var/lib/license-agent/secrets.store"


def test_the_user_of_the_rest_interface_needs_signatures_wherever_it_exists() -> None:
    users = {"license-agent-manage": 993}.__getitem__
    for text in (AGENT, AGENT + '[management]\nallowed_uids = ["license-agent-manage"]\nauthentication = "uid-only"\n'):
        assert parse_config(text, "c.toml", users, lookup).management.signing_uids == {993}


def test_an_agent_id_is_enough() -> None:
    config = parse_config(AGENT, "c.toml", lookup, lookup)
    assert config.pos.allowed_uids == frozenset()
    assert str(config.audit_log) == "/var/log/license-agent/audit.log"


def test_names_are_looked_up() -> None:
    config = parse_config(AGENT + '[pos]\nallowed_uids = ["till", 5]\nallowed_gids = ["till"]\n', "c.toml", lookup, lookup)
    assert (config.pos.allowed_uids, config.pos.allowed_gids) == ({1000, 5}, {1000})


def test_the_products_of_a_user_are_read() -> None:
    text = '[pos]\nrate_per_s = 5\n[pos.licenses]\ntill = ["a", "b", "a"]\n5 = []\n'
    config = parse_config(AGENT + text, "c.toml", lookup, lookup)
    assert config.pos.licenses == {1000: {"a", "b"}, 5: frozenset()} and config.pos.rate_per_s == 5
    assert parse_config(AGENT, "c.toml", lookup, lookup).pos.licenses == {}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (AGENT + "[pos.licenses]\nghost = []\n", ["'licenses' in [pos]", "user 'ghost'", "does not exist"]),
        (AGENT + "[pos.licenses]\n65534 = []\n", ["'licenses' in [pos]", "65534"]),
        (AGENT + "[pos.licenses]\n99999999999999999999 = []\n", ["'licenses' in [pos]"]),
        (AGENT + "[pos.licenses]\ntill = 'a'\n", ["'licenses' in [pos]", "must have a list for each user", "'till'"]),
        (AGENT + "[pos.licenses]\ntill = ['']\n", ["'till'", "1 to 256 characters"]),
        (AGENT + "[pos.licenses]\ntill = [5]\n", ["'till'", "1 to 256 characters"]),
        (AGENT + f"[pos.licenses]\ntill = ['{'x' * 257}']\n", ["'till'", "1 to 256 characters"]),
        (AGENT + "[pos.licenses]\ntill = []\n1000 = []\n", ["two lists for the user 1000"]),
        (AGENT + "[pos]\nlicenses = ['a']\n", ["'licenses' in [pos]", "a table with a list for each user"]),
        (AGENT + "[poss]\n", ["unknown section [poss]", "did you mean [pos]?"]),
        (AGENT + "[zzzzzz]\n", ["unknown section [zzzzzz]", "known are"]),
        (AGENT + "rotation_intervall = 5\n", ["'rotation_intervall'", "[agent]", "did you mean 'rotation_interval'?"]),
        (AGENT + "zzzzzz = 5\n", ["'zzzzzz'", "known are"]),
        ("pos = 5\n" + AGENT, ["must be a section, [pos]"]),
        ("server = 5\n" + AGENT, ["must be a section, [server]"]),
        ("server = true\n" + AGENT, ["must be a section, [server]"]),
        ("[[agent]]\nid = 'x'\n", ["must be a section, [agent]"]),
        ("[agent]\nid = 'a b'\n", ["'id'", "letters"]),
        ("[agent]\nid = 5\n", ["'id'", "text in quotes"]),
        (AGENT + "rotation_interval = '1d'\n", ["'rotation_interval'", "whole number from 60"]),
        (AGENT + "grace_period = 59\n", ["'grace_period'", "whole number from 60"]),
        (AGENT + "grace_period = true\n", ["'grace_period'", "whole number"]),
        (AGENT + "[tpm]\nenabled = 'yes'\n", ["'enabled'", "[tpm]", "true or false"]),
        (AGENT + "[tpm]\ntcti = 'libevil.so'\n", ["'tcti'", "device:/dev/tpmrm0"]),
        (AGENT + "[tpm]\nnv_base = 1\n", ["'nv_base'"]),
        (AGENT + "[paths]\nstate_dir = 'x'\n", ["'state_dir'", "absolute path"]),
        (AGENT + "[paths]\nlog_dir = '/a/../b'\n", ["'log_dir'", "'..'"]),
        (
            AGENT + "[pos]\nallowed_uids = ['ghost']\n",
            ["'allowed_uids'", "'ghost'", "does not exist", "create it or remove it"],
        ),
        (AGENT + "[pos]\nallowed_gids = ['ghost']\n", ["'allowed_gids'", "group 'ghost'"]),
        (AGENT + "[pos]\nallowed_uids = [65534]\n", ["'allowed_uids'", "65534"]),
        (AGENT + "[pos]\nallowed_uids = ['nobody']\n", ["65534"]),
        (AGENT + "[management]\nallowed_uids = [65534]\n", ["[management]", "65534"]),
        (AGENT + "[pos]\nallowed_uids = [-1]\n", ["-1"]),
        (AGENT + "[pos]\nallowed_uids = [true]\n", ["True"]),
        (AGENT + "[pos]\nallowed_uids = 5\n", ["list of user names"]),
        (AGENT + "[pos]\nrate_per_s = 0\n", ["'rate_per_s'"]),
        (AGENT + "[audit]\nsegment_bytes = 5\n", ["'segment_bytes'"]),
        (AGENT + f"[server]\nurl = 'http://x'\ncert_pin = '{PIN}'\n", ["'url'", "https://"]),
        (AGENT + "[server]\nurl = 'https://x'\n", ["'cert_pin'", "missing in [server]"]),
        (AGENT + "[server]\nurl = 'https://x'\ncert_pin = 'sha256:...'\n", ["'cert_pin'", "SPKI"]),
        (AGENT + "[server]\nurl = 'https://x'\ncert_pin = []\n", ["'cert_pin'", "at least one"]),
        (AGENT + "[server]\nurl = 'https://x'\ncert_pin = ['sha1:aa']\n", ["'cert_pin'"]),
        ("[agent\n", ["not TOML"]),
        (AGENT + "id = 'twice'\n", ["not TOML"]),
        (AGENT + "x = " + "[" * 5000 + "\n", ["not TOML"]),
        (AGENT + "grace_period = " + "9" * 5000 + "\n", ["not TOML"]),
        (AGENT + '[paths]\nlog_dir = "/a\\u0000b"\n', ["'log_dir'"]),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else "",
)
def test_each_error_names_what_is_wrong(text: str, parts: list[str]) -> None:
    (problem,) = problems(text)
    assert all(part in problem for part in parts), problem


def test_a_user_name_that_no_system_has_is_a_problem() -> None:
    with pytest.raises(ConfigError, match="allowed_uids"):
        parse_config(AGENT + '[pos]\nallowed_uids = ["a\\u0000b"]\n', "c.toml")


def test_everything_wrong_is_told_at_once() -> None:
    found = problems("[agent]\nid = 5\nx = 1\n[pos]\nrate_per_s = 0\n[zz]\n[server]\n")
    assert len(found) == 6


def test_every_section_of_the_configuration_is_known() -> None:
    assert list(known_keys()) == [
        "server",
        "agent",
        "tpm",
        "pos",
        "management",
        "audit",
        "alerts",
        "backup",
        "updates",
        "certificates",
        "fleet",
        "paths",
    ]


ME = os.geteuid()


def write(directory: Path, data: bytes | str, mode: int = 0o600) -> Path:
    path = directory / "config.toml"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)
    return path


def load_problems(path: Path, uid: int = ME) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, uid)
    return caught.value.problems


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_loaded(tmp_path: Path, mode: int) -> None:
    assert load_config(write(tmp_path, AGENT, mode), ME).agent.id == "pos-001"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o777])
def test_loose_permissions_are_refused(tmp_path: Path, mode: int) -> None:
    (problem,) = load_problems(write(tmp_path, AGENT, mode))
    assert f"{mode:04o}" in problem
    assert f"chmod 0600 {tmp_path}/config.toml" in problem


def test_another_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, AGENT)
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        info = list(real(descriptor))
        info[4] = 4242
        return os.stat_result(info)

    monkeypatch.setattr(os, "fstat", fstat)
    (problem,) = load_problems(path)
    assert "belongs to uid 4242" in problem
    assert "chown" in problem


def test_a_missing_file_a_link_and_a_directory_are_refused(tmp_path: Path) -> None:
    (problem,) = load_problems(tmp_path / "none")
    assert "does not exist; create it" in problem
    (tmp_path / "link").symlink_to(write(tmp_path, AGENT))
    assert "not a regular file" in load_problems(tmp_path / "link")[0]
    assert "not a regular file" in load_problems(tmp_path)[0]


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(load_problems(pipe)))
    thread.start()
    thread.join(READY_S)
    waited = thread.is_alive()
    if waited:
        os.close(os.open(pipe, os.O_WRONLY))
        thread.join()
    assert not waited
    assert "not a regular file" in found[0][0]


@pytest.mark.parametrize(("data", "text"), [(b"\xff\xfe", "not UTF-8"), (b"#" * 300_000, "more than"), (b"[", "not TOML")])
def test_what_cannot_be_read_is_told(tmp_path: Path, data: bytes, text: str) -> None:
    path = write(tmp_path, data)
    (problem,) = load_problems(path)
    assert text in problem
    assert str(path) in problem


def with_key(tmp_path: Path, content: str, mode: int = 0o600) -> list[str]:
    key = tmp_path / "client.key"
    key.write_text(content)
    key.chmod(mode)
    text = AGENT + f'[server]\nurl = "https://x"\ncert_pin = "{PIN}"\nclient_key = "{key}"\n'
    return load_problems(write(tmp_path, text))


def test_keys_without_effect_are_warned_of_and_change_nothing() -> None:
    config = parse_config(SEED, "c.toml", lookup, lookup)
    assert config.warnings == tuple(
        f"c.toml: '{key}' in [server] has no effect: the agent gets its certificate when it is provisioned, and makes the key "
        "itself; remove the key"
        for key in ("client_cert", "client_key")
    )
    assert parse_config(AGENT, "c.toml", lookup, lookup).warnings == ()


def test_a_plain_private_key_is_refused(tmp_path: Path) -> None:
    (problem,) = with_key(tmp_path, "-----BEGIN PRIVATE KEY-----\n")
    assert "'client_key' in [server]" in problem
    assert "plain private key" in problem
    (problem,) = with_key(tmp_path, "sealed", 0o644)
    assert "'client_key' in [server]" in problem
    assert "chmod 0600" in problem


def test_problems_of_file_and_content_come_together(tmp_path: Path) -> None:
    assert len(load_problems(write(tmp_path, "[agent]\nid = 5\n[zz]\n", 0o644))) == 3
