"""Declares the output of the commands that show how the agent is."""

from msgspec import UNSET, Struct, UnsetType

from .updates import Failed, Running, Signed, Waits


class Finding(Struct):
    """One thing that is not as it should be.

    Attributes:
        code: names it for programs; docs/reference.md lists all.
        verdict: what it makes of the agent, as in `Health`.
        text: what is wrong.
        action: what to do; may be empty.
    """

    code: str
    verdict: str
    text: str
    action: str


class Health(Struct):
    """Whether the agent works.

    Attributes:
        verdict: `fine`, `needs_attention` or `not_working`; take one that you do not know for `needs_attention`.
        findings: why it is not fine.
    """

    verdict: str
    findings: list[Finding]


class Backend(Struct):
    """What guards the secrets.

    Attributes:
        name: `tpm` or `software`.
        available: whether it answers.
        detail: a text about it.
        protects_stolen_disk: whether a stolen disk gives nothing away.
        state: of the backend; `available` while it answers.
        binding: what the secrets are bound to: `none`, `secure-boot` or `custom`.
        secret_memory: how secrets are kept in memory.
        nv_writes: writes to the TPM's non-volatile memory since the start.
        nv_budget_left: how many more the budget allows now; null without a TPM.
        hierarchies_open: hierarchies of the TPM whose auth value is empty.
        lockout_counter: failed authorizations that the TPM counts; null without a TPM.
        hardware_id: of the machine; null without a TPM.
    """

    name: str
    available: bool
    detail: str
    protects_stolen_disk: bool
    state: str
    binding: str
    secret_memory: str
    nv_writes: int
    nv_budget_left: int | None
    hierarchies_open: list[str]
    lockout_counter: int | None
    hardware_id: str | None


class SecretCounts(Struct):
    """How many secret versions there are.

    Attributes:
        active: in state ACTIVE.
        grace: in state GRACE.
        total: in all states.
        newest: number of the newest; 0 before the first.
    """

    active: int
    grace: int
    total: int
    newest: int


class LicenseCounts(Struct):
    """The licenses of this machine.

    Attributes:
        held: how many there are.
        valid: how many of them are valid.
        suspended: how many the server has suspended.
        expiring: how many end within 14 days.
        next_end: when the first of the valid ones ends; null if none does.
    """

    held: int
    valid: int
    suspended: int
    expiring: int
    next_end: int | None


class Alert(Struct):
    """An alert that was raised and not cleared.

    Attributes:
        event: its audit event.
        severity: `critical`, `high`, `medium` or `low`.
        title: what it means.
        action: what to do.
        since: when it was raised last.
    """

    event: str
    severity: str
    title: str
    action: str
    since: int


class Rotation(Struct):
    """When secrets are replaced.

    Attributes:
        last: when the newest secret was installed; null before the first.
        next_due: when the next one is due; null before the first.
    """

    last: int | None
    next_due: int | None


class Server(Struct):
    """The license server, and the contacts with it.

    Attributes:
        url: of the server.
        serial: serial number of this agent.
        attestation: how the server has attested this device.
        key_set: number of the server's key set.
        key_set_expires: its end.
        last_contact: the last contact that succeeded; null before the first.
        failures: contacts that have failed in a row.
        problem: why the last one failed; null if it did not.
        refused: why the server refuses this agent; null if it does not.
        certificate_unknown: whether the server does not know this agent's TLS certificate.
        next_contact_s: seconds until the next contact.
        rotation: step of the rotation; `idle` between two.
        revocations: number of the revocation list.
        revoked: how many licenses are on it.
        revocations_until: until when it is up to date; null before the first list.
        revocations_stale: whether that has passed.
        certificate_ends: end of the TLS certificate; 0 without one.
        capabilities: what agent and server both can do.
        license_number: number of the last list of this machine's licenses.
        licenses_held: how many are on it.
        licenses_suspended: how many the server has suspended.
        licenses_removed: how many it has taken away.
        held: whether an administrator has switched degraded mode on.
    """

    url: str
    serial: int
    attestation: str
    key_set: int
    key_set_expires: int
    last_contact: int | None
    failures: int
    problem: str | None
    refused: str | None
    certificate_unknown: bool
    next_contact_s: int
    rotation: str
    revocations: int
    revoked: int
    revocations_until: int | None
    revocations_stale: bool
    certificate_ends: int
    capabilities: list[str]
    license_number: int
    licenses_held: int
    licenses_suspended: int
    licenses_removed: int
    held: bool


class ServerTime(Struct):
    """A time of the server that the agent has not taken.

    Attributes:
        standing: `provisional`, `held` or `behind`.
        signed: what the server has signed.
        clock: of this machine when it came.
        text: what it means.
        action: what to do.
    """

    standing: str
    signed: int
    clock: int
    text: str
    action: str


class AuditState(Struct):
    """The audit log.

    Attributes:
        seq: number of the last record.
        failing: whether it cannot be written.
    """

    seq: int
    failing: bool


class Confinement(Struct):
    """What the agent's process may no longer do.

    Attributes:
        exec_forbidden: whether it can start no program.
        landlock_abi: version of Landlock that confines its files; null without.
    """

    exec_forbidden: bool
    landlock_abi: int | None


class Authentication(Struct, kw_only=True):
    """Whether administrators need a certificate.

    Attributes:
        mode: `required` or `uid-only`.
        configured: `[management] authentication` of the configuration; null if it is not set.
        latched: whether `required` is sealed in the store.
        ca_ends: end of the admin CA; null without one.
        ca_problem: why the admin CA cannot be used; empty if it can.
        revoked: how many certificates do not count any more.
        break_glass: break-glass certificates in use, SHA-256 in hex.
    """

    mode: str
    configured: str | None
    latched: bool
    ca_ends: int | None
    ca_problem: str
    revoked: int
    break_glass: list[str]


class Broken(Struct):
    """What is broken on the machine, beyond the agent's reach.

    Attributes:
        check: of `doctor`.
        cause: what is so.
        fix: what to do; may be empty.
    """

    check: str
    cause: str
    fix: str


class TimedBackups(Struct):
    """The backups that a timer makes.

    Attributes:
        last_good: when the last good one was made; null if there was none.
        overdue: whether it is older than the configuration allows.
        problem: why the last attempt failed; empty if it did not.
        text: what is so.
    """

    last_good: int | None
    overdue: bool
    problem: str
    text: str


class Wanted(Struct):
    """What shall be installed.

    Attributes:
        product: its name.
        version: of the package.
        build_id: of the package.
    """

    product: str
    version: str
    build_id: str


class Updates(Struct):
    """Updates in short; `ota status` has more.

    Attributes:
        state: as in `ota status`.
        running: the products, as the installer said last in this run; empty before it was asked.
        update: what shall be installed; null while nothing shall.
        waits: what it waits for; null if it does not wait.
        paused: who lets nothing begin; null if nobody does.
        problem: what is tried again; null without one.
        action: what an administrator does about it; null where nothing is known, missing from an older agent.
        attempts: that have failed in a row.
        failure: of the last attempt; null without one.
        rehearsal_overdue: whether this is a test bench that has not rehearsed for a quarter.
        signed: when the first role of the update metadata ends that people sign; null before the repository was read, missing
            from an older agent.
    """

    state: str
    running: list[Running]
    update: Wanted | None
    waits: Waits | None
    paused: str | None
    problem: str | None
    attempts: int
    failure: Failed | None
    rehearsal_overdue: bool
    action: str | UnsetType | None = UNSET
    signed: Signed | UnsetType | None = UNSET


class Status(Struct, kw_only=True):
    """How the agent is: `health` alone where it cannot work, is not heard or tells this user no more.

    Attributes:
        health: whether it works, and why not.
        machine: what is broken around it; missing for others than root, and without the package.
        agent_id: this agent; null before it is provisioned.
        agent_version: release of the running agent.
        uptime_s: seconds since its start.
        backend: what guards the secrets.
        secrets: how many there are.
        licenses: of this machine.
        alerts: those that were raised and not cleared, the most severe first.
        rotation: when secrets are replaced.
        degraded: whether the agent works without its server.
        degraded_since: since when; null while it does not.
        mode: `online`, or how it works without its server; `unprovisioned` before it is an agent.
        server: null where secrets are carried by hand.
        updates: in short; null where they are not enabled.
        backup: of the backups that a timer makes; null where the configuration wants none.
        clock_suspect: whether the machine's clock is wrong.
        server_time: a time of the server that was not taken; null if there is none.
        time: for verdicts, now.
        validations: since the start.
        validations_failed: those that ended in a refusal.
        unauthorized: connections by users who are not allowed.
        connections: that are open.
        audit: the log.
        store_generation: commits of the sealed store.
        confinement: of the agent's process.
        authentication: of administrators.
    """

    health: Health
    machine: list[Broken] | UnsetType = UNSET
    agent_id: str | UnsetType | None = UNSET
    agent_version: str | UnsetType = UNSET
    uptime_s: int | UnsetType = UNSET
    backend: Backend | UnsetType = UNSET
    secrets: SecretCounts | UnsetType = UNSET
    licenses: LicenseCounts | UnsetType = UNSET
    alerts: list[Alert] | UnsetType = UNSET
    rotation: Rotation | UnsetType = UNSET
    degraded: bool | UnsetType = UNSET
    degraded_since: int | UnsetType | None = UNSET
    mode: str | UnsetType = UNSET
    server: Server | UnsetType | None = UNSET
    updates: Updates | UnsetType | None = UNSET
    backup: TimedBackups | UnsetType | None = UNSET
    clock_suspect: bool | UnsetType = UNSET
    server_time: ServerTime | UnsetType | None = UNSET
    time: int | UnsetType = UNSET
    validations: int | UnsetType = UNSET
    validations_failed: int | UnsetType = UNSET
    unauthorized: int | UnsetType = UNSET
    connections: int | UnsetType = UNSET
    audit: AuditState | UnsetType = UNSET
    store_generation: int | UnsetType = UNSET
    confinement: Confinement | UnsetType = UNSET
    authentication: Authentication | UnsetType = UNSET


class StatusChange(Struct):
    """A change of the status while it is watched.

    Attributes:
        time: when it was seen.
        health: from then on.
        state: other facts in one line; empty if the agent tells none.
    """

    time: int
    health: Health
    state: str


class DegradedMode(Struct, kw_only=True):
    """Whether the agent works without its server.

    Attributes:
        mode: `online`, or how it works without its server.
        held: whether an administrator has switched that on.
        since: since when; null while the agent is online. Only `degraded show` says it.
    """

    mode: str
    held: bool
    since: int | UnsetType | None = UNSET


class MetricsText(Struct):
    """The metrics.

    Attributes:
        text: in Prometheus' text format.
    """

    text: str
