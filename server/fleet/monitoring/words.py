"""Says in words what an alert is about. Pure."""

from .judgement import Found
from .rules import Kind

_WHAT = {
    Kind.ERROR_RATE: "{value} of the contacts failed",
    Kind.LATENCY: "the 95th percentile of the latency is {value}",
    Kind.LATE: "{value} of the devices have left out a contact",
    Kind.ODD_ERROR_RATE: "{value} of the contacts failed",
    Kind.ODD_LATENCY: "the 95th percentile of the latency is {value}",
    Kind.ODD_LATE: "{value} of the devices have left out a contact",
    Kind.FEW_CONTACTS: "{value} contacts came",
    Kind.MANY_CONTACTS: "{value} contacts came",
}
_LATENCIES = frozenset({Kind.LATENCY, Kind.ODD_LATENCY})
_COUNTS = frozenset({Kind.FEW_CONTACTS, Kind.MANY_CONTACTS})


def quantity_of(kind: Kind, value: float) -> str:
    """A value of a kind of alert, with its unit."""
    if kind in _LATENCIES:
        return f"{value:.3g} s"
    return f"{value:.0f}" if kind in _COUNTS else f"{100 * value:.3g} %"


def detail_of(found: Found) -> str:
    """One sentence: what was measured, and what it was compared with."""
    text = _WHAT[found.kind].format(value=quantity_of(found.kind, found.value))
    bound = quantity_of(found.kind, max(found.bound, 0.0))
    if found.usual is None:
        return f"{text}; the threshold is {bound}"
    return f"{text}; usual at this time of the week is {quantity_of(found.kind, found.usual)}, and unusual begins at {bound}"
