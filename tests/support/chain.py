"""ServerSide, link and agent as processes of their own, put together on loopback as in the field.

    agent -> [hostile link ->] link -> relay -> server

The POS and the admin socket belong to the test and outlive the agent, as systemd's do: who asks while the agent is down waits.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from license_agent_client import LicenseClient
from sqlalchemy import select

from ipc.adminclient import AdminClient
from ipc.posclient.policy import AgentRefused, AgentUnavailable
from server.registry.models.core import Secret
from tests.support.apiserver import ApiServer
from tests.support.apiserver import run as server_command
from tests.support.daemon import Bench, Running
from tests.support.hostilelink import HostileLink
from tests.support.link import Link
from tests.support.outputs import assert_fits
from tests.support.relay import Relay
from tests.support.serverside import ServerSide
from tests.support.stand import BIN, short_directory
from tests.support.swtpm import Swtpm
from tests.support.waiting import READY_S, wait_until

HOST = "127.0.0.1"


class _Agent(Bench):
    """A device that is no agent yet. Its program can be told to end itself at a step of a rotation."""

    def __init__(self, root: Path, tpm: Swtpm | None) -> None:
        self._tpm = tpm
        super().__init__(root)
        self.kill_at = self.state / "kill-at"
        self.program = [sys.executable, str(Path(__file__).with_name("tracedagent.py"))]

    def write_config(self, extra: str = "", uids: list[int] | None = None) -> None:
        super().write_config(extra, uids)
        text = self.config.read_text().replace('id = "pos-009"\n', "")
        if self._tpm is not None:
            text = text.replace("enabled = false", f'enabled = true\ntcti = "{self._tpm.tcti}"')
        self.write_raw_config(text)

    @property
    def env(self) -> dict[str, str]:
        root = str(Path(__file__).resolve().parents[2])
        return {**super().env, "LICENSE_TEST_KILL_AT": str(self.state / "kill-at"), "PYTHONPATH": root}


class Chain:
    """The whole, running; made by `running_chain`.

    Attributes:
        agent: the agent's files.
        server: the server's process and registry.
        link: the real link's process.
        relay: between link and server.
        hostile: between agent and link, or None.
        agent_id: who the agent is; empty before it is provisioned.
        first_token: of a license, for a till to begin with; a test sets it.
    """

    def __init__(self, root: Path, stack: contextlib.ExitStack, *, tpm: bool, hostile: bool, interval: int, grace: int,
        url: str | None = None, serve: tuple[str, ...] = (), beside: "Chain | None" = None,
    ) -> None:  # fmt: skip
        self.root = root
        self._serve = serve
        self.agent_id = self.first_token = ""
        self._stack = stack
        chip = stack.enter_context(Swtpm(root / "tpm")) if tpm else None
        if beside is None:
            periods = ("--interval", str(interval), "--grace", str(grace))
            where = () if url is None else ("--database", url)
            directory = root / "license-server"
            server_command("init", "--dir", str(directory), "--root-key", str(root / "root.key"), *periods, *where)
            self.server = ApiServer(directory)
            stack.callback(self.server.stop)
            self.relay = stack.enter_context(Relay())
            self.start_server()
        else:
            self.server, self.relay = beside.server, beside.relay
        self.agent = _Agent(root, chip)
        self.hostile: HostileLink | None = None
        (root / "link").mkdir(mode=0o755)
        self.link = Link(root / "link")
        if hostile:
            self.hostile = stack.enter_context(HostileLink(self.agent.run_dir / "link.sock", self.link.socket))
        else:
            self.link.core_uid = self.agent.uid
            self.link.socket = self.agent.run_dir / "link.sock"
        self.configure_link("")
        stack.callback(self.link.stop)
        self.running = Running(self.agent, inherited=True, watchdog=False)
        stack.callback(self.running.close)
        self.running.wait_ready()

    # Processes

    @property
    def url(self) -> str:
        """Where the agent finds the server: the relay."""
        return f"https://{HOST}:{self.relay.port}"

    @property
    def bad(self) -> HostileLink:
        """The hostile link."""
        assert self.hostile is not None
        return self.hostile

    def start_server(self) -> None:
        """Starts it, on another port: the relay goes there."""
        self.server.start(*self._serve)
        self.relay.target = int(self.server.base.rpartition(":")[2])

    def kill_server(self) -> None:
        self.server.kill()

    def configure_link(self, text: str) -> None:
        """Restarts the link with another configuration."""
        if self.link.process is not None:
            self.link.stop()
        self.link.configure(text)
        self.link.start("--idle", "600")

    def kill_agent(self) -> None:
        """Ends it without warning and starts it again; returns when it is ready."""
        self.running.kill_and_restart()

    def agent_dies_at(self, step: str) -> None:
        """Has it kill itself at a step of the next rotation, as `agentd/rotation/runner.py` names them."""
        self.agent.kill_at.write_text(step)
        os.chown(self.agent.kill_at, self.agent.uid, self.agent.uid)

    def restart_dead_agent(self) -> None:
        """Waits until the agent has killed itself, and starts it again."""
        self.running.process.wait(READY_S)
        self.running.kill_and_restart()

    # Handles

    def admin(self, op: str, **fields: Any) -> dict[str, Any]:
        """A request to the agent's admin socket."""
        with AdminClient(self.agent.run_dir / "admin.sock", deadline=READY_S, agent_uid=self.agent.uid) as client:
            return client.call(op, **fields)

    def asks(self, op: str, **fields: Any) -> str:
        """The same for a request that may fail; what it failed with, empty if it did not."""
        try:
            self.admin(op, **fields)
        except (AgentRefused, AgentUnavailable) as error:
            return str(error)
        return ""

    def cli(self, *arguments: str, fine: tuple[int, ...] = (0,)) -> str:
        """`license-agent-cli`; its output."""
        command = [str(BIN / "license-agent-cli"), "--agent-uid", str(self.agent.uid), *arguments]
        done = subprocess.run(command, env=self.agent.env, capture_output=True, text=True, check=False, timeout=READY_S)
        assert done.returncode in fine, f"{arguments}: {done.returncode} {done.stderr}"
        return done.stdout + done.stderr

    def server_cli(self, *arguments: str) -> str:
        """`license-server` on this server's directory; its output."""
        return self.server.run(*arguments)

    @contextlib.contextmanager
    def server_side(self) -> Iterator[ServerSide]:
        """The server's registry, as its commands open it: quicker than a command."""
        with self.server.server_side() as server_side:
            yield server_side

    def pos(self) -> LicenseClient:
        """A POS client; a call may take long, since the agent may be down."""
        return LicenseClient(self.agent.run_dir / "pos.sock", deadline=READY_S, agent_uid=self.agent.uid)

    def log(self) -> str:
        """All logs, for a test that fails."""
        return f"--- agent\n{self.running.log()}\n--- link\n{self.link.log()}\n--- server\n{self.server.log()}"

    def records(self, event: str) -> list[dict[str, Any]]:
        """The agent's audit records of one kind."""
        return [record for record in self.agent.records() if record["event"] == event]

    # What tests do

    def wish(self, claim: str) -> dict[str, str]:
        """Fields of the admin request `provision`."""
        return {"url": self.url, "root": self.server.pins[0], "claim": claim}

    def provision(self) -> None:
        """Makes the device an agent with a first secret."""
        made = self.admin("provision", **self.wish(self.server.claim()))
        assert_fits("provision", made)
        self.agent_id = made["agent_id"]
        self.wait_until(lambda: self.mode() == "online")
        self.wait_until(lambda: self.asks("contact") == "")
        self.assert_agreed()

    def mode(self) -> str:
        """Of the agent; empty where it does not answer."""
        try:
            return str(self.admin("status")["mode"])
        except (AgentRefused, AgentUnavailable):
            return ""

    def issue(self, license_id: str) -> str:
        """A license under the newest confirmed secret."""
        options = ("--agent", self.agent_id, "--feature", "till", "--expires", "+1d", "--license-id", license_id)
        return self.server_cli("issue", *options).strip()

    def suspend(self, license_id: str, *, on: bool = True) -> None:
        """Suspends a license by the server's command, or reinstates it."""
        self.server_cli("licenses", "suspend" if on else "reinstate", license_id)

    def rotate_fails(self) -> str:
        """A rotation that must not come to its end; what the administrator is told."""
        told = self.asks("rotate")
        assert told, "the rotation has succeeded"
        return told

    def settle(self) -> None:
        """Contacts the server until it works and no rotation is under way: both sides agree then."""
        # Seldom enough for the server's rate limit, which counts these as well.
        self.wait_until(lambda: self.asks("contact") == "" and self.admin("status")["server"]["rotation"] == "idle", 0.5)
        self.assert_agreed()

    def wait_until(self, true: Callable[[], bool], pause_s: float = 0.05) -> None:
        wait_until(true, self.log, pause_s=pause_s)

    def newest(self) -> int:
        """Number of the agent's newest secret version."""
        return max((int(each["version"]) for each in self.admin("secrets")["secrets"]), default=0)

    def assert_agreed(self) -> None:
        """Exactly one version is ACTIVE on each side, and it is the same; what a side has given up, the other does not use."""
        ours = {each["version"]: each["state"] for each in self.admin("secrets")["secrets"]}
        with self.server_side() as server_side:
            rows = {row.version: row for row in server_side.secrets.listed(self.agent_id)}
        active = [version for version, state in ours.items() if state == "ACTIVE"]
        theirs = [version for version, row in rows.items() if row.state == "ACTIVE"]
        assert len(active) == 1 and active == theirs, f"agent {ours}, server {rows}\n{self.log()}"
        assert active[0] == max(ours), ours

    def let_old_versions_end(self) -> None:
        """As if time had passed for the server: it holds no more versions than it likes, however many rotations there were."""
        with self.server_side() as server_side, server_side.database.write() as session:
            rows = session.scalars(select(Secret).where(Secret.agent_id == self.agent_id).order_by(Secret.version)).all()
            for row in rows[:-3]:
                row.grace_until = row.valid_from

    def snapshot(self) -> dict[str, Any]:
        """All that the server's word can change of the agent."""
        status = self.admin("status")
        server = status["server"]
        return {
            "secrets": self.admin("secrets")["secrets"],
            "generation": status["store_generation"],
            **{name: server[name] for name in ("url", "serial", "key_set", "revocations", "revoked", "certificate_ends")},
        }


class Till:
    """Validates two tokens of one license over and over: the first one as it was, and the newest, kept in a file.

    Attributes:
        rounds: how often so far.
        wrong: what was not as it should be.
    """

    def __init__(self, chain: Chain, token: str, file: Path) -> None:
        self._chain = chain
        self._token = token
        self._file = file
        self._stop = threading.Event()
        self.rounds = 0
        self.wrong: list[str] = []
        file.write_text(token + "\n")

    @property
    def kept(self) -> str:
        """The token in the file."""
        return self._file.read_text().strip()

    @contextlib.contextmanager
    def working(self) -> Iterator["Till"]:
        """Works for the length of a block; nothing may have gone wrong at its end."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(READY_S)
        assert self.rounds > 0 and not self.wrong, self.wrong

    def _work(self) -> None:
        with self._chain.pos() as client:
            while not self._stop.wait(0.02):
                try:
                    verdicts = client.validate(self._token), client.validate_file(self._file)
                except Exception as error:
                    self.wrong.append(repr(error))
                    continue
                self.rounds += 1
                self.wrong += [f"{verdict.reason}" for verdict in verdicts if not verdict.valid]


@contextlib.contextmanager
def running_chain(
    *, provisioned: bool = True, tpm: bool = False, hostile: bool = True, interval: int = 86_400, grace: int = 604_800,
    url: str | None = None, serve: tuple[str, ...] = (), beside: Chain | None = None,
) -> Iterator[Chain]:  # fmt: skip
    """A chain for the length of a block.

    Args:
        provisioned: make the device an agent at once.
        tpm: on an emulated TPM instead of the software backend.
        hostile: put a hostile link between agent and link; it is honest until told otherwise.
        interval: seconds until a secret's successor is due.
        grace: seconds after that.
        url: of the server's database; None for its own SQLite file.
        serve: options of the server's `serve`.
        beside: a chain whose server this one shares; None for a server of its own.
    """
    with short_directory() as root, contextlib.ExitStack() as stack:
        chain = Chain(
            root, stack, tpm=tpm, hostile=hostile, interval=interval, grace=grace, url=url, serve=serve, beside=beside
        )
        if provisioned:
            chain.provision()
        yield chain
