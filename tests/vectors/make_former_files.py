"""Writes files-0.1.0.json: the files of an agent as the daemon of release 0.1.0 wrote them. Run once, in its checkout:

    git worktree add /tmp/release $(grep -v '^#' packaging/last-release | cut -d' ' -f2)
    python=$(scripts/last-release)/python make=$PWD/tests/vectors/make_former_files.py
    cd /tmp/release && PYTHONPATH=$PWD $python $make files-0.1.0.json

It uses the code of that commit and does not run with today's. Keys and signatures are random, so another run gives
another file. The file is frozen: agents of 0.1.0 are in the field. Its keys protect nothing.
"""
# mypy: ignore-errors
# ruff: noqa: I001 - the modules are those of another commit

import asyncio
import base64
import datetime
import json
import sys
import tempfile
import time
import zlib
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

import agentd.secretops
from agentd import assembly, binding, repeats, revocations, rotationtable, timebase, tlskey
from agentd.certificates import BLOB_NAME
from agentd.clock import Clock
from agentd.config import parse_config
from agentd.connection import Hub
from agentd.daemon import Daemon
from agentd.identity import identified, write_agent_id
from contracts.exchange import Cause
from hwsec.backend import HardwareClock
from hwsec.owner import HardwareOwner
from hwsec.sealedblob import seal_blob
from hwsec.software import PBKDF2_FLOOR, SoftwareBackend
from hwsec.store import Contents
from tests.agentd.world import AGENT, DAY, T0, TRUST_FILE, World, meta, token

MACHINE = b"0123456789abcdef"
PIN = "sha256:" + "0" * 64


def certificate() -> str:
    """Of a key of nobody; only its dates are looked at."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AGENT)])
    begin = datetime.datetime.fromtimestamp(T0, datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=30))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def store(config, backend, world) -> None:
    """Commits two secret versions, and each section that 0.1.0 knows and the software backend has."""
    scalar, _csr = tlskey.new_key(AGENT, world.vault)
    with backend.kek() as kek, world.vault.open(scalar) as key:
        sealed = seal_blob(kek, BLOB_NAME, key.view)
    server = binding.Binding(
        agent_id=AGENT, serial=7, url="https://server", pins=(PIN,), roots=(PIN,), key_set=3, key_set_expires=T0 + 365 * DAY,
        attestation="software",
    )  # fmt: skip
    revoked = revocations.Revocations(number=4, issued_at=T0, next_update=T0 + 30 * DAY, revoked=frozenset({"gone"}))
    sections = {
        "trust": TRUST_FILE,
        "server_time": timebase.encode(timebase.TimeAnchor(T0, True, timebase.Reading(1000, 5))),
        "server": binding.encode(server),
        "revocations": revocations.encode(revoked),
        "tls": tlskey.encode(tlskey.StoredKeys(current=tlskey.StoredKey(certificates=(certificate(),), sealed=sealed))),
    }
    versions = (world.stored(meta(1, "GRACE", T0 - DAY)), world.stored(meta(2)))
    assembly.make_store(config, backend, world.vault).commit(Contents(versions, sections))


async def run(config, tokens: list[str]) -> None:
    """One run of the daemon."""
    owner, clock = HardwareOwner(), Clock(lambda: T0 + 60.5, time.monotonic)
    parts = await owner.run(lambda: assembly.assemble(config, clock, lambda: None, owner), 60)
    daemon = Daemon(parts, Hub(clock.monotonic, lambda: False))
    await daemon.start()
    for each in tokens:
        verdict = parts.engine.validate(each, clock.now())
        assert verdict.valid, verdict
        parts.audit.record("license.validated", "ok", actor={"uid": 1000})
    parts.engine.import_token(tokens[-1], clock.now())
    await daemon.ops.keep({}, "trust.updated")
    await daemon.heard_from_server()
    await daemon.finish()


def told(data: bytes) -> str:
    """As text, or compressed."""
    return data.decode("ascii") if data.isascii() else "zlib " + base64.b64encode(zlib.compress(data, 9)).decode()


def main() -> None:
    """Writes the file that is named."""
    boot = HardwareClock(61_000, 5, 0, True)
    agentd.secretops.read_boot_clock = lambda: boot
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for directory in ("state", "log", "keys"):
            (place / directory).mkdir()
        assembly.MACHINE_ID = place / "machine-id"
        assembly.MACHINE_ID.write_bytes(MACHINE)
        config = parse_config(
            f'[tpm]\nenabled = false\nfallback_encrypted_storage = "{place}/state/secret.enc"\n'
            f'[paths]\nstate_dir = "{place}/state"\nlog_dir = "{place}/log"\nkey_dir = "{place}/keys"\n',
            "test",
        )
        write_agent_id(config, AGENT)
        config = identified(config)
        world = World()
        backend = SoftwareBackend(config.paths.key_dir, MACHINE, world.vault, PBKDF2_FLOOR)
        backend.create()
        store(config, backend, world)
        tokens = [token(1), token(2, iat=T0 + 1)]
        asyncio.run(run(config, tokens))
        rotation = rotationtable.begun(Cause.URGENT, 2, T0 + 60)
        config.rotation_journal.write_bytes(msgspec.json.encode(rotation))
        table = repeats.Repeats(config.paths.state_dir / "audit.repeats")
        table.count("a", T0 + 61.0, lambda: {"event": "license.validated", "outcome": "ok"})
        table.close()
        left_out = ("machine-id", ".lock")
        files = {
            str(path.relative_to(place)): told(path.read_bytes())
            for path in sorted(place.rglob("*"))
            if path.is_file() and not path.name.endswith(left_out)
        }
    content = {
        "release": "0.1.0", "agent": AGENT, "now": T0 + 60, "machine_id": MACHINE.decode(), "tokens": tokens, "files": files,
    }  # fmt: skip
    Path(sys.argv[1]).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
