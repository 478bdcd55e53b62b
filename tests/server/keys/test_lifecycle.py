"""What rotations do to the server's keys and certificates, and to those who depend on the old ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc import jws

from contracts.keyset import verify_key_set
from server.base.errors import RegistryError
from server.keys.lifecycle import DAY, LIFETIMES, OVERLAP_S
from server.keys.rootkey import read_root_key, write_root_key
from server.licensing.licenses.licenses import Order
from server.wiring import Plan, create_server
from tests.server.chains import holds, pems, server_chain
from tests.server.devices import ISSUER, NOW, Device
from tests.support.serverside import ServerSide, open_server

pytestmark = pytest.mark.system

NAMES = ("license.example", "192.0.2.7", "2001:db8::7")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerSide]:
    """A server with names; certificates do not depend on the database."""
    create_server(tmp_path / "server", Plan(ISSUER, NAMES, tmp_path / "root.key", b"phrase"), NOW)
    made = open_server(tmp_path / "server")
    yield made
    made.close()


@pytest.fixture
def root_key(server: ServerSide, tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    return read_root_key(tmp_path / "root.key", b"phrase")


def test_tls_is_rotated_without_the_root_and_keeps_its_names(server: ServerSide, root_key: ec.EllipticCurvePrivateKey) -> None:
    before = server_chain(server.keys)
    number = server.keys.key_set_number()
    server.key_lifecycle.rotate("tls", NOW + DAY, None)
    leaf, ca, root = server_chain(server.keys)
    assert (ca, root) == tuple(before[1:])
    assert leaf.public_key() != before[0].public_key()
    key = load_pem_private_key(server.keys.tls_material()[1], None)
    assert key.public_key() == leaf.public_key()
    assert server.keys.key_set_number() == number
    for name in NAMES:
        assert holds([leaf, ca], root, NOW + DAY + 397 * DAY, name)
    server.key_lifecycle.rotate("tls", NOW + 2 * DAY, None, ("new.example",))
    leaf, ca, root = server_chain(server.keys)
    assert holds([leaf, ca], root, NOW + 2 * DAY, "new.example")
    assert not holds([leaf, ca], root, NOW + 2 * DAY, NAMES[0])


@pytest.mark.parametrize("kind", ["license", "rotation", "enrollment", "issuing-ca"])
def test_what_stands_in_the_key_set_is_rotated_with_the_root_only(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey, kind: str
) -> None:
    before, number = server.key_lifecycle.listed(), server.keys.key_set_number()
    with pytest.raises(RegistryError, match="--root-key"):
        server.key_lifecycle.rotate(kind, NOW, None)
    with pytest.raises(RegistryError, match="not that of a root of this server"):
        server.key_lifecycle.rotate(kind, NOW, ec.generate_private_key(ec.SECP256R1()))
    assert (server.key_lifecycle.listed(), server.keys.key_set_number()) == (before, number)
    kid = server.key_lifecycle.rotate(kind, NOW + DAY, root_key)
    rows = {row.kid: row for row in server.key_lifecycle.listed() if row.kind == kind}
    assert len(rows) == 2
    assert rows[kid].state == "active"
    (old,) = (row for row in rows.values() if row.kid != kid)
    assert (old.state, old.expires_at) == ("retired", max(NOW + LIFETIMES[kind], NOW + DAY + OVERLAP_S))
    content = verify_key_set(server.keys.key_set(), server.keys.root_pins(), number).content
    lists = {"license": content.license_keys, "rotation": content.rotation_keys, "enrollment": content.enrollment_keys}
    if kind in lists:
        assert [key.kid for key in lists[kind]] == [kid, old.kid]  # the one to be used stands first
    else:
        assert len(content.certificates) == 3


def test_old_license_keys_go_on_verifying_until_their_end(server: ServerSide, root_key: ec.EllipticCurvePrivateKey) -> None:
    Device(1).come(server)
    server.secrets.rotate_by_hand("pos-000001", NOW, 10**8, 10**8)
    token = server.licenses.issue("pos-000001", Order("x", "x", (), {}, NOW, NOW + 10**8), NOW)
    server.key_lifecycle.rotate("license", NOW + DAY, root_key)
    assert server.licenses.validate("pos-000001", token, NOW + 2 * DAY)[:2] == (True, "ok")
    end = NOW + LIFETIMES["license"]
    server.key_lifecycle.rotate("license", end, root_key)
    assert server.licenses.validate("pos-000001", token, end + 1)[:2] == (False, "bad_signature")
    assert [row.state for row in server.key_lifecycle.listed() if row.kind == "license"] == ["active", "retired", "ended"]


def test_agents_of_the_old_issuing_ca_go_on(server: ServerSide, root_key: ec.EllipticCurvePrivateKey) -> None:
    old = [pems(text)[0] for text in Device(1).come(server).certificates]
    server.key_lifecycle.rotate("issuing-ca", NOW + DAY, root_key)
    new = [pems(text)[0] for text in Device(2).come(server, now=NOW + DAY).certificates]
    trusted = pems(server.keys.client_ca_pem())
    root = server_chain(server.keys)[-1]
    for leaf, ca in (old, new):
        assert ca in trusted
        assert holds([leaf, ca], root, NOW + 2 * DAY, None)
    assert old[1] != new[1]
    # The server's own certificate is of the old one until it is rotated.
    leaf, ca, _ = server_chain(server.keys)
    assert ca == old[1]
    server.key_lifecycle.rotate("tls", NOW + DAY, None)
    leaf, ca, _ = server_chain(server.keys)
    assert ca == new[1]
    assert holds([leaf, ca], root, NOW + DAY, NAMES[0])


def test_a_root_hands_over_to_the_next(server: ServerSide, root_key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    old_pin, old_root = server.keys.root_pins()[0], server_chain(server.keys)[-1]
    agent = [pems(text)[0] for text in Device(1).come(server).certificates]
    path = tmp_path / "next.key"
    new_pin = server.key_lifecycle.rotate_root(NOW + DAY, root_key, lambda key: write_root_key(path, key, None))
    # Who knows only the old root takes the set that it has signed, and learns the new pin from it.
    handed = verify_key_set(server.keys.key_set(), (old_pin,))
    assert (handed.root, set(handed.content.roots)) == (old_pin, {old_pin, new_pin})
    new_key = read_root_key(path, None)
    server.key_lifecycle.rotate("issuing-ca", NOW + 2 * DAY, new_key)
    server.key_lifecycle.rotate("tls", NOW + 2 * DAY, None)
    taken = verify_key_set(server.keys.key_set(), handed.content.roots, handed.content.number)
    assert taken.root == new_pin
    leaf, ca, root = server_chain(server.keys)
    assert root.public_key() == new_key.public_key()
    assert holds([leaf, ca], root, NOW + 3 * DAY, NAMES[0])
    assert holds(agent, old_root, NOW + 3 * DAY, None)
    assert old_root in pems(server.keys.client_ca_pem())


def test_a_root_whose_key_cannot_be_kept_is_not_made(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    before, key_set = server.key_lifecycle.listed(), server.keys.key_set()
    with pytest.raises(RegistryError, match="not overwritten"):
        server.key_lifecycle.rotate_root(NOW, root_key, lambda key: write_root_key(tmp_path / "root.key", key, None))
    assert (server.key_lifecycle.listed(), server.keys.key_set()) == (before, key_set)


def test_what_ends_soon_is_told(server: ServerSide) -> None:
    assert server.key_lifecycle.expiring(NOW) == []
    soon = NOW + LIFETIMES["license"] - 30 * DAY
    assert sorted(kind for kind, _ in server.key_lifecycle.expiring(soon)) == ["license", "rotation"]
    assert server.key_lifecycle.expiring(soon - 1) == []
    assert {kind for kind, _ in server.key_lifecycle.expiring(NOW + 3650 * DAY)} == set(LIFETIMES) - {"operator-ca"}
    with server.database.write() as session:
        server.key_lifecycle.require_operator_ca(session, NOW)  # made for the first operator
    assert {kind for kind, _ in server.key_lifecycle.expiring(NOW + 3650 * DAY)} == set(LIFETIMES)


def test_a_new_key_that_does_not_work_changes_nothing(
    server: ServerSide, root_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OP-05: validation after rotation, and rollback."""
    before, key_set = server.key_lifecycle.listed(), server.keys.key_set()
    sign = jws.serialize_compact

    def broken(header: dict[str, object], payload: bytes, key: object, **options: object) -> str:
        text: str = sign(header, payload, key, **options)  # type: ignore[arg-type]
        return text[:-8] + "AAAAAAAA"

    with monkeypatch.context() as patch:
        patch.setattr("server.keys.lifecycle.jws.serialize_compact", broken)
        with pytest.raises(RegistryError, match="new license key does not work; nothing was changed"):
            server.key_lifecycle.rotate("license", NOW, root_key)
    assert (server.key_lifecycle.listed(), server.keys.key_set()) == (before, key_set)
    assert server.key_lifecycle.rotate("license", NOW, root_key)
