"""Chooses what is run, and how long Hypothesis looks.

Hypothesis repeats itself exactly and stays brief; HYPOTHESIS_PROFILE=thorough makes it look longer. `--pure` leaves out the
tests that need more than this process, and fails any other that does. `--nothing-missing` fails a test that is skipped for
want of something that can be installed.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.compiled import share_compiled_statements
from tests.support.otheruser import remove_copies
from tests.support.postgres import Postgres, shared_postgres

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

OUTSIDE = frozenset({"tpm", "postgresql"})
"""Values of a test's parameters that say that it needs a process beside it."""
BEYOND = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.system",
        "socket.bind",
        "socket.connect",
        "subprocess.Popen",
    }
)
"""What a pure test does not do, as the interpreter's audit events are called."""
CANNOT_BE_HAD = re.compile(
    r"this kernel|this machine's kernel|only root|x86_64"  # features of the machine; the guest of scripts/e2e has most of them
    r"|Node cannot read SO_PEERCRED"  # has no such call
    r"|tried with a TPM|the software backend's key file"  # combinations that do not exist
)
"""Reasons for which a test may be skipped all the same."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pure", action="store_true", help="only tests that need no socket, process, TPM or PostgreSQL")
    parser.addoption("--rewrite", action="store_true", help="write what commands print now into the files of tests/sessions")
    parser.addoption("--nothing-missing", action="store_true", help="fail a test that is skipped because something is missing")


def pytest_configure(config: pytest.Config) -> None:
    share_compiled_statements()
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations())
    if config.getoption("--pure") and not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return  # the tests are run by the workers of pytest-xdist, which this process starts
    if config.getoption("--pure"):
        sys.addaudithook(_refuse)


def _refuse(event: str, _arguments: Any) -> None:
    if event in BEYOND and "PYTEST_CURRENT_TEST" in os.environ:
        raise AssertionError(f"{event} in a pure test: mark it with pytest.mark.system")


def _is_pure(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    values = {value for value in parameters.params.values() if isinstance(value, str)} if parameters else set()
    fixtures = set(getattr(item, "fixturenames", ()))
    return not (item.get_closest_marker("system") or values & OUTSIDE or fixtures & {"postgres", "hsm", "enrolled_tpm"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests that are marked `thorough` to the profile of that name (scripts/soak), and others to runs without --pure."""
    left_out = set()
    if settings.get_current_profile_name() != "thorough":
        left_out |= {item for item in items if item.get_closest_marker("thorough")}
    if config.getoption("--pure"):
        left_out |= {item for item in items if not _is_pure(item)}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


class Durations:
    """Seconds that each file has taken, setup and teardown of its tests and fixtures included, as the ten longest are printed.

    With several workers on few processors they sum up to more than the run took.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self._seconds[file] = self._seconds.get(file, 0.0) + report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        longest = sorted(self._seconds.items(), key=lambda item: item[1], reverse=True)[:10]
        if len(self._seconds) <= len(longest):
            return  # few files were asked for, and who asked sees them all
        terminalreporter.section("slowest 10 files")
        for file, seconds in longest:
            terminalreporter.line(f"{seconds:7.1f} s  {file}")


def pytest_unconfigure() -> None:
    """Removes what other users have run our commands from."""
    remove_copies()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turns a skip for want of something into a failure, where that is asked for."""
    report: pytest.TestReport = yield  # type: ignore[misc]
    if report.skipped and item.config.getoption("--nothing-missing") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not CANNOT_BE_HAD.search(reason):
            report.outcome = "failed"
            report.longrepr = f"nothing may be missing here, and this test was skipped: {reason}"
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same for whole files."""
    report: pytest.CollectReport = yield  # type: ignore[misc]
    if report.skipped and collector.config.getoption("--nothing-missing") and isinstance(report.longrepr, tuple):
        report.outcome = "failed"
        report.longrepr = f"nothing may be missing here, and this file was skipped: {report.longrepr[2]}"
    return report  # type: ignore[return-value]


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A private directory with a path short enough for a Unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="la-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Postgres]:
    """The PostgreSQL server of this run, which all workers share."""
    base = tmp_path_factory.getbasetemp()
    with shared_postgres(base if worker_id == "master" else base.parent) as server:
        yield server
