"""Makes `fleet-series.csv`: ten weeks of a made-up fleet, which tests of the anomaly detection replay.

2,000 tills of shops that are open from Monday to Saturday, and 150 machines that are always on. A row is half an hour:
contacts, failed ones, slow ones, and late devices. It begins on a Monday at 0:00 in Berlin, and a DST change is in it. Besides:

- on Saturday, October 3rd, a public holiday, the shops are closed;
- from Tuesday, November 3rd, 10:00 to 13:00, a third of the shops has no network;
- on Thursday, November 5th, from 14:00 to 16:00, 6 % of the contacts fail.

    python tests/vectors/make_fleet_series.py
"""

import random
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

ZONE = ZoneInfo("Europe/Berlin")
BEGIN = datetime(2026, 9, 7, tzinfo=ZONE)
STEP_S = 1800
WEEKS = 10
TILLS, ALWAYS_ON = 2000, 150
HOLIDAY = datetime(2026, 10, 3, tzinfo=ZONE).date()
OUTAGE = datetime(2026, 11, 3, 10, tzinfo=ZONE), datetime(2026, 11, 3, 13, tzinfo=ZONE)
ERRORS = datetime(2026, 11, 5, 14, tzinfo=ZONE), datetime(2026, 11, 5, 16, tzinfo=ZONE)


def _on(there: datetime) -> int:
    """How many devices are switched on."""
    if there.weekday() == 6 or there.date() == HOLIDAY:
        return ALWAYS_ON
    hour = there.hour + there.minute / 60
    share = min(max((hour - 6.5) / 1.5, 0.0), 1.0) * min(max((20.5 - hour) / 1.5, 0.0), 1.0)
    return ALWAYS_ON + round(TILLS * share)


def _about(rng: random.Random, count: int, share: float) -> int:
    """How many of so many, by chance: near enough to a binomial distribution."""
    return min(count, max(0, round(rng.gauss(count * share, (count * share * (1 - share)) ** 0.5))))


def rows() -> list[tuple[int, int, int, int]]:
    """The series."""
    rng, found, on_before = random.Random(20260907), [], [ALWAYS_ON] * 3
    begin = int(BEGIN.timestamp())
    for at in range(begin, begin + WEEKS * 7 * 86_400, STEP_S):
        there = datetime.fromtimestamp(at, ZONE)
        on = _on(there)
        if OUTAGE[0] <= there < OUTAGE[1]:
            on = on * 2 // 3
        contacts = _about(rng, on, 0.5)
        failed = _about(rng, contacts, 0.06 if ERRORS[0] <= there < ERRORS[1] else 0.003)
        # Late is who has been off for more than 90 minutes.
        late = TILLS + ALWAYS_ON - max(*on_before, on)
        on_before = [*on_before[1:], on]
        found.append((contacts, failed, _about(rng, contacts, 0.02), late))
    return found


if __name__ == "__main__":
    lines = ["contacts,failed,slow,late", *(",".join(map(str, row)) for row in rows())]
    Path(__file__).with_name("fleet-series.csv").write_text("\n".join(lines) + "\n")
