"""Decides when the trial of a new version of the agent has lasted too long. Nothing here performs IO; `rescue` does.

The deadline counts the time that the machine ran and the boots, never the time of day: a clock that is set, or a till that is
off over a weekend, must neither end a trial nor extend it. Only the standard library is imported: the rescue copy runs this.
"""

import json
from dataclasses import asdict, dataclass, replace

DEADLINE_S = 15 * 60
"""How long a version may run without being committed, seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps."""
MAX_BOOTS = 3
"""Boots that a trial may see. With one more it has failed: the new version may be what ends them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The marker `proving`: a version of the agent was installed, and nobody has committed it yet.

    Attributes:
        place: where its package is kept, "a" or "b".
        version: of the package, as dpkg writes it.
        sha256: of the package, in hex.
        back: where the package before it is kept.
        back_version: of that package.
        boot_id: the boot in which time was counted last.
        at_s: CLOCK_BOOTTIME then, seconds.
        ran_s: seconds that were counted by then.
        boots: boots that have begun since the installation.
        going_back: the return to the package before has begun, and cannot be called off.
    """

    place: str
    version: str
    sha256: str
    back: str
    back_version: str
    boot_id: str
    at_s: float
    ran_s: float = 0.0
    boots: int = 0
    going_back: bool = False


class BadTrial(Exception):
    """The marker cannot be read; the text says why."""


def encode(trial: Trial) -> bytes:
    """The marker's content."""
    return json.dumps({"v": 1, **asdict(trial)}, indent=1).encode()


def decode(data: bytes) -> Trial:
    """Reads a marker's content.

    Raises:
        BadTrial: it has another form.
    """
    try:
        members = json.loads(data)
        if members.pop("v") != 1:
            raise ValueError("it has another version")
        trial = Trial(**members)
        texts = (trial.version, trial.sha256, trial.back_version, trial.boot_id)
        numbers = (trial.at_s, trial.ran_s, trial.boots)
        if (
            {trial.place, trial.back} != {"a", "b"}
            or not all(isinstance(text, str) for text in texts)
            or not all(type(number) in (int, float) and number >= 0 for number in numbers)
            or type(trial.going_back) is not bool
        ):
            raise ValueError("a member has another type")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadTrial(str(error)[:200]) from None
    return trial


def counted(trial: Trial, boot_id: str, now_s: float) -> Trial:
    """Returns the trial with the time that has passed since it was counted last.

    Of an earlier boot only what was counted in it is known, so the time from then to its end is not in it; of this boot all is.

    Args:
        trial: as it was counted last.
        boot_id: of this boot.
        now_s: CLOCK_BOOTTIME, seconds since this boot.
    """
    if boot_id == trial.boot_id:
        return replace(trial, ran_s=trial.ran_s + max(0.0, now_s - trial.at_s), at_s=max(now_s, trial.at_s))
    return replace(trial, ran_s=trial.ran_s + max(0.0, now_s), at_s=now_s, boot_id=boot_id, boots=trial.boots + 1)


def overdue(trial: Trial) -> str:
    """Why the trial has failed; empty as long as it goes on."""
    if trial.going_back:
        return "the return to the version before it was interrupted"
    if trial.boots > MAX_BOOTS:
        return f"it was not committed within {MAX_BOOTS} boots"
    if trial.ran_s >= DEADLINE_S:
        return f"it was not committed within {DEADLINE_S // 60} minutes in which the machine ran"
    return ""
