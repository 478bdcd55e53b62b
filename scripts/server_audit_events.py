"""Finds every event of the license server's audit log in the code: who writes it, its outcomes, and the fields it may have.

`scripts/docs-tables` makes docs/server-audit-events.md from it. Where the code computes an event or an outcome, or passes on
fields, the tables here say what that can be; a call that none of them explains is an error, so that no event is missing from
the page. The tests of the server compare each record that they write with it (tests/server/conftest.py).
"""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from contracts.exchange import RefusalCode
from server.agents.removal import Removed
from server.licensing.states.license_states import Event
from server.ota.directive_states import State
from server.ota.reports import _TOLD
from server.registry import audit
from server.registry.agentcounts import STATUSES
from server.registry.upkeep.retention import Retention

ROOT = Path(__file__).resolve().parents[1]

OPERATOR = ("account", "approval", "break_glass", "credential", "login_user", "os_user", "sudo_user", "via", "why")
"""Fields of every record of the actor `admin`: who that was, and why."""


def _update(state: State) -> str:
    """What becomes of an update, as events name it."""
    return f"update_{state.value.replace('-', '_')}"


DEVICE_LABELS = ("attributes_set", "attributes_unset", "tagged", "untagged")

COMPUTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("acts/approvals.py", "outcome"): ("ok", "refused"),
    ("acts/runner.py", "**fields"): ("act", "via", "text"),
    ("acts/runner.py", "actor"): ("account", "address"),
    ("agents/enrollment_tokens.py", "actor"): ("address",),
    ("agents/enrollment_tokens.py", "event"): ("provision.begin", "provision.complete"),
    ("agents/enrollment_tokens.py", "refused.code.value"): tuple(code.value for code in RefusalCode),
    ("agents/enrollment_tokens.py", "**fields"): ("hardware", "agent", "unrecorded"),
    ("agents/registry.py", "status"): STATUSES,
    ("agents/removal.py", "actor"): ("admin", "server"),
    ("agents/removal.py", "**was"): ("serial", "hw_id", "identity", "revoked_at", "retired_at"),
    ("agents/removal.py", "**asdict(removed)"): tuple(Removed.__dataclass_fields__),
    ("agents/retirement.py", "RETIRED"): ("retired",),
    ("fleet/fleets/fleets.py", "event"): ("fleet.members_added", "fleet.members_removed"),
    ("fleet/devices/labels.py", "event"): tuple(f"device.{name}" for name in DEVICE_LABELS),
    ("fleet/configuration/contact.py", "state.value"): ("limited", "refused"),
    ("keys/lifecycle.py", "actor"): ("admin", "server"),
    ("keys/succession.py", "actor"): ("admin", "server"),
    ("keys/succession.py", "event"): ("keys.rotated", "keys.reverted"),
    ("licensing/secrets/demand.py", "outcome"): ("begun", "resumed"),
    ("licensing/licenses/leases.py", "event"): ("seat.taken", "seat.released", "seat.refused", "seat.over_use"),
    ("licensing/licenses/leases.py", "outcome"): (),
    ("licensing/licenses/leases.py", "**ids"): ("seat", "license", "agent"),
    ("licensing/licenses/licenses.py", "**ids"): ("policy", "customer", "site"),
    ("licensing/licenses/lifecycle.py", "event"): ("license.assigned", "license.transferred"),
    ("licensing/licenses/lifecycle.py", "event of a change"): ("license.extended", "license.renewed"),
    ("licensing/sales/seats.py", "**ids"): ("site", "was"),
    ("notify/webhooks.py", "actor"): ("admin", "server"),
    ("notify/webhooks.py", "f'webhook.{row.state}'"): ("webhook.active", "webhook.paused"),
    ("notify/webhooks.py", "outcome"): ("ok", "alert"),
    ("ota/reports.py", "_TOLD[after]"): (),
    ("ota/reports.py", "f'agent.{name}'"): tuple(f"agent.{_update(state)}" for state in _TOLD),
    ("ota/publishing.py", "**shown"): ("documents", "added", "moved", "withdrawn"),
    ("registry/upkeep/retention.py", "**changes"): tuple(Retention.__dataclass_fields__),
    ("wiring.py", "**fields"): ("made_at", "sha256"),
}
"""What an expression can be, by the file below server/ and the expression.

Fields in a dict that the function itself makes need no row.
"""

BY_EVENT: dict[str, tuple[str, ...]] = {
    **{f"agent.{_update(state)}": (outcome,) for state, outcome in _TOLD.items()},
    "seat.over_use": ("soft", "fewer_seats", "unknown_seat"),
    "seat.refused": ("no_seat", "too_often"),
    "seat.released": ("ok",),
    "seat.taken": ("ok",),
    "webhook.active": ("ok",),
}
"""Outcomes where one expression has those of several events."""

BY_ADMIN_ALONE = frozenset({"webhook.active"})
"""Events that one expression shares with others that the server itself writes too."""

MEANINGS: dict[str, str] = {
    "account.certificate": "a client certificate was issued for an account, or revoked",
    "account.changed": "role, state or emergency access of an account was changed",
    "account.made": "an account was made",
    "account.subject": "an account was tied to a subject of the OpenID provider, or untied",
    "act.local": "a change was made on the server's machine with `--local`, past the accounts",
    "act.performed": "an act was performed with a break-glass session",
    "act.refused": "somebody who did not sign in, or may not do it, asked for an act",
    "agent.activated": "a device became an agent; `again` if it was one",
    "agent.capabilities": "an agent said what it can do; `withdrawn` if it works as an older one again",
    "agent.configuration": "an agent does not do what its fleet sets: its own file limits it, or it refuses the document",
    "agent.deleted": "an agent and what belongs to it was deleted",
    "agent.enrolled": "an agent was enrolled by hand",
    "agent.site": "an agent was moved to a site, or from one",
    "agent.status": "an agent was put in service, restricted to the factory, revoked or retired",
    "agent.update_installed": "an agent says that it has installed an update",
    "agent.update_locked": "an agent tries an update no more after too many failed attempts",
    "agent.update_proved": "an agent reports that exactly the ordered build runs",
    "agent.update_refused": "an agent has refused an update",
    "agent.update_rolled_back": "an update failed, and the agent went back to the version before",
    "alert.agent_audit": "an agent's audit log has fewer records than before",
    "alert.clone": "two machines have one identity; their rotations are halted",
    "alert.usage_went_back": "a usage counter of an agent went back",
    "approval.asked": "an act that needs a second person waits for one",
    "approval.decided": "the second person has approved or refused",
    "audit.removed": "records before `last` were removed by retention",
    "audit_head.signed": "a statement about an agent's audit log was signed for an auditor",
    "break_glass.begun": "a person took emergency access",
    "break_glass.ended": "emergency access was ended before its time",
    "certificate.adopted": "an agent has a certificate that a restored registry did not know",
    "certificate.renewed": "an agent got a new TLS certificate",
    "claim.bound": "an enrollment token was used by a device",
    "claim.made": "an enrollment token was made",
    "claim.revoked": "an enrollment token was revoked",
    "clock.accepted": "an administrator has said that the server's clock is right",
    "clone.resumed": "an administrator has ended the halt of an agent that two machines had been",
    "configuration.lost": "an agent knows a document of its fleet's configuration that this registry has lost",
    "customer.changed": "a customer's entry was changed",
    "customer.created": "a customer was created",
    "customer.erased": "a customer's personal data was erased",
    "ddi.added": "a device that speaks hawkBit's DDI was added",
    "ddi.all_revoked": "all tokens and certificates of a device that speaks DDI were revoked",
    "ddi.certificate_issued": "a client certificate was issued for a device that speaks DDI",
    "ddi.policy_set": "what a fleet's policy says of devices that speak DDI was changed",
    "ddi.revoked": "a token or certificate of devices that speak DDI was revoked",
    "ddi.token_made": "a token was made for a device that speaks DDI, or for those of a fleet",
    "device.attributes_set": "attributes of a device were set; their values are not recorded",
    "device.attributes_unset": "attributes of a device were removed",
    "device.blocked": "a device that is no agent was put on the blocklist",
    "device.changed": "a device's name or time zone was changed",
    "device.tagged": "a device got tags",
    "device.unblocked": "a device that is no agent was taken off the blocklist",
    "device.untagged": "tags were taken from a device",
    "entitlement_set.changed": "a set of features was changed",
    "entitlement_set.created": "a set of features was created",
    "fleet.alert_acknowledged": "somebody took note of an alert of a fleet",
    "fleet.alert_cleared": "what an alert of a fleet was about is over",
    "fleet.alert_raised": "something may be wrong with a fleet, or became worse",
    "fleet.alerts_silenced": "some alerts are sent to nobody for a while",
    "fleet.changed": "a fleet's name, tags, selection or rank was changed",
    "fleet.configuration_ended": "a fleet sets nothing on its agents any more",
    "fleet.configured": "a fleet's configuration was changed",
    "fleet.created": "a fleet was made",
    "fleet.deleted": "a fleet was deleted with its configurations",
    "fleet.silence_ended": "a silence was ended before its time",
    "fleet.thresholds_set": "a fleet is judged by other thresholds",
    "fleet.members_added": "devices were put into a fleet",
    "fleet.members_removed": "devices were taken out of a fleet",
    "keys.end_soon": "a key ends soon, and nothing is prepared",
    "keys.ended": "a former key was ended",
    "keys.prepared": "the next key was prepared",
    "keys.reverted": "the former key was put back in use; an `alert` if the server itself did it because the new one failed",
    "keys.rotated": "a new key is in use",
    "license.assigned": "a license got a machine",
    "license.delivered": "tokens went to an agent by contact",
    "license.extended": "a license on no machine got a later end",
    "license.issued": "a license was issued",
    "license.reinstated": "the suspension of a license was ended",
    "license.reissued": "an agent's licenses were issued again under its newest secret",
    "license.released": "a license lost its machine",
    "license.renewed": "a license on a machine got a later end",
    "license.revoked": "a license was revoked",
    "license.seats": "the seats of a floating license were set",
    "license.suspended": "a license was suspended",
    "license.transferred": "a license went to another machine",
    "license.upgraded": "policy or features of a license were changed",
    "master_key.added": "a second master key was added",
    "master_key.finished": "nothing is encrypted under the former master key any more",
    "openid_provider.ended": "signing in with the OpenID provider was ended",
    "openid_provider.set": "people sign in with this OpenID provider",
    "ota.key_made": "a key of the update repository that the server holds was made",
    "ota.bundled": "metadata was signed that lasts longer, for a bundle that goes to machines without a network",
    "ota.published": "updates were published in the repository",
    "policy.changed": "a license policy was changed",
    "policy.created": "a license policy was created",
    "policy.retired": "a license policy was retired",
    "product.changed": "a product was changed",
    "product.created": "a product was created",
    "product.retired": "a product was retired",
    "provision.begin": "the first step of a provisioning was refused",
    "provision.complete": "the second step of a provisioning was refused",
    "registry.behind": "an agent has what this registry does not know: it was restored from an older copy",
    "registry.moved": "the registry was moved: in the former one `away`, in the new one `ok`",
    "registry.reopened": "a registry that had been moved away is in use again",
    "registry.restored": "the registry was restored from a backup",
    "retention.set": "it was changed how long rows are kept, in days",
    "rollout.automatic_halted": "an automatic rollout was stopped or taken back: no other one starts",
    "rollout.automatic_off": "releases of a product no longer go to a fleet by themselves",
    "rollout.automatic_on": "two people want each new release of a product to go to a fleet by itself",
    "rollout.created": "a rollout was made, as a draft",
    "rollout.finished": "nothing is to come any more of a rollout that was not stopped",
    "rollout.ordered": "a device that is no agent was given the update of a rollout",
    "rollout.paused": "a rollout pauses",
    "rollout.policy_set": "it was changed what rollouts of a fleet do where they do not say otherwise",
    "rollout.resumed": "a rollout goes on",
    "rollout.rolled_back": "all devices that a rollout had updated have gone back, or were left out",
    "rollout.started": "two people have started a rollout",
    "rollout.started_automatically": "a new release was rolled out without a person, as two people had wanted",
    "rollout.stopped": "a rollout was stopped, `ok` by an operator, `alert` because of its failures",
    "rollout.taken_back": "two people have started to take a rollout back",
    "rotation.demanded": "an agent, or all of them, have to rotate their secret",
    "rotation.periods": "the periods of secrets or revocation lists were changed, in seconds",
    "seat.freed": "an administrator has freed a seat",
    "seat.over_use": "more machines use a floating license than it has seats",
    "seat.refused": "a machine got no seat",
    "seat.released": "a machine gave its seat back",
    "seat.taken": "a machine took a seat",
    "secret.confirmed": "an agent has proved that it has a secret",
    "secret.diverged": "an agent holds another secret than the server",
    "secret.invalidated": "a secret version was invalidated",
    "secret.made": "a secret version was made for an agent",
    "serial.set": "the last serial number was set",
    "server.founded": "the server was created",
    "site.changed": "a site was changed",
    "site.created": "a site was created",
    "time.signed": "the server's time was signed for an agent",
    "token.made": "an account got an API token",
    "token.revoked": "an API token was revoked",
    "update.assigned": "an agent was ordered to install a package",
    "update.lost": "an agent knows a directive that this registry has lost",
    "update.withdrawn": "the order to install a package was withdrawn",
    "updates.paused": "updates of all agents, or of one, were paused",
    "updates.resumed": "updates of all agents, or of one, go on",
    "webhook.active": "a webhook was resumed",
    "webhook.added": "a webhook was added",
    "webhook.changed": "address or kinds of a webhook were changed",
    "webhook.paused": "a webhook was paused; an `alert` if its receiver said that it is gone",
    "webhook.removed": "a webhook was removed",
    "webhook.retried": "dead letters of a webhook were put in line again",
    "webhook.secret_replaced": "a webhook got a new secret",
}
"""What has happened, by event."""


PASSING_ON = frozenset(
    {
        ("licensing/licenses/lifecycle.py", "f'license.{event}'"),
        ("licensing/sales/rows.py", "event"),
        ("registry/later.py", "event"),
    }
)
"""Calls in functions that write what their callers name."""


class Unexplained(Exception):
    """A call that writes a record, and that this file does not understand."""


@dataclass
class Found:
    """An event.

    Attributes:
        actors: who writes it: the first words of the actor.
        outcomes: how it can end.
        fields: that a record may have, without those of the operator.
    """

    actors: set[str] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)

    @property
    def all_fields(self) -> set[str]:
        """With those of the operator."""
        return self.fields | set(OPERATOR) if audit.ADMIN in self.actors else self.fields


CALLED = ("record", "add", "_changed")
"""The last names of the functions that write records; `_Call` tells them from others of these names."""


@cache
def found_events() -> dict[str, Found]:
    """Every event of the server.

    Raises:
        Unexplained: a call is not understood; the text says what to add here.
    """
    found: dict[str, Found] = {}
    for path in sorted((ROOT / "server").rglob("*.py")):
        name, text = str(path.relative_to(ROOT / "server")), path.read_text("utf-8")
        if not any(f"{called}(" in text for called in CALLED):
            continue  # most files write no records, and to read them takes seconds
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and _last_name(node.func) in CALLED:
                        _Call(name, node, function).add_to(found)
    return found


def _last_name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


class _Call:
    def __init__(self, file: str, node: ast.Call, function: ast.AST) -> None:
        self._file = file
        self._node = node
        self._function = function

    def add_to(self, found: dict[str, Found]) -> None:
        called, arguments = ast.unparse(self._node.func), self._node.args
        own: set[str] = set()
        if called == "audit.record" or (called == "record" and self._file == "registry/audit.py"):
            _session, actor, event, outcome, _now = arguments
            if (self._file, ast.unparse(event)) in PASSING_ON:
                return
            actors, outcomes = self._actors(actor), self._texts(outcome)
        elif called == "records.add":
            actor, event, outcome, _now = arguments
            actors, outcomes = self._actors(actor), self._texts(outcome)
        elif called == "_changed" and self._file == "licensing/licenses/lifecycle.py":
            event, actors, outcomes, own = arguments[2], (audit.ADMIN,), ("ok",), {"license", "agent"}
        elif called == "record" and self._file.startswith("licensing/") and len(arguments) == 3:
            event, actors, outcomes = arguments[1], (audit.ADMIN,), ("ok",)
        else:
            return
        for name in self._texts(event):
            each = found.setdefault(name, Found())
            each.actors.update((audit.ADMIN,) if name in BY_ADMIN_ALONE else actors)
            each.outcomes.update(BY_EVENT.get(name, outcomes))
            each.fields.update(self._fields() | own)

    def _actors(self, node: ast.expr) -> tuple[str, ...]:
        if isinstance(node, ast.JoinedStr) and isinstance(first := node.values[0], ast.Constant):
            return (str(first.value).split()[0],)
        return self._texts(node)

    def _texts(self, node: ast.expr) -> tuple[str, ...]:
        """The texts that an expression can be."""
        match node:
            case ast.Constant(value=str(text)):
                return (text,)
            case ast.IfExp():
                return (*self._texts(node.body), *self._texts(node.orelse))
            case ast.Attribute(value=ast.Name(id="audit"), attr=name):
                return (str(getattr(audit, name)),)
            case ast.Attribute(value=ast.Name(id="Event"), attr=name):
                return (f"license.{Event[name].value}",)
            case ast.Name(id="event") if (
                self._file == "licensing/licenses/lifecycle.py" and ast.unparse(self._node.func) == "_changed"
            ):
                return self._computed("event of a change")
            case ast.Name(id=name) if self._file == "registry/audit.py":
                return (str(getattr(audit, name)),)
        return self._computed(ast.unparse(node))

    def _fields(self) -> set[str]:
        found: set[str] = set()
        for keyword in self._node.keywords:
            if keyword.arg is not None:
                found.add(keyword.arg)
            elif (made := self._made(keyword.value)) is not None:
                found |= made
            else:
                found |= set(self._computed(f"**{ast.unparse(keyword.value)}"))
        return found

    def _made(self, node: ast.expr) -> set[str] | None:
        """The members of a dict that the function makes, one by one; None if it does not."""
        match node:
            case ast.Dict(keys=keys) if all(isinstance(key, ast.Constant) for key in keys):
                return {str(key.value) for key in keys if isinstance(key, ast.Constant)}
            case ast.IfExp():
                either, other = self._made(node.body), self._made(node.orelse)
                return None if either is None or other is None else either | other
            case ast.Name(id=name):
                values = [value for each in ast.walk(self._function) if (value := _assigned(each, name)) is not None]
                return self._made(values[0]) if len(values) == 1 else None
        return None

    def _computed(self, text: str) -> tuple[str, ...]:
        try:
            return COMPUTED[self._file, text]
        except KeyError:
            where = f"server/{self._file}:{self._node.lineno}"
            raise Unexplained(f"{where}: add to COMPUTED what ({self._file!r}, {text!r}) can be") from None


def _assigned(node: ast.AST, name: str) -> ast.expr | None:
    """What a statement assigns to a variable; None if it does not."""
    match node:
        case ast.Assign(targets=[ast.Name(id=target)], value=value) | ast.AnnAssign(target=ast.Name(id=target), value=value):
            return value if target == name else None
    return None


def table() -> list[str]:
    """Every event with what has happened, who does it, its outcomes and fields."""
    found = found_events()
    if wrong := found.keys() ^ MEANINGS.keys():
        raise Unexplained(f"MEANINGS must have these events, or must not: {', '.join(sorted(wrong))}")
    lines = ["| event | what has happened | by | outcomes | fields |", "|---|---|---|---|---|"]
    for name, each in sorted(found.items()):
        cells = (", ".join(f"`{text}`" for text in sorted(texts)) or "-" for texts in (each.outcomes, each.fields))
        lines.append(f"| `{name}` | {MEANINGS[name]} | {', '.join(sorted(each.actors))} | {' | '.join(cells)} |")
    return lines
