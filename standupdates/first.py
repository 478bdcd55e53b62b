"""Prepares a stand for updates as an administrator prepares a till: the first version in a slot, and a certificate.

It prints the pin of the certificate's root, for link.toml.
"""

import os
import sys
from pathlib import Path
from typing import Any

from installer.bundle.errors import BundleRefused
from installer.bundle.unpack import judge_bundle, unpack

from .webserver import make_certificate


def main(options: dict[str, Any]) -> int:
    """Returns the exit status.

    Args:
        options: `package` a bundle, `slots` the product's directory without slots yet, `certificate` the file to be written.
    """
    top = Path(options["slots"])
    slot = top / "slots" / "a"
    os.umask(0o022)
    slot.mkdir(parents=True)
    descriptor = os.open(slot, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Path(options["package"]).open("rb") as package:
            unpack(package, descriptor, judge_bundle(package).finish())
    except BundleRefused as refused:
        sys.stderr.write(f"{options['package']}: {refused}\n")
        return 1
    finally:
        os.close(descriptor)
    (top / "current").symlink_to("slots/a")
    sys.stdout.write(make_certificate(Path(options["certificate"])) + "\n")
    return 0
