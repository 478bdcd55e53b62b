"""Collects everything that the registry knows of one agent, and says in sentences how it is. Never a secret."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.text import quantity
from server.agents.clones import Halt, halt_of
from server.agents.registry import REVOKED, AgentRow, enrolled, row_of
from server.licensing.secrets.secret_states import ISSUING
from server.licensing.secrets.secrets import SecretRow, version_of
from server.licensing.states.license_states import State
from server.registry.models.core import Certificate, Secret
from server.registry.models.updates import UpdateAgent

from .license_list import LicenseRow, listed

DAY_S = 86_400
SILENT_S = 7 * DAY_S
"""An agent contacts the server every hour or so; after that time without a contact somebody should look."""


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A client certificate. Times are seconds since 1970 UTC.

    Attributes:
        number: its serial number, hex.
        state: active, superseded or revoked.
        issued_at: when it was issued.
        not_after: when it ends.
        used_at: its first use; None before that.
    """

    number: str
    state: str
    issued_at: int
    not_after: int
    used_at: int | None


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent with all that belongs to it.

    Attributes:
        agent: its row.
        urgent: whether it has to rotate at its next contact.
        halt: None if its rotations are not halted.
        certificates: the newest first.
        secrets: its versions, the oldest first.
        licenses: by id.
        capabilities: what it has announced that it can do beyond release 0.1.0, by name.
        license_changes: the number of the newest change of its licenses; None before the first.
        update_hardware: the kind of machine that it says it is, by which updates are ordered; None if it has not said.
    """

    agent: AgentRow
    urgent: bool
    halt: Halt | None
    certificates: tuple[CertificateRow, ...]
    secrets: tuple[SecretRow, ...]
    licenses: tuple[LicenseRow, ...]
    capabilities: tuple[str, ...] = ()
    license_changes: int | None = None
    update_hardware: str | None = None

    def as_json(self, now: int) -> dict[str, Any]:
        """Everything, with the members of the agent first."""
        return {
            **self.agent.as_json(),
            "secrets": [asdict(row) for row in self.secrets],
            "urgent": self.urgent,
            "halted": None if self.halt is None else asdict(self.halt),
            "certificates": [asdict(row) for row in self.certificates],
            "licenses": [asdict(row) for row in self.licenses],
            "capabilities": list(self.capabilities),
            "license_changes": self.license_changes,
            "update_hardware": self.update_hardware,
            "notes": notes(self, now),
        }


def view(session: Session, agent_id: str, now: int) -> AgentView:
    """What is known of an agent.

    Args:
        session: of any transaction.
        agent_id: the agent.
        now: seconds since 1970 UTC.

    Raises:
        RegistryError: there is no such agent.
    """
    agent = enrolled(session, agent_id, lock=False)
    newest = select(Certificate).where(Certificate.agent_id == agent_id)
    certificates = session.scalars(newest.order_by(Certificate.issued_at.desc(), Certificate.fingerprint))
    secrets = session.scalars(select(Secret).where(Secret.agent_id == agent_id).order_by(Secret.version))
    return AgentView(
        row_of(agent),
        agent.urgent,
        halt_of(agent),
        tuple(CertificateRow(row.number, row.state, row.issued_at, row.not_after, row.used_at) for row in certificates),
        tuple(version_of(row) for row in secrets),
        tuple(listed(session, now, agent_id)),
        tuple((agent.capabilities or "").split()),
        agent.license_changes,
        session.scalar(select(UpdateAgent.hardware).where(UpdateAgent.agent_id == agent_id)),
    )


def notes(found: AgentView, now: int) -> list[str]:
    """What an administrator should know, in sentences; the most important first. Empty if all is well."""
    agent, said = found.agent, []
    if agent.retired_at is not None:
        said.append(
            "it is retired: the server refuses its requests, and its licenses ended with it; 'license-server agents reinstate "
            f"{agent.agent_id}' takes it back into service"
        )
        return said
    if agent.status == REVOKED:
        said.append("it is revoked: the server refuses its requests, and its licenses end with the grace of its newest secret")
        return said
    if found.halt is not None:
        left = max(found.halt.until - now, 0) // DAY_S
        said.append(
            f"two machines have its identity ({found.halt.evidence}): its rotations are halted, and its licenses end in "
            f"{quantity(left, 'day')}; see 'license-server clones'"
        )
    by_hand = agent.serial is None
    if not by_hand and not any(row.state == "active" and row.not_after > now for row in found.certificates):
        said.append(
            "it has no client certificate that is valid: it can renew one for 400 days after its end; after that, or if it was "
            "revoked, provision the device again"
        )
    if not any(row.state in ISSUING for row in found.secrets):
        said.append("it has no confirmed secret, so it gets no license: it gets a secret at its next contact")
    elif found.urgent:
        said.append("it has to rotate its secret at its next contact")
    if not by_hand and agent.last_seen is None:
        said.append("it has had no contact with the server since it was provisioned")
    elif agent.last_seen is not None and now - agent.last_seen > SILENT_S:
        said.append(f"it has had no contact with the server for {quantity((now - agent.last_seen) // DAY_S, 'day')}")
    if found.licenses and not any(row.state == State.ACTIVE for row in found.licenses):
        said.append("all of its licenses have expired, or are suspended or revoked")
    return said
