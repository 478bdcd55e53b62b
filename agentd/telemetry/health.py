"""Judges whether the agent is fine, needs attention or does not work. A table of conditions over facts; performs no IO.

fine             licenses are validated, and nobody has to act
needs attention  licenses are validated; somebody must act, or will have to
not working      licenses that should pass are refused
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from agentd.base.alerts import (
    ADMIN_REFUSED,
    AUDIT_BUDGET,
    CLOCK_SUSPECT,
    DEGRADED_LONG,
    REVOCATIONS_STALE,
    ROTATION_FAILING,
    SECRET_EXPIRED,
    SERVER_REFUSES,
    TPM_UNAVAILABLE,
    UNAUTHORIZED,
    Alert,
)
from agentd.sync.degraded import Mode

DAY_S = 86_400
MANY_REFUSED = 10
"""So many validations in a row that all end in a refusal are worth a look."""
MANY_FAILURES = 3
"""More failed contacts in a row than this are worth a look."""
_SHORT_LIVED = frozenset({ADMIN_REFUSED, AUDIT_BUDGET, UNAUTHORIZED})


class Health(IntEnum):
    """How the agent is, from good to bad."""

    FINE = 0
    NEEDS_ATTENTION = 1
    NOT_WORKING = 2

    @property
    def code(self) -> str:
        """As replies name it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judgment goes by. Times are seconds since 1970 UTC.

    Attributes:
        now: the time for verdicts.
        provisioned: the device is an agent.
        has_server: it has a license server; without one, secrets are carried by hand.
        versions: secret versions that exist.
        usable: secret versions under which licenses may pass.
        mode: with or without the server.
        held: an administrator has switched degraded mode on.
        failures: contacts that failed in a row.
        problem: why the last one failed.
        refused: the server's words, if it refuses this agent.
        certificate_unknown: the server does not know this agent's TLS certificate, or any more.
        certificate_ends: end of the TLS certificate; None without one.
        revocations_stale: the revocation list is older than it should be.
        stale_refused: the configuration refuses every license then.
        refused_in_a_row: validations since the last one that was valid.
        backend: name of the backend in use.
        backend_problem: why it cannot be used; empty while it can.
        audit_failing: the audit log cannot be written.
        clock_suspect: the machine's clock is wrong.
        nobody_admitted: no user may use the POS socket.
        config_problems: why the configuration on disk is refused.
        config_unloaded: the configuration on disk is another one than that in force.
        needs_restart: what of the configuration that was loaded needs a restart.
        out_of_reach: why this process cannot use what the configuration names, though one that is started now could.
        alerts: those that were raised and not cleared, each with the time when it was raised.
    """

    now: int = 0
    provisioned: bool = True
    has_server: bool = True
    versions: int = 1
    usable: int = 1
    mode: Mode = Mode.ONLINE
    held: bool = False
    failures: int = 0
    problem: str = ""
    refused: str = ""
    certificate_unknown: bool = False
    certificate_ends: int | None = None
    revocations_stale: bool = False
    stale_refused: bool = False
    refused_in_a_row: int = 0
    backend: str = "tpm"
    backend_problem: str = ""
    audit_failing: bool = False
    clock_suspect: bool = False
    nobody_admitted: bool = False
    config_problems: tuple[str, ...] = ()
    config_unloaded: bool = False
    needs_restart: tuple[str, ...] = ()
    out_of_reach: str = ""
    alerts: tuple[tuple[Alert, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: its name, for programs.
        health: what it makes of the agent.
        text: what is wrong.
        action: what an administrator does about it.
    """

    code: str
    health: Health
    text: str
    action: str

    def view(self) -> dict[str, str]:
        """As a reply holds it."""
        return {"code": self.code, "verdict": self.health.code, "text": self.text, "action": self.action}


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table.

    Attributes:
        code: as in `Finding`.
        health: as in `Finding`.
        title: what it means, for the table in the documents.
        text: what is wrong; None if it is not so.
        action: as in `Finding`.
        covers: alerts that say the same, and are not listed besides.
    """

    code: str
    health: Health
    title: str
    text: Callable[[Facts], str | None]
    action: Callable[[Facts], str]
    covers: tuple[Alert, ...] = ()


def _when(on: Callable[[Facts], bool], text: str) -> Callable[[Facts], str | None]:
    return lambda facts: text if on(facts) else None


def _no_license_passes(facts: Facts) -> str | None:
    if not facts.provisioned or facts.usable:
        return None
    if not facts.versions:
        return "the agent has no secret yet, so it refuses every license"
    if facts.mode is Mode.EXPIRED:
        return "grace of the newest secret has ended without a successor, so the agent refuses every license"
    return "every secret version is invalidated, so the agent refuses every license"


def _bring_a_secret(facts: Facts) -> str:
    if facts.has_server:
        return "Run 'license-agent-cli rotate': it gets a new secret, or says why none comes."
    return "Get a delivery from the license server and run 'license-agent-cli secrets install FILE'."


def _degraded(facts: Facts) -> str | None:
    if facts.mode is not Mode.DEGRADED:
        return None
    if facts.held:
        return "an administrator has switched degraded mode on: no contact with the license server, no new secrets"
    return "degraded mode: a new secret is overdue; licenses will be refused when grace ends"


def _unreachable(facts: Facts) -> str | None:
    if facts.failures <= MANY_FAILURES or facts.refused or facts.certificate_unknown or facts.held:
        return None
    return f"the last {facts.failures} contacts with the license server failed: {facts.problem}"


def _certificate_unknown(facts: Facts) -> str | None:
    if not facts.certificate_unknown:
        return None
    text = "the license server does not know this agent's certificate any more"
    return f"{text}; before, it said: {facts.refused}" if facts.refused else text


def _certificate(facts: Facts) -> str | None:
    ended = facts.certificate_ends is not None and 0 < facts.certificate_ends <= facts.now
    return "the TLS client certificate has ended; the next contact renews it" if ended else None


def _config_refused(facts: Facts) -> str | None:
    if not facts.config_problems or facts.out_of_reach:
        return None
    first, *rest = facts.config_problems
    more = f" (and {len(rest)} more)" if rest else ""
    return f"the configuration on disk is refused: {first}{more}; the one loaded before stays in force"


def _always(text: str) -> Callable[[Facts], str]:
    return lambda _facts: text


_STOPS, _ATTENTION = Health.NOT_WORKING, Health.NEEDS_ATTENTION
_PROVISION_AGAIN = (
    "Ask the operator of the license server. An agent that was revoked and reinstated must be provisioned again: stop it, run "
    "'license-agent recover reinitialize', start it, and run 'license-agent-cli provision' with a new enrollment token."
)
_SEE_CONTACT = "Run 'license-agent-cli contact': it tries now and prints the reason if it fails."

CONDITIONS: tuple[Condition, ...] = (
    Condition("not_provisioned", _STOPS, "The device is not an agent yet",
              _when(lambda facts: not facts.provisioned, "this device is not a license agent yet"),
              _always("Run 'license-agent-cli provision'.")),
    Condition("no_usable_secret", _STOPS, "There is no secret under which a license may pass",
              _no_license_passes, _bring_a_secret, (SECRET_EXPIRED,)),
    Condition("revocations_refuse", _STOPS, "The revocation list is out of date, and the configuration refuses licenses then",
              _when(lambda facts: facts.revocations_stale and facts.stale_refused,
                    "the revocation list is out of date, and [agent] stale_revocations = \"refuse\": "
                    "the agent refuses every license"),
              _always(_SEE_CONTACT), (REVOCATIONS_STALE,)),
    Condition("config_refused", _ATTENTION, "The configuration on disk is refused",
              _config_refused,
              _always("Correct the file, then run 'systemctl reload license-agent'.")),
    Condition("nobody_admitted", _ATTENTION, "No user may use the POS socket",
              _when(lambda facts: facts.nobody_admitted, "no user may use the POS socket"),
              _always("Add the POS application's user to [pos] allowed_uids, then run 'systemctl reload license-agent'.")),
    Condition("all_refused", _ATTENTION, "The last validations, ten or more, were all refused",
              lambda facts: f"the last {facts.refused_in_a_row} validations were all refused"
              if facts.usable and facts.refused_in_a_row >= MANY_REFUSED else None,
              _always("'license-agent-cli audit tail' shows the reasons; 'license-agent-cli license check' explains one.")),
    Condition("server_refuses", _ATTENTION, "The license server refuses this agent",
              lambda facts: f"the license server refuses this agent: {facts.refused}"
              if facts.refused and not facts.certificate_unknown else None,
              _always(SERVER_REFUSES.action), (SERVER_REFUSES,)),
    Condition("certificate_unknown", _ATTENTION, "The license server does not know this agent's TLS certificate any more",
              _certificate_unknown, _always(_PROVISION_AGAIN), (SERVER_REFUSES, ROTATION_FAILING)),
    Condition("audit_unwritable", _ATTENTION, "The audit log cannot be written",
              _when(lambda facts: facts.audit_failing,
                    "the audit log cannot be written: records are lost and administrators' changes are refused"),
              _always("Make room on the log's disk, and check that it is mounted read-write.")),
    Condition("backend_unavailable", _ATTENTION, "The TPM or the software backend cannot be used",
              lambda facts: f"the {facts.backend} cannot be used: {facts.backend_problem}" if facts.backend_problem else None,
              _always(TPM_UNAVAILABLE.action), (TPM_UNAVAILABLE,)),
    Condition("out_of_reach", _ATTENTION, "Files or the TPM's device were replaced or taken away while the agent ran",
              lambda facts: facts.out_of_reach.partition(";")[0] or None,
              _always("If it is the TPM's device, see to that first. Then run 'systemctl restart license-agent'.")),
    Condition("degraded", _ATTENTION, "The agent is in degraded mode",
              _degraded,
              lambda facts: "Run 'license-agent-cli degraded off' to end it." if facts.held
              else _SEE_CONTACT if facts.has_server else _bring_a_secret(facts), (DEGRADED_LONG,)),
    Condition("server_unreachable", _ATTENTION, "More than three contacts with the license server have failed in a row",
              _unreachable, _always(_SEE_CONTACT), (ROTATION_FAILING,)),
    Condition("certificate_ended", _ATTENTION, "The TLS client certificate has ended",
              _certificate, _always(f"{_SEE_CONTACT} 400 days after its end, provision the device again.")),
    Condition("revocations_stale", _ATTENTION, "The revocation list is out of date",
              _when(lambda facts: facts.revocations_stale and not facts.stale_refused, REVOCATIONS_STALE.title),
              _always(_SEE_CONTACT), (REVOCATIONS_STALE,)),
    Condition("clock_suspect", _ATTENTION, "The machine's clock is wrong",
              _when(lambda facts: facts.clock_suspect, "the machine's clock is wrong; licenses are judged by the trusted time"),
              _always(CLOCK_SUSPECT.action), (CLOCK_SUSPECT,)),
    Condition("needs_restart", _ATTENTION, "Changes of the configuration wait for a restart",
              lambda facts: f"changes of the configuration wait for a restart: {', '.join(facts.needs_restart)}"
              if facts.needs_restart else None,
              _always("Run 'systemctl restart license-agent'.")),
    Condition("config_unloaded", _ATTENTION, "The configuration on disk was changed and not loaded",
              _when(lambda facts: facts.config_unloaded and not facts.config_problems,
                    "the configuration on disk was changed and not loaded"),
              _always("Run 'systemctl reload license-agent'.")),
)  # fmt: skip
"""In the order in which they are shown within a verdict."""


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that is not as it should be, the worst first; empty if the agent is fine."""
    found: list[Finding] = []
    covered: set[Alert] = set()
    for condition in CONDITIONS:
        text = condition.text(facts)
        if text is not None:
            found.append(Finding(condition.code, condition.health, text, condition.action(facts)))
            covered.update(condition.covers)
    for alert, raised in facts.alerts:
        if alert in covered or (alert in _SHORT_LIVED and facts.now - raised >= DAY_S):
            continue
        found.append(Finding(alert.event.removeprefix("alert."), _ATTENTION, alert.title, alert.action))
    return tuple(sorted(found, key=lambda finding: -finding.health))


def health_view(found: tuple[Finding, ...]) -> dict[str, object]:
    """The member `health` of the reply to `status`."""
    worst = max((finding.health for finding in found), default=Health.FINE)
    return {"verdict": worst.code, "findings": [finding.view() for finding in found]}


def verdict_view(found: tuple[Finding, ...]) -> dict[str, object]:
    """The reply to `health`: the verdict, and the exit status of a check by it (0, 1 or 2, as plugins of Nagios have)."""
    worst = max((finding.health for finding in found), default=Health.FINE)
    return {"verdict": worst.code, "exit_status": int(worst)}
