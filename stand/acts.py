"""Acts on a running stand: each is what an operator, an administrator or a power cut would do, by our other commands.

`reasons` puts them together. Nothing here writes to the terminal, but for `passed_on`, whose command does.
"""

import json
import os
import signal
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from . import setup
from .commands import Commands
from .programs import READY_S, StandError
from .running import POLL_S, RESTART, SWITCH_AGENT, SWITCH_SERVER
from .setup import Layout

MOST_LIVE = 12
"""Secret versions that the server keeps of a stand's agent; it refuses more than 15."""


def info_of(layout: Layout) -> dict[str, Any]:
    """What the stand says of itself.

    Raises:
        StandError: no stand is running in the directory.
    """
    try:
        info: dict[str, Any] = json.loads(layout.info.read_text("utf-8"))
    except FileNotFoundError:
        if layout.config.exists():
            raise StandError(f"the stand in {layout.root} is still starting, or was left by one that failed") from None
        raise StandError(f"no stand is running in {layout.root} ({layout.info} is not there)") from None
    return info


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(done: Callable[[], bool], late: str) -> None:
    """Returns when `done` says so.

    Raises:
        StandError: it never did; with the text `late`.
    """
    ends = time.monotonic() + READY_S
    while not done():
        if time.monotonic() >= ends:
            raise StandError(late)
        time.sleep(POLL_S)


def down(layout: Layout) -> None:
    """Ends the stand."""
    pid = info_of(layout)["stand_pid"]
    if not _alive(pid):
        raise StandError(f"the stand's process {pid} is gone; remove {layout.root} by hand")
    os.kill(pid, signal.SIGTERM)
    wait(lambda: not _alive(pid), f"the stand (pid {pid}) has not ended within {READY_S:g} s")


def restart(layout: Layout) -> int:
    """Stops the agent and starts it again; returns its process id."""
    before = require_agent(layout)
    os.kill(before["stand_pid"], RESTART)
    late = f"the agent was not back within {READY_S:g} s; look at agent.log"
    wait(lambda: info_of(layout)["agent_pid"] not in (0, before["agent_pid"]), late)
    return int(info_of(layout)["agent_pid"])


def require_agent(layout: Layout) -> dict[str, Any]:
    """What is known of a stand whose agent runs.

    Raises:
        StandError: its agent is stopped; a request to it would wait until its deadline.
    """
    info = info_of(layout)
    if not info["agent_pid"]:
        raise StandError("the agent is stopped: use 'license-stand agent start'")
    return info


def switch_agent(layout: Layout, *, on: bool) -> None:
    """Stops the agent, or starts it. While it is stopped, callers wait in its socket's queue until their deadlines."""
    _switch(layout, "agent", SWITCH_AGENT, on)


def switch_server(layout: Layout, *, on: bool) -> None:
    """Cuts the license server off, or brings it back."""
    if info_of(layout)["server_url"] is None:
        raise StandError("this stand has no running server: it was started with --by-hand")
    _switch(layout, "server", SWITCH_SERVER, on)


def _switch(layout: Layout, what: str, number: int, on: bool) -> None:
    info = info_of(layout)
    if (info[f"{what}_pid"] != 0) == on:
        raise StandError(f"the {what} is {'running already' if on else 'stopped already'}")
    os.kill(info["stand_pid"], number)
    late = f"the {what} did not follow within {READY_S:g} s; look at {what}.log"
    wait(lambda: (info_of(layout)[f"{what}_pid"] != 0) == on, late)


def passed_on(layout: Layout, name: str, *arguments: str) -> int:
    """Runs one of our commands on the stand, with this terminal; returns its exit status."""
    return Commands(layout.run).pass_on(name, *arguments, env=info_of(layout)["env"])


def cli(layout: Layout, *arguments: str) -> dict[str, Any]:
    """What a command of the agent's administrator answers.

    Raises:
        StandError: it failed.
    """
    require_agent(layout)
    told = Commands(layout.run).run("license-agent-cli", "--json", *arguments, env=layout.env())
    reply: dict[str, Any] = json.loads(told or "{}")
    return reply


def issued(layout: Layout, *arguments: str, agent: str = setup.AGENT_ID) -> str:
    """A new license token, for feature sales and 30 days unless the arguments say otherwise."""
    return setup.issue(Commands(layout.run), layout, *with_defaults(arguments), agent=agent)


def delivered(layout: Layout, *arguments: str) -> str:
    """As `issued`, and the agent holds the license from then on, as after a contact that brought it."""
    token = issued(layout, *arguments)
    file = layout.run / "delivered.token"
    file.write_text(token, "ascii")
    try:
        cli(layout, "license", "import", f"@{file}")
    finally:
        file.unlink()
    return token


def with_defaults(arguments: tuple[str, ...]) -> list[str]:
    """Options of `license-server issue`, with those added that a developer may leave out."""
    given = list(arguments)
    if not any(word.startswith("--expires") for word in given):
        given += ["--expires", "+30d"]
    if not any(word.startswith("--feature") for word in given):
        given += ["--feature", "sales"]
    return given


def rotate(layout: Layout) -> int:
    """A new secret and re-issued tokens; returns the secret's version."""
    by_hand = require_agent(layout)["server_url"] is None
    _make_room(layout)
    return setup.rotate(Commands(layout.run), layout, by_hand=by_hand)


def _make_room(layout: Layout) -> None:
    """Destroys the server's oldest secrets where a further one would be refused: a developer rotates more often than a shop."""
    now = time.time()
    live = [row["version"] for row in server_secrets(layout) if row["grace_until"] > now and row["state"] != "INVALIDATED"]
    arguments = ["--dir", str(layout.server), "--agent", setup.AGENT_ID]
    for version in sorted(live)[: max(0, len(live) - MOST_LIVE)]:
        Commands(layout.run).run("license-server", "secrets", "invalidate", *arguments, str(version))


def server_secrets(layout: Layout) -> list[dict[str, Any]]:
    """The secret versions that the server has for the agent, oldest first; never a secret."""
    arguments = ["--dir", str(layout.server), "--agent", setup.AGENT_ID, "--json"]
    listed: list[dict[str, Any]] = json.loads(Commands(layout.run).run("license-server", "secrets", "list", *arguments))
    return listed


def rotate_on_server(layout: Layout, delivery: Path, seconds: int = 1) -> None:
    """A new secret that the agent does not get yet. It ends soon, and then takes no room from others on the server."""
    arguments = ["--agent", setup.AGENT_ID, "--interval", str(seconds), "--grace", "0", "--out", str(delivery)]
    Commands(layout.run).run("license-server", "rotate", *arguments, env=layout.env())


def require_server(layout: Layout) -> None:
    """Makes sure that the server runs, from which revocation lists come.

    Raises:
        StandError: it does not.
    """
    info = info_of(layout)
    if info["server_url"] is None:
        raise StandError("revocation lists come from a running server: this stand was started with --by-hand")
    if not info["server_pid"]:
        raise StandError("the server is stopped, so no revocation list reaches the agent: use 'license-stand server start'")


def revoke(layout: Layout, license_id: str) -> None:
    """Revokes a license, and has the agent fetch the list.

    Raises:
        StandError: there is no such license, or this stand has no running server.
    """
    require_agent(layout)
    require_server(layout)
    Commands(layout.run).run("license-server", "revoke", "--dir", str(layout.server), license_id)
    cli(layout, "contact")


def degrade(layout: Layout, *, on: bool) -> None:
    """Switches degraded mode on or off, as an administrator may where the configuration allows it."""
    if info_of(layout)["server_url"] is None:
        raise StandError("degraded mode is about a server: this stand was started with --by-hand")
    configure(layout, degraded_switch="allowed")
    cli(layout, "degraded", "on" if on else "off")


def configure(layout: Layout, **changes: str) -> None:
    """Changes keys of `[agent]` in the agent's configuration, and has it read; `configure_as_usual` takes that back."""
    before = layout.config.read_text("utf-8")
    if not layout.usual_config.exists():
        layout.usual_config.touch(mode=0o600)
        layout.usual_config.write_text(before, encoding="utf-8")
    content = tomllib.loads(before)
    content["agent"] |= changes
    _write_config(layout, tomli_w.dumps(content))


def configure_as_usual(layout: Layout) -> None:
    """Gives the agent the configuration back that the stand wrote."""
    if layout.usual_config.exists():
        _write_config(layout, layout.usual_config.read_text("utf-8"))
        layout.usual_config.unlink()


def _write_config(layout: Layout, text: str) -> None:
    layout.config.write_text(text, encoding="utf-8")  # in place, so that it keeps its owner
    cli(layout, "reload")
