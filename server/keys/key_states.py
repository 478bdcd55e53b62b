"""Lists the states of a server key and what leads from one to the next. Pure."""

from enum import StrEnum

from common.statetable import Table


class KeyState(StrEnum):
    """State of a key in the registry.

    A `next` key is in the key set already, so agents know it before it signs anything. An `active` key is in use. A `retired`
    one is still accepted, and can come back. An `ended` one is out of the key set, and its private half is destroyed.
    """

    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"
    ENDED = "ended"


class KeyEvent(StrEnum):
    """What happens to a key."""

    USE = "use"
    REPLACE = "replace"
    END = "end"


KEY_STATES: Table[KeyState, KeyEvent] = Table(
    "a key",
    {
        KeyState.NEXT: {KeyEvent.USE: KeyState.ACTIVE, KeyEvent.END: KeyState.ENDED},
        KeyState.ACTIVE: {KeyEvent.REPLACE: KeyState.RETIRED},
        KeyState.RETIRED: {KeyEvent.USE: KeyState.ACTIVE, KeyEvent.END: KeyState.ENDED},
        KeyState.ENDED: {},
    },
)
