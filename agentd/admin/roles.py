"""Says for each operation of the admin socket which role it needs, and whether root may ask for it without a certificate.

The table is complete: a test walks all operations. Without a certificate root may look at the machine and recover it, since
the certificate may be what was lost; nothing else.
"""

from dataclasses import dataclass
from enum import IntEnum

from ipc import messages


class Role(IntEnum):
    """What an administrator's certificate allows; each role may do what the ones before it may."""

    VIEWER = 1
    """Looks, and changes nothing."""
    OPERATOR = 2
    """Runs the machine from day to day: rotates, contacts the server, imports licenses."""
    ADMIN = 3
    """Does what cannot be undone, and what weakens or moves a protection."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may ask for an operation.

    Attributes:
        role: the least role.
        root: whether root may ask without a certificate.
        anyone: whether everyone who may use the socket may ask without a certificate: what monitoring needs, and what leads to
            a signature.
    """

    role: Role
    root: bool = False
    anyone: bool = False


RULES: dict[type[messages.Request], Rule] = {
    messages.Ping: Rule(Role.VIEWER, root=True, anyone=True),
    messages.Health: Rule(Role.VIEWER, root=True, anyone=True),
    messages.SystemInfo: Rule(Role.VIEWER, root=True, anyone=True),
    messages.CertificateCheck: Rule(Role.VIEWER, root=True, anyone=True),
    messages.Challenge: Rule(Role.VIEWER, root=True, anyone=True),
    messages.Signed: Rule(Role.VIEWER, root=True, anyone=True),  # what it carries has a row of its own
    messages.SessionBegin: Rule(Role.VIEWER),
    messages.AdminAccess: Rule(Role.VIEWER, root=True),
    messages.AdminRevoke: Rule(Role.ADMIN, root=True),
    messages.AdminAccessEnd: Rule(Role.ADMIN, root=True),  # and nobody but root: the handler sees to that
    messages.BreakGlassBegin: Rule(Role.ADMIN),  # and nobody without a break-glass certificate
    messages.BreakGlassEnd: Rule(Role.ADMIN, root=True),
    messages.Status: Rule(Role.VIEWER, root=True),
    messages.SecretList: Rule(Role.VIEWER),
    messages.MetricsText: Rule(Role.VIEWER),
    messages.LicenseCheck: Rule(Role.VIEWER, root=True),
    messages.ConfigShow: Rule(Role.VIEWER, root=True),
    messages.LicenseExplain: Rule(Role.VIEWER, root=True),
    messages.AuditTail: Rule(Role.VIEWER),
    messages.AuditExport: Rule(Role.VIEWER),
    messages.AuditVerify: Rule(Role.VIEWER, root=True),
    messages.PublicKeys: Rule(Role.VIEWER),
    messages.PolicyShow: Rule(Role.VIEWER),
    messages.Reload: Rule(Role.OPERATOR, root=True),  # `systemctl reload` runs it, and root owns the file
    messages.Rotate: Rule(Role.OPERATOR),
    messages.Contact: Rule(Role.OPERATOR),
    messages.CertificateRenew: Rule(Role.OPERATOR),
    messages.LicenseImport: Rule(Role.OPERATOR),
    messages.SecretInstall: Rule(Role.OPERATOR),
    messages.DegradedSwitch: Rule(Role.OPERATOR),
    messages.SecretInvalidate: Rule(Role.ADMIN),
    messages.PolicyInstall: Rule(Role.ADMIN),
    messages.PolicyBind: Rule(Role.ADMIN),
    messages.PolicyRevoke: Rule(Role.ADMIN),
    messages.ClockChallenge: Rule(Role.OPERATOR, root=True),
    messages.ClockReset: Rule(Role.ADMIN, root=True),
    messages.ClockConfirm: Rule(Role.ADMIN, root=True),
    messages.WebhookStatus: Rule(Role.VIEWER, root=True),
    messages.WebhookTest: Rule(Role.OPERATOR),
    messages.WebhookRetry: Rule(Role.OPERATOR),
    messages.WebhookKeyNew: Rule(Role.ADMIN),  # its reply holds the key
    messages.WebhookKeyEnd: Rule(Role.ADMIN),
    messages.OtaStatus: Rule(Role.VIEWER, root=True),
    messages.OtaHistory: Rule(Role.VIEWER, root=True),
    messages.OtaCheck: Rule(Role.OPERATOR),
    messages.OtaInstall: Rule(Role.OPERATOR),
    messages.OtaHandOver: Rule(Role.VIEWER, root=True, anyone=True),  # what it is for has a row of its own
    messages.OtaPackage: Rule(Role.OPERATOR),
    messages.OtaPause: Rule(Role.OPERATOR),
    messages.OtaRollback: Rule(Role.OPERATOR, root=True),  # the new version may be why a certificate cannot be used
    messages.OtaUnlock: Rule(Role.ADMIN),
    messages.Provision: Rule(Role.ADMIN, root=True),
}
"""The rule of each operation."""
