"""Implements `license-agent admin-ca`, the offline tool that makes an admin CA, issues certificates and lists revoked ones.

It needs no agent and no configuration: a CA's directory may be on a machine without a network. In it are `admin-ca.key`
(0600, encrypted), `admin-ca.pem`, and in `issued/` a copy of each certificate.
"""

import argparse
import datetime
import getpass
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from common.files import create
from contracts.admin.adminauth import ROLES
from contracts.admin.adminca import FILE_NAME, UNREADABLE, digest_of

from .admin.ca import BadRequest, issue, make_ca

EXIT_OK, EXIT_FAILED = 0, 1
KEY_NAME = "admin-ca.key"
ISSUED = "issued"
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _tell(text: str) -> None:
    sys.stderr.write(f"license-agent: {text}\n")


def _passphrase(file: Path | None, what: str, *, new: bool = False) -> bytes:
    """From a file's first line, else from the terminal."""
    if file is not None:
        found = file.read_bytes().partition(b"\n")[0].rstrip(b"\r")
        if not found:
            raise BadRequest(f"the first line of {file} is empty; it must be the passphrase")
        return found
    if not sys.stdin.isatty():
        raise BadRequest(f"the {what} wants a passphrase and there is no terminal to ask: name a file with --passphrase-file")
    text = getpass.getpass(f"{'new ' if new else ''}passphrase of the {what}: ")
    if new and text != getpass.getpass("once more: "):
        raise BadRequest("the passphrases differ; nothing was made")
    if not text:
        raise BadRequest("the passphrase is empty; nothing was made")
    return text.encode()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def new(options: argparse.Namespace) -> int:
    """`license-agent admin-ca new`."""
    directory: Path = options.dir
    for name in (KEY_NAME, FILE_NAME):
        if os.path.lexists(directory / name):
            raise BadRequest(f"{directory / name} exists already and is not overwritten; name another directory")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_ca(key, options.name, _now(), options.days)
    protection = BestAvailableEncryption(_passphrase(options.passphrase_file, "CA's key", new=True))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    create(directory / KEY_NAME, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    create(directory / FILE_NAME, _pem(certificate), 0o644)
    sys.stdout.write(f"{directory / FILE_NAME}\n")
    _tell(f"made the CA '{options.name}'; next, on each machine, as root: license-agent-cli admin-ca install {FILE_NAME}")
    return EXIT_OK


def _open(directory: Path, passphrase_file: Path | None) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path = directory / KEY_NAME
    data = path.read_bytes()
    try:
        certificate = x509.load_pem_x509_certificate((directory / FILE_NAME).read_bytes())
        try:
            key = load_pem_private_key(data, None)
        except TypeError:
            key = load_pem_private_key(data, _passphrase(passphrase_file, "CA's key"))
    except (*UNREADABLE, UnsupportedAlgorithm):
        raise BadRequest(f"{directory} holds no CA that can be used, or the passphrase is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise BadRequest(f"the key in {path} is not that of the certificate in {directory / FILE_NAME}")
    return certificate, key


def issue_certificate(options: argparse.Namespace) -> int:
    """`license-agent admin-ca issue`."""
    out: Path = options.out
    if os.path.lexists(out):
        raise BadRequest(f"{out} exists already and is not overwritten; name another file")
    own: ec.EllipticCurvePrivateKey | None = None
    if options.public_key is None:
        own = ec.generate_private_key(ec.SECP256R1())
        public = own.public_key()
    else:
        public = _public_key(options.public_key)
    ca, ca_key = _open(options.dir, options.passphrase_file)
    agent: str | None = getattr(options, "agent", None)
    certificate = issue(ca, ca_key, public, options.name, options.role, _now(), options.days, agent)
    kept = options.dir / ISSUED
    kept.mkdir(mode=0o700, exist_ok=True)
    plain = _NOT_IN_FILE_NAMES.sub("-", options.name)[:40]
    create(kept / f"{plain}-{digest_of(certificate)[:16]}.pem", _pem(certificate), 0o644)
    data = _pem(certificate)
    if own is not None:
        data += own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    create(out, data, 0o600)
    sys.stdout.write(f"{digest_of(certificate)}\n")
    what = "certificate and key" if own is not None else "certificate"
    care = "; the key in it is not encrypted" if own is not None else ""
    _tell(f"wrote the {what} of '{options.name}' to {out} (role {options.role}, {options.days} days){care}")
    if agent is not None:
        _tell(f"it counts on {agent} only, once, for 4 hours from 'license-agent-cli --auth-cert {out} break-glass begin' on")
    return EXIT_OK


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        raise BadRequest(f"{path} holds no public key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadRequest(f"{path} does not hold a P-256 key")
    return key


def revoke(options: argparse.Namespace) -> int:
    """`license-agent admin-ca revoke`: prints digests, which 'license-agent-cli admin-ca revoke' takes on each machine."""
    lines = []
    for name in options.certificate:
        paths = [Path(name)] if Path(name).is_file() else sorted((options.dir / ISSUED).glob("*.pem"))
        found = [x509.load_pem_x509_certificate(path.read_bytes()) for path in paths]
        if not Path(name).is_file():
            found = [each for each in found if each.subject.rfc4514_string() == x509.Name(_common_name(name)).rfc4514_string()]
        if not found:
            raise BadRequest(f"no certificate for '{name}' was issued in {options.dir}; name the file of a certificate")
        lines += [f"{digest_of(each)} {each.subject.rfc4514_string()}\n" for each in found]
    sys.stdout.write("".join(lines))
    _tell("nothing is revoked yet: on each machine, run 'license-agent-cli admin-ca revoke FILE' with these lines")
    return EXIT_OK


def _common_name(name: str) -> list[x509.NameAttribute[str]]:
    return [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "new": new,
    "issue": issue_certificate,
    "break-glass": issue_certificate,
    "revoke": revoke,
}


def admin_ca(options: argparse.Namespace) -> int:
    """`license-agent admin-ca`."""
    os.umask(0o077)
    try:
        return _ACTIONS[options.action](options)
    except BadRequest as error:
        _tell(str(error))
        return EXIT_FAILED


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 7300:
        raise ValueError
    return days


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `admin-ca` to the command line."""
    admin = commands.add_parser("admin-ca", help="make an admin CA and administrators' certificates (needs no agent)")
    actions = admin.add_subparsers(dest="action", required=True)
    new = actions.add_parser("new", help="make an admin CA")
    new.add_argument("--name", default="License agent admin CA", help="the CA's name (default: %(default)s)")
    new.add_argument("--days", type=_days, default=3650, help="until it ends (default: %(default)s)")
    issue = actions.add_parser("issue", help="issue a certificate to an administrator")
    issue.add_argument("--name", required=True, help="the administrator's name; the audit log shows it")
    issue.add_argument("--role", required=True, choices=ROLES, help="what they may do")
    issue.add_argument("--days", type=_days, default=90, help="until it ends (default: %(default)s)")
    issue.add_argument("--public-key", type=Path, help="their public key, PEM; else a key is made and written to --out too")
    issue.add_argument("--out", type=Path, required=True, help="write the certificate here")
    glass = actions.add_parser("break-glass", help="issue a certificate for an emergency on one agent: once, for 4 hours")
    glass.add_argument("--agent", required=True, metavar="ID", help="the agent's id")
    glass.add_argument("--name", required=True, help="who keeps it, and where; the audit log shows it")
    glass.add_argument("--days", type=_days, default=90, help="until it can no longer be begun (default: %(default)s)")
    glass.add_argument("--out", type=Path, required=True, help="write certificate and key here")
    glass.set_defaults(role="admin", public_key=None)
    revoke = actions.add_parser("revoke", help="print what 'license-agent-cli admin-ca revoke' takes")
    revoke.add_argument("certificate", nargs="+", help="an administrator's name, or the file of a certificate")
    for each in (new, issue, glass, revoke):
        each.add_argument("--dir", type=Path, required=True, help="the CA's directory")
    for each in (new, issue, glass):
        each.add_argument("--passphrase-file", type=Path, help="a file whose first line is the passphrase of the CA's key")
