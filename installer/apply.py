"""Does the one job that the installer has left, and exits. systemd starts it when a job appears; it has no socket.

It does only what root's configuration says: a job names a product, never a unit or a command.
"""

import argparse
import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from common.files import os_problem, write_atomic
from common.logqueue import LogQueue, PrefixFormatter, StreamSink, encoder, install
from ipc.installermessages import Check
from settings.errors import ConfigError

from . import VERSION
from .config import InstallerConfig, ProductConfig, load_config
from .jobs import JOB, JOBS, RESULT, BadJob, Examine, Job, Restart, Result, decode, read
from .pos.poscheck import EXIT_NO_VERSION, EXIT_OTHER_VERSION
from .programs import ASK_S, SYSTEMCTL, Ran, Run, checked, failed, run
from .rauc.raucjobs import RaucJobs

log = logging.getLogger("apply")

EXIT_OK, EXIT_FAILED = 0, 1
RESTART_S = 120.0
"""How long systemctl may take to restart a unit."""
START_S = 15.0
"""How much longer than the health command its unit may take."""
STOP_S = 15.0
"""How long systemctl may take to end a health command: longer than TimeoutStopSec= of its unit, which ends it by force."""
JOURNALCTL = "/usr/bin/journalctl"
LAST_LINES, LINE_CHARS = 3, 100
"""What of a unit's log goes into the reason of a failure."""
_VERSION: dict[int | None, str] = {
    EXIT_OTHER_VERSION: "the product says that another version runs than was installed",
    EXIT_NO_VERSION: "the product does not say which version runs",
}
CHECK_UNIT = "license-agent-pos-check@{product}.service"


Rauc = Callable[[Job], Result | None]
"""Does a job for a whole system; None leaves it to the caller."""


def without_rauc(job: Job) -> Result:
    """Says that jobs for a whole system are not done here."""
    return Result(id=job.id, checks=(failed("job", "there is nobody who asks RAUC"),))


def perform(directory: Path, config: Callable[[], InstallerConfig], run: Run, rauc: Rauc = without_rauc) -> bool:
    """Does the job in a directory, if there is one, and writes its result.

    Returns:
        Whether there was no job, or one with a result.
    """

    def do(job: Job, product: ProductConfig) -> tuple[Check, ...] | Result:
        return (rauc(job) if product.backend == "rauc" else None) or _do(job, product, run)

    return perform_job(directory, config, do)


def perform_job(
    directory: Path, config: Callable[[], InstallerConfig], do: Callable[[Job, ProductConfig], tuple[Check, ...] | Result]
) -> bool:
    """Does a job in the way that is given, and writes its result.

    A kill on the way leaves the job, which is then done again: every job may be done twice.
    """
    try:
        data = read(directory / JOB)
        if data is None:
            return True
        job: Job = decode(data, Job, JOB)
    except BadJob as error:
        log.error("%s", error)
        (directory / JOB).unlink(missing_ok=True)  # or systemd would start this program again at once
        return False
    try:
        product = config().products.get(job.product)
        found = (
            (failed("configuration", f"installer.toml has no [product.{job.product}]"),)
            if product is None
            else do(job, product)
        )
    except ConfigError as error:
        found = (failed("configuration", "; ".join(error.problems)),)
    result = Result(id=job.id, checks=found) if isinstance(found, tuple) else found
    for check in result.checks:
        log.info(
            "%s %s, %s: %s%s", type(job).__name__.lower(), job.product, check.name, "ok" if check.ok else "failed", _tail(check)
        )
    write_atomic(directory / RESULT, msgspec.json.encode(result))
    with contextlib.suppress(BadJob):
        # An installer that was restarted may have left another one meanwhile.
        if read(directory / JOB) == data:
            (directory / JOB).unlink(missing_ok=True)
    return True


def _do(job: Job, product: ProductConfig, run: Run) -> tuple[Check, ...]:
    if product.backend == "deb":
        return (failed("job", "the agent's own package is a matter of license-agent-upgrade.service"),)
    match job:
        case Restart():
            return (
                checked(
                    "restart", run([SYSTEMCTL, "restart", "--", product.unit], RESTART_S), f"{product.unit} did not restart"
                ),
            )
        case Examine():
            return _examined(product, run)
    return (failed("job", f"{product.name} is not installed in that way"),)


def _examined(product: ProductConfig, run: Run) -> tuple[Check, ...]:
    """Looks at the unit before and after the product is asked: what it is asked may end it, and before that it may run."""
    before = _active(product, run)
    asked = _healthy(product, run)
    return (_active(product, run) if before.ok else before, *asked)


def _active(product: ProductConfig, run: Run) -> Check:
    ran = run([SYSTEMCTL, "is-active", "--", product.unit], ASK_S)
    problem = "" if ran.status == 0 else f"{product.unit} does not run{_wrote_last(product.unit, run)}"
    return checked("unit", ran, problem)


def _healthy(product: ProductConfig, run: Run) -> tuple[Check, ...]:
    """What one unit finds: first the version, where root's configuration says how to ask, then the health."""
    unit = CHECK_UNIT.format(product=product.name)
    ran = run([SYSTEMCTL, "start", "--", unit], product.timeout_s + START_S)
    if ran.status == 0:
        asked = () if product.version is None else (checked("version", ran, ""),)
        return (*asked, checked("health", ran, ""))
    if ran.status is None:
        # It takes no notice of its alarm. It would run on to the unit's own end, and the next version's check would join it.
        run([SYSTEMCTL, "stop", "--", unit], STOP_S)
    status = _status(run([SYSTEMCTL, "show", "--property=ExecMainStatus", "--value", "--", unit], ASK_S))
    last = _wrote_last(unit, run)
    # The result has it. A unit that stays failed would count as a fault of the machine, long after the way back.
    run([SYSTEMCTL, "reset-failed", "--", unit], ASK_S)
    # Without systemctl's own advice where to look: there is room for 500 characters.
    ran = Ran(ran.status, ran.output.partition("\nSee ")[0])
    if product.version is not None and ran.status is not None and status in _VERSION:
        return (failed("version", f"{_VERSION[status]}{last}; see: journalctl -u {unit}"),)
    return (checked("health", ran, f"'{' '.join(product.health)}' failed{last}; see: journalctl -u {unit}"),)


def _wrote_last(unit: str, run: Run) -> str:
    """What a unit's processes wrote last, as a part of a sentence; empty if they wrote nothing, or it cannot be read."""
    run([JOURNALCTL, "--sync"], ASK_S)  # what was just written may be on its way
    start = run([SYSTEMCTL, "show", "--property=InvocationID", "--value", "--", unit], ASK_S)
    this_start = [f"_SYSTEMD_INVOCATION_ID={start.output}"] if start.status == 0 and start.output else []
    # A unit that systemd starts again and again may not have written yet: then the start before has the reason.
    for more in [this_start, []] if this_start else [[]]:
        show = [JOURNALCTL, "--quiet", "--no-pager", "--boot", "--output=cat", f"--lines={LAST_LINES}", f"_SYSTEMD_UNIT={unit}"]
        ran = run(show + more, ASK_S)
        lines = ["".join(c if c.isprintable() else " " for c in line)[:LINE_CHARS] for line in ran.output.splitlines()]
        if ran.status == 0 and any(lines):
            return f", and wrote last: {' | '.join(lines)}"
    return ""


def _status(ran: Ran) -> int | None:
    """The exit status that systemd has of a unit; None if it does not say."""
    return int(ran.output) if ran.status == 0 and ran.output.isascii() and ran.output.isdecimal() else None


def _tail(check: Check) -> str:
    return f": {check.text}" if check.text else ""


def entry() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="license-agent-apply",
        description="Does the job that license-agent-installer has left. systemd starts it.",
        epilog="Exit status: 0 the job has a result, or there is no job; 1 the job cannot be read or done; 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"license-agent-apply {VERSION}")
    parser.parse_args()

    lines = LogQueue(encoder(PrefixFormatter()), StreamSink())
    install(lines)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    try:
        status = EXIT_OK if perform(JOBS, load_config, run, RaucJobs(run).do) else EXIT_FAILED
    except OSError as error:
        log.error("%s", os_problem(error, str(JOBS)))
        status = EXIT_FAILED
    finally:
        lines.finish()
    sys.exit(status)
