"""The master key: where it may be, how it is rotated, and that a crash at any step leaves a server that opens."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.base.errors import RegistryError
from server.base.settings import Place, place_of, settings_of
from server.keys import datakey, masterkey, masterkey_rotation, pkcs11key
from server.keys.masterkey_rotation import Rotation
from server.registry.database import Database
from server.wiring import Plan, create_server
from tests.server.devices import ISSUER, NOW, Device
from tests.support.serverside import open_server
from tests.support.softhsm import LABEL, MODULE, Token

HOW = ("in place", "to a file", "to a token")


@pytest.fixture
def database(directory: Path) -> Iterator[Database]:
    made = Database(place_of(directory).url)
    yield made
    made.close()


def opens(directory: Path) -> bool:
    """Whether the server opens, and what is sealed in it."""
    server = open_server(directory)
    try:
        return len(server.keys.challenge_key()) == 32 and server.keys.tls_material()[1].startswith(b"-----BEGIN")
    finally:
        server.close()


def target(how: str, directory: Path, hsm: Token) -> str | None:
    if how == "in place":
        return None
    return str(directory.parent / "elsewhere" / "master.key") if how == "to a file" else hsm.uri(f"key {directory.parent.name}")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_crash_after_any_step_leaves_a_server_that_opens(
    directory: Path, database: Database, hsm: Token, how: str, steps: int
) -> None:
    old = directory.parent / "old.key"
    shutil.copy2(directory / "master.key", old)
    rotation = Rotation(place_of(directory), database, target(how, directory, hsm))
    acts: list[Callable[[], object]] = [lambda: rotation.add(NOW + 1), rotation.switch, lambda: rotation.finish(NOW + 1)]
    for act in acts[:steps]:
        act()
    assert opens(directory)
    shown = masterkey_rotation.shown(place_of(directory), database)
    assert len(shown.others) == (1 if steps in (1, 2) else 0)
    assert shown.made_at == (NOW + 1 if steps >= 2 else NOW)
    with database.read() as session:
        works = True
        try:
            datakey.opened(session, masterkey.of(str(old)))
        except RegistryError:
            works = False
    assert works is (steps < 3)  # the old key opens nothing once the rotation is over
    # Whatever was left, the next rotation tidies up.
    masterkey_rotation.rotate(
        place_of(directory), database, lambda: NOW + 2, str(directory.parent / "next.key"), keep_old=False
    )
    assert opens(directory)
    shown = masterkey_rotation.shown(place_of(directory), database)
    assert (shown.kind, shown.made_at, shown.others) == (f"file {directory.parent / 'next.key'}", NOW + 2, ())


def test_a_crash_while_the_file_is_replaced_leaves_the_old_one(
    directory: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: Path, _target: Path) -> Path:
        raise KeyboardInterrupt(str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            masterkey_rotation.rotate(place_of(directory), database, lambda: NOW, None, keep_old=False)
    assert (directory / ".master.key.new").exists()
    assert opens(directory)
    masterkey_rotation.rotate(place_of(directory), database, lambda: NOW, None, keep_old=False)
    assert not (directory / ".master.key.new").exists()
    assert opens(directory)
    assert (directory / "master.key").stat().st_mode & 0o777 == 0o600


def test_a_rotation_changes_nothing_for_a_server_that_runs(directory: Path, database: Database) -> None:
    server = open_server(directory)
    Device(1).come(server)
    server.secrets.rotate("pos-000001", 0, None, 0, NOW)
    before = server.keys.challenge_key()
    masterkey_rotation.rotate(place_of(directory), database, lambda: NOW, None, keep_old=False)
    assert server.secrets.rotate("pos-000001", 0, None, 0, NOW)
    server.secrets.rotate_by_hand("pos-000001", NOW)
    server.close()
    server = open_server(directory)
    assert server.keys.challenge_key() == before
    assert server.secrets.rotate("pos-000001", 0, None, 0, NOW)
    server.close()


def test_the_old_key_may_stay_good_until_all_have_the_new_one(directory: Path, database: Database) -> None:
    old, new = directory.parent / "old.key", directory.parent / "new.key"
    shutil.copy2(directory / "master.key", old)
    masterkey_rotation.rotate(place_of(directory), database, lambda: NOW, str(new), keep_old=True)
    with database.read() as session:
        assert datakey.opened(session, masterkey.of(str(old))) == datakey.opened(session, masterkey.of(str(new)))
    assert masterkey_rotation.finish(place_of(directory), database, NOW) == 1
    with (
        database.read() as session,
        pytest.raises(RegistryError, match=r"is not the one of this registry, which is: file .*new\.key"),
    ):
        datakey.opened(session, masterkey.of(str(old)))
    assert masterkey_rotation.finish(place_of(directory), database, NOW) == 0


def test_finish_forgets_nothing_if_the_key_in_use_does_not_open_the_registry(directory: Path, database: Database) -> None:
    masterkey_rotation.rotate(place_of(directory), database, lambda: NOW, str(directory / "new.key"), keep_old=True)
    (directory / "new.key").write_bytes(bytes(32))
    with pytest.raises(RegistryError, match="is not the one of this registry"):
        masterkey_rotation.finish(place_of(directory), database, NOW)
    with database.read() as session:
        assert len(datakey.wraps(session)) == 2


def test_a_credential_of_systemd_goes_before_the_file(
    directory: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert opens(directory)  # systemd passes other credentials only
    passed = credentials / masterkey.CREDENTIAL
    passed.write_bytes(bytes(32))
    with pytest.raises(RegistryError, match=r"systemd credential.*is not the one"):
        open_server(directory)
    shutil.copy2(directory / "master.key", passed)
    (directory / "master.key").unlink()
    assert opens(directory)
    place, new = place_of(directory), str(tmp_path / "new.key")
    for to, keep_old in ((None, True), (new, False)):
        with pytest.raises(RegistryError, match="give --keep-old"):
            masterkey_rotation.rotate(place, database, lambda: NOW, to, keep_old=keep_old)
    masterkey_rotation.rotate(place, database, lambda: NOW, new, keep_old=True)
    assert opens(directory)
    shutil.copy2(new, passed)
    assert masterkey_rotation.finish(place_of(directory), database, NOW) == 1
    assert opens(directory)


def test_two_rotations_at_once_are_one(directory: Path, database: Database) -> None:
    with masterkey_rotation.locked(directory), pytest.raises(RegistryError, match="another command changes"):
        masterkey_rotation.rotate(place_of(directory), database, lambda: NOW, None, keep_old=False)
    assert masterkey_rotation.shown(place_of(directory), database).made_at == NOW


def test_a_place_with_a_key_is_not_overwritten(directory: Path, database: Database, hsm: Token) -> None:
    taken = hsm.uri("taken")
    if not masterkey.exists(taken):
        masterkey.make(taken)
    for place in (str(directory / "master.key"), taken):
        with pytest.raises(RegistryError, match="already"):
            Rotation(place_of(directory), database, place)
        with pytest.raises(RegistryError, match="already"):
            masterkey.make(place)


def file_key(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path / "none", "cannot be read: No such file"),
        (lambda path: path, "cannot be read: Is a directory"),
        (lambda path: file_key(path / "k", bytes(32), 0o640), "mode 0640.*chmod 0600"),
        (lambda path: file_key(path / "k", bytes(31)), "has 31 bytes; it must have 32"),
        (lambda path: file_key(path / "k", b""), "has 0 bytes; it must have 32"),
    ],
)
def test_a_file_that_is_no_master_key_is_told(tmp_path: Path, make: Callable[[Path], Path], text: str) -> None:
    with pytest.raises(RegistryError, match=text):
        masterkey.of(str(make(tmp_path)))


def test_a_master_key_shows_itself_nowhere(tmp_path: Path) -> None:
    path = file_key(tmp_path / "k", b"K" * 32)
    key = masterkey.of(str(path))
    assert "K" * 8 not in f"{key} {key!r} {key.kind}"
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(masterkey.NotWrapped):
        masterkey.SoftMasterKey(bytes(32), "other").unwrap(key.wrap(b"x" * 32))
    for short in (b"", b"x" * 12, b"x" * 40):
        with pytest.raises(masterkey.NotWrapped):
            key.unwrap(short)


def test_a_token_keeps_its_key_to_itself(hsm: Token) -> None:
    import pkcs11

    for name in ("own", "other"):
        if not masterkey.exists(hsm.uri(name)):
            masterkey.make(hsm.uri(name))
    key, other = masterkey.of(hsm.uri("own")), masterkey.of(hsm.uri("other"))
    wrapped = key.wrap(b"d" * 32)
    assert key.unwrap(wrapped) == b"d" * 32
    assert b"d" * 8 not in wrapped
    assert key.wrap(b"d" * 32) != wrapped
    for bad in (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapped[:20], wrapped[:12]):
        with pytest.raises(masterkey.NotWrapped):
            key.unwrap(bad)
    with pytest.raises(masterkey.NotWrapped):
        other.unwrap(wrapped)
    with pkcs11.lib(str(MODULE)).get_token(token_label=LABEL).open(user_pin=hsm.pin_file.read_text().strip()) as session:
        inside = session.get_key(label="own", key_type=pkcs11.KeyType.AES)
        assert (inside[pkcs11.Attribute.SENSITIVE], inside[pkcs11.Attribute.EXTRACTABLE]) == (True, False)
        with pytest.raises(pkcs11.AttributeSensitive):
            inside[pkcs11.Attribute.VALUE]


def test_a_server_whose_master_key_is_in_a_token(tmp_path: Path, url: str | None, hsm: Token) -> None:
    uri = hsm.uri(f"founded {tmp_path.name}")
    plan = Plan(ISSUER, ("localhost",), tmp_path / "root.key", None)
    create_server(tmp_path / "server", plan, NOW, url, uri)
    assert not (tmp_path / "server" / "master.key").exists()
    assert opens(tmp_path / "server")
    hsm.write_pin("0000")
    try:
        with pytest.raises(RegistryError, match=r"PIN in .* is not that of token 'license server'"):
            open_server(tmp_path / "server")
    finally:
        hsm.write_pin("4711")
    assert opens(tmp_path / "server")
    database = Database(place_of(tmp_path / "server").url)
    with pytest.raises(RegistryError, match="name another key with --to"):
        Rotation(place_of(tmp_path / "server"), database)
    masterkey_rotation.rotate(place_of(tmp_path / "server"), database, lambda: NOW, str(tmp_path / "k"), keep_old=False)
    with database.read() as session, pytest.raises(RegistryError, match="is not the one of this registry"):
        datakey.opened(session, masterkey.of(uri))
    database.close()
    assert opens(tmp_path / "server")


def test_what_is_wrong_with_a_token_is_told(hsm: Token, tmp_path: Path) -> None:
    cases = {
        hsm.uri("none"): "no AES key 'none'",
        hsm.uri("own", "nowhere"): "'nowhere'.*cannot be used: NoSuchToken",
        hsm.uri("own").replace(str(MODULE), "/nonexistent.so"): "cannot be used.*nonexistent",
        hsm.uri("own").replace(str(hsm.pin_file), str(tmp_path / "pin")): "PIN file .* cannot be read",
    }
    for uri, text in cases.items():
        with pytest.raises(RegistryError, match=text):
            masterkey.of(uri).wrap(bytes(32))
    hsm.pin_file.chmod(0o644)
    try:
        with pytest.raises(RegistryError, match=r"PIN file .* mode 0644"):
            masterkey.of(hsm.uri("own")).wrap(bytes(32))
    finally:
        hsm.pin_file.chmod(0o600)


QUERY = "?module-path=/m.so&pin-source=/pin"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("pkcs11:", "has no module-path, object, pin-source, token"),
        ("pkcs11:token=a;object=b", "has no module-path, pin-source"),
        ("pkcs11:token=a" + QUERY, "has no object"),
        ("pkcs11:token=a;token=b;object=c" + QUERY, "'token'"),
        ("pkcs11:token=;object=c" + QUERY, "'token'"),
        ("pkcs11:token;object=c" + QUERY, "'token'"),
        ("pkcs11:token=a;object=b;x-y=c" + QUERY, "'x-y'"),
        ("pkcs11:token=a;object=b;;" + QUERY, "''"),
        ("pkcs11:token=a;object=b" + QUERY + "&pin-value=1", "PIN must not be in a URI"),
        ("pkcs11:token=a;object=b?module-path=m.so&pin-source=/pin", "absolute"),
        ("pkcs11:token=a;object=b?module-path=/m.so&pin-source=pin", "absolute"),
        ("pkcs11:token=a;object=b?module-path=/m.so&pin-source=|sh", "absolute"),
    ],
)
def test_a_bad_uri_is_told(uri: str, text: str) -> None:
    with pytest.raises(RegistryError, match=text):
        masterkey.place_of(uri)


def test_a_uri_is_read_as_in_rfc_7512(tmp_path: Path) -> None:
    found = pkcs11key.parse("pkcs11:object=b%20%3Bc;token=a;serial=12?pin-source=file:/p&module-path=/m.so")
    assert found == pkcs11key.Uri("a", "b ;c", Path("/m.so"), Path("/p"), "12")
    assert pkcs11key.parse("PKCS11:token=a;object=b?pin-source=file:///p&module-path=/m.so").pin_file == Path("/p")
    assert masterkey.place_of(str(tmp_path)) == str(tmp_path)
    assert Path(masterkey.place_of("x")).is_absolute()


def test_settings_name_any_place(tmp_path: Path) -> None:
    for master in ('/a "b" \\c', "pkcs11:token=a;object=b" + QUERY):
        (tmp_path / "settings.toml").write_bytes(settings_of(Place(tmp_path, "sqlite:////x", master)))
        assert place_of(tmp_path).master == master
