"""Checks a copy of the audit log against the license server's word about it, for an auditor without the machine."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from audittrail.chain import ZERO_HASH
from audittrail.check import verify_log
from audittrail.report import Gap, Head, Keys
from contracts.audithead import AuditHead, trust_under_root, verify_audit_head
from contracts.jose import BadSignature, MalformedToken
from contracts.trust import parse_trust

MAX_AGE_S = 24 * 3600
"""How much older than the copy of the log a head may be."""
MAX_FILE_BYTES = 256 * 1024


@dataclass(slots=True)
class Said:
    """What a file with a head says.

    Attributes:
        content: None if nobody that the caller trusts has signed it.
        gaps: what it leaves open.
        checked: how it was verified, and by which trust.
    """

    content: AuditHead | None = None
    gaps: list[Gap] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)


def read_head(path: Path, trust: Path | None, root: str | None, as_of: float) -> Said:
    """Reads and verifies a head.

    Args:
        path: the file, from 'license-server audit-head'.
        trust: a trust file, from 'license-server trust'.
        root: instead of it, the pin of the server's root; then the key set in the file counts.
        as_of: when the log was copied, seconds since 1970 UTC.

    Raises:
        OSError: a file cannot be read.
        click.UsageError: neither `trust` nor `root` is given, or both.
    """
    if (trust is None) == (root is None):
        raise click.UsageError("--head needs the keys that it is verified with: --trust FILE or --root PIN, one of them")
    said = Said()
    with path.open("rb") as file:
        statement, _, key_set = file.read(MAX_FILE_BYTES).decode("ascii", "replace").strip().partition("\n")
    try:
        if trust is not None:
            keys, by = parse_trust(trust.read_bytes()), str(trust)
        else:
            keys, number = trust_under_root(key_set.strip(), str(root))
            by = f"key set {number} under the root {root}"
        content = verify_audit_head(statement.strip(), keys)
    except MalformedToken as error:
        said.gaps.append(Gap(f"the head in {path}: {error}", "a head from 'license-server audit-head' and the server's keys"))
        return said
    except BadSignature:
        what = f"the head in {path}: no key of {trust or root} has signed it"
        said.gaps.append(Gap(what, "a head of the server that the keys belong to, or the keys that the server has now"))
        return said
    said.content = content
    said.checked.append(
        f"the head of agent {content.agent_id}: signed {_utc(content.time)} by {keys.issuer}, key {content.key} of {by}"
    )
    if content.time < as_of - MAX_AGE_S:
        days = (as_of - content.time) / 86_400
        what = f"the end of the log: the head in {path} is {days:.0f} days older than the copy of the log"
        said.gaps.append(Gap(what, "a new head, or --as-of with the time at which the log was copied"))
    if content.seq is None:
        what = f"the end of the log: when the head was signed, agent {content.agent_id} had reported none to the server"
        said.gaps.append(Gap(what, "a head signed after the agent's next contact"))
    return said


def check(log: Path, given: Keys, said: Said | None, *, open_end: bool) -> dict[str, Any]:
    """Checks a copy of a log; returns the report as plain values by name.

    Args:
        log: the copy of the open file.
        given: the keys that the caller named.
        said: the server's word, whose keys count where the caller named none; None without it.
        open_end: whether the caller does without one.

    Raises:
        OSError: a file cannot be read.
    """
    content = None if said is None else said.content
    head = None
    gaps: list[Gap] = []
    if content is not None:
        for name in ("identity", "attestation"):
            ours, theirs = getattr(given, name), getattr(content, name)
            if ours is None:
                given = replace(given, **{name: theirs})
            elif theirs is not None and ours != theirs:
                what = f"the {name} key: the given one is not what the server has for agent {content.agent_id}"
                gaps.append(Gap(what, f"the key that 'license-server agents keys {content.agent_id}' prints"))
        if content.seq is not None and content.head is not None:
            contact = "never" if content.last_contact is None else _utc(content.last_contact)
            source = f"license server, last contact {contact}, signed {_utc(content.time)}"
            head = Head(content.seq, content.head, source)
    report = verify_log(log, given, head, open_end=open_end)
    if said is not None:
        report.gaps[:0] = said.gaps + gaps
        report.checked[:0] = said.checked
    archived = given.unseal is not None
    begins = report.found.begins
    return {
        **report.audit_fields(),
        "agent": None if content is None else content.agent_id,
        "unchecked_before": {} if archived else {kind: seq for kind, (seq, prev) in begins.items() if prev != ZERO_HASH},
    }


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
