"""The pure parts of webhooks: signature, where they may go, what follows an attempt."""

import hashlib
import hmac
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.addresses import allowed, networks
from common.redelivery import ATTEMPTS_REFUSED, DEAD_AFTER_S, FIRST_PAUSE_S, LONGEST_PAUSE_S, Attempt, Next, judge, pause_s
from common.webhooksignature import REPLAY_WINDOW_S, verify
from server.base.errors import RegistryError
from server.notify.signature import new_secret, signed
from server.notify.webhook_states import WEBHOOK_STATES, WebhookEvent, WebhookState
from server.notify.webhooks import matches
from server.notify.webhookurl import MAX_URL_CHARS, checked_url

NOW = 1_800_000_000


def test_the_header_is_what_the_document_says() -> None:
    mac = hmac.new(b"lswh_secret", b'1800000000:{"a":1}', hashlib.sha256).hexdigest()
    assert signed(b'{"a":1}', NOW, ["lswh_secret"]) == f"t=1800000000,v1={mac}"


def test_a_receiver_with_either_secret_accepts_while_they_overlap() -> None:
    new, old = new_secret(), new_secret()
    header = signed(b"{}", NOW, [new, old])
    assert verify(header, b"{}", new, NOW)
    assert verify(header, b"{}", old, NOW)
    assert not verify(header, b"{}", new_secret(), NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, body: (header, body + b" "),
        lambda header, body: (header.replace("t=18", "t=17"), body),
        lambda header, body: (header.replace("v1=", "v0="), body),
        lambda header, body: (header + ",t=1800000001", body),
        lambda header, body: ("", body),
        lambda header, body: (header.replace("t=1800000000", "t=abc"), body),
    ],
)
def test_a_changed_request_is_refused(change: object) -> None:
    header, body = change(signed(b"{}", NOW, ["k"]), b"{}")  # type: ignore[operator]
    assert not verify(header, body, "k", NOW)


def test_an_old_request_is_refused() -> None:
    header = signed(b"{}", NOW, ["k"])
    assert verify(header, b"{}", "k", NOW + REPLAY_WINDOW_S)
    assert not verify(header, b"{}", "k", NOW + REPLAY_WINDOW_S + 1)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.192", "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "::127.0.0.1", "fec0::1", "::ffff:0:7f00:1", "x", "",
    ],
)  # fmt: skip
def test_no_webhook_goes_to_the_server_its_neighbors_or_the_metadata_service(address: str) -> None:
    assert not allowed(address, ())


@pytest.mark.parametrize("address", ["168.63.129.16", "::ffff:168.63.129.16", "192.88.99.1", "3fff::1", "5f00::1", "4000::1"])
def test_what_is_no_address_of_the_internet_is_not_allowed(address: str) -> None:
    assert not allowed(address, ())


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert allowed(address, ())


def test_a_listed_network_is_allowed_and_no_other() -> None:
    listed = networks(["10.20.0.0/16", "fd12::/32"])
    assert allowed("10.20.3.4", listed)
    assert allowed("fd12::1", listed)
    assert allowed("::ffff:10.20.3.4", listed)
    assert not allowed("10.21.0.1", listed)
    assert not allowed("127.0.0.1", listed)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    plain = allowed(str(address), ())
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(address))
        if not plain:
            assert not allowed(str(inside), ())


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example/", "https://", "ftp://shop.example/", "https://user:pw@shop.example/", "https://shop.example/#x",
        "https://shop.example/a b", "https://shop.example/\n", "https://shöp.example/", "https://shop.example:0/",
        "https://shop.example:99999/", "https://[::1", "//shop.example/", "https://shop.example/" + "x" * MAX_URL_CHARS,
    ],
)  # fmt: skip
def test_urls_that_no_webhook_has(url: str) -> None:
    with pytest.raises(RegistryError):
        checked_url(url)


def test_a_delivered_event_is_done_and_a_receiver_that_is_gone_gets_nothing_more() -> None:
    assert judge(Attempt(204), 1, 0, 0) is Next.DELIVERED
    assert judge(Attempt(410), 1, 0, 0) is Next.PAUSE


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_event_is_put_aside_after_some_attempts(status: int) -> None:
    assert judge(Attempt(status), ATTEMPTS_REFUSED - 1, 10**6, 0) is Next.AGAIN
    assert judge(Attempt(status), ATTEMPTS_REFUSED, 0, 0) is Next.DEAD


@pytest.mark.parametrize("status", [None, 302, 408, 425, 429, 500, 503])
def test_a_receiver_that_is_down_gets_everything_of_the_last_days(status: int | None) -> None:
    assert judge(Attempt(status), 1000, DEAD_AFTER_S, DEAD_AFTER_S - 1) is Next.AGAIN
    assert judge(Attempt(status), 1000, DEAD_AFTER_S - 1, DEAD_AFTER_S) is Next.AGAIN
    assert judge(Attempt(status), 1, DEAD_AFTER_S, DEAD_AFTER_S) is Next.DEAD


@given(st.integers(1, 10**6), st.none() | st.integers(0, 10**9), st.floats(0, 1))
def test_pauses_grow_and_have_an_end(attempts: int, asked: int | None, draw: float) -> None:
    found = pause_s(attempts, asked, draw)
    assert FIRST_PAUSE_S * 0.9 <= found <= LONGEST_PAUSE_S * 1.1
    assert pause_s(attempts + 1, asked, draw) >= found


def test_patterns() -> None:
    assert matches(["*"], "license.issued", "L", "wh")
    assert matches(["license.*"], "license.issued", "L", "wh")
    assert not matches(["license.*"], "licensex.issued", "L", "wh")
    assert not matches(["license.issued"], "license.revoked", "L", "wh")
    assert matches([], "webhook.test", "wh", "wh")
    assert not matches(["*"], "webhook.test", "another", "wh")


def test_the_table_of_states() -> None:
    assert WEBHOOK_STATES.step(WebhookState.PAUSED, WebhookEvent.RESUME) is WebhookState.ACTIVE
    assert WEBHOOK_STATES.step(WebhookState.ACTIVE, WebhookEvent.GONE) is WebhookState.PAUSED
