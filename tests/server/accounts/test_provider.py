"""Which OpenID provider is in use: what it may be, and whom it makes able to sign in. On both databases."""

from dataclasses import replace
from typing import Any

import pytest

from server.accounts import accounts
from server.accounts import provider as providers
from server.accounts.provider import Provider
from server.accounts.roles import Role
from server.base.errors import Invalid
from tests.server.devices import NOW
from tests.support.serverside import ServerSide

GOOD = Provider("https://id.example/realms/shop", "license-server", 3600, ("10.0.0.0/8", "fd00::/8"), "PEM")


def test_it_is_kept_as_it_was_given_until_it_is_ended(server: ServerSide) -> None:
    with server.database.write() as session:
        assert providers.present(session) is None
        assert not providers.end(session, NOW)
        providers.use(session, replace(GOOD, audience="other"), NOW)
        providers.use(session, GOOD, NOW)
    with server.database.read() as session:
        assert providers.present(session) == GOOD
    with server.database.write() as session:
        assert providers.end(session, NOW)
        assert providers.present(session) is None
    assert [each.event for each in server.audit.tail(3)] == [
        "openid_provider.set", "openid_provider.set", "openid_provider.ended",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "http://id.example"},
        {"issuer": "https://"},
        {"issuer": "id.example"},
        {"issuer": "https://user@id.example"},
        {"issuer": "https://@id.example"},
        {"issuer": "https://id.example?"},
        {"issuer": "https://id.example/#x"},
        {"issuer": "https://id.example:0"},
        {"issuer": "https://id.example:99999"},
        {"issuer": "https://id.example/a b"},
        {"issuer": "https://id.example/\n"},
        {"issuer": "https://[::1"},
        {"issuer": "https://id.example/" + "a" * 256},
        {"audience": ""},
        {"audience": "a b"},
        {"audience": "a" * 257},
        {"max_age_s": 59},
        {"max_age_s": 86_401},
        {"networks": ("10.0.0.1/8",)},
        {"networks": ("id.example",)},
        {"networks": ("10.0.0.0/8",) * 33},
        {"ca": "x" * (providers.MAX_CA_CHARS + 1)},
    ],
    ids=range(22),
)
def test_what_it_may_not_be_is_not_kept(server: ServerSide, changed: dict[str, Any]) -> None:
    with server.database.write() as session:
        with pytest.raises(Invalid):
            providers.use(session, replace(GOOD, **changed), NOW)
        assert providers.present(session) is None


def test_an_administrator_can_sign_in_by_the_provider_in_use_only(server: ServerSide) -> None:
    with server.database.write() as session:
        accounts.create(session, "root", "person", Role.ADMINISTRATOR, "local", NOW)
        accounts.set_subject(session, "root", GOOD.issuer, "17", "local", NOW)
        assert not accounts.has_administrators(session, NOW)
        providers.use(session, replace(GOOD, issuer="https://other.example"), NOW)
        assert not accounts.has_administrators(session, NOW)
        providers.use(session, GOOD, NOW)
        assert accounts.has_administrators(session, NOW)
        accounts.create(session, "second", "person", Role.ADMINISTRATOR, "local", NOW)
        accounts.change(session, "root", "local", NOW, state="disabled")
        assert not accounts.has_administrators(session, NOW)


@pytest.mark.parametrize("subject", ["", "a\0", "a\n", "ä", "a" * 256])
def test_a_subject_has_the_form_of_the_claim(server: ServerSide, subject: str) -> None:
    with server.database.write() as session:
        accounts.create(session, "anna", "person", Role.VIEWER, "local", NOW)
        with pytest.raises(Invalid):
            accounts.set_subject(session, "anna", GOOD.issuer, subject, "local", NOW)
