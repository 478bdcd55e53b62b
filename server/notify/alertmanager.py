"""Sends the alerts of fleets to Prometheus' Alertmanager, by its API v2 (`POST /api/v2/alerts`).

What is sent is the state and not an event: all open alerts that no silence covers, each with an end a little ahead, and those
that were cleared lately, with their end. So a message that is lost is made good by the next one, and an Alertmanager that was
away for an hour knows in a minute what is wrong now. If this server is gone, its alerts end there by themselves.

The addresses come from the settings of the server's machine, not from operators: they may be of the machine itself.
"""

import json
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpcore
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from common.addresses import networks
from common.version import VERSION
from server.fleet.monitoring.alerts import AlertState
from server.registry.models.monitoring import FleetAlert

from .connection import JudgedBackend, Resolve, cause, resolved

PATH = "/api/v2/alerts"
LASTS_S = 300
"""How long an open alert lasts there without another message: the job sends one each minute."""
CLEARED_S = 3600
"""For how long after its end an alert is sent as one that has ended."""
MAX_ALERTS = 2000
"""In one message; the newest. There is one open alert at most for each fleet and kind."""
TIMEOUT_S = 10.0
WHOLE_S = 20.0
MAX_REPLY_BYTES = 4096
_EVERYWHERE = networks(("0.0.0.0/0", "::/0"))


class NotTaken(Exception):
    """No Alertmanager has taken the alerts. The text says of each one why."""


def alerts_for(session: Session, now: int) -> list[dict[str, Any]]:
    """The alerts as Alertmanager takes them: those that are open or were cleared lately, and that the feed has.

    Args:
        session: of any transaction.
        now: seconds since 1970 UTC.
    """
    lately = or_(FleetAlert.state != AlertState.CLEARED.value, FleetAlert.cleared_at >= now - CLEARED_S)
    query = select(FleetAlert).where(FleetAlert.told.is_not(None), lately)
    rows = session.scalars(query.order_by(FleetAlert.updated_at.desc()).limit(MAX_ALERTS))
    return [_alert(row, now) for row in rows]


def _alert(row: FleetAlert, now: int) -> dict[str, Any]:
    # Routes go by the severity, so it is a label. One that changes makes another alert there, and the former one ends there.
    labels = {"alertname": f"fleet-{row.kind}", "fleet": row.fleet_id, "severity": row.severity, "alert": row.id}
    return {
        "labels": {**labels, "job": "license-server"},
        "annotations": {"summary": f"Fleet {row.fleet_id}: {row.detail}", "state": row.state},
        "startsAt": _time(row.raised_at),
        "endsAt": _time(now + LASTS_S if row.cleared_at is None else row.cleared_at),
    }


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Alertmanagers:
    """The Alertmanagers of the settings; a cluster of them gets each message at each of its members, as it wants.

    Args:
        urls: where they are, such as http://127.0.0.1:9093.
        context: verifies those with https; None for the system's CAs.
        resolve: returns the addresses of a name.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        urls: Sequence[str],
        context: ssl.SSLContext | None = None,
        resolve: Resolve = resolved,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = tuple(urls)
        self._context = context
        self._resolve = resolve
        self._monotonic = monotonic

    def send(self, alerts: Sequence[dict[str, Any]]) -> None:
        """Sends the alerts to all; without an alert, nothing is sent.

        Raises:
            NotTaken: one of them has not taken it. The others have been asked all the same.
        """
        if not alerts:
            return
        body = json.dumps(alerts, separators=(",", ":")).encode()
        problems = [f"{url}: {problem}" for url in self._urls if (problem := self._post(url, body)) is not None]
        if problems:
            raise NotTaken("; ".join(problems))

    def _post(self, url: str, body: bytes) -> str | None:
        """Why one has not taken it; None if it has. No redirect is followed."""
        headers = [(b"Content-Type", b"application/json"), (b"User-Agent", f"license-server/{VERSION}".encode())]
        extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)}
        end = self._monotonic() + WHOLE_S
        backend = JudgedBackend(_EVERYWHERE, self._resolve, lambda: end - self._monotonic(), "settings.toml")
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._context, network_backend=backend, retries=0) as pool,
                pool.stream("POST", url + PATH, headers=headers, content=body, extensions=extensions) as response,
            ):
                size = 0
                for chunk in response.iter_stream():
                    size += len(chunk)
                    if size > MAX_REPLY_BYTES:
                        break
                return None if 200 <= response.status < 300 else f"it answers {response.status}"
        except httpcore.TimeoutException:
            return f"no whole answer within {WHOLE_S:.0f} s"
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as problem:
            return cause(problem)
