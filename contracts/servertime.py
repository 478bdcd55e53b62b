"""The server's word on what time it is, in answer to an agent's challenge. Nothing here performs IO.

It is the way out for a machine whose floor of time is wrong: unlike all else that carries a time, it may lower the floor. The
challenge makes it good for one agent, once, and tells how old it can be at the most.
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
    """The signed time, seconds since 1970 UTC.

    Args:
        text: the statement.
        agent_id: whom it must be for.
        challenge: what it must answer.
        trust: whose signatures count.

    Raises:
        MalformedToken: it is not of our form, or answers another challenge.
        BadSignature: nobody whom we trust signed it.
        WrongAudience: it is for another agent.
    """
    content = verify_statement(text, TIME_TYPE, _MEMBERS, "server time", trust)
    if content["agent_id"] != agent_id:
        raise WrongAudience("the server time is for another agent")
    if content["challenge"] != challenge:
        raise MalformedToken("the server time answers another challenge: ask for a new one")
    return integer(content, "time", 1, MAX_TIME, "server time")
