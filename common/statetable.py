"""Steps through a state machine that is written as a table. Nothing here performs IO."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Generic, TypeVar

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


class UnknownTransition(Exception):
    """The table has no such event in this state. The state is as it was."""


class Table(Generic[State, Event]):
    """A state machine. Iterating over it gives each transition as (state, event, next state), in the table's order.

    Args:
        what: what has the states, with its article, for errors: "a rotation".
        transitions: for each state, the events that it knows and the state that each leads to. A final state has an empty row.

    Raises:
        ValueError: a transition leads to a state that has no row.
    """

    __slots__ = ("_transitions", "_what")

    def __init__(self, what: str, transitions: Mapping[State, Mapping[Event, State]]) -> None:
        for state, event, after in _rows(transitions):
            if after not in transitions:
                raise ValueError(f"the transition {state} -> {event} -> {after} leads to a state that has no row")
        self._what = what
        self._transitions = transitions

    @property
    def states(self) -> tuple[State, ...]:
        """Every state, in the table's order."""
        return tuple(self._transitions)

    @property
    def events(self) -> tuple[Event, ...]:
        """Every event that some state knows, in the order in which the table first names it."""
        return tuple(dict.fromkeys(event for _, event, _ in self))

    def step(self, state: State, event: Event) -> State:
        """Returns the state after an event.

        Raises:
            UnknownTransition: the table has no such event in this state.
        """
        try:
            return self._transitions[state][event]
        except KeyError:
            raise UnknownTransition(f"'{event.value}' cannot happen to {self._what} that is {state.value}") from None

    def __iter__(self) -> Iterator[tuple[State, Event, State]]:
        return _rows(self._transitions)


def _rows(transitions: Mapping[State, Mapping[Event, State]]) -> Iterator[tuple[State, Event, State]]:
    return ((state, event, after) for state, row in transitions.items() for event, after in row.items())
