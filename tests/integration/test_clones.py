"""Two machines with one identity: the state directory of a software agent was copied, and both go on.

Whole agents on the software backend, wired by their own composition root, before the server's exchange and registry. Only the
connection between them and the clock are the test's.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.rotation.table import Step
from agentd.secrets.open import machine_id
from contracts.exchange import Cause
from hwsec.backend import Backend
from hwsec.software import SoftwareBackend
from hwsec.vault import Vault
from server.agents.clones import Report
from server.base.errors import RegistryError
from server.web.peers import Peer
from tests.support.pair import AGENT, DAY, LICENSE, Pair, first_pair

HOUR = 3600
Copy = Callable[[Pair, str], Pair]


def software(directory: Path) -> Callable[[], Backend]:
    """Makes the software backend whose keys are in a directory."""
    return lambda: SoftwareBackend(directory / "keys", machine_id(), Vault())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Peer, str]:
    """The directory of a machine and its server; its certificate and its license."""
    base = tmp_path_factory.mktemp("clones")
    place = base / "template"
    (place / "keys").mkdir(parents=True)
    pair = first_pair(base, software(place)(), software(place), DAY, 7 * DAY)
    pair.close()
    return place, pair.wire.peer, pair.token


@pytest.fixture
def original(template: tuple[Path, Peer, str], tmp_path: Path) -> Iterator[Pair]:
    source, peer, token = template
    place = tmp_path / "original"
    shutil.copytree(source, place)
    settings = place / "server" / "settings.toml"
    settings.write_text(settings.read_text().replace(str(source), str(place)))
    made = Pair(place, software(place), peer, token)
    yield made
    made.close()


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Copy]:
    """Copies a machine: its state, keys and log, while it does not run."""
    made: list[Pair] = []

    def copy(machine: Pair, name: str) -> Pair:
        source = machine.config.paths.state_dir.parent
        place = tmp_path / name
        machine.agent.end()
        for part in ("state", "keys", "log"):
            shutil.copytree(source / part, place / part)
        second = Pair(place, software(place), machine.wire.peer, machine.token, machine.server)
        machine.agent = machine._start()
        made.append(second)
        return second

    yield copy
    for machine in made:
        machine.agent.end()


def goes_on(machine: Pair) -> bool:
    """Whether the license is valid, by the newest token that the POS application finds here."""
    return machine.valid(machine.agent.validator.inventory.newest(LICENSE))


def contradict(original: Pair, copy: Pair) -> None:
    """The original rotates, and the copy comes with the version from before."""
    assert original.contact(Cause.FORCED) is None
    original.clock.seconds += 60
    assert copy.contact() is None
    assert halted(original) != []


def live(days: float, *machines: Pair) -> list[BaseException]:
    """Every machine contacts the server each hour; after each contact its license has to be valid. Returns what went wrong."""
    problems = []
    for _ in range(int(days * 24)):
        machines[0].clock.seconds += HOUR
        for machine in machines:
            error = machine.contact()
            machine.clock.seconds += 1
            if error is not None:
                problems.append(error)
            assert goes_on(machine), f"a valid license was refused after {error!r}"
    return problems


def versions(machine: Pair) -> int:
    return max(row.version for row in machine.server.server_side.secrets.listed(AGENT))


def halted(machine: Pair) -> list[str]:
    return [halt.evidence for halt in machine.server.server_side.clones.halted()]


def alerts(machine: Pair) -> list[str]:
    return [record.event for record in machine.server.server_side.audit.tail(10_000) if record.event.startswith("alert.")]


def test_both_go_on_and_no_version_is_burned(original: Pair, copied: Copy, caplog: pytest.LogCaptureFixture) -> None:
    copy = copied(original, "copy")
    contradict(original, copy)
    assert halted(original) == ["secret version 1 came back after version 2"]
    assert "two machines have one identity" in caplog.text
    # One last version with a long grace, the same for both. Without the halt, each contact of either machine makes a version
    # until 15 are live; then both are refused, and their licenses end with the grace of the last.
    assert live(20, original, copy) == []
    assert [machine.agent.rotation.newest for machine in (original, copy)] == [3, 3] == [versions(original)] * 2
    assert [machine.agent.rotation.rotation.step for machine in (original, copy)] == [Step.IDLE] * 2
    assert alerts(original).count("alert.clone") == 1


def test_a_copy_that_comes_first_does_not_stop_the_original(original: Pair, copied: Copy) -> None:
    copy = copied(original, "copy")
    original.wire.cut = True
    for _ in range(3):
        copy.clock.seconds += 2
        assert copy.contact(Cause.FORCED) is None
    original.wire.cut = False
    assert live(10, original) == []
    assert halted(original) and original.agent.rotation.newest == 5 == versions(original)


def test_after_the_decision_the_machine_that_is_left_rotates_again(original: Pair, copied: Copy) -> None:
    copy = copied(original, "copy")
    contradict(original, copy)
    server = original.server.server_side
    with pytest.raises(RegistryError, match="are halted"):
        server.secrets.rotate_by_hand(AGENT, original.server.now)
    assert live(1, original) == []
    server.clones.resume(AGENT, original.server.now)
    assert live(3, original) == []
    assert original.agent.rotation.newest >= 5 and halted(original) == []
    with pytest.raises(RegistryError, match="is not halted"):
        server.clones.resume(AGENT, original.server.now)
    # The copy was not taken out of service after all.
    original.clock.seconds += 60
    assert copy.contact() is None
    assert len(halted(original)) == 1


def test_nobody_decides_for_thirty_days(original: Pair, copied: Copy) -> None:
    copy = copied(original, "copy")
    contradict(original, copy)
    made = versions(original)
    problems = live(29.8, original, copy)
    assert {type(problem).__name__ for problem in problems} <= {"Refused"}
    original.clock.seconds += DAY
    assert not goes_on(original) and versions(original) == made


@pytest.mark.parametrize("restarts", [1, 5])
def test_a_reboot_or_a_power_cut_is_no_second_machine(original: Pair, restarts: int) -> None:
    for _ in range(restarts):
        assert original.contact(Cause.FORCED) is None
        original.restart_agent()
        assert live(0.25, original) == []
        original.restart_agent()
    assert halted(original) == []


def test_a_delayed_request_is_no_second_machine(original: Pair) -> None:
    """The request waits on its way, in the hands of the link or of a proxy, until a later version is confirmed."""
    original.wire.fate.message = ("secret-status", "delayed")
    assert original.contact() is not None
    for _ in range(3):
        original.clock.seconds += 1
        original.contact(Cause.FORCED)
    assert original.agent.rotation.newest > 1 and halted(original) == []


def test_a_device_that_is_enrolled_again_begins_anew(original: Pair, copied: Copy) -> None:
    copy = copied(original, "copy")
    contradict(original, copy)
    server = original.server.server_side
    row = server.agent(AGENT)
    assert row is not None
    keys = {"agreement": row.agreement_key, "identity": row.identity_key}
    server.agents.enroll_by_hand(AGENT, None, "software", keys, original.server.now)
    assert halted(original) == []
    assert live(0.25, original) == [] and halted(original) == []


def test_an_audit_log_that_goes_back_twice_is_a_second_machine(original: Pair, copied: Copy) -> None:
    """With a long interval no version contradicts; the audit logs of two machines do."""
    server = original.server.server_side

    def report(seq: int, head: str) -> None:
        original.clock.seconds += 2
        status = server.server.clones
        with server.database.write() as session:
            agents = server.server.agents
            agents.lock(session, AGENT)
            evidence = status.observe(session, AGENT, Report(1, original.server.now, (seq, head)), original.server.now)
            agents.saw(session, AGENT, original.server.now, seq, head)
            found.append(evidence)

    found: list[str | None] = []
    for seq, head in ((10, "a"), (7, "b"), (8, "b"), (9, "b"), (11, "b"), (12, "b")):
        report(seq, head * 64)
    assert found == [None] * 6, "a restored disk goes back once"
    report(11, "a" * 64)
    assert found[-1] == "the audit log went back to record 11 for the second time, after record 12"
