"""Declares what each command of `license-agent-cli` prints with --json; `scripts/schemas` makes the published schemas of it.

No command uses these structs: they say what programs may rely on, and a test compares each output with them. A release
adds members; it renames, removes and retypes none. A member that may be missing has the default UNSET. Times are seconds since
1970 UTC. Texts are for people, and change; so do the words of a list that a description gives: a release may add to it.
"""

from dataclasses import dataclass

from msgspec import Struct

from . import access, licenses, records, state, updates, upkeep


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a command.

    Attributes:
        schema: name of its schema, which never changes.
        form: a struct.
        lines: whether the command prints one JSON document a line.
    """

    schema: str
    form: type[Struct]
    lines: bool = False


_RECORD = Output("audit-record", records.Record, lines=True)
_ACCESS = Output("admin-access", access.AdminAccess)
_SECRET = Output("secret-change", licenses.SecretChange)
_CLOCK = Output("clock-corrected", upkeep.ClockCorrected)
_UPDATES = Output("updates", updates.UpdateStatus)
_BEGUN = Output("update-begun", updates.UpdateBegun)
_DEGRADED = Output("degraded", state.DegradedMode)

OUTPUTS: dict[str, Output] = {
    "status": Output("status", state.Status),
    "status --watch": Output("status-change", state.StatusChange, lines=True),
    "healthcheck": Output("health", state.Health),
    "metrics": Output("metrics", state.MetricsText),
    "secrets": Output("secrets", licenses.Secrets),
    "secrets install": _SECRET,
    "secrets invalidate": _SECRET,
    "license check": Output("license-verdict", licenses.LicenseVerdict),
    "license import": Output("license-imported", licenses.LicenseImported),
    "why": Output("why", licenses.Explanation),
    "audit tail": _RECORD,
    "audit export": _RECORD,
    "audit search": _RECORD,
    "audit open": _RECORD,
    "audit verify": Output("audit-verification", records.Verification),
    "keys": Output("public-keys", records.PublicKeys),
    "policy show": Output("policies", upkeep.Policies),
    "policy install": Output("policy-installed", upkeep.PolicyInstalled),
    "policy bind": Output("bound", upkeep.Bound),
    "policy revoke": Output("policies-revoked", upkeep.PoliciesRevoked),
    "clock challenge": Output("clock-challenge", upkeep.ClockChallenge),
    "clock reset": _CLOCK,
    "clock confirm": _CLOCK,
    "config check": Output("config-checked", upkeep.ConfigChecked),
    "config show": Output("config", upkeep.ConfigShown),
    "reload": Output("reloaded", upkeep.Reloaded),
    "provision": Output("provisioned", upkeep.Provisioned),
    "contact": Output("server", state.Server),
    "rotate": Output("rotated", upkeep.Rotated),
    "certificate renew": Output("certificate-renewed", upkeep.CertificateRenewed),
    "degraded show": _DEGRADED,
    "degraded on": _DEGRADED,
    "degraded off": _DEGRADED,
    "doctor": Output("doctor", upkeep.Diagnosis),
    "doctor nftables": Output("nftables", upkeep.Ruleset),
    "support-bundle": Output("support-bundle", upkeep.SupportBundle),
    "backup create": Output("backup-made", upkeep.BackupMade),
    "backup run": Output("backup-timed", upkeep.BackupTimed),
    "backup verify": Output("backup-proved", upkeep.BackupProved),
    "backup restore": Output("restore-plan", upkeep.RestorePlan),
    "admin-ca install": _ACCESS,
    "admin-ca show": _ACCESS,
    "admin-ca end": _ACCESS,
    "admin-ca revoke": Output("revoked", access.Revoked),
    "break-glass begin": Output("break-glass-begun", access.BreakGlassBegun),
    "break-glass end": Output("break-glass-ended", access.BreakGlassEnded),
    "webhook status": Output("webhook", access.WebhookStatus),
    "webhook test": Output("webhook-tested", access.WebhookTested),
    "webhook retry": Output("webhook-retried", access.WebhookRetried),
    "webhook-key new": Output("webhook-key-made", access.WebhookKeyMade),
    "webhook-key show-id": Output("webhook-keys", access.WebhookKeys),
    "webhook-key end": Output("webhook-key-ended", access.WebhookKeyEnded),
    "ota status": _UPDATES,
    "ota check": _UPDATES,
    "ota install": _BEGUN,
    "ota rehearse": _BEGUN,
    "ota_update": _BEGUN,
    "ota rollback": Output("update-undone", updates.WentBack),
    "ota unlock": Output("updates-unlocked", updates.Unlocked),
    "ota pause": Output("updates-paused", updates.Paused),
    "ota history": Output("update-history", updates.UpdateHistory),
    "ota windows": Output("update-windows", updates.UpdateWindows),
}
"""By command; with an option, where that changes the form."""
