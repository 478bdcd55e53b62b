"""What the agent writes: a log that nobody reads holds nothing up, and a changed byte of the audit log is found."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click
from license_agent_client import LicenseClient

from stand.programs import READY_S

from .scenario import Scenario, restart_agent, stand_info


def unread_log(scenario: Scenario, token: Path) -> Iterator[str]:
    """The agent's standard error becomes a pipe that nobody reads, and many lines come; then somebody reads it again."""
    root = Path(scenario.info["state_dir"]).parent
    log, config = root / "agent.log", Path(scenario.info["config"])
    kept, text = log.with_name("agent.log.kept"), config.read_text()

    def dropped() -> int:
        lines = scenario.tool("license-agent-cli", "metrics").splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith("license_agent_log_lines_dropped_total "))

    log.rename(kept)
    os.mkfifo(log)
    log.chmod(0o666)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    try:
        restart_agent(scenario)
        # A configuration with many mistakes: the agent keeps the one that it has, and writes a line about each mistake.
        config.write_text(text + "".join(f"[mistake-{'x' * 60}-{number}]\n" for number in range(1500)))
        os.kill(stand_info(scenario)["agent_pid"], signal.SIGHUP)
        ends = time.monotonic() + READY_S
        while not (lost := dropped()) and time.monotonic() < ends:
            time.sleep(0.1)
        slowest = 0.0
        with LicenseClient(scenario.info["pos_socket"]) as client:
            for _ in range(200):
                began = time.monotonic()
                if not client.validate_file(token).valid:
                    raise RuntimeError("a valid license was refused")
                slowest = max(slowest, time.monotonic() - began)
        click.echo(f"      200 requests, the slowest took {slowest * 1000:.1f} ms; {lost} lines had no room")
        yield "every request answered: valid"
        yield "counted by the metric" if lost else "none counted"
        said, told = b"", 0
        while time.monotonic() < ends and not (told and told == dropped()):
            with contextlib.suppress(BlockingIOError):
                while part := os.read(reader, 65_536):
                    said += part
            told = sum(int(number) for number in re.findall(rb"(\d+) log lines were dropped", said))
            time.sleep(0.1)
        yield "it says how many are missing" if told == dropped() else f"{dropped()} are missing, {told} are told"
    finally:
        config.write_text(text)
        log.unlink()
        kept.rename(log)
        restart_agent(scenario)
        os.close(reader)


def audit_intact(scenario: Scenario) -> str:
    """The agent's own check of its log."""
    return str(scenario.tool("license-agent-cli", "audit", "verify")).split()[0]


def audit_changed(scenario: Scenario, directory: Path) -> str:
    """Changes one byte in a copy of the log and has it checked."""
    copy = directory / "audit.log"
    data = bytearray(Path(scenario.info["audit_log"]).read_bytes())
    place = data.index(b'"outcome":"expired"') + len('"outcome":"')
    data[place] ^= 1
    copy.write_bytes(data)
    out = scenario.tool("license-agent-cli", "audit", "verify", "--file", str(copy), fine=(0, 1))
    click.echo("      " + out.strip())
    return out.split(":")[0].strip()
