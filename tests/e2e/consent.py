"""A POS application in the booted guest says when its update may begin: by the client's command, as the till's user."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.e2e.updates import Till

CONFIG = "/etc/license-agent/config.toml"
COMMAND = "cd / && PYTHONPATH=/payload/client python3 -B -m license_agent_client --deadline 60 consent"
REFUSED = 4
"""The command's exit status where the agent refuses."""


def answers(till: "Till", version: str) -> None:
    """An update waits while the till is in use and while it says that it is busy; it begins once the till is ready."""
    _ask(till, "ask")
    try:
        _answered(till, version)
    finally:
        _ask(till, "none")


def _answered(till: "Till", version: str) -> None:
    before = till.runs()

    def says(answer: str) -> dict[str, Any]:
        return dict(json.loads(till.out(f"{COMMAND} {answer}", user="till")))

    def waits_because(text: str) -> bool:
        return text in (till.status()["waits"] or {}).get("text", "")

    till.same("no update waits for the shop", False, says("")["pending"])
    till.scenario.till_is_served("before an update that asks it")
    with till.ending():
        till.order(version)
        till.ask_server()
        till.until("a till that sells is not disturbed", lambda: waits_because("the till is in use"))
        told = says("busy --minutes 30")
        till.same("the POS learns what waits", (True, "pos", version), (told["pending"], told["product"], told["version"]))
        till.until("it is busy, and the update waits", lambda: waits_because("the POS application is busy"))
        refused = till.sh(f"{COMMAND} ready", user="stranger", check=False)
        till.same("a stranger has no say", REFUSED, refused.status)
        till.same("nothing was switched", before, till.runs())
        says("ready")
    till.same("once it is ready, the update is installed", ("installed", version), (till.newest()["outcome"], till.runs()))
    said = till.sh("grep -c '\"ota.consent\"' /var/log/license-agent/audit.log", check=False).stdout.strip()
    till.check("the audit log has its answers", int(said or 0) >= 2, said)


def _ask(till: "Till", mode: str) -> None:
    till.sh(f"sed -i 's/^consent = .*/consent = \"{mode}\"/' {CONFIG} && systemctl reload license-agent")
