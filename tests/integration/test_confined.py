"""The running programs are under their own locks: every thread of them, whatever started it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from confine.landlock import NEWEST_ABI, kernel_abi
from tests.support.daemon import Bench
from tests.support.link import running_link
from tests.support.machine import furnished_machine
from tests.support.stand import short_directory
from tests.support.waiting import READY_S, wait_until

ABI = kernel_abi()
LANDLOCK = None if ABI is None else min(ABI, NEWEST_ABI)


def assert_every_thread_is_locked(pid: int, at_least: int) -> None:
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    assert len(tasks) >= at_least
    for task in tasks:
        lines = (task / "status").read_text().split("\n")
        assert "Seccomp:\t2" in lines, task
        assert "NoNewPrivs:\t1" in lines, task


@pytest.mark.parametrize("backend", ["software", "tpm"])
def test_every_thread_of_the_daemon_is_locked_and_status_says_so(backend: str) -> None:
    with furnished_machine(backend) as machine, machine.running(inherited=True) as running:
        machine.give_secret()
        token = machine.issue()
        with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
            assert client.validate(token).valid
        # The loop's, the hardware's, and at least one that writes files.
        assert_every_thread_is_locked(running.process.pid, 3)
        reply = machine.status()
        assert reply["confinement"] == {"exec_forbidden": True, "landlock_abi": LANDLOCK}
        text = machine.tool("license-agent-cli", "status", fine=(0, 1, 2))
        assert (
            f"exec forbidden yes, {'Landlock not in this kernel' if LANDLOCK is None else f'Landlock ABI {LANDLOCK}'}" in text
        )
        assert running.log().count("confined: no program can be started") == 1
        # Nothing was out of its reach that it wanted, up to a reload with what only root writes.
        running.process.send_signal(1)
        running.notice("READY=1")
        assert "enied" not in running.log() and "permitted" not in running.log()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with furnished_machine("software") as machine:
        yield machine


@pytest.mark.skipif(ABI is None, reason="this kernel has no Landlock; scripts/e2e shows it in a guest that has")
def test_other_files_need_a_restart_and_the_rest_of_a_reload_does_not(bench: Bench) -> None:
    elsewhere = bench.root / "elsewhere"
    elsewhere.mkdir()
    os.chown(elsewhere, bench.uid, bench.uid)
    with bench.running(inherited=True) as running:
        before = bench.config.read_text()
        text = before.replace(f'"{bench.log}"', f'"{elsewhere}"').replace(f'"{bench.state}"', f'"{elsewhere}"')
        bench.write_raw_config(text + f'[audit]\narchive_key = "{elsewhere}/k"\n')
        running.process.send_signal(1)
        running.notice("RELOADING=1")
        running.notice("READY=1")
        assert "needs a restart: paths, audit.archive_key" in running.log()
        # An editor puts a new file in the old one's place.
        new = bench.config.with_name("new")
        bench.config.rename(new)
        bench.write_raw_config(before + "# again\n")
        running.process.send_signal(1)
        running.notice("RELOADING=1")
        running.notice("READY=1")
        assert list(elsewhere.iterdir()) == []
    reloads = [record for record in bench.records() if record["event"] == "config.reloaded"]
    assert [(record["outcome"], record["needs_restart"]) for record in reloads] == [("ok", ["paths"]), ("ok", [])]


@pytest.mark.skipif(ABI is None, reason="this kernel has no Landlock; scripts/e2e shows it in a guest that has")
def test_a_directory_that_was_missing_is_used_by_the_process_that_waited_for_it(bench: Bench) -> None:
    """The directories are looked at before the process is confined to them."""
    bench.log.rename(bench.root / "aside")
    with bench.running(inherited=True) as running:
        assert f"{bench.log} does not exist" in running.log()
        (bench.root / "aside").rename(bench.log)
        wait_until(lambda: "is ready" in running.log(), "the agent starts")
        bench.status()


def test_between_two_tries_to_start_a_process_whose_rules_do_not_fit_ends_to_be_started_anew(bench: Bench) -> None:
    """It cannot open its secrets; while it waits, its log directory is replaced, and a new process is what can use that."""
    key = bench.keys / "software.key"
    key.rename(bench.root / "key")
    with bench.running(inherited=True) as running:
        bench.log.rename(bench.root / "aside")
        bench.log.mkdir(mode=0o755)
        os.chown(bench.log, bench.uid, bench.uid)
        (bench.root / "key").rename(key)
        assert running.process.wait(READY_S) == 69
        assert f"{bench.log} was replaced or removed after this process was confined to it" in running.log()
        running.kill_and_restart()
        assert running.process.poll() is None
        bench.status()


def test_the_link_is_locked() -> None:
    with short_directory() as directory, running_link(directory) as link:
        # Its socket is there before the lock is.
        wait_until(lambda: "confined" in link.log(), link.log)
        assert_every_thread_is_locked(link.pid, 1)
        assert link.log().count("confined: no program can be started") == 1
