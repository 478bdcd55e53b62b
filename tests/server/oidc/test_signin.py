"""The provider's keys: read over real TLS from judged addresses, kept for a while, read again when due."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from server.accounts.provider import Provider
from server.oidc.reader import MAX_BYTES, ProviderUnavailable, Reader
from server.oidc.signin import FRESH_S, KEPT_S, MOST_WAIT, PAUSE_S, ProviderSignIn
from server.oidc.tokens import TokenRefused
from tests.server.devices import NOW
from tests.support.openid import AUDIENCE, Documents, SigningKey, claims, es256, signed
from tests.support.pki import DAY, SERVER, Entity, make
from tests.support.tlspeer import TlsPeer, answer, raw
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system
FIRST, SECOND = es256("first"), es256("second")


@pytest.fixture(scope="module")
def authority() -> Entity:
    now = int(time.time())  # the system's clock judges these
    return make("provider's CA", authority=True, begins=now - DAY, ends=now + DAY)


@pytest.fixture
def peer(tmp_path: Path, authority: Entity) -> Iterator[TlsPeer]:
    now = int(time.time())
    entity = make("id", authority, hosts=["id.example"], usage=SERVER, begins=now - DAY, ends=now + DAY)
    with TlsPeer(tmp_path, entity) as made:
        yield made


@pytest.fixture
def documents(peer: TlsPeer) -> Documents:
    made = Documents(f"https://id.example:{peer.port}/shop", FIRST)
    peer.behavior = made
    return made


@pytest.fixture
def provider(documents: Documents, authority: Entity) -> Provider:
    return Provider(documents.issuer, AUDIENCE, 7200, ("127.0.0.0/8",), authority.chain_pem)


class Desk:
    """Signs in at moments of its own clock."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.moment = 1000.0
        self.signin = ProviderSignIn(reader(), lambda: self.moment)

    def subject(self, key: SigningKey = FIRST) -> str:
        text = signed(key, claims(NOW, iss=self.provider.issuer))
        return self.signin.vouched(text, self.provider, NOW).subject


def reader(*addresses: str) -> Reader:
    return Reader(lambda _host, _port: addresses or ["127.0.0.1"])


@pytest.fixture
def desk(provider: Provider) -> Desk:
    return Desk(provider)


def settle(documents: Documents, count: int) -> None:
    wait_until(lambda: len(documents.asked) >= count, f"the provider was not asked {count} times")


# Reading


def test_the_keys_are_read_where_the_configuration_says(provider: Provider, documents: Documents) -> None:
    assert set(reader().keys(provider)) == {"first"}
    assert documents.asked == ["/shop/.well-known/openid-configuration", "/shop/keys"]


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["169.254.169.254"], ["127.0.0.1", "10.0.0.1"]])
def test_an_address_that_is_not_listed_is_not_connected_to(provider: Provider, peer: TlsPeer, addresses: list[str]) -> None:
    with pytest.raises(ProviderUnavailable, match="not public"):
        reader(*addresses).keys(provider)
    with pytest.raises(ProviderUnavailable, match="not public"):
        reader().keys(replace(provider, networks=()))
    assert peer.records == []


def test_the_keys_may_not_be_where_webhooks_may_not_go_either(provider: Provider, documents: Documents, peer: TlsPeer) -> None:
    for url in ("http://id.example/keys", "file:///etc/passwd", "https://user@id.example/keys"):
        peer.behavior = answer(f'{{"issuer":"{provider.issuer}","jwks_uri":"{url}"}}'.encode(), headers="Connection: close\r\n")
        with pytest.raises(ProviderUnavailable, match="plain https"):
            reader().keys(provider)


def test_a_certificate_of_another_ca_or_name_does_not_count(provider: Provider, documents: Documents) -> None:
    now = int(time.time())
    other = make("other", authority=True, begins=now - DAY, ends=now + DAY).chain_pem
    with pytest.raises(ProviderUnavailable, match="does not verify"):
        reader().keys(replace(provider, ca=other))
    with pytest.raises(ProviderUnavailable, match="does not verify"):
        reader().keys(replace(provider, ca=None))
    with pytest.raises(ProviderUnavailable, match="does not verify"):
        reader().keys(replace(provider, issuer=provider.issuer.replace("id.example", "it.example")))
    with pytest.raises(ProviderUnavailable, match="no certificates"):
        reader().keys(replace(provider, ca="nothing"))
    assert documents.asked == []


def test_redirects_errors_and_large_documents_are_no_keys(provider: Provider, documents: Documents, peer: TlsPeer) -> None:
    documents.status, documents.headers = "302 Found", f"Location: {documents.issuer}/keys\r\n"
    with pytest.raises(ProviderUnavailable, match="302"):
        reader().keys(provider)
    assert len(documents.asked) == 1
    peer.behavior = raw(b"SSH-2.0-x\r\n")
    with pytest.raises(ProviderUnavailable, match="HTTP"):
        reader().keys(provider)
    peer.behavior = answer(b" " * (MAX_BYTES + 1), headers="Connection: close\r\n")
    with pytest.raises(ProviderUnavailable, match="256 KiB"):
        reader().keys(provider)


def test_a_provider_that_sends_slowly_does_not_keep_the_reader(provider: Provider, documents: Documents) -> None:
    moments = iter(range(0, 10_000, 4))
    with pytest.raises(ProviderUnavailable, match="no whole answer"):
        Reader(lambda _host, _port: ["127.0.0.1"], lambda: float(next(moments))).keys(provider)


# Keeping


def test_the_keys_are_read_once(desk: Desk, documents: Documents) -> None:
    assert [desk.subject() for _ in range(5)] == ["17"] * 5
    assert len(documents.asked) == 2


def test_a_new_key_counts_and_an_old_one_ends(desk: Desk, documents: Documents) -> None:
    desk.subject()
    documents.keys = (SECOND,)
    with pytest.raises(TokenRefused, match="no key"):
        desk.subject(SECOND)  # the keys were read less than a minute ago
    desk.moment += PAUSE_S
    assert desk.subject(SECOND) == "17"
    with pytest.raises(TokenRefused, match="no key"):
        desk.subject(FIRST)


def test_tokens_of_unknown_keys_ask_the_provider_once_a_minute(desk: Desk, documents: Documents) -> None:
    desk.subject()
    for second in range(200):
        desk.moment += 1
        with pytest.raises(TokenRefused, match="no key"):
            desk.subject(es256(f"made up {second % 3}") if second < 3 else SECOND)
    assert len(documents.asked) == 2 * (1 + 200 // int(PAUSE_S))


def test_a_token_that_could_not_count_asks_for_no_keys(desk: Desk, documents: Documents) -> None:
    for changed in ({"exp": NOW}, {"aud": "x"}, {"iss": "https://x.example"}):
        with pytest.raises(TokenRefused):
            desk.signin.vouched(signed(FIRST, claims(NOW, **{"iss": documents.issuer} | changed)), desk.provider, NOW)
    assert documents.asked == []


def test_old_keys_are_read_again_beside_the_requests(desk: Desk, documents: Documents) -> None:
    desk.subject()
    documents.keys = (SECOND,)
    desk.moment += FRESH_S + 1
    assert desk.subject() == "17"  # the one that notices does not wait
    settle(documents, 4)

    def ended() -> bool:
        try:
            desk.subject()
        except TokenRefused:
            return True
        return False

    wait_until(ended, "the old key still counts")
    assert desk.subject(SECOND) == "17"


def test_an_unreachable_provider_closes_the_door_after_a_while(desk: Desk, documents: Documents) -> None:
    desk.subject()
    documents.status = "503 Service Unavailable"
    desk.moment += KEPT_S - 1
    assert desk.subject() == "17"
    settle(documents, 3)
    desk.moment += 2
    with pytest.raises(ProviderUnavailable):
        desk.subject()
    documents.status = "200 OK"
    desk.moment += PAUSE_S
    assert desk.subject() == "17"


def test_a_provider_that_was_never_reached_admits_nobody(desk: Desk, documents: Documents) -> None:
    documents.status = "500 Internal Server Error"
    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            desk.subject()
    assert len(documents.asked) == 1


def test_keys_of_one_provider_are_none_of_another(desk: Desk, documents: Documents) -> None:
    desk.subject()
    desk.provider = replace(desk.provider, issuer=desk.provider.issuer + "/other")
    with pytest.raises(ProviderUnavailable):  # the peer has the configuration of the first one
        desk.subject()


def test_few_requests_wait_for_a_provider_that_hangs(desk: Desk, documents: Documents, peer: TlsPeer) -> None:
    documents.hang = True
    gone = threading.Event()

    def ask(_number: int) -> str:
        try:
            return desk.subject()
        except ProviderUnavailable as problem:
            if "being read" in str(problem):
                gone.set()
            return str(problem)

    with ThreadPoolExecutor(20) as threads:
        answers = threads.map(ask, range(20))
        assert gone.wait(READY_S)  # while the others still wait
        said = list(answers)
    assert sum("being read" in each for each in said) >= 20 - MOST_WAIT
    assert "17" not in said
