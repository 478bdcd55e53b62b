"""Runs the health command of a product as the product's user, in its current slot, or at the root of a whole system.

It becomes that command for good.

Before that, where root's configuration says how, it asks the product which version runs.

The unit license-agent-pos-check@.service confines it: loopback only, nothing to write, an end by force. Its exit status is the
command's.
"""

import argparse
import os
import pwd
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

from settings.errors import ConfigError

from .. import VERSION
from ..backends.slots import CURRENT
from ..config import DEFAULT_PATH, ProductConfig, load_config
from .posversion import VersionDiffers, VersionUnknown
from .posversion import check as check_version

EXIT_UNAVAILABLE, EXIT_CONFIG = 69, 78
EXIT_OTHER_VERSION, EXIT_NO_VERSION = 120, 121
"""Statuses by which the apply service knows that it is the version: a health command rarely has them."""


class NotRun(Exception):
    """The command cannot be run; the text says why."""


def become(product: ProductConfig) -> NoReturn:
    """Leaves root for good and runs the command, which a signal ends after the product's timeout.

    Raises:
        NotRun: the user does not exist, or the command cannot be started.
        VersionDiffers: another version runs than is installed.
        VersionUnknown: the product does not say which one.
    """
    try:
        user = pwd.getpwuid(product.uid)
    except KeyError:
        raise NotRun(f"there is no user with UID {product.uid}; correct 'user' in [product.{product.name}]") from None
    slot = Path("/") if product.backend == "rauc" else product.directory / CURRENT
    command = slot / product.health[0]
    try:
        if os.geteuid() == 0:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        if 0 in os.getresuid() or os.geteuid() != product.uid:
            raise NotRun(f"this process cannot become UID {product.uid}; systemd starts it as root")
        os.chdir(slot)
        # The kernel keeps the alarm through exec; the unit's TimeoutStartSec= ends a command that ignores it.
        signal.alarm(product.timeout_s)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": user.pw_dir, "USER": user.pw_name, "LANG": "C.UTF-8"}
        if product.version is not None:
            check_version(product.version, slot, environment)
        os.execve(  # noqa: S606, root's configuration names the command
            command,
            [str(command), *product.health[1:]],
            environment,
        )
    except OSError as error:
        raise NotRun(f"{error.filename or command}: {error.strerror}; correct 'health' in [product.{product.name}]") from None


def main(arguments: list[str] | None = None, config: Path = DEFAULT_PATH, owners: tuple[int, ...] = (0,)) -> int:
    """Returns an exit status only where the command was not started."""
    parser = argparse.ArgumentParser(
        prog="license-agent-pos-check",
        description="Runs the health command that installer.toml names for a product, as that product's user.",
        epilog=f"Exit status: the command's; {EXIT_UNAVAILABLE} it cannot be run, {EXIT_CONFIG} installer.toml is refused, "
        f"{EXIT_OTHER_VERSION} the product says that another version runs, {EXIT_NO_VERSION} it does not say which.",
    )
    parser.add_argument("product", help="its name in installer.toml")
    parser.add_argument("--version", action="version", version=f"license-agent-pos-check {VERSION}")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        product = load_config(config, owners).products.get(options.product)
        if product is None:
            raise ConfigError([f"{config} has no section [product.{options.product}]; add it"])
        if product.backend == "deb":
            raise ConfigError([f"[product.{product.name}] has no health command of its own"])
        become(product)
    except ConfigError as error:
        sys.stderr.writelines(f"license-agent-pos-check: {problem}\n" for problem in error.problems)
        return EXIT_CONFIG
    except (VersionDiffers, VersionUnknown) as error:
        sys.stderr.write(f"license-agent-pos-check: {error}\n")
        return EXIT_OTHER_VERSION if isinstance(error, VersionDiffers) else EXIT_NO_VERSION
    except NotRun as error:
        sys.stderr.write(f"license-agent-pos-check: {error}\n")
        return EXIT_UNAVAILABLE


def entry() -> None:
    """The console script."""
    sys.exit(main())
