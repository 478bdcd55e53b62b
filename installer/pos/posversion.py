"""Asks a product which version of it runs, and judges the answer (OT-04). What does not answer has not proved itself.

The product is asked by a command in its slot or by HTTP on loopback, as its own user and in the sandbox of the health check.
What it must say is what the slot's manifest says, which was judged when the slot was unpacked.
"""

import http.client
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from ..bundle.errors import BundleRefused
from ..bundle.judge import MANIFEST, MAX_MANIFEST_BYTES, Manifest, read_manifest

MAX_ANSWER_BYTES = 64 * 1024
ASK_S = 10.0
"""How long the product may take to answer, seconds; the alarm of the health check may end it earlier."""


class VersionDiffers(Exception):
    """The product says that another version runs."""


class VersionUnknown(Exception):
    """The product does not say which version runs, or nobody knows which one should."""


def expected(slot: Path) -> Manifest:
    """What must run, by the slot's manifest.

    Raises:
        VersionUnknown: it cannot be read.
    """
    try:
        with (slot / MANIFEST).open("rb") as file:
            return read_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except (OSError, BundleRefused) as error:
        raise VersionUnknown(f"{slot / MANIFEST} does not say which version it is: {error}") from None


def require(manifest: Manifest, answer: bytes, *, form: str) -> None:
    """Judges an answer. Pure.

    Args:
        manifest: what must run.
        answer: the command's output, or the body of the HTTP answer.
        form: `command` for a line of text that has the version as one of its words; `http` for a JSON object with `version`,
            and with `build_id` if the product knows it.

    Raises:
        VersionDiffers: it names another version or build.
        VersionUnknown: it names none.
    """
    if form == "command":
        lines = answer.decode("utf-8", "replace").splitlines()
        words = lines[0].split() if lines else []
        if not words:
            raise VersionUnknown("the command printed no version")
        if manifest.version not in words:
            raise VersionDiffers(f"the product says {shown(lines[0])}; installed is {manifest.version}")
        return
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        raise VersionUnknown("the answer is not JSON") from None
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str) or not version:
        raise VersionUnknown("the answer is not a JSON object with a text 'version'")
    if version != manifest.version:
        raise VersionDiffers(f"the product says {shown(version)}; installed is {manifest.version}")
    build = found.get("build_id", manifest.build_id)
    if build != manifest.build_id:
        raise VersionDiffers(f"the product says build {shown(str(build))}; installed is build {manifest.build_id}")


def ask(how: str | tuple[str, ...], slot: Path, environment: dict[str, str]) -> bytes:
    """The product's answer.

    Args:
        how: URL on loopback, or a command relative to the slot with its arguments.
        slot: of the product; the working directory of the command.
        environment: of the command.

    Raises:
        VersionUnknown: there is none.
    """
    return _get(how) if isinstance(how, str) else _run(how, slot, environment)


def check(how: str | tuple[str, ...], slot: Path, environment: dict[str, str], ask: Callable[..., bytes] = ask) -> None:
    """Asks and judges. Raises as `expected`, `ask` and `require`."""
    manifest = expected(slot)
    require(manifest, ask(how, slot, environment), form="http" if isinstance(how, str) else "command")


def _run(command: tuple[str, ...], slot: Path, environment: dict[str, str]) -> bytes:
    try:
        done = subprocess.run(
            [str(slot / command[0]), *command[1:]],
            cwd=slot,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VersionUnknown(f"{command[0]} did not end within {ASK_S:g} s") from None
    except OSError as error:
        raise VersionUnknown(f"{command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise VersionUnknown(f"{command[0]} ended with status {done.returncode}")
    return done.stdout[:MAX_ANSWER_BYTES]


def _get(url: str) -> bytes:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=ASK_S)
    try:
        connection.request("GET", parts.path or "/", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise VersionUnknown(f"{url} answered with status {answer.status}")
        body = answer.read(MAX_ANSWER_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise VersionUnknown(f"{url}: {error}") from None
    finally:
        connection.close()
    if len(body) > MAX_ANSWER_BYTES:
        raise VersionUnknown(f"{url} answered with more than {MAX_ANSWER_BYTES} bytes")
    return body


def shown(text: str) -> str:
    """A product's word as a log may have it."""
    return ascii(text[:80])
