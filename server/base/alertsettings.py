"""Reads the section [alerts] of the server's settings: the Alertmanagers and the mail relay that alerts are sent to. Pure."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings.sections import Key, Sections
from settings.values import BadValue, absolute_path, matching

ALERTS = "alerts"
"""The section's name."""
MAX_RECIPIENTS = 20
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)"
_URL = re.compile(rf"https?://{_HOST}(:[0-9]{{1,5}})?(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?")
_RELAY = re.compile(rf"(?P<host>{_HOST}):(?P<port>[0-9]{{1,5}})")
_ADDRESS = re.compile(r"[A-Za-z0-9._%+=-]{1,64}@[A-Za-z0-9.-]{1,190}")
_LEAST = re.compile(r"info|warning|critical")
_TLS = re.compile(r"starttls|tls|none")
_USER = re.compile(r"[!-~]{1,128}")
LOOPBACK = ("127.0.0.1", "[::1]", "localhost")


@dataclass(frozen=True, slots=True)
class MailPlace:
    """How mail is sent.

    Attributes:
        relay: host and port of the relay.
        sender: the address that it is from.
        recipients: the addresses that it goes to.
        least: the lowest severity that is sent.
        tls: starttls, tls, or none for a relay on this machine.
        user: for the relay; None for none.
        password_file: its first line is the password; a file that nobody else may read.
        ca: file of the CAs of the relay, in PEM; None for those of the system.
    """

    relay: tuple[str, int]
    sender: str
    recipients: tuple[str, ...]
    least: str = "warning"
    tls: str = "starttls"
    user: str | None = None
    password_file: Path | None = None
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class AlertsPlace:
    """Where alerts are sent to besides webhooks.

    Attributes:
        alertmanagers: addresses of Alertmanagers, such as http://127.0.0.1:9093.
        mail: how mail is sent; None for no mail.
        table: the section as it was written.
    """

    alertmanagers: tuple[str, ...]
    mail: MailPlace | None
    table: dict[str, Any]


def alerts_table(value: Any) -> dict[str, Any]:
    """Reads the section as a whole; `alerts_place` reads what is in it."""
    if not isinstance(value, dict):
        raise BadValue("must be a section, [alerts]")
    return value


def _several(pattern: re.Pattern[str], most: int, what: str) -> Any:
    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise BadValue(f"must be a list of 1 to {most} {what}")
        for each in value:
            if not isinstance(each, str) or not pattern.fullmatch(each):
                raise BadValue(f"must have {what}, and {str(each)[:100]!r} is not one")
        return tuple(value)

    return read


def _relay(value: Any) -> tuple[str, int]:
    found = _RELAY.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < int(found["port"]) <= 65_535:
        raise BadValue('must be an address such as "smtp.shop.example:587"')
    return found["host"], int(found["port"])


_KEYS = {
    "alertmanagers": Key(_several(_URL, 8, "addresses such as http://127.0.0.1:9093")),
    "mail_relay": Key(_relay),
    "mail_from": Key(matching(_ADDRESS, "must be a mail address")),
    "mail_to": Key(_several(_ADDRESS, MAX_RECIPIENTS, "mail addresses")),
    "mail_least": Key(matching(_LEAST, 'must be "info", "warning" or "critical"')),
    "mail_tls": Key(matching(_TLS, 'must be "starttls", "tls" or "none"')),
    "mail_user": Key(matching(_USER, "must be a name of at most 128 characters without blanks")),
    "mail_password_file": Key(absolute_path),
    "mail_ca": Key(absolute_path),
}


def alerts_place(sections: Sections) -> AlertsPlace | None:
    """Where the settings send alerts to; None without the section. Problems stay in `sections`, for its `check`."""
    if ALERTS not in sections.content:
        return None
    before = len(sections.problems)
    found = sections.section(ALERTS, _KEYS, optional=True)
    if len(sections.problems) > before:
        return None
    mail, problem = _mail(found)
    if problem is not None:
        sections.problem(f"[{ALERTS}]: {problem}")
    return AlertsPlace(found.get("alertmanagers", ()), mail, dict(sections.content[ALERTS]))


def _mail(found: dict[str, Any]) -> tuple[MailPlace | None, str | None]:
    given = {
        name.removeprefix("mail_"): value for name, value in found.items() if name.startswith("mail_") and value is not None
    }
    if not given:
        return None, None
    missing = [f"mail_{name}" for name in ("relay", "from", "to") if name not in given]
    if missing:
        return None, f"mail needs {' and '.join(missing)} too"
    if ("user" in given) != ("password_file" in given):
        return None, "mail_user and mail_password_file belong together"
    if given.get("tls") == "none" and given["relay"][0] not in LOOPBACK:
        return (
            None,
            'mail_tls = "none" is for a relay on this machine: others could read mail on its way',
        )
    if given.get("tls") == "none" and "user" in given:
        return None, 'mail_tls = "none" would send the password without encryption'
    sender, recipients = given.pop("from"), given.pop("to")
    return MailPlace(sender=sender, recipients=recipients, **given), None
