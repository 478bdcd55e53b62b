"""Commands for updates: what is offered, what runs, what is wanted of them, and the maintenance register."""

import hashlib
import json
import os
import sys
import tarfile
import time
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
from tabulate import tabulate

from common.zones import UnknownZone
from ipc.posclient.policy import AgentUnavailable

from . import inputs, render
from .agent import EXIT_NEGATIVE, SERVER_DEADLINE_S, Agent, pass_agent
from .openingtimes import calendar_of, openings_text, shown_openings
from .packageurl import NoPackage, package_named, upstream_of
from .progress import waiting

POLL_S = 1.0
RESTART_S = 180.0
"""How long the agent may be away while its own update starts it again."""
_ERASE = "\r\x1b[K"
PACKAGE_DEADLINE_S = 900.0
"""For the updater to verify a package and to copy it: the agent answers after that."""
BUNDLE_ENDS = ".bundle"
"""How a bundle's name ends: the profiles of AppArmor let agent and updater read no other file that they are handed."""
_READ_BYTES = 1024 * 1024
MAX_TIMESTAMP_BYTES = 64 * 1024
USUAL_S = 3 * 86_400
"""How long a timestamp of the repository lasts; one that lasts longer was signed for a bundle."""
_ENDS = ("idle", "locked")
_PAGE = 50


@click.group()
def ota() -> None:
    """Look at updates of this machine, install them, and go back."""


@ota.command("status")
@pass_agent
def status(agent: Agent) -> None:
    """Show what runs, what is offered, what an update waits for, and whether updates are locked."""
    reply = agent.ask("ota_status")
    agent.show(reply, _status_text(reply))


@ota.command("check")
@pass_agent
def check(agent: Agent) -> None:
    """Ask the license server for this machine's update now. What is installed, and when, does not change by that."""
    with waiting("asking the license server"):
        reply = agent.ask("ota_check", deadline=SERVER_DEADLINE_S)
    agent.show(reply, _status_text(reply))


@ota.command("install")
@click.option(
    "--package",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Install the package in this update bundle instead, from a memory stick for instance; its name ends in .bundle.",
)
@click.option("--no-wait", is_flag=True, help="Return once it has begun; 'ota status' shows how it goes on.")
@pass_agent
def install(agent: Agent, package: Path | None, no_wait: bool) -> None:
    """Install what is offered now, whatever window, notice and the POS application say."""
    if package is None:
        _begin(agent, no_wait, rehearse=False)
    else:
        _install_package(agent, package, no_wait)


@ota.command("rehearse")
@click.option("--no-wait", is_flag=True, help="Return once it has begun; 'ota status' shows how it goes on.")
@pass_agent
def rehearse(agent: Agent, no_wait: bool) -> None:
    """Install what is offered on this test bench, prove it, and go back on purpose. That uses the directive up."""
    _begin(agent, no_wait, rehearse=True)


@ota.command("rollback")
@click.argument("product")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--no-wait", is_flag=True, help="Return once it has begun.")
@pass_agent
def rollback(agent: Agent, product: str, yes: bool, no_wait: bool) -> None:
    """Go back to the version of PRODUCT before the running one."""
    if not yes:
        inputs.confirm(f"{product} restarts with the version before. Continue?")
    reply = agent.ask("ota_rollback", product=product)
    text = f"{product} goes back to {reply['version']}"
    _finish(agent, reply, text, no_wait, ("rolled-back",))


@ota.command("unlock")
@click.option("--why", required=True, metavar="TEXT", help="What was wrong and what was done; the audit log keeps it.")
@pass_agent
def unlock(agent: Agent, why: str) -> None:
    """Let updates begin again after more than two failed attempts."""
    reply = agent.ask("ota_unlock", why=why)
    agent.show(reply, f"updates are unlocked after {reply['attempts']} failed attempts")


@ota.command("pause")
@click.option("--end", is_flag=True, help="Let updates begin again.")
@pass_agent
def pause(agent: Agent, end: bool) -> None:
    """Let no update begin on this machine. What is switched already is finished."""
    reply = agent.ask("ota_pause", end=end)
    agent.show(reply, "no update begins on this machine" if reply["paused"] else "updates begin again on this machine")


@ota.command("history")
@click.option("--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show this many of the newest.")
@pass_agent
def history(agent: Agent, count: int) -> None:
    """Print the maintenance register, the newest line first: version, operator, outcome, duration and reason."""
    entries: list[dict[str, Any]] = []
    with agent.reading():
        while len(entries) < count:
            page = agent.ask("ota_history", skip=len(entries), count=min(_PAGE, count - len(entries)))
            entries += page["entries"]
            if not page["entries"] or len(entries) >= page["total"]:
                break
    agent.show({"entries": entries}, _history_text(entries))


@ota.command("windows")
@click.option("--days", type=click.IntRange(1, 60), default=14, show_default=True, help="How far ahead.")
@pass_agent
def windows(agent: Agent, days: int) -> None:
    """Show when updates may begin on this machine: its window and frozen days, whether its file or its fleet sets them."""
    try:
        calendar = calendar_of(agent.ask("config_show"))
    except UnknownZone as error:
        raise click.ClickException(f"the window {error}") from None
    found = shown_openings(calendar, int(time.time()), days)
    agent.show(found, openings_text(found, calendar.zone, None, days))


def _begin(agent: Agent, no_wait: bool, *, rehearse: bool) -> None:
    reply = agent.ask("ota_install", rehearse=rehearse)
    text = f"{'rehearsing' if rehearse else 'installing'} {reply['product']} {reply['version']} (build {reply['build_id']})"
    _finish(agent, reply, text, no_wait, ("rehearsed",) if rehearse else ("installed",))


def _link_config() -> Path:
    """The link's configuration, which is beside the agent's."""
    return Path(os.environ.get("LICENSE_AGENT_CONFIG") or "/etc/license-agent/config.toml").with_name("link.toml")


@click.command("ota_update")
@click.option("--url", required=True, metavar="PACKAGE", help="A file, file:///FILE, or a URL of the update repository.")
@click.option(
    "--link",
    default=_link_config,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="The link's configuration, which names the update repository.  [default: link.toml beside the agent's configuration]",
)
@click.option("--no-wait", is_flag=True, help="Return once it has begun; 'ota status' shows how it goes on.")
@pass_agent
def ota_update(agent: Agent, url: str, link: Path, no_wait: bool) -> None:
    """Install the package at PACKAGE now: from a file, or from the repository if the license server orders just that one."""
    try:
        named = package_named(url, upstream_of(tomllib.loads(link.read_text("utf-8"))) if link.exists() else None)
    except NoPackage as error:
        raise click.BadParameter(f"{url} {error}", param_hint="--url") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{link} is not TOML: {error}", param_hint="--link") from None
    if isinstance(named, Path):
        _install_package(agent, named, no_wait)
        return
    with waiting("asking the license server"):
        update = agent.ask("ota_check", deadline=SERVER_DEADLINE_S)["update"]
    if update is None or update.get("sha256") != named.sha256:
        what = "nothing" if update is None else f"{update['product']} {update['version']}"
        raise click.ClickException(
            f"the license server orders {what} for this machine, and not the package at {url}; assign that on the server with "
            "'license-server ota assign', or install it from a file with --package"
        )
    _begin(agent, no_wait, rehearse=False)


def _install_package(agent: Agent, path: Path, no_wait: bool) -> None:
    """Opens the bundle with this user's rights, and hands the agent the open file: no process of the agent opens a path."""
    if path.suffix != BUNDLE_ENDS:
        raise click.UsageError(f"the name of an update bundle ends in {BUNDLE_ENDS}; rename {path.name}")
    # O_NONBLOCK: a named pipe must not make the command wait.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        try:
            with waiting("reading the package"):
                digest = package_digest(file)
        except (tarfile.TarError, EOFError) as error:
            raise click.UsageError(f"{path} is no update bundle: {error}") from None
        with waiting("the updater verifies the package"):
            reply = agent.ask("ota_package", deadline=PACKAGE_DEADLINE_S, descriptor=file.fileno(), sha256=digest)
        text = f"installing {reply['product']} {reply['version']} (build {reply['build_id']})"
        if (ends := bundle_ends(file)) - time.time() > USUAL_S:
            # The updater has verified it: no bundle is installed whose timestamp is not signed.
            text += f"; this bundle was made for machines without a network and counts until {render.utc(ends)}"
    _finish(agent, reply, text, no_wait, ("installed",))


def bundle_ends(file: BinaryIO) -> int:
    """When the timestamp in an update bundle ends, seconds since 1970 UTC; 0 if it does not say."""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as bundle:
            content = bundle.extractfile("metadata/timestamp.json")
            text = json.loads(b"" if content is None else content.read(MAX_TIMESTAMP_BYTES))["signed"]["expires"]
        return int(datetime.fromisoformat(text).timestamp())
    except (tarfile.TarError, KeyError, TypeError, ValueError):
        return 0


def package_digest(file: BinaryIO) -> str:
    """SHA-256 of the package in an update bundle, hex: what is signed.

    Raises:
        tarfile.TarError: it is no tar archive, or has no package.
        OSError: it cannot be read.
    """
    with tarfile.open(fileobj=file, mode="r:") as bundle:
        for member in bundle:
            content = bundle.extractfile(member) if member.name == "package" and member.isreg() else None
            if content is not None:
                digest = hashlib.sha256()
                while data := content.read(_READ_BYTES):
                    digest.update(data)
                return digest.hexdigest()
    raise tarfile.TarError("it has no member 'package'")


def _finish(agent: Agent, reply: dict[str, Any], text: str, no_wait: bool, good: tuple[str, ...]) -> None:
    """Waits for the end of what was begun, and shows it; exits with 1 unless it ended as wanted."""
    if no_wait:
        agent.show({**reply, "outcome": None, "reason": None}, text)
        return
    if not agent.as_json:
        click.echo(text)
    last = _follow(agent)
    outcome, reason = (last["outcome"], last["reason"]) if last is not None else (None, None)
    agent.show({**reply, "outcome": outcome, "reason": reason}, f"{outcome or 'unknown'}{f': {reason}' if reason else ''}")
    if outcome not in good:
        sys.exit(EXIT_NEGATIVE)


def _follow(agent: Agent) -> dict[str, Any] | None:
    """Shows how the update goes on until it has ended; returns its line of the register."""
    bar, away_since, shown = sys.stderr.isatty(), None, ""
    while True:
        try:
            reply = agent.ask("ota_status")
            away_since = None
        except AgentUnavailable:
            # Its own update starts the agent again.
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > RESTART_S:
                raise
            time.sleep(POLL_S)
            continue
        line = _line(reply)
        if bar:
            sys.stderr.write(f"{_ERASE}{line}")
            sys.stderr.flush()
        elif reply["state"] != shown and not agent.as_json:
            shown = reply["state"]
            click.echo(line)
        if reply["state"] in _ENDS:
            if bar:
                sys.stderr.write(_ERASE)
                sys.stderr.flush()
            found = agent.ask("ota_history", skip=0, count=1)["entries"]
            return found[0] if found else None
        time.sleep(POLL_S)


def _line(reply: dict[str, Any]) -> str:
    """One line: the step, a bar where bytes are counted, and what it waits for."""
    done, total = reply["progress"]["done"], reply["progress"]["total"]
    parts = [reply["state"]]
    if total:
        full = min(20, done * 20 // total)
        parts.append(f"[{'#' * full}{'.' * (20 - full)}] {done * 100 // total} %")
    waits = reply["waits"]
    if waits is not None:
        parts.append(waits["text"])
    elif reply["problem"]:
        parts.append(reply["problem"])
    return "  ".join(parts)[:160]


def _status_text(reply: dict[str, Any]) -> str:
    if not reply["enabled"]:
        return "updates are not enabled on this machine"
    rows = [["state", reply["state"]]]
    for each in reply["running"]:
        trial = ", on trial" if each["in_trial"] else ""
        before = f", before it {each['previous']}" if each["previous"] else ""
        rows.append(
            [
                each["product"],
                each.get("problem") or f"{each['version'] or 'none'} (build {each['build_id'] or '-'}){trial}{before}",
            ]
        )
    update = reply["update"]
    if update is not None and reply["state"] != "idle":
        rows.append(
            ["update", f"{update['product']} {update['version']} (build {update['build_id']}), by {update['operator']}"]
        )
        rows.append(["received", render.utc(update["received"])])
    if reply["waits"] is not None:
        until = "" if reply["waits"]["until"] is None else f", until {render.utc(reply['waits']['until'])}"
        rows.append(["waits", f"{reply['waits']['text']}{until}"])
    for name, text in (("paused", reply["paused"]), ("problem", reply["problem"]), ("do", reply.get("action"))):
        if text:
            rows.append([name, text])
    if reply["failure"] is not None:
        rows.append(["failed", f"{reply['failure']['text']} ({reply['failure']['code']}), {reply['attempts']} in a row"])
    if reply["retry_at"] is not None:
        rows.append(["again", render.utc(reply["retry_at"])])
    if reply["state"] == "locked":
        rows.append(["next", "read 'license-agent-cli ota history', then 'license-agent-cli ota unlock --why TEXT'"])
    if reply.get("signed") is not None:
        rows.append(["metadata", f"{reply['signed']['role']} ends first, {render.utc(reply['signed']['until'])}"])
    if update is not None and update["notes"] and reply["state"] != "idle":
        rows.append(["notes", update["notes"]])
    if reply["state"] == "idle":
        checked = reply["checked"]
        rows.append(["offered", "nothing" if update is None or reply["retry_at"] is None else update["version"]])
        rows.append(["repository", "not read since the start" if checked is None else f"read {render.utc(checked)}"])
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _history_text(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return "the register has no line"
    rows = [
        [
            render.utc(each["time"]),
            each["product"],
            each["version"],
            each["build_id"],
            each["outcome"],
            f"{each['duration_s']} s",
            each["operator"],
            each["reason"],
        ]
        for each in entries
    ]
    heads = ["time", "product", "version", "build", "outcome", "took", "operator", "reason"]
    return tabulate(rows, headers=heads, tablefmt="plain", disable_numparse=True)
