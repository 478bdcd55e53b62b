"""Worlds are given back after each test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.agentd.world import World, meta


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*metas: Any, **options: Any) -> World:
        made.append(World(*(metas or (meta(),)), **options))
        return made[-1]

    yield make
    for world in made:
        world.vault.close()
