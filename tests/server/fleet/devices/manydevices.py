"""Devices, fleets and selections at random, from few values: so that selections often select some of the devices."""

from collections.abc import Sequence

from hypothesis import strategies as st
from sqlalchemy.orm import Session

from server.registry.models.fleets import Device, DeviceAttribute, DeviceTag, DeviceVersion, FleetMember
from tests.server.devices import NOW

VERSIONS = ("1.9", "2.0-rc.1", "2.0", "2.0.0", "2.10")
_ALL = {
    "tag": ("beta", "a b", 'q"'),
    "hardware": ("pos-x200", "pos-x300"),
    "site": ("shop-1", "shop-2"),
    "kind": ("agent", "ddi"),
    "zone": ("UTC", "Europe/Berlin"),
    "attr.lane": ("1", "2"),
    "fleet": ("f-1", "f-2"),
}


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_TERMS = st.one_of(
    st.sampled_from([f"{name}={_quoted(value)}" for name, values in _ALL.items() for value in values]),
    st.tuples(st.sampled_from(("=", "!=", "<", "<=", ">", ">=")), st.sampled_from(VERSIONS)).map(
        "pos.version{0[0]}{0[1]}".format
    ),
    st.sampled_from(("id=d-*", "id=d-1*", "id=D-*", "id=d-1", "id=e-é*", "id=*")),
)
SELECTIONS = st.recursive(
    _TERMS,
    lambda part: st.one_of(
        part.map("not ({})".format),
        st.lists(part, min_size=2, max_size=3).map(lambda parts: "(" + " and ".join(parts) + ")"),
        st.lists(part, min_size=2, max_size=3).map(lambda parts: "(" + " or ".join(parts) + ")"),
    ),
    max_leaves=6,
)


def _optional(name: str, n: int) -> str | None:
    return (None, *_ALL[name])[n % 3]


def fill(session: Session, count: int = 60) -> Sequence[str]:
    """Devices of which each has another mixture of properties; returns their ids."""
    ids = []
    for n in range(count):
        device_id = f"{('d', 'D', 'e')[n % 3]}-{n}"
        ids.append(device_id)
        session.add(
            Device(
                id=device_id, kind=_ALL["kind"][n % 2], name="", hardware=_optional("hardware", n),
                zone=_optional("zone", n // 2), site_id=_optional("site", n // 3), created_at=NOW, updated_at=NOW, revision=1,
            )
        )  # fmt: skip
        session.add_all(DeviceTag(device_id=device_id, tag=tag) for i, tag in enumerate(_ALL["tag"]) if n >> i & 1)
        session.add_all(FleetMember(fleet_id=each, device_id=device_id) for i, each in enumerate(_ALL["fleet"]) if n >> i & 2)
        if n % 3:
            lane = DeviceAttribute(device_id=device_id, name="lane", value=str(n % 3), source="operator", updated_at=NOW)
            session.add(lane)
        if n % 6:
            version = VERSIONS[n % 6 - 1]
            session.add(DeviceVersion(device_id=device_id, product="pos", version=version, build_id="b", reported_at=NOW))
    return ids
