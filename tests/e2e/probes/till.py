"""A POS application in the guest: validates a token once, or again and again until a file appears; prints JSON."""

import json
import os
import sys
import time
from pathlib import Path

from license_agent_client import LicenseAgentError, LicenseClient

DEADLINE_S = 120.0
"""The library's own default is 2 s; under emulation the agent takes tens of seconds to start."""
PAUSE_S = 0.1
"""Between two validations, unless a third argument says otherwise."""


def once(client, token):
    try:
        verdict = client.validate(token)
    except LicenseAgentError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"valid": verdict.valid, "reason": str(verdict.reason), "degraded": verdict.degraded}


def main():
    token = Path(sys.argv[1]).read_text().strip()
    until = sys.argv[2] if len(sys.argv) > 2 else None
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else PAUSE_S
    with LicenseClient(deadline=DEADLINE_S if until else 20.0) as client:
        if until is None:
            print(json.dumps(once(client, token)))
            return
        told, slowest, failures = 0, 0.0, []
        while not os.path.exists(until):
            began = time.monotonic()
            answer = once(client, token)
            slowest = max(slowest, time.monotonic() - began)
            told += 1
            if answer.get("valid") is not True:
                failures.append(answer)
            time.sleep(pause)
        print(
            json.dumps({"validations": told, "failures": failures[:5], "failed": len(failures), "slowest": round(slowest, 2)})
        )


main()
