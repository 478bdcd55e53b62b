"""Reports the usage that was counted here to the license server.

Only where the server has announced `report-usage`. It is the last step of a contact, and none fails for it: what could not be
reported is in the next report.
"""

import logging

from agentd.audit.core import Core
from agentd.licenses.usage import Usage
from agentd.uplink.client import ExchangeClient
from agentd.uplink.transport import NoContact
from contracts.contact.usage import MAX_COUNTERS_PER_REPORT, MeterTotal, ReportUsage, UsageReply
from contracts.exchange import Refused

log = logging.getLogger(__name__)

ACTOR = {"process": "contact"}


class UsageReports:
    """Reports usage.

    Args:
        usage: the counters; None if their file cannot be used.
        client: asks.
    """

    def __init__(self, core: Core, usage: Usage | None, client: ExchangeClient) -> None:
        self._audit = core.audit
        self._usage = usage
        self._client = client

    async def report(self) -> None:
        """Reports what the server does not know.

        Raises:
            HwsecError, AuditUnavailable: the report cannot be signed.
        """
        usage = self._usage
        if usage is None or not usage.waiting:
            return
        try:
            await usage.sync()
            # Read in the same turn of the loop: all of it is on the disk, and nothing that is not.
            counters = usage.unreported()[:MAX_COUNTERS_PER_REPORT]
            if not counters:
                return
            totals = tuple(
                MeterTotal(license=each.license_id, meter=each.meter, epoch=each.epoch.hex(), total=each.total)
                for each in counters
            )
            reply = await self._client.ask(UsageReply, ReportUsage, totals=totals)
        except (NoContact, Refused, OSError) as error:
            log.warning("usage could not be reported: %s", error)
            return
        behind = {bytes.fromhex(epoch) for epoch in reply.behind}
        # What the server refuses is asked about again only when more is counted.
        usage.report_taken([each for each in counters if each.epoch not in behind])
        for each in counters:
            if each.epoch in behind:
                usage.begin_again(each.epoch)
                self._record("behind", each.license_id, each.meter, each.total)
            elif each.epoch.hex() in reply.refused:
                self._record("refused", each.license_id, each.meter, each.total)

    def _record(self, outcome: str, license_id: str, meter: str, total: int) -> None:
        log.warning("the license server does not take the total of meter %s of license %s: %s", meter, license_id, outcome)
        self._audit.record("usage.reported", outcome, actor=ACTOR, license=license_id, meter=meter, total=total)
