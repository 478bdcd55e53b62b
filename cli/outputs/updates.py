"""Declares the output of the commands for updates."""

from msgspec import UNSET, Struct, UnsetType


class Signed(Struct):
    """The role of the update repository's metadata that ends first, of those that people sign.

    Attributes:
        role: its name.
        until: when it ends.
    """

    role: str
    until: int


class Running(Struct):
    """A product of this machine.

    Attributes:
        product: its name.
        version: that is active; empty if none is.
        build_id: of that version.
        in_trial: whether it is on trial: active and not committed.
        previous: the version that a rollback leads to; null without one.
        problem: why the installer cannot say what is active; only there where it cannot.
    """

    product: str
    version: str
    build_id: str
    in_trial: bool
    previous: str | None
    problem: str | UnsetType = UNSET


class Offer(Struct):
    """What shall be installed, or was last.

    Attributes:
        product: its name.
        version: of the package.
        build_id: of the package.
        number: of the directive; 0 for a package that an administrator handed over.
        rollout: id; empty outside a rollout.
        operator: who wanted it: `server`, or an administrator.
        received: when it came.
        not_after: it is not installed later; null if only the installer knows.
        sha256: of the package, hex.
        length: bytes; 0 before the repository was read.
        notes: release notes.
    """

    product: str
    version: str
    build_id: str
    number: int
    rollout: str
    operator: str
    received: int
    not_after: int | None
    sha256: str
    length: int
    notes: str


class Waits(Struct):
    """What an update waits for.

    Attributes:
        code: `paused`, `not-before`, `notice`, `window`, `frozen`, `consent`, `restart` or `proof`.
        text: for people.
        until: null if nobody knows.
    """

    code: str
    text: str
    until: int | None


class Failed(Struct):
    """Why the last attempt failed.

    Attributes:
        code: of updater, installer or agent.
        text: for people.
    """

    code: str
    text: str


class Progress(Struct):
    """Bytes of the package.

    Attributes:
        done: so many.
        total: of so many; 0 while nothing moves.
    """

    done: int
    total: int


class UpdateStatus(Struct, kw_only=True):
    """Where updates are. Where they are not enabled, `enabled` alone.

    Attributes:
        enabled: whether this machine installs updates.
        state: `idle`, `offered`, `window`, `backed-up`, `downloaded`, `staged`, `switched`, `proving`, `committed`,
            `rolled-back` or `locked`.
        paused: who lets nothing begin; null if nobody does.
        attempts: that have failed in a row.
        retry_at: when a failed attempt is repeated; null if none is.
        urgent: whether an administrator wants it now.
        rehearsal: whether it goes back at its end, on purpose.
        update: null before the first.
        waits: null if it does not wait.
        problem: what is tried again; null without one.
        action: what an administrator does about it; null where nothing is known.
        failure: of the last attempt; null without one.
        progress: of a download or preparation.
        running: the products.
        checked: when the repository was read in this run; null if it was not.
        metadata_expires: when what was read there is out of date; null if it was not read.
        signed: when the first role of the metadata ends that people sign; null before the repository was read.
        time: of the agent.
    """

    enabled: bool
    state: str | UnsetType = UNSET
    paused: str | UnsetType | None = UNSET
    attempts: int | UnsetType = UNSET
    retry_at: int | UnsetType | None = UNSET
    urgent: bool | UnsetType = UNSET
    rehearsal: bool | UnsetType = UNSET
    update: Offer | UnsetType | None = UNSET
    waits: Waits | UnsetType | None = UNSET
    problem: str | UnsetType | None = UNSET
    action: str | UnsetType | None = UNSET
    failure: Failed | UnsetType | None = UNSET
    progress: Progress | UnsetType = UNSET
    running: list[Running] | UnsetType = UNSET
    checked: int | UnsetType | None = UNSET
    metadata_expires: int | UnsetType | None = UNSET
    signed: Signed | UnsetType | None = UNSET
    time: int | UnsetType = UNSET


class UpdateBegun(Struct):
    """An installation or a rehearsal.

    Attributes:
        product: its name.
        version: of the package.
        build_id: of the package.
        outcome: as in the register; null if the command did not wait.
        reason: why it failed; null if the command did not wait.
    """

    product: str
    version: str
    build_id: str
    outcome: str | None
    reason: str | None


class WentBack(Struct):
    """A way back.

    Attributes:
        product: its name.
        version: that it goes back to.
        outcome: as in the register; null if the command did not wait.
        reason: of the way back; null if the command did not wait.
    """

    product: str
    version: str
    outcome: str | None
    reason: str | None


class Unlocked(Struct):
    """Updates that were locked.

    Attributes:
        attempts: that had failed.
    """

    attempts: int


class Paused(Struct):
    """Whether updates are paused.

    Attributes:
        paused: by an administrator of this machine.
    """

    paused: bool


class RegisterLine(Struct):
    """A line of the maintenance register.

    Attributes:
        time: when it ended.
        began: when the attempt began.
        duration_s: seconds in between.
        product: its name.
        version: that was to be installed.
        build_id: of that version.
        before: the version that ran before; empty if unknown.
        number: of the directive; 0 without one.
        operator: who wanted it.
        outcome: `installed`, `rolled-back`, `failed`, `withdrawn` or `rehearsed`.
        reason: code and text of a failure; empty without one.
        attempts: that had failed in a row by then.
    """

    time: int
    began: int
    duration_s: int
    product: str
    version: str
    build_id: str
    before: str
    number: int
    operator: str
    outcome: str
    reason: str
    attempts: int


class UpdateHistory(Struct):
    """Lines of the maintenance register, the newest first.

    Attributes:
        entries: the lines.
    """

    entries: list[RegisterLine]


class Opening(Struct):
    """A time in which updates may begin.

    Attributes:
        opens: its first second; the present time if it is open now.
        closes: the first second behind it; null if it does not close within 400 days.
    """

    opens: int
    closes: int | None


class UpdateWindows(Struct):
    """When updates may begin on this machine, as far as its configuration says.

    Attributes:
        zone: the time zone of the window; UTC without one.
        window: the window in words; null without one: any time will do, but for frozen days.
        openings: in order.
    """

    zone: str
    window: str | None
    openings: list[Opening]
