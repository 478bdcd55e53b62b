"""The demo: a scenario on a stand. Every verdict comes from the agent, over its real socket; none is worked out here."""

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey
from license_agent_client import LicenseClient
from license_agent_client.clientwire import decode_reply, encode_request
from license_agent_client.errors import RemoteProtocolError
from license_agent_client.frames import FrameDecoder
from tabulate import tabulate

from contracts.jose import thumbprint

BIN = Path(sys.executable).parent
STRANGER_UID = 54321


@dataclass
class Row:
    """One line of the table."""

    what: str
    expected: str
    found: str

    @property
    def agrees(self) -> bool:
        """Whether the agent did what it should."""
        return self.expected == self.found


class Scenario:
    """The stand, and what has been seen on it."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.tokens: dict[str, str] = info["tokens"]
        self.env = {**os.environ, **info["env"]}
        self.rows: list[Row] = []

    def see(self, what: str, expected: str, act: Callable[[], str]) -> None:
        """Does something and notes what the agent made of it."""
        try:
            found = act()
        except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the table
            found = f"{type(error).__name__}: {error}"
        row = Row(what, expected, found)
        self.rows.append(row)
        mark = click.style("ok ", fg="green") if row.agrees else click.style("BAD", fg="red")
        click.echo(f"  {mark} {what}: {found}")

    def tool(self, name: str, *arguments: str, fine: tuple[int, ...] = (0,)) -> str:
        """Runs one of the installed commands on the stand."""
        done = subprocess.run(
            [str(BIN / name), *arguments], env=self.env, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode not in fine:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def ask(self, token: str) -> dict[str, Any]:
        """The verdict, by the command for shells."""
        reply: dict[str, Any] = json.loads(self.tool("license-agent-client", "validate", token, fine=(0, 1)))
        return reply

    def verdict(self, token: str) -> str:
        """The verdict as the table shows it."""
        reply = self.ask(token)
        word = "valid" if reply["valid"] else "refused"
        return f"{word}: {reply['reason']}" + (" (secret in GRACE)" if reply["secret_state"] == "GRACE" else "")


def forged(scenario: Scenario) -> str:
    """What a thief makes who has stolen the agent's secret from the server's database, but not the issuer's key."""
    database = Path(scenario.info["env"]["LICENSE_SERVER_DIR"]) / "server.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        secret = db.execute("SELECT secret FROM secret WHERE agent_id = 'pos-001' AND version = 3").fetchone()[0]
        (kid_source,) = db.execute("SELECT value FROM setting WHERE name = 'license_key'").fetchone()
    now = int(time.time())
    claims = {
        "iss": "license-server",
        "sub": "Thief",
        "aud": "pos-001",
        "iat": now,
        "nbf": now - 10,
        "exp": now + 10**6,
        "jti": "forged",
        "features": ["everything"],
        "metadata": {},
    }
    header = {"alg": "ES256", "typ": "license+jwt", "kid": thumbprint(json.loads(kid_source))}
    signed = jws.serialize_compact(header, json.dumps(claims), ECKey.generate_key("P-256"), algorithms=["ES256"])
    envelope = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": "pos-001/3"}
    token: str = jwe.encrypt_compact(envelope, signed.encode(), OctKey.import_key(secret), algorithms=["dir", "A256GCM"])
    return token


def unsigned(scenario: Scenario) -> str:
    """A token whose header claims an algorithm that is never issued."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","cty":"JWT","enc":"A256GCM","kid":"pos-001/3"}').rstrip(b"=").decode()
    return header + scenario.tokens["valid"][scenario.tokens["valid"].index(".") :]


def replay(scenario: Scenario) -> str:
    """Sends the same request, nonce and all, twice."""
    fields = {"token": scenario.tokens["valid"], "nonce": os.urandom(16)}
    answers = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(scenario.info["pos_socket"])
        decoder = FrameDecoder()
        for number in (1, 2):
            sock.sendall(encode_request("validate_license", number, fields))
            bodies: list[bytes] = []
            while not bodies:
                bodies = decoder.receive_data(sock.recv(65536))
            try:
                answers.append("valid" if decode_reply(bodies[0], number)["valid"] else "refused")
            except RemoteProtocolError as error:
                answers.append(f"refused: {error.code.name}")
    return ", then ".join(answers)


def stranger(scenario: Scenario) -> str:
    """Asks as a user who is not on the allow-list."""
    # All is imported before the user changes: the stranger could not read a checkout in root's home.
    code = (
        "import os, sys, json, encodings.idna, license_agent_client.shell as shell\n"
        f"os.setgroups([]); os.setgid({STRANGER_UID}); os.setuid({STRANGER_UID})\n"
        "sys.exit(shell.main(['validate', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, scenario.tokens["valid"]],
        env=scenario.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd="/",
    )
    return "refused: FORBIDDEN" if done.returncode == 4 and "FORBIDDEN" in done.stderr else f"{done.stdout}{done.stderr}"


def unknown_version(scenario: Scenario) -> str:
    """A token under a secret that the server has made and never delivered."""
    scenario.tool("license-server", "rotate", "--agent", "pos-001", "--out", os.devnull)
    return scenario.tool("license-server", "issue", "--agent", "pos-001", "--feature", "x", "--expires", "+1d").strip()


def invalidate(scenario: Scenario) -> str:
    """An administrator gives up version 2; the license that it carried a moment ago is refused."""
    scenario.tool("license-agent-cli", "secrets", "invalidate", "2", "--yes")
    return scenario.verdict(scenario.tokens["grace"])


def killed(scenario: Scenario) -> str:
    """Validates without a pause while the agent is killed and comes back."""
    stop, outcomes, errors = threading.Event(), [0], []

    def till() -> None:
        with LicenseClient(scenario.info["pos_socket"], deadline=20) as client:
            while not stop.is_set():
                try:
                    if not client.validate(scenario.tokens["valid"]).valid:
                        errors.append("refused")
                except Exception as error:  # noqa: BLE001 - whatever it is, it counts as a failure
                    errors.append(type(error).__name__)
                outcomes[0] += 1
                time.sleep(0.01)

    worker = threading.Thread(target=till)
    worker.start()
    time.sleep(0.3)
    before = outcomes[0]
    pid = stand_info(scenario)["agent_pid"]
    os.kill(pid, signal.SIGKILL)
    ends = time.monotonic() + 20
    while stand_info(scenario)["agent_pid"] == pid and time.monotonic() < ends:
        time.sleep(0.05)
    after = outcomes[0]
    while outcomes[0] < after + 20 and time.monotonic() < ends:
        time.sleep(0.05)
    stop.set()
    worker.join()
    if errors or before == 0 or outcomes[0] < after + 20:
        return f"{outcomes[0]} asked, failed: {errors}"
    return "every request answered: valid"


def stand_info(scenario: Scenario) -> dict[str, Any]:
    """stand.json as it is now."""
    info: dict[str, Any] = json.loads((Path(scenario.info["state_dir"]).parent / "stand.json").read_text())
    return info


def refreshed(scenario: Scenario, directory: Path) -> str:
    """After a rotation the client library swaps a token file for the re-issued token."""
    file = directory / "license.token"
    file.write_text(scenario.tokens["valid"] + "\n")
    scenario.tool("license-stand", "rotate", "--dir", str(Path(scenario.info["state_dir"]).parent))
    with LicenseClient(scenario.info["pos_socket"]) as client:
        verdict = client.validate_file(file)
        # A re-issued token is under the new secret, so nothing is due for it.
        swapped = file.read_text().strip() != scenario.tokens["valid"]
        word, age = "valid" if verdict.valid else "refused", "new" if swapped else "old"
        return f"{word} under {verdict.secret_state}, {age} token in the file"


def audit_intact(scenario: Scenario) -> str:
    """The agent's own check of its log."""
    return str(scenario.tool("license-agent-cli", "audit", "verify")).split(":")[0].strip()


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


def play(scenario: Scenario, directory: Path) -> None:
    """The scenario."""
    tokens = scenario.tokens
    see = scenario.see
    click.echo(f"\nA token, as the POS application has it ({len(tokens['valid'])} characters):\n  {tokens['valid'][:100]}…")
    click.echo("\nWhat the agent answers about it:")
    for line in json.dumps(scenario.ask(tokens["valid"]), indent=2).splitlines():
        click.echo(f"  {line}")
    click.echo("\nThe scenario:")
    see("valid license", "valid: ok", lambda: scenario.verdict(tokens["valid"]))
    see("expired license", "refused: expired", lambda: scenario.verdict(tokens["expired"]))
    see("license that begins tomorrow", "refused: not_yet_valid", lambda: scenario.verdict(tokens["not_yet_valid"]))
    see("one byte changed", "refused: bad_signature", lambda: scenario.verdict(tokens["tampered"]))
    see("forged with a stolen secret", "refused: bad_signature", lambda: scenario.verdict(forged(scenario)))
    see("algorithm 'none'", "refused: malformed", lambda: scenario.verdict(unsigned(scenario)))
    see("license of another agent", "refused: wrong_audience", lambda: scenario.verdict(tokens["wrong_audience"]))
    see("secret version not known here", "refused: unknown_secret", lambda: scenario.verdict(unknown_version(scenario)))
    see("the same request sent twice", "valid, then refused: NONCE_REPLAYED", lambda: replay(scenario))
    if os.geteuid() == 0:
        see("caller who is not allowed", "refused: FORBIDDEN", lambda: stranger(scenario))
    else:
        click.echo("  --  caller who is not allowed: left out, only root can play another user")
    see("license under an older secret", "valid: ok (secret in GRACE)", lambda: scenario.verdict(tokens["grace"]))
    see("the same, after that secret is invalidated", "refused: secret_invalidated", lambda: invalidate(scenario))
    see("agent killed under a working client", "every request answered: valid", lambda: killed(scenario))
    see("rotation, token refreshed", "valid under ACTIVE, new token in the file", lambda: refreshed(scenario, directory))
    see("audit log checked", "intact", lambda: audit_intact(scenario))
    see("one byte of the audit log changed", "TAMPERED", lambda: audit_changed(scenario, directory))


@contextlib.contextmanager
def running_stand(root: Path, backend: str) -> Iterator[dict[str, Any]]:
    """A stand, for the length of a block."""
    process = subprocess.Popen(
        [str(BIN / "license-stand"), "up", "--dir", str(root), "--backend", backend], stdout=subprocess.DEVNULL
    )
    try:
        info = root / "stand.json"
        ends = time.monotonic() + 120
        while not info.exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit("demo: the stand did not come up")
            time.sleep(0.05)
        yield json.loads(info.read_text())
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    """Runs the demo; 0 only if the agent did what it should in every row."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--backend", choices=["tpm", "software"], default="tpm")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="license-demo-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        click.echo(f"starting a stand: license server, {options.backend} backend, agent …")
        with running_stand(directory / "stand", options.backend) as info:
            scenario = Scenario(info)
            play(scenario, directory)
            click.echo("\n$ license-agent-cli status\n" + scenario.tool("license-agent-cli", "status"))
            click.echo("$ license-agent-cli secrets\n" + scenario.tool("license-agent-cli", "secrets"))
            click.echo("$ license-agent-cli audit tail -n 5\n" + scenario.tool("license-agent-cli", "audit", "tail", "-n", "5"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = [(row.what, row.expected, row.found, "yes" if row.agrees else "NO") for row in scenario.rows]
    click.echo(tabulate(rows, headers=["what was tried", "expected", "the agent's answer", "agrees"]))
    bad = sum(not row.agrees for row in scenario.rows)
    click.echo(f"\n{len(rows) - bad} of {len(rows)} as expected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
