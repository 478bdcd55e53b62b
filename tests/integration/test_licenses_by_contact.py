"""A license reaches its till by contact alone: issued at the server, suspended, reinstated; real processes, real TLS.

Nobody carries a token here: the till asks with what the agent's own inventory has.
"""

import json
import time
from collections.abc import Iterator

import pytest

from server.licensing.licenses.licenses import Order
from tests.support.chain import Chain, running_chain
from tests.support.hostilelink import Asked, Failure, always
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        yield made


def server_view(chain: Chain) -> dict[str, object]:
    found: dict[str, object] = chain.admin("status")["server"]
    return found


def token(chain: Chain, license_id: str) -> str:
    """The newest token in the agent's inventory, as the agent has written it."""
    page = json.loads((chain.agent.state / "licenses.json").read_text())
    text: str = page["newest"][license_id]["token"]
    return text


def reason(chain: Chain, text: str) -> str:
    with chain.pos() as client:
        return str(client.validate(text).reason)


def required(chain: Chain) -> tuple[bool, str]:
    """What a till without any token gets."""
    with chain.pos() as client:
        found = client.require("till")
        return found.valid, str(found.reason)


def contact(chain: Chain) -> None:
    wait_until(lambda: chain.asks("contact") == "", chain.log, pause_s=0.3)


def test_a_license_is_issued_suspended_and_reinstated_without_anybody_at_the_till(chain: Chain) -> None:
    assert server_view(chain)["capabilities"] == [
        "announce-capabilities",
        "configuration",
        "lease-seats",
        "report-usage",
        "sync-licenses",
        "updates",
        "updates-hardware",
    ]
    shown = json.loads(chain.server_cli("agents", "show", chain.agent_id, "--json"))
    assert sorted(shown["capabilities"]) == [
        "announce-capabilities",
        "configuration",
        "lease-seats",
        "report-usage",
        "sync-licenses",
        "updates",
        "updates-hardware",
    ]
    assert required(chain) == (False, "no_license")
    chain.issue("till-1")  # what the command prints is not used
    contact(chain)
    assert server_view(chain)["licenses_held"] == 1
    carried = token(chain, "till-1")
    assert reason(chain, carried) == "ok" and required(chain) == (True, "ok")

    chain.suspend("till-1")
    contact(chain)
    assert reason(chain, carried) == "revoked" and required(chain) == (False, "suspended")
    assert server_view(chain)["licenses_suspended"] == 1
    assert "1 held, 1 suspended, 0 taken away" in chain.cli("status")
    chain.kill_agent()
    assert reason(chain, carried) == "revoked" and required(chain) == (False, "suspended")

    chain.suspend("till-1", on=False)
    contact(chain)
    assert reason(chain, carried) == "ok" and reason(chain, token(chain, "till-1")) == "ok"
    chain.kill_agent()
    assert reason(chain, carried) == "ok" and required(chain) == (True, "ok")
    assert [record["outcome"] for record in chain.records("license.delivered")] == ["ok", "ok"]


def test_a_rotation_renews_what_nobody_has_validated(chain: Chain) -> None:
    chain.issue("never-asked-about")
    contact(chain)
    before = token(chain, "never-asked-about")
    chain.admin("rotate")
    after = token(chain, "never-asked-about")
    assert before != after and reason(chain, after) == "ok"


def test_a_link_that_withholds_the_list_or_the_licenses_lifts_no_suspension(chain: Chain) -> None:
    chain.issue("till-2")
    contact(chain)
    carried = token(chain, "till-2")
    chain.suspend("till-2")
    with chain.bad.behaving(always("sync-licenses", lambda _asked: Failure())):
        assert chain.asks("contact")  # the contact fails, and says so
    with chain.bad.behaving(always("capabilities", lambda _asked: Failure())):
        chain.kill_agent()
        contact(chain)
        assert reason(chain, carried) == "revoked"
    assert server_view(chain)["capabilities"] == [
        "announce-capabilities",
        "configuration",
        "lease-seats",
        "report-usage",
        "sync-licenses",
        "updates",
        "updates-hardware",
    ]


def test_either_side_is_killed_while_licenses_come(chain: Chain) -> None:
    now = int(time.time())
    with chain.server_side() as side:
        for number in range(40):
            order = Order(f"many-{number:02d}", "shop", ("till",), {}, now - 60, now + 86_400)
            side.licenses.issue(chain.agent_id, order, now)

    def server_dies(asked: Asked) -> Failure:
        asked.forward()
        chain.kill_server()
        chain.start_server()
        return Failure()

    def agent_dies(asked: Asked) -> Failure:
        asked.forward()
        chain.running.process.kill()
        return Failure()

    with chain.bad.behaving(always("sync-licenses", server_dies)):
        assert chain.asks("contact")
    with chain.bad.behaving(always("sync-licenses", agent_dies)):
        assert chain.asks("contact")
        chain.restart_dead_agent()
    contact(chain)
    newest = json.loads((chain.agent.state / "licenses.json").read_text())["newest"]
    many = [row["token"] for name, row in newest.items() if name.startswith("many-")]
    assert len(many) == 40 and {reason(chain, each) for each in many} == {"ok"}
    asked = len(chain.bad.of("sync-licenses"))
    contact(chain)
    assert len(chain.bad.of("sync-licenses")) == asked
