"""Declares the output of the commands about the audit log, and the form of its records."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Record(Struct, rename={"kind": "class"}, kw_only=True):
    """A record of the audit log. What its event adds is in docs/audit-fields.md.

    Attributes:
        seq: its number; 1 for the first ever.
        kind: the retention class: `application`, `security` or `ota`.
        time: RFC 3339, UTC.
        mono: monotonic clock, seconds.
        event: what happened.
        outcome: `ok`, or why not.
        prev: `hash` of the record of the same class before.
        hash: SHA-256 in hex, over the bytes of the line before it.
    """

    seq: Annotated[int, Meta(ge=1)]
    kind: str
    time: str
    mono: float
    event: str
    outcome: str
    prev: Hash
    hash: Hash


class Gap(Struct):
    """A check that could not be made.

    Attributes:
        what: was not checked.
        needs: what the check needs.
    """

    what: str
    needs: str


class Verification(Struct, kw_only=True):
    """What a check of the audit log has found.

    Attributes:
        outcome: `intact`, `incomplete` or `tampered`.
        ok: whether it is `intact`.
        problem: what contradicts the log, or what was not checked; null if it is intact.
        checked: in sentences.
        unchecked: what was not.
        records: how many were read.
        first_seq: number of the first.
        last_seq: number of the last.
        heads: hash of the last record of each class.
        last_checkpoint: number of the last checkpoint's record; 0 without one.
        resealed: numbers of the records where a new seal begins.
        certified: number of the last record that holds a certificate of the attestation key; 0 without one.
        certified_through: number of the last record that the certificates cover; 0 if none was checked.
        acknowledged_through: number of the last record that the server has acknowledged; 0 if it was not asked.
        end_open: whether records may be missing at the end.
        agent: with --file: the agent that the head is of; null without one.
        unchecked_before: with --file: by class, the number before which records were not read.
    """

    outcome: str
    ok: bool
    problem: str | None
    checked: list[str]
    unchecked: list[Gap]
    records: int
    first_seq: int
    last_seq: int
    heads: dict[str, Hash]
    last_checkpoint: int
    resealed: list[int]
    certified: int
    certified_through: int
    acknowledged_through: int
    end_open: bool
    agent: str | UnsetType | None = UNSET
    unchecked_before: dict[str, int] | UnsetType = UNSET


class PublicKeys(Struct):
    """The machine's public keys.

    Attributes:
        identity: in PEM.
        attestation: in PEM.
    """

    identity: str
    attestation: str
