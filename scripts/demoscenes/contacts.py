"""What the server and its absence do to licenses: a revocation, new keys, no contact, a wrong clock."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from license_agent_client import LicenseClient

from stand.programs import READY_S

from .scenario import BIN, Scenario


def revoked(scenario: Scenario) -> str:
    """The server revokes a license; the agent learns of it at its next contact."""
    token = scenario.tool(
        "license-server", "issue", "--agent", "pos-001", "--feature", "x", "--expires", "+1d", "--license-id", "demo-revoked"
    ).strip()
    before = scenario.verdict(token)
    scenario.tool("license-server", "revoke", "demo-revoked")
    scenario.tool("license-agent-cli", "contact")
    return f"{before}, then {scenario.verdict(token)}"


def new_certificate(scenario: Scenario) -> str:
    """A new TLS key and certificate, used at once."""
    before = json.loads(scenario.tool("license-agent-cli", "--json", "status", fine=(0, 1)))["server"]["certificate_ends"]
    time.sleep(1.1)
    after = json.loads(scenario.tool("license-agent-cli", "--json", "certificate", "renew"))["certificate_ends"]
    return "a later one in use" if after > before else f"{before}, then {after}"


def new_server_key(scenario: Scenario) -> str:
    """The server gets a new rotation key; the agent takes it over, because the offline root has signed for it."""
    root = Path(scenario.info["env"]["LICENSE_SERVER_DIR"]) / "offline" / "root.key"
    before = json.loads(scenario.tool("license-agent-cli", "--json", "status", fine=(0, 1)))["server"]["key_set"]
    scenario.tool("license-server", "keys", "rotate", "rotation", "--root-key", str(root))
    # The running server looks for changed keys once a second (LOOK_AGAIN_S), not with each request.
    ends = time.monotonic() + READY_S
    while True:
        server = json.loads(scenario.tool("license-agent-cli", "--json", "contact"))
        if server["key_set"] > before or time.monotonic() > ends:
            break
        time.sleep(0.2)
    taken = "a later key set" if server["key_set"] > before else f"key set {before}, then {server['key_set']}"
    return f"{taken}, contacts failed: {server['failures']}"


def cut_off(scenario: Scenario, token: Path) -> Iterator[str]:
    """Cuts the server off, lives through degraded mode, and brings the server back; tells the state at each stage."""
    root = str(Path(scenario.info["state_dir"]).parent)
    # Seconds instead of a day and a week: the agent's clock is the real one, so the server's dates are shortened.
    began = time.monotonic()
    scenario.tool("license-agent-cli", "status", fine=(0, 1))
    # What is to be seen in grace takes a few commands: on a slow machine, more seconds of it.
    grace = max(20, int(40 * (time.monotonic() - began)))
    scenario.tool("license-server", "periods", "--interval", "3", "--grace", str(grace))
    scenario.tool("license-agent-cli", "rotate")
    with LicenseClient(scenario.info["pos_socket"]) as client:

        def mode_now() -> str:
            return str(json.loads(scenario.tool("license-agent-cli", "--json", "degraded", "show"))["mode"])

        def state() -> str:
            mode = mode_now()
            while True:  # on a slow machine the mode may end between the two questions
                verdict = client.validate_file(token)
                before, mode = mode, mode_now()
                if mode == before:
                    break
            return f"{mode}, {'valid' if verdict.valid else 'refused'}: {verdict.reason}"

        def until(mode: str) -> str:
            ends = time.monotonic() + READY_S
            while time.monotonic() < ends and not (found := state()).startswith(mode):
                time.sleep(0.5)
            return found

        yield state()
        scenario.tool("license-stand", "server", "stop", "--dir", root)
        yield until("degraded")
        yield until("expired")
        scenario.tool("license-server", "periods", "--interval", "86400", "--grace", "604800")
        scenario.tool("license-stand", "server", "start", "--dir", root)
        scenario.tool("license-agent-cli", "contact")
        yield until("online")


WRONG_CLOCK = """import runpy, sys, time
true, ahead, sys.argv = time.time, float(sys.argv[1]), sys.argv[2:]
time.time = lambda: true() + ahead
runpy.run_path(sys.argv[0], run_name="__main__")"""


def wrong_clock(scenario: Scenario, token: Path) -> Iterator[str]:
    """The server's clock is eight days ahead; an operator even says that it is right; then it is right again."""
    root = str(Path(scenario.info["state_dir"]).parent)
    address = scenario.info["server_url"].partition("://")[2]
    days = [sys.executable, "-c", WRONG_CLOCK, str(8 * 86_400), str(BIN / "license-server")]

    def contact() -> str:
        done = subprocess.run(
            [str(BIN / "license-agent-cli"), "contact"],
            env=scenario.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=READY_S,
        )  # fmt: skip
        if done.returncode == 0:
            return "answers"
        return "signs nothing" if "the server's clock has jumped by 8 days" in done.stderr else done.stderr.strip()

    def state() -> str:
        with LicenseClient(scenario.info["pos_socket"]) as client:
            verdict = client.validate_file(token)
        time_of_server = json.loads(scenario.tool("license-agent-cli", "--json", "status", fine=(0, 1, 2)))["server_time"]
        standing = "taken" if time_of_server is None else time_of_server["standing"]
        return f"its time is {standing}, license {'valid' if verdict.valid else 'refused'}: {verdict.reason}"

    scenario.tool("license-stand", "server", "stop", "--dir", root)
    server = subprocess.Popen([*days, "serve", "--bind", address], env=scenario.env, stdin=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        host, _, port = address.rpartition(":")
        ends = time.monotonic() + READY_S
        while time.monotonic() < ends:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                break
            time.sleep(0.1)
        yield f"the server {contact()}"
        subprocess.run([*days, "clock", "accept", "--yes"], env=scenario.env, check=True, capture_output=True)
        while (heard := contact()) != "answers" and time.monotonic() < ends:
            time.sleep(1)
        yield f"the server {heard}, {state()}"
    finally:
        server.terminate()
        server.wait(READY_S)
    scenario.tool("license-server", "clock", "accept", "--yes")
    scenario.tool("license-stand", "server", "start", "--dir", root)
    yield f"the server {contact()}, {state()}"
