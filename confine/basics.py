"""Lists the files that every Python program of ours reads: its code, the machine's settings, the kernel's views."""

import os
import sys
from pathlib import Path

from .landlock import Access, PathRule

_READ = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    # As a whole: passwd, group, hosts and resolv.conf are replaced by rename, and a rule for a file stays with the old one.
    # What in it is secret has modes and owners, and AppArmor names the files.
    "/etc",
    # As a whole for the same reason: the kernel may replace the inodes of /proc/self.
    "/proc",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    # What the resolver of names asks where it is not in /etc.
    "/run/systemd/userdb",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/var/lib/sss/mc",
)


def python_paths() -> list[Path]:
    """Where this interpreter finds its code: its own trees, and its search path."""
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *(entry or os.getcwd() for entry in sys.path)]
    return list(dict.fromkeys(Path(os.path.abspath(entry)) for entry in found))


def basic_rules() -> list[PathRule]:
    """Rules for reading only."""
    # What the service manager hands over (systemd.exec(5), LoadCredential=).
    handed = [Path(directory)] if (directory := os.environ.get("CREDENTIALS_DIRECTORY")) else []
    return [PathRule(path, Access.READ) for path in dict.fromkeys([*map(Path, _READ), *python_paths(), *handed])]
