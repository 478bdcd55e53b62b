"""Stands that the tests of a module share, one for each backend."""

from collections.abc import Iterator

import pytest

from tests.support.stand import Stand, running_stand


@pytest.fixture(scope="module", params=["software", "tpm"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    with running_stand(request.param) as running:
        yield running
