"""What docs/protocol.md and docs/reference.md say about the link is what its code does."""

import re
import tomllib
from pathlib import Path
from typing import get_args

from ipc import linkmessages
from ipc.linkmessages import ANSWER_HEADERS, FailCode, FromLink, Method, RequestHeader, ToLink, Upstream
from link.config import known_keys, parse_config
from link.main import DEFAULT_IDLE_S, EXIT_CONFIG, EXIT_UNAVAILABLE
from link.upstreams import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, WRITE_TIMEOUT_S

DOCS = Path(__file__).parents[2] / "docs"


def section(page: str, title: str) -> str:
    """The text under a heading of the second level."""
    _, _, rest = (DOCS / page).read_text("utf-8").partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


PROTOCOL = section("protocol.md", "The link's socket")
REFERENCE = section("reference.md", "The link")


def tables(text: str) -> list[dict[str, list[str]]]:
    """Every table, as its rows by their first cell."""
    found: list[dict[str, list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()[2:]]
        found.append({row[0].strip("`"): row[1:] for row in rows})
    return found


MESSAGES, CODES, BOUNDS = tables(PROTOCOL)


def test_every_message_and_its_fields_are_told() -> None:
    for side, union in (("core", ToLink), ("link", FromLink)):
        for message in union.__args__:
            told = MESSAGES[str(message.__struct_config__.tag)]
            assert told[0] == side
            for name in set(message.__struct_fields__) - {"v", "id"}:
                assert f"`{name}`" in told[1], (message, name)
    assert len(MESSAGES) == len(ToLink.__args__) + len(FromLink.__args__)


def test_the_closed_lists_are_told() -> None:
    for names in (get_args(Upstream), get_args(Method), get_args(RequestHeader), ANSWER_HEADERS):
        assert [name for name in names if f"`{name}`" not in PROTOCOL] == []


def test_every_code_is_in_the_table_and_no_other_is() -> None:
    assert list(CODES) == [code.value for code in FailCode]
    assert f"connecting took {CONNECT_TIMEOUT_S:g} s" in CODES["timeout"][0]
    assert READ_TIMEOUT_S == WRITE_TIMEOUT_S and f"read or write {READ_TIMEOUT_S:g} s" in CODES["timeout"][0]


def test_every_bound_is_in_the_table_with_its_value() -> None:
    values = {name: value for name, value in vars(linkmessages).items() if name.isupper() and isinstance(value, int)}
    assert {name: int(row[0]) for name, row in BOUNDS.items()} == values


def test_every_key_of_link_toml_has_its_row_and_no_other_has() -> None:
    (keys,) = tables(REFERENCE)
    wanted = {
        f"{'upstream.NAME' if name == 'upstream' else name}.{key}" for name, names in known_keys().items() for key in names
    }
    assert set(keys) == wanted


def test_the_example_is_accepted() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)
    config = parse_config(text, "reference.md", {"license-agent": 900}.__getitem__)
    assert set(config.upstreams) == set(tomllib.loads(text)["upstream"])
    assert not config.provisioning


def test_times_and_statuses_are_told() -> None:
    prose = " ".join(REFERENCE.split())
    assert f"`--idle` seconds ({DEFAULT_IDLE_S:g})" in prose
    assert f"{EXIT_UNAVAILABLE} the socket" in prose and f"{EXIT_CONFIG} configuration" in prose
