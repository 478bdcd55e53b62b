"""Options of commands that say how a rollout goes on, and when it stops."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from server.cli.base.windows import NoticeType, window_of

STATES = ("wait", "ordered", "under_way", "installed")
"""The members of the policy that say how long a device may be in a state."""
C = TypeVar("C", bound=Callable[..., Any])


class _Limit(click.ParamType[tuple[int | None, int | None]]):
    """A share or a number of devices: `10%` or `25`."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None, int | None]:
        """Percent and number, of which one is None."""
        number = str(value).removesuffix("%")
        if not number.isdecimal() or not 0 < int(number) <= (100 if str(value).endswith("%") else 10**9):
            self.fail(f"{value!r} is not a limit; write 10% or 25", param, ctx)
        return (int(number), None) if str(value).endswith("%") else (None, int(number))


def _lasts(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, equals, duration = text.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in STATES:
            raise click.BadParameter(f"{text!r}: write STATE=DURATION; the states are {', '.join(STATES).replace('_', '-')}")
        found[name] = NoticeType().convert(duration, None, None)
    return found


def policy_options(command: C) -> C:
    """Gives a command the options of a policy; `policy_given` reads them."""
    for option in (
        click.option("--groups", metavar="LIST", help="The groups in their order, such as '5%,20%,rest' or '10,100,rest'."),
        click.option("--group", "each", multiple=True, metavar="GROUP", help="One group: 5%, 10, a selection, or rest."),
        click.option("--success", type=click.IntRange(1, 100), metavar="PERCENT", help="Proved, before the next group starts."),
        click.option("--failures", type=_Limit(), metavar="LIMIT", help="Failures that stop it: 10% of a group, or 25."),
        click.option("--window", callback=window_of, metavar="TEXT", help="When it may begin: 'daily 22:00-05:00 device'."),
        click.option("--notice", type=NoticeType(), metavar="DURATION", help="How long it is announced before; 0 for none."),
        click.option("--prestage/--no-prestage", default=None, help="Let the first group fetch it during the notice."),
        click.option("--freeze", multiple=True, metavar="DAYS", help="Days without a begin: 2026-12-20..2027-01-02."),
        click.option("--freeze-zone", "zone", metavar="ZONE", help="Where these days begin and end."),
        click.option("--lasts", multiple=True, callback=_lasts, metavar="STATE=DURATION", help="How long a state may last."),
        click.option("--candidate", is_flag=True, default=None, help="The package may be a candidate."),
    ):
        command = option(command)
    return command


def policy_given(given: dict[str, Any]) -> dict[str, Any]:
    """The policy of what `policy_options` were given; what was not given is missing."""
    if given["groups"] is not None and given["each"]:
        raise click.UsageError("--groups and --group both say which groups there are: give one of them.")
    groups = list(given["each"]) or ([] if given["groups"] is None else [each.strip() for each in given["groups"].split(",")])
    percent, count = given["failures"] or (None, None)
    found = {
        "groups": groups or None, "success_percent": given["success"], "failure_percent": percent, "failure_count": count,
        "window": given["window"], "notice": given["notice"], "prestage": given["prestage"],
        "freeze": list(given["freeze"]) or None, "zone": given["zone"], "candidate": given["candidate"], **given["lasts"],
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}
