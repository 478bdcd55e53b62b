"""Puts the agent's reply to `license_explain` into sentences: each check, what decided, and what to do next. Performs no IO."""

from typing import Any

import click
from tabulate import tabulate

from .moments import moment, when
from .remedies import next_step

Reply = dict[str, Any]

_TITLES = ("form", "machine", "secret", "secret's state", "signature", "revocation", "beginning", "end", "revocation list")
"""What each check looks at, in the agent's order."""
_WORDS = {"passed": "passed", "failed": "FAILED", "unknown": "not made"}
_COLORS = {"passed": "green", "failed": "red"}


def explained(reply: Reply, asked: str) -> Reply:
    """The reply with its sentences: `valid`, `summary`, `next`, `notes`, and `text` of each check.

    Args:
        reply: to `license_explain`.
        asked: how to ask again: the words after 'license-agent-cli why'.
    """
    checks = [{**check, "text": _check_text(check, reply)} for check in reply["checks"]]
    return {
        "valid": reply["reason"] == "ok",
        "reason": reply["reason"],
        "summary": _summary(reply),
        "next": next_step(reply, asked).view(),
        "notes": _notes(reply),
        **reply,
        "checks": checks,
    }


def explanation_text(found: Reply) -> str:
    """What `explained` returns, as text."""
    verdict = click.style("valid", fg="green", bold=True) if found["valid"] else click.style("not valid", fg="red", bold=True)
    step = found["next"]
    lines = [f"{verdict} ({found['reason']}): {found['summary']}", f"next: {step['text']}"]
    lines += [f"    here:               {command}" for command in step["here"]]
    lines += [f"    license server:     {command}" for command in step["server"]]
    rows = []
    for check in found["checks"]:
        word = _WORDS.get(check["result"], check["result"])
        if check["number"] == found["check"]:
            word += ", decides"
        title = _TITLES[check["number"] - 1] if check["number"] <= len(_TITLES) else check["name"]
        rows.append((str(check["number"]), title, click.style(word, fg=_COLORS.get(check["result"])), check["text"]))
    lines += ["", tabulate(rows, tablefmt="plain", disable_numparse=True), *([""] if found["notes"] else [])]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


# What decided


def _name(reply: Reply) -> str:
    return "the license" if reply["license"] is None else f"license {reply['license']}"


def _summary(reply: Reply) -> str:
    name, now, secret = _name(reply), reply["time"], reply["secret"] or {}
    version, until = secret.get("version"), reply["revocations"]["until"]
    match reply["reason"]:
        case "ok":
            return f"{name} may be used until {when(_ends(reply), now)}."
        case "malformed" if reply["check"] == 1:
            return "the text is not a complete license token."
        case "malformed":
            return "the token is genuine, but its content has a form that this release does not know."
        case "wrong_audience":
            return f"the token is for machine {reply['audience']}; this is {reply['agent_id']}."
        case "unknown_secret" if version is not None and version > secret["newest"]:
            return f"the token needs secret version {version}, and this machine has only got as far as {secret['newest']}."
        case "unknown_secret":
            return f"the token needs secret version {version}, which this machine does not have any more."
        case "secret_invalidated" if secret.get("invalidated_at") is not None:
            return f"secret version {version} was invalidated on {when(secret['invalidated_at'], now)}."
        case "secret_invalidated":
            return f"secret version {version} was replaced, and its grace ended{_on(secret.get('grace_until'), now)}."
        case "degraded_expired":
            return f"grace of the newest secret ended{_on(secret.get('grace_until'), now)}, and no new one has come."
        case "bad_signature":
            return "the token was changed, or another server made it."
        case "revoked":
            return f"{name} {_refused(reply)}."
        case "not_yet_valid":
            return f"{name} begins on {when(reply['begins_at'], now)}."
        case "expired":
            return f"{name} ended on {when(reply['expires_at'], now)}."
        case "revocations_stale":
            return f"the revocation list is out of date since {when(until, now)}, and the configuration refuses licenses then."
        case "no_seat":
            return f"{name} is a floating license, and this machine has no seat of it."
        case "no_license":
            return f"{name} was used on this machine, but the agent keeps no token of it."
        case other:
            return f"the agent says {other}, which this release does not know."


def _on(seconds: int | None, now: int) -> str:
    return "" if seconds is None else f" on {when(seconds, now)}"


def _ends(reply: Reply) -> int:
    """When a valid token stops being so, as far as is known."""
    ends = [reply["expires_at"]]
    if reply["secret"] and reply["secret"]["grace_until"] is not None:
        ends.append(reply["secret"]["grace_until"])
    return int(min(ends))


def _refused(reply: Reply) -> str:
    if reply["revoked"]:
        return "is on the server's revocation list"
    return {
        "suspended": "is suspended by the license server",
        "removed": "does not belong to this machine any more",
        "given_back": "is a seat that this machine has given back",
    }.get(reply["withheld"], "is revoked")


# Each check


def _check_text(check: Reply, reply: Reply) -> str:
    passed = check["result"] == "passed"
    if check["result"] == "unknown":
        return "there is no token here" if reply["token"] is None else "an earlier check has failed"
    now, secret, lists = reply["time"], reply["secret"] or {}, reply["revocations"]
    match check["number"]:
        case 1:
            return "it is a complete license token" if passed else "it is not a complete license token"
        case 2:
            return f"it names machine {reply['audience']}" + ("" if passed else f"; this is {reply['agent_id']}")
        case 3:
            here = f"the newest here is {secret['newest']}" if secret["newest"] else "there is no secret here yet"
            return f"it needs secret version {secret['version']}" + ("" if passed else f", which is not here; {here}")
        case 4:
            ended = secret["invalidated_at"] if secret["invalidated_at"] is not None else secret["grace_until"]
            until = f"licenses under it count until {when(secret['grace_until'], now)}"
            return f"version {secret['version']} is {secret['state']}" + (
                f"; {until}" if passed else f" since {when(ended, now)}"
            )
        case 5:
            return (
                "the secret decrypts it, and the license server signed it"
                if passed
                else "the secret does not decrypt it, the license server did not sign it, or its content does not fit"
            )
        case 6:
            return "neither revoked, suspended nor taken from this machine" if passed else f"it {_refused(reply)}"
        case 7:
            begins = when(reply["begins_at"], now)
            return f"it began on {begins}" if reply["begins_at"] <= now else f"it begins on {begins}"
        case 8:
            ends = when(reply["expires_at"], now)
            return f"it ends on {ends}" if passed else f"it ended on {ends}"
        case 9:
            return _list_text(lists, now)
    return ""


def _list_text(lists: Reply, now: int) -> str:
    if lists["until"] is None:
        return "there is no revocation list yet"
    if not lists["stale"]:
        return f"list {lists['number']} is up to date until {when(lists['until'], now)}"
    refused = "the configuration refuses licenses then" if lists["refuses"] else "the configuration allows that"
    return f"list {lists['number']} is out of date since {when(lists['until'], now)}; {refused}"


def _notes(reply: Reply) -> list[str]:
    """What else has to do with it."""
    now, clock, server = reply["time"], reply["clock"], reply["server"]
    also = [check["number"] for check in reply["checks"] if check["result"] == "failed" and check["number"] != reply["check"]]
    notes = []
    if also:
        what = ", ".join(_TITLES[number - 1] for number in also if number <= len(_TITLES))
        notes.append(f"this alone would refuse it too: {what}")
    if reply["newest"] is not None:
        newest = reply["newest"]
        notes.append(f"the agent has a newer token of it, under secret version {newest['secret_version']}: {newest['reason']}")
    if reply["seat"] is not None and reply["seat"]["seat"] is not None:
        seat = reply["seat"]
        renewed, ends = moment(seat["renewed_from"]), when(seat["ends"], now)
        notes.append(f"it is a seat of floating license {seat['floating']}: renewed from {renewed}, ends on {ends}")
    if clock["suspect"]:
        machine = moment(clock["machine"])
        notes.append(f"the machine's clock says {machine}; the agent does not trust it and goes by {moment(now)}")
    if clock["server_time"] is not None:
        notes.append(f"the server's time is {clock['server_time']['standing']}: {clock['server_time']['text']}")
    if reply["mode"] != "online":
        notes.append(f"the agent is {reply['mode']}: it works without its server")
    if server is None:
        notes.append("this agent has no server: secrets and licenses are carried to it by hand")
    elif server["refused"]:
        notes.append(f"the license server refuses this agent: {server['refused']}")
    elif server["failures"]:
        notes.append(f"the last {server['failures']} contacts with the license server failed: {server['problem']}")
    return notes
