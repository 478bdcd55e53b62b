"""The programs of the last release and those of today work with each other: server and device, POS application and agent."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mixed import TODAY, Mixed, last_release, running_mixed
from tests.support.waiting import wait_until

VERDICT = "(lambda verdict: [verdict.valid, verdict.reason])"


@pytest.fixture(scope="module", params=["device of the last release", "server of the last release"])
def mixed(request: pytest.FixtureRequest) -> Iterator[tuple[Mixed, Path]]:
    """The two, and where the commands of the last release are."""
    last = last_release()
    places = (last, TODAY) if request.param.startswith("device") else (TODAY, last)
    with running_mixed(*places) as made:
        yield made, last


def test_they_work_with_each_other(mixed: tuple[Mixed, Path], tmp_path: Path) -> None:
    made, last = mixed
    clients = (last, TODAY)
    issue = ("issue", "--agent", "pos-001", "--feature", "sales", "--expires", "2035-01-01T00:00:00Z", "--license-id", "one")

    # Provisioned with a credential that the TPM has opened; now the first secret, a license, and its verdict.
    status = made.asks("status")
    assert status["server"]["serial"] == 1
    assert made.serves("agents").count("tpm-unattested") == 1
    first = made.asks("rotate")["secret_version"]
    token = made.serves(*issue).strip()
    for place in clients:
        assert made.pos(place, f"{VERDICT}(client.validate(arguments[0]))", token) == [True, "ok"]

    # A rotation; the agent fetches the license's new token, and hands it to POS applications.
    files = [tmp_path / name for name in ("last.token", "today.token")]
    for file in files:
        file.write_text(token + "\n")
    assert made.asks("rotate")["secret_version"] == first + 1
    for place, file in zip(clients, files, strict=True):
        assert made.pos(place, "client.refresh(arguments[0])", token) not in (None, token)
        assert made.pos(place, f"{VERDICT}(client.validate_file(arguments[0]))", str(file)) == [True, "ok"]
        assert file.read_text().strip() != token
        assert made.pos(place, f"{VERDICT}(client.validate_file(arguments[0]))", str(file)) == [True, "ok"]

    # Neither side says more than 0.1.0 knows: a license gets here as a token, and each contact is one that both understand.
    assert status["server"].get("capabilities", []) == []
    shown = made.serves("agents", "show", "pos-001", "--json")
    assert json.loads(shown).get("capabilities", []) == []
    assert made.asks("contact")["failures"] == 0

    # The agent holds the license now. One of the last release is asked in vain, and goes on.
    if made.old_device:
        for call in ("client.require('sales')", "client.licenses()", "client.count_usage('sales')"):
            assert made.pos_error(TODAY, call) == "AgentTooOld"
        assert made.pos(TODAY, f"{VERDICT}(client.validate(arguments[0]))", token) == [True, "ok"]
    else:
        assert made.pos(TODAY, f"{VERDICT}(client.require('sales'))") == [True, "ok"]
        assert made.pos(TODAY, "[held.license_id for held in client.licenses()]") == ["one"]

    # A new TLS key with its certificate; the next contact uses it.
    ends = made.asks("status")["server"]["certificate_ends"]
    wait_until(lambda: made.asks("certificate", "renew")["certificate_ends"] > ends, lambda: "no later certificate", pause_s=1)
    assert made.asks("contact")["failures"] == 0

    # The server's announcements: new keys, signed by the root key, and a revocation list.
    before = made.asks("status")["server"]["key_set"]
    root = str(made.layout.server / "offline" / "root.key")
    made.serves("keys", "rotate", "rotation", "--root-key", root)
    made.serves("keys", "rotate", "license", "--root-key", root)
    wait_until(lambda: made.asks("contact")["key_set"] > before, lambda: "no later key set", pause_s=0.2)
    made.serves("revoke", "one")
    wait_until(
        lambda: (
            made.asks("contact")["failures"] == 0
            and made.pos(TODAY, f"{VERDICT}(client.validate(arguments[0]))", token)[1] == "revoked"
        ),
        lambda: "the license is not revoked",
        pause_s=0.2,
    )
    for place in clients:
        assert made.pos(place, f"{VERDICT}(client.validate(arguments[0]))", token) == [False, "revoked"]

    # An invalidated secret, and the one after it; the log that has seen all of this is whole.
    made.serves("secrets", "invalidate", "--agent", "pos-001", str(first + 1))
    assert made.asks("rotate")["secret_version"] == first + 2
    assert made.asks("audit", "verify")["ok"]
    made.agent.stop()
    made.agent.start()
    assert made.asks("contact")["failures"] == 0
