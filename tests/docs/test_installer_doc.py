"""What docs/protocol.md says about the installer's socket is what its code does."""

from installer.orders import ORDERS
from ipc import installermessages
from ipc.installermessages import INSTALLER_MAX_FRAME_BYTES, ORDER_TIMEOUT_S, Describe, Description, Refused
from ipc.posclient.trust import AGENT_USER
from tests.docs.test_link_doc import section, tables

TEXT = section("protocol.md", "The installer's socket")
MESSAGES, BOUNDS = tables(TEXT)


def test_every_message_and_its_fields_are_told() -> None:
    for side, messages in (("core", (Describe,)), ("installer", (Description, Refused))):
        for message in messages:
            told = MESSAGES[str(message.__struct_config__.tag)]
            assert told[0] == side
            for name in set(message.__struct_fields__) - {"v", "id"}:
                assert f"`{name}`" in told[1], (message, name)
    assert len(MESSAGES) == 3


def test_every_bound_is_in_the_table_with_its_value() -> None:
    values = {name: value for name, value in vars(installermessages).items() if name.isupper()}
    assert {name: float(row[0]) for name, row in BOUNDS.items()} == values


def test_who_is_heard_how_long_and_for_which_orders_is_told() -> None:
    prose = " ".join(TEXT.split())
    assert f"the user `{AGENT_USER}` alone" in prose
    assert f"up to {INSTALLER_MAX_FRAME_BYTES:,}" in prose and f"within {ORDER_TIMEOUT_S:g} s" in prose
    assert ORDERS == () and "so far there are no orders" in prose
