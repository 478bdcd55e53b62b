"""Opens a configuration file: only a regular one, within bounds, owned and writable by whom it may be."""

import codecs
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from common.files import PRIVATE, file_problems

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file as it was read. Its owner and mode are those of what was read, not of what has its name later.

    Attributes:
        path: its name.
        info: its owner, mode and kind.
        data: its content, one byte more than the bound at the most.
        most: the bound, in bytes.
    """

    path: Path
    info: os.stat_result
    data: bytes
    most: int

    def problems(self, owners: Collection[int], forbidden: int = PRIVATE) -> list[str]:
        """Says what is wrong with its owner and mode, as `common.files.file_problems`."""
        return file_problems(self.path, self.info, owners, forbidden)

    def text(self) -> str:
        """Returns its content. A byte order mark before it, as editors of other systems write it, is skipped.

        Raises:
            ConfigError: it is too long, or not UTF-8.
        """
        if len(self.data) > self.most:
            raise ConfigError([f"{self.path} has more than {self.most} bytes; remove what does not belong there"])
        if self.data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError([f"{self.path} is UTF-16, not UTF-8; save it in that encoding"])
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError([f"{self.path} is not UTF-8; save it in that encoding"]) from None


def read_file(path: Path, most: int, create: str, *, follow: bool = True) -> ConfigFile:
    """Reads a configuration file, without waiting for a writer of what turns out to be a pipe.

    Args:
        path: the file.
        most: how many bytes it may have.
        create: how to create it, for the error: "create it (owner root, mode 0644)".
        follow: whether it may be a symbolic link.

    Raises:
        ConfigError: it is not there, is not a regular file, or cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    irregular = [f"{path} is not a regular file; put the file itself there"]
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; {create}"]) from None
    except OSError as error:
        if not follow and path.is_symlink():
            raise ConfigError(irregular) from None
        raise ConfigError([f"{path} cannot be read: {error.strerror}{_owner(path)}"]) from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(irregular)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return ConfigFile(path, info, file.read(most + 1), most)
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
    finally:
        os.close(descriptor)


def _owner(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:
        return ""
    return f" (it belongs to uid {info.st_uid}, its mode is {stat.S_IMODE(info.st_mode):04o})"
