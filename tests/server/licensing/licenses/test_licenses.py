"""What the server issues, the agent takes; what the agent would refuse, the server refuses to issue."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.delivery import verify_delivery
from contracts.licensetoken import open_token, parse_token
from contracts.servertime import verify_server_time
from contracts.trust import parse_trust
from server.base.errors import RegistryError
from server.enrollment.by_hand import read_request
from server.keys.jose import new_signing_key
from server.licensing.licenses.licenses import Order
from server.licensing.secrets.periods import DEFAULT_GRACE_S, DEFAULT_INTERVAL_S, REVOCATIONS_LAST_S, periods, set_periods
from server.wiring import Plan, create_server
from tests.support.serverside import ServerSide, open_server

NOW = 1_800_000_000
KEY = {name: value for name, value in new_signing_key().items() if name != "d"}
ORDER = Order("license-1", "shop 12", ("till",), {"shop": "x"}, NOW, NOW + 1000)


def found(directory: Path) -> Path:
    create_server(directory, Plan("https://license.example", ("localhost",), directory / "root.key", None), NOW)
    return directory


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerSide]:
    counter = iter(range(1, 100))
    made = open_server(found(tmp_path / "server"), lambda size: bytes([next(counter)]) * size)
    enroll(made, request())
    yield made
    made.close()


def enroll(server: ServerSide, content: Any, now: int = NOW) -> None:
    asked = read_request(content)
    server.agents.enroll_by_hand(asked.agent_id, asked.hw_id, asked.backend, asked.keys, now)


def request(**changes: Any) -> dict[str, Any]:
    return {"agent_id": "pos-001", "agreement_key": KEY, "backend": "tpm", **changes}


def test_a_server_is_private_and_made_once(tmp_path: Path) -> None:
    directory = found(tmp_path / "s")
    assert directory.stat().st_mode & 0o777 == 0o700
    for name in ("server.db", "master.key", "settings.toml", "root.key"):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(RegistryError, match="not overwritten"):
        found(directory)
    server = open_server(directory)
    assert server.keys.issuer == "https://license.example"
    server.close()


def test_a_missing_server_is_told(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="license-server init --dir"):
        open_server(tmp_path)


def test_enrolling_again_changes_the_key_and_nothing_else(server: ServerSide) -> None:
    server.secrets.rotate_by_hand("pos-001", NOW)
    enroll(server, request(), NOW + 5)
    other = {name: value for name, value in new_signing_key().items() if name != "d"}
    enroll(server, request(agreement_key={**other, "d": "secret"}, backend="software"), NOW + 6)
    (row,) = server.agents.listed()
    assert (row.agent_id, row.backend, row.created_at, row.updated_at) == ("pos-001", "software", NOW, NOW + 6)
    assert row.agreement_key == other
    assert [secret.version for secret in server.secrets.listed("pos-001")] == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"agent_id": None},
        {"agent_id": "a b"},
        {"agent_id": ""},
        {"agreement_key": None},
        {"agreement_key": {}},
        {"agreement_key": {**KEY, "x": KEY["y"]}},
        {"agreement_key": {**KEY, "crv": "P-384"}},
        {"backend": "memory"},
        {"backend": None},
        {"backend": []},
    ],
    ids="-".join,  # the keys are made anew for each run
)
def test_a_bad_enrollment_request_is_told(change: dict[str, Any]) -> None:
    with pytest.raises(RegistryError, match="enrollment request"):
        read_request(request(**change))


def test_versions_grow_and_deliveries_verify(server: ServerSide) -> None:
    trust = parse_trust(server.keys.trust())
    for number in (1, 2, 3):
        text = server.secrets.rotate_by_hand("pos-001", NOW + number, 100, 50)
        found = verify_delivery(text, "pos-001", trust)
        # The first is dated back by a tenth of its interval, the others by a tenth of the second since the one before.
        begin = NOW + number - (10 if number == 1 else 0)
        assert (found.version, found.valid_from, found.issued_at) == (number, begin, NOW + number)
        assert (found.valid_until, found.grace_until) == (NOW + number + 100, NOW + number + 150)
    states = [row.state for row in server.secrets.listed("pos-001")]
    assert states == ["GRACE", "GRACE", "ACTIVE"]


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    def broken(_size: int) -> bytes:
        raise RuntimeError

    server = open_server(found(tmp_path / "s"), broken)
    enroll(server, request())
    records = server.audit.verify(server.cipher.audit_key())
    with pytest.raises(RuntimeError):
        server.secrets.rotate_by_hand("pos-001", NOW)
    assert server.secrets.listed("pos-001") == []
    assert server.audit.verify(server.cipher.audit_key()) == records
    server.close()


@pytest.mark.parametrize(
    "act",
    [
        lambda o: o.secrets.rotate_by_hand("ghost", NOW),
        lambda o: o.licenses.issue("ghost", ORDER, NOW),
        lambda o: o.licenses.reissue_all("ghost", NOW),
    ],
)
def test_an_unknown_agent_is_told(server: ServerSide, act: Any) -> None:
    with pytest.raises(RegistryError, match="'ghost'"):
        act(server)


def opened(server: ServerSide, token: str, agent: str = "pos-001") -> Any:
    sealed = parse_token(token)
    with server.database.read() as session:
        found = server.within(session).secrets.open(agent, sealed.version)
    assert found is not None
    return sealed.version, open_token(sealed, found[1], parse_trust(server.keys.trust()))


def test_a_license_is_issued_under_the_newest_or_the_named_secret(server: ServerSide) -> None:
    with pytest.raises(RegistryError, match="no confirmed secret yet"):
        server.licenses.issue("pos-001", ORDER, NOW)
    server.secrets.rotate_by_hand("pos-001", NOW)
    server.secrets.rotate_by_hand("pos-001", NOW)
    version, claims = opened(server, server.licenses.issue("pos-001", ORDER, NOW + 3))
    assert (version, claims.jti, claims.iat, claims.aud, claims.features) == (2, "license-1", NOW + 3, "pos-001", ("till",))
    assert opened(server, server.licenses.issue("pos-001", ORDER, NOW, 1))[0] == 1
    with pytest.raises(RegistryError, match="no secret version 9"):
        server.licenses.issue("pos-001", ORDER, NOW, 9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"expires": NOW}, "would end at .*, and begin at .*: give a later end"),
        ({"features": ("",)}, "agents would refuse this license: .*a feature"),
        ({"features": ("x",) * 65}, "agents would refuse this license: .*features"),
        ({"metadata": {"x": "y" * 257}}, "agents would refuse this license: .*metadata value"),
        ({"jti": ""}, "agents would refuse this license: .*jti"),
        ({"subject": "a\nb"}, "agents would refuse this license: .*sub"),
        ({"not_before": -1}, "agents would refuse this license: .*nbf"),
    ],
    ids=repr,
)
def test_a_license_out_of_bounds_is_not_issued(server: ServerSide, change: dict[str, Any], text: str) -> None:
    server.secrets.rotate_by_hand("pos-001", NOW)
    with pytest.raises(RegistryError, match=text):
        server.licenses.issue("pos-001", replace(ORDER, **change), NOW)
    assert server.licenses.reissue_all("pos-001", NOW) == []


@pytest.mark.parametrize("letter", ["v", "é", "\u20ac", "\U0001f600"])
def test_a_license_too_large_for_a_token_is_not_issued(server: ServerSide, letter: str) -> None:
    server.secrets.rotate_by_hand("pos-001", NOW)
    order = replace(ORDER, metadata={f"{number:064d}": letter * 256 for number in range(32)})
    with pytest.raises(RegistryError, match="agents would refuse this license"):
        server.licenses.issue("pos-001", order, NOW)
    assert server.licenses.reissue_all("pos-001", NOW) == []


def test_reissue_gives_new_tokens_for_what_has_not_ended(server: ServerSide) -> None:
    server.secrets.rotate_by_hand("pos-001", NOW)
    server.licenses.issue("pos-001", ORDER, NOW)
    server.licenses.issue("pos-001", replace(ORDER, jti="ended", expires=NOW + 10), NOW)
    server.secrets.rotate_by_hand("pos-001", NOW + 5)
    (token,) = server.licenses.reissue_all("pos-001", NOW + 10)
    version, claims = opened(server, token)
    assert (version, claims.jti, claims.iat, claims.exp) == (2, "license-1", NOW + 10, NOW + 1000)
    assert server.licenses.reissue_all("pos-001", NOW + 1000) == []


def test_a_license_belongs_to_one_agent(server: ServerSide) -> None:
    enroll(server, request(agent_id="pos-002"))
    for agent in ("pos-001", "pos-002"):
        server.secrets.rotate_by_hand(agent, NOW)
    server.licenses.issue("pos-001", ORDER, NOW)
    with pytest.raises(RegistryError, match="license-1"):
        server.licenses.issue("pos-002", ORDER, NOW)
    assert server.licenses.reissue_all("pos-002", NOW + 1) == []
    (token,) = server.licenses.reissue_all("pos-001", NOW + 1)
    assert opened(server, token)[1].aud == "pos-001"


def test_the_servers_time_is_signed_for_an_agent_that_it_knows(server: ServerSide) -> None:
    challenge = "ab" * 16
    text = server.sign_time("pos-001", challenge, NOW)
    assert verify_server_time(text, "pos-001", challenge, parse_trust(server.keys.trust())) == NOW
    with pytest.raises(RegistryError, match="is enrolled"):
        server.sign_time("pos-999", challenge, NOW)
    for bad in ("", "AB" * 16, "ab" * 15, "ab" * 16 + "\n"):
        with pytest.raises(RegistryError, match="32 characters"):
            server.sign_time("pos-001", bad, NOW)


def test_a_revocation_list_is_valid_for_a_week_or_for_as_long_as_the_operator_says(server: ServerSide) -> None:
    assert server.licenses.revocations("pos-001", NOW)[1] == NOW + REVOCATIONS_LAST_S == NOW + 7 * 86_400
    with server.database.write() as session:
        set_periods(session, None, None, NOW, revocations=60)
    assert server.licenses.revocations("pos-001", NOW)[1] == NOW + 60
    with server.database.write() as session:
        assert periods(session) == (DEFAULT_INTERVAL_S, DEFAULT_GRACE_S)
