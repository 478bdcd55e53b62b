"""What docs/protocol.md says about the installer's socket is what its code does."""

import re
from pathlib import Path

from installer.orders import ORDERS
from ipc import installermessages
from ipc.installermessages import (
    INSTALLER_MAX_FRAME_BYTES,
    MAX_CHECKS,
    MAX_INSTALLED_PRODUCTS,
    ORDER_TIMEOUT_S,
    Check,
    Commit,
    Committed,
    Describe,
    Description,
    Installed,
    Prepare,
    Prepared,
    ProductList,
    Products,
    ProductState,
    Progress,
    Prove,
    Proved,
    Refused,
    RollBack,
    RolledBack,
    Switch,
    Switched,
    Withdraw,
    Withdrawn,
)
from ipc.posclient.trust import AGENT_USER
from tests.docs.test_link_doc import section, tables

ROOT = Path(__file__).parents[2]
TEXT = section("protocol.md", "The installer's socket")
MESSAGES, CODES, BOUNDS = tables(TEXT)
CORE = (Describe, Products, Prepare, Switch, Prove, Commit, RollBack, Withdraw)
INSTALLER = (Description, ProductList, Progress, Prepared, Switched, Proved, Committed, RolledBack, Withdrawn, Refused)


def test_every_message_and_its_fields_are_told() -> None:
    for side, messages in (("core", CORE), ("installer", INSTALLER)):
        for message in messages:
            told = MESSAGES[str(message.__struct_config__.tag)]
            assert told[0] == side
            for name in set(message.__struct_fields__) - {"v", "id"}:
                assert f"`{name}`" in told[1], (message, name)
    assert len(MESSAGES) == len(CORE) + len(INSTALLER)
    prose = " ".join(TEXT.split())
    for part in (Installed, ProductState, Check):
        assert all(f"`{name}`" in prose for name in part.__struct_fields__), part


def test_every_bound_is_in_the_table_with_its_value() -> None:
    values = {
        name: value for name, value in vars(installermessages).items() if name.isupper() and isinstance(value, int | float)
    }
    assert {name: float(row[0]) for name, row in BOUNDS.items()} == values


def test_who_is_heard_how_long_and_for_which_orders_is_told() -> None:
    prose = " ".join(TEXT.split())
    assert f"the user `{AGENT_USER}` alone" in prose
    assert f"up to {INSTALLER_MAX_FRAME_BYTES:,}" in prose and f"within {ORDER_TIMEOUT_S:g} s" in prose
    assert {str(order.__struct_config__.tag) for order in CORE} == {"describe", *ORDERS}
    assert f"at most {MAX_INSTALLED_PRODUCTS} maps" in prose and f"at most {MAX_CHECKS} maps" in prose


def test_every_code_of_the_installer_s_own_is_told() -> None:
    """Looks into its files: a code is the first argument of an error, or of the table in orders.py."""
    known = {code for name in CODES for code in name.replace("`", "").split(", ")}
    pattern = r'(?:OrderRefused|BackendRefused|StagedRefused|refusal\(0|code, text =)\W*\s*"([a-z-]+)"'
    found = {code for path in (ROOT / "installer").rglob("*.py") for code in re.findall(pattern, path.read_text("utf-8"))}
    assert len(found) > 12
    assert found - known <= {"internal", "metadata-malformed"}, found - known
