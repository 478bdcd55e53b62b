"""The groups of a rollout: one statement puts each device where a pass for each group would, on both databases."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, select
from sqlalchemy.orm import Session

from server.fleet.devices.selection import parse, selecting
from server.fleet.rollouts import filling
from server.fleet.rollouts.policy import Take, size_of, takes_of
from server.registry.models.fleets import Device, DeviceTag
from server.registry.models.rollouts import RolloutDevice
from tests.server.devices import NOW
from tests.server.fleet.rollouts.machines import add_agents
from tests.support.serverside import ServerSide

COUNT = 40
GROUPS = st.lists(
    st.sampled_from(("1%", "10%", "33%", "1", "7", "60", "tag=beta", "tag=none", "kind=ddi", "id=pos-00*")), max_size=5
).map(lambda texts: [*texts, "rest"])


def put_devices(session: Session) -> list[str]:
    add_agents(session, [f"pos-{number:03}" for number in range(COUNT - 10)])
    add_agents(session, ["pos-gone-1", "pos-gone-2"], status="revoked")
    for number in range(8):
        session.add(Device(id=f"ddi-{number}", kind="ddi", name="", created_at=NOW, updated_at=NOW, revision=1))
    session.add_all(DeviceTag(device_id=f"pos-{number:03}", tag="beta") for number in range(0, 20, 3))
    session.flush()
    return list(session.scalars(select(Device.id)))


def pass_by_pass(session: Session, rollout_id: str, ids: Sequence[str], takes: Sequence[Take]) -> list[tuple[str, set[str]]]:
    """What docs and policy promise: each group takes of those that are left, by the hash of their ids."""
    left = sorted(ids, key=lambda each: hashlib.sha256(f"{rollout_id}/{each}".encode()).digest())
    made = []
    for take in takes:
        if take.selection is not None:
            selected = set(session.scalars(selecting(session, parse(take.selection))))
            mine = [each for each in left if each in selected]
        else:
            mine = left[: size_of(take, len(ids))]
        left = [each for each in left if each not in mine]
        if mine:
            made.append((take.text, set(mine)))
    return made


def test_one_statement_puts_each_device_where_a_pass_for_each_group_would(server: ServerSide) -> None:
    met: Counter[bool] = Counter()
    with server.database.write() as session:
        ids = put_devices(session)

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        @given(groups=GROUPS, rollout_id=st.sampled_from(("r1", "r-2")))
        def check(groups: list[str], rollout_id: str) -> None:
            session.execute(delete(RolloutDevice))
            takes = [take for take in map(_take, groups) if take is not None]
            names = filling.fill(session, rollout_id, select(Device.id), takes, len(ids), NOW)
            expected = pass_by_pass(session, rollout_id, ids, takes)
            rows = list(session.scalars(select(RolloutDevice).execution_options(populate_existing=True)))
            found = [(name, {row.device_id for row in rows if row.group_number == n}) for n, name in enumerate(names, 1)]
            assert found == expected
            assert {row.device_id for row in rows if row.state == "left-out"} == {"pos-gone-1", "pos-gone-2"}
            met[len(names) < len(groups)] += 1

        check()
        assert min(met[True], met[False]) > 5, met
        session.execute(delete(RolloutDevice))


def _take(text: str) -> Take:
    return takes_of([text, "rest"])[0] if text != "rest" else takes_of(["rest"])[0]


def test_a_device_that_comes_between_two_statements_belongs_to_a_group_that_is_there(server: ServerSide) -> None:
    with server.database.write() as session:
        ids = put_devices(session)
        takes = takes_of(["tag=none", f"{len(ids)}", "rest"])
        came: list[int] = []

        def comes(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("INSERT INTO rollout_device") and not came:
                came.append(1)
                session.connection().exec_driver_sql("INSERT INTO device_tag (device_id, tag) VALUES ('pos-001', 'none')")

        event.listen(server.database.engine, "before_cursor_execute", comes)
        names = filling.fill(session, "r1", select(Device.id), takes, len(ids), NOW)
        numbers = set(session.scalars(select(RolloutDevice.group_number)))
        assert names == [f"{len(ids)}"] and numbers == {1} and came
