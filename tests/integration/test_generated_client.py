"""A client that a stranger's generator makes from the OpenAPI document does a vendor's work. On both databases."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.accounts.roles import Role
from tests.support.apiserver import ApiServer
from tests.support.operators import Operators, operators_server
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system
GENERATE = "from openapi_python_client.cli import app; app()"
SCOPES = [f"{subject}:{right}" for subject in ("customers", "licenses", "products") for right in ("read", "write")]
SHOP = """
import json
import ssl
import sys

from generated import AuthenticatedClient
from generated.api.customers import customers_create
from generated.api.licenses import licenses_issue, licenses_list, licenses_show, licenses_renew
from generated.api.policies import policies_create
from generated.api.products import products_create
from generated.models import (
    ChangedLicense, CustomersCreateBody, Issued, LicensesIssueBody, LicensesRenewBody, PoliciesCreateBody, Problem,
    ProductsCreateBody,
)

base, root, token = sys.stdin.read().split()
client = AuthenticatedClient(base, token, verify_ssl=ssl.create_default_context(cafile=root))
for call, body in (
    (customers_create, CustomersCreateBody(customer="c-1")),
    (products_create, ProductsCreateBody(product="till", name="Till software")),
    (policies_create, PoliciesCreateBody(policy="year", product="till", name="A year", features=["till"], duration=31536000)),
):
    assert call.sync_detailed(client=client, body=body).status_code == 200
order = LicensesIssueBody(policy="year", customer="c-1")
issued = licenses_issue.sync(client=client, body=order, idempotency_key="order-1")
again = licenses_issue.sync(client=client, body=order, idempotency_key="order-1")
assert isinstance(issued, Issued) and again.license_.license_id == issued.license_.license_id
renewed = licenses_renew.sync(issued.license_.license_id, client=client, body=LicensesRenewBody())
assert isinstance(renewed, ChangedLicense), renewed
shown = licenses_show.sync(issued.license_.license_id, client=client)
missing = licenses_show.sync("nothing", client=client)
assert isinstance(missing, Problem)
listed = [each.license_id for each in licenses_list.sync(client=client).items]
years = round((shown.expires - shown.not_before) / 31536000, 2)
only = listed == [issued.license_.license_id]
print(json.dumps({"years": years, "features": shown.features, "only": only, "problem": [missing.status, missing.type_]}))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ApiServer]:
    with operators_server(request, tmp_path / "server") as made:
        yield made


def test_a_generated_client_sells_a_license(server: ApiServer, tmp_path: Path) -> None:
    operators = Operators(server, tmp_path)
    token = operators.program("webshop", Role.ISSUER, SCOPES)
    document = tmp_path / "openapi.json"
    with operators.client(token=token) as client:
        document.write_text(client.get("/openapi.json").text)
    made = tmp_path / "generated"
    command = [
        sys.executable,
        "-c",
        GENERATE,
        "generate",
        "--path",
        str(document),
        "--output-path",
        str(made),
        "--meta",
        "none",
    ]
    # It formats what it makes with ruff, and warns where there is none.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    generated = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=READY_S, check=False
    )
    assert generated.returncode == 0 and "Warning" not in generated.stdout + generated.stderr, generated.stdout
    (tmp_path / "shop.py").write_text(SHOP)
    base = server.operators.removesuffix("/operator/v1")
    sold = subprocess.run(
        [sys.executable, str(tmp_path / "shop.py")],
        input=f"{base}\n{operators.root}\n{token}\n",
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
    assert sold.returncode == 0, sold.stderr
    told = json.loads(sold.stdout)
    assert (told["years"], told["features"], told["only"]) == (2.0, ["till"], True)
    assert told["problem"] == [404, "urn:license-agent:problem:not-found"]
