"""Lists every act. The operator API, the command line and the console have no others.

A new act goes into the file of its subject, and is in this list by that; its name, path and scope never change afterwards.
"""

from . import (
    accounts,
    agents,
    customers,
    enrollment,
    events,
    keys,
    licenses,
    licensetables,
    products,
    reports,
    safeguards,
    seats,
    secrets,
    updates,
    usage,
    webhooks,
)
from .act import Act

ACTS: tuple[Act, ...] = (
    *reports.ACTS, *agents.ACTS, *secrets.ACTS, *products.ACTS, *customers.ACTS, *licenses.ACTS, *licensetables.ACTS,
    *enrollment.ACTS, *keys.ACTS, *accounts.ACTS, *safeguards.ACTS, *events.ACTS, *webhooks.ACTS, *usage.ACTS,
    *seats.ACTS, *updates.ACTS,
)  # fmt: skip
BY_NAME: dict[str, Act] = {act.name: act for act in ACTS}
