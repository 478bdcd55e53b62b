"""Alerts go to Alertmanagers and to a mail relay, over real sockets; what cannot be sent waits and is told."""

import json
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from server import serving
from server.base.alertsettings import AlertsPlace, MailPlace
from server.notify import mail
from server.notify.alertmanager import CLEARED_S, LASTS_S, PATH, Alertmanagers, NotTaken, alerts_for
from server.notify.channels import channels, send_mail, send_state
from server.notify.mail import AlertMail, Mailer, Message, NotSent
from server.registry import events
from server.registry.models.monitoring import FleetAlert
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

pytestmark = pytest.mark.system


class Peer:
    """A server on a loopback port that speaks line by line, and keeps what it was sent."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.status = "200 OK"
        self.refuses = b""
        peer = self

        class Http(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                head = self.rfile.readline().decode()
                size = 0
                while (line := self.rfile.readline().decode().strip()) != "":
                    name, _, value = line.partition(":")
                    size = int(value) if name.lower() == "content-length" else size
                peer.received.append(head + self.rfile.read(size).decode())
                self.wfile.write(f"HTTP/1.1 {peer.status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        class Smtp(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 relay\r\n")
                while line := self.rfile.readline():
                    if peer.refuses and line.upper().startswith(peer.refuses):
                        self.wfile.write(b"550 no: " + line)
                    elif line.upper().startswith(b"QUIT"):
                        self.wfile.write(b"221 bye\r\n")
                        return
                    elif line.upper().startswith(b"DATA"):
                        self.wfile.write(b"354 go\r\n")
                        text = b""
                        while (part := self.rfile.readline()) != b".\r\n":
                            text += part
                        peer.received.append(text.decode())
                        self.wfile.write(b"250 taken\r\n")
                    else:
                        self.wfile.write(b"250 ok\r\n")

        self.http, self.smtp = Http, Smtp
        self.port = 0


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(kind: str) -> Peer:
        peer = Peer()
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), getattr(peer, kind))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        peer.port = server.server_address[1]
        return peer

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def url() -> None:
    """SQLite: there is nothing here that the databases do in different ways."""


def raise_alert(
    server: ServerSide, alert_id: str, severity: str = "warning", told: str | None = "warning", cleared_at: int | None = None
) -> None:
    with server.database.write() as session:
        session.add(
            FleetAlert(
                id=alert_id, fleet_id="tills", kind=f"kind-{alert_id}", severity=severity, value=0.1, bound=0.05, told=told,
                state="raised" if cleared_at is None else "cleared", detail="10 % of the contacts failed", raised_at=NOW,
                updated_at=NOW, cleared_at=cleared_at,
            )
        )  # fmt: skip
        if told is not None:
            about = {"alert": alert_id, "fleet": "tills", "about": f"kind-{alert_id}", "severity": severity}
            events.emit(session, "alert.raised", NOW, **about)


def test_an_alertmanager_gets_what_is_open_and_what_was_cleared_lately(server: ServerSide, serve: Any) -> None:
    peer = serve("http")
    raise_alert(server, "fa-1")
    raise_alert(server, "fa-2", "critical", cleared_at=NOW - 60)
    raise_alert(server, "fa-3", told=None)  # silenced
    raise_alert(server, "fa-4", cleared_at=NOW - CLEARED_S - 1)
    send_state(server.database, Alertmanagers([f"http://127.0.0.1:{peer.port}"]), NOW)
    [request] = peer.received
    head, body = request.split("\r\n", 1)
    assert head == f"POST {PATH} HTTP/1.1"
    found = {each["labels"]["alert"]: each for each in json.loads(body)}
    assert set(found) == {"fa-1", "fa-2"}
    assert found["fa-1"]["labels"] == {
        "alertname": "fleet-kind-fa-1", "fleet": "tills", "severity": "warning", "alert": "fa-1", "job": "license-server",
    }  # fmt: skip
    assert found["fa-1"]["annotations"]["summary"] == "Fleet tills: 10 % of the contacts failed"
    times = [(found[name]["startsAt"], found[name]["endsAt"]) for name in ("fa-1", "fa-2")]
    assert times == [(stamp(NOW), stamp(NOW + LASTS_S)), (stamp(NOW), stamp(NOW - 60))]


def stamp(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_one_alertmanager_that_is_away_keeps_no_other_from_its_alerts_and_is_told(server: ServerSide, serve: Any) -> None:
    peer, refusing = serve("http"), serve("http")
    refusing.status = "503 Service Unavailable"
    raise_alert(server, "fa-1")
    urls = ["http://127.0.0.1:1", f"http://127.0.0.1:{refusing.port}/am", f"http://127.0.0.1:{peer.port}"]
    with pytest.raises(NotTaken) as told:
        send_state(server.database, Alertmanagers(urls), NOW)
    assert "http://127.0.0.1:1: the connection is refused" in str(told.value)
    assert f"{refusing.port}/am: it answers 503" in str(told.value)
    assert len(peer.received) == 1
    assert refusing.received[0].startswith(f"POST /am{PATH} ")


def test_nothing_is_sent_where_there_is_no_alert(server: ServerSide) -> None:
    with server.database.read() as session:
        assert alerts_for(session, NOW) == []
    Alertmanagers(["http://127.0.0.1:1"]).send([])


def place_for(peer: Peer, **more: Any) -> MailPlace:
    return MailPlace(
        ("127.0.0.1", peer.port), "server@shop.example", ("ops@shop.example", "it@shop.example"), tls="none", **more
    )


def mail_to(server: ServerSide, peer: Peer, **more: Any) -> AlertMail:
    place = place_for(peer, **more)
    return AlertMail(server.database, place, Mailer(place, lambda: NOW))


def test_alerts_that_wait_are_in_one_message_and_each_is_sent_once(server: ServerSide, serve: Any) -> None:
    peer = serve("smtp")
    raise_alert(server, "fa-0")  # before the first look, and so history
    alerts = mail_to(server, peer)
    assert alerts.run() == 0
    raise_alert(server, "fa-1")
    raise_alert(server, "fa-2", "info")  # below what is sent
    raise_alert(server, "fa-3", "critical")
    assert alerts.run() == 2
    assert alerts.run() == 0
    [text] = peer.received
    assert "Subject: [warning] fleet tills: kind-fa-1 raised and 1 more\r\n" in text
    assert "To: ops@shop.example, it@shop.example\r\n" in text
    assert "Auto-Submitted: auto-generated\r\n" in text
    assert "critical  fleet tills, kind-fa-3: 10 % of the contacts failed" in text.replace("=\r\n", "")
    assert "kind-fa-0" not in text
    assert "kind-fa-2" not in text


@pytest.mark.parametrize("refuses", [b"MAIL", b"RCPT", b"DATA"])
def test_what_the_relay_does_not_take_is_sent_later(server: ServerSide, serve: Any, refuses: bytes) -> None:
    peer = serve("smtp")
    alerts = mail_to(server, peer)
    alerts.run()
    raise_alert(server, "fa-1")
    peer.refuses = refuses
    for _ in range(2):
        with pytest.raises(NotSent, match="the relay has not taken it"):
            send_mail(alerts, NOW)
    peer.refuses = b""
    assert alerts.run() == 1
    assert len(peer.received) == 1


def test_one_recipient_that_is_refused_brings_the_others_no_second_message(server: ServerSide, serve: Any) -> None:
    peer = serve("smtp")
    peer.refuses = b"RCPT TO:<IT@"
    alerts = mail_to(server, peer)
    alerts.run()
    raise_alert(server, "fa-1")
    assert alerts.run() == 1
    assert alerts.run() == 0
    assert len(peer.received) == 1


def test_a_relay_that_is_away_is_told(server: ServerSide) -> None:
    peer = Peer()
    peer.port = 1
    alerts = mail_to(server, peer)
    alerts.run()
    raise_alert(server, "fa-1")
    with pytest.raises(NotSent, match="cannot be reached"):
        alerts.run()


def test_many_alerts_are_divided(server: ServerSide, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "MAX_ALERTS", 2)
    monkeypatch.setattr(mail, "BATCH", 3)
    peer = serve("smtp")
    alerts = mail_to(server, peer)
    alerts.run()
    for n in range(5):
        raise_alert(server, f"fa-{n}")
    assert alerts.run() == 5
    assert sum(text.count(" raised ") for text in peer.received) >= 5
    assert len(peer.received) == 3


def test_a_relay_without_tls_gets_no_message_where_tls_is_asked_for(serve: Any) -> None:
    peer = serve("smtp")
    place = MailPlace(("127.0.0.1", peer.port), "server@shop.example", ("ops@shop.example",))
    with pytest.raises(NotSent, match="SMTPNotSupportedError"):
        Mailer(place, lambda: NOW).send(Message("x", "y"))
    assert peer.received == []


def test_the_password_is_in_no_text(serve: Any, tmp_path: Path) -> None:
    peer = serve("smtp")
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("opensesame\n")
    place = place_for(peer, user="server", password_file=secret)
    with pytest.raises(NotSent) as told:
        Mailer(place, lambda: NOW).send(Message("x", "y"))
    assert "opensesame" not in str(told.value) + repr(place)


def test_a_password_that_others_may_read_and_cas_that_are_missing_are_told(serve: Any, tmp_path: Path) -> None:
    peer = serve("smtp")
    secret = tmp_path / "password"
    secret.write_text("opensesame\n")
    secret.chmod(0o644)
    for more, problem in (
        ({"user": "u", "password_file": secret}, "the relay's password"),
        ({"ca": tmp_path / "ca.pem"}, "'mail_ca'"),
    ):
        with pytest.raises(NotSent, match=problem):
            Mailer(place_for(peer, **more), lambda: NOW).send(Message("x", "y"))
    assert peer.received == []


def test_there_is_a_job_for_each_channel_of_the_settings(server: ServerSide) -> None:
    assert channels(None, server.database, lambda: NOW) == {}
    both = AlertsPlace(("http://127.0.0.1:9093",), MailPlace(("127.0.0.1", 25), "a@b", ("c@d",), tls="none"), {})
    found = channels(both, server.database, lambda: NOW)
    assert list(found) == list(serving.CHANNELS) == [plan.name for plan in serving.CHANNELS.values()]
