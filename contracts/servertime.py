"""Verifies the server's signed time, an answer to an agent's challenge. Pure.

It repairs a machine whose time floor is wrong: unlike everything else with a time, it may lower the floor. The challenge makes
it valid for one agent, once, and bounds its age.
"""

import re

from .claims import MAX_TIME
from .jose import MalformedToken
from .licensetoken import WrongAudience
from .statement import integer, verify_statement
from .trust import Trust

TIME_TYPE = "server-time+jwt"
CHALLENGE = re.compile(r"[0-9a-f]{32}")
"""Form of a challenge: 16 random bytes in hex."""

_MEMBERS = frozenset({"agent_id", "challenge", "time"})


def verify_server_time(text: str, agent_id: str, challenge: str, trust: Trust) -> int:
    """Verifies a signed time and returns it, in seconds since 1970 UTC.

    Args:
        text: the signed statement.
        agent_id: the agent that it must be for.
        challenge: the challenge that it must answer.
        trust: the keys that may sign.

    Raises:
        MalformedToken: the statement has another form, or answers another challenge.
        BadSignature: no key that the agent trusts signed it.
        WrongAudience: it is for another agent.
    """
    content = verify_statement(text, TIME_TYPE, _MEMBERS, "server time", trust)
    if content["agent_id"] != agent_id:
        raise WrongAudience("the server time is for another agent")
    if content["challenge"] != challenge:
        raise MalformedToken("the server time answers another challenge; make a new one")
    return integer(content, "time", 1, MAX_TIME, "server time")
