"""A PKCS #11 token in software, in a directory of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import READY_S

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "4711"
LABEL = "license server"


class Token:
    """An initialized token.

    Args:
        directory: of its own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pin_file = directory / "pin"
        self.config = directory / "softhsm2.conf"

    def make(self) -> None:
        """Initializes it."""
        tokens = self.directory / "tokens"
        tokens.mkdir(parents=True)
        self.config.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        command = ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--so-pin", "12345678", "--pin", PIN]
        env = {**os.environ, "SOFTHSM2_CONF": str(self.config)}
        subprocess.run(command, check=True, capture_output=True, env=env, timeout=READY_S)
        self.write_pin(PIN)

    def write_pin(self, pin: str) -> None:
        """Another PIN in the PIN's file."""
        self.pin_file.touch(mode=0o600)
        self.pin_file.write_text(pin + "\n")

    def uri(self, key: str, token: str = LABEL) -> str:
        """The URI of a key."""
        where = f"module-path={MODULE}&pin-source=file:{self.pin_file}"
        return f"pkcs11:token={token.replace(' ', '%20')};object={key}?{where}"


@contextmanager
def token(directory: Path) -> Iterator[Token]:
    """A token that this process sees, and those that it starts. One for a process: the library reads its settings once."""
    made = Token(directory)
    made.make()
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(made.config)
    try:
        yield made
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
