"""Lists how virtual machines fail, and decides which of them fails how. Pure: the same seed gives the same fleet."""

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum


class Profile(StrEnum):
    """How a machine behaves."""

    SOUND = "sound"
    """It installs what it is ordered to, and proves it at its next contact."""
    OUTAGE = "outage"
    """It is without a network for an hour, at a time of its own."""
    SLOW = "slow"
    """It needs several contacts for an update, and reports its progress at each."""
    LIES = "lies"
    """It says that it has installed the update, and goes on running what it ran."""
    CLONED = "cloned"
    """There is another machine with its keys, which knows nothing of what the first one did."""
    CLOCK = "clock"
    """Its clock is years off."""
    ROLLS_BACK = "rolls-back"
    """The update fails its health check and is taken back."""


def share(seed: int, number: int, purpose: str) -> float:
    """A number in [0, 1) that seed, machine and purpose determine."""
    digest = hashlib.sha256(f"{seed}/{number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def read(texts: Sequence[str]) -> dict[Profile, float]:
    """The shares of profiles that are written as `NAME=SHARE`, in percent: `slow=5`, `cloned=0.1`.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    found: dict[Profile, float] = {}
    names = ", ".join(each.value for each in Profile if each is not Profile.SOUND)
    for text in texts:
        name, _, percent = text.partition("=")
        try:
            profile, amount = Profile(name.strip()), float(percent.strip().removesuffix("%"))
        except ValueError:
            raise ValueError(
                f"{text!r} is not NAME=SHARE; the names are {names}, and the share is in percent: slow=5"
            ) from None
        if profile is Profile.SOUND or profile in found:
            why = "is what remains" if profile is Profile.SOUND else "is there twice"
            raise ValueError(f"the profile {profile.value!r} {why}; give each of {names} once")
        if not 0 <= amount <= 100:
            raise ValueError(f"the share of {profile.value!r} must be from 0 to 100 percent, not {percent}")
        found[profile] = amount / 100
    if sum(found.values()) > 1:
        raise ValueError("the shares of the profiles are more than 100 percent together")
    return found


def of_machine(seed: int, number: int, shares: Mapping[Profile, float]) -> Profile:
    """The profile of a machine.

    Args:
        seed: of the fleet.
        number: the machine's.
        shares: of each profile, from 0 to 1; the rest is sound.
    """
    drawn, end = share(seed, number, "profile"), 0.0
    for profile in Profile:
        end += shares.get(profile, 0.0)
        if drawn < end:
            return profile
    return Profile.SOUND
