"""Options that say which licenses a command is about."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from server.licensing.states.license_states import State

_OPTIONS = (
    ("--agent", "agent_id", "ID", "Only licenses of this agent."),
    ("--customer", "customer", "ID", "Only licenses of this customer."),
    ("--site", "site", "ID", "Only licenses of this site."),
    ("--product", "product", "ID", "Only licenses for this product."),
    ("--policy", "policy", "ID", "Only licenses that were issued by this policy."),
    ("--subject", "subject", "TEXT", "Only licenses for exactly this subject."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets what was given as `filters`, members of the acts' forms."""

    @wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        given = {name: named.pop(name) for _flag, name, _metavar, _text in _OPTIONS}
        return command(*arguments, filters=given, **named)

    found: Callable[..., Any] = run
    for flag, name, metavar, text in reversed(_OPTIONS):
        found = click.option(flag, name, metavar=metavar, help=text)(found)
    return found


def _which(_ctx: click.Context, _param: click.Parameter, status: str | None) -> dict[str, Any]:
    if status is None:
        return {}
    return {"revoked": False} if status == "issued" else {"state": status}


status_option = click.option(
    "--status",
    type=click.Choice(["revoked", "issued", *(state.value for state in State if state is not State.REVOKED)]),
    callback=_which,
    help="Only those in this state; 'issued': all but revoked ones.",
)
"""The command gets members of the acts' forms."""
