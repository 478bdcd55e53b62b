"""The configuration files of the packages are those of the last release, byte by byte.

An administrator edits them. With another file in the package, dpkg asks at the next upgrade which one to keep, and an upgrade
without a terminal fails there. What is new in the configuration is told by the reference.
"""

import hashlib
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "packaging" / "etc"
OF_0_1_0 = {
    "config.toml": "f2aa4290ec4dc04ef443790dc9dcd7c16a1a36ebbdfb05189071b2b0779b1d4e",
    "license-server.default": "ac0bd8e3f8cb855ab608b9200b3e406f5bec7fca9b5418f644fc3d97f7db58a4",
    "link.toml": "b5b235b34823cedaca60fa46abf79413a6493c55f86afc741f18095f8273d941",
}


def test_an_upgrade_of_an_edited_configuration_asks_nothing() -> None:
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DIRECTORY.iterdir()} == OF_0_1_0
