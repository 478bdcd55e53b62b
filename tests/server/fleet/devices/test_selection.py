"""Selecting devices: one by its rows, all by a statement, and both alike."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from server.base.errors import Conflict
from server.fleet.devices import selection
from server.fleet.devices.facts import facts_of, holds
from server.fleet.devices.selection import matches, parse, selecting, versions_of
from server.registry.models.fleets import DeviceVersion
from tests.server.fleet.devices.manydevices import SELECTIONS, VERSIONS, fill
from tests.support.serverside import ServerSide


@pytest.fixture
def session(server: ServerSide) -> Iterator[Session]:
    with server.database.write() as session:
        yield session


def selected(session: Session, text: str) -> list[str]:
    return sorted(session.scalars(selecting(session, parse(text))))


def test_one_device_and_all_devices_are_selected_alike(session: Session) -> None:
    ids = fill(session, 36)
    everything = [parse(text) for text in (*(f"{name}=x" for name in ("tag", "fleet", "attr.lane")), "pos.version=1")]
    facts = {each: facts_of(session, each, everything) for each in ids}
    met = {False: 0, True: 0}

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(text=SELECTIONS, one=st.sampled_from(ids))
    def check(text: str, one: str) -> None:
        parsed = parse(text)
        found = selected(session, text)
        assert found == sorted(each for each, known in facts.items() if known is not None and holds(parsed.root, known))
        assert matches(session, parsed, one) == (one in found)
        met[0 < len(found) < len(ids)] += 1

    check()
    assert met[True] > 30  # most selections tell devices apart


def test_versions_are_compared_as_versions(session: Session) -> None:
    fill(session, 6)
    by_version = dict(zip(VERSIONS, ("D-1", "e-2", "d-3", "D-4", "e-5"), strict=True))
    assert selected(session, "pos.version<2.0") == sorted([by_version["1.9"], by_version["2.0-rc.1"]])
    assert selected(session, "pos.version=2") == sorted([by_version["2.0"], by_version["2.0.0"]])
    assert selected(session, "pos.version>2.9") == [by_version["2.10"]]
    # A device that reports no version of the product satisfies no comparison, also not !=.
    assert "d-0" not in selected(session, "pos.version!=2.0")
    assert "d-0" in selected(session, "not pos.version=2.0")
    assert selected(session, "core.version>=0") == []


def test_a_version_that_is_malformed_satisfies_no_comparison(session: Session) -> None:
    fill(session, 1)
    session.add(DeviceVersion(device_id="d-0", product="pos", version="nightly", build_id="b", reported_at=1))
    for operator in ("=", "!=", "<", ">="):
        assert selected(session, f"pos.version{operator}1") == []
        assert not matches(session, parse(f"pos.version{operator}1"), "d-0")


def test_what_is_unknown_of_a_device_is_not_so(session: Session) -> None:
    """SQL knows a third value beside true and false, which a NOT leaves as it is."""
    fill(session, 1)
    assert selected(session, "not hardware=pos-x200") == ["d-0"]
    assert selected(session, "not (hardware=pos-x200 and zone=UTC)") == ["d-0"]


def test_a_device_that_does_not_exist_is_never_selected(session: Session) -> None:
    assert not matches(session, parse("not tag=x"), "nobody")


def test_versions_are_found_one_by_one_and_bounded(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(session, 30)
    assert sorted(versions_of(session, "pos")) == sorted(VERSIONS)
    monkeypatch.setattr(selection, "MAX_VERSIONS", 4)
    with pytest.raises(Conflict, match="more than 4 different versions of 'pos'"):
        selecting(session, parse("pos.version>1"))
