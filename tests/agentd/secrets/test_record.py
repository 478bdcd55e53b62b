"""The agent's record is read back from its sections as it was, and a section of another form is an error that names it."""

import msgspec
import pytest

from agentd.base.clock.timeanchor import Reading, TimeAnchor
from agentd.secrets.record import AgentRecord, SealedTlsKey, SealedTlsKeys, ServerRecord, read_record
from agentd.secrets.revocations import NO_REVOCATIONS, Revocations
from hwsec.errors import StoreCorrupt
from tests.contracts.world import AGENT, TRUST_FILE

PIN = "sha256:" + "0" * 64
SERVER = ServerRecord(
    agent_id=AGENT, serial=7, url="https://server", pins=(PIN,), roots=(PIN,), key_set=3, key_set_expires=9, attestation="tpm"
)
TLS = SealedTlsKeys(current=SealedTlsKey(certificates=("a",), sealed=b"\x00\xff"))
WHOLE = AgentRecord(
    TRUST_FILE,
    TimeAnchor(5, True, Reading(1, 2), Reading(3, 4)),
    "ab" * 32,
    SERVER,
    TLS,
    Revocations(number=4, issued_at=5, next_update=6, revoked=frozenset({"l"})),
    {"a later release": b"\x01"},
)


@pytest.mark.parametrize("record", [AgentRecord(TRUST_FILE), WHOLE])
def test_a_record_is_read_back_as_it_was(record: AgentRecord) -> None:
    assert read_record(record.sections()) == record


def test_what_the_agent_does_not_have_makes_no_section() -> None:
    assert AgentRecord(TRUST_FILE).sections() == {"trust": TRUST_FILE}
    assert read_record({"trust": TRUST_FILE}).revocations is NO_REVOCATIONS


def test_the_sections_have_the_form_of_the_first_release() -> None:
    sections = WHOLE.sections()
    assert list(sections) == [
        "a later release", "trust", "hardware_id", "revocations", "server_time", "server", "tls",
    ]  # fmt: skip
    assert sections["server_time"] == (
        b'{"signed":5,"fresh":true,"boot":{"milliseconds":1,"epoch":2},"tpm":{"milliseconds":3,"epoch":4}}'
    )
    assert sections["tls"] == b'{"current":{"certificates":["a"],"sealed":"AP8="},"following":null}'
    assert msgspec.json.decode(sections["server"])["serial"] == 7


@pytest.mark.parametrize("name", ["server_time", "server", "tls", "revocations"])
@pytest.mark.parametrize("bad", [b"", b"{}x", b"5", b'{"more":1}', b"\xff\xfe"])
def test_a_section_of_another_form_is_an_error_that_names_it(name: str, bad: bytes) -> None:
    with pytest.raises(StoreCorrupt, match=f"section '{name}'"):
        read_record({**WHOLE.sections(), name: bad})


def test_a_tls_key_with_members_of_another_form_is_refused() -> None:
    text = WHOLE.sections()["tls"]
    for bad in (text[:-2], b'{"current":{"certificates":["a"],"sealed":"AA=="},"more":1}', b'{"current":5}'):
        with pytest.raises(StoreCorrupt, match="section 'tls'"):
            read_record({**WHOLE.sections(), "tls": bad})


@pytest.mark.parametrize("trust", [None, b"", b"{}", b"\xff"])
def test_without_trust_the_store_is_of_no_use(trust: bytes | None) -> None:
    sections = {name: data for name, data in WHOLE.sections().items() if name != "trust"}
    with pytest.raises(StoreCorrupt, match=r"no (usable )?trust"):
        read_record(sections if trust is None else {**sections, "trust": trust})


def test_a_server_without_a_tls_key_is_refused() -> None:
    sections = WHOLE.sections()
    del sections["tls"]
    with pytest.raises(StoreCorrupt, match="no TLS key"):
        read_record(sections)
