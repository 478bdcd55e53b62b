"""Declares the output of the commands about administrators and about the webhook."""

from msgspec import UNSET, Struct, UnsetType

from .state import Authentication


class AdminCa(Struct):
    """A CA whose certificates count.

    Attributes:
        subject: RFC 4514.
        certificate: SHA-256 of its DER, in hex.
        begins: its beginning.
        ends: its end.
    """

    subject: str
    certificate: str
    begins: int
    ends: int


class AdminAccess(Authentication, kw_only=True):
    """Whether administrators need a certificate, and whose count.

    Attributes:
        cas: whose certificates count.
        revoked_certificates: those that do not count any more, SHA-256 in hex.
    """

    cas: list[AdminCa]
    revoked_certificates: list[str]


class Revoked(Struct):
    """Certificates were revoked.

    Attributes:
        revoked: how many are in all.
    """

    revoked: int


class BreakGlassBegun(Struct):
    """A break-glass certificate counts from now on.

    Attributes:
        seconds: for how long.
    """

    seconds: int


class BreakGlassEnded(Struct):
    """Break-glass certificates do not count any more.

    Attributes:
        ended: how many.
    """

    ended: int


class WebhookKey(Struct):
    """A key that alerts are signed with; never the key itself.

    Attributes:
        id: of the key.
        created_at: when it was made.
    """

    id: str
    created_at: int


class DeadLetter(Struct):
    """An alert that the webhook has not taken.

    Attributes:
        id: of the event.
        alert: which one.
        state: `raised` or `cleared`.
        at: when it was put aside.
        problem: why.
    """

    id: str
    alert: str
    state: str
    at: int
    problem: str


class WebhookStatus(Struct):
    """The webhook that alerts go to.

    Attributes:
        enabled: whether it is switched on.
        min_severity: of the alerts that go out.
        keys: the present one first.
        waiting: how many alerts wait.
        failing_since: since when the receiver has failed; null if it has not.
        problem: why the last attempt failed; empty if it did not.
        dropped: alerts that were dropped since the start.
        dead_letters: what was put aside.
    """

    enabled: bool
    min_severity: str
    keys: list[WebhookKey]
    waiting: int
    failing_since: int | None
    problem: str
    dropped: int
    dead_letters: list[DeadLetter]


class WebhookTested(Struct):
    """A test of the webhook.

    Attributes:
        taken: whether the receiver took it.
        status: HTTP status of its answer; null without one.
        problem: why it failed; empty if it did not.
    """

    taken: bool
    status: int | None
    problem: str


class WebhookRetried(Struct):
    """What is sent once more.

    Attributes:
        revived: dead letters.
        waiting: alerts that wait.
    """

    revived: int
    waiting: int


class WebhookKeyMade(Struct, kw_only=True):
    """A new key.

    Attributes:
        key_id: its id.
        key: the key itself; missing with --out.
        file: that it was written to, with --out.
        keys: how many sign now.
    """

    key_id: str
    key: str | UnsetType = UNSET
    file: str | UnsetType = UNSET
    keys: int


class WebhookKeys(Struct):
    """The keys that alerts are signed with.

    Attributes:
        keys: the present one first.
    """

    keys: list[WebhookKey]


class WebhookKeyEnded(Struct):
    """A key signs nothing any more.

    Attributes:
        key_id: which one.
        keys: how many are left.
    """

    key_id: str
    keys: int
