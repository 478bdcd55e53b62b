"""Lists every act. The operator API, the command line and the console have no others.

A new act goes into the file of its subject, and is in this list by that; its name, path and scope never change afterwards.
"""

from .act import Act
from .agents import agents, enrollment, secrets, updates
from .fleet import automatic, certificates, configuration, ddi, devices, fleets, monitoring, rollouts
from .licenses import customers, licenses, licensetables, products, seats, usage
from .operators import accounts, events, keys, reports, safeguards, webhooks

ACTS: tuple[Act, ...] = (
    *reports.ACTS, *agents.ACTS, *secrets.ACTS, *products.ACTS, *customers.ACTS, *licenses.ACTS, *licensetables.ACTS,
    *enrollment.ACTS, *keys.ACTS, *accounts.ACTS, *safeguards.ACTS, *events.ACTS, *webhooks.ACTS, *usage.ACTS,
    *seats.ACTS, *updates.ACTS, *devices.ACTS, *fleets.ACTS, *rollouts.ACTS, *automatic.ACTS, *ddi.ACTS, *configuration.ACTS,
    *certificates.ACTS, *monitoring.ACTS,
)  # fmt: skip
BY_NAME: dict[str, Act] = {act.name: act for act in ACTS}
