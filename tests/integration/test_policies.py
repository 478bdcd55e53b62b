"""Secrets bound to measured states of the machine, through the commands that an administrator has."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from license_agent_client import LicenseClient

from tests.support.machine import Machine, furnished_machine
from tests.support.outputs import assert_fits
from tests.support.waiting import READY_S

PCR = 11


@pytest.fixture
def machine() -> Iterator[Machine]:
    with furnished_machine("tpm") as made:
        with made.running():
            made.give_secret()
        yield made


@pytest.fixture
def key(machine: Machine) -> Path:
    """The vendor's private key; the public one stands beside it."""
    private = ec.generate_private_key(ec.SECP256R1())
    path = machine.root / "policy.key"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def extend(machine: Machine, event: bytes) -> None:
    """Measures an event into the PCR, as the firmware or the boot loader would; the agent must not run."""
    import tpm2_pytss as tss

    assert machine.tpm is not None
    digest = hashlib.sha256(event).digest()
    with tss.ESAPI(machine.tpm.tcti) as esys:
        values = tss.TPML_DIGEST_VALUES([tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))])
        esys.pcr_extend(tss.ESYS_TR.PCR0 + PCR, values)


def signed(machine: Machine, key: Path, values: dict[str, str], number: int) -> Path:
    """A policy for these values, signed off the machine."""
    shown, out = machine.root / "pcrs.json", machine.root / f"policy-{number}-{len(list(machine.root.iterdir()))}.json"
    shown.write_text(json.dumps({"pcrs": values}))
    machine.tool(
        "license-agent", "sign-policy", "--key", str(key), "--pcrs", str(shown), "--number", str(number), "--out", str(out)
    )
    return out


def structured(machine: Machine, command: str, *arguments: str) -> dict:
    """What a command prints with --json, once it is compared with its schema."""
    found: dict = json.loads(machine.tool("license-agent-cli", "--json", *command.split(), *arguments))
    assert_fits(command, found)
    return found


def shown(machine: Machine) -> dict:
    return structured(machine, "policy show", "--pcr", str(PCR))


def after(value: str, event: bytes) -> str:
    """The PCR's value after another event."""
    return hashlib.sha256(bytes.fromhex(value) + hashlib.sha256(event).digest()).hexdigest()


def test_secrets_open_in_approved_states_only(machine: Machine, key: Path) -> None:
    extend(machine, b"kernel 1")
    with machine.running():
        now = shown(machine)
        value = now["pcrs"][str(PCR)]
        number = now["policy_number"]
        bind = ("license-agent-cli", "policy", "bind", "custom", "--pcr", str(PCR), "--key", str(key.with_suffix(".pub")))
        assert "no policy" in machine.tool(*bind, fine=(4,))
        structured(machine, "policy install", str(signed(machine, key, now["pcrs"], number)))
        assert structured(machine, "policy bind", *bind[3:])["binding"] == "custom"
        # The next kernel is approved before it comes.
        following = {str(PCR): after(value, b"kernel 2")}
        machine.tool("license-agent-cli", "policy", "install", str(signed(machine, key, following, number + 1)))
        status = structured(machine, "status")
        assert (status["backend"]["binding"], status["backend"]["state"]) == ("custom", "available")
        token = machine.issue()
    extend(machine, b"kernel 2")
    with machine.running():
        with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
            assert client.validate(token).valid
        found = shown(machine)["policies"]
        assert [(policy["number"], policy["fits"]) for policy in found] == [(number, False), (number + 1, True)]
        assert structured(machine, "policy revoke", str(number + 1), "--yes")["policy_number"] == number + 1
        assert [policy["revoked"] for policy in shown(machine)["policies"]] == [True, False]
        refused = machine.tool("license-agent-cli", "policy", "revoke", str(number + 2), "--yes", fine=(4,))
        assert "no policy" in refused or "revoked" in refused or "number" in refused
    # A state that nobody has approved.
    extend(machine, b"evil maid")
    code, text = machine.run_to_the_end()
    assert (code, "PCR 11" in text) == (69, True), text
    told = machine.tool("license-agent", "recover", "show", fine=(69,))
    assert told.startswith("pcr_mismatch")
    changed = {str(PCR): after(following[str(PCR)], b"evil maid")}
    policy = signed(machine, key, changed, number + 1)
    machine.tool("license-agent", "recover", "policy", str(policy))
    with machine.running(), LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
        assert client.validate(token).valid
        machine.tool("license-agent-cli", "policy", "bind", "none")
        assert machine.tool("license-agent-cli", "audit", "verify").startswith("intact")
    events = [record["event"] for record in machine.records()]
    assert events.count("tpm.policy_installed") >= 3
    assert {"tpm.binding", "tpm.policies_revoked"} <= set(events)


def test_policies_that_make_no_sense_are_refused(machine: Machine, key: Path) -> None:
    extend(machine, b"kernel")
    with machine.running():
        public = str(key.with_suffix(".pub"))
        values = shown(machine)["pcrs"]
        junk = machine.root / "junk"
        junk.write_text('{"format":1}')
        for arguments, text in (
            (("install", str(junk)), "not a signed policy"),
            (("bind", "custom", "--key", public), "at least one PCR"),
            (("bind", "custom", "--pcr", "11"), "policy key"),
            (("bind", "custom", "--pcr", "12", "--key", public), "never been extended"),
            (("bind", "secure-boot", "--key", public), "never been extended"),
            (("bind", "none", "--pcr", "3"), "neither PCRs"),
            (("bind", "custom", "--pcr", "11", "--key", str(junk)), ""),
        ):
            assert text in machine.tool("license-agent-cli", "policy", *arguments, fine=(4,)), arguments
        other = machine.root / "other.key"
        other.write_bytes(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        machine.tool("license-agent-cli", "policy", "install", str(signed(machine, other, values, 9)))
        bound = machine.tool("license-agent-cli", "policy", "bind", "custom", "--pcr", "11", "--key", public, fine=(4,))
        assert "no policy" in bound
        assert shown(machine)["binding"] == "none"
    for arguments in (
        ("--pcrs", str(junk), "--key", str(key)),
        ("--pcrs", str(machine.root / "pcrs.json"), "--key", str(junk)),
    ):
        told = machine.tool("license-agent", "sign-policy", "--number", "1", *arguments, fine=(1,))
        assert "cannot be signed" in told
