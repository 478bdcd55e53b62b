"""`license-stand`: the command line, and the loop that stands in for systemd."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from common.argv import to_back
from common.files import os_problem
from common.version import VERSION

from . import setup
from .commands import Commands, Warm
from .programs import READY_S, Agent, Service, StandError, Swtpm, answers, free_ports, program
from .reachable import HERE, runnable_by
from .setup import AGENT_ID, LINK_STANDS_IN_UID, ROOT_STANDS_IN_UID, Layout

POLL_S = 0.05
RESTART_S = 0.1
_RAISED_LIMITS = {"rate_per_s": 1_000_000, "nonces_per_uid": 4_000_000, "connections_per_uid": 200}
CRASHES, CRASH_WINDOW_S = 10, 10.0

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The stand's directory.",
)


class _Program(click.Group):
    """Takes its directory before and after the command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, to_back(args, (), {"--dir"}))


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="license-stand", message="%(prog)s %(version)s")
def main() -> None:
    """Run a complete local license system in one directory."""


@main.command()
@_directory
@click.option(
    "--backend", type=click.Choice(["tpm", "software"]), default="tpm", show_default=True, help="How secrets are kept."
)
@click.option(
    "--agent-uid", type=click.IntRange(1, 65533), help=f"As root: whom the agent runs as (default {ROOT_STANDS_IN_UID})."
)
@click.option("--keep", is_flag=True, help="Leave the files there at the end.")
@click.option("--raise-limits", is_flag=True, help="Rate limits high enough for load tests.")
@click.option("--by-hand", is_flag=True, help="Without a running server: secrets are carried by files.")
@click.option("--interval", type=click.IntRange(1, 10**9), help="Seconds until a secret's successor is due.")
@click.option("--grace", type=click.IntRange(0, 10**9), help="Seconds of grace after that.")
def up(
    directory: Path,
    backend: str,
    agent_uid: int | None,
    keep: bool,
    raise_limits: bool,
    by_hand: bool,
    interval: int | None,
    grace: int | None,
) -> None:
    """Start a stand and keep it running until Ctrl-C or SIGTERM."""
    layout = Layout(directory.absolute())
    if layout.root.exists() and any(layout.root.iterdir()):
        if not setup.is_left_over(layout):
            raise StandError(f"{layout.root} is not empty: choose a new directory, or remove it")
        click.echo(f"NOTICE: {layout.root} has the files of a stand that failed or was killed; they are removed", err=True)
        setup.clear(layout)
    if os.geteuid() == 0:
        uid: int | None = agent_uid or ROOT_STANDS_IN_UID
    elif agent_uid not in (None, os.geteuid()):
        raise StandError("only root can run the agent as another user: leave --agent-uid out")
    else:
        uid = None
    plan = Plan(backend, uid, by_hand, interval, grace, keep)
    stand = Stand(layout, plan, made_root=not layout.root.exists())
    stand.run(_RAISED_LIMITS if raise_limits else {})


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
        self._commands = HERE
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
        signal.signal(signal.SIGUSR1, self._on_restart)
        signal.signal(signal.SIGUSR2, self._on_switch)
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

    def _start(self, pos: dict[str, int]) -> None:
        with Warm() as commands:
            self._start_with(commands, pos)
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
        if link is not None and not link.running:
            link.start(lambda: True)
            self._tell()

    def _end(self) -> None:
        if self._agent is not None:
            self._agent.close()
        for service in (self._link, self._server):
            if service is not None:
                service.close()
        if self._tpm is not None:
            self._tpm.stop()
        self._layout.info.unlink(missing_ok=True)
        if self._keep:
            if not self._failed:
                self._layout.mark.unlink(missing_ok=True)
            click.echo(f"the stand has ended; its files are left in {self._layout.root}")
            return
        setup.clear(self._layout)
        if self._made_root and self._layout.root.exists():
            self._layout.root.rmdir()
        click.echo("the stand has ended and cleaned up")


class _Stopped(Exception):
    """A signal asked for the end."""


# What acts on a running stand


def _info(directory: Path) -> dict[str, Any]:
    path = Layout(directory.absolute()).info
    try:
        info: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if Layout(directory.absolute()).config.exists():
            raise StandError(f"the stand in {directory} is still starting, or was left by one that failed") from None
        raise StandError(f"no stand is running in {directory} ({path} is not there)") from None
    return info


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@main.command()
@_directory
def down(directory: Path) -> None:
    """Stop a stand."""
    pid = _info(directory)["stand_pid"]
    if not _alive(pid):
        raise StandError(f"the stand's process {pid} is gone; remove {directory} by hand")
    os.kill(pid, signal.SIGTERM)
    ends = time.monotonic() + READY_S
    while _alive(pid) and time.monotonic() < ends:
        time.sleep(POLL_S)
    if _alive(pid):
        raise StandError(f"the stand (pid {pid}) has not ended within {READY_S:g} s")


@main.command()
@_directory
def restart(directory: Path) -> None:
    """Stop the agent and start it again; callers wait meanwhile."""
    before = _info(directory)
    os.kill(before["stand_pid"], signal.SIGUSR1)
    ends = time.monotonic() + READY_S
    while time.monotonic() < ends:
        info = _info(directory)
        if info["agent_pid"] != before["agent_pid"]:
            click.echo(f"the agent runs again, pid {info['agent_pid']}")
            return
        time.sleep(POLL_S)
    raise StandError(f"the agent was not back within {READY_S:g} s; look at agent.log")


@main.command(context_settings={"ignore_unknown_options": True})
@_directory
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def issue(directory: Path, arguments: tuple[str, ...]) -> None:
    """Issue a license; takes the options of 'license-server issue' (by default: feature sales, 30 days)."""
    info = _info(directory)
    given = list(arguments)
    if not any(word.startswith("--expires") for word in given):
        given += ["--expires", "+30d"]
    if not any(word.startswith("--feature") for word in given):
        given += ["--feature", "sales"]
    done = subprocess.run(
        [program("license-server"), "issue", "--agent", info["agent_id"], *given],
        env={**os.environ, **info["env"]},
        check=False,
    )
    sys.exit(done.returncode)


@main.command()
@_directory
def rotate(directory: Path) -> None:
    """Have the agent get a new secret and re-issued tokens."""
    by_hand = _info(directory)["server_url"] is None
    click.echo(f"secret version {setup.rotate(Commands(), Layout(directory.absolute()), by_hand=by_hand)} is ACTIVE")


@main.command()
@_directory
@click.argument("state", type=click.Choice(["stop", "start"]))
def server(directory: Path, state: str) -> None:
    """Cut the license server off, or bring it back."""
    info = _info(directory)
    if info["server_url"] is None:
        raise StandError("this stand has no running server: it was started with --by-hand")
    if (info["server_pid"] != 0) == (state == "start"):
        raise StandError(f"the server is {'running already' if state == 'start' else 'stopped already'}")
    os.kill(info["stand_pid"], signal.SIGUSR2)
    ends = time.monotonic() + READY_S
    while time.monotonic() < ends:
        if (_info(directory)["server_pid"] != 0) == (state == "start"):
            return
        time.sleep(POLL_S)
    raise StandError(f"the server did not follow within {READY_S:g} s; look at server.log")


@main.command()
@_directory
@click.argument("version", type=click.IntRange(1))
def invalidate(directory: Path, version: int) -> None:
    """Invalidate a secret version in the agent."""
    info = _info(directory)
    done = subprocess.run(
        [program("license-agent-cli"), "secrets", "invalidate", str(version), "--yes"],
        env={**os.environ, **info["env"]},
        check=False,
    )
    sys.exit(done.returncode)


def entry() -> None:
    """The console script."""
    try:
        main()
    except StandError as error:
        click.echo(f"license-stand: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"license-stand: {os_problem(error)}", err=True)
        sys.exit(1)
