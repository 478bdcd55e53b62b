"""Today's core starts on the files that the daemon of release 0.1.0 wrote, and loses nothing. The files are frozen."""

import asyncio
import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.base.config.config import parse_config
from agentd.base.identity import identified
from agentd.daemon import Daemon
from agentd.rotation.table import Rotation, Step
from agentd.sockets.connection import Hub
from agentd.telemetry.statefile import Origin
from agentd.wiring import assemble, connect
from contracts.exchange import Cause
from hwsec.software import SoftwareBackend
from tests.support.pair import StillClock, shared_owner

FILE = Path(__file__).parents[1] / "vectors" / "files-0.1.0.json"
# What agents of 0.1.0 have on their disks is a fact: where a test fails on this file, the code is wrong and not the file.
SHA256 = "b10f319258fc8d07d38628a7e49be5cba246c1db97b65c0307c839caca072032"
FROZEN: dict[str, Any] = json.loads(FILE.read_bytes())


def test_the_file_is_the_one_that_was_frozen() -> None:
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in FROZEN["files"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = zlib.decompress(base64.b64decode(text.removeprefix("zlib "))) if text.startswith("zlib ") else text.encode()
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_todays_core_reads_all_of_it(place: Path) -> None:
    config = identified(
        parse_config(
            f'[tpm]\nenabled = false\nfallback_encrypted_storage = "{place}/state/secret.enc"\n'
            f'[paths]\nstate_dir = "{place}/state"\nlog_dir = "{place}/log"\nkey_dir = "{place}/keys"\n',
            "test",
        )
    )
    assert config.agent.id == FROZEN["agent"]
    clock = StillClock()
    clock.seconds, clock.booted, clock.boots = 120, -1.0, 5  # the machine has run on
    clock._restarted()
    now, old = clock.now(), FROZEN["tokens"]
    machine = FROZEN["machine_id"].encode()
    made = assemble(
        config,
        clock,
        Hub(clock.monotonic),
        shared_owner(),
        lambda _config, vault: SoftwareBackend(place / "keys", machine, vault),
    )
    found, record, validator = made.found, made.store.record, made.validator

    assert found.loaded.generation == 3 and found.loaded.repairs == ()
    assert [(each.meta.version, each.meta.state) for each in made.store.ring.versions] == [(1, "GRACE"), (2, "ACTIVE")]
    assert record.server is not None and (record.server.serial, record.server.key_set) == (7, 3)
    assert record.time is not None and record.time.signed == FROZEN["now"] - 60
    assert record.revocations.number == 4 and record.revocations.revoked == {"gone"}
    assert made.tls is not None and record.tls is not None and record.tls.pending is None
    assert [validator.validate(token, now).verdict.valid for token in old] == [True, True]
    assert found.inventory_whole and validator.inventory.newest("license-1") == old[1]
    assert validator.inventory.license_of(old[0]) == "license-1"
    assert found.kept.last_server_contact == FROZEN["now"] and (found.kept_from, found.state_corrupt) == (Origin.MAIN, False)
    assert found.audit_end.checked.problem is None and found.audit_end.torn == 0
    first = found.audit_end.seq

    async def run() -> None:
        agent = connect(made)
        assert agent.rotation is not None
        assert agent.rotation.rotation == Rotation(step=Step.REQUESTED, cause=Cause.URGENT, before=2, since=FROZEN["now"])
        daemon = Daemon(agent)
        await daemon.start()
        assert (await made.keeper.verify_in_turn()).problem is None
        await daemon.finish()

    asyncio.run(run())
    records = [each for each in map(msgspec.json.decode, config.audit_log.read_bytes().splitlines()) if each["seq"] > first]
    assert [each["event"] for each in records if each["outcome"] != "ok" or each["event"].startswith("alert.")] == []
    assert [each["count"] for each in records if each["event"] == "license.validated"] == [1]
    assert not any(each.get("reseal") for each in records)
