"""Whoever has a dump of the registry, or its raw files, has no secret, no private key, no claim, and no master key."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.base.errors import RegistryError
from server.keys import datakey
from server.keys.rootkey import read_root_key, write_root_key
from server.registry.cipher import Cipher
from server.registry.database import Database
from server.registry.models.core import ProvisioningAttempt, Secret, ServerKey
from tests.server.devices import NOW, Device
from tests.support.postgres import Postgres
from tests.support.serverside import ServerSide, open_server

CREDENTIAL = b"credential of thirty-two bytes!!"


def forms(value: bytes) -> Iterator[bytes]:
    """How a value may stand in a file."""
    yield value
    yield value.hex().encode()
    yield value.hex().upper().encode()
    for shift in range(3):
        # Base64 of the value inside something longer begins at any of three places; its edges depend on what is around it.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(shift) + value)[4 if shift else 0 :].rstrip(b"=")[:-1]


def found_in(dump: bytes, value: bytes) -> bool:
    return any(form in dump for form in forms(value))


def sensitive(server: ServerSide, directory: Path) -> dict[str, bytes]:
    """All that is secret in the registry, opened."""
    values = {"master key": (directory / "master.key").read_bytes()}
    with server.database.read() as session:
        values["data key"] = datakey.opened(session, server.master)
        cipher = Cipher(values["data key"])
        for secret in session.query(Secret):
            if secret.sealed is not None:
                place = f"{secret.agent_id}/{secret.version}"
                values[f"secret {place}"] = cipher.open("secret", place, "sealed", secret.sealed)
        for key in session.query(ServerKey):
            if key.sealed is not None:
                jwk = json.loads(cipher.open("server_key", key.kid, "sealed", key.sealed))
                values[f"scalar of {key.kind} {key.kid}"] = base64.urlsafe_b64decode(jwk["d"] + "=")
        for attempt in session.query(ProvisioningAttempt):
            values[f"credential {attempt.id}"] = cipher.open("provision_session", attempt.id, "sealed", attempt.sealed or b"")
    values["challenge key"] = server.keys.challenge_key()
    root = read_root_key(directory.parent / "root.key", None)
    values["scalar of the root"] = root.private_numbers().private_value.to_bytes(32, "big")
    return values


def dump_of(server: ServerSide, directory: Path, cluster: Postgres | None) -> bytes:
    """All that a thief of the database has."""
    if cluster is not None:
        return cluster.dump(server.place.url)
    return b"".join(path.read_bytes() for path in sorted(directory.glob("server.db*")))


def test_a_dump_shows_no_secret(server: ServerSide, directory: Path, request: pytest.FixtureRequest) -> None:
    cluster: Postgres | None = None if server.database.is_sqlite else request.getfixturevalue("postgres")
    texts = []
    for number in (1, 2):
        Device(number).come(server)
        agent_id = f"pos-{number:06d}"
        server.secrets.rotate_by_hand(agent_id, NOW)
        server.secrets.rotate(agent_id, 0, None, 0, NOW)
    texts.append(server.enrollment_tokens.create(None, False, 600, NOW))
    claim_id = server.enrollment_tokens.use(texts[0], Device(3).hw_id, NOW)
    server.enrollment_tokens.start_attempt("aa" * 16, claim_id, b"{}", b"n" * 32, CREDENTIAL, NOW)
    server.key_lifecycle.rotate("license", NOW, read_root_key(directory.parent / "root.key", None))
    values = sensitive(server, directory)
    kinds = {name.split()[0] + " " + name.split()[1] for name in values}
    assert {"secret pos-000001/1", "secret pos-000002/2", "scalar of", "master key", "data key"} <= kinds
    assert len([name for name in values if name.startswith("scalar of")]) == 7
    assert values["credential " + "aa" * 16] == CREDENTIAL
    dump = dump_of(server, directory, cluster)
    shown = [name for name, value in {**values, "claim": texts[0].encode()}.items() if found_in(dump, value)]
    assert shown == []
    # The search finds what is there: in the clear, and what is sealed as it stands.
    assert found_in(dump, Device(1).hw_id.encode())
    with server.database.read() as session:
        sealed = session.get_one(Secret, ("pos-000001", 1)).sealed
    assert sealed is not None
    assert found_in(dump, sealed)


def test_the_search_finds_a_value_in_any_form() -> None:
    value = bytes(range(100, 132))
    for text in (value, value.hex().encode(), base64.b64encode(value), base64.urlsafe_b64encode(b"ab" + value + b"c")):
        assert found_in(b"before " + text + b" after", value)
    assert not found_in(b"before " + base64.b64encode(value[::-1]), value)


def test_the_root_key_is_not_kept_and_may_be_encrypted(server: ServerSide, directory: Path, tmp_path: Path) -> None:
    with server.database.read() as session:
        assert [row.sealed for row in session.query(ServerKey) if row.kind == "root"] == [None]
    key = read_root_key(directory.parent / "root.key", None)
    write_root_key(tmp_path / "encrypted", key, b"pass phrase")
    pem = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert not found_in((tmp_path / "encrypted").read_bytes(), pem[36:68])
    assert read_root_key(tmp_path / "encrypted", b"pass phrase").private_numbers() == key.private_numbers()


def test_a_destroyed_secret_is_gone_from_the_raw_files(server: ServerSide, directory: Path) -> None:
    """`secure_delete` of SQLite; PostgreSQL keeps it until it vacuums, and what is there is encrypted in both."""
    Device(1).come(server)
    server.secrets.rotate_by_hand("pos-000001", NOW)
    with server.database.read() as session:
        sealed = session.get_one(Secret, ("pos-000001", 1)).sealed
    server.secrets.invalidate("pos-000001", 1, NOW)
    with server.database.read() as session:
        assert session.get_one(Secret, ("pos-000001", 1)).sealed is None
    assert sealed is not None
    if server.database.is_sqlite:
        server.close()  # the last one to close writes the log into the file
        assert [path.name for path in directory.glob("server.db*")] == ["server.db"]
        assert sealed not in (directory / "server.db").read_bytes()


def test_a_stolen_column_opens_in_no_other_place(server: ServerSide) -> None:
    for number in (1, 2):
        Device(number).come(server)
        server.secrets.rotate_by_hand(f"pos-{number:06d}", NOW)
    with server.database.write() as session:
        one, two = (session.get_one(Secret, (f"pos-{n:06d}", 1)) for n in (1, 2))
        one.sealed, two.sealed = two.sealed, one.sealed
    with server.database.read() as session, pytest.raises(RegistryError, match="cannot be decrypted"):
        server.within(session).secrets.open("pos-000001", None)


def test_another_master_key_opens_nothing(directory: Path) -> None:
    shutil.move(directory / "master.key", directory / "right.key")
    (directory / "master.key").touch(mode=0o600)
    (directory / "master.key").write_bytes(bytes(32))
    with pytest.raises(RegistryError, match="is not the one of this registry"):
        open_server(directory)


def test_files_of_sqlite_are_private(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    database.migrate()
    with database.write() as session:
        session.connection().exec_driver_sql("CREATE TABLE probe (x INTEGER)")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("x.db*")}
    database.close()
    assert modes == dict.fromkeys(("x.db", "x.db-wal", "x.db-shm"), 0o600)
