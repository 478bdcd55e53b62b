"""Defines the commands that back up the agent of this machine, prove a backup, and restore it. Root runs them.

`license-agent`, which knows the agent's files and its hardware, collects and judges them as the agent's user. Here is what it
must not have: the encryption's libraries, and root's right to write the configuration.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import click

from cli.agent import EXIT_INCOMPLETE, EXIT_NEGATIVE, Agent, pass_agent, readable
from common.files import create, write_atomic
from common.text import shown

DEFAULT_CONFIG = "/etc/license-agent/config.toml"
AGE, CMS = b"age-encryption.org/v1\n", b"\x30"
"""How a file encrypted with age, or by CMS in DER, begins."""
MAX_BYTES = 128 * 1024 * 1024
VERSION_OF_FORMAT = 1
MAX_NUMBER = 2**36
"""More than any date or generation; as a date, the year 4147."""
STORES = (".store", ".enc")
"""How the names of sealed stores end."""
_NAME = re.compile(r"(?:policies/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
CONFIGURATION = {"config.toml": 0o600, "link.toml": 0o644}
"""Files of the configuration, with the mode of one that does not exist yet."""


class BackupFailed(click.ClickException):
    """A backup is not one, does not open, or cannot be made."""

    exit_code = EXIT_NEGATIVE

    def show(self, file: Any = None) -> None:
        """Prints the text as this program prints errors."""
        click.echo(shown(f"license-agent-cli: {self.message}"), err=True, file=file)


class WrongKey(BackupFailed):
    """What the command was given to encrypt or decrypt with cannot be used."""

    exit_code = 2


@click.group()
def backup() -> None:
    """Back up the agent of this machine, prove a backup, restore it."""


config_option = click.option(
    "--config", envvar="LICENSE_AGENT_CONFIG", default=DEFAULT_CONFIG, show_default=True, metavar="PATH", help="The agent's."
)


@backup.command("create")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="The new file; nothing may have this name.")
@click.option("--recipient", "recipients", multiple=True, metavar="age1…", help="Encrypt with age; may be repeated.")
@click.option("--recipient-certificate", type=readable, help="Encrypt by CMS, for this certificate with an RSA key (PEM).")
@click.option("--passphrase-file", type=readable, help="Encrypt with age, by the passphrase in the first line of this file.")
@config_option
@pass_agent
def create_(
    agent: Agent,
    to: Path,
    recipients: tuple[str, ...],
    recipient_certificate: Path | None,
    passphrase_file: Path | None,
    config: str,
) -> None:
    """Write state and configuration to one encrypted file. The agent may run. It has no key that opens anything."""
    if sum(map(bool, (recipients, recipient_certificate, passphrase_file))) != 1:
        raise click.UsageError("give --recipient, --recipient-certificate or --passphrase-file, one of them")
    data = run_agent(["--config", config, "backup"], b"")
    content = json.loads(data)
    if passphrase_file is not None:
        sealed = _with_passphrase(data, _passphrase(passphrase_file))
    else:
        sealed = encrypt(data, recipients, recipient_certificate)
    create(to, sealed)
    reply = {key: value for key, value in content.items() if key != "files"} | {"files": sorted(content["files"])}
    who = content["agent_id"] or "a device that is not provisioned"
    agent.show(reply, f"{to}: {who}, generation {content['generation']}, {len(content['files'])} files")


decrypting = [
    click.option("--identity", type=readable, help="The file with the age identity, or the RSA key (PEM) of the certificate."),
    click.option("--certificate", type=readable, help="The certificate that it is encrypted for (PEM)."),
    click.option("--passphrase-file", type=readable, help="The passphrase, in the first line of this file."),
]


def _decrypting(function: Any) -> Any:
    for option in reversed(decrypting):
        function = option(function)
    return function


@backup.command()
@click.argument("file", type=readable)
@_decrypting
@pass_agent
def verify(agent: Agent, file: Path, identity: Path | None, certificate: Path | None, passphrase_file: Path | None) -> None:
    """Prove FILE as far as that can be done without its machine: decrypt it, check each digest, read what can be read."""
    content = _decrypted(file, identity, certificate, passphrase_file)
    problems, checked = [], ["it decrypts"]
    files = content["files"]
    for name, each in sorted(files.items()):
        if problem := _problem(name, each):
            problems.append(f"{name}: {problem}")
    checked.append(f"{len(files)} files, each with its digest")
    open_ = "that its machine opens the store: run 'license-agent-cli backup restore --plan' there"
    if not content["agent_id"]:
        problems.append("it is of a device that was not provisioned: there are no secrets in it")
    elif not any(name.endswith(STORES) for name in files):
        problems.append("no sealed store is in it, so it brings no secret back")
    if "config.toml" not in files:
        problems.append("no config.toml is in it")
    made = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(content["created"]))
    head = f"{file}: agent {content['agent_id'] or '-'}, generation {content['generation']}, made {made}"
    lines = [f"{'DAMAGED' if problems else 'whole'}: {head}", *(f"  wrong: {each}" for each in problems)]
    lines += [*(f"  checked: {each}" for each in checked), f"  not checked: {open_}"]
    reply = {
        "whole": not problems,
        "agent_id": content["agent_id"],
        "generation": content["generation"],
        "created": content["created"],
        "files": sorted(files),
        "problems": problems,
        "checked": checked,
        "unchecked": [open_],
    }
    agent.show(reply, "\n".join(lines))
    if problems:
        sys.exit(EXIT_NEGATIVE)


def _problem(name: str, file: dict[str, str]) -> str | None:
    """What is wrong with a file of a backup, as far as that shows without a key; None if nothing is."""
    data = base64.b64decode(file["data"])
    if not _NAME.fullmatch(name):
        return "the agent has no file of this name"
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        return "its digest does not fit"
    return _unreadable(name, data)


def _unreadable(name: str, data: bytes) -> str | None:
    """Why a file is not what its name says; None if it is, as far as that shows without a key."""
    try:
        if name.endswith(".toml"):
            tomllib.loads(data.decode("utf-8"))
        elif name.endswith(".json"):
            json.loads(data)
        elif name.endswith(STORES) and not data.startswith(b"LASTORE1"):
            return "it is not a sealed store"
    except ValueError as error:
        return f"it cannot be read: {error}"
    return None


@backup.command()
@click.argument("file", type=readable)
@_decrypting
@click.option("--plan", is_flag=True, help="Change nothing: say whether FILE fits this machine, and what would change.")
@click.option("--configuration", is_flag=True, help="Restore the configuration only.")
@config_option
@pass_agent
def restore(
    agent: Agent,
    file: Path,
    identity: Path | None,
    certificate: Path | None,
    passphrase_file: Path | None,
    plan: bool,
    configuration: bool,
    config: str,
) -> None:
    """Put FILE back, with the agent stopped. Refused if it is older than this machine's secrets, or of another machine."""
    content = _decrypted(file, identity, certificate, passphrase_file)
    place = Path(config)
    if configuration and not plan:
        _put_configuration(content, place)
        agent.show({"configuration": True}, f"{place.parent}: the configuration is that of {file}")
        return
    # The backup's own configuration says where things are and which backend guards them.
    found = base64.b64decode(content["files"]["config.toml"]["data"]) if "config.toml" in content["files"] else b""
    with tempfile.TemporaryDirectory(prefix="license-agent-") as directory:
        copy = Path(directory) / "config.toml"
        write_atomic(copy, found or place.read_bytes())
        words = ["--config", str(copy), "recover", "restore-backup", "--place", str(place)]
        reply = json.loads(
            run_agent([*words, *(["--plan"] if plan else [])], json.dumps(content).encode(), fine=(0, 69)) or b"{}"
        )
    if not reply:
        sys.exit(EXIT_NEGATIVE)
    lines = [f"{reply['fit']}: {reply['text']}", *(f"  {name}: {how}" for name, how in sorted(reply["files"].items()))]
    if reply["fit"] != "current" or plan:
        agent.show(reply, "\n".join([*lines, f"next: {reply['next_step']}"]))
        sys.exit(0 if reply["fit"] == "current" else EXIT_INCOMPLETE if plan else EXIT_NEGATIVE)
    _put_configuration(content, place)
    agent.show(reply, "\n".join([*lines, "restored; next: start the agent"]))


def _put_configuration(content: dict[str, Any], place: Path) -> None:
    for name in CONFIGURATION:
        if name in content["files"] and (problem := _problem(name, content["files"][name])):
            raise BackupFailed(f"the backup cannot be used: {name}: {problem}; nothing was changed")
    for name, mode in CONFIGURATION.items():
        if name in content["files"]:
            path = place if name == "config.toml" else place.with_name(name)
            data = base64.b64decode(content["files"][name]["data"])
            before = path.stat() if path.exists() else None
            if before is not None and path.read_bytes() == data:
                continue
            write_atomic(path, data, mode if before is None else before.st_mode & 0o777)
            if before is not None and os.geteuid() == 0:
                os.chown(path, before.st_uid, before.st_gid)


def run_agent(words: list[str], data: bytes, fine: tuple[int, ...] = (0,)) -> bytes:
    """What `license-agent` prints; its messages go to this command's standard error.

    Raises:
        BackupFailed: it cannot be run, or refuses.
    """
    program = Path(sys.argv[0]).resolve().with_name("license-agent")
    command = str(program) if program.exists() else "license-agent"
    try:
        done = subprocess.run([command, *words], input=data, stdout=subprocess.PIPE, check=False)
    except OSError:
        raise BackupFailed("the command license-agent cannot be run; is the package installed?") from None
    if done.returncode not in fine:
        sys.exit(EXIT_NEGATIVE)
    return done.stdout


def _passphrase(path: Path) -> str:
    found = path.read_text("utf-8").split("\n")[0].rstrip("\r")
    if len(found) < 12:
        raise WrongKey(f"{path}: the passphrase has fewer than 12 characters")
    return found


_TOO_MUCH_WORK = "xcessive work"
"""In the error of age for a passphrase whose check would take longer than some seconds on this machine."""


def encrypt(data: bytes, recipients: tuple[str, ...], certificate: Path | None) -> bytes:
    """Encrypts with age for recipients, or by CMS for a certificate.

    Raises:
        WrongKey: a recipient or the certificate cannot be read as one.
    """
    return _to_recipients(data, recipients) if certificate is None else _to_certificate(data, certificate)


def _to_recipients(data: bytes, recipients: tuple[str, ...]) -> bytes:
    import pyrage  # a library that no other command needs

    try:
        return bytes(pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(each) for each in recipients]))
    except pyrage.RecipientError:
        raise WrongKey("a --recipient is not an age recipient: it begins with 'age1' ('age-keygen -y' prints it)") from None


def _with_passphrase(data: bytes, passphrase: str) -> bytes:
    import pyrage

    return bytes(pyrage.passphrase.encrypt(data, passphrase))


def _to_certificate(data: bytes, path: Path) -> bytes:
    # Only a backup to a certificate needs these.
    from cryptography import x509
    from cryptography.hazmat.primitives.ciphers.algorithms import AES256
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7EnvelopeBuilder, PKCS7Options

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        builder = PKCS7EnvelopeBuilder().set_data(data).add_recipient(certificate).set_content_encryption_algorithm(AES256)
    except (ValueError, TypeError):
        raise WrongKey(f"{path} is not a certificate with an RSA key, in PEM; for other keys use age (--recipient)") from None
    return builder.encrypt(Encoding.DER, [PKCS7Options.Binary])


def _decrypted(file: Path, identity: Path | None, certificate: Path | None, passphrase_file: Path | None) -> dict[str, Any]:
    """The content of an encrypted backup.

    Raises:
        BackupFailed: it does not open, or it is not one; the text says which.
    """
    with file.open("rb") as opened:
        sealed = opened.read(MAX_BYTES)
    if sealed.startswith(AGE):
        data = _from_age(file, sealed, identity, passphrase_file)
    elif sealed.startswith(CMS):
        data = _from_cms(file, sealed, identity, certificate)
    else:
        raise BackupFailed(f"{file} is encrypted neither with age nor by CMS: it is not a backup")
    try:
        content: dict[str, Any] = json.loads(data)
        if _has_form(content):
            _require_known_version(file, content)
            return content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise BackupFailed(
        f"{file} decrypts to something else than a backup of the agent: it was changed or damaged, or it is another file"
    )


def _has_form(content: dict[str, Any]) -> bool:
    """Whether a content has each member that the commands read. It may be anybody's, and what it lacks may also raise."""
    numbers = content["created"], content["generation"], content["version"]
    texts = [content["agent_id"], content["program"]]
    for each in content["files"].values():
        base64.b64decode(each["data"], validate=True)
        texts.append(each["sha256"])
    return (
        content["format"] == "license-agent-backup"
        and all(type(number) is int and 0 <= number <= MAX_NUMBER for number in numbers)
        and all(isinstance(text, str) for text in texts)
    )


def _require_known_version(file: Path, content: dict[str, Any]) -> None:
    if content["version"] > VERSION_OF_FORMAT:
        raise BackupFailed(f"{file} is of a newer program ({content['program']}); use that one")


def _by_passphrase(sealed: bytes, passphrase: str) -> bytes:
    """Decrypts with age. It measures the machine and declines what would take long; on a busy one that may be wrong once."""
    import pyrage  # a library that no other command needs

    for last in (False, False, True):
        try:
            return bytes(pyrage.passphrase.decrypt(sealed, passphrase))
        except pyrage.DecryptError as error:
            if last or _TOO_MUCH_WORK not in str(error):
                raise
    raise AssertionError


def _from_age(file: Path, sealed: bytes, identity: Path | None, passphrase_file: Path | None) -> bytes:
    import pyrage

    try:
        if passphrase_file is not None:
            return _by_passphrase(sealed, _passphrase(passphrase_file))
        if identity is None:
            raise WrongKey(f"{file} is encrypted with age: give --identity or --passphrase-file")
        lines = [line.strip() for line in identity.read_text("utf-8").splitlines()]
        keys = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
        return bytes(pyrage.decrypt(sealed, keys))
    except pyrage.IdentityError:
        raise WrongKey(f"{identity} holds no age identity ('age-keygen' makes one)") from None
    except pyrage.DecryptError as error:
        if _TOO_MUCH_WORK in str(error):
            what = "does not open now: this machine is too slow or too busy for its passphrase; try again when it does less"
            raise BackupFailed(f"{file} {what}") from None
        raise BackupFailed(f"{file} does not open: it is for another key or passphrase, or it is damaged") from None


def _from_cms(file: Path, sealed: bytes, identity: Path | None, certificate: Path | None) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.hazmat.primitives.serialization.pkcs7 import pkcs7_decrypt_der

    if identity is None or certificate is None:
        raise WrongKey(f"{file} is encrypted by CMS: give --identity KEY and --certificate CERTIFICATE")
    try:
        key = load_pem_private_key(identity.read_bytes(), None)
        recipient = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (ValueError, TypeError):
        raise WrongKey(f"{identity} and {certificate} must be a key without passphrase and its certificate, in PEM") from None
    if not isinstance(key, RSAPrivateKey):
        raise WrongKey(f"{identity} does not hold an RSA key")
    try:
        return pkcs7_decrypt_der(sealed, recipient, key, [])
    except ValueError:
        raise BackupFailed(f"{file} does not open: it is for another certificate, or it is damaged") from None
