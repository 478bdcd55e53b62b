"""The server's clock is wrong for a minute, and agents in every phase of their life contact it then.

Of each agent it is shown: it refuses no license that is valid, not in that minute and not afterwards; its first contact with
the right server succeeds; an hour later nothing is left of the minute, and secrets rotate as before.
"""

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest

from agentd.admin.handlers.secret_handlers import SecretHandlers
from agentd.base.clock.signedtime import CONFIRM_AFTER_S, Standing
from agentd.base.clock.timeanchor import TOLERANCE_S
from agentd.base.errors import Refused
from agentd.rotation.table import Step
from agentd.uplink.transport import CertificateRefused
from contracts.exchange import Cause
from ipc.messages import ClockConfirm
from ipc.peer import Peer
from server.keys.rootkey import read_root_key
from server.licensing.licenses.licenses import Order
from tests.support.fleet import HOUR, LICENSED_LATER, PHASES, SECRET_OVER, WRONG, Fleet, Member
from tests.support.folders import memory_folder
from tests.support.outputs import assert_fits
from tests.support.pair import AGENT, DAY, START, Pair, prepare

OFFSETS = {"-1 h": -HOUR, "+1 h": HOUR, "+8 d": 8 * DAY, "+20 d": 20 * DAY, "+400 d": 400 * DAY}
EACH = 2
"""Agents of each phase and offset: one contacts the wrong server once, the other twice. A hundred in all."""


def test_there_are_a_hundred() -> None:
    assert len(OFFSETS) * len(PHASES) * EACH == 100


@pytest.fixture(params=list(OFFSETS.values()), ids=list(OFFSETS))
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with memory_folder() as directory:  # what is tested here is time, not the disk
        made = Fleet(directory, EACH)
        made.prepare(WRONG)
        made.server.truth.seconds, made.server.ahead = WRONG, request.param
        made.prepare(WRONG + 1)
        yield made
        made.close()


def must_serve(member: Member, when: str) -> None:
    member.second()
    if member.token:
        assert member.valid(), f"{member.phase}: a valid license is refused {when}: {member.reason()}"


def test_a_wrong_minute_costs_no_agent_anything(fleet: Fleet) -> None:
    server, truth = fleet.server, fleet.server.truth
    assert {member.phase for member in fleet.members if not member.token} == LICENSED_LATER
    for member in fleet.members:
        member.second()
        assert member.valid() == bool(member.token and member.phase not in SECRET_OVER), member.phase
    for number, member in enumerate(fleet.members):
        truth.seconds = WRONG + 1 + number / 2
        error = member.contact()
        # A certificate that ended more than 400 days ago opens nothing; so it seems to a server that is so far ahead.
        too_old = server.ahead == 400 * DAY and member.phase.endswith("off for 40 days")
        assert isinstance(error, CertificateRefused) if too_old else error is None, f"{member.phase}: {error!r}"
        if not (too_old and member.phase in SECRET_OVER):
            must_serve(member, "in the wrong minute")
        if number % EACH:
            truth.seconds += 0.25
            error = member.contact(Cause.FORCED)
            assert (error is None) is not too_old, f"{member.phase}: {error!r}"
            if not (too_old and member.phase in SECRET_OVER):
                must_serve(member, "after a second contact in the wrong minute")
    server.ahead, truth.seconds = 0, WRONG + 60
    still = [member for member in fleet.members if not (member.phase in SECRET_OVER and not member.valid())]
    assert len(still) >= len(fleet.members) - EACH
    for member in still:
        must_serve(member, "while the server is right and has not been contacted")
    for member in fleet.members:
        truth.seconds += 0.25
        member.restarts()
        if member in still:
            must_serve(member, "after a restart")
        error = member.contact()
        assert error is None, f"{member.phase}: the first contact with the right server failed: {error!r}"
        must_serve(member, "after it")
    for hours in (1, 2, 27):
        truth.seconds = WRONG + hours * HOUR
        for member in fleet.members:
            truth.seconds += 0.25
            must_serve(member, f"{hours} h later")
            error = member.contact()
            assert error is None, f"{member.phase}: contact after {hours} h: {error!r}"
            must_serve(member, f"after the contact {hours} h later")
    for member in fleet.members:
        nothing_is_left(member)


def nothing_is_left(member: Member) -> None:
    agent, clock = member.agent.agent, member.agent.clock
    phase, now = member.phase, member.server.truth.now
    record = agent.store.record
    assert record.unconfirmed is None, (phase, record.unconfirmed)
    assert abs(clock.now() - now) <= TOLERANCE_S, phase
    assert abs(clock.certain() - now) <= TOLERANCE_S, phase
    newest = agent.ring.newest
    assert newest is not None and agent.rotation.rotation.step is Step.IDLE, phase
    assert newest.meta.valid_from <= now < newest.meta.valid_until <= now + DAY, (phase, newest.meta)
    key = agent.cycle._certificates
    assert key.pending is None and key.current.not_before <= now < key.current.not_after, phase
    issued = member.server.server_side.secrets.listed(member.name)
    assert [row.version for row in issued if row.state == "ACTIVE"] == [newest.meta.version], phase


# One agent, step by step


@pytest.fixture(scope="module")
def copy() -> Iterator[Callable[[], Pair]]:
    with memory_folder() as directory:
        made, numbers = prepare(directory), iter(range(100))
        yield lambda: made(directory / f"pair-{next(numbers)}")


@pytest.fixture
def pair(copy: Callable[[], Pair]) -> Iterator[Pair]:
    made = copy()
    made.clock.seconds += 3600
    assert made.contact() is None and made.agent.store.record.unconfirmed is None
    yield made
    made.close()


def events(pair: Pair) -> list[dict[str, object]]:
    pair.agent.core.audit.flush()
    log = pair.config.audit_log.read_text().splitlines()
    return [json.loads(line) for line in log if json.loads(line)["event"].startswith(("clock.", "alert.server_time"))]


def wrong_contact(pair: Pair, ahead: int, cause: Cause | None = None) -> None:
    pair.server.ahead = ahead
    pair.clock.seconds += 10
    assert pair.contact(cause) is None
    pair.server.ahead = 0


def standing(pair: Pair) -> Standing | None:
    found = pair.agent.store.record.unconfirmed
    return None if found is None else found.standing


@pytest.mark.parametrize("ahead", [3600, 8 * DAY, 20 * DAY])
def test_a_time_that_the_machine_contradicts_is_held_and_then_dropped(pair: Pair, ahead: int) -> None:
    before = pair.clock.now()
    wrong_contact(pair, ahead)
    assert standing(pair) is Standing.HELD
    assert pair.clock.now() == before + 10 and not pair.clock.suspect() and pair.valid()
    # The next contact comes as soon as it may confirm the time, and not before.
    assert CONFIRM_AFTER_S <= pair.agent.cycle.wait_s() <= CONFIRM_AFTER_S + 600
    pair.agent.agent.reporter.note()
    status = pair.agent.status()
    assert "the license server says" in status["text"] and "clock confirm" in status["action"]
    assert "license_agent_server_time_held 1.0" in pair.agent.metrics()
    pair.clock.seconds += CONFIRM_AFTER_S
    assert pair.contact() is None and standing(pair) is None
    pair.agent.agent.reporter.note()
    assert pair.agent.status() is None
    assert "license_agent_server_time_held 0.0" in pair.agent.metrics()
    seen = [(record["event"], record["outcome"]) for record in events(pair)]
    assert seen == [
        ("clock.held", "ok"), ("alert.server_time", "raised"), ("clock.dropped", "ok"), ("alert.server_time", "cleared"),
    ]  # fmt: skip


def test_a_time_that_has_passed_is_told_and_never_confirmed(pair: Pair) -> None:
    before = pair.clock.certain()
    for _ in range(3):
        wrong_contact(pair, -7200)
        assert standing(pair) is Standing.BEHIND and pair.clock.certain() >= before and pair.valid()
        pair.clock.seconds += 3600
    with pytest.raises(Refused, match="clock reset"):
        asyncio.run(pair.agent.agent.assembled.time.confirm({"uid": 0}))
    assert pair.contact() is None and standing(pair) is None


def test_a_server_that_stays_with_its_time_is_believed_after_half_an_hour(pair: Pair) -> None:
    pair.server.ahead = 3 * DAY
    for minutes, believed in ((0, False), (10, False), (29, False), (31, True)):
        pair.clock.seconds = 10_000 + minutes * 60
        assert pair.contact() is None
        assert (standing(pair) is None) is believed, minutes
    assert abs(pair.clock.certain() - (START + pair.clock.seconds + 3 * DAY)) <= TOLERANCE_S
    assert [record["event"] for record in events(pair)] == ["clock.held", "clock.confirmed"]


def test_an_administrator_confirms_it(pair: Pair) -> None:
    wrong_contact(pair, 3 * DAY)
    pair.clock.seconds += 60
    agent, made = pair.agent.agent, pair.agent.agent.assembled
    handlers = SecretHandlers(made.core, made.installer, made.time, made.validator, agent.reporter).table()
    reply = asyncio.run(handlers[ClockConfirm](ClockConfirm(v=1, id="c"), Peer(0, 0, 1)))
    assert_fits("clock confirm", reply)
    signed = reply["signed"]
    assert signed == START + int(pair.clock.seconds) + 3 * DAY
    assert standing(pair) is None and pair.clock.certain() == signed
    with pytest.raises(Refused, match="no time of the server is waiting"):
        asyncio.run(pair.agent.agent.assembled.time.confirm({"uid": 0}))


def test_a_reset_ends_it_too(pair: Pair) -> None:
    wrong_contact(pair, 8 * DAY)
    time = pair.agent.agent.assembled.time
    statement = pair.server.server_side.sign_time(AGENT, time.challenge(), pair.server.now)
    asyncio.run(time.reset(statement, {"uid": 0}))
    assert standing(pair) is None and pair.clock.now() == pair.server.now


def test_a_held_time_survives_a_restart_of_the_agent_once_it_is_stored(pair: Pair) -> None:
    wrong_contact(pair, 8 * DAY, Cause.FORCED)
    pair.restart_agent()
    assert standing(pair) is Standing.HELD and pair.valid()
    pair.clock.seconds += 60
    assert pair.contact() is None and standing(pair) is None


def test_the_former_certificate_stays_until_the_new_one_has_worked_at_a_time_that_is_taken(pair: Pair) -> None:
    certificates = pair.agent.cycle._certificates
    old = certificates.current.serial
    pair.clock.seconds += 23 * DAY
    wrong_contact(pair, 20 * DAY)
    assert certificates.pending is not None and certificates.current.serial == old
    wrong_contact(pair, 20 * DAY)  # the new one works, with the wrong server
    assert certificates.used.serial != old and certificates.current.serial == old
    assert pair.agent.store.record.tls is not None and pair.agent.store.record.tls.pending is not None
    pair.clock.seconds += 60
    assert pair.contact() is None
    assert certificates.used.serial == certificates.current.serial == old
    pair.clock.seconds += 3700
    assert pair.contact() is None and certificates.pending is not None
    pair.clock.seconds += 60
    assert pair.contact() is None
    assert certificates.pending is None and certificates.current.serial != old


def test_a_secret_that_is_over_is_not_installed(pair: Pair) -> None:
    newest = pair.agent.rotation.newest
    pair.clock.seconds += DAY
    pair.server.ahead = -20 * DAY
    error = pair.contact(Cause.FORCED)
    assert "not valid before" in str(error) or "the license server's clock is behind" in str(error)
    assert pair.agent.rotation.newest == newest and pair.valid()
    pair.server.ahead = 0
    pair.clock.seconds += 60
    assert pair.contact() is None and pair.agent.rotation.newest > newest and pair.valid()


def test_the_keys_of_the_former_key_set_stay_until_the_time_is_taken(pair: Pair) -> None:
    side = pair.server.server_side
    root = read_root_key(next(pair.server.directory.parents[1].glob("template/root.key")), None)
    former = set(pair.agent.store.record.trust().license_keys)
    # Twice in a wrong year: the first key is retired, then ended.
    for days in (0, 200):
        side.key_lifecycle.rotate("license", pair.server.now + (400 + days) * DAY, root)
    wrong_contact(pair, 8 * DAY)
    record = pair.agent.store.record
    assert former <= set(record.trust().license_keys) and record.settled is not None and pair.valid()
    newest = set(record.trust().license_keys) - former
    pair.clock.seconds += 60
    assert pair.contact() is None
    assert pair.agent.store.record.settled is None and newest == set(pair.agent.store.record.trust().license_keys)


def test_a_revocation_list_of_the_wrong_minute_hides_none_of_the_right_one(pair: Pair) -> None:
    side, now = pair.server.server_side, pair.server.now
    soon = side.licenses.issue(AGENT, Order("ends-soon", "shop", ("till",), {}, now, now + 5 * DAY), now)
    assert pair.valid(soon)
    side.licenses.revoke("ends-soon", now)
    # For the wrong server the license has ended, and is not on its list; the number is that of the right list.
    wrong_contact(pair, 8 * DAY)
    assert pair.agent.validator.revocations.revoked == frozenset() and pair.valid(soon)
    pair.clock.seconds += 60
    assert pair.contact() is None
    assert "ends-soon" in pair.agent.validator.revocations.revoked and not pair.valid(soon)
    until = pair.agent.validator.revocations.next_update
    assert until is not None and until <= pair.server.now + 7 * DAY


def test_a_dead_battery_uses_the_servers_time_for_what_begins(pair: Pair) -> None:
    side = pair.server.server_side
    pair.agent.end()
    pair.clock.seconds += 2 * DAY
    pair.clock.starts()
    pair.clock.off = -float(START + pair.clock.seconds)
    pair.clock._restarted()
    pair.agent = pair._start()
    assert pair.clock.suspect() and pair.valid()
    begins = pair.server.now - 3600
    token = side.licenses.issue(AGENT, Order("new", "shop", ("till",), {}, begins, begins + 9 * DAY), pair.server.now)
    over = side.licenses.issue(AGENT, Order("over", "shop", ("till",), {}, START, START + DAY), START)
    assert not pair.valid(token)
    assert pair.contact() is None and standing(pair) is Standing.PROVISIONAL
    assert pair.valid(token) and pair.clock.latest() >= begins
    # What the provisional time would end goes on until it is confirmed.
    assert pair.valid(over)
    pair.clock.seconds += CONFIRM_AFTER_S + 60
    assert pair.contact() is None and standing(pair) is None
    pair.agent.validator.ahead = pair.clock.latest() - pair.clock.now()
    assert pair.valid(token) and not pair.valid(over)


def test_a_contact_that_succeeds_lets_the_next_ones_go_out(pair: Pair) -> None:
    """An administrator tries again and again while the server signs nothing; then the server is right."""
    pair.wire.cut = True
    for _ in range(6):
        assert pair.contact() is not None
    pair.wire.cut = False
    assert pair.contact() is None
    pair.clock.seconds += DAY
    assert asyncio.run(pair.agent.cycle.tick())
