"""Declares the request by which an agent reports the usage that it has counted, and the reply. Pure.

Used only between an agent and a server that have both announced `report-usage`. A report has no differences, only totals since
a counter began: the server keeps the greatest total of each epoch. So a report that comes twice, late or never makes no total
wrong, and the next one makes good what was lost.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.exchange import LicenseId, Number, Reply, Request

REPORT = "report-usage"
"""The capability, and the purpose."""

MAX_COUNTERS_PER_REPORT = 64
MAX_METER_CHARS = 48

# Not `$`, which in Python's expressions also matches before a line feed at the end.
Meter = Annotated[str, Meta(pattern=rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_METER_CHARS - 1}}}\Z")]
Epoch = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Epochs = Annotated[tuple[Epoch, ...], Meta(max_length=MAX_COUNTERS_PER_REPORT)]


class MeterTotal(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a counter has counted.

    Attributes:
        license: that it counts for.
        meter: what it counts.
        epoch: random; another one where the counter has begun again.
        total: since it began; never less than before in the same epoch.
    """

    license: LicenseId
    meter: Meter
    epoch: Epoch
    total: Number


class ReportUsage(Request, frozen=True):
    """Reports totals.

    Attributes:
        totals: of counters that have counted since they were reported.
    """

    totals: Annotated[tuple[MeterTotal, ...], Meta(min_length=1, max_length=MAX_COUNTERS_PER_REPORT)]


class UsageReply(Reply, frozen=True):
    """The server has noted the totals, but for those that it names by their epochs.

    Attributes:
        behind: the server has a greater total of that epoch: an older disk has come back, or two machines count. The counter
            has to begin again.
        refused: the license was never this agent's, or the server has no room for another epoch of this agent.
    """

    behind: Epochs
    refused: Epochs
