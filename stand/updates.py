"""Updates on a running stand: sets them up, and publishes versions as the vendor does, with the vendor's own commands.

A bad version and a forged one are real: the former's health command fails, the latter's file is another one than was signed.
"""

import json
import os
import subprocess
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from . import acts, sample
from .commands import Commands
from .programs import READY_S, StandError, free_ports, program
from .running import BEGIN_UPDATES
from .setup import AGENT_ID, Layout
from .updateparts import LATE, Places, users

PRODUCT, HARDWARE, FIRST = "pos", "stand", "1.0"
POLL_S = 0.1
SETTINGS = {"notice_h": 0, "consent": "none", "trial_s": 1}
"""What the agent's configuration says of updates: nothing to wait for. A sample POS proves itself at once."""
FORGED, REFUSED = "digest-differs", "refused"
"""What the agent says of a package that is not the signed one, and the outcome that is made of it."""
_ROLES = ("root", "targets", "ci")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update ended, as the agent's maintenance register has it.

    Attributes:
        version: of the package.
        before: of what ran before.
        outcome: `installed`, `rolled-back`, `failed` and so on; `refused`, which is no line of the register, for a forged one.
        reason: why; empty if it was installed.
    """

    version: str
    before: str
    outcome: str
    reason: str


def begin(layout: Layout) -> None:
    """Sets updates up: keys and repository of a vendor, a sample POS 1.0 that runs, and everything that updates it.

    Raises:
        StandError: this stand has no server, or has updates already.
    """
    info = acts.require_agent(layout)
    if info["server_url"] is None:
        raise StandError("updates are ordered by a license server: this stand was started with --by-hand")
    if info["updates"] is not None:
        raise StandError("this stand has updates already: use 'license-stand ota publish VERSION'")
    places, port = Places(layout), free_ports()
    _make_directories(places, int(info["agent_uid"]))
    commands = Commands(layout.run)
    _begin_repository(commands, places, layout)
    source = sample.write(places.vendor / "source", FIRST, places.data, works=True)
    package = _bundle(places, source, FIRST, "0")
    first = {"package": str(package), "slots": str(places.pos), "certificate": str(places.certificate)}
    pin = _helper("first", first)
    _write_configuration(layout, places, port, pin, info)
    places.ready.write_text(json.dumps({"port": port}), encoding="utf-8")
    os.kill(info["stand_pid"], BEGIN_UPDATES)
    acts.wait(lambda: acts.info_of(layout)["updates"] is not None, LATE)
    # The agent is started again meanwhile, so that it finds update-trust.json.
    acts.wait(lambda: acts.info_of(layout)["agent_pid"] not in (0, info["agent_pid"]), LATE)
    if problem := _cli(commands, layout, "ota", "check")["problem"]:
        raise StandError(f"updates do not work on this stand: {problem}")


def _make_directories(places: Places, core: int) -> None:
    who = users(core)
    for path, mode, owner in (
        (places.top, 0o755, who.me),
        (places.vendor, 0o700, who.me),
        (places.pos, 0o755, who.me),
        (places.data, 0o755, who.pos),
        (places.staged, 0o700, who.updater),
        (places.own, 0o700, who.me),
        (places.own / "work", 0o700, who.me),
        (places.own / "jobs", 0o700, who.me),
    ):
        path.mkdir(mode=mode, exist_ok=True)  # what an attempt that failed has left is used again
        path.chmod(mode)
        if owner != who.me:
            os.chown(path, owner, owner)


def _begin_repository(commands: Commands, places: Places, layout: Layout) -> None:
    """What docs/guides/publish-updates.md does by hand, in one place and with keys without passphrases."""
    if places.repository.exists():
        return
    keys = {name: places.vendor / f"{name}.key" for name in _ROLES}
    public = {name: f"{key}.pub" for name, key in keys.items()}
    for key in keys.values():
        if not key.exists():
            commands.run("license-server", "ota", "new-key", str(key))
    first = _new(places.vendor / "first")
    commands.run(
        "license-server", "ota", "init", "--root-key", public["root"], "--threshold", "1", "--targets-key", public["targets"],
        "--release-key", public["ci"], "--floor", f"{PRODUCT}={FIRST}", "--out", str(first), env=layout.env(),
    )  # fmt: skip
    signed = [word for key in keys.values() for word in ("--key", str(key))]
    commands.run("license-server", "ota", "sign", str(first), *signed, "--yes")
    commands.run("license-server", "ota", "publish", str(first), env=layout.env())


def _new(path: Path) -> Path:
    """A path that is free, near to the one that is given."""
    number = 1
    while (found := path if number == 1 else path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def _write_configuration(layout: Layout, places: Places, port: int, pin: str, info: dict[str, Any]) -> None:
    """Writes what root writes on a till: which updates it trusts, which products it has, where the repository is."""
    who = users(int(info["agent_uid"]))
    trust = {
        "v": 1, "agent_id": AGENT_ID, "hardware": HARDWARE, "license_roots": [info["root_pin"]],
        "tuf_root": json.loads((places.repository / "metadata" / "1.root.json").read_bytes()),
    }  # fmt: skip
    _public(places.trust, json.dumps(trust, indent=1))
    product = {
        "backend": "slots", "directory": str(places.pos), "unit": f"{PRODUCT}.service", "user": who.pos,
        "health": ["bin/check"],
    }  # fmt: skip
    _public(places.installer_config, tomli_w.dumps({"product": {PRODUCT: product}}))
    link = tomllib.loads(layout.link_config.read_text("utf-8"))
    link["upstream"]["ota"] = {"url": f"https://127.0.0.1:{port}", "pins": [pin]}
    if who.updater != who.core:
        link["updater"] = {"user": who.updater}
    _public(layout.link_config, tomli_w.dumps(link))
    for file in (layout.config, layout.usual_config):
        if file.exists():
            content = tomllib.loads(file.read_text("utf-8"))
            content["updates"] = SETTINGS
            file.write_text(tomli_w.dumps(content), encoding="utf-8")  # in place, so that it keeps its owner


def _public(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o644)


def _helper(name: str, options: dict[str, Any]) -> str:
    """Runs a program of `standupdates` to its end and returns what it printed."""
    command = [program("python"), "-m", "standupdates", name, json.dumps(options)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StandError(done.stderr.strip() or f"{name} ended with status {done.returncode}")
    return done.stdout.strip()


def _bundle(places: Places, source: Path, version: str, number: str) -> Path:
    """Packs a directory; returns the package."""
    package = places.vendor / f"{PRODUCT}-{version}-{number}.tar.zst"
    _helper("bundle", {
        "directory": str(source), "output": str(package), "product": PRODUCT, "version": version,
        "build_id": f"b{number}", "level": 3,
    })  # fmt: skip
    return package


def publish(
    layout: Layout, version: str, source: Path | None, *, bad: bool, forged: bool, say: Callable[[str], None]
) -> Outcome:
    """Publishes a version, orders the stand's agent to install it, and waits for the end.

    Args:
        layout: of a stand with updates.
        version: of the package.
        source: the directory to be packed; None for the sample POS.
        bad: its health command fails.
        forged: the file in the repository becomes another one than was signed.
        say: takes what is to be known meanwhile.

    Raises:
        StandError: it cannot be published or ordered, or does not end.
    """
    require(layout)
    places = Places(layout)
    commands = Commands(layout.run)
    if _cli(commands, layout, "ota", "status")["state"] == "locked":
        raise StandError(
            "updates are locked after three failed attempts in a row, as on a till: look at 'license-agent-cli ota "
            "history', then use 'license-agent-cli ota unlock --why TEXT'"
        )
    number = str(1 + sum(1 for _ in places.vendor.glob(f"{PRODUCT}-*.tar.zst")))
    made = sample.require(source) if source else sample.write(places.vendor / "source", version, places.data, works=not bad)
    package = _bundle(places, made, version, number)
    _publish(commands, layout, places, package, version, number)
    if forged:
        _forge(places, package)
    target = f"{PRODUCT}/{package.name}"
    commands.run(
        "license-server", "ota", "assign", AGENT_ID, target, "--notice", "0", "--replace", env=layout.env()
    )  # fmt: skip
    _cli(commands, layout, "ota", "check")
    if forged:
        return _refused(commands, layout, version)
    return _ended(commands, layout, f"b{number}", say)


def require(layout: Layout) -> dict[str, Any]:
    """What stand.json says of updates.

    Raises:
        StandError: the stand has none, or its agent or server is stopped.
    """
    info = acts.require_agent(layout)
    if info["updates"] is None:
        raise StandError("this stand has no updates yet: use 'license-stand ota init'")
    if not info["server_pid"]:
        raise StandError("the server is stopped, which orders updates: use 'license-stand server start'")
    found: dict[str, Any] = info["updates"]
    return found


def _publish(commands: Commands, layout: Layout, places: Places, package: Path, version: str, number: str) -> None:
    out = _new(places.vendor / f"submission-{number}")
    commands.run(
        "license-server", "ota", "add", str(package), "--repository", str(places.repository), "--product", PRODUCT, "--version",
        version, "--build-id", f"b{number}", "--hardware", HARDWARE, "--role", "releases",
        "--key", str(places.vendor / "ci.key"), "--out", str(out),
    )  # fmt: skip
    commands.run("license-server", "ota", "publish", str(out), env=layout.env())


def _forge(places: Places, package: Path) -> None:
    """Changes the last byte of the package in the repository, as anyone can who has the web server."""
    (file,) = (places.repository / "targets" / PRODUCT).glob(f"*.{package.name}")
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        last = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes((last[0] ^ 1,)))


def _cli(commands: Commands, layout: Layout, *arguments: str) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(commands.run("license-agent-cli", "--json", *arguments, env=layout.env()))
    return reply


def _refused(commands: Commands, layout: Layout, version: str) -> Outcome:
    """Waits until the agent says that the package is another one, then takes the order back: it would ask again and again.

    It is no failed attempt, because a mirror could lock updates by that.
    """
    ends = time.monotonic() + READY_S
    while FORGED not in (problem := _cli(commands, layout, "ota", "status")["problem"] or ""):
        newest = _newest(commands, layout)
        if newest.get("version") == version or time.monotonic() >= ends:
            raise StandError(f"the forged package was not refused: see 'license-stand ota status'; {problem}")
        time.sleep(POLL_S)
    commands.run("license-server", "ota", "withdraw", AGENT_ID, env=layout.env())
    _cli(commands, layout, "ota", "check")
    return Outcome(version, "", REFUSED, problem)


def _newest(commands: Commands, layout: Layout) -> dict[str, Any]:
    """The newest line of the register; empty if it has none."""
    entries = _cli(commands, layout, "ota", "history", "--count", "1")["entries"]
    return dict(entries[0]) if entries else {}


def _ended(commands: Commands, layout: Layout, build_id: str, say: Callable[[str], None]) -> Outcome:
    """Waits for the register's line about a build; the server learns of it, too."""
    ends, said = time.monotonic() + READY_S, ""
    while (line := _newest(commands, layout)).get("build_id") != build_id:
        status = _cli(commands, layout, "ota", "status")
        # What a developer has set: a window, a freeze, consent of the POS application, a pause.
        waits = status["waits"]
        news = status["problem"] or "" if waits is None else f"the update waits: {waits['text']}"
        if news and news != said:
            say(news)
            said = news
        if time.monotonic() >= ends:
            raise StandError(f"the update has not ended within {READY_S:g} s: see 'license-stand ota status'")
        time.sleep(POLL_S)
    _cli(commands, layout, "ota", "check")
    return Outcome(line["version"], line["before"], line["outcome"], line["reason"])


def status(layout: Layout) -> str:
    """What the POS application's slot has in it."""
    require(layout)
    places = Places(layout)
    manifest = json.loads((places.pos / "current" / "manifest.json").read_bytes())
    text = f"slot {os.readlink(places.pos / 'current')} has {manifest['product']} {manifest['version']}"
    if not (places.pos / "current" / "version").exists():
        return text  # a directory of the developer's own
    return f"{text}; the sample POS says that {(places.data / 'runs').read_text('utf-8').strip()} runs"


def health_log(layout: Layout) -> Path:
    """What takes the output of health commands, in place of the journal of a till."""
    return Places(layout).log("system")
