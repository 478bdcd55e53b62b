"""Alerts from an agent through the real link to a foreign receiver, which checks them by the guide's example alone."""

import asyncio
import contextlib
import http.server
import json
import os
import re
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.audit.log import actor
from agentd.base.alerts import SECRET_EXPIRED
from agentd.base.clock.clock import Clock
from agentd.base.config.config import Config, parse_config
from agentd.base.errors import Refused
from agentd.daemon import Daemon
from agentd.enrollment import by_hand
from agentd.sockets.connection import Hub
from agentd.wiring import assemble, connect
from hwsec.owner import HardwareOwner
from ipc.peer import Peer
from server.wiring import Plan, create_server
from tests.hwsec.memory_backend import MemoryBackend, MemoryDevice
from tests.support.link import Link
from tests.support.pki import DAY, SERVER, Entity, make
from tests.support.serverside import open_server
from tests.support.stand import Stand, running_stand, short_directory
from tests.support.waiting import wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "alerts.md").read_text("utf-8")
ROOT = Peer(0, 0, 1)


class Receiver:
    """A receiver of alerts as somebody else would write it: http.server over TLS, and the example of the guide."""

    def __init__(self, directory: Path, entity: Entity) -> None:
        names: dict[str, Any] = {}
        example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
        assert example is not None
        exec(compile(example[1], "alerts.md", "exec"), names)
        self.keys: list[str] = []
        self.status = 204
        self.seen: list[tuple[dict[str, Any], list[bool]]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                header = self.headers["License-Agent-Signature"]
                right = [names["is_from_the_agent"](header, body, key) for key in receiver.keys]
                receiver.seen.append((json.loads(body), right))
                assert self.path == "/hooks/alerts"
                self.send_response(receiver.status)
                if receiver.status == 308:
                    self.send_header("Location", "/hooks/other")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (directory / "cert.pem").write_text(entity.chain_pem)
        (directory / "key.pem").write_bytes(entity.key_pem)
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    now = int(time.time())
    root = make("root", authority=True, begins=now - DAY, ends=now + DAY)
    entity = make("ops", root, hosts=["127.0.0.1"], usage=SERVER, begins=now - DAY, ends=now + DAY)
    (tmp_path / "ca.pem").write_text(root.chain_pem)
    (tmp_path / "ca.pem").chmod(0o644)
    with contextlib.closing(Receiver(tmp_path, entity)) as made:
        yield made


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand() as running:
        yield running


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.mark.system
def test_alerts_arrive_signed_once_and_survive_a_restart(
    tmp_path: Path, place: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("state", "log"):
        (tmp_path / name).mkdir()
    config = _config(tmp_path, place)
    device = MemoryDevice()
    make_backend = lambda _config, _vault: MemoryBackend(device)  # noqa: E731
    monkeypatch.setattr(by_hand, "make_backend", make_backend)
    create_server(tmp_path / "server", Plan("server", ("localhost",), tmp_path / "root.key", None), int(time.time()))
    with contextlib.closing(open_server(tmp_path / "server", lambda size: b"s" * size)) as server:
        by_hand.initialize(config, server.keys.trust())
    link = Link(place)
    ca = f'ca_file = "{tmp_path}/ca.pem"\nallow_addresses = ["127.0.0.1/32"]\n'
    link.configure(f'[upstream.webhook]\nurl = "https://127.0.0.1:{receiver.port}/hooks/alerts"\n{ca}')
    link.start()
    owner = HardwareOwner()

    async def open_agent() -> Daemon:
        clock = Clock()
        hub = Hub(clock.monotonic)
        daemon = Daemon(connect(await owner.run(lambda: assemble(config, clock, hub, owner, make_backend), 30)))
        await daemon.start()
        return daemon

    async def first() -> None:
        daemon = await open_agent()
        webhook, audit = daemon.agent.webhook, daemon.agent.parts.core.audit
        attempt = await webhook.test()
        assert not attempt.taken and "webhook-key new" in attempt.problem and receiver.seen == []
        _, key = await webhook.keys.new(actor(ROOT))
        receiver.keys = [key]
        assert (await webhook.test()).taken
        audit.raise_alert(SECRET_EXPIRED, "grace has ended")
        webhook.look()
        await webhook.deliver()
        assert [(content["alert"], right) for content, right in receiver.seen] == [
            ("webhook.test", [True]),
            ("alert.secret_expired", [True]),
        ]
        # Two keys while one is replaced: a receiver with either accepts.
        former_id, (new_id, new) = webhook.keys.view()[0]["id"], await webhook.keys.new(actor(ROOT))
        receiver.keys = [key, new, "lawh_other"]
        assert (await webhook.test()).taken and receiver.seen[-1][1] == [True, True, False]
        with pytest.raises(Refused, match="two keys sign already"):
            await webhook.keys.new(actor(ROOT))
        assert await webhook.keys.end("", actor(ROOT)) == former_id
        with pytest.raises(Refused, match="to end the only one, name it"):
            await webhook.keys.end("", actor(ROOT))
        with pytest.raises(Refused, match="there is no key nothing"):
            await webhook.keys.end("nothing", actor(ROOT))
        assert [each["id"] for each in webhook.keys.view()] == [new_id]
        # The receiver fails; what waits is kept.
        receiver.status = 503
        audit.clear_alert(SECRET_EXPIRED, "a successor has come")
        webhook.look()
        await webhook.deliver()
        assert webhook.queue.problem == "the receiver answers 503"
        await daemon.finish()
        for file in (tmp_path / "state").iterdir():
            data = file.read_bytes() if file.is_file() else b""
            assert key.encode() not in data and new.encode() not in data and key[5:].encode() not in data

    async def second() -> None:
        receiver.status = 200
        daemon = await open_agent()
        await daemon.agent.webhook.deliver()
        refused, taken = receiver.seen[-2:]
        assert refused == taken and taken[0]["state"] == "cleared" and taken[1][:2] == [False, True]
        count = len(receiver.seen)
        await daemon.agent.webhook.deliver()
        assert len(receiver.seen) == count
        # A redirect leads where nobody has allowed: it is refused, and not followed.
        receiver.status = 308
        attempt = await daemon.agent.webhook.test()
        assert not attempt.taken and "308, a redirect" in attempt.problem and len(receiver.seen) == count + 1
        link.stop()
        attempt = await daemon.agent.webhook.test()
        assert not attempt.taken and "no link answers" in attempt.problem
        await daemon.finish()

    asyncio.run(first())
    asyncio.run(second())


@pytest.mark.system
def test_an_administrator_makes_replaces_and_ends_keys_by_commands(stand: Stand) -> None:
    def cli(*arguments: str, status: int = 0) -> str:
        done = stand.run("license-agent-cli", *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert "use --out FILE" in cli("webhook-key", "new", status=2)
    files = [stand.root / "first.key", stand.root / "second.key"]
    for file in files:
        assert f"written to {file}" in cli("webhook-key", "new", "--out", str(file))
        assert file.stat().st_mode & 0o777 == 0o600
    first, second = (file.read_text() for file in files)
    assert re.fullmatch(r"lawh_[A-Za-z0-9_-]{43}\n", first) and first != second
    third = stand.root / "third.key"
    assert "two keys sign already" in cli("webhook-key", "new", "--out", str(third), status=4) and not third.exists()
    assert "File exists" in cli("webhook-key", "new", "--out", str(files[0]), status=2) and files[0].read_text() == first
    shown = json.loads(cli("--json", "webhook-key", "show-id"))["keys"]
    assert len(shown) == 2 and set(shown[0]) == {"id", "created_at"}
    assert f"key {shown[1]['id']} signs nothing any more" in cli("webhook-key", "end", "--yes")
    assert "name it" in cli("webhook-key", "end", "--yes", status=4)
    ended = json.loads(cli("--json", "webhook-key", "end", "--yes", "--id", shown[0]["id"]))
    assert (ended["key_id"], ended["keys"]) == (shown[0]["id"], 0)
    assert "off: set webhook = true" in cli("webhook", "status")
    assert "set webhook = true" in cli("webhook", "test", status=4)
    assert "dead letters to be sent again: 0" in cli("webhook", "retry")


@pytest.mark.system
def test_the_agents_own_process_sends_what_happens(stand: Stand, tmp_path: Path, receiver: Receiver) -> None:
    """Agent, link and receiver are three processes: what the agent notices by itself arrives, and an administrator's test."""
    info = stand.info
    ca = stand.root / "etc" / "ca.pem"
    ca.write_bytes((tmp_path / "ca.pem").read_bytes())
    ca.chmod(0o644)
    with (stand.root / "etc" / "link.toml").open("a") as link:
        link.write(f'[upstream.webhook]\nurl = "https://127.0.0.1:{receiver.port}/hooks/alerts"\nca_file = "{ca}"\n')
        link.write('allow_addresses = ["127.0.0.1/32"]\n')
    os.kill(info["link_pid"], signal.SIGTERM)  # it reads the file when it starts, and the stand starts it again
    wait_until(lambda: stand.info["link_pid"] not in (0, info["link_pid"]), "the link does not come back")
    with Path(info["config"]).open("a") as config:
        config.write("[alerts]\nwebhook = true\n")
        config.write(f'[backup]\ndirectory = "{stand.root}/backups"\nrecipients = "age1{"q" * 58}"\n')
    assert stand.run("license-agent-cli", "webhook-key", "new", "--out", str(stand.root / "key")).returncode == 0
    receiver.keys = [(stand.root / "key").read_text().strip()]
    assert stand.run("license-stand", "restart", "--dir", str(stand.root)).returncode == 0
    wait_until(lambda: receiver.seen, lambda: stand.run("license-agent-cli", "webhook", "status").stdout)
    assert stand.run("license-agent-cli", "webhook", "test").returncode == 0
    got = {(content["alert"], content["state"]): right for content, right in list(receiver.seen)}
    assert got[("alert.backup_overdue", "raised")] == [True]
    assert all(right == [True] for right in got.values()) and any(alert == "webhook.test" for alert, _ in got)


def _config(directory: Path, run: Path) -> Config:
    return parse_config(
        f'[agent]\nid = "pos-1"\n[tpm]\nenabled = false\nfallback_encrypted_storage = "{directory}/state/secret.enc"\n'
        f'[alerts]\nwebhook = true\n[paths]\nstate_dir = "{directory}/state"\nlog_dir = "{directory}/log"\nrun_dir = "{run}"\n',
        "test",
    )
