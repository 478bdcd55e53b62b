"""Options that say which licenses a command is about."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import click

from server.licensing.license_list import Filter
from server.licensing.license_states import State

_OPTIONS = (
    ("--agent", "agent_id", "ID", "Only licenses of this agent."),
    ("--customer", "customer", "ID", "Only licenses of this customer."),
    ("--site", "site", "ID", "Only licenses of this site."),
    ("--product", "product", "ID", "Only licenses for this product."),
    ("--policy", "policy", "ID", "Only licenses that were issued by this policy."),
    ("--subject", "subject", "TEXT", "Only licenses for exactly this subject."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets them as `filters`."""

    @wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        given = {name: named.pop(name) for _flag, name, _metavar, _text in _OPTIONS}
        return command(*arguments, filters=Filter(**given), **named)

    found: Callable[..., Any] = run
    for flag, name, metavar, text in reversed(_OPTIONS):
        found = click.option(flag, name, metavar=metavar, help=text)(found)
    return found


def which(filters: Filter, status: str | None) -> Filter:
    """The filter together with the state that was named: one of the table's, or `issued` for all but revoked ones."""
    if status is None:
        return filters
    return replace(filters, revoked=False) if status == "issued" else replace(filters, state=State(status))
