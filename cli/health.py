"""Turns the agent's judgment of itself into one line and into an exit status. Performs no IO."""

from typing import Any

import click

from ipc.errors import ErrorCode
from ipc.posclient.policy import AgentRefused

EXIT_FINE, EXIT_ATTENTION, EXIT_NOT_WORKING, EXIT_NO_ANSWER = 0, 1, 2, 3
"""The statuses that plugins of Nagios and Icinga have: OK, WARNING, CRITICAL, UNKNOWN."""
FINE, ATTENTION, NOT_WORKING = "fine", "needs_attention", "not_working"
_STATUS = {FINE: EXIT_FINE, ATTENTION: EXIT_ATTENTION, NOT_WORKING: EXIT_NOT_WORKING}
_COLORS = {FINE: "green", ATTENTION: "yellow", NOT_WORKING: "red"}
_CANNOT_WORK = frozenset({ErrorCode.AGENT_MISCONFIGURED, ErrorCode.UNAVAILABLE})

Health = dict[str, Any]
"""`verdict` and `findings`, as the agent's reply to `status` holds them."""


def _single(verdict: str, code: str, text: str, action: str) -> Health:
    return {"verdict": verdict, "findings": [{"code": code, "verdict": verdict, "text": text, "action": action}]}


def health_of(reply: dict[str, Any]) -> Health:
    """The agent's judgment in its reply to `status`; an agent of release 0.1.0 gives none."""
    found = reply.get("health")
    if isinstance(found, dict):
        return found
    text = "the running agent is an older release, which does not judge itself"
    return _single(ATTENTION, "older_agent", text, "Run 'systemctl restart license-agent'.")


def of_verdict(reply: dict[str, Any]) -> Health:
    """The agent's judgment in its reply to `health`: the verdict alone, without its reasons."""
    verdict = str(reply["verdict"])
    if verdict == FINE:
        return {"verdict": FINE, "findings": []}
    text = "the agent gives its reasons only to root and to administrators with a certificate"
    return _single(verdict, "not_told", text, "Run 'license-agent-cli --auth-cert FILE status'.")


def of_refusal(error: AgentRefused) -> Health | None:
    """What an error reply says of the agent's health; None if it says nothing of it."""
    if error.code not in _CANNOT_WORK:
        return None
    return _single(NOT_WORKING, error.code.name.lower(), str(error).partition(": ")[2], "")


def of_silence(error: Exception) -> Health:
    """What it means that nobody answers."""
    text = str(error)
    action = "" if "systemctl" in text else "Run 'systemctl status license-agent'."
    return _single(NOT_WORKING, "no_answer", text, action)


def exit_status(health: Health) -> int:
    """The exit status; a verdict that this release does not know is not fine."""
    if [finding["code"] for finding in health["findings"]] == ["no_answer"]:
        return EXIT_NO_ANSWER
    return _STATUS.get(health["verdict"], EXIT_ATTENTION)


def _sentence(finding: dict[str, str]) -> str:
    text = finding["text"].rstrip(".")
    return f"{text}. {finding['action']}" if finding["action"] else text


def line(health: Health) -> str:
    """The verdict, why, and what to do: one line."""
    verdict, found = health["verdict"], health["findings"]
    words = click.style(verdict.replace("_", " "), fg=_COLORS.get(verdict), bold=True)
    if not found:
        return f"{words}: the agent validates licenses"
    more = f" ({len(found) - 1} more: license-agent-cli status)" if len(found) > 1 else ""
    return f"{words}: {_sentence(found[0])}{more}"


def lines(health: Health) -> str:
    """As `line`, and a line for each further finding."""
    found = health["findings"]
    first = line({**health, "findings": found[:1]})
    return "\n".join([first, *(f"  also: {_sentence(finding)}" for finding in found[1:])])
