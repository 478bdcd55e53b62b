"""The server's settings are read strictly, and what is wrong with them is said with what to do."""

from pathlib import Path

import pytest

from server.base.errors import RegistryError
from server.base.settings import SETTINGS, place_of, url_in


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
