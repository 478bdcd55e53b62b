"""Reads `update-trust.json`: what root lets this machine install, and by whose word.

Root writes the file when the machine is provisioned; the core cannot. Who replaces it decides what is installed, so a file that
anyone but root can change is refused.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from common.files import OTHERS_WRITE, file_problems, os_problem
from common.plain import msgspec_text
from contracts.exchange import AgentId
from contracts.jose import MalformedToken, parse_json_object
from contracts.keyset import Pin

from .target import RESERVED_HARDWARE, Hardware

PATH = Path("/etc/license-agent/update-trust.json")
MAX_TRUST_BYTES = 256 * 1024


class BadTrustFile(Exception):
    """The file is missing, somebody else may change it, or it has another form; the message says which and where."""


class UpdateTrust(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Content of the file.

    Attributes:
        v: version of this form.
        agent_id: this machine's; only directives for it count.
        hardware: which kind of machine this is.
        license_roots: pins of the roots that sign the license server's key sets.
        tuf_root: a root of the update repository, `N.root.json` as it was published; the later ones are reached from it.
    """

    v: Literal[1]
    agent_id: AgentId
    hardware: Hardware
    license_roots: Annotated[tuple[Pin, ...], Meta(min_length=1, max_length=4)]
    tuf_root: dict[str, Any]

    def __post_init__(self) -> None:
        if self.hardware in RESERVED_HARDWARE:
            raise ValueError(f"the hardware {self.hardware} is not allowed: name the kind of machine")
        signed = self.tuf_root.get("signed")
        if self.tuf_root.keys() != {"signed", "signatures"} or not isinstance(signed, dict) or signed.get("_type") != "root":
            raise ValueError("tuf_root must be the metadata of a TUF root: `signed` of the type root, and `signatures`")

    def root_bytes(self) -> bytes:
        """The TUF root as metadata. TUF signs a canonical form, so the signatures count for this text too."""
        return json.dumps(self.tuf_root, separators=(",", ":")).encode()


def encode_trust_file(trust: UpdateTrust) -> bytes:
    """The file's content."""
    return json.dumps(msgspec.to_builtins(trust), indent=1).encode() + b"\n"


def parse_trust_file(data: bytes, where: str = "update-trust.json") -> UpdateTrust:
    """Parses the file's content.

    Args:
        data: the content.
        where: names the file in errors.

    Raises:
        BadTrustFile: it has another form.
    """
    try:
        content = parse_json_object(data, "file")
        return msgspec.convert(content, UpdateTrust, strict=True)
    except MalformedToken as error:
        raise BadTrustFile(f"{where}: {error}") from None
    except msgspec.ValidationError as error:
        raise BadTrustFile(f"{where}: {msgspec_text(str(error))}"[:500]) from None


def read_trust(path: Path = PATH, owners: Collection[int] = (0,)) -> UpdateTrust:
    """Reads the file, which must be a regular one that only its owner can change.

    Args:
        path: the file.
        owners: UIDs, one of which must own it.

    Raises:
        BadTrustFile: it cannot be read, belongs to somebody else, or has another form.
    """
    try:
        # O_NONBLOCK: a named pipe in its place must not make root wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if problems := file_problems(path, os.fstat(descriptor), owners, OTHERS_WRITE):
                raise BadTrustFile("; ".join(problems))
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_TRUST_BYTES + 1)
        finally:
            os.close(descriptor)  # of a directory too, which no file is made of
    except OSError as error:
        raise BadTrustFile(os_problem(error, str(path))) from None
    if len(data) > MAX_TRUST_BYTES:
        raise BadTrustFile(f"{path} has more than {MAX_TRUST_BYTES:,} bytes; write it again as the vendor gave it")
    return parse_trust_file(data, str(path))
