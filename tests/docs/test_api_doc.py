"""docs/protocol.md tells of the server's API what the code does: endpoints, codes, statuses, numbers."""

import json
import re

from contracts.exchange import RefusalCode
from server.agents.certificates import MAX_ISSUED_A_DAY
from server.base import limits
from server.cli.service.serve import document
from server.exchange.challenges import CHALLENGE_LIFETIME_S
from server.web.callers import ADDRESS_HEADER, CERTIFICATE_HEADER
from server.web.responses import STATUS_OF
from tests.docs.test_protocol_doc import first_cells, rows, section

DOCUMENT = json.loads(document())


def test_every_endpoint_is_in_the_table() -> None:
    written = {cell for cell in first_cells(section("The server's API")) if cell.startswith(("GET", "POST"))}
    assert written == {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods}


def test_the_table_says_who_needs_a_certificate() -> None:
    for row in rows(section("The server's API")):
        method, _, path = row[0].strip("`").partition(" ")
        if method in ("GET", "POST"):
            operation = DOCUMENT["paths"][path][method.lower()]
            assert (row[1] == "yes") == ("401" in operation["responses"]), path


def test_every_code_is_in_the_table_with_its_status() -> None:
    table = [row for row in rows(section("Refusals and errors")) if row[0].startswith("`")]
    assert {row[0].strip("`"): int(row[1]) for row in table} == {code.value: STATUS_OF[code] for code in RefusalCode}


def test_every_status_of_an_error_is_documented() -> None:
    text = section("Refusals and errors")
    written = {int(number) for row in rows(text) if row[0][0].isdigit() for number in re.findall(r"\d{3}", row[0])}
    used = {
        int(status) for path in DOCUMENT["paths"].values() for operation in path.values() for status in operation["responses"]
    }
    assert used - {200, 304, 409} <= written


def test_every_limit_is_in_the_table_with_its_value() -> None:
    def rate(value: limits.Rate, seconds: int) -> str:
        return f"{value.per_second * seconds:g}, {value.burst}"

    assert [row[1] for row in rows(section("Limits of the API"))] == [
        str(limits.MAX_BODY_BYTES),
        str(limits.MAX_HEAD_BYTES),
        str(limits.MAX_HEADER_REQUEST_CHARS),
        str(limits.REQUEST_DEADLINE_S),
        str(limits.HANDSHAKE_DEADLINE_S),
        str(limits.KEEP_ALIVE_S),
        str(limits.MAX_CONNECTIONS),
        f"{limits.MAX_ANONYMOUS}, {limits.MAX_ANONYMOUS_ADDRESS}",
        f"{limits.MAX_HANDSHAKES}, {limits.MAX_HANDSHAKES_ADDRESS}",
        rate(limits.HANDSHAKE_RATE, 1),
        str(limits.MAX_AGENT_CONNECTIONS),
        str(CHALLENGE_LIFETIME_S),
        rate(limits.AGENT_RATE, 1),
        rate(limits.ADDRESS_RATE, 1),
        rate(limits.FAILED_CLAIM_RATE, 60),
        str(MAX_ISSUED_A_DAY),
    ]


def test_the_headers_of_a_proxy_are_named() -> None:
    text = section("Behind a proxy").lower()
    assert f"`{CERTIFICATE_HEADER.decode()}`" in text and f"`{ADDRESS_HEADER.decode()}`" in text
