"""Each command's module can be imported first, whichever command is typed: no import works only after another command's."""

import subprocess
import sys

import pytest

from server.main import _COMMANDS

pytestmark = pytest.mark.system
_EACH_IN_A_FORK = """
import gc, importlib, os, sys, traceback
gc.disable()
import alembic, click, cryptography.x509, joserfc.jwe, msgspec, pydantic
import psycopg, securesystemslib.signer, sqlalchemy.orm, tuf.api.metadata
assert "server" not in sys.modules
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module("server.main")
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
"""Libraries are loaded once, since they take most of the time."""


def _that_fail(*modules: str) -> tuple[list[str], str]:
    command = [sys.executable, "-c", _EACH_IN_A_FORK, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split(), done.stderr


def test_the_module_of_each_command_can_be_imported_first() -> None:
    failed, why = _that_fail(*(f"server.cli.{module}" for module in _COMMANDS))
    assert not failed, why


def test_a_module_that_cannot_be_imported_is_named() -> None:
    assert _that_fail("server.cli.service.clock", "server.cli.nothing")[0] == ["server.cli.nothing"]
