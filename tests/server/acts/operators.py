"""Accounts and callers for the tests of acts."""

from typing import Any

from server.accounts import accounts
from server.accounts.roles import Role
from server.acts.caller import Caller
from server.acts.catalog import BY_NAME
from server.acts.runner import Runner
from server.registry.models.operators import AccountCertificate
from tests.server.devices import NOW
from tests.support.serverside import ServerSide


def account(server: ServerSide, name: str, role: Role, kind: str = "person", by: str = "local", now: int = NOW) -> Caller:
    """A new account, as the caller that has signed in with a certificate or a token of all scopes."""
    with server.database.write() as session:
        accounts.create(session, name, kind, role, by, now)
        if kind == "person":
            credential = {"fingerprint": f"credential of {name}", "number": name, "state": "active"}
            session.add(AccountCertificate(account=name, issued_at=now, not_after=NOW + 400 * 86_400, **credential))
    via = "certificate" if kind == "person" else "token"
    return Caller(name, kind, role, None, via, f"credential of {name}")


class Desk:
    """Performs acts by name, each at a time when its refusal is recorded.

    Args:
        server: an open one.
    """

    def __init__(self, server: ServerSide) -> None:
        self.server = server
        self.moment = 0.0
        self.runner = Runner(server.server, self._steady)

    def _steady(self) -> float:
        self.moment += 3600
        return self.moment

    def do(self, act_name: str, caller: Caller, now: int = NOW, /, reason: str = "", **named: Any) -> Any:
        """Performs an act; what is not an argument of `Runner.perform` belongs to its body."""
        act = BY_NAME[act_name]
        options = {key: named.pop(key) for key in ("idempotency_key", "if_match", "approval") if key in named}
        return self.runner.perform(act, caller, act.body(**named), now, reason, **options)
