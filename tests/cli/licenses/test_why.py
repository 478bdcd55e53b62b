"""`why` says in sentences what decided, with dates in both zones, and names a next step for every reason."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd.licenses.explanation import explain_license, explain_token
from agentd.secrets.revocations import Revocations
from agentd.secrets.withheld import Withheld
from cli.licenses.explanation import explained, explanation_text
from cli.licenses.remedies import _STEPS, next_step
from cli.licenses.why import is_token
from ipc.answers import LicenseReason
from tests.agentd.world import DAY, T0, World, meta, token
from tests.contracts.world import CLAIMS

NOW = T0 + 100
END = T0 + 30 * DAY
AROUND: dict[str, Any] = {
    "mode": "online",
    "clock": {"machine": NOW, "suspect": False, "server_time": None},
    "server": {"last": NOW, "failures": 0, "problem": None, "refused": None},
}


@pytest.fixture
def paris(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def world() -> Iterator[World]:
    made = World(meta(1, "GRACE"), meta(2, start=T0 + 1))
    yield made
    made.vault.close()


def told(reply: dict[str, Any], **around: Any) -> dict[str, Any]:
    return explained({**reply, **AROUND, **around}, "@TOKEN-FILE")


def test_dates_are_in_utc_and_in_the_local_zone(world: World, paris: None) -> None:
    found = told(explain_token(world.validator, token(2, exp=NOW - 40), NOW))
    assert found["summary"] == "license license-1 ended on 2027-01-15 08:01:00Z (09:01:00 CET), 40 s ago."
    text = explanation_text(found)
    assert "8  end              " in text and "FAILED" in text and ", decides" in text
    assert "license-server licenses renew license-1" in text and "license-agent-cli contact" in text


def test_a_local_date_that_is_another_day_is_written_out(world: World, paris: None) -> None:
    found = told(explain_token(world.validator, token(2, nbf=1_800_055_000), NOW))
    assert "2027-01-15 23:16:40Z (2027-01-16 00:16:40 CET), in 15 h 15 min" in found["summary"]


def test_every_reason_has_a_next_step_and_a_sentence(world: World) -> None:
    # `suspended` is how `require` names a license that is `revoked` for a token.
    assert _STEPS.keys() == {reason.value for reason in LicenseReason} - {LicenseReason.SUSPENDED.value}
    assert "release" in next_step({"reason": "of_a_later_release", "newest": None}, "x").text


def _suspend(world: World) -> None:
    world.validator.withheld = Withheld(number=1, suspended={"license-1": END})


def _give_back(world: World) -> None:
    world.validator.withheld = Withheld(number=1, given_back={"license-1": END})


def _revoke(world: World) -> None:
    world.validator.revocations = Revocations(number=1, revoked=frozenset({"license-1"}))


def _refuse_stale(world: World) -> None:
    world.validator.revocations = Revocations(number=1, next_update=NOW)
    world.validator.refuse_stale_revocations(True)


def _nothing(_world: World) -> None:
    """The world as it is."""


@pytest.mark.parametrize(
    ("text", "change", "now", "summary", "command"),
    [
        ("x", _nothing, NOW, "not a complete license token", "license-agent-cli why @TOKEN-FILE"),
        (token(aud="pos-2"), _nothing, NOW, "for machine pos-2; this is", "licenses transfer LICENSE-ID --agent pos-001"),
        (token(7), _nothing, NOW, "this machine has only got as far as 2", "license-agent-cli contact"),
        (token(1), lambda world: world.invalidate(1, NOW), NOW, "version 1 was invalidated on", "license-server reissue"),
        (token(1), _nothing, T0 + 9 * DAY, "was replaced, and its grace ended on", "license-server reissue"),
        (token(2), _nothing, T0 + 9 * DAY, "grace of the newest secret ended on", "license-agent-cli rotate"),
        (token()[:-4] + "AAAA", _nothing, NOW, "was changed, or another server made it", "license-server reissue"),
        (token(2), _revoke, NOW, "on the server's revocation list", "licenses history license-1"),
        (token(2), _suspend, NOW, "is suspended by the license server", "licenses reinstate license-1"),
        (token(2), _give_back, NOW, "is a seat that this machine has given back", "license-agent-client licenses"),
        (token(2, nbf=NOW + 60), _nothing, NOW, "begins on", "timedatectl"),
        (token(2), _refuse_stale, NOW, "the revocation list is out of date since", "license-agent-cli contact"),
        (token(2), _nothing, NOW, "may be used until", "Nothing has to be done."),
        (token(1), _nothing, NOW, "may be used until", "license-agent-cli contact"),
    ],
)  # fmt: skip
def test_each_reason_says_what_and_what_to_do(
    world: World, text: str, change: Callable[[World], None], now: int, summary: str, command: str
) -> None:
    change(world)
    found = told(explain_token(world.validator, text, now))
    shown = explanation_text(found)
    assert summary in found["summary"] and command in shown
    assert found["valid"] is (found["reason"] == "ok")
    assert text not in shown or text == "x"
    assert "None" not in shown


def test_a_valid_newer_token_is_the_first_thing_to_take(world: World) -> None:
    world.validator.import_token(token(2, iat=CLAIMS.iat + 1), NOW)
    found = told(explain_token(world.validator, token(1, exp=NOW), NOW))
    assert found["next"]["here"] == ["license-agent-client refresh @TOKEN-FILE"]
    assert any("a newer token of it, under secret version 2: ok" in note for note in found["notes"])


def test_what_else_would_refuse_it_is_noted(world: World) -> None:
    _suspend(world)
    assert "this alone would refuse it too: end" in told(explain_token(world.validator, token(2, exp=NOW), NOW))["notes"]


def test_what_surrounds_it_is_noted(world: World) -> None:
    clock = {"machine": 0, "suspect": True, "server_time": {"standing": "held", "text": "it is early"}}
    server = {"last": None, "failures": 3, "problem": "no route", "refused": None}
    reply = explain_token(world.validator, token(2, exp=NOW), NOW)
    found = told(reply, mode="degraded", clock=clock, server=server)
    notes = "\n".join(found["notes"])
    for words in ("1970-01-01", "held: it is early", "works without its server", "the last 3 contacts", "no route"):
        assert words in notes
    assert found["next"]["here"][0] == "timedatectl"
    assert "carried to it by hand" in "\n".join(told(reply, server=None)["notes"])


def test_a_license_that_was_only_shown_asks_for_its_token(world: World) -> None:
    world.validator.look(token(2), NOW)
    found = told(explain_license(world.validator, "license-1", NOW))
    assert found["reason"] == "no_license" and "license-agent-cli why @TOKEN-FILE" in found["next"]["here"]
    assert "there is no token here" in explanation_text(found)


@pytest.mark.parametrize(
    ("text", "token_"), [("a.b.c.d.e", True), ("eyJhbGciOi", True), ("x" * 129, True), ("demo-valid", False), ("a.b", False)]
)
def test_a_token_and_an_id_are_told_apart(text: str, token_: bool) -> None:
    assert is_token(text) is token_
