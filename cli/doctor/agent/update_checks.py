"""Checks updates: the files by which root allows them, and whether one waits for somebody to look into it."""

import json
import tomllib
from dataclasses import dataclass
from typing import Any

from cli.doctor.machine import CannotTell, Machine
from cli.doctor.verdict import Check, Judgment, fail, note, warn
from common.text import quantity

TRUST, PRODUCTS = "update-trust.json", "installer.toml"


@dataclass(frozen=True, slots=True)
class Allowed:
    """By which files this machine installs updates.

    Attributes:
        switch: `[updates] enabled` of the configuration; None where it is not set.
        trust: whether there is an update-trust.json.
        problems: why a file cannot be what it should be, each with what to do.
        trusted_agent: the agent that update-trust.json is for; empty where that cannot be read.
        agent: this one; empty where it does not say.
        upstream: whether the link knows the update repository.
        products: in installer.toml.
    """

    switch: bool | None
    trust: bool
    problems: tuple[tuple[str, str], ...] = ()
    trusted_agent: str = ""
    agent: str = ""
    upstream: bool = True
    products: int = 0


def _allowed(machine: Machine) -> Allowed:
    at = machine.layout
    trust, products = at.config.with_name(TRUST), at.config.with_name(PRODUCTS)
    try:
        updates = tomllib.loads(machine.text_or(at.config)).get("updates")
    except tomllib.TOMLDecodeError:
        raise CannotTell("the configuration cannot be read; see config.agent") from None
    switch = updates.get("enabled") if isinstance(updates, dict) else None
    switch = switch if isinstance(switch, bool) else None
    if machine.stat(trust) is None:
        return Allowed(switch, trust=False)
    problems: list[tuple[str, str]] = []
    agent_id = ""
    try:
        content = json.loads(machine.text(trust))
        agent_id = content["agent_id"] if isinstance(content["agent_id"], str) else ""
    except (ValueError, KeyError, TypeError):
        problems.append((f"{trust} is no trust file", "write it again as the vendor gave it"))
    count = 0
    try:
        found = tomllib.loads(machine.text_or(products)).get("product")
        count = len(found) if isinstance(found, dict) else 0
    except tomllib.TOMLDecodeError as error:
        problems.append((f"{products} is not TOML: {error}", f"correct {products}"))
    try:
        upstreams = tomllib.loads(machine.text_or(at.link)).get("upstream")
    except tomllib.TOMLDecodeError:
        raise CannotTell("link.toml cannot be read; see config.link") from None
    try:
        status = machine.status
    except CannotTell:
        status = {}
    return Allowed(
        switch,
        True,
        tuple(problems),
        agent_id,
        str(status.get("agent_id") or ""),
        isinstance(upstreams, dict) and "ota" in upstreams,
        count,
    )


def _judge_allowed(found: Allowed) -> Judgment:
    if not found.trust and found.switch:
        return [fail(f"[updates] enabled is true, and there is no {TRUST}", f"put it there as the vendor gave it: {TRUST}")]
    if not found.trust:
        return [note(f"updates are not enabled on this machine: there is no {TRUST}")]
    judged: Judgment = [fail(cause, fix) for cause, fix in found.problems]
    if found.trusted_agent and found.agent and found.trusted_agent != found.agent:
        judged.append(
            fail(
                f"{TRUST} is for the agent {found.trusted_agent}, and this is {found.agent}: every update is refused",
                "get the file for this agent from the vendor",
            )
        )
    if found.switch is False:
        return [*judged, note("updates are switched off: [updates] enabled is false")]
    if not found.upstream:
        judged.append(
            warn(
                "link.toml has no [upstream.ota]: no update can be downloaded",
                "add it; 'The link: link.toml' in the reference has its keys",
            )
        )
    return judged or [note(f"{PRODUCTS} names {quantity(found.products, 'product')}")]


def _waiting(machine: Machine) -> dict[str, Any] | None:
    found: dict[str, Any] | None = machine.told("updates")
    return found


def _judge_waiting(found: dict[str, Any] | None) -> Judgment:
    if found is None:
        return [note("updates are not enabled on this machine")]
    judged: Judgment = []
    failure = found["failure"]
    why = "" if failure is None else f": {failure['text']}"
    if found["state"] == "locked":
        fix = "license-agent-cli ota history; then: license-agent-cli ota unlock --why TEXT"
        judged.append(fail(f"updates are locked after {found['attempts']} failed attempts{why}", fix))
    elif found["attempts"]:
        count = quantity(found["attempts"], "attempt")
        judged.append(warn(f"{count} to install an update failed in a row{why}", "license-agent-cli ota history"))
    if found["problem"]:
        action = found.get("action") or "license-agent-cli ota status"
        judged.append(warn(f"the update cannot go on: {found['problem']}", action))
    if found["paused"]:
        judged.append(warn(f"no update begins: {found['paused']}", "license-agent-cli ota pause --end"))
    if found["rehearsal_overdue"]:
        judged.append(warn("this test bench has not rehearsed an update for a quarter", "license-agent-cli ota rehearse"))
    return judged


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "updates.allowed",
        "The files by which root allows updates fit this machine",
        "`update-trust.json`, `installer.toml`, link.toml, `[updates]` of the configuration, the agent's `status`",
        _allowed,
        _judge_allowed,
    ),
    Check("updates.state", "No update waits for somebody to look into it", "the agent's `status`", _waiting, _judge_waiting),
)
