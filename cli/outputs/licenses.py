"""Declares the output of the commands about secrets and licenses."""

from msgspec import UNSET, Struct, UnsetType

from .state import ServerTime


class Secret(Struct):
    """A secret version; never the secret.

    Attributes:
        version: its number.
        state: `ACTIVE`, `GRACE` or `INVALIDATED`.
        valid_from: its beginning.
        valid_until: when the next one is due.
        grace_until: until when licenses under it pass.
        installed_at: when it came.
        invalidated_at: when it was invalidated by hand; null if it was not.
    """

    version: int
    state: str
    valid_from: int
    valid_until: int
    grace_until: int
    installed_at: int
    invalidated_at: int | None


class Secrets(Struct):
    """All secret versions.

    Attributes:
        secrets: the oldest first.
    """

    secrets: list[Secret]


class SecretChange(Struct):
    """A change of one secret version.

    Attributes:
        secret_version: which one.
        generation: of the sealed store afterwards.
    """

    secret_version: int
    generation: int


class LicenseVerdict(Struct, kw_only=True):
    """The verdict that a POS application would get.

    Attributes:
        valid: whether the license may be used.
        reason: `ok`, or why not; docs/protocol.md lists all.
        features: that it allows.
        metadata: that it carries.
        reissue_due: whether a token under a newer secret is needed.
        refresh_by: until when; null if none is needed.
        refreshed: whether the agent has a newer token.
        degraded: whether the agent works without its server.
        clock_suspect: whether the machine's clock is wrong.
        license: its id; null if the token was not opened.
        secret_version: that the token names; null if it cannot be read.
        secret_state: of that version; null if it is not here.
        expires_at: its end; null if the token was not opened.
        suspended: true if the server has suspended it.
    """

    valid: bool
    reason: str
    features: list[str]
    metadata: dict[str, str]
    reissue_due: bool
    refresh_by: int | None
    refreshed: bool
    degraded: bool
    clock_suspect: bool
    license: str | None
    secret_version: int | None
    secret_state: str | None
    expires_at: int | None
    suspended: bool | UnsetType = UNSET


class LicenseImported(Struct):
    """A token that the agent keeps from now on.

    Attributes:
        license: its id.
        secret_version: that the token is under.
    """

    license: str
    secret_version: int


class NextStep(Struct):
    """What to do.

    Attributes:
        text: in a sentence.
        here: commands on this machine.
        server: commands on the license server.
    """

    text: str
    here: list[str]
    server: list[str]


class Check(Struct):
    """One of the checks of a license, in their order.

    Attributes:
        number: from 1.
        name: the reason that its failure gives.
        result: `passed`, `failed` or `unknown`.
        text: what was found.
    """

    number: int
    name: str
    result: str
    text: str


class NamedSecret(Struct):
    """The secret version that a token names.

    Attributes:
        version: its number.
        newest: number of the newest version here.
        state: null if it is not here.
        grace_until: likewise.
        invalidated_at: null if it was not invalidated by hand.
    """

    version: int
    newest: int
    state: str | None
    grace_until: int | None
    invalidated_at: int | None


class Revocations(Struct):
    """The revocation list.

    Attributes:
        number: of the list.
        until: until when it is up to date; null before the first list.
        stale: whether that has passed.
        refuses: whether the configuration refuses licenses because of that.
    """

    number: int
    until: int | None
    stale: bool
    refuses: bool


class Seat(Struct):
    """A floating license, and this machine's seat of it.

    Attributes:
        floating: id of the floating license.
        offered: whether the server offers seats to this machine.
        seat: id of the seat; null without one.
        renewed_from: from when on it is renewed.
        ends: its end.
    """

    floating: str
    offered: bool
    seat: str | None
    renewed_from: int | None
    ends: int | None


class NewerToken(Struct):
    """A token of the same license that the agent has besides.

    Attributes:
        reason: its verdict.
        secret_version: that it is under.
    """

    reason: str
    secret_version: int | None


class Clock(Struct):
    """The machine's clock.

    Attributes:
        machine: its time.
        suspect: whether it is wrong.
        server_time: a time of the server that was not taken; null if there is none.
    """

    machine: int
    suspect: bool
    server_time: ServerTime | None


class LastContacts(Struct):
    """The contacts with the license server.

    Attributes:
        last: the last one that succeeded; null before the first.
        failures: that have failed in a row.
        problem: why the last one failed; null if it did not.
        refused: why the server refuses this agent; null if it does not.
    """

    last: int | None
    failures: int
    problem: str | None
    refused: str | None


class Explanation(Struct, kw_only=True):
    """Why a license is valid or not.

    Attributes:
        valid: whether it may be used.
        reason: `ok`, or why not.
        summary: the reason in a sentence.
        next: what to do.
        notes: what else has to do with it.
        license: its id; null if the token was not opened and is not known.
        agent_id: this agent.
        time: for verdicts, now.
        latest_time: the latest that it may be.
        revoked: whether it is on the revocation list; null without an id.
        withheld: `suspended`, `removed` or `given_back`; null otherwise.
        revocations: the revocation list.
        seat: where it is a floating license or a seat; null otherwise.
        token: `given`, `kept` if the agent's own was judged, null if there is none.
        check: number of the check that decided; null if none failed.
        checks: all of them, in order.
        audience: the machine that the token names; null without a token.
        secret: that the token names; null without a token.
        begins_at: null if the token was not opened.
        expires_at: likewise.
        features: that it allows.
        newest: a newer token here; null without one.
        mode: `online`, or how the agent works without its server.
        clock: of the machine.
        server: null where secrets are carried by hand.
    """

    valid: bool
    reason: str
    summary: str
    next: NextStep
    notes: list[str]
    license: str | None
    agent_id: str
    time: int
    latest_time: int
    revoked: bool | None
    withheld: str | None
    revocations: Revocations
    seat: Seat | None
    token: str | None
    check: int | None
    checks: list[Check]
    audience: str | None
    secret: NamedSecret | None
    begins_at: int | None
    expires_at: int | None
    features: list[str]
    newest: NewerToken | None
    mode: str
    clock: Clock
    server: LastContacts | None
