"""The interface keeps to its own OpenAPI document, whatever is sent: no answer that it does not name."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ipc.errors import ErrorCode
from manage.openapi import make_document
from manage.problems import KINDS, kind_of
from manage.routes import ROUTES, find
from tests.support.manage import Client, Manage, both, issued
from tests.support.waiting import READY_S

DOCUMENT: dict[str, Any] = make_document(ROUTES)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
CLIENTS = 8  # so that what is tested is the interface and not its rate limit
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def manage() -> Iterator[Manage]:
    with both() as running:
        yield running


@pytest.fixture(scope="module")
def callers(manage: Manage) -> Iterator[dict[str, Any]]:
    """Arguments of calls, each time another administrator's, with a session of theirs every second time."""
    base = {"verify": str(manage.certificate), "base_url": f"https://127.0.0.1:{manage.port}"}
    found = []
    for number in range(CLIENTS):
        client = Client(manage, issued("admin"))
        headers = {} if number % 2 else {"License-Agent-Session": client.session()}
        found.append({**base, "cert": client.files, "headers": headers})
    return itertools.cycle(found)


@pytest.mark.system
@pytest.mark.root
@schema.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_interface_keeps_to_its_document(case: schemathesis.Case, callers: Iterator[dict[str, Any]]) -> None:
    response = case.call(**next(callers), timeout=READY_S)
    case.validate_response(response, checks=CHECKS)


def test_every_route_is_in_the_document_with_its_problems() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert {(route.method.lower(), route.path) for route in ROUTES} == {
        (method, path) for path, operations in DOCUMENT["paths"].items() for method in operations
    }
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            assert operation["summary"] and operation["description"]
            assert {"400", "403", "429", "500", "503"} <= set(operation["responses"])
    names = [kind.name for kind in KINDS]
    assert len(names) == len(set(names))
    assert all(kind.next or kind.name == "agent-unavailable" for kind in KINDS)


def test_every_error_of_the_agent_is_a_problem_that_the_routes_name() -> None:
    special = {ErrorCode.UNKNOWN_OP, ErrorCode.UNAUTHENTICATED, ErrorCode.NOT_FOUND, ErrorCode.BAD_REQUEST, ErrorCode.REFUSED}
    for code in set(ErrorCode) - special:  # those that any request can be answered with
        assert [route.name for route in ROUTES if kind_of(code) not in route.problems] == [], code
    (act,) = [route for route in ROUTES if route.name == "performAct"]
    assert {kind_of(code) for code in ErrorCode} <= set(act.problems)


def test_paths_are_found_by_their_parts_alone() -> None:
    assert find("GET", "/v1/nothing") == [] and find("GET", "") == [] and find("GET", "//") == []
    assert find("PUT", "/v1/sessions") == ["POST"]
    found = find("GET", "/v1/licenses/a%2Fb%C3%A9")
    assert isinstance(found, tuple) and found[1] == {"id": "a/bé"}
    with pytest.raises(ValueError, match="decode"):
        find("GET", "/v1/licenses/%ff")
