"""Lists the checks. An id never changes its meaning and is never used again for another check."""

from typing import Any

from .agent import agent_checks, backup_checks, file_checks, manage_checks, product_checks, update_checks
from .host import host_access, host_network, host_wifi
from .system import machine_checks, unit_checks
from .verdict import Check

CHECKS: tuple[Check[Any], ...] = (
    *agent_checks.CHECKS,
    *unit_checks.CHECKS,
    *file_checks.CHECKS,
    *backup_checks.CHECKS,
    *machine_checks.CHECKS,
    *manage_checks.CHECKS,
    *update_checks.CHECKS,
    *product_checks.CHECKS,
)
"""Those of `doctor`, in the order in which they are made."""
HOST_CHECKS: tuple[Check[Any], ...] = (*host_network.CHECKS, *host_access.CHECKS, *host_wifi.CHECKS)
"""Those that `doctor --host` makes besides: the network rules of the host."""
