"""The ring keeps a standing only while nothing that decides it has changed."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.secrets.lifecycle import Limits
from agentd.secrets.ring import standing_of
from tests.agentd.world import DAY, T0, World, meta

_LIMITS = st.builds(
    Limits, rotation_interval=st.sampled_from((None, 3600, DAY)), grace_period=st.sampled_from((None, 60, 3 * DAY))
)


@given(
    st.lists(st.one_of(st.integers(T0 - DAY, T0 + 20 * DAY), _LIMITS, st.just("rotate")), min_size=2, max_size=30),
)
def test_a_standing_is_always_the_one_of_now(steps: list[int | Limits | str]) -> None:
    world = World(meta())
    for step in steps:
        if isinstance(step, Limits):
            world.ring.limits = step
        elif isinstance(step, str):
            newest = world.ring.newest_number
            if newest < 4:
                world.rotate(meta(newest + 1, start=T0 + newest * DAY))
        else:
            for stored in world.ring.versions:
                newest_one = stored.meta.version == world.ring.newest_number
                wanted = standing_of(stored.meta, step, world.ring.limits, newest=newest_one)
                assert world.ring.standing(stored, step) == wanted
    world.vault.close()
