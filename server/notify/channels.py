"""What sends alerts to the channels that the settings name, besides webhooks: work for jobs, so that a failure is repeated.

A failure is in the log, in the metrics of the job, and in the alert rule about late jobs.
"""

import logging
from collections.abc import Callable
from functools import partial

from server.base.alertsettings import AlertsPlace
from server.registry.database import Database

from .alertmanager import Alertmanagers, NotTaken, alerts_for
from .mail import AlertMail, Mailer, NotSent

ALERTMANAGER, MAIL = "alertmanager", "mail"
"""Names of the jobs."""
_log = logging.getLogger("license_server")


def channels(place: AlertsPlace | None, database: Database, wall: Callable[[], float]) -> dict[str, Callable[[int], None]]:
    """The work of each channel, by the name of its job.

    Args:
        place: the channels of the settings.
        database: the registry's.
        wall: seconds since 1970 UTC.
    """
    found: dict[str, Callable[[int], None]] = {}
    if place is not None and place.alertmanagers:
        found[ALERTMANAGER] = partial(send_state, database, Alertmanagers(place.alertmanagers))
    if place is not None and place.mail is not None:
        found[MAIL] = partial(send_mail, AlertMail(database, place.mail, Mailer(place.mail, wall)))
    return found


def send_state(database: Database, alertmanagers: Alertmanagers, now: int) -> None:
    """Sends the alerts as they are now. Raises NotTaken: an Alertmanager has not taken them; the log says why."""
    with database.read() as session:
        alerts = alerts_for(session, now)
    try:
        alertmanagers.send(alerts)
    except NotTaken as problem:
        _log.error("alerts could not be sent to an Alertmanager", extra={"fields": {"why": str(problem)[:500]}})
        raise


def send_mail(mail: AlertMail, _now: int) -> None:
    """Sends alerts by mail. Raises NotSent: the relay has not taken them, and gets them later; the log says why."""
    try:
        mail.run()
    except NotSent as problem:
        _log.error("alerts could not be sent by mail", extra={"fields": {"why": str(problem)[:500]}})
        raise
