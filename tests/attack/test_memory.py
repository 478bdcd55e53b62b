"""All memory of the running daemon, live and as a core dump, searched for keys one second after each operation.

Whoever runs these tests is root, so neither PR_SET_DUMPABLE nor the daemon's user keeps them out: what is not there cannot be
found. Keys that are in secret memory (memfd_secret) cannot be read by anybody; on a kernel without it, the process key and what
is open at the moment would be seen in /proc/PID/mem, but not in a core dump.
"""

import contextlib
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from agentd.secrets.open import machine_id
from agentd.secrets.record import read_record
from agentd.uplink.certificates import BLOB_NAME
from hwsec.sealedblob import open_blob
from hwsec.secretmem import secret_memory_kind
from hwsec.software import SoftwareBackend
from hwsec.storeformat import decode_store
from hwsec.vault import Vault
from tests.support.machine import furnished_machine
from tests.support.memory import Search, core_of, forms, fragments, memory_of
from tests.support.stand import BIN, Stand, running_stand
from tests.support.waiting import READY_S, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the daemon's memory"),
    pytest.mark.skipif(shutil.which("gcore") is None, reason="gdb's gcore is not installed"),
    pytest.mark.slow,
]

SETTLED_S = 1.0
"""After this time without work nothing may be left of an operation; not a time that anything is waited for."""
IDLE_TICKS = 5
"""Clock ticks of processor time that a daemon without work may use in that time: the work of each second."""


def is_idle(pid: int) -> bool:
    """Whether the daemon does nothing for SETTLED_S. On a slow machine, an operation may go on for longer than that."""

    def used() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(SETTLED_S)
    return used() - before <= IDLE_TICKS


_HOLDS_WHAT_IT_IS_GIVEN = """
import sys
kept = [bytes.fromhex(line) for line in sys.stdin.readline().split()]
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_search_finds_every_form_in_live_memory_and_in_a_core_dump() -> None:
    """What the tests below do not find is not there."""
    values = {name: secrets.token_bytes(32) for name in ("KEK", "secret 1")}
    everything = {f"{name}: {form}": text for name, value in values.items() for form, text in forms(value).items()}
    command = [sys.executable, "-c", _HOLDS_WHAT_IT_IS_GIVEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        # One text in another, as the encoding of something larger would have it. The values themselves are not told.
        holder.stdin.write(" ".join((b"<" + text + b">").hex() for text in everything.values()).encode() + b"\n")
        assert holder.stdout.readline() == b"ready\n"
        assert set(Search(values).lingering(memory_of(holder.pid))) == set(everything)
        assert set(Search(values).lingering(core_of(holder.pid))) == set(everything)
        others = Search({"another": secrets.token_bytes(32)})
        assert others.lingering(memory_of(holder.pid)) == []
        others.values |= values
        assert set(others.lingering(memory_of(holder.pid))) == set(everything), "in what was looked at before it was named"
        assert others.lingering(memory_of(holder.pid)) == [], "told once"
        holder.stdin.close()


@pytest.mark.parametrize("backend", [pytest.param("software", marks=pytest.mark.thorough), "tpm"])
def test_no_key_lingers_in_the_daemons_memory(backend: str) -> None:
    found: dict[str, list[str]] = {}
    with furnished_machine(backend) as machine:
        with machine.running():
            machine.give_secret()
            machine.give_secret()
        old, delivery = machine.issue(), machine.root / "delivery"
        machine.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(delivery))
        new = machine.issue()
        values = machine.keys_in_use([delivery.read_text()])
        values |= {f"secret {version}": secret for version, secret in machine.secrets().items()}
        search = Search(values)
        # The sockets come from outside, as in production and on a stand.
        with machine.running(inherited=True) as running:
            pid = running.process.pid

            def look(after: str, core: bool = False) -> None:
                wait_until(lambda: is_idle(pid), "the daemon is never idle")
                areas = memory_of(pid)
                assert b"license-agent store" in b"".join(areas), "the search sees nothing"
                if found_now := search.lingering([*areas, *(core_of(pid) if core else ())]):
                    found[after] = found_now

            look("the start", core=True)
            with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
                assert client.validate(old).valid
                look("a new license", core=True)
                assert client.validate(old).valid
                look("a repeated validation")
                machine.tool("license-agent-cli", "secrets", "install", str(delivery))
                look("a rotation", core=True)
                assert client.validate(new).secret_state == "ACTIVE"
                look("a license under the new secret")
                machine.tool("license-agent-cli", "secrets", "invalidate", "1", "--yes")
                machine.status()
                machine.tool("license-agent-cli", "audit", "verify")
                look("an invalidation", core=True)
    assert found == {}, found


def tls_scalars(stand: Stand) -> dict[str, bytes]:
    """The agent's TLS client keys, from its store; opened as a thief of the whole disk would."""
    config = tomllib.loads(Path(stand.info["config"]).read_text())
    vault = Vault()
    backend = SoftwareBackend(Path(config["paths"]["key_dir"]), machine_id(), vault)
    backend.open()
    try:
        with backend.kek() as kek:
            body = decode_store(kek, Path(config["tpm"]["fallback_encrypted_storage"]).read_bytes())
            tls = read_record(body.sections).tls
            assert tls is not None
            found = {}
            for name, sealed in (("current", tls.current), ("pending", tls.pending)):
                if sealed is not None:
                    with open_blob(kek, BLOB_NAME, sealed.sealed) as scalar:
                        found[f"TLS key, {name}"] = bytes(scalar.view)
            return found
    finally:
        vault.close()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_tls_key_lingers_in_core_or_link() -> None:
    """Not of the first key, which the agent has made in this run, nor of one that it makes when it renews its certificate."""
    found: dict[str, list[str]] = {}
    with running_stand("software") as stand:
        agent, link = stand.info["agent_pid"], stand.info["link_pid"]
        old: dict[str, bytes] = {}
        searches = (("core", agent, Search(old, fragments)), ("link", link, Search(old, fragments)))

        def look(after: str) -> None:
            wait_until(lambda: is_idle(agent), "the daemon is never idle")
            assert children_of(link) == [], "the connection has ended, and its process with it"
            old.update({f"{name} after {after}": scalar for name, scalar in tls_scalars(stand).items()})
            for process, pid, search in searches:
                if left := search.lingering(memory_of(pid)):
                    found[f"{process}, {after}"] = left[:3]

        look("the provisioning")
        for step in (["contact"], ["rotate"], ["certificate", "renew"], ["contact"], ["contact"]):
            done = stand.run("license-agent-cli", *step)
            assert done.returncode == 0, done.stderr
            look(step[0])
        assert len(set(old.values())) >= 2, "the renewal has made no new key"

        # What is found while it is there: in the process of the connection, and in no other.
        server = stand.info["server_pid"]
        command = [str(BIN / "license-agent-cli"), "contact"]
        os.kill(server, signal.SIGSTOP)
        try:
            contact = subprocess.Popen(command, env=stand.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda: children_of(link), "no connection's process")
            (child,) = children_of(link)
            now = tls_scalars(stand)
            there = Search(now, fragments)
            wait_until(lambda: there.lingering(memory_of(child)), "the search sees nothing")
            assert Search(now, fragments).lingering(memory_of(link)) == []
        finally:
            os.kill(server, signal.SIGCONT)
        # Refused, if the server was stopped for longer than the link waits.
        assert contact.wait(READY_S) in (0, 4)
        look("a slow contact")
    assert found == {}, found


def test_secret_memory_is_out_of_reach_even_for_root() -> None:
    """Says on which machines the tests above prove more than that nothing lingers."""
    if secret_memory_kind() != "memfd_secret":
        pytest.skip("this kernel has no memfd_secret: the process key lies in locked memory that root can read")
    with furnished_machine("software") as machine, machine.running() as running:
        maps = Path(f"/proc/{running.process.pid}/maps").read_text().splitlines()
        spans = [line.split()[0] for line in maps if "/secretmem" in line]
        assert spans
        for span in spans:
            first, _, end = span.partition("-")
            with (
                open(f"/proc/{running.process.pid}/mem", "rb", buffering=0) as memory,
                pytest.raises(OSError, match="Input/output error"),
            ):
                os.pread(memory.fileno(), int(end, 16) - int(first, 16), int(first, 16))


def _dumps_core(process: "subprocess.Popen[bytes]") -> bool:
    """Kills a child by a signal that dumps core, limits lifted as far as allowed, and returns whether the kernel dumped one."""
    with contextlib.suppress(
        PermissionError
    ):  # in a container root may lack CAP_SYS_RESOURCE; the daemon's own limit then stays
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGABRT)
    _pid, status = os.waitpid(process.pid, 0)
    process.returncode = -os.WTERMSIG(status)
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


def test_the_kernel_dumps_no_core_of_the_daemon(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None and other.stdout.read(1) == b"."
        if not _dumps_core(other):
            pytest.skip("this machine's kernel dumps no cores at all (core_pattern)")
    with furnished_machine("software") as machine, machine.running() as running:
        assert not _dumps_core(running.process)
