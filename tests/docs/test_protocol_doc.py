"""docs/protocol.md says what the code does: names, numbers, lists, and an example that works as it stands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agentd.sockets.connection import KEPT_OPEN
from contracts import claims as claims_module
from contracts.delivery import _MEMBERS, DELIVERY_TYPE
from contracts.licensetoken import LICENSE_TYPE, MAX_HEADER_CHARS, MAX_VERSION, open_token, parse_token
from contracts.statement import MAX_STATEMENT_CHARS
from contracts.trust import MAX_KEYS, parse_trust
from ipc import bounds
from ipc.answers import NEAREST_FIRST, Reason
from ipc.errors import ErrorCode
from ipc.frames import FrameDecoder
from ipc.messages import AdminRequest, PosRequest, RequestDecoder, VerdictReply
from ipc.posclient.policy import FIRST_PAUSE_S, LONGEST_PAUSE_S, RETRIED_CODES

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")


def section(title: str) -> str:
    """The text under a heading, up to the next one of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(title)}$", TEXT, re.MULTILINE)
    assert match is not None, f"no section {title}"
    rest = TEXT[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, heads and rules left out."""
    lines = text.split("\n")
    table = [number for number, line in enumerate(lines) if line.startswith("|")]
    rules = {number for number in table if set(lines[number]) <= set("|-")}
    heads = {number - 1 for number in rules}
    return [[cell.strip() for cell in lines[number].strip("|").split("|")] for number in table if number not in rules | heads]


def first_cells(text: str) -> list[str]:
    return [row[0].strip("`") for row in rows(text)]


def code_block(text: str, language: str) -> str:
    match = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def test_every_bound_is_in_the_table_with_its_value() -> None:
    written = {row[0]: row[1] for row in rows(section("Bounds"))}
    assert written == {name: str(value) for name, value in vars(bounds).items() if name.isupper()}


def test_every_error_code_is_in_the_table_with_its_name() -> None:
    written = {int(row[0]): row[1] for row in rows(section("Errors"))}
    assert written == {int(code): code.name for code in ErrorCode}


def test_the_table_says_which_errors_close_and_which_are_repeated() -> None:
    table = {row[1]: row for row in rows(section("Errors"))}
    for code in KEPT_OPEN | {ErrorCode.INTERNAL, ErrorCode.NONCE_REPLAYED}:
        assert table[code.name][3] == "kept"
    for code in (ErrorCode.FRAME_TOO_LARGE, ErrorCode.BAD_MESSAGE, ErrorCode.FORBIDDEN, ErrorCode.TIMED_OUT):
        assert table[code.name][3] == "closed"
    repeated = {name for name, row in table.items() if row[4].endswith("repeat after a pause") or row[4].endswith("and repeat")}
    assert repeated == {code.name for code in RETRIED_CODES}
    rule = section("Attempts, deadline and nonces")
    assert all(name in rule for name in repeated)
    assert f"deadline of {bounds.DEFAULT_DEADLINE_S:g} s" in rule
    assert f"{FIRST_PAUSE_S * 1000:g} ms" in rule and f"{LONGEST_PAUSE_S * 1000:g} ms" in rule


def test_every_reason_is_in_its_table() -> None:
    assert first_cells(section("Reasons, and what a till should do")) == [reason.value for reason in Reason]
    assert first_cells(section("Reasons of a machine's licenses")) == [reason.value for reason in NEAREST_FIRST]


@pytest.mark.parametrize(("union", "title"), [(PosRequest, "Operations"), (AdminRequest, "Admin socket")])
def test_every_operation_and_its_fields_are_told(union: Any, title: str) -> None:
    text = section(title)
    for request in union.__args__:
        op = str(request.__struct_config__.tag)
        part = section(op) if title == "Operations" else next(" ".join(row) for row in rows(text) if row[0] == f"`{op}`")
        for name in set(request.__struct_fields__) - {"v", "id"}:
            assert f"`{name}`" in part, (op, name)
    if title == "Admin socket":
        assert set(first_cells(text)) == {str(request.__struct_config__.tag) for request in union.__args__}


def test_every_field_of_a_verdict_is_told_in_its_order() -> None:
    told = first_cells(section("validate_license"))
    assert told[2:] == [name for name in VerdictReply.__struct_fields__ if name not in ("v", "id")]


def test_the_frame_in_hex_is_a_ping() -> None:
    match = re.search(r"^ {4}([0-9a-f ]+)$", section("Frames"), re.MULTILINE)
    assert match is not None
    (body,) = FrameDecoder().receive_data(bytes.fromhex(match[1]))
    request = RequestDecoder[PosRequest](PosRequest).decode(body)
    assert (type(request).__name__, request.id) == ("Ping", 7)


def test_the_bounds_of_tokens_claims_and_deliveries_are_told() -> None:
    text = section("License tokens")
    claims = {row[0].strip("`"): " ".join(row) for row in rows(text) if len(row) == 4}
    assert claims.keys() == claims_module._NAMES
    for name in ("iat", "nbf", "exp"):
        assert f"0 to {claims_module.MAX_TIME}" in claims[name]
    for name in ("iss", "sub", "aud", "jti"):
        assert f"1 to {claims_module.MAX_ID_CHARS} characters" in claims[name]
    assert f"at most {claims_module.MAX_FEATURES}, each 1 to {claims_module.MAX_NAME_CHARS} characters" in claims["features"]
    metadata = f"at most {claims_module.MAX_METADATA}; names 1 to {claims_module.MAX_NAME_CHARS}"
    assert f"{metadata}, values 0 to {claims_module.MAX_VALUE_CHARS} characters" in claims["metadata"]
    for value in (f"`{LICENSE_TYPE}`", f"at most {MAX_HEADER_CHARS} characters", f"1 to {MAX_VERSION}"):
        assert value in text
    delivery = section("Secret delivery")
    assert set(first_cells(delivery)) == _MEMBERS
    assert f"`{DELIVERY_TYPE}`" in delivery and f"{MAX_STATEMENT_CHARS:,}" in delivery
    assert f"1 to {MAX_KEYS} JWKs" in section("Trust file")


def test_the_example_makes_a_token_that_the_agent_accepts() -> None:
    names: dict[str, Any] = {}
    exec(compile(code_block(section("Issuing one with Python"), "python"), "protocol.md", "exec"), names)
    # The trust file is the one that the document shows, with this key in it.
    trust = json.loads(code_block(section("Trust file"), "json"))
    public = {**json.loads(names["issuer_key"].export_public()), "kid": names["issuer_key"].thumbprint()}
    trust["license_keys"] = trust["delivery_keys"] = [public]
    sealed = parse_token(names["token"])
    assert (sealed.agent_id, sealed.version) == (names["agent_id"], names["version"])
    claims = open_token(sealed, names["secret"], parse_trust(json.dumps(trust).encode()))
    assert claims.as_json() == names["claims"]
