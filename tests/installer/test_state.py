"""Root's memory and its configuration: what is written is read again, and what is wrong is said, never passed over."""

import errno
import json
import os
from pathlib import Path

import pytest

from installer.config import DEFAULT_TIMEOUT_S, InstallerConfig, load_config, parse_config, schema
from installer.phases import PHASES, Event, Phase
from installer.state import Pending, Product, State, StateFile, StateNotWritten, StateUnusable, Version
from settings.errors import ConfigError
from tests.installer.test_backends import Killed, killer
from updatetrust.metadata import KeptRole, KeptVersions

FULL = State(
    key_set=3, directive=8, directive_sha256="ab" * 32, executed=7, floors={"pos": "1.0"}, floor_time=1_700_000_000,
    pins=("sha256:" + "0" * 64,), roots=("sha256:" + "1" * 64,),
    metadata=KeptVersions(2, {"timestamp": KeptRole(90, "ef" * 32)}),
    products={"pos": Product(
        phase=Phase.PROVING,
        places={
            "a": Version(version="1.0", build_id="b1", sha256=""), "b": Version(version="2.0", build_id="b2", sha256="cd" * 32),
        },
        good="a", pending=Pending(place="b", number=8, not_after=1_800_000_000, floor="1.0", proved=True), last="rolled-back",
    )},
)  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "installer"
    made.mkdir(mode=0o700)
    return made


def state_file(directory: Path) -> StateFile:
    return StateFile(directory, os.geteuid())


def test_the_state_comes_back_and_only_root_can_read_it(directory: Path) -> None:
    assert state_file(directory).load() == State()
    state_file(directory).save(FULL)
    assert state_file(directory).load() == FULL
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {"state.json": 0o600, "begun": 0o600}


def test_a_kill_after_any_step_leaves_the_old_state_or_the_new(directory: Path) -> None:
    for first in (True, False):
        before = State() if first else FULL
        after = FULL if first else State(key_set=9)
        for at in range(4 if first else 3):
            if not first:
                state_file(directory).save(before)
            else:
                for path in directory.iterdir():
                    path.unlink()
            with pytest.raises(Killed):
                StateFile(directory, os.geteuid(), killer(at)).save(after)
            assert state_file(directory).load() == (after if at else before)
            state_file(directory).save(after)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}x", b"\xff", b'{"v":2}', b'{"v":1,"more":1}', b'{"v":1,"key_set":-1}',
        b'{"v":1,"products":{"pos":{"phase":"gone"}}}', b'{"more":' + b'[' * 50_000,
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused_with_what_to_do(directory: Path, content: bytes) -> None:
    state_file(directory).save(FULL)
    (directory / "state.json").write_bytes(content)
    with pytest.raises(StateUnusable, match=r"state\.json is damaged .*restore it from a backup. If there is none: 'rm "):
        state_file(directory).load()


def test_a_state_that_is_gone_is_no_fresh_start(directory: Path) -> None:
    state_file(directory).save(FULL)
    (directory / "state.json").unlink()
    with pytest.raises(StateUnusable, match=r"is missing, and was there; restore it"):
        state_file(directory).load()
    (directory / "begun").unlink()  # what the text says
    assert state_file(directory).load() == State()


@pytest.mark.parametrize("wrong", ["directory mode", "file mode", "link", "pipe", "no directory", "other owner"])
def test_a_state_that_others_could_have_written_is_refused(directory: Path, wrong: str) -> None:
    state_file(directory).save(FULL)
    path = directory / "state.json"
    owner = os.geteuid()
    if wrong == "directory mode":
        directory.chmod(0o755)
    elif wrong == "file mode":
        path.chmod(0o666)
    elif wrong == "link":
        path.rename(directory / "real")
        path.symlink_to("real")
    elif wrong == "pipe":
        path.unlink()
        os.mkfifo(path, 0o600)
    elif wrong == "no directory":
        directory = directory / "none"
    else:
        owner += 1
    with pytest.raises(StateUnusable):
        StateFile(directory, owner).load()


def test_each_phase_knows_its_events_and_no_other() -> None:
    known = {(state, event): after for state, event, after in PHASES}
    assert known[Phase.PROVING, Event.COMMITTED] is Phase.IDLE
    # Only what was proved can be committed, and nothing new is prepared over what is switched to.
    assert not {(Phase.IDLE, Event.SWITCHING), (Phase.STAGED, Event.COMMITTED), (Phase.SWITCHED, Event.COMMITTED)} & set(known)
    assert not {(Phase.SWITCHED, Event.PREPARED), (Phase.PROVING, Event.PREPARED)} & set(known)
    assert all((phase, Event.ROLLED_BACK) in known for phase in Phase if phase is not Phase.IDLE)


GOOD = """
[product.pos]
backend = "slots"
directory = "/var/lib/pos"
unit = "pos.service"
user = "till"
health = ["bin/check", "--quick"]
"""


def users(name: str) -> int:
    return {"till": 1001, "root": 0}[name]


def test_a_product_is_read_and_its_timeout_has_a_default() -> None:
    product = parse_config(GOOD, user=users).products["pos"]
    assert (product.directory, product.unit, product.uid) == (Path("/var/lib/pos"), "pos.service", 1001)
    assert (product.health, product.timeout_s) == (("bin/check", "--quick"), DEFAULT_TIMEOUT_S)
    assert parse_config("", user=users) == InstallerConfig()


@pytest.mark.parametrize(
    ("old", "new", "phrase"),
    [
        ('"till"', '"root"', "'user' in [product.pos] must not be root"),
        ('"till"', "0", "must not be root"),
        ('"till"', '"nobody-such"', "'user' in [product.pos]"),
        ('"pos.service"', '"license-agent.service"', "must not be a unit of the license agent itself"),
        ('"pos.service"', '"--force.service"', "must be the name of a service"),
        ('"pos.service"', '"pos.socket"', "must be the name of a service"),
        ('"bin/check"', '"/bin/sh"', "a path in the slot"),
        ('"bin/check"', '"../../bin/sh"', "a path in the slot"),
        ('["bin/check", "--quick"]', "[]", "a path in the slot"),
        ('["bin/check", "--quick"]', '"bin/check"', "a path in the slot"),
        ('"/var/lib/pos"', '"pos"', "must be an absolute path"),
        ('"slots"', '"apt"', "must be one of slots"),
        ("unit", "units", "did you mean 'unit'?"),
        ("[product.pos]", "[products.pos]", "did you mean [product]?"),
        ("[product.pos]", '[product."../pos"]', "is not the name of a product"),
        ("[product.pos]", "[product]", "must be a section, [product.unit]"),
        ('health = ["bin/check", "--quick"]', "", "the key 'health' is missing in [product.pos]"),
        ("[product.pos]", "timeout_s = 1\n[product.pos]", "unknown section"),
    ],
)
def test_each_mistake_is_said_with_its_place(old: str, new: str, phrase: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as refused:
        parse_config(GOOD.replace(old, new, 1), user=users)
    assert phrase in str(refused.value), str(refused.value)


@pytest.mark.parametrize("other", ["/var/lib/pos", "/var/lib/pos/x", "/var/lib", "/"])
def test_products_do_not_share_a_directory(other: str) -> None:
    second = GOOD.replace("product.pos", "product.kds").replace('"/var/lib/pos"', json.dumps(other))
    with pytest.raises(ConfigError, match=r"is within that of \[product\.pos\], or the reverse"):
        parse_config(GOOD + second, user=users)


def test_the_file_must_be_root_s_and_its_absence_means_no_products(tmp_path: Path) -> None:
    path = tmp_path / "installer.toml"
    owners = (os.geteuid(),)
    assert load_config(path, owners).products == {}
    path.write_text(GOOD.replace('"till"', "1001"))
    path.chmod(0o644)
    assert set(load_config(path, owners).products) == {"pos"}
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="chmod go-w"):
        load_config(path, owners)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="belongs to uid"):
        load_config(path, (os.geteuid() + 1,))
    path.rename(tmp_path / "real")
    path.symlink_to("real")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(path, owners)
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(ConfigError):
        load_config(path, owners)
    assert set(schema(users)) == {"backend", "directory", "unit", "user", "health", "timeout_s", "version", "config"}


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_a_state_that_cannot_be_written_says_whether_there_is_no_room(directory: Path, number: int, full: bool) -> None:
    def fails(_step: str) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StateNotWritten, match="the update goes on when that is solved") as raised:
        StateFile(directory, os.geteuid(), fails).save(FULL)
    assert raised.value.full is full
