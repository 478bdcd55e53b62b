"""Names the parts of a provisioned agent that views, alerts and handlers read."""

from dataclasses import dataclass

from agentd.audit.core import Core
from agentd.base.configstatus import ConfigStatus
from agentd.licenses.usage import Usage
from agentd.licenses.validator import Validator
from agentd.ota.runner import UpdateRunner
from agentd.secrets.store import Store
from agentd.sockets.connection import Hub
from agentd.sync.cycle import ContactCycle
from agentd.sync.fleetsettings import FleetSettings
from agentd.sync.mode import ModeKeeper

from .backups import BackupWatch


@dataclass(frozen=True, slots=True)
class AgentParts:
    """A provisioned agent.

    Attributes:
        core: identity, clock, audit log, hardware, counters.
        store: the sealed store with the ring of secret versions.
        validator: rules on tokens.
        cycle: contacts the server; None for an agent whose secrets are carried by hand.
        mode: whether the agent works without its server.
        hub: the open connections.
        config: in force, and what is known of the file.
        usage: the counters of usage; None if their file cannot be used.
        updates: installs updates; None where they are not enabled.
        backups: knows of the backups that a timer makes; None in tests without any.
        fleet: what the machine's fleet sets; None in tests without any.
    """

    core: Core
    store: Store
    validator: Validator
    cycle: ContactCycle | None
    mode: ModeKeeper
    hub: Hub
    config: ConfigStatus
    usage: Usage | None = None
    updates: UpdateRunner | None = None
    backups: BackupWatch | None = None
    fleet: FleetSettings | None = None
