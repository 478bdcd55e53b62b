"""Checks of the agent itself: its configuration, its own judgment, its store, its certificate, its contacts."""

import json
import re
from dataclasses import dataclass
from typing import Any

from cli import health
from cli.doctor.machine import CannotTell, Machine, Ran
from cli.doctor.verdict import Check, Judgment, fail, note, unknown, warn
from common.text import quantity
from common.version import VERSION

DAY_S = 86_400
CERTIFICATE_SOON_DAYS = 7
"""The agent renews a certificate long before; one that is nearer to its end was not renewed."""
CONTACT_OLD_S = 3 * DAY_S
MANY_FAILURES = 3
"""More failed contacts in a row than this are a failure, as in the agent's own judgment."""
_CONTACT = "license-agent-cli contact"


def _configuration(machine: Machine) -> dict[str, Any]:
    _ = machine.layout  # without it, a user who may not read the file would read that the file is wrong
    done = machine.program("license-agent", "--config", str(machine.config), "check-config", "--json")
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        raise CannotTell(f"license-agent check-config gave no answer: {_last_line(done)}") from None
    warnings = [line.partition("warning: ")[2] for line in done.stderr.splitlines() if "warning: " in line]
    return {**reply, "warnings": warnings}


def _last_line(done: Ran) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit status {done.status}"


def _judge_configuration(reply: dict[str, Any]) -> Judgment:
    fix = f"correct {reply['file']}, then run: license-agent check-config && systemctl reload license-agent"
    return [
        *(fail(problem, fix) for problem in reply["problems"]),
        *(warn(text, f"correct {reply['file']}") for text in reply["warnings"]),
    ]


def _link_configuration(machine: Machine) -> tuple[str, Ran]:
    return str(machine.layout.link), machine.program("license-agent-link", "--check", "--config", str(machine.layout.link))


def _judge_link_configuration(seen: tuple[str, Ran]) -> Judgment:
    file, done = seen
    if done.status == 0:
        return []
    fix = f"correct {file}; the link reads it at its next start, no restart is needed"
    problems = [re.sub(r"^(<\d>)?(license-agent-link: )?", "", line) for line in done.stderr.splitlines() if line.strip()]
    return [fail(problem, fix) for problem in problems] or [fail(f"license-agent-link refuses {file}", fix)]


def _verdict(machine: Machine) -> health.Health:
    return health.health_of(machine.status)


def _judge_verdict(found: health.Health) -> Judgment:
    judged: Judgment = []
    for finding in found["findings"]:
        make = fail if finding["verdict"] == health.NOT_WORKING else warn
        judged.append(make(finding["text"].rstrip("."), finding["action"].rstrip(".")))
    if not judged and found["verdict"] != health.FINE:
        judged.append(fail(f"the agent says '{found['verdict']}' and gives no reason", "license-agent-cli status"))
    return judged


def _version(machine: Machine) -> str:
    return str(machine.told("agent_version"))


def _judge_version(running: str) -> Judgment:
    if running == VERSION:
        return []
    return [warn(f"the running agent is version {running}, installed is {VERSION}", "systemctl restart license-agent")]


def _confinement(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = machine.told("confinement")
    return found


def _judge_confinement(found: dict[str, Any]) -> Judgment:
    judged: Judgment = []
    if not found["exec_forbidden"]:
        judged.append(
            fail("the running agent could start programs: it has not confined itself", "systemctl restart license-agent")
        )
    if found["landlock_abi"] is None:
        judged.append(
            warn("this kernel has no Landlock, one of the agent's locks", "add landlock to lsm= on the kernel's command line")
        )
    return judged


def _administrators(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = machine.told("authentication")
    return {**found, "time": machine.told("time")} if "time" in machine.status else found


def _judge_administrators(found: dict[str, Any]) -> Judgment:
    if found["mode"] != "required":
        return [note("root and the users of [management] need no certificate")]
    fix = "put the CA's certificate into /etc/license-agent/admin-ca.pem, then run: systemctl reload license-agent"
    if found["ca_problem"] or found["ca_ends"] is None:
        why = found["ca_problem"] or "there is none"
        return [fail(f"administrators need certificates, and the admin CA cannot be used: {why}", fix)]
    if "time" in found and found["ca_ends"] <= found["time"]:
        return [fail("the admin CA has ended: no administrator's certificate counts", fix)]
    return [note("each administrator needs a certificate")]


@dataclass(frozen=True, slots=True)
class Store:
    """What `license-agent recover show` says; nothing where the agent works."""

    answers: bool
    state: str = ""
    text: str = ""
    advice: str = ""


def _store(machine: Machine) -> Store:
    if "backend" in machine.status or machine.status.get("mode") == "unprovisioned":
        return Store(True)
    done = machine.program("license-agent", "--config", str(machine.config), "recover", "show", "--json")
    try:
        found = json.loads(done.stdout)
        return Store(False, str(found["state"]), str(found["text"]), str(found["advice"]))
    except (ValueError, KeyError):
        raise CannotTell(f"{_last_line(done).removeprefix('license-agent: ')}", machine.ask_for_root()) from None


def _judge_store(found: Store) -> Judgment:
    if found.answers or found.state == "ok":
        return []
    return [fail(f"the sealed store cannot be opened ({found.state}): {found.text}", found.advice)]


@dataclass(frozen=True, slots=True)
class CertificateEnd:
    """The end of the TLS client certificate and the time to hold it against, seconds since 1970; 0 without a certificate."""

    ends: int
    now: int


def _certificate(machine: Machine) -> CertificateEnd:
    if "server" in machine.status:
        server = machine.status["server"]
        return CertificateEnd(int((server or {}).get("certificate_ends") or 0), int(machine.status["time"]))
    # The agent does not answer. What it published last outlives it.
    text = machine.text_or(machine.layout.state / "metrics.prom")
    found = re.search(r"^license_agent_certificate_ends ([0-9.e+]+)$", text, re.MULTILINE)
    if found is None:
        raise CannotTell("the agent has not published the end of its certificate; see agent.verdict")
    return CertificateEnd(int(float(found[1])), int(machine.now))


def _judge_certificate(found: CertificateEnd) -> Judgment:
    if not found.ends:
        return [note("this agent has no TLS certificate: it has no license server")]
    days = (found.ends - found.now) // DAY_S
    if days < 0:
        return [fail(f"the TLS client certificate ended {quantity(-days, 'day')} ago", "license-agent-cli certificate renew")]
    if days < CERTIFICATE_SOON_DAYS:
        return [
            warn(
                f"the TLS client certificate ends in {quantity(days, 'day')} and was not renewed",
                "license-agent-cli certificate renew",
            )
        ]
    return [note(f"{quantity(days, 'day')} left")]


@dataclass(frozen=True, slots=True)
class Contact:
    """How the contacts with the server went.

    Attributes:
        server: whether the agent has one.
        last: the last one that succeeded, seconds since 1970; None if there was none.
        now: the time to hold it against.
        failures: contacts that failed in a row since.
        problem: why the last one failed.
        held: an administrator has switched contacts off.
        old: from a file, because the agent does not answer.
    """

    server: bool
    last: int | None
    now: int
    failures: int = 0
    problem: str = ""
    held: bool = False
    old: bool = False


def _contact(machine: Machine) -> Contact:
    status = machine.status
    if status.get("mode") == "unprovisioned":
        raise CannotTell("this device is not an agent yet", "license-agent-cli provision")
    if "server" in status:
        server = status["server"]
        if server is None:
            return Contact(False, None, int(status["time"]))
        return Contact(
            True, server["last_contact"], int(status["time"]), server["failures"], server["problem"] or "", bool(server["held"])
        )
    try:
        last = json.loads(machine.text(machine.layout.state / "state.json"))["last_server_contact"]
    except (FileNotFoundError, ValueError, KeyError):
        raise CannotTell("the agent does not answer and has left no state.json; see agent.verdict") from None
    return Contact(True, None if last is None else int(last), int(machine.now), old=True)


def _judge_contact(found: Contact) -> Judgment:
    if not found.server:
        return [note("this agent has no license server: secrets are carried by hand")]
    if found.held:
        return [warn("an administrator has switched contacts off", "license-agent-cli degraded off")]
    if found.failures:
        make = fail if found.failures > MANY_FAILURES else warn
        many = "contact" if found.failures == 1 else f"{found.failures} contacts"
        return [make(f"the last {many} failed: {found.problem or 'no reason given'}", _CONTACT)]
    if found.last is None:
        return [unknown("there was no contact yet", _CONTACT)]
    age = found.now - found.last
    if age > CONTACT_OLD_S:
        return [warn(f"the last contact was {quantity(age // DAY_S, 'day')} ago", _CONTACT)]
    if found.old:
        return [unknown("the agent does not answer; its last contact is recent", "see agent.verdict")]
    return [note("the last contact succeeded")]


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "config.agent",
        "The agent's configuration is accepted",
        "`license-agent check-config --json`",
        _configuration,
        _judge_configuration,
    ),
    Check(
        "config.link",
        "The link's configuration is accepted",
        "`license-agent-link --check`",
        _link_configuration,
        _judge_link_configuration,
    ),
    Check("agent.verdict", "The agent answers and is fine", "the agent's `status` and its alerts", _verdict, _judge_verdict),
    Check("agent.version", "The running agent is the installed one", "the agent's `status`", _version, _judge_version),
    Check(
        "agent.confinement", "The running agent has confined itself", "the agent's `status`", _confinement, _judge_confinement
    ),
    Check(
        "agent.administrators",
        "Administrators can use the agent as configured",
        "the agent's `status`",
        _administrators,
        _judge_administrators,
    ),
    Check(
        "agent.store",
        "The sealed store can be opened",
        "the agent's `status`; `license-agent recover show` if it does not answer",
        _store,
        _judge_store,
    ),
    Check(
        "agent.certificate",
        "The TLS client certificate is valid",
        "the agent's `status`, or `metrics.prom` if it does not answer",
        _certificate,
        _judge_certificate,
    ),
    Check(
        "server.contact",
        "The license server is reached",
        "the agent's `status`, or `state.json` if it does not answer",
        _contact,
        _judge_contact,
    ),
)
