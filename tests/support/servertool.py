"""`license-server` commands inside the test's own process, where they only prepare what is tested."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from click.testing import CliRunner
from sqlalchemy.exc import SQLAlchemyError

from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from server.main import main, status_of

_one_at_a_time = threading.Lock()  # the runner takes over the process's streams


@dataclass(frozen=True)
class Done:
    """How a command ended, as `subprocess.run` tells it."""

    returncode: int
    stdout: str
    stderr: str


def license_server(*arguments: str, env: Mapping[str, str], stdin: str | None = None) -> Done:
    """Runs one command, with this environment on top of the process's own."""
    with _one_at_a_time:
        result = CliRunner().invoke(main, list(arguments), input=stdin, env=env)
    error = result.exception
    if isinstance(error, RegistryError | RequestRefused | SQLAlchemyError | OSError):
        return Done(status_of(error), result.stdout, f"{result.stderr}license-server: {error}\n")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Done(result.exit_code, result.stdout, result.stderr)
