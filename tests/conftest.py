"""Hypothesis repeats itself exactly and stays brief; HYPOTHESIS_PROFILE=thorough makes it look longer."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.otheruser import remove_copies
from tests.support.postgres import Postgres, shared_postgres

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests that are marked `thorough` to the profile of that name (scripts/soak)."""
    if settings.get_current_profile_name() == "thorough":
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_unconfigure() -> None:
    """Removes what other users have run our commands from."""
    remove_copies()


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
