"""The demo: a scenario on a stand. Every verdict comes from the agent, over its real socket; none is worked out here."""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from demoscenes.contacts import cut_off, new_certificate, new_server_key, revoked, wrong_clock
from demoscenes.forgeries import forged, invalidate, replay, stranger, unknown_version, unsigned
from demoscenes.logs import audit_changed, audit_intact, unread_log
from demoscenes.scenario import BIN, Scenario
from demoscenes.tills import killed, refreshed, rotated_live
from demoscenes.updates import updated
from tabulate import tabulate

from stand.programs import READY_S


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
    click.echo("\nThe POS application is updated, by a vendor with a repository of updates:")
    versions = updated(scenario, directory)
    see("version 1.1, a till at work meanwhile", "installed, every request answered: valid", lambda: next(versions))
    see("version 1.2, whose health command fails", "rolled-back: unproved", lambda: next(versions))
    see("version 1.3, changed in the repository", "refused: digest-differs", lambda: next(versions))
    see("what runs after all that", "pos 1.1", lambda: next(versions))
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
