"""Keeps a stand running: starts its parts, restarts what ends, follows the signals of `license-stand`'s other commands.

SIGUSR1 restarts the agent, SIGUSR2 stops or starts the server, SIGRTMIN the agent; SIGRTMIN+1 starts what installs updates;
SIGTERM, SIGINT and SIGHUP end the stand.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

import click

from . import setup
from .commands import Commands, Warm
from .programs import Agent, Service, StandError, Swtpm, answers, free_ports
from .reachable import HERE, runnable_by
from .setup import AGENT_ID, LINK_STANDS_IN_UID, Layout
from .updateparts import UpdateParts

POLL_S = 0.05
RESTART_S = 0.1
CRASHES, CRASH_WINDOW_S = 10, 10.0
RESTART, SWITCH_SERVER, SWITCH_AGENT, BEGIN_UPDATES = signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN, signal.SIGRTMIN + 1
"""What the other commands send to the stand's process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stand is to be.

    Attributes:
        backend: `tpm` or `software`.
        uid: whom the agent runs as; None for the caller.
        by_hand: no server and no link.
        interval: seconds between rotations; None for the server's default.
        grace: seconds after that; None for the server's default.
        keep: leave the files there at the end.
    """

    backend: str
    uid: int | None
    by_hand: bool
    interval: int | None
    grace: int | None
    keep: bool


class Stand:
    """A running stand."""

    def __init__(self, layout: Layout, plan: Plan, *, made_root: bool) -> None:
        self._layout = layout
        self._plan = plan
        self._uid = plan.uid
        self._backend = plan.backend
        self._keep = plan.keep
        self._failed = False
        self._mark: BinaryIO | None = None  # held open: it has a lock
        self._made_root = made_root
        self._server: Service | None = None
        self._link: Service | None = None
        self._port = 0
        self._root_pin = ""
        self._switch = False
        self._switch_agent = False
        self._begin_updates = False
        self._updates: UpdateParts | None = None
        self._agent_wanted = True
        self._commands = HERE
        self._programs = Warm(layout.run)
        self._tpm: Swtpm | None = None
        self._agent: Agent | None = None
        self._tokens: dict[str, str] = {}
        self._stop = False
        self._restart = False
        self._crashes: list[float] = []

    def run(self, pos: dict[str, int]) -> None:
        """Furnishes the stand, then watches over it until a signal comes."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(RESTART, self._on_restart)
        signal.signal(SWITCH_SERVER, self._on_switch)
        signal.signal(SWITCH_AGENT, self._on_switch_agent)
        signal.signal(BEGIN_UPDATES, self._on_begin_updates)
        try:
            self._start(pos)
            while not self._stop:
                time.sleep(POLL_S)
                self._watch()
        except _Stopped:
            pass
        except BaseException:
            self._keep = self._failed = True  # the files show the cause; the next stand here removes them
            raise
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._end()

    def _on_stop(self, _number: int, _frame: Any) -> None:
        self._stop = True
        raise _Stopped

    def _on_restart(self, _number: int, _frame: Any) -> None:
        self._restart = True

    def _on_switch(self, _number: int, _frame: Any) -> None:
        self._switch = True

    def _on_switch_agent(self, _number: int, _frame: Any) -> None:
        self._switch_agent = True

    def _on_begin_updates(self, _number: int, _frame: Any) -> None:
        self._begin_updates = True

    def _start(self, pos: dict[str, int]) -> None:
        self._start_with(self._programs, pos)
        self._tell()
        click.echo(
            f"the stand is up in {self._layout.root} ({self._backend}); {self._layout.info} says where everything is;"
            " Ctrl-C ends it"
        )
        sys.stdout.flush()

    def _start_with(self, commands: Commands, pos: dict[str, int]) -> None:
        layout = self._layout
        layout.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._mark = setup.mark(layout)
        setup.make_directories(layout, self._uid)
        self._commands = runnable_by(self._uid, layout.programs)
        tcti = "device:/dev/tpmrm0"
        if self._backend == "tpm":
            self._tpm = setup.start_tpm(layout, self._uid)
            tcti = self._tpm.tcti
        else:
            click.echo("NOTICE: software backend: keys lie on the disk, a stolen disk is not defended", err=True)
        setup.write_config(layout, self._backend, tcti, self._uid, pos)
        setup.found_server(commands, layout, self._plan.interval, self._plan.grace)
        if self._plan.by_hand:
            setup.enroll(commands, layout)
        else:
            self._root_pin = commands.run("license-server", "root-pin", "--dir", str(layout.server))
            self._start_server()
            self._start_link()
        self._agent = Agent(layout.config, layout.run, layout.root / "agent.log", self._commands)
        self._agent.start()
        if not self._plan.by_hand:
            try:
                setup.provision(commands, layout, self._url, self._root_pin)
            except StandError as error:
                raise StandError(f"{error}; the agent's last lines:\n{self._agent.log_tail()}") from None
        self._tokens = setup.furnish(commands, layout, by_hand=self._plan.by_hand)

    @property
    def _url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def _start_server(self) -> None:
        layout = self._layout
        if self._server is None:
            self._port = free_ports()
            bind, ops = f"127.0.0.1:{self._port}", f"127.0.0.1:{self._port + 1}"
            arguments = ["serve", "--dir", str(layout.server), "--bind", bind, "--ops", ops]
            self._server = Service("license-server", layout.root / "server.log", arguments)
        self._server.start(lambda: answers(self._port))

    def _start_link(self) -> None:
        layout = self._layout
        setup.write_link_config(layout, self._uid, self._url, self._root_pin)
        # It would leave when idle and come back with the next connection; the stand keeps it.
        arguments = ["--config", str(layout.link_config), "--idle", "86400"]
        uid = LINK_STANDS_IN_UID if os.geteuid() == 0 else None
        log = layout.root / "link.log"
        self._link = Service("license-agent-link", log, arguments, uid, layout.link_socket, self._uid, self._commands)
        self._link.start(lambda: True)

    def _tell(self) -> None:
        layout, agent = self._layout, self._agent
        setup.write_info(
            layout,
            {
                "pos_socket": str(layout.run / "pos.sock"),
                "admin_socket": str(layout.run / "admin.sock"),
                "agent_id": AGENT_ID,
                "agent_pid": 0 if agent is None else agent.pid,
                "agent_uid": os.geteuid() if self._uid is None else self._uid,
                "stand_pid": os.getpid(),
                "backend": self._backend,
                "config": str(layout.config),
                "state_dir": str(layout.state),
                "audit_log": str(layout.logs / "audit.log"),
                "metrics": str(layout.state / "metrics.prom"),
                "agent_log": str(layout.root / "agent.log"),
                "server_url": None if self._server is None else self._url,
                "server_ops": None if self._server is None else f"http://127.0.0.1:{self._port + 1}",
                "server_pid": 0 if self._server is None else self._server.pid,
                "server_log": str(layout.root / "server.log"),
                "root_pin": self._root_pin or None,
                "link_socket": str(layout.link_socket),
                "link_pid": 0 if self._link is None else self._link.pid,
                "link_log": str(layout.root / "link.log"),
                "updates": None if self._updates is None else self._updates.told(),
                "tpm_tcti": None if self._tpm is None else self._tpm.tcti,
                "env": layout.env(),
                "tokens": self._tokens,
            },
        )

    def _watch(self) -> None:
        agent = self._agent
        if agent is None:
            return
        if self._tpm is not None and not self._tpm.running:
            raise StandError("swtpm has ended; the stand cannot go on")
        self._watch_services()
        if self._switch_agent:
            self._switch_agent = self._restart = False
            self._agent_wanted = not self._agent_wanted
            if self._agent_wanted:
                agent.start()
            else:
                agent.stop()
            self._tell()
        if not self._agent_wanted:
            return
        if self._restart:
            self._restart = False
            agent.stop()
        elif agent.running:
            agent.drain_notices()
            return
        else:
            now = time.monotonic()
            self._crashes = [*(then for then in self._crashes if now - then < CRASH_WINDOW_S), now]
            if len(self._crashes) > CRASHES:
                raise StandError(f"the agent keeps ending; its last lines:\n{agent.log_tail()}")
            time.sleep(RESTART_S)
        agent.start()
        self._tell()

    def _watch_services(self) -> None:
        server, link = self._server, self._link
        if self._switch and server is not None:
            self._switch = False
            if server.wanted:
                server.stop()
            else:
                self._start_server()
            self._tell()
        elif server is not None and server.wanted and not server.running:
            self._start_server()
            self._tell()
        if self._begin_updates:
            self._begin_updates = False
            self._start_updates()
        elif self._updates is not None and self._updates.watch():
            self._tell()
        if link is not None and not link.running:
            link.start(lambda: True)
            self._tell()

    def _start_updates(self) -> None:
        """Starts what installs updates; link and agent start again, since they read their files at the start only."""
        if self._updates is None and self._link is not None:
            self._updates = UpdateParts(self._layout, os.geteuid() if self._uid is None else self._uid, self._commands)
            self._updates.start()
            self._link.stop()
            self._restart = True
            self._tell()

    def _end(self) -> None:
        self._programs.close()
        if self._agent is not None:
            self._agent.close()
        if self._updates is not None:
            self._updates.close()
        for service in (self._link, self._server):
            if service is not None:
                service.close()
        if self._tpm is not None:
            self._tpm.stop()
        self._layout.info.unlink(missing_ok=True)
        if self._keep:
            if not self._failed:
                self._layout.mark.unlink(missing_ok=True)
            if self._layout.root.exists():
                click.echo(f"the stand has ended; its files are left in {self._layout.root}")
            return
        setup.clear(self._layout)
        if self._made_root and self._layout.root.exists():
            self._layout.root.rmdir()
        click.echo("the stand has ended and cleaned up")


class _Stopped(Exception):
    """A signal asked for the end."""
