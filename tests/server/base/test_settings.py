"""The server's settings are read strictly, and what is wrong with them is said with what to do."""

from pathlib import Path

import pytest

from server.base.errors import RegistryError
from server.base.settings import SETTINGS, place_of, settings_of, url_in


def test_database_and_master_key_are_read(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text('database = "sqlite:///x"\nmaster_key = "/keys/master.key"\n')
    place = place_of(tmp_path)
    assert (place.directory, place.url, place.master) == (tmp_path, "sqlite:///x", "/keys/master.key")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "settings.toml does not exist; run 'license-server init --dir"),
        ("database = ", "not TOML"),
        ("database = 5\nmaster_key = 'x'\n", "'database' must be a text in quotes"),
        ("database = 'x'\n", "the key 'master_key' is missing; add it"),
        (
            "database = 'x'\nmaster_key = 'x'\nwebhook_networks = ['ten']\n",
            "must have networks such as 10.20.0.0/16, and 'ten' is not one",
        ),
        ("database = 'x'\nmaster_key = 'x'\nwebhook_networks = 10\n", "'webhook_networks' must be a list of networks"),
        ("database = 'x'\nmaster_key = 'x'\nmasterkey = 'x'\n", "unknown key 'masterkey'; did you mean 'master_key'?"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(RegistryError) as caught:
        place_of(tmp_path)
    assert str(tmp_path / SETTINGS) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "url"),
    [
        (b"sqlite:////s/x.db\n", "sqlite:////s/x.db"),
        (b"\xef\xbb\xbfsqlite:////s/x.db\r\nmore\n", "sqlite:////s/x.db"),
        (b"\xef\xbb\xbf\n", None),
        (b"", None),
        ("sqlite:////s/x.db".encode("utf-16"), None),
    ],
    ids=["plain", "byte order mark", "byte order mark alone", "empty", "UTF-16"],
)
def test_a_url_is_the_first_line_of_its_file(tmp_path: Path, content: bytes, url: str | None) -> None:
    file = tmp_path / "url"
    file.write_bytes(content)
    file.chmod(0o600)
    if url is None:
        with pytest.raises(RegistryError, match="has no database URL in its first line"):
            url_in(file)
    else:
        assert url_in(file) == url


SERVER = "database = 'x'\nmaster_key = 'x'\n"


def test_the_listener_for_ddi_is_off_unless_there_is_a_section_for_it(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(SERVER)
    assert place_of(tmp_path).ddi is None
    (tmp_path / SETTINGS).write_text(SERVER + '[ddi]\nlisten = "[::1]:8444"\nurl = "https://updates.example:8444"\n')
    place = place_of(tmp_path)
    assert place.ddi is not None
    assert (place.ddi.listen, place.ddi.tenant, place.ddi.poll_s) == (("::1", 8444), "default", 300)
    (tmp_path / SETTINGS).write_bytes(settings_of(place))
    assert place_of(tmp_path).ddi == place.ddi


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("ddi = 5\n", "'ddi' must be a section, [ddi]"),
        ("[ddi]\n", "the key 'listen' is missing in [ddi]; add it, or remove the section"),
        ("[ddi]\nlisten = '8444'\nurl = 'https://x'\n", "'listen' in [ddi] must be an address such as"),
        ("[ddi]\nlisten = 'x:99999'\nurl = 'https://x'\n", "'listen' in [ddi] must be an address such as"),
        ("[ddi]\nlisten = 'x:1'\nurl = 'http://x'\n", "'url' in [ddi] must be an address such as https://"),
        ("[ddi]\nlisten = 'x:1'\nurl = 'https://x/'\n", "'url' in [ddi] must be an address such as https://"),
        ("[ddi]\nlisten = 'x:1'\nurl = 'https://x'\ntenant = 'a/b'\n", "'tenant' in [ddi] must be a text of at most 32"),
        ("[ddi]\nlisten = 'x:1'\nurl = 'https://x'\npoll_s = 1\n", "'poll_s' in [ddi] must be a whole number from 10"),
        ("[ddi]\nlisten = 'x:1'\nurl = 'https://x'\ntls = '1.2'\n", "unknown key 'tls' in [ddi]"),
    ],
)
def test_a_listener_for_ddi_that_cannot_be_used_is_refused(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / SETTINGS).write_text(SERVER + lines)
    with pytest.raises(RegistryError) as caught:
        place_of(tmp_path)
    assert said in str(caught.value)
