"""Turns the reply to `status` into text: in sections for people, and in one line for `status --watch`. Performs no IO."""

from typing import Any

import click
from tabulate import tabulate

from cli.render import in_words, utc, yes_no

Row = tuple[str, str]
_SEVERITY_COLORS = {"critical": "red", "high": "red", "medium": "yellow"}


def status_text(reply: dict[str, Any]) -> str:
    """The reply to `status`, section by section: what somebody must look at comes first."""
    if reply["mode"] == "unprovisioned":
        unprovisioned = "this device is not a license agent yet: 'license-agent-cli provision' makes it one"
        return f"{unprovisioned}\nconfinement: {_confinement(reply['confinement'])}"
    sections = [
        ("alerts", _alerts(reply)),
        ("licenses", _licenses(reply)),
        ("secrets", _secrets(reply)),
        ("TPM" if reply["backend"]["name"] == "tpm" else "backend", _backend(reply["backend"])),
        ("license server", _server(reply)),
        ("updates", _updates(reply.get("updates"))),
        ("agent", _agent(reply)),
    ]
    return "\n\n".join(_section(title, rows) for title, rows in sections if rows)


def server_text(server: dict[str, Any]) -> str:
    """What is known of the license server."""
    return str(tabulate(_server_rows(server), tablefmt="plain", disable_numparse=True))


def watch_line(reply: dict[str, Any]) -> str:
    """What of the state changes seldom and matters: for one line at each change."""
    if "mode" not in reply or reply["mode"] == "unprovisioned":
        return ""
    licenses, server = reply.get("licenses"), reply["server"]
    parts = [reply["mode"], f"secret {reply['secrets'].get('newest', '?')}", f"backend {reply['backend']['state']}"]
    if licenses is not None:
        parts.append(f"{licenses['valid']} of {licenses['held']} licenses valid")
    if server is not None and server["failures"]:
        parts.append("contacts fail")
    parts += [f"{alert['severity']} alert {alert['event']}" for alert in reply.get("alerts", ())]
    return ", ".join(parts)


def _section(title: str, rows: list[Row]) -> str:
    table = tabulate(rows, tablefmt="plain", disable_numparse=True)
    return "\n".join([click.style(title, bold=True), *(f"  {line}" for line in table.splitlines())])


def _alerts(reply: dict[str, Any]) -> list[Row]:
    now = reply["time"]
    return [
        (
            click.style(alert["severity"], fg=_SEVERITY_COLORS.get(alert["severity"])),
            f"{alert['title']}, since {utc(alert['since'])} ({_relative(alert['since'], now)})",
        )
        for alert in reply.get("alerts", ())
    ]


def _licenses(reply: dict[str, Any]) -> list[Row]:
    found, now = reply.get("licenses"), reply["time"]
    asked = ("validations", f"{reply['validations']}, of which {reply['validations_failed']} refused")
    if found is None:  # an agent of an older release
        return [asked]
    suspended = f", {found['suspended']} suspended" if found["suspended"] else ""
    rows = [("held", f"{found['held']}, of which {found['valid']} valid{suspended}")]
    if found["expiring"]:
        first = f"{utc(found['next_end'])} ({_relative(found['next_end'], now)})"
        rows.append(("expiring", click.style(f"{found['expiring']} within 14 days, the first at {first}", fg="yellow")))
    elif found["next_end"] is not None:
        rows.append(("next end", f"{utc(found['next_end'])} ({_relative(found['next_end'], now)})"))
    return [*rows, asked]


def _secrets(reply: dict[str, Any]) -> list[Row]:
    secrets, rotation = reply["secrets"], reply["rotation"]
    due = rotation["next_due"]
    newest = f"; the newest is version {secrets['newest']}" if secrets.get("newest") else ""
    return [
        ("versions", f"{secrets['active']} active, {secrets['grace']} in grace, {secrets['total']} in all{newest}"),
        ("last rotation", utc(rotation["last"])),
        ("next rotation due", "-" if due is None else f"{utc(due)} ({_relative(due, reply['time'])})"),
    ]


def _backend(backend: dict[str, Any]) -> list[Row]:
    rows = [
        ("backend", f"{backend['name']}: {backend['detail']}"),
        ("answers", yes_no(backend["available"], bad=False)),
        ("protects a stolen disk", yes_no(backend["protects_stolen_disk"], bad=False)),
        ("binding to boot state", backend["binding"]),
    ]
    if backend["name"] == "tpm":
        left, lockout, opened = (backend.get(name) for name in ("nv_budget_left", "lockout_counter", "hierarchies_open"))
        rows.append(("NV writes", f"{backend['nv_writes']}" + ("" if left is None else f", {left} left of today's budget")))
        if lockout:
            rows.append(("failed authorizations", click.style(f"{lockout} counted by the TPM", fg="yellow")))
        if opened:
            rows.append(("without a password", click.style(f"hierarchies {', '.join(opened)}", fg="yellow")))
    return rows


def _server(reply: dict[str, Any]) -> list[Row]:
    mode, since = reply["mode"], reply.get("degraded_since")
    server = reply["server"]
    text = mode if mode == "online" else click.style(mode, fg="red")
    if since is not None:
        text += f", since {utc(since)} ({_relative(since, reply['time'])})"
    if server is not None and server["held"]:
        text += ", switched on by an administrator"
    rows = [("mode", text)]
    return rows if server is None else [*rows, *_server_rows(server)]


def _server_rows(server: dict[str, Any]) -> list[Row]:
    return [
        ("server", f"{server['url']}, serial {server['serial']} ({server['attestation']})"),
        ("last contact", utc(server["last_contact"])),
        ("contacts failed in a row", str(server["failures"]) + (f": {server['problem']}" if server["problem"] else "")),
        ("next contact in", "held back" if server["held"] else in_words(server["next_contact_s"])),
        ("rotation", server["rotation"]),
        ("revocation list", _revocations(server)),
        ("key set", f"number {server['key_set']}, until {utc(server['key_set_expires'])}"),
        ("TLS certificate until", utc(server["certificate_ends"])),
        ("licenses by contact", _by_contact(server)),
        # An agent of release 0.1.0 does not say.
        ("capabilities of both", ", ".join(server.get("capabilities", ())) or "those of release 0.1.0"),
    ]


def _by_contact(server: dict[str, Any]) -> str:
    if not server.get("license_number"):
        return "none yet"
    held, suspended, removed = (server[f"licenses_{name}"] for name in ("held", "suspended", "removed"))
    return f"{held} held, {suspended} suspended, {removed} taken away"


def _revocations(server: dict[str, Any]) -> str:
    if server["revocations_until"] is None:
        return "none yet"
    stale = click.style(", STALE", fg="red") if server["revocations_stale"] else ""
    return f"number {server['revocations']}, {server['revoked']} revoked, until {utc(server['revocations_until'])}{stale}"


def _updates(found: dict[str, Any] | None) -> list[Row]:
    """Where updates are; nothing where they are not enabled, or the agent is older."""
    if found is None:
        return []
    state, update, failure = found["state"], found["update"], found["failure"]
    rows = [("state", click.style(state.upper(), fg="red") if state == "locked" else state)]
    for each in found["running"]:
        trial = ", on trial" if each["in_trial"] else ""
        known = f"{each['version'] or 'none'} (build {each['build_id'] or '-'}){trial}"
        problem = each.get("problem")
        rows.append((each["product"], click.style(problem, fg="yellow") if problem else known))
    if update is not None:
        rows.append(("update", f"{update['product']} {update['version']} (build {update['build_id']})"))
    if found["waits"] is not None:
        until = "" if found["waits"]["until"] is None else f", until {utc(found['waits']['until'])}"
        rows.append(("waits", found["waits"]["text"] + until))
    rows += [(name, click.style(found[name], fg="yellow")) for name in ("paused", "problem") if found[name]]
    if found.get("action"):
        rows.append(("do", found["action"]))
    if found["attempts"]:
        why = "" if failure is None else f": {failure['text']}"
        rows.append(("failed attempts", click.style(f"{found['attempts']} in a row{why}", fg="yellow")))
    if found["rehearsal_overdue"]:
        rows.append(("rehearsal", click.style("OVERDUE", fg="yellow")))
    return rows


def _agent(reply: dict[str, Any]) -> list[Row]:
    return [
        ("agent", f"{reply['agent_id']}, version {reply['agent_version']}, up {in_words(reply['uptime_s'])}"),
        ("clock suspect", yes_no(reply["clock_suspect"], bad=True)),
        *_server_time(reply.get("server_time")),
        ("unauthorized callers", str(reply["unauthorized"])),
        ("audit log", f"{reply['audit']['seq']} records" + (", CANNOT BE WRITTEN" if reply["audit"]["failing"] else "")),
        *_backup(reply.get("backup"), reply["time"]),
        *_authentication(reply.get("authentication")),
        ("confinement", _confinement(reply["confinement"])),
    ]


def _backup(found: dict[str, Any] | None, now: int) -> list[Row]:
    """The last good backup, where a timer makes them."""
    if found is None:
        return []
    last = found["last_good"]
    text = "none yet" if last is None else f"{utc(last)} ({_relative(last, now)})"
    late = click.style(", OVERDUE", fg="red") if found["overdue"] else ""
    return [("last good backup", text + late), *([("", found["problem"])] if found["problem"] else [])]


def _server_time(found: dict[str, Any] | None) -> list[Row]:
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
