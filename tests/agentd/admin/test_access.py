"""Which mode is in force, and what is sealed and alerted of it."""

from pathlib import Path

import pytest

from agentd.admin.access import ENDS_SOON_S, Mode, in_force
from agentd.base.clock.timeanchor import Reading
from agentd.secrets.record import AdminAccess, AgentRecord, UsedBreakGlass, read_record
from tests.contracts.world import TRUST_FILE
from tests.support.adminpki import DAY, Ca

from .world import CA, AdminSocket, run

pytestmark = pytest.mark.system


@pytest.mark.parametrize("policy", [None, "required", "uid-only"])
@pytest.mark.parametrize("ca_exists", [False, True])
@pytest.mark.parametrize("latched", [False, True])
def test_the_table_of_the_guide(policy: str | None, ca_exists: bool, latched: bool) -> None:
    wanted = {(None, False): False, (None, True): True, ("required", False): True, ("required", True): True}
    required = latched or wanted.get((policy, ca_exists), False)
    found = in_force(policy, ca_exists=ca_exists, latched=latched)
    assert found is (Mode.REQUIRED if required else Mode.UID_ONLY)


def test_what_is_sealed_is_a_section_of_its_own_and_read_back() -> None:
    used = UsedBreakGlass(certificate="ab" * 32, began=Reading(5, 6), ends=7)
    record = AgentRecord(TRUST_FILE, access=AdminAccess(latched=True, revoked=("cd" * 32,), break_glass=(used,)))
    sections = record.sections()
    assert set(sections) == {"trust", "admin_access"} and read_record(sections) == record


def test_the_demand_is_sealed_as_soon_as_the_store_takes_it(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        world.store.broken = True
        await world.access.settle()
        assert not world.access.kept.latched and world.access.mode is Mode.REQUIRED
        world.store.broken = False
        await world.access.settle()
        await world.access.settle()
        assert world.store.kept == ["admin.authentication_required"]
        world.pem = None
        world.access.reconfigure("uid-only")
        assert world.access.mode is Mode.REQUIRED
        assert len(world.records("alert.admin_ca_unusable")) == 1

    run(tmp_path, work)


def test_a_demand_that_was_never_in_force_is_not_sealed(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        await world.access.settle()
        assert world.store.kept == [] and world.access.mode is Mode.UID_ONLY

    run(tmp_path, work, policy="uid-only")


def test_the_end_of_the_ca_is_an_alert_thirty_days_before_and_cleared_by_a_successor(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        now = world.access._clock.now()
        for left, raised in ((ENDS_SOON_S // DAY + 1, 0), (ENDS_SOON_S // DAY - 1, 1), (3, 1)):
            world.pem = Ca(start=now - DAY, days=left + 1).pem
            world.access.look()
            assert len(world.records("alert.admin_ca_ends")) == raised, left
        world.pem += CA.pem
        world.access.look()
        assert [each["outcome"] for each in world.records("alert.admin_ca_ends")] == ["raised", "cleared"]
        world.pem = Ca(start=now - 9 * DAY, days=8).pem
        world.access.look()
        assert [each["outcome"] for each in world.records("alert.admin_ca_unusable")] == ["raised"]
        assert world.access.mode is Mode.REQUIRED

    run(tmp_path, work)
