"""Debian's rsyslog with the shipped configuration and the guide's commands carries the audit log away, over real TLS."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from audittrail.chain import MAX_LINE_BYTES, Chain
from audittrail.record import read
from tests.integration.test_auditor_runbook import commands
from tests.support.rsyslog import Rsyslog, pair
from tests.support.stand import BIN, running_stand
from tests.support.swtpm import free_port_pair
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

REFUSED = re.compile(r"verify failed|[Cc]ertificate (error|status|in)|SSL_ERROR|not permitted|peer")
GUIDE = "Keep the audit log away from the machine"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide's `openssl` commands make, and the same under another CA."""
    made = [line for line in commands(GUIDE) if line.startswith("openssl")]
    assert len(made) == 5
    directory = tmp_path_factory.mktemp("tls")
    (directory / "other").mkdir()
    for place in (directory, directory / "other"):
        for line in made:
            done = subprocess.run(["sh", "-c", line], cwd=place, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stderr)
    return directory


class Log:
    """An audit log as the agent writes it, without the agent."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.path = directory / "audit.log"
        self.chain = Chain()
        self._first = 1
        self._open()

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o640)

    def write(self, count: int, text: str = "") -> None:
        for _ in range(count):
            seq = self.chain.seq
            os.write(self._file, self.chain.append(1.9e9 + seq, float(seq), "admin.request", "ok", {"text": text}))

    def rotate(self) -> None:
        self.path.rename(self.path.with_name(f"audit-{self._first:012d}.log"))
        os.close(self._file)
        self._first = self.chain.seq + 1
        self._open()


class Collected:
    """What a collector has."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def file(self) -> Path:
        found = list(self.directory.glob("*/audit.log"))
        assert len(found) == 1
        return found[0]

    def numbers(self) -> list[int]:
        """The numbers of the records, in the order of the file; a line that is no record, byte by byte, fails."""
        found = []
        for path in self.directory.glob("*/audit.log"):
            for line in path.read_bytes().splitlines(keepends=True):
                record = read(line)
                assert record is not None or not line.endswith(b"\n"), line
                if record is not None:
                    found.append(record["seq"])
        return found

    def has(self, last: int) -> bool:
        """Whether all records up to a number are there."""
        return set(self.numbers()) >= set(range(1, last + 1))


@pytest.fixture
def made(tmp_path: Path, tls: Path) -> Iterator[tuple[Log, Rsyslog, Rsyslog, Collected]]:
    log = Log(tmp_path / "log")
    with pair(tmp_path, tls, log.path.parent, free_port_pair()) as (sender, collector):
        yield log, sender, collector, Collected(tmp_path / "collected")


def _merged(lines: list[bytes]) -> list[int]:
    """What the guide's command makes of a collected file and an export."""
    command = next(line for line in commands(GUIDE) if "awk" in line)
    pipe = command.split("|", 1)[1].split(">")[0]
    done = subprocess.run(["sh", "-c", pipe], input=b"".join(lines), capture_output=True, check=True)
    return [json.loads(line)["seq"] for line in done.stdout.splitlines()]


def test_records_arrive_byte_by_byte_the_longest_too_and_segments_are_followed(
    made: tuple[Log, Rsyslog, Rsyslog, Collected],
) -> None:
    log, sender, collector, collected = made
    log.write(50)  # before anybody reads
    collector.start()
    sender.start()
    log.write(2, "ä" * 8000)
    for _ in range(2):
        log.write(100)
        wait_until(lambda: collected.has(log.chain.seq), "records did not arrive")
        log.rotate()
        log.write(5)
    wait_until(lambda: collected.has(log.chain.seq), "records after a new segment did not arrive")
    assert max(map(len, collected.file.read_bytes().splitlines())) > MAX_LINE_BYTES - 400
    assert _merged(collected.file.read_bytes().splitlines(keepends=True)) == list(range(1, log.chain.seq + 1))


def test_what_is_written_while_the_collector_is_down_arrives_afterwards(made: tuple[Log, Rsyslog, Rsyslog, Collected]) -> None:
    log, sender, collector, collected = made
    sender.start()  # before its collector
    log.write(3000)  # more than the queue keeps in memory; nothing here waits for it
    collector.start()
    wait_until(lambda: collected.has(3000), "what was queued did not arrive")
    in_transit: set[int] = set()
    for _ in range(2):
        # What is on its way when a connection breaks may be lost, and nothing else.
        log.write(20)
        collector.stop(kill=True)
        in_transit |= set(range(log.chain.seq - 19, log.chain.seq + 1))
        log.write(1)
        wait_until(lambda: "closed connection" in sender.said or "refused" in sender.said, "the sender has not noticed")
        in_transit.add(log.chain.seq)
        log.write(200)
        collector.start()
        last = log.chain.seq
        wait_until(
            lambda last=last, lost=frozenset(in_transit): {*collected.numbers(), *lost} >= set(range(1, last + 1)),
            lambda: "what was queued did not arrive: " + sender.said,
        )
    # The machine restarts while its collector does not answer: what was queued is kept.
    collector.stop()
    log.write(1)
    in_transit.add(log.chain.seq)
    log.write(2500)
    first = log.chain.seq - 2500
    sender.stop()
    log.write(100)
    sender.start()
    collector.start()
    wait_until(
        lambda: len(set(range(first, log.chain.seq + 1)) - set(collected.numbers())) <= 2,
        lambda: "what was queued did not arrive: " + sender.said,
    )
    # The guide's remedy: what the machine exports fills the gap, and what came twice counts once.
    export = log.path.read_bytes().splitlines(keepends=True)
    assert _merged([*collected.file.read_bytes().splitlines(keepends=True), *export]) == list(range(1, log.chain.seq + 1))


def test_a_machine_with_a_wrong_certificate_is_refused_and_loses_no_more_than_what_it_was_sending(
    made: tuple[Log, Rsyslog, Rsyslog, Collected], tls: Path
) -> None:
    log, sender, collector, collected = made
    collector.start()
    log.write(20)
    sender.start(certificate=(f"{tls}/till.", f"{tls}/other/till."))
    wait_until(lambda: REFUSED.search(collector.said), lambda: f"nobody was refused: {collector.said}")
    assert collected.numbers() == []
    sender.stop()  # with one record in its hands, as the configuration says
    sender.start()
    wait_until(
        lambda: len(set(collected.numbers())) >= 19, lambda: "with the right certificate nothing arrived: " + sender.said
    )
    log.write(1)
    wait_until(lambda: 21 in collected.numbers(), lambda: "what came later did not arrive: " + sender.said)
    export = log.path.read_bytes().splitlines(keepends=True)
    assert _merged([*collected.file.read_bytes().splitlines(keepends=True), *export]) == list(range(1, 22))


def test_a_collector_with_a_wrong_certificate_gets_nothing(made: tuple[Log, Rsyslog, Rsyslog, Collected], tls: Path) -> None:
    log, sender, collector, collected = made
    collector.start(certificate=(f"{tls}/collector.", f"{tls}/till."))
    log.write(20)
    sender.start()
    wait_until(lambda: REFUSED.search(sender.said + collector.said), lambda: f"the collector was accepted: {sender.said}")
    assert collected.numbers() == []
    log.write(10)
    collector.stop()
    collector.start()
    wait_until(
        lambda: collected.has(30), lambda: f"with the right certificate only {collected.numbers()} arrived: {sender.said}"
    )


def test_messages_of_the_agent_arrive_in_a_file_of_their_own(made: tuple[Log, Rsyslog, Rsyslog, Collected]) -> None:
    _, sender, collector, collected = made
    collector.start()
    sender.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect(str(sender.socket))
        journal.send(b"<30>Nov 30 07:00:00 sshd[1]: not ours")
        journal.send(b"<26>Nov 30 07:00:00 license-agent[4711]: ALERT the clock is wrong")
    found = wait_until(lambda: [path.read_text() for path in collected.directory.glob("*/messages.log")], "no message arrived")
    wait_until(lambda: "ALERT" in next(collected.directory.glob("*/messages.log")).read_text(), "no message arrived")
    assert "not ours" not in found[0]


@pytest.mark.parametrize("name", ["..", "../../etc", "a/b"])
def test_a_machine_cannot_choose_the_collectors_file(tmp_path: Path, tls: Path, name: str) -> None:
    port = free_port_pair()
    with pair(tmp_path, tls, tmp_path / "log", port) as (_, collector):
        collector.start()
        line = f"<133>1 2027-01-31T12:00:00Z {name} license-agent-audit - - - {{}}".encode()
        words = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{port}", "-CAfile", tls / "ca.pem"]
        done = subprocess.Popen(
            [*words, "-cert", tls / "till.pem", "-key", tls / "till.key"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert done.stdin is not None
        done.stdin.write(b"%d %s" % (len(line), line))
        done.stdin.flush()
        try:
            wait_until(lambda: list(tmp_path.rglob("audit.log")), "nothing was written")
        finally:
            done.terminate()
            done.communicate()
        for path in tmp_path.rglob("audit.log"):
            assert path.parent.parent == tmp_path / "collected" and path.parent.name != ".."


def test_the_chain_verifies_at_the_collector_while_a_real_agent_writes_it(tmp_path: Path, tls: Path) -> None:
    with running_stand("software") as stand, pair(tmp_path, tls, stand.root / "log", free_port_pair()) as (sender, collector):
        collected = Collected(tmp_path / "collected")
        collector.start()
        sender.start()
        for _ in range(20):
            assert stand.run("license-agent-cli", "status").returncode == 0
        assert stand.run("license-agent-cli", "contact").returncode == 0
        agent = stand.info["agent_id"]
        for name, words in ("head", ["audit-head", "--agent", agent]), ("trust.json", ["trust"]):
            assert stand.run("license-server", *words, "--out", str(tmp_path / name)).returncode == 0
        last = json.loads(stand.run("license-agent-cli", "--json", "audit", "tail", "-n", "1").stdout)["seq"]
        wait_until(lambda: collected.has(last), "the agent's records did not arrive")
        verify = next(line for line in commands(GUIDE) if "audit verify" in line)
        here = re.sub(r"/var/log/license-agents/\S+", str(collected.file), verify)
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        done = subprocess.run(["sh", "-c", here], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and re.match(r"intact from 1 to \d+, acknowledged by the server", done.stdout), done
        # What somebody changes at the collector is found there.
        lines = collected.file.read_bytes().splitlines(keepends=True)
        collected.file.write_bytes(b"".join(lines[:3] + lines[4:]))
        done = subprocess.run(["sh", "-c", here], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "TAMPERED" in done.stdout
