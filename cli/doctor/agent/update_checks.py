"""Checks updates: the files by which root allows them, and whether one waits for somebody to look into it."""

import json
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cli.doctor.machine import CannotTell, Machine
from cli.doctor.verdict import Check, Judgment, fail, note, warn
from common.text import quantity

WARN_S = 30 * 86_400
"""How long before its end metadata is worth a warning, seconds."""
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
        root_ends: when the root metadata in update-trust.json ends, seconds since 1970 UTC; None where it has no such time.
        signed_until: when the first role ends of the metadata that the agent has verified, which may have a later root; 0
            before that.
        now: seconds since 1970 UTC.
    """

    switch: bool | None
    trust: bool
    problems: tuple[tuple[str, str], ...] = ()
    trusted_agent: str = ""
    agent: str = ""
    upstream: bool = True
    products: int = 0
    root_ends: int | None = None
    signed_until: int = 0
    now: float = 0


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
    agent_id, root_ends = "", None
    try:
        content = json.loads(machine.text(trust))
        agent_id = content["agent_id"] if isinstance(content["agent_id"], str) else ""
    except (ValueError, KeyError, TypeError):
        problems.append((f"{trust} is no trust file", "write it again as the vendor gave it"))
    else:
        try:
            root_ends = int(datetime.fromisoformat(content["tuf_root"]["signed"]["expires"]).timestamp())
        except (ValueError, KeyError, TypeError, OverflowError):
            problems.append((f"{trust} has no root metadata with an end", "write it again as the vendor gave it"))
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
        root_ends,
        ((status.get("updates") or {}).get("signed") or {}).get("until") or 0,
        machine.now,
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
    # A root that the repository has since is in what the agent has verified: then this one need not last.
    if found.root_ends is not None and found.root_ends - found.now <= WARN_S and found.signed_until <= found.root_ends:
        when = "ended" if found.root_ends <= found.now else "ends"
        judged.append(
            warn(
                f"the root metadata in {TRUST} {when} on {_day(found.root_ends)}: without a later root in the repository every "
                "update is refused from then on",
                "ask the operator of the update repository for a root that was signed again: 'license-server ota expiry' there",
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


def _day(time: int) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}"


def _waiting(machine: Machine) -> tuple[dict[str, Any] | None, float]:
    return machine.told("updates"), machine.now


def _judge_waiting(looked: tuple[dict[str, Any] | None, float]) -> Judgment:
    found, now = looked
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
    signed = found.get("signed")
    if signed is not None and signed["until"] - now <= WARN_S:
        when = "ended" if signed["until"] <= now else "ends"
        judged.append(
            warn(
                f"the {signed['role']} metadata of the update repository {when} on {_day(signed['until'])}, as it was read "
                "last: no update is installed after that",
                "ask its operator whether it was signed again: 'license-server ota expiry' there",
            )
        )
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
