"""Turns the agent's replies into text for people. Nothing here performs IO."""

import time
from typing import Any

import click
from tabulate import tabulate

from audittrail.report import INCOMPLETE, INTACT, TAMPERED

_STATE_COLORS = {"ACTIVE": "green", "GRACE": "yellow", "INVALIDATED": "red"}


def utc(seconds: int | None) -> str:
    """A time as people read it; a dash for None."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def in_words(seconds: int) -> str:
    """A duration in its two largest units."""
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def yes_no(value: bool, bad: bool) -> str:
    """`yes` or `no`, red where that is bad."""
    text = "yes" if value else "no"
    return click.style(text, fg="red") if value == bad else text


def state(word: str) -> str:
    """A secret's state, colored."""
    return click.style(word, fg=_STATE_COLORS.get(word))


def server_text(server: dict[str, Any]) -> str:
    """What is known of the license server."""
    rows = [
        ("server", f"{server['url']}, serial {server['serial']} ({server['attestation']})"),
        ("last contact", utc(server["last_contact"])),
        ("contacts failed in a row", str(server["failures"]) + (f": {server['problem']}" if server["problem"] else "")),
        ("next contact in", "held back" if server["held"] else in_words(server["next_contact_s"])),
        ("rotation", server["rotation"]),
        ("revocation list", _revocations(server)),
        ("key set", f"number {server['key_set']}, until {utc(server['key_set_expires'])}"),
        ("TLS certificate until", utc(server["certificate_ends"])),
        ("licenses by contact", _licenses(server)),
        # An agent of release 0.1.0 does not say.
        ("capabilities of both", ", ".join(server.get("capabilities", ())) or "those of release 0.1.0"),
    ]
    return tabulate(rows, tablefmt="plain")


def _licenses(server: dict[str, Any]) -> str:
    if not server.get("license_number"):
        return "none yet"
    held, suspended, removed = (server[f"licenses_{name}"] for name in ("held", "suspended", "removed"))
    return f"{held} held, {suspended} suspended, {removed} taken away"


def _revocations(server: dict[str, Any]) -> str:
    if server["revocations_until"] is None:
        return "none yet"
    stale = click.style(", STALE", fg="red") if server["revocations_stale"] else ""
    return f"number {server['revocations']}, {server['revoked']} revoked, until {utc(server['revocations_until'])}{stale}"


def status_text(reply: dict[str, Any]) -> str:
    """The reply to `status`."""
    if reply["mode"] == "unprovisioned":
        unprovisioned = "this device is not a license agent yet: 'license-agent-cli provision' makes it one"
        return f"{unprovisioned}\nconfinement: {_confinement(reply['confinement'])}"
    backend, secrets, rotation = reply["backend"], reply["secrets"], reply["rotation"]
    due = rotation["next_due"]
    next_due = "-" if due is None else f"{utc(due)} ({_relative(due, reply['time'])})"
    rows = [
        ("agent", f"{reply['agent_id']}, version {reply['agent_version']}, up {in_words(reply['uptime_s'])}"),
        ("backend", f"{backend['name']}: {backend['detail']}"),
        ("backend answers", yes_no(backend["available"], bad=False)),
        ("protects a stolen disk", yes_no(backend["protects_stolen_disk"], bad=False)),
        ("binding to boot state", backend["binding"]),
        ("secrets", f"{secrets['active']} active, {secrets['grace']} in grace, {secrets['total']} in all"),
        ("last rotation", utc(rotation["last"])),
        ("next rotation due", next_due),
        ("degraded", reply["mode"] if reply["mode"] == "online" else click.style(reply["mode"], fg="red")),
        ("clock suspect", yes_no(reply["clock_suspect"], bad=True)),
        *_server_time(reply.get("server_time")),
        ("validations", f"{reply['validations']}, of which {reply['validations_failed']} refused"),
        ("unauthorized callers", str(reply["unauthorized"])),
        ("audit log", f"{reply['audit']['seq']} records" + (", CANNOT BE WRITTEN" if reply["audit"]["failing"] else "")),
        *_authentication(reply.get("authentication")),
        ("confinement", _confinement(reply["confinement"])),
    ]
    text: str = tabulate(rows, tablefmt="plain")
    return text if reply["server"] is None else f"{text}\n\n{server_text(reply['server'])}"


def _server_time(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The server's time, where it does not count yet."""
    if found is None:
        return []
    standing = found["standing"] if found["standing"] == "provisional" else click.style(found["standing"].upper(), fg="red")
    return [("server's time", f"{standing}: {found['text']}"), ("", found["action"])]


def _authentication(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How administrators are authenticated; an agent of release 0.1.0 does not say."""
    if found is None:
        return []
    if found["mode"] != "required":
        return [("administrators", "root and the users of [management] allowed_uids, without a certificate")]
    if found["ca_ends"] is None:
        why = found["ca_problem"] or "there is no admin CA"
        return [("administrators", click.style(f"need a certificate, and none counts: {why}", fg="red"))]
    return [("administrators", f"need a certificate; the admin CA ends {utc(found['ca_ends'])}")]


def _confinement(reply: dict[str, Any]) -> str:
    abi = reply["landlock_abi"]
    landlock = "Landlock not in this kernel" if abi is None else f"Landlock ABI {abi}"
    return f"exec forbidden {yes_no(reply['exec_forbidden'], bad=False)}, {landlock}"


def _relative(then: int, now: int) -> str:
    return f"in {in_words(then - now)}" if then >= now else f"{in_words(now - then)} ago"


def secrets_text(reply: dict[str, Any]) -> str:
    """The reply to `secrets`."""
    rows = [
        (
            secret["version"],
            state(secret["state"]),
            utc(secret["valid_from"]),
            utc(secret["valid_until"]),
            utc(secret["grace_until"]),
            utc(secret["invalidated_at"]),
        )
        for secret in reply["secrets"]
    ]
    if not rows:
        return "no secrets yet; 'license-agent-cli provision' or 'secrets install' brings one"
    return tabulate(rows, headers=["version", "state", "valid from", "valid until", "grace until", "invalidated"])


def license_text(reply: dict[str, Any]) -> str:
    """The reply to `license_check`."""
    verdict = click.style("valid", fg="green") if reply["valid"] else click.style("not valid", fg="red")
    rows = [
        ("verdict", f"{verdict} ({reply['reason']})"),
        ("license", reply["license"] or "-"),
        ("expires", utc(reply["expires_at"])),
        ("features", ", ".join(reply["features"]) or "-"),
        ("metadata", ", ".join(f"{name}={value}" for name, value in reply["metadata"].items()) or "-"),
        ("secret", f"version {reply['secret_version'] or '-'}, {state(reply['secret_state'] or '-')}"),
        ("re-issue due", yes_no(reply["reissue_due"], bad=True)),
        ("newer token stored", "yes" if reply["refreshed"] else "no"),
    ]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def record_text(record: dict[str, Any]) -> str:
    """One audit record as a line."""
    actor = record.get("actor") or {}
    who = f"uid={actor['uid']} pid={actor['pid']}" if {"uid", "pid"} <= actor.keys() else ""
    known = {"seq", "class", "heads", "time", "mono", "event", "outcome", "actor", "prev", "hash"}
    rest = " ".join(f"{key}={value}" for key, value in record.items() if key not in known and value is not None)
    outcome = str(record.get("outcome"))
    color = {"ok": "green", "begun": None}.get(outcome, "yellow")
    return " ".join(
        part
        for part in (
            f"{record.get('seq'):>6}",
            str(record.get("time"))[:19] + "Z",
            f"{record.get('event')}",
            click.style(outcome, fg=color),
            who,
            rest,
        )
        if part
    )


def rotation_text(reply: dict[str, Any]) -> str:
    """What a rotation did."""
    version, before = reply["secret_version"], reply["before"]
    if version == before:
        # An agent of an older version ends there.
        return f"no new secret: this finished an earlier rotation, to version {version}, that was interrupted; run it again"
    text = f"secret version {version} is ACTIVE on both sides (before: {before})"
    if reply.get("finished"):
        text += f"; an earlier rotation, to version {reply['finished']}, had been interrupted and was finished first"
    return text


def outcome_of(reply: dict[str, Any]) -> str:
    """`intact`, `incomplete` or `tampered`; of an older agent's reply too."""
    return str(reply.get("outcome") or (INTACT if reply["ok"] else TAMPERED))


def verification_text(reply: dict[str, Any], where: str) -> str:
    """The result of a check of the audit log."""
    outcome, span = outcome_of(reply), f"{reply['first_seq']} to {reply['last_seq']}"
    if outcome == TAMPERED:
        text = click.style("TAMPERED", fg="red", bold=True) + f": {reply['problem']}"
    elif outcome == INCOMPLETE:
        text = (
            click.style("incomplete", fg="yellow", bold=True)
            + f": {where}, records {span} hold, but not everything was checked"
        )
    else:
        text = click.style("intact", fg="green") + f" from {span}{_end(reply)}: {where}"
    lines = [text]
    lines += [
        click.style(f"  not checked: {gap['what']}; needs {gap['needs']}", fg="yellow") for gap in reply.get("unchecked", [])
    ]
    lines += [f"  checked: {what}" for what in reply.get("checked", [])]
    if "outcome" not in reply:
        lines.append(click.style("NOTE: this agent is of an older version and does not say what it checked", fg="yellow"))
    if reply["resealed"]:
        places = ", ".join(map(str, reply["resealed"]))
        lines.append(
            click.style(f"NOTE: a new seal begins at record {places}; see the alert.audit_seal before it", fg="yellow")
        )
    return "\n".join(lines)


def _end(reply: dict[str, Any]) -> str:
    acknowledged, last = reply.get("acknowledged_through"), reply["last_seq"]
    if not reply.get("end_open"):
        return ""
    if acknowledged:
        after = "" if acknowledged == last else ", end open after that"
        return f", acknowledged by the server up to {acknowledged}{after}"
    return ", end open"


def policy_text(reply: dict[str, Any]) -> str:
    """Binding, PCRs and policies."""
    head = [
        ("binding", reply["binding"] + (f" (PCR {', '.join(map(str, reply['bound_pcrs']))})" if reply["bound_pcrs"] else "")),
        ("policy counter", f"{reply['policy_number']}: signed policies with a lower number are refused"),
        *((f"PCR {index}", value) for index, value in reply["pcrs"].items()),
    ]
    rows = [
        (
            policy["number"],
            ", ".join(policy["pcrs"]),
            yes_no(policy["fits"], bad=False),
            yes_no(policy["signed_by_our_key"], bad=False),
            yes_no(policy["revoked"], bad=True),
        )
        for policy in reply["policies"]
    ]
    text = tabulate(head, tablefmt="plain", disable_numparse=True)
    if rows:
        text += "\n\n" + tabulate(rows, headers=["number", "PCRs", "fits now", "signed by our key", "revoked"])
    return "\n".join([text, *(click.style(f"NOTE: {line}", fg="yellow") for line in reply["passed_over"])])
