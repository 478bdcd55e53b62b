"""The running server keeps to its own OpenAPI document, whatever is sent: no 5xx, only documented answers."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.api.app import BY_GET, PREFIX
from server.cli.service.serve import document
from server.exchange.content import KINDS
from tests.support.apiclient import Device
from tests.support.apiserver import ApiServer
from tests.support.waiting import READY_S

DOCUMENT: dict[str, Any] = json.loads(document())
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DEVICES = 4  # so that what is tested is the API and not its rate limit
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer.made(tmp_path_factory.mktemp("schema") / "server") as made:
        made.start()
        yield made
        refused = [line for line in map(json.loads, made.log().splitlines()) if line["event"] == "refused"]
        limited = sum(line["status"] == 429 for line in refused)
        assert limited * 4 < len(refused), "the rate limit was tested, not the API"


@pytest.fixture(scope="module")
def callers(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Arguments of calls, each time another device's."""
    directory = tmp_path_factory.mktemp("devices")
    root = directory / "root.pem"
    root.write_text(server.root)
    devices = [Device(server.base, server.root, directory) for _ in range(DEVICES)]
    for device in devices:
        device.provision(server.claim(), server.pins)
    return itertools.cycle([{"cert": device.files(), "verify": str(root), "base_url": server.base} for device in devices])


@schema.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_keeps_to_its_document(case: schemathesis.Case, callers: Iterator[dict[str, Any]]) -> None:
    response = case.call(**next(callers), timeout=READY_S)
    case.validate_response(response, checks=CHECKS)


def test_every_endpoint_is_in_the_document() -> None:
    paths = DOCUMENT["paths"]
    others = ("challenge", "provision", "provision/complete", "key-set", "capabilities")
    wanted = {f"{PREFIX}/{name}" for name in (*KINDS, *others)}
    assert set(paths) == wanted
    for purpose in KINDS:
        assert set(paths[f"{PREFIX}/{purpose}"]) == ({"post", "get"} if purpose in BY_GET else {"post"})


def test_every_operation_documents_its_errors_and_no_form_that_is_not_ours() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            needed = {"200", "400", "413", "429", "500", "503"} | ({"415"} if method == "post" else set())
            assert needed <= set(operation["responses"]), path
            assert "422" not in operation["responses"]
            assert operation["summary"] and operation["description"]
    for name, form in DOCUMENT["components"]["schemas"].items():
        assert form.get("additionalProperties") is False or "enum" in form, name


def test_the_command_writes_the_document(tmp_path: Path) -> None:
    from tests.support.apiserver import run

    out = tmp_path / "openapi.json"
    run("openapi", "--out", str(out))
    assert json.loads(out.read_text()) == DOCUMENT
