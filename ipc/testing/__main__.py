"""Runs the fake for tests in other languages: `python -m license_agent_client.testing`.

It prints one JSON line, `socket` and `tokens` (one of each reason that is about one license). Then it reads acts from standard
input, one JSON object a line, `{"act": "token", "reason": "expired"}`, and answers each with a line: `{"result": …}` or
`{"error": text}`. It ends when standard input does.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from ..answers import Reason
from ..errors import ErrorCode
from .base import MACHINE_REASONS
from .fake import FakeLicenseAgent

ACTS: Mapping[str, frozenset[str]] = {
    "token": frozenset({"reason", "features", "metadata", "license_id", "begins_in", "expires_in"}),
    "issue": frozenset({"features", "metadata", "license_id", "begins_in", "expires_in"}),
    "deliver": frozenset({"features", "metadata", "license_id", "begins_in", "expires_in"}),
    "advance": frozenset({"seconds"}),
    "expire": frozenset({"token"}),
    "revoke": frozenset({"token"}),
    "suspend": frozenset({"token", "on"}),
    "rotate": frozenset(),
    "invalidate": frozenset({"version"}),
    "degrade": frozenset({"on"}),
    "cut_off": frozenset({"on"}),
    "suspect_clock": frozenset({"on"}),
    "refuse": frozenset({"code"}),
    "stop": frozenset(),
    "start": frozenset(),
    "reset": frozenset(),
}
"""Each act, as the method of `FakeLicenseAgent` of that name, with its arguments."""


def answer(agent: FakeLicenseAgent, line: str) -> dict[str, Any]:
    """Does what a line asks for."""
    try:
        asked = json.loads(line)
        act = asked.pop("act")
        if act not in ACTS:
            raise ValueError(f"there is no act {act!r}: known are {', '.join(ACTS)}")
        if unknown := sorted(asked.keys() - ACTS[act]):
            raise ValueError(f"{act} has no argument {unknown[0]!r}")
        if act == "refuse":
            asked["code"] = None if asked.get("code") is None else ErrorCode[asked["code"]]
        if "features" in asked:
            asked["features"] = tuple(asked["features"])
        return {"result": getattr(agent, act)(**asked)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {"error": str(error) or type(error).__name__}


def serve(acts: TextIO, answers: TextIO) -> None:
    """Runs a fake until the acts end."""
    with FakeLicenseAgent() as agent:
        tokens = {reason.value: agent.token(reason) for reason in Reason if reason not in MACHINE_REASONS}
        _print(answers, {"socket": agent.socket, "tokens": tokens})
        for line in acts:
            if line.strip():
                _print(answers, answer(agent, line))


def _print(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
