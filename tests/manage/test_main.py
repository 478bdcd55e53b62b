"""What the program does with its files while it runs, and what it says of them."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from manage.config import load_config
from manage.main import _look
from tests.support.manage import managed

pytestmark = [pytest.mark.system, pytest.mark.root]


def test_while_a_file_cannot_be_used_nobody_gets_in() -> None:
    with managed() as manage:
        config, door = load_config(manage.config), SimpleNamespace(context=object())
        given: Any = door
        os.chown(manage.key, os.geteuid(), -1)  # here the test is the program's user
        pem = manage.admin_ca.read_bytes()
        for spoil in (
            manage.admin_ca.unlink,
            lambda: manage.admin_ca.write_bytes(b"nonsense"),
            lambda: manage.admin_ca.chmod(0o666),
        ):
            spoil()
            _look(config, given)
            assert door.context is None, spoil
            manage.admin_ca.write_bytes(pem)
            manage.admin_ca.chmod(0o644)
            _look(config, given)
            assert door.context is not None


def test_the_check_says_where_it_would_serve() -> None:
    with managed() as manage:
        done = manage.command("check-config")
        assert (done.returncode, done.stdout) == (0, f"{manage.config}: no problems found (https://127.0.0.1:{manage.port}/)\n")
        manage.configure(listen='address = "::1"\n')
        assert f"https://[::1]:{manage.port}/" in manage.command("check-config").stdout
