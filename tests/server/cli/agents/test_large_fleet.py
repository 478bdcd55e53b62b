"""Commands on a large fleet: statements grow with pages, memory does not grow, and a rotation of all is done in batches."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, func, insert, select, update
from sqlalchemy.orm import Session

from server.licensing.secrets import demand
from server.main import main
from server.registry.database import Database
from server.registry.models.core import Agent, EnrollmentToken, Secret, Setting
from server.registry.paging import PAGE
from tests.server.devices import NOW
from tests.support.faults import broken_at
from tests.support.manyagents import agent_id, make_agents
from tests.support.serverside import ServerSide, open_server
from tests.support.servertool import Done, license_server
from tests.support.terminal import at_terminal

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[4]
PROGRAM = (sys.executable, "-c", "from server.main import entry; entry()")
FEW, MANY = 2000, 5000
MIB = 1024 * 1024


def run(directory: Path, *arguments: object, code: int = 0) -> Done:
    done = license_server(*map(str, arguments), env={"LICENSE_SERVER_DIR": str(directory)})
    assert done.returncode == code, done
    return done


def add(directory: Path, first: int, end: int) -> None:
    server = open_server(directory)
    make_agents(server.database, first, end, NOW)
    server.close()


@pytest.fixture
def fleet(directory: Path) -> Path:
    """A server with `FEW` agents."""
    add(directory, 0, FEW)
    return directory


def cost(directory: Path, *arguments: str, traced: bool = True) -> tuple[int, int]:
    """How many statements a command takes, and the peak of its memory; what it prints goes nowhere.

    To trace memory makes a command several times slower: a run that only fills caches needs no trace.
    """
    count = 0

    def executed(_connection: object, _cursor: object, statement: str, *_details: object) -> None:
        nonlocal count
        count += not statement.startswith("BEGIN")  # SQLite's transactions are begun by a statement, PostgreSQL's are not

    event.listen(Engine, "before_cursor_execute", executed)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            if traced:
                tracemalloc.start()
            main([*arguments, "--dir", str(directory)], standalone_mode=False)
            peak = tracemalloc.get_traced_memory()[1]  # 0 where nothing is traced
    finally:
        tracemalloc.stop()
        event.remove(Engine, "before_cursor_execute", executed)
    return count, peak


COMMANDS = (
    ("agents list", 1, PAGE),
    ("agents list --json", 1, PAGE),
    ("licenses list", 1, PAGE),
    ("licenses list --json", 1, PAGE),
    ("enrollment-token list", 1, PAGE),
    ("clones list", 1, PAGE),
    ("secrets rotate --all", 8, demand.BATCH),
)
"""Each with its statements for a page, and the rows of a page. A halted agent cannot rotate, so the rotation comes last."""


def test_statements_grow_with_pages_and_memory_does_not_grow(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)

    def tokens(first: int, end: int) -> None:
        server = open_server(fleet)
        with server.database.write() as session:
            digests = (f"{number:064x}" for number in range(first, end))
            session.execute(
                insert(EnrollmentToken),
                [{"digest": digest, "state": "open", "created_at": NOW, "expires_at": NOW + 9} for digest in digests],
            )
        server.close()

    def costs(traced: bool = True) -> dict[str, tuple[int, int]]:
        found = {}
        for command, _each, _rows in COMMANDS:
            server = open_server(fleet)
            halted = {"halted_at": NOW, "halt_reason": "why"} if command.startswith("clones") else {"halted_at": None}
            with server.database.write() as session:
                session.execute(update(Agent).values(halted))
            server.close()
            found[command] = cost(fleet, *command.split(), traced=traced)
        return found

    tokens(0, FEW)
    costs(traced=False)  # what is imported and cached once
    few = costs()
    add(fleet, FEW, MANY)
    tokens(FEW, MANY)
    many = costs()
    for command, each, rows in COMMANDS:
        assert many[command][0] - few[command][0] == (MANY - FEW) // rows * each, (command, few, many)
        assert many[command][1] < few[command][1] + 2 * MIB and many[command][1] < 16 * MIB, (command, few, many)


def test_a_list_of_many_pages_is_one_list(fleet: Path) -> None:
    rows = json.loads(run(fleet, "agents", "list", "--json").stdout)
    assert [row["agent_id"] for row in rows] == [agent_id(number) for number in range(FEW)]
    assert rows[0]["agreement_key"]["kty"] == "EC" and rows[0]["last_seen"] is None
    lines = run(fleet, "agents", "list").stdout.splitlines()
    assert len(lines) == FEW + 2 and lines[0].startswith("agent ")
    assert len({line.index("software") for line in lines[2:]}) == 1, "the columns of all pages are in line"
    assert json.loads(run(fleet, "agents", "list", "--json", "--id-prefix", "none").stdout) == []
    assert len(run(fleet, "agents", "list", "--id-prefix", "none").stdout.splitlines()) == 2


OPTIONS: tuple[tuple[str, range | tuple[int, ...]], ...] = (
    ("--status revoked", range(0, FEW, 10)),
    ("--status revoked --limit 3", (0, 10, 20)),
    ("--id-prefix pos-0015", range(1500, 1600)),
    ("--id-prefix POS-0015", ()),
    ("--id-prefix pos_0015", ()),
    ("--after pos-001990", range(1991, FEW)),
    ("--after pos-000700 --limit 700", range(701, 1401)),
    ("--after pos-001899 --id-prefix pos-001 --status revoked --limit 2", (1900, 1910)),
    ("--status factory_only", ()),
)


def test_the_options_choose_agents(fleet: Path) -> None:
    for options, numbers in OPTIONS:
        rows = json.loads(run(fleet, "agents", "list", "--json", *options.split()).stdout)
        assert [row["agent_id"] for row in rows] == [agent_id(number) for number in numbers], options


def test_the_options_choose_licenses_tokens_versions_and_clones(fleet: Path) -> None:
    def ids(name: str, *arguments: object) -> list[object]:
        return [row[name] for row in json.loads(run(fleet, *arguments, "--json").stdout)]

    run(fleet, "revoke", "lic-000003")
    assert ids("license_id", "licenses", "list", "--status", "revoked") == ["lic-000003"]
    assert ids("license_id", "licenses", "list", "--agent", agent_id(7)) == ["lic-000007"]
    assert ids("license_id", "licenses", "list", "--after", "lic-001997") == ["lic-001998", "lic-001999"]
    assert ids("license_id", "licenses", "list", "--status", "issued", "--limit", "4") == [
        f"lic-00000{n}" for n in (0, 1, 2, 4)
    ]
    assert "no agent 'x' is enrolled" in run(fleet, "licenses", "list", "--agent", "x", code=1).stderr
    assert "revoked" in run(fleet, "licenses", "list", "--status", "revoked").stdout
    for _ in range(3):
        run(fleet, "enrollment-token", "make")
    run(fleet, "enrollment-token", "revoke", "2")
    assert ids("claim_id", "enrollment-token", "list", "--status", "open") == [3, 1]
    assert ids("claim_id", "enrollment-token", "list", "--after", "3", "--limit", "1") == [2]
    for _ in range(3):
        run(fleet, "rotate", "--agent", agent_id(1))
    assert ids("version", "secrets", "list", "--agent", agent_id(1), "--after", "1", "--limit", "2") == [2, 3]
    assert ids("version", "secrets", "list", "--agent", agent_id(1), "--status", "ACTIVE") == [4]
    server = open_server(fleet)
    with server.database.write() as session:
        session.execute(update(Agent).values(halted_at=NOW, halt_reason="why"))
        session.execute(update(Agent).where(Agent.id == agent_id(5)).values(halted_at=NOW - 1))
    server.close()
    halted = ids("agent_id", "clones", "list")
    assert halted == [agent_id(5), *(agent_id(number) for number in range(FEW) if number != 5)]
    assert ids("agent_id", "clones", "list", "--limit", "2") == halted[:2]
    assert len(json.loads(run(fleet, "audit", "-n", "3", "--json").stdout)) == 3
    assert ids("seq", "audit", "-n", "1000")[0] == 1


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_list_ends_when_its_reader_does(fleet: Path, form: str) -> None:
    command = f"{shlex.join(PROGRAM)} agents list {form} --dir {fleet} | head -n 3"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == 3 and done.stderr == ""


def test_no_transaction_is_open_while_a_list_waits_for_its_reader(fleet: Path) -> None:
    """`agents list | less`, left over night: on PostgreSQL it would hold back VACUUM, on SQLite the checkpoint of the log."""
    command = [*PROGRAM, "agents", "list", "--json", "--dir", str(fleet)]
    server = open_server(fleet)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stdout.read(1) == b"["
        # It is stuck in the middle: a pipe takes 64 KiB.
        with server.database.write() as session:
            session.execute(update(Agent).where(Agent.id == agent_id(FEW - 1)).values(backend="tpm"))
        assert json.loads(b"[" + listing.stdout.read())[-1]["backend"] == "tpm", "a later page is of a later moment"
    assert listing.returncode == 0
    server.close()


# Rotation of all agents


def urgent(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).where(Agent.urgent.is_(True))) or 0


def pending(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).where(Secret.state == "PENDING")) or 0


def notes(session: Session) -> dict[str, int]:
    """How far the runs came that have not ended."""
    rows = session.scalars(select(Setting).where(Setting.name.startswith(demand.NOTE)))
    return {row.name: json.loads(row.value)["done"] for row in rows}


def demanded(directory: Path) -> list[tuple[str, object, object]]:
    server = open_server(directory)
    records = [record for record in server.audit.tail(10) if record.event == "rotation.demanded"]
    server.close()
    return [(record.outcome, record.fields.get("agents"), record.fields.get("done")) for record in records]


def test_all_agents_rotate(fleet: Path) -> None:
    assert f"{FEW} agents will rotate at their next contact" in run(fleet, "secrets", "rotate", "--all").stderr
    with closing(open_server(fleet)) as server:
        assert (urgent(server.database), pending(server.database)) == (FEW, 0)
    assert demanded(fleet) == [("begun", FEW, 0), ("ok", FEW, None)]
    assert "no rotation of all agents was interrupted" in run(fleet, "secrets", "rotate", "--all", "--resume", code=1).stderr
    assert "belongs to --all" in run(fleet, "secrets", "rotate", "--agent", "x", "--resume", code=2).stderr


def test_agents_check_in_between_two_batches(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process writes to agents of the batches before and behind, and waits for neither."""
    monkeypatch.setattr(demand, "BATCH", 300)
    seen = 0
    with closing(open_server(fleet)) as server, closing(open_server(fleet)) as other:

        def pause() -> None:
            nonlocal seen
            for number in (0, FEW - 1):
                other.agents.saw(agent_id(number), NOW + seen, None, None)
            seen += 1

        assert demand.run(server.database, demand.begin(server.database, NOW), NOW, pause, lambda _done: None) == FEW
        assert seen == -(-FEW // 300)
        assert other.agent(agent_id(0)).last_seen == NOW + seen - 1


@pytest.mark.parametrize("resume", [True, False])
def test_a_rotation_of_all_that_was_killed_is_continued_or_repeated(fleet: Path, tmp_path: Path, resume: bool) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def killed() -> None:
        left = 2

        def reached(_done: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        demand.BATCH = 300
        server = open_server(fleet)
        demand.run(server.database, demand.begin(server.database, NOW), NOW, lambda: None, reached)

    assert broken_at(10_000, killed, "kill", scratch).code == -signal.SIGKILL
    with closing(open_server(fleet)) as server:
        assert (urgent(server.database), pending(server.database)) == (600, FEW - 600)
        with server.database.write() as session:  # one has rotated since
            session.execute(update(Agent).where(Agent.id == agent_id(1)).values(urgent=False))
    said = run(fleet, "secrets", "rotate", "--all", *(["--resume"] if resume else [])).stderr
    assert ("interrupted after 600 agents" in said) is not resume
    assert f"{FEW} agents will rotate" in said
    with closing(open_server(fleet)) as server:
        assert (urgent(server.database), pending(server.database)) == (FEW - resume, 0)
        with server.database.read() as session:
            assert not notes(session)
    assert demanded(fleet) == [
        ("begun", FEW, 0),
        ("resumed" if resume else "begun", FEW, 600 if resume else 0),
        ("ok", FEW, None),
    ]


class Killed(BaseException):
    """Ends a run in the middle."""


def part(server: ServerSide, begun: demand.Begun, batches: int) -> None:
    """So many batches of a run, which then ends as a process does that is killed."""

    def reached(_done: int) -> None:
        nonlocal batches
        batches -= 1
        if not batches:
            raise Killed

    with contextlib.suppress(Killed):
        demand.run(server.database, begun, NOW, lambda: None, reached)


def whole(server: ServerSide, begun: demand.Begun) -> None:
    demand.run(server.database, begun, NOW, lambda: None, lambda _done: None)


def settle(server: ServerSide) -> None:
    """All agents have done what was demanded."""
    with server.database.write() as session:
        session.execute(update(Agent).values(urgent=False))


def test_of_two_runs_at_once_one_that_is_killed_can_be_continued_when_the_other_has_ended(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is asked for while the first one is at 600 agents, and those 600 have rotated by then."""
    monkeypatch.setattr(demand, "BATCH", 300)
    with closing(open_server(fleet)) as server:
        first = demand.begin(server.database, NOW)
        part(server, first, 2)
        settle(server)
        part(server, demand.begin(server.database, NOW), 1)
        # The first one goes on, from where it was, to its end.
        whole(server, replace(first, done=600, after=agent_id(599)))
        assert urgent(server.database) == FEW - 300, "agents 300 to 599 have not been asked for the second time"
        again = demand.begin(server.database, NOW, resume=True)
        assert again.done == 300
        whole(server, again)
        with server.database.read() as session:
            assert notes(session) == {}
        assert urgent(server.database) == FEW


def test_the_run_that_came_least_far_is_continued_and_ends_those_that_it_overtakes(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand, "BATCH", 300)
    with closing(open_server(fleet)) as server:
        for batches in (3, 1, 2):
            part(server, demand.begin(server.database, NOW), batches)
        again = demand.begin(server.database, NOW, resume=True)
        assert (again.done, len(again.overtaken)) == (300, 3)
        later = demand.begin(server.database, NOW)
        part(server, later, 1)
        whole(server, again)
        with server.database.read() as session:
            assert notes(session) == {later.note: 300}, "the one that was begun later is not overtaken"
        assert demand.begin(server.database, NOW).interrupted == 300


def test_a_note_of_the_program_before_is_continued_from_the_first_agent(fleet: Path) -> None:
    with closing(open_server(fleet)) as server:
        with server.database.write() as session:
            session.add(Setting(name=demand.NOTE, value=json.dumps({"done": 900, "after": agent_id(899)})))
        whole(server, demand.begin(server.database, NOW, resume=True))
        assert urgent(server.database) == FEW
        with server.database.read() as session:
            assert notes(session) == {}


def test_a_bar_shows_how_far_it_is_at_a_terminal_only(fleet: Path) -> None:
    command = [*PROGRAM, "secrets", "rotate", "--all", "--dir", str(fleet)]
    shown = at_terminal(command, {**os.environ, "TERM": "xterm"}, ROOT)
    assert shown.status == 0 and "100%" in shown.output, shown
    assert "%" not in run(fleet, "secrets", "rotate", "--all").stderr


def test_a_move_takes_no_more_memory_for_more_agents(fleet: Path, tmp_path: Path) -> None:
    cost(fleet, "move", "--to", f"sqlite:///{tmp_path / 'one.db'}", traced=False)
    few = cost(fleet, "move", "--to", f"sqlite:///{tmp_path / 'two.db'}")
    add(fleet, FEW, MANY)
    many = cost(fleet, "move", "--to", f"sqlite:///{tmp_path / 'three.db'}")
    assert many[1] < few[1] + 2 * MIB and many[1] < 24 * MIB, (few, many)
