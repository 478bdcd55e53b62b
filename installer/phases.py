"""Transitions of one product's update on root's side. Nothing here performs IO; orders.py does."""

from enum import StrEnum

from common.statetable import Table


class Phase(StrEnum):
    """How far an update of a product is."""

    IDLE = "idle"
    STAGED = "staged"
    SWITCHED = "switched"
    PROVING = "proving"


class Event(StrEnum):
    """What happened."""

    PREPARED = "prepared"
    SWITCHING = "switching"
    PROVE = "prove"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"


PHASES = Table[Phase, Event](
    "an update",
    {
        Phase.IDLE: {Event.PREPARED: Phase.STAGED},
        Phase.STAGED: {Event.PREPARED: Phase.STAGED, Event.SWITCHING: Phase.SWITCHED, Event.ROLLED_BACK: Phase.IDLE},
        Phase.SWITCHED: {Event.SWITCHING: Phase.SWITCHED, Event.PROVE: Phase.PROVING, Event.ROLLED_BACK: Phase.IDLE},
        Phase.PROVING: {
            Event.SWITCHING: Phase.PROVING,
            Event.PROVE: Phase.PROVING,
            Event.COMMITTED: Phase.IDLE,
            Event.ROLLED_BACK: Phase.IDLE,
        },
    },
)
"""Each order may come again: the core repeats it after a crash of either side."""
