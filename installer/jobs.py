"""Hands jobs to license-agent-apply.service and license-agent-upgrade.service by a file, and waits for the result.

The installer may start nothing and reaches neither D-Bus nor systemd. It writes a job into a directory of root's; a path unit
of systemd sees it and starts the service, which does what root's configuration says and writes the result beside it. Each of
the two services has a directory of its own.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from common.files import no_trace, write_atomic
from ipc.installermessages import MAX_CHECKS, Check

from .contract import Place
from .state import DIRECTORY

JOBS = DIRECTORY / "jobs"
UPGRADES = DIRECTORY / "upgrades"
JOB, RESULT = "job.json", "result.json"
MAX_JOB_BYTES = 16 * 1024
POLL_S = 0.1

Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Text = Annotated[str, Meta(max_length=64)]


class BadJob(Exception):
    """A job or a result cannot be read. The text says which file and why."""


class _Job(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, tag_field="kind"):
    """What every job has.

    Attributes:
        v: version of the form.
        id: a new one for each job; its result has the same.
    """

    v: Literal[1] = 1
    id: Id


class Restart(_Job, frozen=True, kw_only=True, tag="restart"):
    """Restart the unit that root's configuration names for a product."""

    product: Name


class Examine(_Job, frozen=True, kw_only=True, tag="check"):
    """Find out whether a product's unit runs, and run its health command."""

    product: Name


class Upgrade(_Job, frozen=True, kw_only=True, tag="deb"):
    """Have dpkg install the package of the agent that is kept in a place, or go back to it.

    Attributes:
        product: the agent's.
        place: where its package is kept.
        sha256: that the file must have.
    """

    product: Name
    place: Place
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Look(_Job, frozen=True, kw_only=True, tag="rauc-look"):
    """Ask RAUC which slots there are and what is in them."""

    product: Name


class Inspect(_Job, frozen=True, kw_only=True, tag="rauc-inspect"):
    """Have RAUC verify the candidate, the bundle that is kept but not accepted yet, and read what it says of itself."""

    product: Name


class Install(_Job, frozen=True, kw_only=True, tag="rauc-install"):
    """Have RAUC install the accepted bundle in a place that the machine does not run from."""

    product: Name
    place: Place


class Mark(_Job, frozen=True, kw_only=True, tag="rauc-mark"):
    """Have RAUC mark the slot of a place, for the bootloader."""

    product: Name
    place: Place
    state: Literal["good", "bad", "active"]


class SaveConfig(_Job, frozen=True, kw_only=True, tag="save-config"):
    """Keep a product's configuration as it is, before another version of the product runs."""

    product: Name


class RestoreConfig(_Job, frozen=True, kw_only=True, tag="restore-config"):
    """Put a product's configuration back as it was kept."""

    product: Name


Job = Restart | Examine | Upgrade | Look | Inspect | Install | Mark | SaveConfig | RestoreConfig
"""Every kind of job. A new one is a struct with a tag of its own here, and a row in apply.py, upgrade.py or raucjobs.py."""


class Held(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A slot of a whole system.

    Attributes:
        slot: its name in RAUC's configuration.
        good: the bootloader may start it.
        version, build_id: of what is in it; empty where nothing says that.
    """

    slot: Text
    good: bool
    version: Text
    build_id: Text


class System(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What RAUC says of this machine.

    Attributes:
        booted: the place that the machine runs from.
        primary: the place that the bootloader starts next.
        a, b: the places, in the order of their names.
    """

    booted: Place
    primary: Place
    a: Held
    b: Held

    def of(self, place: Place) -> Held:
        """What is in a place."""
        return self.a if place == "a" else self.b


class Bundle(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a bundle says of itself."""

    version: Text
    build_id: Text


class Result(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What came of a job.

    Attributes:
        v: version of the form.
        id: of the job.
        checks: what was done or looked at; the job succeeded if there is one, and all are `ok`.
        system: what RAUC says of the machine, if it was asked.
        bundle: what a bundle says of itself, if that was asked.
    """

    v: Literal[1] = 1
    id: Id
    checks: Annotated[tuple[Check, ...], Meta(max_length=MAX_CHECKS)]
    system: System | UnsetType = UNSET
    bundle: Bundle | UnsetType = UNSET


class Jobs:
    """The installer's side.

    Args:
        directory: of the files; it exists.
        clock: seconds, of a clock that never goes back.
        sleep: waits for so many seconds.
        trace: called after each step of a write.
        unit: name of the service that does the jobs, and of its path.
    """

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        trace: Callable[[str], None] = no_trace,
        unit: str = "license-agent-apply",
    ) -> None:
        self._directory = directory
        self._unit = unit
        self._clock = clock
        self._sleep = sleep
        self._trace = trace

    def restart(self, product: str, within_s: float) -> tuple[Check, ...]:
        """Has a product's unit restarted, and returns what came of it; see `ask`."""
        return self._run(Restart(id=secrets.token_hex(16), product=product), within_s)

    def examine(self, product: str, within_s: float) -> tuple[Check, ...]:
        """Has a product looked at, and returns what was found; see `ask`."""
        return self._run(Examine(id=secrets.token_hex(16), product=product), within_s)

    def upgrade(self, product: str, place: Place, sha256: str, within_s: float) -> tuple[Check, ...]:
        """Has a package of the agent installed, and returns what came of it; see `ask`."""
        return self._run(Upgrade(id=secrets.token_hex(16), product=product, place=place, sha256=sha256), within_s)

    def rauc(self, product: str, kind: type[Look | Inspect | Install | Mark], within_s: float, **fields: Any) -> Result:
        """Has RAUC asked or ordered, and returns what came of it; see `ask`."""
        return self.ask(kind(id=secrets.token_hex(16), product=product, **fields), within_s)

    def save_config(self, product: str, within_s: float) -> tuple[Check, ...]:
        """Has a product's configuration kept, and returns what came of it; see `ask`."""
        return self._run(SaveConfig(id=secrets.token_hex(16), product=product), within_s)

    def restore_config(self, product: str, within_s: float) -> tuple[Check, ...]:
        """Has a product's configuration put back, and returns what came of it; see `ask`."""
        return self._run(RestoreConfig(id=secrets.token_hex(16), product=product), within_s)

    def _run(self, job: Job, within_s: float) -> tuple[Check, ...]:
        return self.ask(job, within_s).checks

    def ask(self, job: Job, within_s: float) -> Result:
        """Writes a job and waits for its result. A job without a result is a check that is not `ok`.

        Args:
            job: what to do.
            within_s: seconds to wait; then the job is withdrawn, if it has not begun.
        """
        path = self._directory / JOB
        (self._directory / RESULT).unlink(missing_ok=True)
        write_atomic(path, msgspec.json.encode(job), trace=self._trace)
        ends = self._clock() + within_s
        try:
            while self._clock() < ends:
                result = self._result()
                if result is not None and result.id == job.id:
                    return result
                self._sleep(POLL_S)
        except BadJob as error:
            return Result(id=job.id, checks=(Check(name="apply", ok=False, text=str(error)[:500]),))
        finally:
            path.unlink(missing_ok=True)
        text = f"no result within {within_s:g} s; see: systemctl status {self._unit}.path {self._unit}.service"
        return Result(id=job.id, checks=(Check(name="apply", ok=False, text=text),))

    def _result(self) -> Result | None:
        data = read(self._directory / RESULT)
        return None if data is None else decode(data, Result, RESULT)


def read(path: Path) -> bytes | None:
    """Reads a job or a result; None if there is none.

    Raises:
        BadJob: it cannot be read, or is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadJob(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_JOB_BYTES + 1)
    if len(data) > MAX_JOB_BYTES:
        raise BadJob(f"{path} has more than {MAX_JOB_BYTES} bytes")
    return data


def decode(data: bytes, form: Any, name: str) -> Any:
    """Reads a job or a result from JSON.

    Raises:
        BadJob: it has another form.
    """
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadJob(f"{name} cannot be read: {error}") from None
