"""The demo: a scenario on a stand. Every verdict comes from the agent, over its real socket; none is worked out here."""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
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

from server.wiring import open_server
from stand.programs import READY_S

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
        """Runs one of the installed commands on the stand, without a terminal: the demo asks nothing."""
        done = subprocess.run(
            [str(BIN / name), *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_S,
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
    """What a thief makes who has stolen the agent's secret, but not the issuer's key."""
    server_side = open_server(Path(scenario.info["env"]["LICENSE_SERVER_DIR"]))
    with server_side.database.read() as session:
        opened = server_side.secrets.open(session, "pos-001", 3)
    kid = next(iter(server_side.keys.license_public_keys()))
    server_side.close()
    if opened is None:
        raise RuntimeError("there is no secret to steal")
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
    header = {"alg": "ES256", "typ": "license+jwt", "kid": kid}
    signed = jws.serialize_compact(header, json.dumps(claims), ECKey.generate_key("P-256"), algorithms=["ES256"])
    envelope = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": "pos-001/3"}
    token: str = jwe.encrypt_compact(envelope, signed.encode(), OctKey.import_key(opened[1]), algorithms=["dir", "A256GCM"])
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
        sock.settimeout(READY_S)
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
        "import os, sys, json, encodings.idna, license_agent_client.posclient.shell as shell\n"
        f"os.setgroups([]); os.setgid({STRANGER_UID}); os.setuid({STRANGER_UID})\n"
        "sys.exit(shell.main(['validate', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, scenario.tokens["valid"]],
        env=scenario.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=READY_S,
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


class Tills:
    """POS applications that validate without a pause, each with its token in a file.

    Args:
        scenario: the stand.
        directory: for the files.
        count: how many.
    """

    def __init__(self, scenario: Scenario, directory: Path, count: int = 1) -> None:
        self._files = [directory / f"till-{number}.token" for number in range(count)]
        for file in self._files:
            file.write_text(scenario.tokens["valid"] + "\n")
        self._path = scenario.info["pos_socket"]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(file,)) for file in self._files]
        self.asked = 0
        self.failed: list[str] = []

    def __enter__(self) -> "Tills":
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, file: Path) -> None:
        with LicenseClient(self._path, deadline=READY_S) as client:
            while not self._stop.is_set():
                try:
                    verdict = client.validate_file(file)
                    if not verdict.valid:
                        self.failed.append(verdict.reason)
                except Exception as error:  # noqa: BLE001 - whatever it is, it counts as a failure
                    self.failed.append(type(error).__name__)
                self.asked += 1
                time.sleep(0.005)

    def wait_for(self, more: int) -> None:
        """Returns when so many more have been answered."""
        wanted, ends = self.asked + more, time.monotonic() + READY_S
        while self.asked < wanted and time.monotonic() < ends:
            time.sleep(0.02)

    def outcome(self) -> str:
        """What became of all requests."""
        if self.failed or self.asked < 20:
            return f"{self.asked} asked, failed: {sorted(set(self.failed))} ({len(self.failed)})"
        click.echo(f"      {self.asked} requests")
        return "every request answered: valid"


def killed(scenario: Scenario, directory: Path) -> str:
    """Validates without a pause while the agent is killed and comes back."""
    with Tills(scenario, directory) as tills:
        restart_agent(scenario)
        tills.wait_for(20)
    return tills.outcome()


def rotated_live(scenario: Scenario, directory: Path) -> str:
    """Three rotations with the server while four tills validate without a pause."""
    with Tills(scenario, directory, 4) as tills:
        for _ in range(3):
            scenario.tool("license-agent-cli", "rotate")
            tills.wait_for(20)
    return tills.outcome()


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


def restart_agent(scenario: Scenario) -> None:
    """Kills the agent; returns when the stand has started another."""
    pid = stand_info(scenario)["agent_pid"]
    os.kill(pid, signal.SIGKILL)
    ends = time.monotonic() + READY_S
    while stand_info(scenario)["agent_pid"] == pid and time.monotonic() < ends:
        time.sleep(0.05)


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
    see("agent killed under a working client", "every request answered: valid", lambda: killed(scenario, directory))
    see("rotation, token refreshed", "valid under ACTIVE, new token in the file", lambda: refreshed(scenario, directory))
    see("rotated live, four tills at work", "every request answered: valid", lambda: rotated_live(scenario, directory))
    see("license revoked by the server", "valid: ok, then refused: revoked", lambda: revoked(scenario))
    see("TLS certificate renewed", "a later one in use", lambda: new_certificate(scenario))
    see("new key of the server", "a later key set, contacts failed: 0", lambda: new_server_key(scenario))
    click.echo("\nNobody reads the agent's log, as when the journal is frozen, and its pipe is full:")
    log = unread_log(scenario, directory / "till-0.token")
    see("validations meanwhile", "every request answered: valid", lambda: next(log))
    see("lines of the log that had no room", "counted by the metric", lambda: next(log))
    see("the log is read again", "it says how many are missing", lambda: next(log))
    log.close()
    click.echo("\nThe server's clock is eight days ahead:")
    moments = wrong_clock(scenario, directory / "till-0.token")
    see("contact with it", "the server signs nothing", lambda: next(moments))
    see(
        "the same, an operator having accepted its clock",
        "the server answers, its time is held, license valid: ok",
        lambda: next(moments),
    )
    see("its clock right again, one contact", "the server answers, its time is taken, license valid: ok",
        lambda: next(moments))  # fmt: skip
    click.echo("\nThe server is cut off (its dates are shortened to seconds for this):")
    stages = cut_off(scenario, directory / "till-0.token")
    see("with the server", "online, valid: ok", lambda: next(stages))
    see("server stopped, a new secret due", "degraded, valid: ok", lambda: next(stages))
    see("grace over", "expired, refused: degraded_expired", lambda: next(stages))
    see("server back, one contact", "online, valid: ok", lambda: next(stages))
    click.echo("")
    see("audit log checked", "intact", lambda: audit_intact(scenario))
    see("one byte of the audit log changed", "TAMPERED", lambda: audit_changed(scenario, directory))


@contextlib.contextmanager
def running_stand(root: Path, backend: str) -> Iterator[dict[str, Any]]:
    """A stand, for the length of a block."""
    process = subprocess.Popen(
        [str(BIN / "license-stand"), "up", "--dir", str(root), "--backend", backend],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        info = root / "stand.json"
        ends = time.monotonic() + READY_S
        while not info.exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit("demo: the stand did not come up")
            time.sleep(0.05)
        yield json.loads(info.read_text())
    finally:
        process.terminate()
        process.wait(READY_S)


def main() -> int:
    """Runs the demo; 0 only if the agent did what it should in every row."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--backend", choices=["tpm", "software"], default="tpm")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="license-demo-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        click.echo(f"starting a stand: license server, link, {options.backend} backend, and an agent that is provisioned …")
        with running_stand(directory / "stand", options.backend) as info:
            scenario = Scenario(info)
            play(scenario, directory)
            click.echo("\n$ license-agent-cli status\n" + scenario.tool("license-agent-cli", "status", fine=(0, 1)))
            click.echo("$ license-agent-cli secrets\n" + scenario.tool("license-agent-cli", "secrets"))
            click.echo("$ license-agent-cli audit tail -n 5\n" + scenario.tool("license-agent-cli", "audit", "tail", "-n", "5"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = [(row.what, row.expected, row.found, "yes" if row.agrees else "NO") for row in scenario.rows]
    click.echo(tabulate(rows, headers=["what was tried", "expected", "the agent's answer", "agrees"]))
    bad = sum(not row.agrees for row in scenario.rows)
    click.echo(f"\n{len(rows) - bad} of {len(rows)} as expected")
    return 1 if bad else 0


def entry() -> int:
    """`main`, for a person who interrupts it, or reads no further."""
    try:
        return main()
    except KeyboardInterrupt:
        click.echo("\ndemo: interrupted; what it had started has ended", err=True)
        return 130
    except BrokenPipeError:
        # Nobody reads on. Python would try to write what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(entry())
