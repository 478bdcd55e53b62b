"""Lost TPM, damaged store, older copies, fallback and return: each runbook, with the real commands."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from tests.support.daemon import BIN
from tests.support.machine import Machine, furnished_machine
from tests.support.swtpm import Swtpm
from tests.support.waiting import READY_S


@pytest.fixture
def tpm_machine() -> Iterator[Machine]:
    with furnished_machine("tpm") as made:
        with made.running():
            made.give_secret()
        yield made


def enroll_again(machine: Machine) -> None:
    """`recover reinitialize`, and what follows on the server."""
    done = subprocess.run(
        [str(BIN / "license-agent"), "recover", "reinitialize", "--trust", str(machine.root / "trust.json")],
        env=machine.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (machine.root / "request.json").write_text(done.stdout)
    machine.tool("license-server", "enroll", "--request", str(machine.root / "request.json"))


def works(machine: Machine) -> None:
    with machine.running():
        machine.give_secret()
        token = machine.issue()
        with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
            assert client.validate(token).valid
        assert machine.tool("license-agent-cli", "audit", "verify").startswith("intact")


def diagnosis(machine: Machine, status: int = 69) -> dict:
    done = subprocess.run(
        [str(BIN / "license-agent"), "recover", "show", "--json"], env=machine.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def all_bytes(machine: Machine) -> bytes:
    places = [machine.state, machine.keys, machine.log]
    return b"".join(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())


def test_a_tpm_that_was_lost_is_replaced(tpm_machine: Machine) -> None:
    machine = tpm_machine
    assert diagnosis(machine, 0)["state"] == "ok"
    assert machine.tpm is not None
    machine.tpm.stop()
    assert diagnosis(machine)["state"] == "absent"
    machine.tpm = Swtpm(machine.root / "tpm2").start()
    machine.write_config()
    found = diagnosis(machine)
    assert found["state"] == "foreign"
    assert "recover reinitialize" in found["advice"]
    code, text = machine.run_to_the_end()
    assert code == 69 and "another TPM" in text
    before = machine.secrets()
    enroll_again(machine)
    works(machine)
    assert len(machine.secrets()) > len(before)
    events = [record["event"] for record in machine.records()]
    assert events[0] == "agent.reinitialized"
    # What was there is kept aside, for whoever wants to know.
    (aside,) = machine.state.glob("replaced-*")
    assert {path.name for path in aside.iterdir()} >= {"tpm.objects", "secrets.store"}
    (log,) = machine.log.glob("replaced-*")
    former = log / "audit.log"
    checked = machine.tool("license-agent-cli", "audit", "verify", "--file", str(former), "--open-end", fine=(5,))
    # Without the keys of the former machine nothing vouches for the log as a whole, but nothing in it is wrong.
    assert checked.startswith("incomplete") and "tampered" not in checked
    last = json.loads(former.read_text().splitlines()[-1])
    assert last["event"] == "agent.reinitialize"
    assert machine.records()[0]["former_heads"]["security"] == last["hash"]


def test_a_tpm_that_was_cleared_is_enrolled_anew(tpm_machine: Machine) -> None:
    assert tpm_machine.tpm is not None
    tpm_machine.tpm.stop()
    tpm_machine.tpm.clear()
    tpm_machine.tpm.start()
    tpm_machine.write_config()
    assert diagnosis(tpm_machine)["state"] in ("foreign", "nv_gone")
    enroll_again(tpm_machine)
    works(tpm_machine)


def test_an_agent_on_hardware_with_another_id_does_not_start(tpm_machine: Machine) -> None:
    """The same storage keys, another endorsement key (PV-04)."""
    import tpm2_pytss as tss

    assert tpm_machine.tpm is not None
    with tss.ESAPI(tpm_machine.tpm.tcti) as esys:
        esys.change_eps(tss.ESYS_TR.RH_PLATFORM)
    code, text = tpm_machine.run_to_the_end()
    assert code == 69
    assert "the hardware id is" in text
    enroll_again(tpm_machine)
    works(tpm_machine)


def test_fallback_needs_the_policy_and_brings_no_old_secret_along(tpm_machine: Machine) -> None:
    machine = tpm_machine
    assert machine.tpm is not None
    machine.tpm.stop()
    old, good = machine.secrets(), machine.config.read_text()
    tcti = next(line for line in good.splitlines() if line.startswith("tcti"))
    without = good.replace("enabled = true", "enabled = false")
    machine.write_raw_config(without)
    # A start does not enroll, and neither command does what the policy forbids.
    assert machine.run_to_the_end()[0] == 69
    for command in (("recover", "reinitialize"), ("init",)):
        told = machine.tool("license-agent", *command, "--trust", str(machine.root / "trust.json"), fine=(69,))
        assert "policy does not allow" in told
    assert not (machine.keys / "software.key").exists()
    machine.write_raw_config(without.replace(tcti, f'{tcti}\nfallback = "enroll"'))
    enroll_again(machine)
    works(machine)
    assert all(secret not in all_bytes(machine) for secret in old.values())
    # Return: again new keys, new secrets.
    machine.tpm = Swtpm(machine.root / "tpm3").start()
    machine.write_raw_config(good.replace(tcti, f'tcti = "{machine.tpm.tcti}"'))
    assert diagnosis(machine)["state"] == "not_enrolled"
    enroll_again(machine)
    assert not (machine.keys / "software.key").exists()
    works(machine)


@pytest.mark.parametrize("backend", [pytest.param("software", marks=pytest.mark.thorough), "tpm"])
def test_a_damaged_copy_is_repaired_from_its_twin(backend: str) -> None:
    with furnished_machine(backend) as machine:
        with machine.running():
            machine.give_secret()
        good = machine.store.read_bytes()
        assert "nothing to repair" in machine.tool("license-agent", "recover", "repair")
        for damage in (b"", good[:100], bytes(len(good))):
            machine.store.write_bytes(damage)
            told = machine.tool("license-agent", "recover", "repair")
            assert f"restored {machine.store} from its other copy" in told
            assert machine.store.read_bytes() == good
        repairs = [record for record in machine.records() if record["event"] == "store.repaired"]
        assert len(repairs) == 3
        works(machine)


@pytest.mark.parametrize("backend", [pytest.param("software", marks=pytest.mark.thorough), "tpm"])
def test_an_older_copy_is_ours_but_needs_the_server(backend: str) -> None:
    with furnished_machine(backend) as machine:
        with machine.running():
            machine.give_secret()
        copy = machine.root / "copy"
        shutil.copy(machine.store, copy)
        copy.chmod(0o644)
        with machine.running():
            machine.give_secret()
        newest = machine.store.read_bytes()
        told = machine.tool("license-agent", "recover", "restore", str(copy), fine=(69,))
        assert "is of generation 3, the newest commit is 4" in told
        assert "new secrets from the license server" in told
        copy.write_bytes(newest[:-1] + bytes([newest[-1] ^ 1]))
        assert "authentication tag" in machine.tool("license-agent", "recover", "restore", str(copy), fine=(69,))
        assert machine.store.read_bytes() == newest
        works(machine)


def test_nothing_is_recovered_under_a_running_daemon() -> None:
    with furnished_machine("software") as machine, machine.running():
        for action in (
            ("show",),
            ("repair",),
            ("reinitialize", "--trust", str(machine.root / "trust.json")),
            ("restore", str(Path("/etc/hostname"))),
        ):
            assert "stop it first" in machine.tool("license-agent", "recover", *action, fine=(69,))
        code, text = machine.run_to_the_end()
        assert code == 69
        assert "stop it first" in text or "another agent is serving" in text


def test_the_servers_word_sets_the_time_right() -> None:
    with furnished_machine("software") as machine, machine.running():
        machine.give_secret()
        reset = ("license-agent-cli", "clock", "reset", str(machine.root / "time"))

        def sign(challenge: str) -> None:
            machine.tool(
                "license-server",
                "sign-time",
                "--agent",
                "pos-009",
                "--challenge",
                challenge,
                "--out",
                str(machine.root / "time"),
            )

        sign("ab" * 16)
        assert "no challenge is outstanding" in machine.tool(*reset, fine=(4,))
        first = machine.tool("license-agent-cli", "clock", "challenge").strip()
        assert "another challenge" in machine.tool(*reset, fine=(4,))
        sign(first)
        assert "the agent's trusted time is now" in machine.tool(*reset)
        # It is good once.
        assert "no challenge is outstanding" in machine.tool(*reset, fine=(4,))
        machine.tool("license-agent-cli", "clock", "challenge")
        assert "another challenge" in machine.tool(*reset, fine=(4,))
        (machine.root / "time").write_text("junk")
        assert "REFUSED" in machine.tool(*reset, fine=(4,))
        events = [(record["event"], record["outcome"]) for record in machine.records()]
        assert events.count(("clock.reset", "begun")) == events.count(("clock.reset", "ok")) == 1
