"""Prepared keys: they wait in the key set, come in use without the root, are tried first, and can be taken back."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.keyset import verify_key_set
from server.base.errors import RegistryError
from server.keys.key_states import KeyState
from server.keys.keyring import Keyring
from server.keys.lifecycle import DAY, LIFETIMES, PREPARED, SIGNING
from server.keys.rootkey import read_root_key
from server.keys.schedule import USE_AHEAD_S, WARN_AHEAD_S
from server.keys.succession import Changed
from server.licensing.licenses.licenses import Order
from server.registry.models.core import ServerKey
from server.serving import TlsWatch
from server.wiring import Plan, create_server
from tests.server.chains import holds, server_chain
from tests.server.devices import ISSUER, NOW, Device
from tests.support.serverside import ServerSide, open_server

pytestmark = pytest.mark.system


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerSide]:
    create_server(tmp_path / "server", Plan(ISSUER, ("localhost",), tmp_path / "root.key", None), NOW)
    made = open_server(tmp_path / "server")
    yield made
    made.close()


@pytest.fixture
def root_key(server: ServerSide, tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    return read_root_key(tmp_path / "root.key", None)


def states(server: ServerSide, kind: str) -> dict[str, str]:
    return {row.kid: row.state for row in server.key_lifecycle.listed() if row.kind == kind}


def in_use(server: ServerSide, kind: str) -> str:
    return next(kid for kid, state in states(server, kind).items() if state == "active")


def events(server: ServerSide, *names: str) -> list[tuple[str, str, str]]:
    return [(row.actor, row.event, row.outcome) for row in server.audit.tail(50) if row.event in names]


def test_prepared_keys_are_in_the_key_set_before_anything_is_signed_with_them(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey
) -> None:
    before, number = {kind: in_use(server, kind) for kind in PREPARED}, server.keys.key_set_number()
    kids = server.key_lifecycle.prepare(PREPARED, NOW + DAY, root_key)
    assert {kind: in_use(server, kind) for kind in PREPARED} == before
    assert server.keys.key_set_number() > number
    content = verify_key_set(server.keys.key_set(), server.keys.root_pins()).content
    lists = {"license": content.license_keys, "rotation": content.rotation_keys, "enrollment": content.enrollment_keys}
    for kind, listed in lists.items():
        # Devices encrypt to the first one.
        assert [key.kid for key in listed] == [before[kind], kids[kind]]
    assert len(content.certificates) == 3  # two issuing CAs and the root
    assert server.key_lifecycle.prepare(PREPARED, NOW + 2 * DAY, root_key) == kids


@pytest.mark.parametrize("kind", PREPARED)
def test_a_prepared_key_comes_in_use_on_its_day_without_the_root(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey, kind: str
) -> None:
    old = in_use(server, kind)
    new = server.key_lifecycle.prepare([kind], NOW + DAY, root_key)[kind]
    number, end = server.keys.key_set_number(), NOW + LIFETIMES[kind]
    day = end - USE_AHEAD_S[kind]
    assert server.succession.run(day - 1, makes_tls=False) == []
    assert Changed(kind, new, old) in server.succession.run(day, makes_tls=False)
    assert states(server, kind) == {old: "retired", new: "active"}
    assert server.keys.key_set_number() == number  # the root has signed nothing new
    assert ("server", "keys.rotated", "ok") in events(server, "keys.rotated")
    row = next(row for row in server.key_lifecycle.listed() if row.kid == new)
    if kind in SIGNING:
        assert row.expires_at == day + LIFETIMES[kind]
    assert [each for each in server.succession.run(day, makes_tls=False) if each.kind == kind] == []


def test_a_license_of_the_new_key_is_valid_for_those_who_have_the_key_set_already(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey
) -> None:
    server.key_lifecycle.prepare(["license"], NOW, root_key)
    trust_before = server.keys.trust()
    agent_id = Device(1).come(server).agent_id
    server.secrets.rotate_by_hand(agent_id, NOW, 10**8, 10**8)
    order = Order("L-1", "shop", (), {}, NOW, NOW + DAY)
    changed = server.succession.use_next("license", NOW)
    token = server.licenses.issue(agent_id, order, NOW)
    assert server.licenses.validate(agent_id, token, NOW)[0]
    assert server.keys.trust() == trust_before
    assert changed.kid.encode() in trust_before


def test_tls_is_made_on_the_day_and_served_without_a_signal(server: ServerSide) -> None:
    reloads: list[int] = []
    watch = TlsWatch(server.keys, lambda: reloads.append(1))
    day = NOW + LIFETIMES["tls"] - USE_AHEAD_S["tls"]
    assert server.succession.run(day, makes_tls=False) == []
    watch.look()
    assert reloads == []
    assert [each.kind for each in server.succession.run(day, makes_tls=True)] == ["tls"]
    watch.look()
    watch.look()
    assert reloads == [1]
    leaf, ca, root = server_chain(server.keys)
    assert holds([leaf, ca], root, day + 300 * DAY, "localhost")


@pytest.mark.parametrize("kind", PREPARED)
def test_the_way_back(server: ServerSide, root_key: ec.EllipticCurvePrivateKey, kind: str) -> None:
    old = in_use(server, kind)
    new = server.key_lifecycle.prepare([kind], NOW, root_key)[kind]
    with pytest.raises(RegistryError, match="no earlier"):
        server.succession.revert(kind, NOW)
    server.succession.use_next(kind, NOW + DAY)
    assert server.succession.revert(kind, NOW + 2 * DAY) == Changed(kind, old, new)
    assert states(server, kind) == {old: "active", new: "retired"}
    assert ("admin", "keys.reverted", "ok") in events(server, "keys.reverted")
    with pytest.raises(RegistryError, match="keys prepare"):
        server.succession.use_next(kind, NOW + 2 * DAY)


def test_an_ended_key_never_comes_back(server: ServerSide, root_key: ec.EllipticCurvePrivateKey) -> None:
    old = in_use(server, "license")
    server.key_lifecycle.rotate("license", NOW + DAY, root_key)
    server.key_lifecycle.end(old, NOW + DAY, root_key)
    with pytest.raises(RegistryError, match="no earlier"):
        server.succession.revert("license", NOW + DAY)
    stolen = server.key_lifecycle.prepare(["license"], NOW + DAY, root_key)["license"]
    server.key_lifecycle.end(stolen, NOW + DAY, root_key)
    with pytest.raises(RegistryError, match="no license key is prepared"):
        server.succession.use_next("license", NOW + DAY)
    assert states(server, "license")[stolen] == "ended"


@pytest.mark.parametrize("kind", SIGNING)
def test_a_prepared_key_that_does_not_work_changes_nothing(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey, kind: str
) -> None:
    new = server.key_lifecycle.prepare([kind], NOW, root_key)[kind]
    before = states(server, kind)
    with server.database.write() as session:  # another key under its id: what it signs would not verify
        other = next(row for row in server.key_lifecycle.listed() if row.kind == kind and row.state == "active")
        row, source = session.get(ServerKey, new), session.get(ServerKey, other.kid)
        assert row is not None
        assert source is not None
        private = server.cipher.open("server_key", source.kid, "sealed", source.sealed or b"")
        row.sealed = server.cipher.seal("server_key", new, "sealed", private)
    with pytest.raises(RegistryError, match="does not work with the newest key set"):
        server.succession.run(NOW + LIFETIMES[kind], makes_tls=False)
    assert states(server, kind) == before


def test_a_key_that_the_server_cannot_use_is_taken_back(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = in_use(server, "rotation")
    server.key_lifecycle.prepare(["rotation"], NOW, root_key)

    def broken(_keyring: Keyring) -> None:
        raise RegistryError("it cannot be opened")

    with monkeypatch.context() as patch:
        patch.setattr(Keyring, "check", broken)
        with pytest.raises(RegistryError, match="cannot be opened"):
            server.succession.use_next("rotation", NOW)
    assert in_use(server, "rotation") == old
    assert ("server", "keys.reverted", "alert") in events(server, "keys.reverted")


def test_a_missing_successor_is_in_the_audit_once_a_week(server: ServerSide) -> None:
    start = NOW + LIFETIMES["license"] - WARN_AHEAD_S["license"]
    for hours in range(0, 8 * 24, 6):
        server.succession.run(start + hours * 3600, makes_tls=True)
    said = [row.fields["kind"] for row in server.audit.tail(50) if row.event == "keys.end_soon"]
    assert sorted(said) == ["license", "license", "rotation", "rotation"]


def test_two_processes_on_the_same_day_change_a_key_once(server: ServerSide, root_key: ec.EllipticCurvePrivateKey) -> None:
    server.key_lifecycle.prepare(["license"], NOW, root_key)
    other = open_server(server.place.directory)
    outcomes: list[str] = []

    def use(side: ServerSide) -> None:
        try:
            outcomes.append(side.succession.use_next("license", NOW).kid)
        except RegistryError as problem:
            outcomes.append(str(problem)[:24])

    threads = [threading.Thread(target=use, args=(side,)) for side in (server, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    other.close()
    assert sorted(outcomes) == sorted([in_use(server, "license"), "no license key is prepar"])
    assert list(states(server, "license").values()).count(KeyState.ACTIVE) == 1
