"""The contact for the fleet's configuration: what is asked, believed, kept and confirmed; what a damaged file is worth."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from agentd.audit.coalesced import CoalescedEvents
from agentd.audit.file import AuditFile
from agentd.audit.log import AuditLog
from agentd.base.clock.clock import Clock
from agentd.base.config.config import AuditConfig, Config, parse_config
from agentd.sync.configuration import ConfigurationSync
from agentd.sync.fleetsettings import MAX_FILE_BYTES, FleetSettings
from agentd.uplink.transport import NoContact
from audittrail.chain import Chain
from contracts.contact.configuration import (
    CONFIGURATION_TYPE,
    ConfigurationReply,
    ConfigurationRequest,
    ResultState,
    digest_of,
)
from contracts.exchange import Refusal, RefusalCode, Refused
from contracts.trust import Trust, parse_trust
from hwsec.vault import Vault
from server.keys.jose import new_signing_key, public_jwk
from tests.agentd.world import core_of
from tests.contracts.world import AGENT, DELIVERY_KEY, TRUST_FILE

OTHER_KEY = new_signing_key()
MEMBERS: dict[str, Any] = {"updates.notice_h": 72, "agent.contact_interval": 1800}


def document(number: int = 7, key: dict[str, str] = DELIVERY_KEY, **changes: Any) -> str:
    content = {"v": 1, "number": number, "agent_id": AGENT, "fleet": "north", "fleet_number": 3, "members": MEMBERS}
    header = {"alg": "ES256", "typ": CONFIGURATION_TYPE, "kid": public_jwk(key)["kid"]}
    return jws.serialize_compact(header, json.dumps({**content, **changes}), ECKey.import_key({**key}))


class Client:
    """Answers as the server does, and keeps what was asked."""

    def __init__(self) -> None:
        self.document: str | None = None
        self.asked: list[tuple[int, Any]] = []
        self.failure: Exception | None = None

    async def ask(self, kind: type[Any], make: type[Any], known: int, result: Any) -> ConfigurationReply:
        assert (kind, make) == (ConfigurationReply, ConfigurationRequest)
        make(agent_id=AGENT, request_id="0" * 32, challenge="c" * 16, timestamp=1, known=known, result=result)
        if self.failure is not None:
            raise self.failure
        self.asked.append((known, None if result is None else result.state))
        text, self.document = self.document, None
        return ConfigurationReply(agent_id=AGENT, request_id="0" * 32, issued_at=5, document=text)


class Machine:
    """The settings of one machine, whose agent may start again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trust: Trust = parse_trust(TRUST_FILE)
        self.client = Client()
        self.path = directory / "fleet-configuration.json"
        self.file = Config()
        self._runs = 0
        self.start()

    def start(self) -> None:
        self._runs += 1
        log = AuditFile(self.directory / f"audit-{self._runs}.log")
        end = log.open()
        clock = Clock()
        audit = AuditLog(
            log, Chain(end.seq, end.heads), CoalescedEvents(self.directory / f"counts-{self._runs}"), clock, AuditConfig(),
            lambda: None,
        )  # fmt: skip
        core = core_of(clock, audit, Vault())
        self.records: list[tuple[str, str, dict[str, Any]]] = []
        audit.record = lambda event, outcome, **fields: self.records.append((event, outcome, fields))  # type: ignore[method-assign]
        self.settings = FleetSettings(core, self.path, lambda: self.trust, self.file)
        self.settings.load()
        self.sync = ConfigurationSync(self.client, self.settings)  # type: ignore[arg-type]

    def contact(self, text: str | None = None) -> list[tuple[int, Any]]:
        """One contact; returns what was asked."""
        self.client.document, self.client.asked = text, []
        asyncio.run(self.sync.sync())
        return self.client.asked

    @property
    def notice_h(self) -> int:
        return self.settings.effective.config.updates.notice_h


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    return Machine(tmp_path)


def test_a_document_is_in_force_confirmed_at_once_and_after_a_restart(machine: Machine) -> None:
    assert machine.contact() == [(0, None)] and machine.notice_h == 48
    assert machine.contact(document()) == [(0, None), (7, ResultState.APPLIED)]
    result = machine.settings.result()
    assert result is not None and result.digest == digest_of(MEMBERS) and result.details == ()
    assert machine.notice_h == 72 and machine.sync.contact_interval == 1800 and machine.settings.origin == ("north", 3)
    assert machine.records[-1][:2] == ("config.fleet", "applied")
    machine.start()
    assert machine.notice_h == 72 and machine.records == [], "without a network too"
    assert machine.contact() == [(7, ResultState.APPLIED)], "said again: the file may have changed"


def test_a_later_document_takes_the_place_and_one_without_a_fleet_ends_it(machine: Machine) -> None:
    machine.contact(document())
    machine.contact(document(8, members={"updates.rate_kib_s": 100}, fleet_number=4))
    assert machine.notice_h == 48 and machine.settings.effective.config.updates.rate_kib_s == 100
    assert machine.contact(document(9, fleet=None, fleet_number=0, members={})) == [
        (8, ResultState.APPLIED), (9, ResultState.APPLIED)
    ]  # fmt: skip
    assert machine.settings.effective.config == machine.file and machine.settings.origin is None
    assert machine.records[-1][:2] == ("config.fleet", "removed")
    machine.start()
    assert machine.settings.effective.config == machine.file and machine.settings.known == 9


def test_what_the_machine_limits_is_said_also_after_its_file_has_changed(machine: Machine) -> None:
    machine.contact(document(members={"updates.notice_h": 1}))
    result = machine.settings.result()
    assert result is not None and result.state is ResultState.LIMITED and machine.notice_h == 24
    assert result.details == ("updates.notice_h: 1 is not within this machine's bounds, 24 to 720: it is 24",)
    assert machine.records[-1][1] == "limited"
    machine.settings.over(parse_config("[fleet]\naccept = []\n", "x", user=int, group=int))
    assert machine.notice_h == 48
    again = machine.settings.result()
    assert again is not None and "accept of this machine" in again.details[0] and again.digest != result.digest


ATTACKS: dict[str, tuple[Callable[[], str], str]] = {
    "another agent's": (lambda: document(8, agent_id="pos-000009"), "it is for the agent pos-000009"),
    "an old number": (lambda: document(6), "is lower than 7, which is in force"),
    "another key": (lambda: document(8, OTHER_KEY), "signed by a key that this agent does not trust"),
    "a stolen key id": (
        lambda: ".".join([document(8).split(".")[0], *document(8, OTHER_KEY).split(".")[1:]]), "not acceptable"
    ),
    "a changed number": (lambda: ".".join([document(8).split(".")[0], document(9).split(".")[1], document(8).split(".")[2]]),
                         "not acceptable"),
    "huge": (lambda: document(8, fleet="f" * 5000), "at most 4,096 characters"),
    "no document": (lambda: "a.b.c", "not acceptable"),
    "a number decades ahead": (lambda: document(2**53 - 1), "is decades ahead of the time"),
    "an unknown member under such a number": (lambda: document(2**53 - 1, members={"x": 1}), "is decades ahead of the time"),
    "an unknown member of another agent": (lambda: document(8, agent_id="pos-000009", members={"x": 1}), "unknown field"),
    "an unknown member under an old number": (lambda: document(6, members={"x": 1}), "unknown field"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_the_servers_document_for_this_agent_changes_nothing(machine: Machine, attack: str) -> None:
    machine.contact(document())
    kept, (make, why) = machine.path.read_bytes(), ATTACKS[attack]
    assert machine.contact(make()) == [(7, ResultState.APPLIED)], "nothing is confirmed"
    assert machine.notice_h == 72 and machine.settings.known == 7 and machine.path.read_bytes() == kept
    event, outcome, fields = machine.records[-1]
    assert (event, outcome) == ("config.fleet", "refused") and why in fields["text"]


@pytest.mark.parametrize(
    ("members", "why"),
    [({"server.url": "https://evil"}, "unknown field 'server.url'"), ({"updates.notice_h": 0}, "notice_h"),
     ({"updates.consent": "none"}, "consent"), ({"updates.freeze": ["2026-02-30"]}, "no such day")],
)  # fmt: skip
def test_a_signed_document_that_cannot_be_used_is_refused_and_the_server_learns_why(
    machine: Machine, members: dict[str, Any], why: str
) -> None:
    machine.contact(document())
    assert machine.contact(document(8, members=members)) == [(7, ResultState.APPLIED), (8, ResultState.REFUSED)]
    result = machine.settings.result()
    assert result is not None and why in result.details[0] and result.digest is None
    assert machine.notice_h == 72, "what was in force stays so"
    assert machine.contact() == [(8, ResultState.REFUSED)], "it is not sent again and again"
    machine.contact(document(9))
    assert machine.contact() == [(9, ResultState.APPLIED)]


def test_a_link_that_drops_or_replays_changes_nothing(machine: Machine) -> None:
    machine.contact(document())
    for failure in (
        NoContact("dropped"),
        Refused(Refusal(code=RefusalCode.BAD_REQUEST, text="?", agent_id=AGENT, request_id="0" * 32, issued_at=5)),
    ):
        machine.client.failure = failure
        assert machine.contact(document(8)) == [] and machine.notice_h == 72, "the contact goes on"
    machine.client.failure = None
    machine.contact(document(8, members={"updates.notice_h": 100}))
    assert machine.contact(document(7)) == [(8, ResultState.APPLIED)] and machine.notice_h == 100, "an old one is replayed"
    assert machine.contact(document(8, members={"updates.notice_h": 100}))[0] == (8, ResultState.APPLIED), "the same again"


def _flip(data: bytes) -> bytes:
    return data.replace(b".", b"A", 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _data: b"",
        lambda _data: b"{}",
        lambda _data: b"[" * 3000,
        lambda data: data[: len(data) // 2],
        _flip,
        lambda _data: b"x" * (MAX_FILE_BYTES + 1),
        lambda _data: json.dumps({"document": document(9, OTHER_KEY)}).encode(),
        lambda _data: json.dumps({"document": document(9, agent_id="pos-000009")}).encode(),
        lambda _data: json.dumps({"document": document(9, members={"updates.enabled": False})}).encode(),
    ],
    ids=["empty", "no document", "nested", "half", "a changed character", "huge", "another key", "another agent's", "unusable"],
)
def test_a_damaged_file_sets_nothing_raises_an_alert_and_is_replaced_by_the_next_contact(
    machine: Machine, damage: Callable[[bytes], bytes]
) -> None:
    machine.contact(document())
    machine.path.write_bytes(damage(machine.path.read_bytes()))
    machine.start()
    assert machine.notice_h == 48 and machine.settings.origin is None and str(machine.path) in machine.settings.problem
    assert machine.records[-1][:2] == ("config.fleet", "damaged")
    assert machine.contact(document()) == [(0, None), (7, ResultState.APPLIED)]
    assert machine.notice_h == 72 and machine.settings.problem == ""


def test_a_directory_in_the_place_of_the_file_is_said(machine: Machine) -> None:
    machine.path.mkdir()
    machine.start()
    assert "Is a directory" in machine.settings.problem


def test_a_document_whose_key_has_ended_is_asked_for_again_and_counts_until_then(machine: Machine) -> None:
    machine.contact(document())
    content = json.loads(TRUST_FILE)
    content["delivery_keys"] = [public_jwk(OTHER_KEY)]
    machine.trust = parse_trust(json.dumps(content).encode())
    assert machine.settings.known == 0 and machine.notice_h == 72
    assert machine.contact(document(7, OTHER_KEY)) == [(0, None), (7, ResultState.APPLIED)]
    machine.start()
    assert machine.notice_h == 72 and machine.settings.problem == ""


def test_a_full_disk_confirms_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agentd.sync.fleetsettings.write_atomic", full)
    assert machine.contact(document()) == [(0, None)] and machine.notice_h == 48 and machine.settings.known == 0
