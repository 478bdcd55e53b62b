"""Finds every event of the agent's audit log in the code: its outcomes, and the fields that a record may have with each.

`scripts/docs-tables` makes docs/audit-fields.md from it. Where the code computes an outcome or passes on fields, the tables
here say what that can be; a call that none of them explains is an error, so that no event is missing from the page. The tests
of the agent compare each record that they write with it (tests/agentd/conftest.py).
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from agentd.base import alerts
from audittrail import chain
from contracts.exchange import RefusalCode
from ipc.answers import LicenseReason
from ipc.errors import ErrorCode

ROOT = Path(__file__).resolve().parents[1]
COMMON = ("seq", "class", "time", "mono", "event", "outcome", "prev", "hash")
"""What every record has."""
COUNTED = ("count", "first", "last", "others")
"""What a record has that tells how often something was, besides the fields of the first time."""

_ERRORS = tuple(code.name.lower() for code in ErrorCode)
_REFUSALS = tuple(code.value for code in RefusalCode)
_REASONS = tuple(reason.value for reason in LicenseReason)


def _refused_administrators() -> tuple[str, ...]:
    """Why a request on the admin socket is refused: what the errors in the code of its service are made with."""
    found = set()
    for path in sorted((ROOT / "agentd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("NotAccepted", "NotIssued") and node.args:
                first = node.args[0]
                found |= {str(first.value)} if isinstance(first, ast.Constant) else set()
    return tuple(sorted(found))


_CERTIFICATES = _refused_administrators()
_RULING = ("license", "secret_version", "secret_state", "expires_at", "suspended")

OUTCOMES: dict[str, tuple[str, ...]] = {
    "access.certificate_refused": _CERTIFICATES,
    "admin.refused": _CERTIFICATES,
    "license.validated": _REASONS,
    "ota.consent": ("ready", "busy", "after_shift"),
    "ota.failed": ("failed", "withdrawn"),
    "ota.rollback": ("rolled-back", "rehearsed"),
    "ota.success": ("installed",),
    "request.refused": _ERRORS,
    "rotation.refused": _REFUSALS,
    "server.contact": ("failed", "refused", "not_the_server"),
    "usage.counted": ("repeated", "refused", "unavailable", "rate_limited", *_REASONS),
    "usage.reported": ("behind", "refused"),
}
"""Outcomes of events where the code computes them."""

SPREAD: dict[str, tuple[str, ...]] = {
    "ruling.audit_fields()": _RULING,
    "dates(meta)": ("valid_from", "valid_until", "grace_until"),
    "counts": ("delivered", "suspended", "removed"),
    "more": ("follows",),
    "more_of": ("shown", "wanted"),
    "line": (
        "began",
        "duration_s",
        "product",
        "version",
        "build_id",
        "before",
        "number",
        "operator",
        "reason",
        "attempts",
    ),
    "raised": ("text", "floor"),
    "cleared": ("floor",),
}
"""Fields that a call passes on with `**`, by the expression."""

MEANINGS: dict[str, str] = {
    "actor": "who asked: `uid`, `gid` and `pid` as the kernel knows them, with `role`, `certificate` (SHA-256) and `name` "
    "of an administrator's certificate; `process` where the agent acted by itself",
    "agent_id": "id that the server has given this agent",
    "alert": "code of the alert",
    "alert_id": "id of the alert that was not delivered",
    "archives": "names of files",
    "attestation": "attestation level",
    "attested": "what the TPM has certified, base64 (TPMS_ATTEST)",
    "attempts": "updates that have failed in a row",
    "backend": "`tpm` or `software`",
    "before": "the sealed value before the checkpoint, hex; of an update, the version that ran before",
    "began": "when the attempt began, seconds since 1970",
    "build_id": "of the package",
    "by": "`server` or `administrator`",
    "bytes": "how many",
    "capabilities": "names",
    "cause": "why the rotation began",
    "certificates": "SHA-256 of each, hex",
    "clock": "time of this machine, seconds since 1970",
    "code": "error code of the reply",
    "connects": "true if a connection was refused, not a request",
    "count": "how often it was; in `server.revocations`, how many licenses are revoked",
    "created": "when the backup was made, seconds since 1970",
    "daily_bytes": "the budget, from the configuration",
    "delivered": "tokens that came",
    "duration_s": "from the begin of the attempt to its end, seconds",
    "error": "kind of error",
    "expected": "generation that the agent was at",
    "expires_at": "end of the license, seconds since 1970",
    "failures": "failed contacts in a row",
    "feature": "as the application asked; of the first time where the record has a `count`",
    "file": "name of a file",
    "files": "how many",
    "first": "time of the first one that is counted, where the record has a `count`",
    "fleet": "id of the fleet that configures the machine; null if none does",
    "fleet_number": "number of the fleet's configuration",
    "floor": "time that has certainly passed, seconds since 1970",
    "follows": "true if the request follows the log",
    "former_heads": "heads of the chains that ended here",
    "former_log": "directory with the former log",
    "found": "the sealed value that was found, hex",
    "generation": "of the store, after the commit",
    "grace_until": "end of the secret's grace, seconds since 1970",
    "had_software": "whether the software backend was initialized",
    "had_tpm": "whether the TPM backend was initialized",
    "head": "hash of the last record that was removed",
    "heads": "hash of the last record of each class",
    "held": "whether an administrator switched degraded mode on",
    "key": "id of the key",
    "kind": "class of the removed records; what the secrets are bound to",
    "last": "time of the last one that is counted",
    "last_seq": "number of the last record",
    "license": "id of the license, or of the seat",
    "license_keys": "ids of the server's keys for licenses",
    "limited": "what the fleet wanted and the machine's own file does not accept",
    "lost_records": "how many",
    "meter": "name of the meter",
    "needs_restart": "keys of the configuration that a reload does not change",
    "nonce": "of the request, hex",
    "now": "time that the server says now, seconds since 1970",
    "number": "of the key set, the list, the policy, the directive, the fleet's configuration or the last change",
    "op": "operation of the admin socket",
    "operator": "who wanted the update: `server`, or the administrator",
    "origin": "what the state was restored from",
    "others": "true if the table of counts was full: who it was is not known",
    "pcrs": "numbers of PCRs",
    "problem": "what is wrong with the file",
    "problems": "what is wrong with the configuration",
    "product": "as the application asked; of an update, what is installed",
    "reason": "`retention` or `space`; of an update, why it failed",
    "refused": "capability that the server has refused",
    "removed": "licenses that were taken away",
    "reseal": "true if a new seal begins here",
    "revoked": "ids of revoked licenses, at most 50",
    "root": "pin of the server's root, or pins",
    "roots": "pins of the server's roots",
    "rotation_keys": "ids of the server's keys for deliveries",
    "seats": "ids",
    "seconds": "how long",
    "secret_state": "state of the secret version",
    "secret_version": "number of the secret version",
    "segment": "name of the closed file",
    "serial": "serial number of agent or certificate",
    "set": "keys of the configuration that the fleet sets",
    "severity": "of the alert",
    "shown": "the administrator's certificate that was shown: `certificate` (SHA-256) and `name`. Its key has signed where "
    "`wanted` is there; anyone can show a certificate",
    "signature": "of the TPM's attestation key, base64",
    "signed": "time that the server has signed, seconds since 1970",
    "socket": "`pos` or `admin`",
    "standing": "what the agent makes of the server's time",
    "state": "state of the hardware, or of the secret from now on",
    "step": "step of the rotation or update",
    "suspended": "true if the license is suspended; in `licenses.synced`, how many are",
    "text": "what happened, for people",
    "total": "what the meter counts in all",
    "until": "end of the seat or certificate, seconds since 1970",
    "url": "of the server",
    "valid_from": "begin of the secret, seconds since 1970",
    "valid_until": "end of the secret, seconds since 1970",
    "value": "the sealed value after the checkpoint, hex",
    "version": "of the program, or of what an update installs",
    "wall": "the machine's clock, seconds since 1970",
    "wanted": "operation that the certificate's key has signed",
    "was": "before the change",
    "why": "reason that an administrator gave",
}
"""What each field means."""


def table() -> list[str]:
    """Every event with its class, its severity where it is an alert, its outcomes and fields."""
    lines = ["| event | class | severity | outcomes | fields |", "|---|---|---|---|---|"]
    severities = {alert.event: str(alert.severity) for alert in alerts.ALERTS}
    for event, outcomes in sorted(found_events().items()):
        by_fields: dict[tuple[str, ...], list[str]] = {}
        for outcome, fields in outcomes.items():
            by_fields.setdefault(tuple(sorted(fields)), []).append(outcome)
        for fields, same in by_fields.items():
            classes = dict.fromkeys(chain.retention_class(event, outcome) for outcome in same)
            named = ", ".join(f"`{outcome}`" for outcome in same)
            shown = ", ".join(f"`{field}`" for field in fields) or "-"
            lines.append(f"| `{event}` | {', '.join(classes)} | {severities.get(event, '-')} | {named} | {shown} |")
    return lines


def fields_table() -> list[str]:
    """Every field and what it means."""
    used = {field for outcomes in found_events().values() for fields in outcomes.values() for field in fields}
    if missing := used - set(MEANINGS):
        raise Unexplained(f"add to MEANINGS what these fields mean: {', '.join(sorted(missing))}")
    return ["| field | meaning |", "|---|---|", *(f"| `{name}` | {MEANINGS[name]} |" for name in sorted(used))]


class Unexplained(Exception):
    """A call that writes a record, and that this file does not understand."""


Found = dict[str, dict[str, set[str]]]
"""Fields by event and outcome."""


WRITERS = frozenset(
    {"record", "record_durably", "note", "record_within_budget", "count", "raise_alert", "clear_alert", "keep", "append"}
    | {"_keep", "_append"}
)
"""The last names of the functions that write records; `_Module` tells them from others of these names."""


@cache
def found_events() -> Found:
    """Every event of the agent with its outcomes and fields.

    Raises:
        Unexplained: a call is not understood; the text says what to add here.
    """
    found: Found = {}
    for path in sorted((ROOT / "agentd").rglob("*.py")):
        text = path.read_text("utf-8")
        if not any(f"{writer}(" in text for writer in WRITERS):
            continue  # most files write no records, and to read them takes seconds
        module = ast.parse(text)
        reader = _Module(path.relative_to(ROOT), module)
        for name, outcome, fields in reader.records():
            found.setdefault(name, {}).setdefault(outcome, set()).update(fields)
    return found


class _Module:
    def __init__(self, path: Path, tree: ast.Module) -> None:
        self._path = path
        self._tree = tree
        self._tables = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def records(self) -> Iterator[tuple[str, str, set[str]]]:
        for function in ast.walk(self._tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name not in PASSING_ON:
                own = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
                for node in ast.walk(function):
                    if isinstance(node, ast.Call):
                        yield from self._call(node, own, function)

    def _call(
        self, node: ast.Call, own: set[str], function: ast.FunctionDef | ast.AsyncFunctionDef
    ) -> Iterator[tuple[str, str, set[str]]]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        arguments = list(node.args)
        extra: set[str] = set()
        match name:
            case "record" | "record_durably" if arguments:
                event, outcomes, default = arguments[0], arguments[1:2], "ok"
            case "note" if isinstance(node.func, ast.Name):
                event, outcomes, default, extra = arguments[2], arguments[3:4], "ok", {"actor"}
            case "record_within_budget":
                event, outcomes, default = arguments[2], arguments[3:4], "ok"
                extra = self._described(arguments[4], function) | set(COUNTED)
            case "count" if len(arguments) >= 4 and "audit" in ast.unparse(node.func):
                event, outcomes, default = arguments[1], arguments[2:3], "ok"
                extra = self._described(arguments[3], function) | set(COUNTED)
            case "raise_alert":
                event, outcomes, default, extra = arguments[0], arguments[2:3], "raised", {"severity"}
            case "clear_alert":
                event, outcomes, default, extra = arguments[0], [], "cleared", {"severity"}
            case "keep" | "_keep" if len(arguments) >= 2:
                # `Store.keep`, or a function that calls it; others have this name too.
                stored = name == "keep" and ast.unparse(node.func).endswith("store.keep")
                if self._is_parameter(arguments[0], own) or not (stored or isinstance(arguments[0], ast.Constant)):
                    return
                fields = self._keywords(node, function)
                for each in self._events(arguments[0], function):
                    yield each, "begun", fields
                    yield each, "ok", {"generation"}
                return
            case "_append" | "append" if len(arguments) in (3, 5):
                event, outcomes, default = arguments[-3], [arguments[-2]], "ok"
                if self._is_parameter(event, own):
                    return
                extra = self._described(arguments[-1], function)
            case _:
                return
        if self._is_parameter(event, own):
            return
        fields = self._keywords(node, function) | extra
        fields -= {"important", "times"}
        for each in self._events(event, function):
            for outcome in self._outcomes(each, outcomes, default, function):
                yield each, outcome, fields

    def _is_parameter(self, node: ast.expr, own: set[str]) -> bool:
        return isinstance(node, ast.Name) and node.id == "event" and (node.id in own or self._path.name == "log.py")

    def _events(self, node: ast.expr, function: ast.AST) -> list[str]:
        """The names that an expression can be."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.IfExp():
                return [*self._events(node.body, function), *self._events(node.orelse, function)]
            case ast.Attribute(value=ast.Name(id=name), attr="event") | ast.Name(id=name):
                if name in ALERT_VARIABLES:
                    return self._alerts()
                made = getattr(alerts, name, None) or getattr(chain, name, None)
                if isinstance(made, alerts.Alert):
                    return [made.event]
                if isinstance(made, str):
                    return [made]
                known = self._assigned(name, function) or self._tables.get(name)
                if known is not None:
                    return self._events(known, function)
            case ast.Subscript(value=ast.Name(id=name)) if isinstance(table := self._tables.get(name), ast.Dict):
                return [text for value in table.values for text in self._events(value, function)]
        raise Unexplained(f"{self._path}:{node.lineno}: which event is {ast.unparse(node)!r}?")

    def _alerts(self) -> list[str]:
        """The alerts that a module names, for a variable that is one of them."""
        names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        return [made.event for name in sorted(names) if isinstance(made := getattr(alerts, name, None), alerts.Alert)]

    def _outcomes(self, event: str, given: list[ast.expr], default: str, function: ast.AST) -> list[str]:
        if not given:
            return [default]
        try:
            if event in OUTCOMES and not isinstance(given[0], ast.Constant):
                return list(OUTCOMES[event])
            return self._events(given[0], function)
        except Unexplained:
            raise Unexplained(
                f"{self._path}:{given[0].lineno}: add the outcomes of {event!r} to OUTCOMES ({ast.unparse(given[0])})"
            ) from None

    def _keywords(self, node: ast.Call, function: ast.AST) -> set[str]:
        found: set[str] = set()
        for keyword in node.keywords:
            found |= {keyword.arg} if keyword.arg is not None else self._described(keyword.value, function)
        return found

    def _described(self, node: ast.expr, function: ast.AST) -> set[str]:
        """The fields in a dict that an expression makes."""
        match node:
            case ast.Lambda():
                return self._described(node.body, function)
            case ast.IfExp():
                return self._described(node.body, function) | self._described(node.orelse, function)
            case ast.Dict():
                found: set[str] = set()
                for key, value in zip(node.keys, node.values, strict=True):
                    if key is None:
                        found |= self._described(value, function)
                    elif isinstance(key, ast.Constant):
                        found.add(str(key.value))
                return found
            case ast.Name(id=name) if (made := self._assigned(name, function)) is not None and name not in SPREAD:
                return self._described(made, function)
        text = ast.unparse(node)
        if text in SPREAD:
            return set(SPREAD[text])
        raise Unexplained(f"{self._path}:{node.lineno}: add the fields of {text!r} to SPREAD")

    @staticmethod
    def _assigned(name: str, function: ast.AST) -> ast.expr | None:
        """What a function assigns to a variable."""
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets):
                return node.value
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                return node.value
        return None


PASSING_ON = frozenset({"raise_alert", "clear_alert", "record_within_budget", "count"})
"""Functions of the log itself that write what their callers name."""
ALERT_VARIABLES = frozenset({"alert", "gone"})
"""Variables that are one of the alerts that their module names."""
