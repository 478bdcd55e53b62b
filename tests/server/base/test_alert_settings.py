"""The section [alerts] of the server's settings."""

from pathlib import Path

import pytest

from server.base.errors import RegistryError
from server.base.settings import SETTINGS, place_of, settings_of

HEAD = 'database = "sqlite:////x/server.db"\nmaster_key = "/x/master.key"\n'
MAIL = 'mail_relay = "smtp.shop.example:587"\nmail_from = "server@shop.example"\nmail_to = ["ops@shop.example"]\n'


def write(directory: Path, section: str) -> None:
    file = directory / SETTINGS
    file.touch(0o600)
    file.write_text(f"{HEAD}{section}")


def test_channels_are_read_and_written_back(tmp_path: Path) -> None:
    write(tmp_path, f'[alerts]\nalertmanagers = ["http://127.0.0.1:9093", "https://am.shop.example/alerts"]\n{MAIL}')
    place = place_of(tmp_path)
    assert place.alerts is not None
    assert place.alerts.alertmanagers == ("http://127.0.0.1:9093", "https://am.shop.example/alerts")
    mail = place.alerts.mail
    assert mail is not None
    assert (mail.relay, mail.sender, mail.recipients) == (
        ("smtp.shop.example", 587),
        "server@shop.example",
        ("ops@shop.example",),
    )
    assert (mail.least, mail.tls, mail.user) == ("warning", "starttls", None)
    (tmp_path / SETTINGS).write_bytes(settings_of(place))
    assert place_of(tmp_path) == place


def test_without_the_section_there_is_no_channel(tmp_path: Path) -> None:
    write(tmp_path, "")
    assert place_of(tmp_path).alerts is None


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("alerts = 3\n", r"must be a section, \[alerts\]"),
        ('[alerts]\nalertmanager = "x"\n', "unknown key 'alertmanager'"),
        ('[alerts]\nalertmanagers = []\n', "must be a list of 1 to 8 addresses"),
        ('[alerts]\nalertmanagers = ["ftp://x"]\n', "and 'ftp://x' is not one"),
        ('[alerts]\nalertmanagers = ["http://user:secret@x"]\n', "is not one"),
        ('[alerts]\nmail_from = "a@b.example"\n', "mail needs mail_relay and mail_to too"),
        (f'[alerts]\n{MAIL}mail_user = "u"\n', "mail_user and mail_password_file belong together"),
        (f'[alerts]\n{MAIL}mail_tls = "none"\n', "is for a relay on this machine"),
        (f'[alerts]\n{MAIL}mail_tls = "ssl"\n', 'must be "starttls", "tls" or "none"'),
        (f'[alerts]\n{MAIL}mail_least = "high"\n', 'must be "info", "warning" or "critical"'),
        (f'[alerts]\n{MAIL.replace(":587", "")}', "must be an address such as"),
        (f'[alerts]\n{MAIL.replace("ops@", "ops@x, y@")}', "must have mail addresses"),
        (
            '[alerts]\nmail_relay = "127.0.0.1:25"\nmail_from = "a@b"\nmail_to = ["c@d"]\nmail_tls = "none"\nmail_user = "u"\n'
            'mail_password_file = "/x"\n', "would send the password without encryption",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(tmp_path: Path, section: str, problem: str) -> None:
    write(tmp_path, section)
    with pytest.raises(RegistryError, match=problem):
        place_of(tmp_path)
