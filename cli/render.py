"""Turns the agent's replies into text for people. Nothing here performs IO."""

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import click
from tabulate import tabulate

from audittrail.report import INCOMPLETE, INTACT, TAMPERED

_QUOTED = re.compile(r"'[^']*'")
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


def terminal_columns() -> int | None:
    """How wide the terminal on standard output is; None where a pipe or a file takes the text."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(rows: Sequence[Sequence[object]], headers: Sequence[str], columns: int | None) -> str:
    """A table; where `columns` are too few for it, a block of lines for each row."""
    text = tabulate(rows, headers=headers)
    if columns is None or max(len(click.unstyle(line)) for line in text.splitlines()) <= columns:
        return text
    return "\n\n".join(tabulate(zip(headers, row, strict=True), tablefmt="plain", disable_numparse=True) for row in rows)


def hanging(text: str, indent: int, columns: int | None) -> str:
    """`text` in lines that fit into `columns` behind `indent` characters, the first line without its indent.

    What stands between quotes is a command to copy: it is never broken, so that one line of it holds the whole command.
    """
    if columns is None or columns - indent < 30:
        return text
    whole = _QUOTED.sub(lambda found: found.group().replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, columns - indent, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines).replace("\0", " ")


def secrets_text(reply: dict[str, Any], columns: int | None = None) -> str:
    """The reply to `secrets`, on a terminal of so many columns."""
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
    return table(rows, ("version", "state", "valid from", "valid until", "grace until", "invalidated"), columns)


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


def _named(value: Any) -> Any:
    """A certificate that was shown, by its holder's name; everything else as it is."""
    return value["name"] if isinstance(value, dict) and "name" in value else value


def record_text(record: dict[str, Any]) -> str:
    """One audit record as a line."""
    actor = record.get("actor") or {}
    who = f"uid={actor['uid']} pid={actor['pid']}" if {"uid", "pid"} <= actor.keys() else ""
    if "name" in actor:
        how = "break-glass" if actor.get("break_glass") else actor.get("role")
        who = f"{who} by={actor['name']} ({how})"
    known = {"seq", "class", "heads", "time", "mono", "event", "outcome", "actor", "prev", "hash"}
    rest = " ".join(f"{key}={_named(value)}" for key, value in record.items() if key not in known and value is not None)
    outcome = str(record.get("outcome"))
    color = {"ok": "green", "begun": None}.get(outcome, "yellow")
    return " ".join(
        part
        for part in (
            f"{record.get('seq'):>6}",
            str(record.get("time"))[:19] + "Z",
            f"{record.get('event')}",
            click.style(outcome, fg=color) if color else outcome,
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
