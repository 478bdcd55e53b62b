"""Sends alerts by mail: each event of the feed once, those that wait together in one message.

How far that is, is a number in the registry. It goes on once the relay has taken the message, so nothing is lost while the
relay is away; a process that is killed in between sends the same again. A message names fleets and figures, and no device.
"""

import logging
import smtplib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

from sqlalchemy.orm import Session

from common.files import os_problem
from server.base import privatefile
from server.base.alertsettings import MailPlace
from server.base.errors import RegistryError
from server.fleet.monitoring.rules import Severity
from server.registry import events
from server.registry.database import Database
from server.registry.events import EventRow
from server.registry.models.core import Setting
from server.registry.models.monitoring import FleetAlert

STATE = "alerts.mail"
"""The setting that has the number of the last event that is done."""
BATCH = 200
"""Events of the feed that one look reads."""
MAX_ALERTS = 100
"""Alerts of one message; further ones are in the next."""
Connect = Callable[[MailPlace, ssl.SSLContext], smtplib.SMTP]
TIMEOUT_S = 20.0
"""For each step with the relay."""
_log = logging.getLogger("license_server")


class NotSent(Exception):
    """The relay has not taken a message. The text says why, without the password."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message.

    Attributes:
        subject: one line.
        body: text.
    """

    subject: str
    body: str


class Mailer:
    """Gives messages to a relay.

    Args:
        place: how.
        wall: seconds since 1970 UTC.
        connect: makes a connection to the relay, not yet used.
    """

    def __init__(
        self,
        place: MailPlace,
        wall: Callable[[], float],
        connect: Connect | None = None,
    ) -> None:
        self._place = place
        self._wall = wall
        self._connect = connect or _connect

    def send(self, message: Message) -> None:
        """Gives a message to the relay.

        One that it takes for some recipients is sent: to repeat it would reach those again and again. The log names the others.

        Raises:
            NotSent: the relay has taken it for nobody.
        """
        place = self._place
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = place.sender, ", ".join(place.recipients), message.subject
        mail["Date"] = format_datetime(datetime.fromtimestamp(int(self._wall()), UTC))
        mail["Message-ID"] = make_msgid(domain=place.sender.partition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.body)
        context, password = _context(place), _password(place)
        try:
            with self._connect(place, context) as relay:
                if place.tls == "starttls":
                    relay.starttls(context=context)
                if place.user is not None and password is not None:
                    relay.login(place.user, password)
                refused = relay.send_message(mail, place.sender, list(place.recipients))
        except smtplib.SMTPAuthenticationError as problem:
            # What the relay says may repeat what it was sent.
            raise NotSent(f"the relay does not accept the user or password (it answers {problem.smtp_code})") from None
        except smtplib.SMTPException as problem:
            raise NotSent(f"the relay has not taken it: {type(problem).__name__}{_code(problem)}") from None
        except ssl.SSLError as problem:
            raise NotSent(f"TLS with the relay fails: {problem.reason or type(problem).__name__}") from None
        except OSError as problem:
            raise NotSent(f"the relay cannot be reached: {problem.strerror or type(problem).__name__}") from None
        if refused:
            fields = {"recipients": sorted(refused)}
            _log.warning("the relay does not accept all recipients of alerts ('mail_to')", extra={"fields": fields})


def _connect(place: MailPlace, context: ssl.SSLContext) -> smtplib.SMTP:
    host, port = place.relay[0].strip("[]"), place.relay[1]
    name = place.sender.partition("@")[2] or socket.gethostname()
    if place.tls == "tls":
        return smtplib.SMTP_SSL(host, port, name, timeout=TIMEOUT_S, context=context)
    return smtplib.SMTP(host, port, name, timeout=TIMEOUT_S)


def _context(place: MailPlace) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if place.ca is None else str(place.ca))
    except OSError as problem:  # ssl.SSLError is one
        raise NotSent(f"the CAs in {place.ca} ('mail_ca') cannot be loaded: {os_problem(problem)}") from None


def _password(place: MailPlace) -> str | None:
    if place.password_file is None:
        return None
    try:
        return privatefile.read(place.password_file, "the relay's password").decode("utf-8").split("\n", 1)[0].strip()
    except RegistryError as problem:
        raise NotSent(str(problem)) from None
    except UnicodeDecodeError:
        raise NotSent(f"{place.password_file} ('mail_password_file') is not UTF-8") from None


def _code(problem: smtplib.SMTPException) -> str:
    code = getattr(problem, "smtp_code", None)
    return "" if code is None else f" (it answers {code})"


class AlertMail:
    """Sends the alerts of the feed.

    Args:
        database: the registry's.
        place: how mail is sent.
        mailer: sends.
    """

    def __init__(self, database: Database, place: MailPlace, mailer: Mailer) -> None:
        self._database = database
        self._least = Severity(place.least)
        self._mailer = mailer

    def run(self) -> int:
        """Sends what waits; returns how many alerts that were.

        Raises:
            NotSent: the relay has not taken a message. It waits for the next run.
        """
        count = 0
        while True:
            with self._database.write() as session:
                row = session.get(Setting, STATE, with_for_update=True)
                if row is None:  # the first time: what was before is history
                    session.add(Setting(name=STATE, value=str(events.newest(session))))
                    return 0
                after = int(row.value)
            with self._database.read() as session:
                found = events.listed(session, after, BATCH)
                chosen = [each for each in found if self._is_sent(each)][:MAX_ALERTS]
                done = chosen[-1].seq if len(chosen) == MAX_ALERTS else found[-1].seq if found else after
                message = message_of(session, chosen) if chosen else None
            if done == after:
                return count
            if message is not None:
                self._mailer.send(message)
                count += len(chosen)
            with self._database.write() as session:
                row = session.get(Setting, STATE, with_for_update=True)
                if row is not None and int(row.value) == after:  # nobody else has sent the same meanwhile
                    row.value = str(done)

    def _is_sent(self, event: EventRow) -> bool:
        return event.kind in ("alert.raised", "alert.cleared") and Severity(event.fields["severity"]).rank >= self._least.rank


def message_of(session: Session, found: Sequence[EventRow]) -> Message:
    """The message about some events, at least one.

    Args:
        session: of any transaction.
        found: events of alerts.
    """
    lines = []
    for each in found:
        row, fields = session.get(FleetAlert, each.subject), each.fields
        about = f"fleet {fields['fleet']}, {fields['about']}" + ("" if row is None else f": {row.detail}")
        at = datetime.fromtimestamp(each.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        lines.append(f"{at}  {_happened(each):<7}  {fields['severity']:<8}  {about}")
    first = found[0].fields
    subject = f"[{first['severity']}] fleet {first['fleet']}: {first['about']} {_happened(found[0])}"
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    advice = "'license-server fleets alerts list' lists what is open; 'fleets alerts silence' stops messages for a while."
    return Message(subject + more, "\n".join([*lines, "", advice, ""]))


def _happened(event: EventRow) -> str:
    return event.kind.removeprefix("alert.")
