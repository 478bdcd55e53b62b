"""Who may use the link, and for what."""

import pytest

from ipc.linkmessages import Fetch, Hello, Provisioning
from link.clients import CORE, UPDATER, NotAllowed, check_hello, check_request, client_of
from link.config import UPSTREAMS, LinkConfig

CONFIG = LinkConfig(core_uid=900, updater_uid=901)
HELLO = Hello(v=1, id=1, time=0, certificates=None, provisioning=None, latest=0)


def fetch(upstream: str = "ota", method: str = "GET", body: bytes = b"") -> Fetch:
    return Fetch(
        v=1,
        id=2,
        upstream=upstream,  # type: ignore[arg-type]
        method=method,  # type: ignore[arg-type]
        path="/",
        headers=(),
        body=body,
        max_body=1,
        timeout_ms=100,
    )


def test_two_users_and_nobody_else() -> None:
    assert client_of(900, CONFIG) is CORE and client_of(901, CONFIG) is UPDATER
    assert [client_of(uid, CONFIG) for uid in (0, 899, 902, 65534)] == [None] * 4
    assert client_of(901, LinkConfig(core_uid=900)) is None


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_the_updater_gets_updates_and_the_core_everything(upstream: str, method: str) -> None:
    check_request(CORE, fetch(upstream, method))
    if (upstream, method) == ("ota", "GET"):
        check_request(UPDATER, fetch(upstream, method))
    else:
        with pytest.raises(NotAllowed, match=f"the updater may not {method} from the upstream {upstream}"):
            check_request(UPDATER, fetch(upstream, method))


def test_the_updater_has_no_identity() -> None:
    named = Provisioning("server", "https://a", ("sha256:" + "ab" * 32,))
    check_hello(UPDATER, HELLO, 0)
    for hello, descriptors in (
        (Hello(v=1, id=1, time=0, certificates="x", provisioning=None, latest=0), 1),
        (Hello(v=1, id=1, time=0, certificates=None, provisioning=named, latest=0), 0),
        (HELLO, 1),
    ):
        check_hello(CORE, hello, descriptors)
        with pytest.raises(NotAllowed, match="no certificate, no key and no upstream"):
            check_hello(UPDATER, hello, descriptors)


def test_the_updater_leaves_connections_to_the_core() -> None:
    assert UPDATER.sessions < CORE.sessions
