"""What docs/protocol.md says about the updater is what its code does."""

from ipc import updatermessages
from ipc.updatermessages import FromUpdater, ToUpdater, UpdaterCode
from tests.docs.test_link_doc import section, tables
from updater.failures import UpdateFailed
from updater.pace import LEAST_RATE, WINDOW_S
from updater.staging import RESERVE_BYTES

PROTOCOL = section("protocol.md", "The updater's socket")
MESSAGES, CODES, BOUNDS, _BUNDLE = tables(PROTOCOL)


def test_every_message_and_its_fields_are_on_the_page() -> None:
    for side, union in (("core", ToUpdater), ("updater", FromUpdater)):
        for message in union.__args__:
            row = MESSAGES[str(message.__struct_config__.tag)]
            assert row[0] == side
            for name in set(message.__struct_fields__) - {"v", "id"}:
                assert f"`{name}`" in row[1], (message, name)
    assert len(MESSAGES) == len(ToUpdater.__args__) + len(FromUpdater.__args__)


def test_every_code_is_in_the_table_with_whose_fault_it_is() -> None:
    assert list(CODES) == [code.value for code in UpdaterCode]
    for code, (network, _) in CODES.items():
        assert network == ("yes" if UpdateFailed(code, "").network else "no"), code
    assert f"{LEAST_RATE:,} bytes a second over {WINDOW_S:g} s" in CODES["slow"][1]
    assert f"{RESERVE_BYTES // 2**20} MiB" in CODES["no-space"][1]


def test_the_bounds_are_those_of_the_code() -> None:
    assert {name: float(value) for name, (value,) in BOUNDS.items()} == {
        name: getattr(updatermessages, name) for name in BOUNDS
    }
    assert len(BOUNDS) == 3
