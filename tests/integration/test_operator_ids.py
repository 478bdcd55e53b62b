"""Ids of licenses that a path has to quote: what tables have issued can be shown and revoked by requests."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from server.accounts.roles import Role
from tests.integration.test_operator_api import problem
from tests.support.apiserver import ApiServer
from tests.support.operators import DAY, Operators, operators_server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with operators_server(request, tmp_path_factory.mktemp("ids") / "server") as made:
        yield made


@pytest.fixture
def clerk(server: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Of a person who sells; a product and a policy are there."""
    operators = Operators(server, tmp_path)
    name = f"ines-{len(request.node.name)}"
    with operators.client(operators.person(name, Role.ISSUER)) as client:
        client.post("/products", json={"product": "till", "name": "Till software"})
        policy = {"policy": "year", "product": "till", "name": "A year", "features": ["sales"], "duration": 365 * DAY}
        client.post("/policies", json=policy)
        yield client


def test_whatever_an_import_has_issued_can_be_shown_and_revoked(clerk: httpx.Client) -> None:
    ids = ["order/77", "/x/", "two words", "Stra\u00dfe", "a%2Fb", "a?b&c", "a#1", "order/history", "order", "...", "100%"]
    items = [{"license_id": each, "policy": "year"} for each in ids]
    assert clerk.post("/licenses/import", json={"items": items}).json()["issued"] == len(ids)
    assert clerk.post("/licenses/order/revoke", json={}).status_code == 200
    for each in ids:
        path = f"/licenses/{quote(each, safe='')}"
        assert clerk.get(path).json()["license_id"] == each
        assert clerk.get("/reports/usage", params={"license_id": each}).status_code == 200
        events = [change["event"] for change in clerk.get(f"{path}/history").json()["items"]]
        assert events == (["issued", "revoked"] if each == "order" else ["issued"])
        assert clerk.post(f"{path}/revoke", json={}).json()["state"] == "revoked"
    problem(clerk.get("/licenses/order%00"), 400, "malformed")
    problem(clerk.get("/licenses/order%2Fnone"), 404, "not-found")
    problem(clerk.get("/licenses/order/none"), 404, "no-such-path")


def test_an_id_that_http_clients_take_away_is_refused(clerk: httpx.Client) -> None:
    for each in (".", ".."):
        wrong = clerk.post("/licenses", json={"policy": "year", "license_id": each})
        assert "HTTP clients remove" in problem(wrong, 422, "invalid")
        assert clerk.post("/licenses/import", json={"items": [{"license_id": each, "policy": "year"}]}).status_code == 422
