"""Implements the commands of `license-agent` besides running the daemon: initialize, check, recover, sign policies."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hwsec.errors import NotEnrolled
from hwsec.nv.layout import NV_BASE
from hwsec.owner import HardwareOwner
from hwsec.pcr.policy import encode_policy, sign_pcr_policy
from hwsec.secretmem import forbid_dumps
from hwsec.vault import Vault
from settings.errors import ConfigError

from . import VERSION
from .base.clock.clock import Clock
from .base.config.config import DEFAULT_PATH, Config, load_config
from .base.identity import check_fallback, identified
from .base.user import agent_uid, leave_root, unreadable
from .ca_commands import add_parser, admin_ca
from .enrollment.by_hand import hand_out, initialize
from .enrollment.recovery import diagnose, install_policy, reinitialize, repair, restore
from .secrets.open import make_backend
from .secrets.pcr_policy import parse_pcr_values

T = TypeVar("T")
HARDWARE_DEADLINE_S = 120.0
MAX_RESULT_BYTES = 65_536

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_CONFIG = 0, 1, 2, 69, 78


def init(options: argparse.Namespace) -> int:
    """`license-agent init`: makes this agent's keys, and prints its enrollment request."""
    forbid_dumps()
    config = _load(options)
    trust = options.trust.read_bytes()
    out: Path | None = options.request_out
    leave_root(config)
    os.umask(0o077)
    hand_out(config, _first_init(config, trust), out)
    sys.stderr.write("license-agent: initialized; give the request to 'license-server enroll'\n")
    return EXIT_OK


def _first_init(config: Config, trust: bytes) -> dict[str, object]:
    check_fallback(config)
    return initialize(config, trust)


def _in_time(work: Callable[[], T]) -> T:
    """Runs work that asks the hardware on a thread of its own; raises BackendHung if the hardware does not answer."""

    async def run() -> T:
        return await HardwareOwner().run(work, HARDWARE_DEADLINE_S)

    return asyncio.run(run())


def hardware_id(options: argparse.Namespace) -> int:
    """`license-agent hardware-id`: what an enrollment token may be bound to; asks the hardware and reads no file (PV-01)."""
    config = _load(options)
    leave_root(config)

    def ask() -> str | None:
        vault = Vault()
        try:
            with contextlib.closing(make_backend(config, vault)) as backend:
                backend.open()
                return backend.measure_hardware_id()
        except NotEnrolled:
            with contextlib.closing(make_backend(config, vault)) as backend:
                return backend.measure_hardware_id() if config.tpm.enabled else None
        finally:
            vault.close()

    found = _in_time(ask)
    if found is None:
        sys.stderr.write("license-agent: without a TPM there is no hardware id before the device is provisioned\n")
        return EXIT_UNAVAILABLE
    sys.stdout.write(f"{found}\n")
    return EXIT_OK


def recover(options: argparse.Namespace) -> int:
    """`license-agent recover`."""
    if options.action == "restore-backup":
        return restore_backup(options)
    forbid_dumps()
    config = _load(options)
    trust = options.trust.read_bytes() if options.action == "reinitialize" and options.trust is not None else None
    policy = options.file.read_bytes() if options.action == "policy" else b""
    leave_root(config)
    os.umask(0o077)
    if options.action == "show":
        found = _in_time(lambda: diagnose(config))
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n" if options.json else f"{found.state}: {found.text}\n")
        sys.stderr.write(f"license-agent: {found.advice}\n")
        return EXIT_OK if found.state == "ok" else EXIT_UNAVAILABLE
    if options.action == "repair":
        done = _in_time(lambda: repair(config, Clock()))
        sys.stdout.write("".join(f"{text}\n" for text in done) or "nothing to repair\n")
    elif options.action == "policy":
        sys.stdout.write(f"installed as {install_policy(config, policy, Clock())}\n")
    elif options.action == "restore":
        _in_time(lambda: restore(config, options.copy))
    else:
        request = _in_time(lambda: reinitialize(config, trust, Clock()))
        if request is None:
            sys.stderr.write(
                "license-agent: the old keys and secrets were removed; next: start the agent, then run "
                "'license-agent-cli provision'\n"
            )
            return EXIT_OK
        hand_out(config, request, options.request_out)
        sys.stderr.write(
            "license-agent: initialized again; give the request to 'license-server enroll', then install a new secret\n"
        )
    return EXIT_OK


def backup(options: argparse.Namespace) -> int:
    """`license-agent backup`: what a backup contains, for 'license-agent-cli backup create', which encrypts it."""
    from .enrollment.backup import collect  # not in the daemon, whose memory is counted

    forbid_dumps()
    if options.settings:
        return _backup_settings(_load(options))
    if options.result:
        return _backup_result(_load(options))
    if sys.stdout.isatty():
        sys.stderr.write("license-agent: use 'license-agent-cli backup create', which encrypts it\n")
        return EXIT_USAGE
    config = _load(options)
    leave_root(config)
    sys.stdout.buffer.write(collect(config, options.config, VERSION, int(Clock().wall())))
    return EXIT_OK


def _backup_settings(config: Config) -> int:
    """What `[backup]` says, for 'license-agent-cli backup run'."""
    if config.backup.directory is None:
        sys.stderr.write(f"license-agent: {config.source} has no section [backup] (license-agent-config(5))\n")
        return EXIT_CONFIG
    sys.stdout.write(json.dumps(asdict(config.backup), default=str) + "\n")
    return EXIT_OK


def _backup_result(config: Config) -> int:
    """Keeps what came of 'license-agent-cli backup run', for the agent to watch."""
    from .telemetry.backups import read_record, write_record

    found = json.loads(sys.stdin.buffer.read(MAX_RESULT_BYTES))
    leave_root(config)
    os.umask(0o077)
    before = read_record(config.backup_file)
    write_record(
        config.backup_file, before.after(int(Clock().wall()), str(found.get("file", "")), str(found.get("problem", "")))
    )
    return EXIT_OK


def restore_backup(options: argparse.Namespace) -> int:
    """`license-agent recover restore-backup`: judges a decrypted backup on standard input, and puts it back."""
    from .enrollment.backup import MAX_BACKUP_BYTES, Fit, parse, plan
    from .enrollment.backup import restore as put_back

    forbid_dumps()
    if sys.stdin.isatty():
        sys.stderr.write("license-agent: use 'license-agent-cli backup restore', which decrypts a backup for this command\n")
        return EXIT_USAGE
    config = load_config(options.config, agent_uid())
    place = options.place or options.config
    found = parse(sys.stdin.buffer.read(MAX_BACKUP_BYTES))
    leave_root(config)
    os.umask(0o077)
    config = identified(config).with_agent_id(identified(config).agent.id or found.agent_id)
    if options.plan:
        shown = _in_time(lambda: plan(config, place, found))
    else:
        shown = _in_time(lambda: put_back(config, place, found, Clock()))
    sys.stdout.write(json.dumps(asdict(shown), indent=2) + "\n")
    return EXIT_OK if shown.fit is Fit.CURRENT else EXIT_UNAVAILABLE


def sign_policy(options: argparse.Namespace) -> int:
    """`license-agent sign-policy`: needs neither TPM nor configuration."""
    try:
        values = parse_pcr_values(options.pcrs.read_bytes())
        key = _policy_key(options.key)
        text = encode_policy(sign_pcr_policy(key, values, options.number, options.nv_base)).decode()
    except ValueError as error:
        sys.stderr.write(f"license-agent: the policy cannot be signed: {error}\n")
        return EXIT_FAILED
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    return EXIT_OK


def _policy_key(path: Path) -> ec.EllipticCurvePrivateKey:
    data = path.read_bytes()
    try:
        key = load_pem_private_key(data, None)
    except TypeError:
        raise ValueError(f"{path} is encrypted; write the key without a passphrase where the vendor signs") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path} holds no private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} does not hold an elliptic-curve key")
    return key


def check_config(options: argparse.Namespace) -> int:
    """`license-agent check-config`."""
    try:
        config = _load(options)
    except ConfigError as error:
        if options.json:
            sys.stdout.write(json.dumps({"ok": False, "file": str(options.config), "problems": error.problems}) + "\n")
        else:
            sys.stderr.write("".join(f"license-agent: {problem}\n" for problem in error.problems))
        return EXIT_CONFIG
    sys.stderr.write("".join(f"license-agent: warning: {warning}\n" for warning in config.warnings))
    problem = unreadable(options.config, config)
    if problem is not None:
        shown = json.dumps({"ok": False, "file": str(options.config), "problems": [problem]})
        (sys.stdout if options.json else sys.stderr).write(f"{shown if options.json else f'license-agent: {problem}'}\n")
        return EXIT_CONFIG
    if options.json:
        sys.stdout.write(json.dumps({"ok": True, "file": str(options.config), "problems": []}) + "\n")
    else:
        backend = "TPM" if config.tpm.enabled else "software backend"
        agent = f"agent {config.agent.id}" if config.agent.id else "not provisioned yet"
        sys.stdout.write(f"{options.config}: no problems found ({agent}, {backend})\n")
    return EXIT_OK


def _load(options: argparse.Namespace) -> Config:
    return identified(load_config(options.config, agent_uid()))


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "backup": backup,
    "init": init,
    "check-config": check_config,
    "hardware-id": hardware_id,
    "recover": recover,
    "sign-policy": sign_policy,
    "admin-ca": admin_ca,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="license-agent", description="Holds this machine's license secrets and validates licenses for POS applications."
    )
    parser.add_argument("--version", action="version", version=f"license-agent {VERSION}")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("LICENSE_AGENT_CONFIG", DEFAULT_PATH)),
        help="the configuration file (or LICENSE_AGENT_CONFIG; default: %(default)s)",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("run", help="run the daemon (the default)")
    init = commands.add_parser("init", help="make this agent's keys and its enrollment request")
    init.add_argument("--trust", type=Path, required=True, help="the server's trust file ('license-server trust')")
    init.add_argument("--request-out", type=Path, help="write the enrollment request here instead of standard output")
    commands.add_parser(
        "hardware-id", help="print the id of this machine's hardware, for 'license-server enrollment-token make'"
    )
    back_up = commands.add_parser(
        "backup", help="print what a backup contains, for 'license-agent-cli backup create', which encrypts it"
    )
    timed = back_up.add_mutually_exclusive_group()
    timed.add_argument("--settings", action="store_true", help="print [backup] as JSON, for 'license-agent-cli backup run'")
    timed.add_argument(
        "--result", action="store_true", help="keep what came of it, from standard input, for the agent to watch"
    )
    recover = commands.add_parser("recover", help="diagnose, repair or replace what a failed disk or TPM has left")
    actions = recover.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="say why the agent does not start, and what to do")
    show.add_argument("--json", action="store_true", help="print the result as JSON")
    actions.add_parser("repair", help="restore damaged copies of the store from an intact one")
    again = actions.add_parser("reinitialize", help="remove keys and secrets and make new ones (lost TPM, fallback, return)")
    again.add_argument(
        "--trust", type=Path, help="by hand: the server's trust file; without it the server provisions the agent"
    )
    again.add_argument("--request-out", type=Path, help="write the enrollment request here instead of standard output")
    signed = actions.add_parser("policy", help="install a signed policy while the agent cannot start without one")
    signed.add_argument("file", type=Path, help="the policy, from 'license-agent sign-policy'")
    older = actions.add_parser("restore", help="examine an older copy of the store")
    older.add_argument("copy", type=Path, help="the copy")
    back = actions.add_parser(
        "restore-backup", help="put a backup on standard input back, for 'license-agent-cli backup restore', which decrypts it"
    )
    back.add_argument("--plan", action="store_true", help="change nothing; print what would be done")
    back.add_argument("--place", type=Path, help="where the configuration file belongs, if --config is a copy")
    sign = commands.add_parser("sign-policy", help="sign PCR values, where the vendor keeps the policy key (no TPM needed)")
    sign.add_argument("--key", type=Path, required=True, help="the policy key: a P-256 private key in PEM")
    sign.add_argument("--pcrs", type=Path, required=True, help="the values: 'license-agent-cli --json policy show --pcr N'")
    sign.add_argument("--number", type=int, required=True, help="the policy's number; machines refuse lower ones once revoked")
    sign.add_argument("--nv-base", type=lambda text: int(text, 0), default=NV_BASE, help="[tpm] nv_base of the machines")
    sign.add_argument("--out", type=Path, help="write here instead of standard output")
    add_parser(commands)
    check = commands.add_parser("check-config", help="check the configuration file")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser
