"""The operator API keeps to its own OpenAPI document, whatever each role sends: no 5xx, only documented answers."""

import collections
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.accounts.roles import Role, admits
from server.acts.catalog import ACTS
from server.cli.service.serve import operator_document
from server.operators.routes import PREFIX
from tests.support.apiserver import ApiServer, run
from tests.support.operators import Operators, Person
from tests.support.waiting import READY_S

DOCUMENT: dict[str, Any] = json.loads(operator_document())
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ACCOUNTS = 12  # of each role, so that what is tested is the API and not its rate limit
# The callers sign in by themselves: made-up tokens beside their certificates would only test the limit of the address.
schema = schemathesis.openapi.from_dict({name: value for name, value in DOCUMENT.items() if name != "security"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer.made(tmp_path_factory.mktemp("schema") / "server") as made:
        made.start("--operators", "127.0.0.1:0")
        yield made
        refused = [line for line in map(json.loads, made.log().splitlines()) if line["event"] == "refused"]
        limited = sum(line["status"] == 429 for line in refused)
        assert limited * 4 < len(refused), "the rate limit was tested, not the API"


@pytest.fixture(scope="module")
def callers(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Iterator[dict[str, Any]]]:
    """Arguments of calls by role, each time another account's."""
    operators = Operators(server, tmp_path_factory.mktemp("files"))
    found = {}
    for role in Role:
        people = [operators.person(f"{role.value.replace('_', '-')}-{number}", role) for number in range(ACCOUNTS)]
        base = server.operators.removesuffix(PREFIX)
        found[role] = itertools.cycle([_arguments(operators, each) | {"base_url": base} for each in people])
    return found


def _arguments(operators: Operators, person: Person) -> dict[str, Any]:
    """A session keeps its connection: a new one for each request would only test the limit of handshakes."""
    files = (str(person.certificate), str(person.key))
    return {"session": requests.Session(), "verify": str(operators.root), "cert": files}


class Turns:
    """Who sends a value at the edge of a form: one role that may do the act and one that may not, others each time."""

    def __init__(self) -> None:
        self._sent: collections.Counter[tuple[str, Role]] = collections.Counter()

    def has(self, case: schemathesis.Case, role: Role) -> bool:
        """Whether it is that role's turn; asked once for each value of an operation and role, in the same order of values."""
        label = case.operation.label
        number = self._sent[label, role]
        self._sent[label, role] += 1
        needed = frozenset(map(Role, case.operation.definition.raw["x-roles"]))
        group = [each for each in Role if admits(each, needed) == admits(role, needed)]
        return group[number % len(group)] is role


@pytest.fixture(scope="module")
def turns() -> Turns:
    return Turns()


@pytest.mark.parametrize("role", list(Role))
@schema.parametrize()
@settings(
    max_examples=1,  # for each role, so five for each operation, beside the values at the edges
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_keeps_to_its_document(
    case: schemathesis.Case, role: Role, turns: Turns, callers: dict[Role, Iterator[dict[str, Any]]]
) -> None:
    if case.meta is not None and case.meta.phase.name is TestPhase.COVERAGE and not turns.has(case, role):
        return
    response = case.call(**next(callers[role]), timeout=READY_S)
    case.validate_response(response, checks=CHECKS)


def test_every_act_is_in_the_document() -> None:
    wanted = {(PREFIX + act.path, act.method.lower()) for act in ACTS}
    assert wanted == {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations}


def test_every_operation_says_who_may_ask_and_what_can_go_wrong() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert set(DOCUMENT["components"]["securitySchemes"]) == {"token", "certificate"}
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            needed = {"200", "400", "401", "403", "429", "500", "503"} | (set() if method == "get" else {"413", "415", "422"})
            assert needed <= set(operation["responses"]), path
            assert operation["summary"] and operation["description"]
            assert operation["x-roles"]
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
    for name, form in DOCUMENT["components"]["schemas"].items():
        assert form.get("additionalProperties") is False or name == "JsonValue", name


def test_a_generator_of_clients_finds_every_form_under_a_name_of_its_own() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)))
    assert named <= set(schemas) and "BadRow" in named
    titles = [form["title"] for form in schemas.values() if "title" in form]
    assert sorted(titles) == sorted(set(titles))
    assert all(re.fullmatch(r"[A-Za-z]+", name) for name in schemas), "no module of the program in a name"


def test_the_command_writes_the_document(tmp_path: Path) -> None:
    out = tmp_path / "openapi.json"
    run("openapi", "--operators", "--out", str(out))
    assert json.loads(out.read_text()) == DOCUMENT
