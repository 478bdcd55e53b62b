"""Which backups are kept, for any history."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cli.backup.retention import Kept, made_at, name_of, newest_of, superfluous

START = datetime(2027, 1, 1, 3, 0, tzinfo=UTC)  # a Friday
moments = st.datetimes(datetime(2026, 1, 1), datetime(2029, 12, 31)).map(
    lambda moment: moment.replace(tzinfo=UTC, microsecond=0)
)
histories = st.lists(moments, unique=True, max_size=60)
rules = st.builds(Kept, st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))


def names(*moments: datetime) -> list[str]:
    return [name_of("pos-001", int(moment.timestamp())) for moment in moments]


def remaining(found: list[str], kept: Kept) -> list[str]:
    gone = superfluous("pos-001", found, kept)
    return sorted(set(found) - set(gone))


def test_a_daily_backup_for_a_year_leaves_days_and_weeks() -> None:
    found: list[str] = []
    for day in range(365):
        found.append(name_of("pos-001", int((START + timedelta(days=day)).timestamp())))
        for name in superfluous("pos-001", found, Kept(3, 7, 4)):
            found.remove(name)
    last = START + timedelta(days=364)
    days = [last - timedelta(days=back) for back in range(7)]
    # The two newest weeks end among these days; of the two before them, the Sundays are kept.
    sundays = [day for back in range(7, 40) if (day := last - timedelta(days=back)).isoweekday() == 7][:2]
    assert found == sorted(names(*days, *sundays))


def test_days_and_weeks_without_a_backup_do_not_count() -> None:
    history = [START, START + timedelta(days=40), START + timedelta(days=90), START + timedelta(days=90, hours=1)]
    assert remaining(names(*history), Kept(1, 2, 0)) == sorted(names(history[1], history[3]))
    assert remaining(names(*history), Kept(1, 0, 3)) == sorted(names(history[0], history[1], history[3]))


def test_the_week_of_new_year_is_one_week() -> None:
    history = [datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)]
    assert remaining(names(*history), Kept(1, 0, 9)) == names(history[1])


@given(histories, rules)
def test_what_is_kept_satisfies_each_rule_and_nothing_else_is(history: list[datetime], kept: Kept) -> None:
    found = names(*history)
    left = remaining(found, kept)
    newest_first = sorted(found, reverse=True)
    assert set(newest_first[: kept.newest]) <= set(left)
    assert len(left) <= kept.newest + kept.daily + kept.weekly
    days = sorted({moment.date() for moment in history}, reverse=True)[: kept.daily]
    weeks = sorted({moment.isocalendar()[:2] for moment in history}, reverse=True)[: kept.weekly]
    stay = [moment for name in left if (moment := made_at("pos-001", name)) is not None]
    for day in days:
        assert max(moment for moment in history if moment.date() == day) in stay
    for week in weeks:
        assert max(moment for moment in history if moment.isocalendar()[:2] == week) in stay
    # Once more changes nothing, and files come in any order.
    assert superfluous("pos-001", left, kept) == []
    assert remaining(list(reversed(found)), kept) == left


@given(histories, rules, st.text(max_size=80))
def test_no_other_file_is_removed(history: list[datetime], kept: Kept, other: str) -> None:
    others = [other, "pos-001.backup", "license-agent-pos-001-20270230T000000Z.backup", *names(*history)]
    assert set(superfluous("pos-002", others, kept)) == set()
    removed = superfluous("pos-001", others, kept)
    assert all(made_at("pos-001", name) is not None for name in removed)


def test_an_id_that_ends_like_a_time_is_read_right() -> None:
    name = name_of("pos-20270101T000000Z", int(START.timestamp()))
    assert made_at("pos-20270101T000000Z", name) == START == newest_of([name, "license-agent-x.backup"])
    assert made_at("pos", name) is None and newest_of(["other"]) is None
