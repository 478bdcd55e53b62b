"""Every command of every program at a terminal: it asks where the table says so, and nowhere else.

A new command needs a row, and a new prompt fails its row. Without a terminal nothing asks, which is why nobody would see it.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import click
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agentd.commands import parser as agent_parser
from cli.main import main as cli_main
from ipc.posclient.shell import _parser as client_parser
from manage.main import _parser as manage_parser
from server.keys.rootkey import write_root_key
from server.main import main as server_main
from server.registry.models.core import Agent
from stand.main import main as stand_main
from tests.support.adminpki import Ca
from tests.support.keptterminal import KeptProgram
from tests.support.serverside import open_server
from tests.support.stand import BIN, Stand, running_stand, short_directory
from tests.support.terminal import AtTerminal, at_terminal

ROOT = "--root-key $LICENSE_SERVER_DIR/offline/root.key"
ASKS = {
    "license-agent admin-ca new": ("--dir asked", None, "passphrase of the CA's key"),
    "license-agent-cli clock confirm": ("", 1, "Continue? [y/N]"),
    "license-agent-cli secrets invalidate": ("3", 1, "Continue? [y/N]"),
    "license-agent-cli policy revoke": ("1", 1, "Continue? [y/N]"),
    "license-agent-cli webhook-key end": ("", 1, "Continue? [y/N]"),
    "license-agent-cli ota rollback": ("pos", 1, "Continue? [y/N]"),
    "license-server agents reinstate": ("revoked", 1, "Continue? [y/N]"),
    "license-server agents delete": ("revoked", 1, "Continue? [y/N]"),
    "license-server agents serial": ("--set 0", 1, "Continue? [y/N]"),
    "license-server clock accept": ("", 1, "[y/N]"),
    "license-server clones resume": ("halted", 1, "[y/N]"),
    "license-server customers erase": ("x", 1, "Continue? [y/N]"),
    "license-server ddi credentials revoke": ("aaaaaaaaaaaa", 1, "[y/N]"),
    "license-server ddi devices revoke": ("x", 1, "[y/N]"),
    "license-server rollouts automatic on": ("x y", 1, "Continue? [y/N]"),
    "license-server rollouts rollback": ("x y", 1, "Continue? [y/N]"),
    "license-server rollouts stop": ("x", 1, "Continue? [y/N]"),
    "license-server ota pause": ("", 1, "Continue? [y/N]"),
    "license-server ota new-key": ("asked", None, "passphrase of asked"),
    "license-server seats free": ("missing", 1, "Continue? [y/N]"),
    "license-server init": ("--dir asked", None, "passphrase of the root key"),
}
"""Commands that ask at a terminal: arguments, exit status (None for any), and what the question says."""

SILENT = {
    "license-agent-client count": "sales",
    "license-agent-client licenses": "",
    "license-agent-client require": "sales",
    "license-server accounts certificates": "x",
    "license-server accounts certify": "x --key empty --out empty",
    "license-server accounts change": "x --role viewer",
    "license-server accounts list": "",
    "license-server accounts make": "x --kind person --role viewer",
    "license-server accounts oidc off": "",
    "license-server accounts oidc set": "--issuer https://127.0.0.1:9/ --audience x",
    "license-server accounts oidc show": "",
    "license-server accounts revoke-certificate": "x",
    "license-server accounts revoke-token": "x",
    "license-server accounts rotate-token": "x",
    "license-server accounts subject": "x --none",
    "license-server accounts token": "x --scope licenses:read",
    "license-server accounts tokens": "x",
    "license-server agents assign": "pos-001",
    "license-server agents replace": "nix nix2",
    "license-server approvals approve": "x",
    "license-server approvals list": "",
    "license-server approvals refuse": "x",
    "license-server break-glass begin": "--why reasonable-x",
    "license-server break-glass end": "x",
    "license-server break-glass list": "",
    "license-server customers change": "x",
    "license-server customers create": "x",
    "license-server customers import": "empty",
    "license-server customers list": "",
    "license-server customers show": "x",
    "license-server entitlements change": "x",
    "license-server entitlements create": "x --name x",
    "license-server entitlements list": "",
    "license-server events": "",
    "license-server keys prepare": "",
    "license-server keys revert": "tls",
    "license-server keys schedule": "",
    "license-server keys use-next": "license",
    "license-server licenses assign": "x --agent pos-001",
    "license-server licenses export": "",
    "license-server licenses history": "x",
    "license-server licenses import": "empty",
    "license-server licenses issue": "",
    "license-server licenses issue-many": "--count 1 --batch x --policy x",
    "license-server licenses reinstate": "x",
    "license-server licenses release": "x",
    "license-server licenses renew": "x",
    "license-server licenses revoke": "x",
    "license-server licenses show": "x",
    "license-server licenses suspend": "x",
    "license-server licenses transfer": "x --agent pos-001",
    "license-server licenses upgrade": "x --policy x",
    "license-server policies change": "x",
    "license-server policies create": "x --product x --name x",
    "license-server policies list": "",
    "license-server policies retire": "x",
    "license-server policies show": "x",
    "license-server products change": "x --name x",
    "license-server products create": "x --name x",
    "license-server products list": "",
    "license-server products retire": "x",
    "license-server reports devices": "",
    "license-server reports expiry": "",
    "license-server reports usage": "",
    "license-server seats list": "",
    "license-server seats set": "x --seats 1",
    "license-server seats show": "x",
    "license-server sites change": "x",
    "license-server sites create": "x --customer x",
    "license-server sites import": "empty",
    "license-server sites list": "",
    "license-server fleets configuration": "x",
    "license-server ddi credentials list": "",
    "license-server ddi devices add": "x",
    "license-server ddi devices certificate": "x --csr empty",
    "license-server ddi devices list": "",
    "license-server ddi devices token": "x",
    "license-server ddi gateway-token": "x",
    "license-server ddi policy set": "x",
    "license-server ddi policy show": "x",
    "license-server devices block": "x",
    "license-server devices change": "x --name y",
    "license-server devices list": "",
    "license-server devices set": "x a=b",
    "license-server devices show": "x",
    "license-server devices tag": "y x",
    "license-server devices unblock": "nobody",
    "license-server devices unset": "x a",
    "license-server devices untag": "y x",
    "license-server fleets add": "y",
    "license-server fleets alerts acknowledge": "fa-0123456789ab",
    "license-server fleets alerts list": "",
    "license-server fleets alerts show": "fa-0123456789ab",
    "license-server fleets alerts silence": "--until +1h",
    "license-server fleets alerts silences": "",
    "license-server fleets alerts unsilence": "fs-0123456789ab",
    "license-server fleets change": "x --name y",
    "license-server fleets delete": "nobody",
    "license-server fleets health": "x",
    "license-server fleets list": "",
    "license-server fleets match": "tag=x",
    "license-server fleets members add": "x y",
    "license-server fleets members remove": "x y",
    "license-server fleets observations": "x",
    "license-server fleets show": "x",
    "license-server fleets thresholds set": "x --window 3",
    "license-server fleets thresholds show": "x",
    "license-server ota trust": "x --hardware till",
    "license-server rollouts automatic list": "",
    "license-server rollouts automatic off": "x y",
    "license-server rollouts create": "x --fleet x --package x/y",
    "license-server rollouts list": "",
    "license-server rollouts pause": "x",
    "license-server rollouts policy": "x",
    "license-server rollouts rehearse": "x",
    "license-server rollouts resume": "x",
    "license-server rollouts show": "x",
    "license-server rollouts start": "x",
    "license-server fleets configure": "x --set updates.notice_h=48",
    "license-server fleets certificates": "x",
    "license-server fleets drift": "x",
    "license-server fleets opens": "x",
    "license-server ota add": "empty --repository . --product x --version 1 --build-id x --hardware x --key empty --out x",
    "license-server ota change-root": "--out x",
    "license-server ota change-targets": "--out x",
    "license-server ota assign": "x pos/y",
    "license-server ota bundle": "x pos/y --for-days 9 --out x.bundle",
    "license-server ota check": ".",
    "license-server ota expiry": "",
    "license-server ota export": "x",
    "license-server ota init": "--root-key empty --targets-key empty --release-key empty --out x",
    "license-server ota keys": "",
    "license-server ota prolong": "--repository . --key empty --out x",
    "license-server ota promote": "x --repository . --key empty --out x",
    "license-server ota publish": ".",
    "license-server ota sign": ". --key empty",
    "license-server ota packages": "",
    "license-server ota resume": "x",
    "license-server ota status": "x",
    "license-server ota withdraw": "x",
    "license-server ota revoke": "x --repository . --key empty --out x",
    "license-server webhooks add": "https://shop.example/",
    "license-server webhooks dead-letters": "x",
    "license-server webhooks list": "",
    "license-server webhooks new-secret": "x",
    "license-server webhooks pause": "x",
    "license-server webhooks remove": "x",
    "license-server webhooks resume": "x",
    "license-server webhooks retry": "x",
    "license-server webhooks set": "x --url https://shop.example/",
    "license-server webhooks test": "x",
    "license-stand deliver": "--dir missing",
    "license-agent run": "--config missing",
    "license-agent init": "--config missing --trust missing",
    "license-agent hardware-id": "",
    "license-agent recover show": "",
    "license-agent recover repair": "",
    "license-agent recover reinitialize": "",
    "license-agent recover policy": "missing",
    "license-agent recover restore": "missing",
    "license-agent recover restore-backup": "--plan",
    "license-agent backup": "",
    "license-agent sign-policy": "--key missing --pcrs missing --number 1",
    "license-agent check-config": "",
    "license-agent admin-ca issue": "--dir missing --name x --role viewer --out x",
    "license-agent admin-ca break-glass": "--dir missing --agent x --name x --out x",
    "license-agent-cli break-glass begin": "--why x",
    "license-agent-cli break-glass end": "",
    "license-agent admin-ca revoke": "x --dir missing",
    "license-agent-cli admin-ca revoke": "ca.pem",
    "license-agent-cli admin-ca show": "",
    "license-agent-cli status": "",
    "license-agent-cli healthcheck": "",
    "license-agent-cli secrets": "",
    "license-agent-cli secrets install": "empty",
    "license-agent-cli license check": "$VALID",
    "license-agent-cli license import": "$VALID",
    "license-agent-cli why": "$EXPIRED",
    "license-agent-cli audit tail": "",
    "license-agent-cli audit verify": "",
    "license-agent-cli audit export": "",
    "license-agent-cli audit search": "--event license.*",
    "license-agent-cli audit open": "empty --archive-key empty",
    "license-agent-cli keys": "identity",
    "license-agent-cli policy show": "",
    "license-agent-cli policy install": "empty",
    "license-agent-cli policy bind": "none",
    "license-agent-cli clock challenge": "",
    "license-agent-cli clock reset": "empty",
    "license-agent-cli doctor": "--host",
    "license-agent-cli doctor nftables": "--link-uid 1",
    "license-agent-cli backup create": "--to missing --recipient x",
    "license-agent-cli backup run": "",
    "license-agent-cli backup verify": "empty",
    "license-agent-cli backup restore": "empty",
    "license-agent-cli metrics": "",
    "license-agent-cli reload": "",
    "license-agent-cli config check": "",
    "license-agent-cli config show": "",
    "license-agent-cli support-bundle": "bundle.tar.gz",
    "license-agent-cli provision": "--server https://localhost --root sha256:0 --claim 0123456789abcdef",
    "license-agent-cli contact": "",
    "license-agent-cli rotate": "",
    "license-agent-cli certificate renew": "",
    "license-agent-cli degraded show": "",
    "license-agent-cli degraded on": "",
    "license-agent-cli degraded off": "",
    "license-agent-cli ota check": "",
    "license-agent-cli ota history": "",
    "license-agent-cli ota install": "",
    "license-agent-cli ota pause": "",
    "license-agent-cli ota rehearse": "",
    "license-agent-cli ota status": "",
    "license-agent-cli ota windows": "",
    "license-agent-cli ota_update": "--url missing.bundle",
    "license-agent-cli ota unlock": "--why repaired",
    "license-agent-cli webhook status": "",
    "license-agent-cli webhook test": "",
    "license-agent-cli webhook retry": "",
    "license-agent-cli webhook-key new": "",
    "license-agent-cli webhook-key show-id": "",
    "license-agent-client validate": "$VALID",
    "license-agent-client refresh": "$VALID",
    "license-agent-client inspect": "$VALID",
    "license-agent-client watch": "missing --for 0",
    "license-agent-client consent": "",
    "license-agent-client info": "",
    "license-agent-client ping": "",
    "license-agent-link": "--check --config missing",
    "license-agent-manage check-config": "--config missing",
    "license-agent-manage serve": "--config missing",
    "license-agent-installer": "",
    "license-agent-updater": "",
    "license-agent-apply": "",
    "license-agent-upgrade": "",
    "license-agent-pos-check": "pos",
    "license-server migrate": "",
    "license-server trust": "",
    "license-server root-pin": "",
    "license-server root-certificate": "",
    "license-server keys list": "",
    "license-server keys rotate": f"rotation {ROOT}",
    "license-server keys end": "--id missing",
    "license-server master-key show": "",
    "license-server master-key rotate": "",
    "license-server master-key finish": "",
    "license-server enroll": "--request empty",
    "license-server enrollment-token make": "",
    "license-server enrollment-token list": "",
    "license-server enrollment-token revoke": "1",
    "license-server agents": "",
    "license-server agents list": "",
    "license-server agents show": "pos-001",
    "license-server agents keys": "pos-001 identity",
    "license-server agents revoke": "pos-002",
    "license-server agents revoke-many": "nobody",
    "license-server agents retire": "pos-002",
    "license-server secrets": "--agent pos-001",
    "license-server secrets list": "--agent pos-001",
    "license-server secrets rotate": "--agent pos-001",
    "license-server secrets invalidate": "--agent pos-001 99",
    "license-server rotate": "--agent pos-002",
    "license-server periods": "",
    "license-server sign-time": "--agent pos-001 --challenge 00000000000000000000000000000000",
    "license-server audit-head": "--agent pos-001",
    "license-server backup": "--out backup",
    "license-server move": "--to sqlite:///moved.db",
    "license-server restore": "empty --dir restored",
    "license-server clock show": "",
    "license-server clones": "",
    "license-server clones list": "",
    "license-server licenses list": "",
    "license-server issue": "--agent pos-001 --expires +1d",
    "license-server reissue": "--agent pos-001",
    "license-server revoke": "nothing",
    "license-server audit": "",
    "license-server retention": "",
    "license-server serve": "--dir missing",
    "license-server openapi": "",
    "license-server tls-files": "--out tls",
    "license-stand up": "--backend software --by-hand --dir up",
    "license-stand issue": "--dir $STAND",
    "license-stand rotate": "--dir $STAND",
    "license-stand invalidate": "--dir $STAND 99",
    "license-stand restart": "--dir $STAND",
    "license-stand server": "start --dir $STAND",
    "license-stand agent": "start --dir $STAND",
    "license-stand reason": "ok --dir $STAND",
    "license-stand revoke": "--dir $STAND nobody",
    "license-stand degrade": "--dir $STAND off",
    "license-stand down": "--dir missing",
    "license-stand fleet": "--dir $STAND --devices 2 --hours 0.1",
    "license-stand ota init": "--dir missing",
    "license-stand ota publish": "1.1 --dir missing",
    "license-stand ota status": "--dir missing",
}
"""All others, with their arguments. A command that finds an error may end with it, as long as it asks nobody."""
# Anyone else than root is refused without a question.
ROOTS = {
    "license-agent-cli admin-ca end": ("", 1, "Continue? [y/N]"),
    "license-agent-cli admin-ca install": ("ca.pem", 1, "Continue? [y/N]"),
}
if os.geteuid() == 0:
    ASKS.update(ROOTS)
else:
    SILENT.update({name: arguments for name, (arguments, _status, _question) in ROOTS.items()})
UNTYPED = {
    "license-agent-installer": "from installer.main import entry; entry()",
    "license-agent-updater": "from updater.main import entry; entry()",
    "license-agent-apply": "from installer.apply import entry; entry()",
    "license-agent-upgrade": "from installer.upgrade import entry; entry()",
    "license-agent-pos-check": "from installer.pos.poscheck import entry; entry()",
}
"""They are no console scripts: the package puts them where nobody types them."""
Kept = Mapping[str, KeptProgram]
UNTIL = {"license-stand up": "Ctrl-C"}
"""What programs write that go on until they are stopped."""


def _click_commands(command: click.Command, path: str) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    if command.invoke_without_command:
        yield path
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from _click_commands(below, f"{path} {name}")


def _argparse_commands(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield path
    for group in groups:
        for name, below in group.choices.items():
            yield from _argparse_commands(below, f"{path} {name}")


def commands() -> set[str]:
    """Every command of every program."""
    return {
        *_argparse_commands(agent_parser(), "license-agent"),
        *_argparse_commands(client_parser(), "license-agent-client"),
        *_argparse_commands(manage_parser(), "license-agent-manage"),
        *_click_commands(cli_main, "license-agent-cli"),
        *_click_commands(server_main, "license-server"),
        *_click_commands(stand_main, "license-stand"),
        "license-agent-link",
        *UNTYPED,
    }


def test_every_command_has_a_row() -> None:
    assert commands() == ASKS.keys() | SILENT.keys()
    assert not ASKS.keys() & SILENT.keys()


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        old = {"attestation": "software", "backend": "software", "agreement_key": "{}", "created_at": 1, "updated_at": 1}
        with (
            closing(open_server(Path(running.info["env"]["LICENSE_SERVER_DIR"]))) as server,
            server.database.write() as session,
        ):
            session.add(Agent(id="revoked", status="revoked", urgent=False, **old))
            session.add(Agent(id="halted", status="active", urgent=False, halted_at=1, halt_reason="two machines", **old))
        yield running


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        (directory / "empty").touch()
        (directory / "ca.pem").write_bytes(Ca().pem)
        yield directory


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, KeptProgram]]:
    """The programs that have most commands."""
    with short_directory() as directory, contextlib.ExitStack() as stack:
        programs = {name: KeptProgram(name, directory / name) for name in ("license-server", "license-agent-cli")}
        for program in programs.values():
            stack.callback(program.close)
        yield programs


def run(stand: Stand, kept: Kept, command: str, arguments: str, directory: Path) -> AtTerminal:
    tokens = {kind.upper(): token for kind, token in stand.info["tokens"].items()}
    env = {
        **{name: os.environ[name] for name in ("PATH",)},
        **stand.info["env"],
        **tokens,
        "STAND": str(stand.root),
        "HOME": str(directory),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }
    program, *words = f"{command} {arguments}".split()
    for name, value in env.items():
        words = [word.replace(f"${name}", value) for word in words]
    installed = [str(BIN / program)] if (BIN / program).exists() else [sys.executable, "-c", UNTYPED[program]]
    return at_terminal([*installed, *words], env, directory, UNTIL.get(command, ""), kept=kept.get(program))


@pytest.mark.parametrize("command", SILENT)
def test_it_asks_nothing(stand: Stand, kept: Kept, place: Path, command: str) -> None:
    done = run(stand, kept, command, SILENT[command], place)
    assert not done.asked, done.output
    assert "Traceback" not in done.output and "sage:" not in done.output, done.output
    assert done.status >= 0, done.output


@pytest.mark.parametrize("command", ASKS)
def test_it_asks_and_takes_no_for_an_answer(stand: Stand, kept: Kept, place: Path, command: str) -> None:
    arguments, status, question = ASKS[command]
    done = run(stand, kept, command, arguments, place)
    assert done.asked and question in done.output, done.output
    assert "Traceback" not in done.output
    assert status is None or done.status == status, done.output


def test_only_a_root_key_that_has_a_passphrase_is_asked_for_it(stand: Stand, kept: Kept, place: Path) -> None:
    write_root_key(place / "locked.key", ec.generate_private_key(ec.SECP256R1()), b"a passphrase")
    done = run(stand, kept, "license-server keys rotate", f"rotation --root-key {place}/locked.key", place)
    assert done.asked and done.status == 1 and f"passphrase of the root key {place}/locked.key: " in done.output
