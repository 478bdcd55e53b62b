"""Lists every alert of the agent: its event, how severe it is, what it means and what to do.

`AuditLog.raise_alert` and `AuditLog.clear_alert` take an entry of this list, and nothing else raises an alert. The list is
append-only: an event's name stays in logs that are kept for months.
"""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How soon somebody must act."""

    CRITICAL = "critical"
    """Licenses are refused, or somebody may be attacking the machine."""
    HIGH = "high"
    """Licenses will be refused in days if nobody acts."""
    MEDIUM = "medium"
    """A protection is weaker than it should be."""
    LOW = "low"
    """Worth a look."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One kind of alert.

    Attributes:
        event: its name in the audit log.
        severity: how soon somebody must act.
        title: a few words, for a list.
        action: what an administrator does about it.
        lasts: it is raised once and cleared when it is over; any other is raised each time that it happens, and never cleared.
    """

    event: str
    severity: Severity
    title: str
    action: str
    lasts: bool = True


ADMIN_CA_ENDS = Alert(
    "alert.admin_ca_ends", Severity.HIGH, "The admin CA ends within 30 days",
    "Make another CA ('license-agent admin-ca new'), and run 'license-agent-cli admin-ca install' with a file that holds both.",
)  # fmt: skip
ADMIN_CA_UNUSABLE = Alert(
    "alert.admin_ca_unusable", Severity.HIGH, "Administrators need certificates, and the admin CA cannot be used",
    "As root, run 'license-agent-cli admin-ca install FILE'; until then root may look at the agent and recover it.",
)  # fmt: skip
ADMIN_REFUSED = Alert(
    "access.certificate_refused", Severity.MEDIUM, "A certificate or signature on the admin socket was refused",
    "Find out who asked ('license-agent-cli audit tail'); revoke a certificate that is in the wrong hands.", lasts=False,
)  # fmt: skip
AUDIT_ARCHIVE = Alert(
    "alert.audit_archive", Severity.MEDIUM, "The audit log's archives cannot be kept",
    "Make room on the log's disk, and check [audit] archive_key and archive_bytes.",
)  # fmt: skip
AUDIT_BUDGET = Alert(
    "alert.audit_budget", Severity.LOW, "The audit log's budget for today is used up",
    "Look for a till that asks too often; raise [audit] daily_bytes if the load is real.", lasts=False,
)  # fmt: skip
AUDIT_DAMAGED = Alert(
    "alert.audit_damaged", Severity.CRITICAL, "The audit log does not verify",
    "Keep the log as evidence and run 'license-agent-cli audit verify'.", lasts=False,
)  # fmt: skip
AUDIT_FILE = Alert(
    "alert.audit_file", Severity.CRITICAL, "Another program changed the open audit file",
    "Find out who writes to the log's directory; the agent goes on in a new file.", lasts=False,
)  # fmt: skip
AUDIT_SEAL = Alert(
    "alert.audit_seal", Severity.CRITICAL, "The audit log does not match its sealed value",
    "Compare the log with the server's copy of its head; records may be missing.", lasts=False,
)  # fmt: skip
BACKUP_OVERDUE = Alert(
    "alert.backup_overdue", Severity.MEDIUM, "The last good backup is too old",
    "Run 'license-agent-cli backup run' as root, which prints the reason if it fails; then 'systemctl status "
    "license-agent-backup.timer'.",
)  # fmt: skip
BREAK_GLASS = Alert(
    "access.break_glass", Severity.CRITICAL, "A break-glass certificate is in use",
    "Find out who uses it and why ('license-agent-cli audit tail'); 'license-agent-cli break-glass end' ends it.",
)  # fmt: skip
CLOCK_SUSPECT = Alert(
    "alert.clock_suspect", Severity.MEDIUM, "The machine's clock is wrong",
    "Set the clock, or replace the battery of the mainboard.",
)  # fmt: skip
DEGRADED_LONG = Alert(
    "alert.degraded_long", Severity.HIGH, "Degraded mode has lasted more than 24 hours",
    "Restore the connection to the license server before grace ends.",
)  # fmt: skip
FLEET_CONFIGURATION = Alert(
    "alert.fleet_configuration", Severity.MEDIUM, "What the machine's fleet sets cannot be used from the disk",
    "Find out who changed fleet-configuration.json in the state directory; 'license-agent-cli contact' gets it anew. The "
    "machine's own file counts until then.",
)  # fmt: skip
OTA_HINDERED = Alert(
    "alert.ota_hindered", Severity.MEDIUM, "An update cannot go on, and nothing is wrong with its package",
    "Run 'license-agent-cli ota status': it says what hinders the update and what to do. The update goes on by itself then.",
)  # fmt: skip
OTA_LOCKED = Alert(
    "alert.ota_locked", Severity.HIGH, "Updates are locked: more than two attempts have failed",
    "Read the reasons in 'license-agent-cli ota history', remove them, and run 'license-agent-cli ota unlock'.",
)  # fmt: skip
OTA_METADATA_ENDS = Alert(
    "alert.ota_metadata_ends", Severity.LOW, "Signed metadata of the update repository ends within 30 days",
    "Ask the operator of the update repository whether it was signed again ('license-server ota expiry' there): after its end "
    "no update is installed. The agent looks once a day, and with 'license-agent-cli ota check', which ends the alert.",
)  # fmt: skip
OTA_REHEARSAL = Alert(
    "alert.ota_rehearsal", Severity.LOW, "This test bench has not rehearsed an update for more than a quarter",
    "Assign it an update and run 'license-agent-cli ota rehearse'.",
)  # fmt: skip
OTA_ROLLED_BACK = Alert(
    "alert.ota_rolled_back", Severity.HIGH, "An update was taken back: the version before it runs again",
    "Read the reason in 'license-agent-cli ota history' before the update goes to other machines.", lasts=False,
)  # fmt: skip
UNAUTHORIZED = Alert(
    "access.denied", Severity.MEDIUM, "A user who is not on the allow-list tried a socket",
    "Find out which program of that user asked; add the user to [pos] allowed_uids if it should.", lasts=False,
)  # fmt: skip
REVOCATIONS_STALE = Alert(
    "alert.revocations_stale", Severity.MEDIUM, "The revocation list is out of date",
    "Restore the connection to the license server.",
)  # fmt: skip
ROTATION_FAILING = Alert(
    "alert.rotation_failing", Severity.HIGH, "Rotations keep failing",
    "Read the reason in 'license-agent-cli status' and restore the connection to the license server.",
)  # fmt: skip
SECRET_EXPIRED = Alert(
    "alert.secret_expired", Severity.CRITICAL, "Grace has ended and licenses are refused",
    "Restore the connection to the license server, or install a secret by hand.",
)  # fmt: skip
SERVER_REFUSES = Alert(
    "alert.server_refuses", Severity.HIGH, "The license server refuses this agent",
    "Ask the operator of the license server; the agent may be revoked.",
)  # fmt: skip
SERVER_TIME = Alert(
    "alert.server_time", Severity.MEDIUM, "The license server's time contradicts this machine's",
    "Compare both clocks, and set the wrong one; licenses are judged by this machine's clock meanwhile. If the server is "
    "right, run 'license-agent-cli clock confirm', or 'clock reset' where the server's time is earlier.",
)  # fmt: skip
TPM_UNAVAILABLE = Alert(
    "alert.tpm_unavailable", Severity.HIGH, "The TPM cannot be used",
    "Run 'license-agent recover show'; licenses are validated from memory meanwhile.",
)  # fmt: skip
TPM_UNRELIABLE = Alert(
    "alert.tpm_unreliable", Severity.HIGH, "The TPM's answers do not fit",
    "Check the TPM's seat and bus and who may open it; licenses are validated from memory and changes are tried again.",
)  # fmt: skip
WEBHOOK_FAILING = Alert(
    "alert.webhook_failing", Severity.MEDIUM, "Alerts do not reach the webhook",
    "Run 'license-agent-cli webhook test': it sends one now and prints the reason if it fails.",
)  # fmt: skip

ALERTS = (
    ADMIN_CA_ENDS, ADMIN_CA_UNUSABLE, ADMIN_REFUSED, AUDIT_ARCHIVE, AUDIT_BUDGET, AUDIT_DAMAGED, AUDIT_FILE, AUDIT_SEAL,
    BACKUP_OVERDUE, BREAK_GLASS, CLOCK_SUSPECT, DEGRADED_LONG, FLEET_CONFIGURATION, OTA_HINDERED, OTA_LOCKED,
    OTA_METADATA_ENDS, OTA_REHEARSAL, OTA_ROLLED_BACK, REVOCATIONS_STALE, ROTATION_FAILING, SECRET_EXPIRED, SERVER_REFUSES,
    SERVER_TIME, TPM_UNAVAILABLE, TPM_UNRELIABLE, UNAUTHORIZED, WEBHOOK_FAILING,
)  # fmt: skip
"""All of them."""
