"""The judgment of the agent's health: each condition by itself, the order, and an agent that goes from bad to worse."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from agentd.admin.handlers.status_handlers import StatusHandlers
from agentd.base.alerts import (
    ALERTS,
    AUDIT_BUDGET,
    AUDIT_DAMAGED,
    CLOCK_SUSPECT,
    DEGRADED_LONG,
    REVOCATIONS_STALE,
    SECRET_EXPIRED,
    SERVER_REFUSES,
    TPM_UNAVAILABLE,
    UNAUTHORIZED,
)
from agentd.base.confinement import NOT_CONFINED
from agentd.base.hardware import Hardware
from agentd.sync.degraded import Mode
from agentd.telemetry.health import CONDITIONS, DAY_S, Facts, Health, findings, health_view
from hwsec.errors import BackendState
from ipc.messages import Status
from ipc.peer import Peer
from tests.support.pair import DAY, Pair, prepare

NOW = 1_800_000_000
FINE = Facts(now=NOW, certificate_ends=NOW + 1)
STOPS, ATTENTION = Health.NOT_WORKING, Health.NEEDS_ATTENTION


@pytest.mark.parametrize(
    ("changes", "expected", "says"),
    [
        ({}, [], ""),
        ({"provisioned": False, "versions": 0, "usable": 0}, [("not_provisioned", STOPS)], "cli provision"),
        ({"versions": 0, "usable": 0}, [("no_usable_secret", STOPS)], "no secret yet, so it refuses every license"),
        ({"versions": 0, "usable": 0, "has_server": False}, [("no_usable_secret", STOPS)], "secrets install FILE"),
        ({"versions": 2, "usable": 0}, [("no_usable_secret", STOPS)], "every secret version is invalidated"),
        ({"usable": 0, "mode": Mode.EXPIRED}, [("no_usable_secret", STOPS)], "grace of the newest secret has ended"),
        ({"usable": 0, "mode": Mode.EXPIRED, "alerts": ((SECRET_EXPIRED, NOW),)}, [("no_usable_secret", STOPS)], ""),
        ({"revocations_stale": True, "stale_refused": True}, [("revocations_refuse", STOPS)], "refuses every license"),
        ({"stale_refused": True}, [], ""),
        ({"revocations_stale": True, "alerts": ((REVOCATIONS_STALE, NOW),)}, [("revocations_stale", ATTENTION)], "cli contact"),
        ({"config_problems": ("a", "b", "c")}, [("config_refused", ATTENTION)], "on disk is refused: a (and 2 more)"),
        ({"config_problems": ("a",), "config_unloaded": True}, [("config_refused", ATTENTION)], "systemctl reload"),
        ({"config_unloaded": True}, [("config_unloaded", ATTENTION)], "systemctl reload"),
        ({"config_problems": ("x was removed; restart",), "out_of_reach": "x was removed; restart"},
         [("out_of_reach", ATTENTION)], "x was removed If it is the TPM's device"),
        ({"config_problems": ("x",), "out_of_reach": "x", "backend_problem": "absent: no TPM"},
         [("backend_unavailable", ATTENTION), ("out_of_reach", ATTENTION)], "absent: no TPM"),
        ({"needs_restart": ("tpm", "agent.id")}, [("needs_restart", ATTENTION)], "tpm, agent.id"),
        ({"nobody_admitted": True}, [("nobody_admitted", ATTENTION)], "allowed_uids"),
        ({"refused_in_a_row": 9}, [], ""),
        ({"refused_in_a_row": 10}, [("all_refused", ATTENTION)], "last 10 validations"),
        ({"refused_in_a_row": 10, "usable": 0}, [("no_usable_secret", STOPS)], ""),
        ({"refused": "AGENT_REVOKED", "failures": 9}, [("server_refuses", ATTENTION)], "refuses this agent: AGENT_REVOKED"),
        ({"refused": "x", "alerts": ((SERVER_REFUSES, NOW),)}, [("server_refuses", ATTENTION)], ""),
        ({"certificate_unknown": True, "failures": 9}, [("certificate_unknown", ATTENTION)], "recover reinitialize"),
        ({"certificate_unknown": True, "refused": "it is revoked", "alerts": ((SERVER_REFUSES, NOW),)},
         [("certificate_unknown", ATTENTION)], "before, it said: it is revoked"),
        ({"audit_failing": True}, [("audit_unwritable", ATTENTION)], "Make room"),
        ({"backend_problem": "hung: it hangs"}, [("backend_unavailable", ATTENTION)], "tpm cannot be used: hung: it hangs"),
        ({"backend_problem": "x", "alerts": ((TPM_UNAVAILABLE, NOW),)}, [("backend_unavailable", ATTENTION)], ""),
        ({"mode": Mode.DEGRADED}, [("degraded", ATTENTION)], "cli contact"),
        ({"mode": Mode.DEGRADED, "has_server": False}, [("degraded", ATTENTION)], "secrets install"),
        ({"mode": Mode.DEGRADED, "held": True, "failures": 9}, [("degraded", ATTENTION)], "degraded off"),
        ({"mode": Mode.DEGRADED, "alerts": ((DEGRADED_LONG, NOW),)}, [("degraded", ATTENTION)], ""),
        ({"failures": 3, "problem": "p"}, [], ""),
        ({"failures": 4, "problem": "p"}, [("server_unreachable", ATTENTION)], "the last 4 contacts"),
        ({"certificate_ends": NOW}, [("certificate_ended", ATTENTION)], "the next contact renews it"),
        ({"certificate_ends": None}, [], ""),
        ({"certificate_ends": 0}, [], ""),
        ({"clock_suspect": True, "alerts": ((CLOCK_SUSPECT, NOW),)}, [("clock_suspect", ATTENTION)], "Set the clock"),
        ({"alerts": ((AUDIT_DAMAGED, NOW - 99 * DAY_S),)}, [("audit_damaged", ATTENTION)], "audit verify"),
        ({"alerts": ((AUDIT_BUDGET, NOW - DAY_S + 1),)}, [("audit_budget", ATTENTION)], ""),
        ({"alerts": ((AUDIT_BUDGET, NOW - DAY_S),)}, [], ""),
        ({"alerts": ((UNAUTHORIZED, NOW - 1.0),)}, [("access.denied", ATTENTION)], "allow-list"),
        (
            {"audit_failing": True, "clock_suspect": True, "usable": 0},
            [("no_usable_secret", STOPS), ("audit_unwritable", ATTENTION), ("clock_suspect", ATTENTION)],
            "",
        ),
    ],
)  # fmt: skip
def test_judgment(changes: dict[str, Any], expected: list[tuple[str, Health]], says: str) -> None:
    found = findings(replace(FINE, **changes))
    assert [(finding.code, finding.health) for finding in found] == expected
    assert says in " ".join(f"{finding.text} {finding.action}" for finding in found)
    worst = max((health for _, health in expected), default=Health.FINE)
    assert health_view(found)["verdict"] == worst.code


def test_every_condition_and_every_alert_is_a_finding() -> None:
    bad: dict[str, Any] = {
        "provisioned": False, "mode": Mode.DEGRADED, "failures": 9, "problem": "p", "refused": "r", "certificate_ends": 1,
        "revocations_stale": True, "stale_refused": True, "refused_in_a_row": 99, "backend_problem": "b", "audit_failing": True,
        "clock_suspect": True, "nobody_admitted": True, "config_problems": ("c",), "needs_restart": ("tpm",), "now": NOW,
    }  # fmt: skip
    codes = {finding.code for finding in findings(Facts(**bad))}
    codes |= {f.code for f in findings(Facts(certificate_unknown=True, out_of_reach="x"))}
    codes |= {f.code for f in findings(Facts(versions=0, usable=0, config_unloaded=True, failures=9, revocations_stale=True))}
    assert codes == {condition.code for condition in CONDITIONS}
    assert len({condition.code for condition in CONDITIONS}) == len(CONDITIONS)
    for alert in ALERTS:
        assert findings(replace(FINE, alerts=((alert, NOW),))), alert
    every = [f for alert in ALERTS for f in findings(replace(FINE, alerts=((alert, NOW),)))] + [*findings(Facts(**bad))]
    for finding in every:
        assert finding.text and not finding.text.endswith(".") and finding.action.endswith("."), finding
    assert {field.name for field in fields(Facts)} >= set(bad)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    yield made
    made.close()


def _status(pair: Pair) -> dict[str, Any]:
    agent = pair.agent.agent
    agent.reporter.note()
    handlers = StatusHandlers(
        agent.parts, agent.publisher, agent.reporter.health, NOT_CONFINED, agent.access, agent.pos.holdings
    )

    async def ask() -> dict[str, Any]:
        return await handlers.table()[Status](Status(v=1, id=1), Peer(0, 0, 0))

    return asyncio.run(ask())


def _judged(pair: Pair) -> dict[str, str]:
    """Codes and texts of what `status` finds, without what the pair's configuration lacks."""
    health = _status(pair)["health"]
    found = {finding["code"]: finding["text"] for finding in health["findings"]}
    assert found.pop("nobody_admitted")
    assert (health["verdict"] == "not_working") is ("no_usable_secret" in found)
    return found


def test_an_agent_in_touch_is_fine(pair: Pair) -> None:
    assert pair.contact() is None
    assert _judged(pair) == {}


def test_status_counts_the_licenses_and_lists_the_alerts(pair: Pair) -> None:
    assert pair.contact() is None
    before = _status(pair)
    assert before["alerts"] == [] and before["secrets"]["newest"] == 1
    pair.server.server_side.agents.set_status("pos-001", "revoked", pair.server.now)
    assert pair.contact() is not None
    (alert,) = _status(pair)["alerts"]
    assert (alert["event"], alert["severity"]) == ("alert.server_refuses", "high") and alert["since"] > 0
    assert before["licenses"].keys() == {"held", "valid", "suspended", "expiring", "next_end"}


def test_an_agent_that_was_revoked_says_so(pair: Pair) -> None:
    pair.server.server_side.agents.set_status("pos-001", "revoked", pair.server.now)
    assert pair.contact() is not None
    assert "refuses this agent" in _judged(pair)["server_refuses"] and pair.valid()


def test_an_agent_that_was_reinstated_says_that_it_must_be_provisioned_again(pair: Pair) -> None:
    agents = pair.server.server_side.agents
    agents.set_status("pos-001", "revoked", pair.server.now)
    assert pair.contact() is not None
    agents.set_status("pos-001", "active", pair.server.now)
    assert pair.contact() is not None
    found = _judged(pair)
    assert "does not know this agent's certificate any more" in found["certificate_unknown"] and "server_refuses" not in found
    assert pair.valid()


def test_an_agent_without_its_server_goes_from_fine_to_refusing(pair: Pair) -> None:
    pair.wire.cut = True
    for _ in range(4):
        assert pair.contact() is not None
    assert "cut off" in _judged(pair)["server_unreachable"]
    pair.clock.seconds += 1.5 * DAY
    assert pair.contact() is not None
    assert "grace" in _judged(pair)["degraded"] and pair.valid()
    pair.clock.seconds += 9 * DAY
    assert "grace of the newest secret has ended" in _judged(pair)["no_usable_secret"] and not pair.valid()


def test_an_agent_whose_secrets_were_invalidated_refuses(pair: Pair) -> None:
    asyncio.run(pair.agent.agent.assembled.installer.invalidate(1, {"uid": 0}))
    assert "invalidated" in _judged(pair)["no_usable_secret"] and not pair.valid()


def test_hardware_that_does_not_answer_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ill = replace(pair.agent.store.status, available=False, state=BackendState.HUNG, detail="it hangs")

    async def ask(_self: Hardware, _work: object, _deadline: float) -> Any:
        return ill

    async def ready(_self: Hardware, _deadline: float) -> None:
        return None

    monkeypatch.setattr(Hardware, "ask", ask)
    monkeypatch.setattr(Hardware, "ready", ready)
    assert "cannot be used: hung: it hangs" in _judged(pair)["backend_unavailable"]


def test_refusals_in_a_row_count_until_a_license_is_valid(pair: Pair) -> None:
    health, counters = pair.agent.agent.reporter.health, pair.agent.core.counters
    counters.validations, counters.validations_failed = 30, 20
    assert health.facts().refused_in_a_row == 0
    counters.validations, counters.validations_failed = 41, 31
    assert health.facts().refused_in_a_row == 11
    assert "last 11 validations" in _judged(pair)["all_refused"]
    counters.validations += 1
    assert health.facts().refused_in_a_row == 0
