"""link.toml: what it may say, and clear words for what it may not."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from link.config import LinkConfig, load_config, parse_config, parse_url
from settings.errors import ConfigError
from tests.support.pki import make

PIN = "sha256:" + "ab" * 32
OTHER = "sha256:" + "zc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc0="
USERS = {"license-agent": 900, "nobody": 65534}
CORE = '[core]\nuser = "license-agent"\n'


def parse(text: str) -> LinkConfig:
    return parse_config(text, "link.toml", USERS.__getitem__)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert all(problem.startswith("link.toml: ") for problem in caught.value.problems)
    return [problem.removeprefix("link.toml: ") for problem in caught.value.problems]


def test_the_smallest_file() -> None:
    config = parse(CORE)
    assert (config.core_uid, dict(config.upstreams), config.provisioning) == (900, {}, True)


def test_a_whole_file() -> None:
    config = parse(
        '[core]\nuser = 12\n[provisioning]\nallowed = false\nproxy = "http://10.0.0.1:3128"\n'
        f'[upstream.server]\nurl = "https://license.example:8443/base/"\npins = ["{PIN}", "{OTHER}"]\nproxy = "http://p.example:8"\n'
        f'[upstream.ota]\nurl = "https://[::1]"\npins = "{PIN}"\n'
    )
    assert (config.core_uid, config.provisioning, config.provisioning_proxy) == (12, False, "http://10.0.0.1:3128")
    server, ota = config.upstreams["server"], config.upstreams["ota"]
    assert (server.url, server.host) == ("https://license.example:8443/base", "license.example")
    assert server.pins == {b"\xab" * 32, b"\xcd" * 32} and server.proxy == "http://p.example:8"
    assert (ota.url, ota.host, ota.pins, ota.proxy) == ("https://[::1]", "::1", {b"\xab" * 32}, None)


UP = f'{CORE}[upstream.server]\nurl = "https://a"\npins = "{PIN}"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the key 'user' is missing in [core]; add it"),
        ("[core", "not TOML: "),
        ('[core]\nuser = "till"', "'user' in [core] names the user 'till', which does not exist on this machine"),
        ('[core]\nuser = "nobody"', "'user' in [core] must not be 65534"),
        ("[core]\nuser = -1", "'user' in [core] must be the name or the number"),
        ("[core]\nuser = true", "'user' in [core] must be the name or the number"),
        ('[core]\nuser = ""', "'user' in [core] must be the name or the number"),
        ("core = 1", "'core' must be a section, [core]"),
        (f"{CORE}usr = 1", "unknown key 'usr' in [core]; did you mean 'user'?"),
        (f"{CORE}[upstreams]", "unknown section [upstreams]; did you mean [upstream]?"),
        (f"{CORE}[upstream.servr]", "unknown section [upstream.servr]; did you mean [upstream.server]?"),
        (
            f"{CORE}[upstream.x]",
            "unknown section [upstream.x]; known are [upstream.server], [upstream.enrollment], ",
        ),
        (f"{CORE}[upstream]\nserver = 1", "'upstream.server' must be a section, [upstream.server]"),
        (f"{CORE}upstream = 1", "unknown key 'upstream' in [core]"),
        (
            f'{CORE}[upstream.server]\nurl = "https://a"',
            "the key 'pins' is missing in [upstream.server]; add it, or remove the section",
        ),
        (f'{CORE}[upstream.server]\npins = "{PIN}"', "the key 'url' is missing in [upstream.server]; add it"),
        (f"{UP}verify = false", "unknown key 'verify' in [upstream.server]"),
        (f'{CORE}[provisioning]\nallowed = "no"', "'allowed' in [provisioning] must be true or false, without quotes"),
    ],
)
def test_each_problem_is_named(text: str, said: str) -> None:
    assert any(problem.startswith(said) for problem in problems(text)), problems(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://",
        "https://a b",
        "https://a:0",
        "https://a:65536",
        "https://user@a",
        "https://user:pass@a",
        "https://a/?q",
        "https://a/#f",
        "https://a/../b",
        "https://a//b",
        "https://-a",
        "https://a..b",
        "https://[::g]",
        "https://1.2.3.4\n",
        "https://é",
        "HTTPS://a",
        1,
        None,
    ],
)
def test_what_is_no_address_of_an_upstream(url: object) -> None:
    with pytest.raises(ValueError, match="must be an https:// address"):
        parse_url(url)
    if isinstance(url, str) and url.isprintable():
        assert "'url' in [upstream.server] must be an https:// address" in problems(UP.replace("https://a", url))[0]


@pytest.mark.parametrize("value", ["[]", '""', '"md5:00"', '"sha256:00"', f'["{PIN}", "x"]', "1", f'"{PIN[7:]}"', "[1]"])
def test_what_is_no_pin(value: str) -> None:
    (problem,) = problems(UP.replace(f'"{PIN}"', value))
    assert problem.startswith("'pins' in [upstream.server] must be \"sha256:\" and the SHA-256 of the public key")


def test_too_many_pins() -> None:
    (problem,) = problems(UP.replace(f'"{PIN}"', str([PIN] * 9)))
    assert "a list of 1 to 8 such" in problem


@pytest.mark.parametrize("value", ["https://p:1", "http://user:pass@p:1", "http://p:1/path", "socks5://p:1", "p:1", ""])
def test_what_is_no_proxy(value: str) -> None:
    (problem,) = problems(f'{UP}proxy = "{value}"')
    assert problem.startswith("'proxy' in [upstream.server] must be http://HOST:PORT") and "no secret stays here" in problem


def test_all_problems_are_told_at_once() -> None:
    found = problems('[core]\nuser = "x"\n[upstream.server]\nurl = 1\npins = 2\n[upstream.y]\n[z]\n')
    assert len(found) == 5


@given(st.text(max_size=200))
def test_any_text_gives_a_configuration_or_problems(text: str) -> None:
    for whole in (text, f"{UP}{text}", f'{CORE}[upstream.server]\nurl = "{text}"'):
        try:
            parse(whole)
        except ConfigError as error:
            assert error.problems


HOOK = f'{CORE}[upstream.webhook]\nurl = "https://ops.example/hooks/"\n'


def test_the_webhook_has_its_whole_address_and_keys_of_its_own() -> None:
    config = parse(f'{HOOK}ca_file = "/etc/ssl/certs/ca-certificates.crt"\nallow_addresses = ["10.20.0.0/16", "::1/128"]\n')
    hook = config.upstreams["webhook"]
    assert (hook.url, hook.host, hook.pins) == ("https://ops.example/hooks/", "ops.example", frozenset())
    assert hook.ca_file == Path("/etc/ssl/certs/ca-certificates.crt") and [str(each) for each in hook.listed] == [
        "10.20.0.0/16",
        "::1/128",
    ]
    assert parse(f'{HOOK}pins = "{PIN}"\n').upstreams["webhook"].listed == ()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "[upstream.webhook] needs 'pins' or 'ca_file', and not both"),
        (f'pins = "{PIN}"\nca_file = "/a"', "[upstream.webhook] needs 'pins' or 'ca_file', and not both"),
        ('ca_file = "a"', "'ca_file' in [upstream.webhook] must be an absolute path"),
        (
            f'pins = "{PIN}"\nallow_addresses = "10.0.0.0/8"',
            "'allow_addresses' in [upstream.webhook] must be a list of networks",
        ),
        (f'pins = "{PIN}"\nallow_addresses = ["10.0.0.1/8"]', "'allow_addresses' in [upstream.webhook] must be a list of"),
        (f'pins = "{PIN}"\nallow_addresses = [1]', "'allow_addresses' in [upstream.webhook] must be a list of"),
        (f'pins = "{PIN}"\nallow_addresses = []\nproxy = "http://p:1"', "has no effect with 'proxy'"),
        (f'pins = "{PIN}"\nmethod = "GET"', "unknown key 'method' in [upstream.webhook]"),
    ],
)
def test_what_the_webhook_may_not_be(more: str, said: str) -> None:
    (problem,) = problems(f"{HOOK}{more}\n")
    assert said in problem


OTA = f'{CORE}[upstream.ota]\nurl = "https://updates.example/pos"\n'


def test_the_repository_has_pins_or_cas() -> None:
    ota = parse(f'{OTA}ca_file = "/etc/ssl/certs/ca-certificates.crt"\n').upstreams["ota"]
    assert (ota.url, ota.pins, ota.ca_file) == (
        "https://updates.example/pos",
        frozenset(),
        Path("/etc/ssl/certs/ca-certificates.crt"),
    )
    assert parse(f'{OTA}pins = "{PIN}"\n').upstreams["ota"].pins == {b"\xab" * 32}
    for more in ("", f'pins = "{PIN}"\nca_file = "/a"'):
        (problem,) = problems(f"{OTA}{more}\n")
        assert problem.startswith("[upstream.ota] needs 'pins' or 'ca_file', and not both")
    (problem,) = problems(f'{OTA}pins = "{PIN}"\nallow_addresses = []\n')
    assert "unknown key 'allow_addresses' in [upstream.ota]" in problem
    assert problems(f"{CORE}[upstream]\nota = 1\nwebhook = 1\n")


def test_the_updater_is_the_packages_user_or_the_one_that_the_file_names() -> None:
    users = {**USERS, "license-agent-updater": 902}
    assert parse_config(CORE, "link.toml", users.__getitem__).updater_uid == 902
    assert parse(CORE).updater_uid is None
    assert parse(f"{CORE}[updater]\nuser = 7\n").updater_uid == 7
    assert parse_config("[core]\nuser = 902\n", "link.toml", users.__getitem__).updater_uid is None
    (problem,) = problems(f"{CORE}[updater]\nuser = 900\n")
    assert "[updater] and [core] name the same user" in problem


def test_other_upstreams_have_none_of_the_webhooks_keys() -> None:
    assert len(problems(f'{UP}ca_file = "/a"\nallow_addresses = []\n')) == 2


def test_the_ca_file_is_read_and_checked(tmp_path: Path) -> None:
    root = make("root", authority=True)
    ca = tmp_path / "ca.pem"
    toml = f'[core]\nuser = 0\n[upstream.webhook]\nurl = "https://a"\nca_file = "{ca}"\n'.encode()
    file = _write(tmp_path / "link.toml", toml)
    for data, mode, said in (
        (b"", 0o644, "holds no certificate in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o644, "holds no certificate in PEM"),
        (root.chain_pem.encode(), 0o666, "so that others may change it"),
    ):
        _write(ca, data, mode)
        with pytest.raises(ConfigError, match=said):
            load_config(file)
    _write(ca, root.chain_pem.encode())
    assert load_config(file).upstreams["webhook"].roots == (root.der_chain[0],)
    ca.unlink()
    with pytest.raises(ConfigError, match="does not exist; put the CA's certificate there"):
        load_config(file)


def _write(path: Path, data: bytes = CORE.replace('"license-agent"', "0").encode(), mode: int = 0o644) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o640])
def test_a_file_that_others_cannot_change_is_read(tmp_path: Path, mode: int) -> None:
    assert load_config(_write(tmp_path / "link.toml", mode=mode)).core_uid == 0


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=rf"has mode {mode:04o}, so that others may change it"):
        load_config(_write(tmp_path / "link.toml", mode=mode))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "link.toml")
    os.chown(path, 54321, 0)
    with pytest.raises(ConfigError, match="belongs to uid 54321"):
        load_config(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "directory").mkdir()
    for name, said in (
        ("fifo", "not a regular file"),
        ("directory", "not a regular file"),
        ("absent", "does not exist; create it"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / name)


def test_a_file_that_is_too_long_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        load_config(_write(tmp_path / "long", b"#" * 65537))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(_write(tmp_path / "bytes", b"\xff"))
