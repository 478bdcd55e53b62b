"""Opens an agent's files with the core of the last release, as its daemon does at a start, and says what it found.

Run by the Python of that release (scripts/last-release), which has none of today's modules. Each line on stdin is an order in
JSON, each line on stdout its answer. Two things are the test's: the clocks, and that nobody listens on the sockets.
"""
# mypy: ignore-errors
# ruff: noqa: I001 - the modules are those of another commit

import asyncio
import base64
import json
import logging
import sys
import time
from pathlib import Path

import msgspec

import agentd.secretops
from agentd import binding, books, repeats, revocations, rotationtable, statefile, timebase, tlskey
from agentd.assembly import assemble, lock_state
from agentd.clock import Clock
from agentd.config import parse_config
from agentd.connection import Hub
from agentd.daemon import Daemon
from agentd.identity import identified
from audittrail import anchor
from audittrail.verify import verify_lines
from contracts.exchange import Cause
from hwsec import objectfile
from hwsec.backend import HardwareClock
from hwsec.owner import HardwareOwner
from hwsec.vault import Vault


def main() -> None:
    """Carries orders out until there are no more."""
    logging.disable()
    owner = HardwareOwner()
    for line in sys.stdin:
        order = json.loads(line)
        if "examples" in order:
            sys.stdout.write(json.dumps(examples(Path(order["examples"]))) + "\n")
            sys.stdout.flush()
            continue
        boot = HardwareClock(order["boot_ms"], order["boots"], 0, True)
        agentd.secretops.read_boot_clock = lambda boot=boot: boot
        sys.stdout.write(json.dumps(asyncio.run(started(order, owner))) + "\n")
        sys.stdout.flush()


def examples(directory):
    """What that release reads in single files of a directory, by their names."""

    def data(name):
        return (directory / name).read_bytes()

    book = books.LicenseBook()
    found = objectfile.ObjectFile(directory / "tpm.objects", Vault()).read()
    read = {
        "server": binding.decode(data("server")),
        "server_time": timebase.decode(data("server_time")),
        "tls": tlskey.decode(data("tls")),
        "revocations": revocations.decode(data("revocations")),
        "rotation.json": msgspec.json.decode(data("rotation.json"), type=rotationtable.Rotation),
        "licenses.json": [book.load(directory / "licenses.json"), book.licenses()],
        "state.json": statefile.StateFile(directory / "state.json").read()[1].value,
        "audit.repeats": [each.fields["event"] for each in repeats.Repeats(directory / "audit.repeats").recover()],
        "audit.anchors": list(anchor.decode(data("audit.anchors"))),
        "audit.log": verify_lines(data("audit.log").splitlines(keepends=True)).records,
        "tpm.objects": [found.kek.binding.kind, found.hardware_id],
    }
    return msgspec.to_builtins(read)


async def started(order, owner):
    """One run of the daemon, which changes each of its files; it has begun a rotation at its end."""
    config = identified(parse_config(order["config"], "test"))
    lock = lock_state(config)
    clock = Clock(lambda: order["wall"], time.monotonic)
    parts = await owner.run(lambda: assemble(config, clock, lambda: None, owner), 60)
    daemon = Daemon(parts, Hub(clock.monotonic, lambda: False))
    first = parts.audit_end.seq
    await daemon.start()
    engine, contents = parts.engine, parts.loaded.contents
    answer = {
        "repairs": parts.loaded.repairs,
        "versions": [[each.meta.version, each.meta.state, each.secret is not None] for each in contents.versions],
        "sections": {name: base64.b64encode(data).decode() for name, data in contents.sections.items()},
        "inventory_whole": parts.book_whole,
        "licenses": engine.book.licenses(),
        "newest": {license_id: engine.book.newest(license_id) for license_id in engine.book.licenses()},
        "last_contact": daemon.kept.last_server_contact,
        "rotation": msgspec.to_builtins(daemon.contacts._rotor.rotation),
        "verdicts": {token: told(engine.validate(token, clock.now())) for token in order["tokens"]},
    }
    for _ in range(3):
        parts.audit.record("license.validated", "ok", actor={"uid": 1000})
    await daemon.ops.hear_time(int(order["wall"]), fresh=True)
    await daemon.ops.keep({}, "trust.updated")
    journal = rotationtable.begun(Cause.FORCED, contents.versions[-1].meta.version, clock.now())
    config.rotation_journal.write_bytes(msgspec.json.encode(journal))
    await daemon.heard_from_server()
    answer["generation"] = daemon.ops.generation
    verified = parts.keeper.verify()
    answer["verified"] = [verified.ok, None if verified.problem is None else str(verified.problem), verified.resealed]
    await daemon.finish()
    lock.close()
    records = [json.loads(line) for line in config.audit_log.read_text().splitlines()]
    answer["events"] = [[each["event"], each["outcome"]] for each in records if each["seq"] > first]
    return answer


def told(verdict):
    """A verdict in words."""
    return [verdict.valid, verdict.reason]


if __name__ == "__main__":
    main()
