"""Declares the output of the commands that configure, check, back up and support the agent."""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

# Configuration


class ConfigChecked(Struct):
    """Whether the configuration file is accepted.

    Attributes:
        ok: whether it is.
        file: which one.
        problems: all of them, each in a sentence.
    """

    ok: bool
    file: str
    problems: list[str]


class ConfigEntry(Struct, kw_only=True):
    """A key of the configuration.

    Attributes:
        key: `section.name`.
        value: that is in force; its type depends on the key.
        default: where the file says nothing.
        origin: `file`, `default`, `provisioning`, or `fleet`: the machine's fleet sets it.
        after_restart: the value after the next start; missing if it is the same.
    """

    key: str
    value: Any
    default: Any
    origin: str
    after_restart: Any | UnsetType = UNSET


class ConfiguringFleet(Struct):
    """The fleet that sets something on this machine.

    Attributes:
        id: of the fleet.
        number: of its configuration.
    """

    id: str
    number: int


class ConfigShown(Struct):
    """The configuration that is in force.

    Attributes:
        file: that it comes from; empty without one.
        entries: its keys.
        unloaded: whether the file on disk is another one.
        problems: why the file on disk is refused.
        needs_restart: keys that wait for a restart.
        fleet: that sets something here; null without one.
        limited: what the fleet wants and this machine's file does not accept, a sentence each.
    """

    file: str
    entries: list[ConfigEntry]
    unloaded: bool
    problems: list[str]
    needs_restart: list[str]
    fleet: ConfiguringFleet | None = None
    limited: list[str] = []


class Reloaded(Struct):
    """How a reload ended.

    Attributes:
        problems: why the file was refused; empty if it is in force.
        needs_restart: keys that wait for a restart.
    """

    problems: list[str]
    needs_restart: list[str]


# License server


class Provisioned(Struct):
    """The agent that this device has become.

    Attributes:
        agent_id: its id.
        serial: its serial number.
        url: of the server.
        attestation: how the server has attested the device.
    """

    agent_id: str
    serial: int
    url: str
    attestation: str


class Rotated(Struct):
    """A rotation.

    Attributes:
        secret_version: the newest now.
        before: the newest before.
        finished: version of an earlier rotation that was finished first; 0 without one.
        generation: of the sealed store afterwards.
    """

    secret_version: int
    before: int
    finished: int
    generation: int


class CertificateRenewed(Struct):
    """The TLS client certificate in use.

    Attributes:
        certificate_ends: its end.
    """

    certificate_ends: int


class ClockChallenge(Struct):
    """A challenge for the server's time.

    Attributes:
        agent_id: this agent.
        challenge: 32 hex digits.
    """

    agent_id: str
    challenge: str


class ClockCorrected(Struct):
    """The server's time was taken.

    Attributes:
        signed: the time that the server has signed.
        time: for verdicts, now.
        clock_suspect: whether the machine's clock is wrong.
    """

    signed: int
    time: int
    clock_suspect: bool


# Binding to the machine's state


class Policy(Struct):
    """A signed policy.

    Attributes:
        number: of the policy.
        pcrs: the values that it allows, in hex, by PCR.
        signed_by_our_key: whether the key of the binding has signed it.
        fits: whether the PCRs have these values now.
        revoked: whether its number is refused.
    """

    number: int
    pcrs: dict[str, str]
    signed_by_our_key: bool
    fits: bool
    revoked: bool


class Policies(Struct):
    """What the secrets are bound to.

    Attributes:
        binding: `none`, `secure-boot` or `custom`.
        bound_pcrs: PCRs of the binding.
        policy_number: policies with a lower number are refused.
        pcrs: present values in hex, by PCR.
        policies: that are installed.
        passed_over: files that hold no policy, and why.
    """

    binding: str
    bound_pcrs: list[int]
    policy_number: int
    pcrs: dict[str, str]
    policies: list[Policy]
    passed_over: list[str]


class PolicyInstalled(Struct):
    """A policy was stored.

    Attributes:
        file: its name.
    """

    file: str


class Bound(Struct):
    """The secrets were bound.

    Attributes:
        binding: to what.
    """

    binding: str


class PoliciesRevoked(Struct):
    """Policies were revoked.

    Attributes:
        policy_number: those with a lower number are refused.
    """

    policy_number: int


# Doctor, support, backup


class DoctorFinding(Struct):
    """What a check has found.

    Attributes:
        state: `pass`, `unknown`, `warn` or `fail`.
        cause: what is so.
        fix: what to do; may be empty.
    """

    state: str
    cause: str
    fix: str


class DoctorCheck(Struct):
    """A check of the machine.

    Attributes:
        id: names it; docs/reference.md lists all.
        state: the worst of its findings; `pass` without any.
        title: what is so if it passes.
        findings: the worst first.
    """

    id: str
    state: str
    title: str
    findings: list[DoctorFinding]


class Diagnosis(Struct):
    """What doctor has found.

    Attributes:
        verdict: the worst state.
        counts: how many checks have each state.
        checks: in the order in which they were made.
    """

    verdict: str
    counts: dict[str, int]
    checks: list[DoctorCheck]


class Ruleset(Struct):
    """Rules for nftables.

    Attributes:
        rules: the text of the file.
    """

    rules: str


class BundleMember(Struct):
    """A file of a support bundle.

    Attributes:
        name: in the archive.
        what: it holds.
        bytes: its size.
        sha256: its digest, in hex.
    """

    name: str
    what: str
    bytes: int
    sha256: str


class BundleGap(Struct):
    """What a support bundle lacks.

    Attributes:
        name: of the file that is not there.
        what: it would hold.
        why: it could not be read.
    """

    name: str
    what: str
    why: str


class SupportBundle(Struct):
    """A support bundle.

    Attributes:
        file: where it is.
        bytes: its size.
        members: what is in it.
        missing: what is not.
        removed: how often each kind of secret was taken out.
    """

    file: str
    bytes: int
    members: list[BundleMember]
    missing: list[BundleGap]
    removed: dict[str, int]


class BackupMade(Struct):
    """A backup.

    Attributes:
        format: `license-agent-backup`.
        version: of the format.
        program: release of the agent that made it.
        agent_id: whose backup it is; empty if the device is not provisioned.
        backend: `tpm` or `software`.
        generation: of its store.
        created: when it was made.
        files: names of the files in it.
    """

    format: str
    version: int
    program: str
    agent_id: str
    backend: str
    generation: int
    created: int
    files: list[str]


class BackupTimed(Struct):
    """A backup that `[backup]` of the configuration describes.

    Attributes:
        file: the new file.
        agent_id: whose backup it is.
        generation: of its store.
        removed: names of the files that were removed, since they are no longer kept.
    """

    file: str
    agent_id: str
    generation: int
    removed: list[str]


class BackupProved(Struct):
    """Whether a backup is whole, as far as that shows without its machine.

    Attributes:
        whole: whether it is.
        agent_id: whose backup it is; empty if the device is not provisioned.
        generation: of its store.
        created: when it was made.
        files: names of the files in it.
        problems: what is wrong.
        checked: in sentences.
        unchecked: in sentences.
    """

    whole: bool
    agent_id: str
    generation: int
    created: int
    files: list[str]
    problems: list[str]
    checked: list[str]
    unchecked: list[str]


class RestorePlan(Struct, kw_only=True):
    """Whether a backup fits this machine, and what restoring it changes; with --configuration, that alone.

    Attributes:
        fit: `current`, or why it cannot be restored.
        text: why.
        next_step: what to do.
        generation: of the backup's store.
        newest: of the newest commit on this machine; null if its hardware does not say so.
        files: `same`, `differs` or `missing` on this machine, by name.
        configuration: true if the configuration alone was restored.
    """

    fit: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    next_step: str | UnsetType = UNSET
    generation: int | UnsetType = UNSET
    newest: int | UnsetType | None = UNSET
    files: dict[str, str] | UnsetType = UNSET
    configuration: bool | UnsetType = UNSET
