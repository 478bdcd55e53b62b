"""What the server issues, the agent takes; what the agent would refuse, the server refuses to issue."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.delivery import verify_delivery
from contracts.licensetoken import open_token, parse_token
from contracts.servertime import verify_server_time
from contracts.trust import parse_trust
from server.licensing import Licensing, Order, new_server_settings
from server.minting import new_signing_key
from server.registry import Registry, RegistryError

NOW = 1_800_000_000
KEY = {name: value for name, value in new_signing_key().items() if name != "d"}
ORDER = Order("license-1", "shop 12", ("till",), {"shop": "x"}, NOW, NOW + 1000)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    Registry.create(tmp_path / "server", new_server_settings("https://license.example"))
    made = Registry(tmp_path / "server")
    yield made
    made.close()


@pytest.fixture
def server(registry: Registry) -> Licensing:
    counter = iter(range(1, 100))
    made = Licensing(registry, lambda size: bytes([next(counter)]) * size)
    made.enroll(request(), NOW)
    return made


def request(**changes: Any) -> dict[str, Any]:
    return {"agent_id": "pos-001", "agreement_key": KEY, "backend": "tpm", **changes}


def test_a_registry_is_private_and_made_once(tmp_path: Path) -> None:
    Registry.create(tmp_path / "s", {"issuer": "x"})
    assert (tmp_path / "s" / "server.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    with pytest.raises(RegistryError, match="not overwritten"):
        Registry.create(tmp_path / "s", {"issuer": "y"})
    registry = Registry(tmp_path / "s")
    assert registry.setting("issuer") == "x"
    registry.close()


def test_a_missing_or_foreign_registry_is_told(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="license-server init --dir"):
        Registry(tmp_path)
    db = sqlite3.connect(tmp_path / "server.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RegistryError, match="schema version 99"):
        Registry(tmp_path)


def test_enrolling_again_changes_the_key_and_nothing_else(server: Licensing, registry: Registry) -> None:
    server.rotate("pos-001", NOW)
    assert server.enroll(request(), NOW + 5) == "pos-001"
    other = {name: value for name, value in new_signing_key().items() if name != "d"}
    server.enroll(request(agreement_key={**other, "d": "secret"}, backend="software"), NOW + 6)
    assert registry.agents() == [("pos-001", "software", NOW + 6)]
    assert registry.agreement_key("pos-001") == other
    assert [row.version for row in registry.secrets("pos-001")] == [1]


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
    ids=repr,
)
def test_a_bad_enrolment_request_is_told(server: Licensing, change: dict[str, Any]) -> None:
    with pytest.raises(RegistryError, match="enrolment request"):
        server.enroll(request(**change), NOW)


def test_versions_grow_and_deliveries_verify(server: Licensing, registry: Registry) -> None:
    trust = parse_trust(server.trust())
    for number in (1, 2, 3):
        found = verify_delivery(server.rotate("pos-001", NOW + number, 100, 50), "pos-001", trust)
        assert (found.version, found.valid_from, found.issued_at) == (number, NOW + number, NOW + number)
        assert (found.valid_until, found.grace_until) == (NOW + number + 100, NOW + number + 150)
    secrets = [row.secret for row in registry.secrets("pos-001")]
    assert len(set(secrets)) == 3
    assert not any(secret.hex() in repr(registry.secrets("pos-001")) for secret in secrets)


def test_a_failed_transaction_leaves_nothing(server: Licensing, registry: Registry) -> None:
    def broken(_size: int) -> bytes:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Licensing(registry, broken).rotate("pos-001", NOW)
    assert registry.secrets("pos-001") == []
    server.rotate("pos-001", NOW)
    assert len(registry.secrets("pos-001")) == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.rotate("ghost", NOW),
        lambda s: s.issue("ghost", ORDER, NOW),
        lambda s: s.reissue("ghost", NOW) or s.rotate("ghost", NOW),
    ],
)
def test_an_unknown_agent_is_told(server: Licensing, act: Any) -> None:
    with pytest.raises(RegistryError, match="'ghost'"):
        act(server)


def opened(server: Licensing, registry: Registry, token: str, agent: str = "pos-001") -> Any:
    sealed = parse_token(token)
    secret = {row.version: row.secret for row in registry.secrets(agent)}[sealed.version]
    return sealed.version, open_token(sealed, secret, parse_trust(server.trust()))


def test_a_license_is_issued_under_the_newest_or_the_named_secret(server: Licensing, registry: Registry) -> None:
    with pytest.raises(RegistryError, match="no secret yet"):
        server.issue("pos-001", ORDER, NOW)
    server.rotate("pos-001", NOW)
    server.rotate("pos-001", NOW)
    version, claims = opened(server, registry, server.issue("pos-001", ORDER, NOW + 3))
    assert (version, claims.jti, claims.iat, claims.aud, claims.features) == (2, "license-1", NOW + 3, "pos-001", ("till",))
    assert opened(server, registry, server.issue("pos-001", ORDER, NOW, 1))[0] == 1
    with pytest.raises(RegistryError, match="no secret version 9"):
        server.issue("pos-001", ORDER, NOW, 9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"expires": NOW}, "exp must be later"),
        ({"features": ("",)}, "a feature"),
        ({"features": ("x",) * 65}, "features"),
        ({"metadata": {"x": "y" * 257}}, "metadata value"),
        ({"jti": ""}, "jti"),
        ({"subject": "a\nb"}, "sub"),
        ({"not_before": -1}, "nbf"),
    ],
    ids=repr,
)
def test_a_license_out_of_bounds_is_not_issued(
    server: Licensing, registry: Registry, change: dict[str, Any], text: str
) -> None:
    server.rotate("pos-001", NOW)
    with pytest.raises(RegistryError, match=f"would be refused: .*{text}"):
        server.issue("pos-001", replace(ORDER, **change), NOW)
    assert registry.licenses("pos-001") == []


@pytest.mark.parametrize("letter", ["v", "é", "\u20ac", "\U0001f600"])
def test_a_license_too_large_for_a_token_is_not_issued(server: Licensing, registry: Registry, letter: str) -> None:
    server.rotate("pos-001", NOW)
    order = replace(ORDER, metadata={f"{number:064d}": letter * 256 for number in range(32)})
    with pytest.raises(RegistryError, match="would be refused"):
        server.issue("pos-001", order, NOW)


def test_reissue_gives_new_tokens_for_what_has_not_ended(server: Licensing, registry: Registry) -> None:
    server.rotate("pos-001", NOW)
    server.issue("pos-001", ORDER, NOW)
    server.issue("pos-001", replace(ORDER, jti="ended", expires=NOW + 10), NOW)
    server.rotate("pos-001", NOW + 5)
    (token,) = server.reissue("pos-001", NOW + 10)
    version, claims = opened(server, registry, token)
    assert (version, claims.jti, claims.iat, claims.exp) == (2, "license-1", NOW + 10, NOW + 1000)
    assert server.reissue("pos-001", NOW + 1000) == []


def test_a_license_belongs_to_one_agent(server: Licensing, registry: Registry) -> None:
    server.enroll(request(agent_id="pos-002"), NOW)
    for agent in ("pos-001", "pos-002"):
        server.rotate(agent, NOW)
    server.issue("pos-001", ORDER, NOW)
    try:
        server.issue("pos-002", ORDER, NOW)
    except RegistryError as error:
        assert "license-1" in str(error)
    for agent in ("pos-001", "pos-002"):
        for token in server.reissue(agent, NOW + 1):
            assert parse_token(token).agent_id == agent
            assert opened(server, registry, token, agent)[1].aud == agent


def test_the_servers_time_is_signed_for_an_agent_that_it_knows(server: Licensing) -> None:
    challenge = "ab" * 16
    text = server.sign_time("pos-001", challenge, NOW)
    assert verify_server_time(text, "pos-001", challenge, parse_trust(server.trust())) == NOW
    with pytest.raises(RegistryError, match="is enrolled"):
        server.sign_time("pos-999", challenge, NOW)
    for bad in ("", "AB" * 16, "ab" * 15, "ab" * 16 + "\n"):
        with pytest.raises(RegistryError, match="32 characters"):
            server.sign_time("pos-001", bad, NOW)
