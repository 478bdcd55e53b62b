"""An example of each file that the agent keeps, with all members, as today's code writes it; files.json has them frozen."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from agentd.audit.coalesced import CoalescedEvents
from agentd.base.clock.signedtime import Standing
from agentd.base.clock.timeanchor import Reading, TimeAnchor
from agentd.base.identity import FILE_NAME, write_agent_id
from agentd.licenses.inventory import LicenseInventory
from agentd.licenses.seats import Floating
from agentd.licenses.usage import Usage
from agentd.ota.journal import Journal, Report
from agentd.ota.register import Entry
from agentd.ota.table import Failure, Order, Step, Update
from agentd.rotation.table import Rotation
from agentd.rotation.table import Step as RotationStep
from agentd.secrets.record import (
    AdminAccess,
    AgentRecord,
    SealedTlsKey,
    SealedTlsKeys,
    SealedWebhookKey,
    ServerRecord,
    SettledKeySet,
    UnconfirmedTime,
    UsedBreakGlass,
)
from agentd.secrets.revocations import Revocations
from agentd.secrets.withheld import Withheld
from agentd.sync.fleetsettings import KeptDocument
from agentd.telemetry.alertqueue import Dead, Event, Kept
from agentd.telemetry.backups import BackupRecord
from agentd.telemetry.statefile import encode_state
from audittrail import anchor
from audittrail.chain import Chain
from contracts.exchange import Cause
from hwsec.objectfile import Blob, ObjectFile, SealedKek, SealedObjects
from hwsec.pcr.policy import Binding
from hwsec.secretmem import SecretBuffer
from hwsec.vault import SECRET_BYTES, Vault
from installer.phases import Phase
from installer.state import Pending, Product, State, StateFile, Version
from tests.support.pair import config_of
from updatetrust.metadata import KeptRole, KeptVersions

FILE = Path(__file__).parents[1] / "vectors" / "files.json"
FROZEN: dict[str, str] = json.loads(FILE.read_bytes())["files"] if FILE.exists() else {}
AGENT, LICENSE, T0 = "pos-000001", "license-1", 1_800_000_000
PIN, OTHER_PIN = "sha256:" + "1" * 64, "sha256:" + "2" * 64
TIME = TimeAnchor(T0, True, Reading(1000, 2), Reading(3000, 4))
STORE = "secrets.store"

# Keys of nobody; a trust file is the license server's to write, and its form is part of the protocol.
TRUST = (
    b'{"issuer":"https://server","license_keys":[{"kty":"EC","crv":"P-256",'
    b'"x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY","y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU","kid":"a"}],'
    b'"delivery_keys":[{"kty":"EC","crv":"P-256",'
    b'"x":"axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY","y":"T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU","kid":"b"}]}'
)

RECORD = AgentRecord(
    TRUST,
    time=TIME,
    hardware_id="ab" * 32,
    server=ServerRecord(
        agent_id=AGENT, serial=7, url="https://server", pins=(PIN,), roots=(PIN, OTHER_PIN), key_set=3, key_set_expires=T0 + 9,
        attestation="tpm",
    ),
    tls=SealedTlsKeys(
        current=SealedTlsKey(certificates=("a", "b"), sealed=b"\x00\xff"),
        pending=SealedTlsKey(certificates=("c",), sealed=b"\x01"),
    ),
    revocations=Revocations(number=4, issued_at=T0, next_update=T0 + 6, revoked=frozenset({LICENSE})),
    others={"a later release": b"\x01"},
    unconfirmed=UnconfirmedTime(standing=Standing.HELD, time=TIME, clock=T0 - 5),
    settled=SettledKeySet(trust_file=b"{}", roots=(OTHER_PIN,)),
    capabilities=("license-sync", "updates"),
    withheld=Withheld(number=9, suspended={"s": T0 + 1}, removed={"r": T0 + 2}, given_back={"g": T0 + 3}),
    access=AdminAccess(
        latched=True,
        revoked=("cd" * 32,),
        break_glass=(UsedBreakGlass(certificate="ef" * 32, began=Reading(5, 6), ends=T0 + 7, over=True),),
    ),
    webhook_keys=(SealedWebhookKey(id="k1", created_at=T0, sealed=b"\x02"),),
)  # fmt: skip
ROTATION = Rotation(step=RotationStep.SEALED, cause=Cause.URGENT, before=3, version=4, since=T0)
JOURNAL = Journal(
    update=Update(
        step=Step.PROVING,
        order=Order(
            number=7, product="pos", version="2.0.0", build_id="b2", sha256="ab" * 32, directive="d", key_set="k", rollout="r",
            source="package", operator="Eva", received=T0, not_before=T0 + 1, not_after=T0 + 2, notice_until=T0 + 3,
            zone="Europe/Berlin", days=("mon",), start="02:00", end="04:00", notes="what is new", length=1000,
        ),
        since=T0, spent=5, reached=Step.STAGED, failure=Failure(code="unproved", text="it failed", counted=False, final=True),
        attempts=2, starts=1, before="1.0.0", done=6, retry_at=T0 + 4, urgent=True, rehearsal=True, licensed=True, well=True,
        backup="ota-backup.json",
    ),
    known=7,
    paused="uid 1000",
    bench_since=T0,
    reports=(Report(number=6, state="rolled-back", detail="why", at=T0),),
)  # fmt: skip
REGISTER = (
    Entry(
        time=T0 + 90, began=T0, duration_s=90, product="pos", version="2.0.0", build_id="b2", before="1.0.0", number=7,
        operator="Eva", outcome="installed", reason="", attempts=1,
    ),
)  # fmt: skip
_EVENT = Event(
    id="1" * 32, alert="alert.clock_suspect", severity="medium", title="The clock", action="Set it.", state="cleared",  # type: ignore[arg-type]
    raised_at=T0, cleared_at=T0 + 1,
)  # fmt: skip
ALERTS = msgspec.convert(
    msgspec.to_builtins(
        Kept(
            open={"alert.clock_suspect": T0}, waiting=(_EVENT,), dead=(Dead(event=_EVENT, at=T0 + 2, problem="503"),),
            failing_since=T0, attempts=3,
        )
    ),
    Kept,
)  # fmt: skip
STATE = {"agent_id": AGENT, "last_server_contact": T0, "degraded_since": T0 - 1, "degraded_held": True}
ANCHORS = {"security": anchor.Removed("security", 9, "ab" * 32, 5, T0, "retention", b"\x01" * 64)}
FLEET = KeptDocument(document="h.p.s")
BACKUP = BackupRecord(T0, "/var/backups/agent.json", T0 + 1, "no room")


def _written(write: Callable[[Path], str]) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return (Path(name) / write(Path(name))).read_bytes()


def _identity(directory: Path) -> str:
    (directory / "state").mkdir()
    write_agent_id(config_of(directory), AGENT)
    return f"state/{FILE_NAME}"


def fill_inventory(inventory: LicenseInventory) -> None:
    """One license with a newest token, one that was validated, one seat."""
    inventory.hold(LICENSE, T0, "t.o.k.e.n", 2, T0 + 100, T0)
    inventory.saw("t.o.k.e.n", LICENSE, T0)
    inventory.synced = 9
    seat = Floating(
        "shop", ("till",), T0 + 100, 60, offered=False, seat="seat-1", lease_until=T0 + 1, grace_until=T0 + 2, used=T0
    )
    inventory.seats.replace({"floating-1": seat}, ["seat-0"])


def _inventory(directory: Path) -> str:
    inventory = LicenseInventory(directory / "licenses.json")
    fill_inventory(inventory)
    asyncio.run(inventory.save())
    return "licenses.json"


def _counts(directory: Path) -> str:
    table = CoalescedEvents(directory / "audit.repeats")
    table.count("a", 1.0, lambda: {"event": "license.validated", "outcome": "ok", "uid": 1000}, times=2)
    table.count_known("a", 5.0)
    table.count("b", 2.0, lambda: {"event": "license.listed", "outcome": "ok"}, recent=True)
    table.close()
    return "audit.repeats"


def _usage(directory: Path) -> str:
    usage = Usage(directory / "usage.counts", AGENT, lambda length: b"\x07" * length, lambda: 0.0)
    usage.count(LICENSE, "sales", 3, b"\x05" * 16)
    usage.close()
    return "usage.counts"


def _chain() -> bytes:
    chain = Chain()
    return b"".join(
        (
            chain.append(T0 + 0.25, 5.5, "agent.started", "ok", {"version": "0.1.0"}),
            chain.append(T0 + 1.0, 6.0, "license.validated", "ok", {"actor": {"uid": 1000}}),
            chain.append(T0 + 2.0, 7.0, "license.validated", "bad_signature", {"actor": {"uid": 1000}}),
            chain.append(T0 + 3.0, 8.0, "ota.success", "installed", {"product": "pos"}),
            chain.append(T0 + 4.0, 9.0, "license.listed", "ok", {}),
        )
    )


TPM_PARTS = {name: Blob(name.encode() * 2, b"\x01" + name.encode()) for name in ("kek", "attestation", "identity", "agreement")}
BASE_POINT = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
BINDING = Binding("custom", (7, 11), BASE_POINT)
INSTALLER = State(
    key_set=3, directive=7, directive_sha256="ab" * 32, executed=6, floors={"pos": "1.0.0"}, floor_time=T0, pins=(PIN,),
    roots=(OTHER_PIN,), metadata=KeptVersions(2, {"timestamp": KeptRole(5, "cd" * 32)}),
    products={
        "pos": Product(
            phase=Phase.PROVING,
            places={
                "a": Version(version="1.0.0", build_id="b1", sha256=""),
                "b": Version(version="2.0.0", build_id="b2", sha256="ab" * 32),
            },
            good="a",
            pending=Pending(place="b", number=7, not_after=T0 + 9, floor="1.0.0", proved=True),
            last="rolled-back",
        )
    },
)  # fmt: skip


def _tpm_objects(directory: Path) -> str:
    with contextlib.closing(Vault()) as vault:
        auths = []
        for value in (b"\x0a", b"\x0b"):
            with SecretBuffer(SECRET_BYTES) as buffer:
                buffer.view[:] = value * SECRET_BYTES
                auths.append(vault.wrap(buffer))
        parts = TPM_PARTS
        kek = SealedKek(parts["kek"], auths[0], BINDING)
        others = parts["attestation"], parts["identity"], parts["agreement"]
        ObjectFile(directory / "tpm.objects", vault).write(SealedObjects(b"\x00srk", kek, auths[1], *others, "ab" * 32))
    return "tpm.objects"


def _installer(directory: Path) -> str:
    StateFile(directory).save(INSTALLER)
    return "state.json"


def text_of(data: bytes) -> str:
    """Bytes as files.json has them: text where they are text, else the lines of 16 bytes that are not all zero, in hex."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return text
    runs = [f"{len(data)} bytes"]
    for place in range(0, len(data), 16):
        line = data[place : place + 16]
        if any(line):
            runs.append(f"{place:06x} {line.hex()}")
    return "\n".join(runs)


def bytes_of(text: str) -> bytes:
    """The bytes of `text_of`."""
    head, *runs = text.split("\n")
    if not head.endswith(" bytes"):
        return text.encode("ascii")
    data = bytearray(int(head.removesuffix(" bytes")))
    for run in runs:
        place, line = run.split(" ")
        data[int(place, 16) : int(place, 16) + 16] = bytes.fromhex(line)
    return bytes(data)


EXAMPLES: dict[str, Callable[[], bytes]] = {
    **{f"{STORE}, section {name}": (lambda data=data: data) for name, data in RECORD.sections().items()},  # type: ignore[misc]
    "rotation.json": lambda: msgspec.json.encode(ROTATION),
    "ota.json": lambda: msgspec.json.encode(JOURNAL),
    "ota-register.json": lambda: msgspec.json.encode(REGISTER),
    "licenses.json": lambda: _written(_inventory),
    "webhook.json": lambda: msgspec.json.encode(ALERTS),
    "state.json": lambda: encode_state(STATE),
    "agent.json": lambda: _written(_identity),
    "fleet-configuration.json": lambda: msgspec.json.encode(FLEET),
    "backup.json": lambda: msgspec.json.encode(BACKUP),
    "audit.log": _chain,
    "audit.anchors": lambda: anchor.encode(ANCHORS),
    "audit.repeats": lambda: _written(_counts),
    "usage.counts": lambda: _written(_usage),
    "tpm.objects": lambda: _written(_tpm_objects),
    "the installer's state.json": lambda: _written(_installer),
}
"""What writes each file, by its name."""
