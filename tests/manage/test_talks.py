"""Which conversation goes on with whom, for how long, and who makes room for whom."""

import itertools

import pytest

from ipc.bounds import ADMIN_CHALLENGE_S, ADMIN_SESSION_S
from manage.talks import MAX_TALKS, MAX_TALKS_EACH, Talk, Talks, TooMany


class Connection:
    """Counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def talks() -> Talks:
    numbers = itertools.count(1)
    return Talks(lambda: f"{next(numbers):032x}")


def begin(held: Talks, owner: str, now: float = 0.0) -> Talk:
    held.make_room(owner, now)
    return held.begin(owner, Connection(), {"agent_id": "a"}, now)  # type: ignore[arg-type]


def test_a_challenge_is_taken_once_by_its_owner_in_time() -> None:
    held = talks()
    talk = begin(held, "ann")
    given = talk.challenge_id
    assert held.take(given, "bob", 1) is None
    assert held.take("", "ann", 1) is None
    assert held.take(given, "ann", 1) is talk
    assert held.take(given, "ann", 1) is None
    held.challenge_given(talk, 1)
    held.done(talk)
    assert held.take(talk.challenge_id, "ann", 1 + ADMIN_CHALLENGE_S) is None


def test_what_is_over_is_closed_but_not_under_an_act() -> None:
    held = talks()
    idle, busy, session = begin(held, "ann"), begin(held, "ann"), begin(held, "ann")
    assert held.take(busy.challenge_id, "ann", 1) is busy
    assert held.take(session.challenge_id, "ann", 1) is session
    held.session_begun(session, ADMIN_SESSION_S, 1)
    held.done(session)
    held.tidy(ADMIN_CHALLENGE_S)
    assert (idle.agent.closed, busy.agent.closed, session.agent.closed) == (1, 0, 0)  # type: ignore[attr-defined]
    held.done(busy)
    held.tidy(ADMIN_SESSION_S + 1)
    assert (len(held), busy.agent.closed, session.agent.closed) == (0, 1, 1)  # type: ignore[attr-defined]


def test_a_session_ends_in_time_however_long_the_agent_says_it_is() -> None:
    held = talks()
    talk = begin(held, "ann")
    held.session_begun(talk, 10 * ADMIN_SESSION_S, 5)
    assert held.session(talk.session_id, "ann", 4 + ADMIN_SESSION_S) is talk
    assert held.session(talk.session_id, "bob", 5) is None
    assert held.session("", "ann", 5) is None
    assert held.session(talk.session_id, "ann", 5 + ADMIN_SESSION_S) is None
    ended = talk.session_id
    held.end(talk)
    assert held.session(ended, "ann", 6) is None


def test_each_owner_makes_room_for_themselves_only() -> None:
    held = talks()
    own = [begin(held, "ann") for _time in range(MAX_TALKS_EACH)]
    held.session_begun(own[0], 60, 0)
    begin(held, "ann")
    assert [talk.agent.closed for talk in own] == [0, 1, 0, 0]  # type: ignore[attr-defined]
    for talk in list(held._talks):
        held.session_begun(talk, 60, 0)
    with pytest.raises(TooMany, match="this certificate"):
        held.make_room("ann", 1)
    for owner in ("bob", "cid"):
        for talk in [begin(held, owner) for _time in range(MAX_TALKS_EACH)]:
            held.session_begun(talk, 60, 0)
    assert len(held) == MAX_TALKS
    with pytest.raises(TooMany, match=f"{MAX_TALKS} sessions"):
        held.make_room("dan", 1)
    held.make_room("dan", ADMIN_CHALLENGE_S)  # by then sessions and challenges are over
    held.end_all()
    assert len(held) == 0


def test_where_all_is_full_the_one_who_has_the_most_makes_room() -> None:
    held = talks()
    quiet = [begin(held, f"{number}") for number in range(MAX_TALKS - MAX_TALKS_EACH)]
    loud = [begin(held, "loud") for _time in range(MAX_TALKS_EACH)]
    new = [begin(held, f"new {number}") for number in range(MAX_TALKS_EACH - 1)]
    assert [talk.agent.closed for talk in loud] == [1, 1, 1, 0]  # type: ignore[attr-defined]
    begin(held, "one more")  # now everybody has one, and the oldest goes
    assert [talk.agent.closed for talk in [*quiet, *new]] == [1] + [0] * (len(quiet) + len(new) - 1)  # type: ignore[attr-defined]
