"""Backup and restoration with the real commands, on both backends: on the same machine, on another, and when it is older."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from license_agent_client import LicenseClient

from tests.support.daemon import BIN
from tests.support.machine import Machine, furnished_machine
from tests.support.waiting import READY_S, wait_until

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (ROOT / "docs" / "guides.md").read_text("utf-8")


@pytest.fixture(params=["software", "tpm"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with furnished_machine(request.param) as made:
        with made.running():
            made.give_secret()
        yield made


class Keys:
    """An age identity in a file."""

    def __init__(self, directory: Path) -> None:
        identity = pyrage.x25519.Identity.generate()
        self.file = directory / "identity"
        self.file.write_text(f"# made for a test\n{identity}\n")
        self.recipient = str(identity.to_public())


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def cli(machine: Machine, *words: str, fine: tuple[int, ...] = (0,)) -> str:
    return machine.tool("license-agent-cli", "backup", *words, fine=fine)


def made(machine: Machine, keys: Keys, file: Path) -> Path:
    cli(machine, "create", "--to", str(file), "--recipient", keys.recipient)
    return file


def content(file: Path, keys: Keys) -> dict:
    opened = pyrage.decrypt(file.read_bytes(), [pyrage.x25519.Identity.from_str(keys.file.read_text().splitlines()[1])])
    found: dict = json.loads(opened)
    return found


def lose_disk(machine: Machine) -> None:
    """The state directory is empty, as on a new disk; TPM and key directory are as they were."""
    for path in machine.state.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def works(machine: Machine) -> None:
    with machine.running():
        token = machine.issue()
        with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
            assert client.validate(token).valid


def test_a_backup_of_a_running_agent_brings_it_back_on_a_new_disk(machine: Machine, tmp_path: Path, keys: Keys) -> None:
    file = tmp_path / "agent.backup"
    with machine.running():
        made(machine, keys, file)
        # A drill beside the running agent, and a restoration that is refused while it runs.
        drill = cli(machine, "restore", str(file), "--identity", str(keys.file), "--plan")
        assert drill.startswith("current: ") and "secrets.store: same" in drill.replace("secret.enc", "secrets.store")
        refused = cli(machine, "restore", str(file), "--identity", str(keys.file), fine=(1,))
        assert "stop it first" in refused
    assert file.stat().st_mode & 0o777 == 0o600
    lose_disk(machine)
    restored = cli(machine, "restore", str(file), "--identity", str(keys.file))
    assert "restored; next: start the agent" in restored
    for path in machine.state.iterdir():
        assert (path.stat().st_uid == machine.uid and not path.stat().st_mode & 0o077) or path.is_dir() or path.name == "lock"
    works(machine)
    assert [each["outcome"] for each in machine.records() if each["event"] == "backup.restored"] == ["ok"]


def test_the_commands_of_the_guide(tmp_path: Path, keys: Keys) -> None:
    """Each command of the guide, as the page has it; those of its runbooks are in test_recovery_runbook.py."""
    guide = GUIDES.partition("\n## Back up an agent\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^    (license-agent\S* .+)$", guide, re.MULTILINE)
    assert len(commands) == 3
    (tmp_path / "backup.key").write_text(keys.file.read_text())
    printed = []
    with furnished_machine("software") as machine, machine.running():
        machine.give_secret()
        env = {**machine.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
        for command in commands:
            here = command.replace("age1...", keys.recipient)
            done = subprocess.run(["sh", "-c", here], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (here, done.stdout, done.stderr)
            printed.append(done.stdout)
    _, drill, plan = printed
    assert drill.startswith("whole: ") and plan.startswith("current: ")


def test_a_backup_has_nothing_that_opens_by_itself(machine: Machine, tmp_path: Path, keys: Keys) -> None:
    found = content(made(machine, keys, tmp_path / "b"), keys)
    assert set(found["files"]) <= {
        *("config.toml", "link.toml", "agent.json", "licenses.json", "rotation.json"),
        *("secrets.store", "tpm.objects", "secret.enc"),
    }
    everything = b"".join(base64.b64decode(each["data"]) for each in found["files"].values())
    for secret in machine.secrets().values():
        assert secret not in everything
    if machine.tpm is None:
        key = (machine.keys / "software.key").read_bytes()
        assert key not in everything and key[-32:] not in everything


def test_an_older_backup_does_not_bring_ended_secrets_back(machine: Machine, tmp_path: Path, keys: Keys) -> None:
    file = made(machine, keys, tmp_path / "b")
    with machine.running():
        machine.give_secret()
    before = {path.name: path.read_bytes() for path in machine.state.iterdir() if path.is_file()}
    told = cli(machine, "restore", str(file), "--identity", str(keys.file), "--plan", fine=(5,))
    assert told.startswith("older: ") and "recover reinitialize" in told
    refused = cli(machine, "restore", str(file), "--identity", str(keys.file), fine=(1,))
    assert "nothing was restored" in refused and "recover reinitialize" in refused
    after = {path.name: path.read_bytes() for path in machine.state.iterdir() if path.is_file()}
    assert after == before
    works(machine)


def test_another_machine_cannot_use_it(machine: Machine, tmp_path: Path, keys: Keys) -> None:
    file = made(machine, keys, tmp_path / "b")
    with furnished_machine(machine.backend) as other:
        with other.running():
            other.give_secret()
        words = ("restore", str(file), "--identity", str(keys.file), "--plan")
        # Its own configuration: paths and TPM are those of the other machine.
        found = content(file, keys)
        found["files"].pop("config.toml")
        moved = tmp_path / "moved"
        moved.write_bytes(pyrage.encrypt(json.dumps(found).encode(), [pyrage.x25519.Recipient.from_str(keys.recipient)]))
        told = cli(other, "restore", str(moved), *words[2:], fine=(5,))
        assert told.startswith("other_machine: ")
        cli(other, "restore", str(moved), *words[2:-1], fine=(1,))
        works(other)


def test_a_software_backup_without_its_key_says_so(tmp_path: Path, keys: Keys) -> None:
    with furnished_machine("software") as machine:
        with machine.running():
            machine.give_secret()
        file = made(machine, keys, tmp_path / "b")
        lose_disk(machine)
        for path in machine.keys.iterdir():
            path.unlink()
        told = cli(machine, "restore", str(file), "--identity", str(keys.file), "--plan", fine=(5,))
        assert told.startswith("no_key: ") and "reinitialize" in told


def test_verify_finds_damage_without_the_machine(tmp_path: Path, keys: Keys) -> None:
    with furnished_machine("software") as machine:
        with machine.running():
            machine.give_secret()
        file = made(machine, keys, tmp_path / "b")
        cli(machine, "create", "--to", str(file), "--recipient", keys.recipient, fine=(2,))  # never over a file
    words = [str(BIN / "license-agent-cli"), "--json", "backup", "verify"]

    def verified(*more: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr
        return done

    reply = json.loads(verified(str(file), "--identity", str(keys.file)).stdout)
    assert reply["whole"] and reply["agent_id"] == "pos-009" and "restore --plan" in reply["unchecked"][0]
    recipient = pyrage.x25519.Recipient.from_str(keys.recipient)
    for name, spoil in (
        ("secret.enc", lambda each: each.update(data=base64.b64encode(b"LASTORE1 other").decode())),
        ("config.toml", lambda each: each.update(data="AAAA")),
    ):
        found = content(file, keys)
        spoil(found["files"][name])
        bad = tmp_path / "bad"
        bad.write_bytes(pyrage.encrypt(json.dumps(found).encode(), [recipient]))
        reply = json.loads(verified(str(bad), "--identity", str(keys.file), status=1).stdout)
        assert any(name in problem for problem in reply["problems"])
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    bad.write_bytes(data)
    assert "damaged" in verified(str(bad), "--identity", str(keys.file), status=1).stderr
    assert "does not open" in verified(str(file), "--identity", str(Keys(tmp_path).file), status=1).stderr
    bad.write_text("nothing")
    assert "not a backup" in verified(str(bad), "--identity", str(keys.file), status=1).stderr
    assert "--identity or --passphrase-file" in verified(str(file), status=2).stderr


@pytest.mark.parametrize("name", ["../x.json", "/etc/passwd", "policies/../../x.json", "software.key", "policies/.json"])
def test_a_backup_names_no_file_of_its_own_choice(tmp_path: Path, keys: Keys, name: str) -> None:
    with furnished_machine("software") as machine:
        with machine.running():
            machine.give_secret()
        found = content(made(machine, keys, tmp_path / "b"), keys)
        found["files"][name] = found["files"]["config.toml"]
        bad = tmp_path / "bad"
        bad.write_bytes(pyrage.encrypt(json.dumps(found).encode(), [pyrage.x25519.Recipient.from_str(keys.recipient)]))
        assert "does not have" in cli(machine, "restore", str(bad), "--identity", str(keys.file), fine=(1,))


def _certificate(directory: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "backups")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    files = directory / "recipient.pem", directory / "recipient.key"
    files[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def test_other_ways_to_encrypt(tmp_path: Path) -> None:
    with furnished_machine("software") as machine:
        with machine.running():
            machine.give_secret()
        passphrase = tmp_path / "passphrase"
        passphrase.write_text("correct horse battery\n")
        cli(machine, "create", "--to", str(tmp_path / "p"), "--passphrase-file", str(passphrase))
        assert cli(machine, "verify", str(tmp_path / "p"), "--passphrase-file", str(passphrase)).startswith("whole: ")
        certificate, key = _certificate(tmp_path, rsa.generate_private_key(65537, 2048))
        cli(machine, "create", "--to", str(tmp_path / "c"), "--recipient-certificate", str(certificate))
        words = ("--identity", str(key), "--certificate", str(certificate))
        assert cli(machine, "verify", str(tmp_path / "c"), *words).startswith("whole: ")
        assert cli(machine, "restore", str(tmp_path / "c"), *words, "--plan").startswith("current: ")
        # AES-256, and openssl reads it.
        pem = ["-recip", str(certificate), "-inkey", str(key)]
        opened = subprocess.run(
            ["openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-in", str(tmp_path / "c"), *pem],
            capture_output=True,
            check=True,
        )
        assert json.loads(opened.stdout)["agent_id"] == "pos-009"
        shown = subprocess.run(
            ["openssl", "cms", "-cmsout", "-print", "-noout", "-inform", "DER", "-in", str(tmp_path / "c")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "aes-256-cbc" in shown
        certificate, _ = _certificate(tmp_path, ec.generate_private_key(ec.SECP256R1()))
        refused = cli(machine, "create", "--to", str(tmp_path / "e"), "--recipient-certificate", str(certificate), fine=(2,))
        assert "RSA" in refused and not (tmp_path / "e").exists()
        assert "one of them" in cli(machine, "create", "--to", str(tmp_path / "e"), fine=(2,))
        assert "age1" in cli(machine, "create", "--to", str(tmp_path / "e"), "--recipient", "age1x", fine=(2,))


def test_the_configuration_alone(tmp_path: Path, keys: Keys) -> None:
    with furnished_machine("software") as machine:
        before, owner = machine.config.read_bytes(), machine.config.stat()
        file = made(machine, keys, tmp_path / "b")
        machine.write_config("[audit]\nburst = 5\n")
        cli(machine, "restore", str(file), "--identity", str(keys.file), "--configuration")
        after = machine.config.stat()
        assert machine.config.read_bytes() == before
        assert (after.st_uid, after.st_mode) == (owner.st_uid, owner.st_mode)


def as_the_unit(machine: Machine, status: int) -> str:
    """Runs the command of the timer's unit, as root with the capabilities of the unit and no other."""
    unit = (ROOT / "systemd" / "license-agent-backup.service").read_text("utf-8")
    (command,) = re.findall(r"^ExecStart=/usr/bin/(.+)$", unit, re.MULTILINE)
    (names,) = re.findall(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names.split())
    locked = ["setpriv", "--bounding-set", f"-all,{kept}", "--no-new-privs"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*locked, str(BIN / command.split()[0]), *command.split()[1:]],
        env=machine.env,
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
    )
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_the_backup_of_the_timer(tmp_path: Path, keys: Keys) -> None:
    place = tmp_path / "backups"
    kept = "keep_newest = 2\nkeep_daily = 0\nkeep_weekly = 1\n"
    rules = f'[backup]\ndirectory = "{place}"\nrecipients = ["{keys.recipient}"]\n{kept}'
    with furnished_machine("software") as machine:
        assert "has no section [backup]" in as_the_unit(machine, 1)
        machine.write_config(rules)
        with machine.running():
            machine.give_secret()
            machine.tool("license-agent-cli", "healthcheck", fine=(1,))
            assert machine.status()["backup"] == {
                "last_good": None,
                "overdue": True,
                "problem": "",
                "text": "no good backup has been made yet",
            }
            place.mkdir(mode=0o700)
            old = [f"license-agent-pos-009-2020010{day}T000000Z.backup" for day in (1, 2, 7, 8)]
            for name in (*old, "license-agent-pos-010-20200101T000000Z.backup", "notes"):
                (place / name).touch()
            printed = as_the_unit(machine, 0)
            # Two newest, the new one among them, and the newest of its week; what is not of this agent stays.
            assert "removed 3 that are not kept any more" in printed
            left = {path.name for path in place.iterdir()}
            (new,) = left - {old[3], "license-agent-pos-010-20200101T000000Z.backup", "notes"}
            file = place / new
            assert file.stat().st_mode & 0o777 == 0o600
            assert cli(machine, "verify", str(file), "--identity", str(keys.file)).startswith("whole: ")
            assert cli(machine, "restore", str(file), "--identity", str(keys.file), "--plan").startswith("current: ")
            shown = machine.status()["backup"]
            assert not shown["overdue"] and shown["last_good"] and not shown["problem"]
            wait_until(lambda: "fine" in machine.tool("license-agent-cli", "healthcheck", fine=(0, 1)), "the alert stays")
            assert "last good backup" in machine.tool("license-agent-cli", "status")
            assert "license_agent_backup_overdue 0" in machine.tool("license-agent-cli", "metrics")
            # Somebody else could replace what is in there: nothing is written, and the last good one stays known.
            place.chmod(0o777)
            assert "others may write to it" in as_the_unit(machine, 1)
            after = machine.status()["backup"]
            assert after["last_good"] == shown["last_good"] and "others may write" in after["problem"]
            assert {path.name for path in place.iterdir()} == left
        raised = [each["outcome"] for each in machine.records() if each["event"] == "alert.backup_overdue"]
        assert raised == ["raised", "cleared"]


def test_what_a_backup_contains_is_not_printed_to_a_terminal(tmp_path: Path) -> None:
    with furnished_machine("software") as machine, contextlib.suppress(OSError):
        main, side = os.openpty()
        done = subprocess.run(
            [str(BIN / "license-agent"), "backup"], env=machine.env, stdout=side, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(side)
        assert done.returncode == 2 and "backup create" in done.stderr
        os.close(main)
