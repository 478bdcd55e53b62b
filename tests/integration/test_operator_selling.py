"""A vendor's requests over real TLS: tables, reports as CSV, preconditions, other customers' ids, what no log keeps."""

import csv
import io
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.accounts.roles import Role
from tests.integration.test_operator_api import problem
from tests.support.apiserver import COMMAND, ApiServer, run
from tests.support.operators import DAY, Operators, operators_server

YEAR = 365 * DAY
SECRET_NAME = "Ada Lovelace Ltd"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with operators_server(request, tmp_path_factory.mktemp("selling") / "server") as made:
        yield made


@pytest.fixture(scope="module")
def operators(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Operators:
    return Operators(server, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def clerk(operators: Operators) -> Iterator[httpx.Client]:
    """Of a person who sells; a product, a policy, two customers and a site are there."""
    with operators.client(operators.person("ines", Role.ISSUER)) as client:
        for path, body in (
            ("/products", {"product": "till", "name": "Till software"}),
            ("/policies", {"policy": "year", "product": "till", "name": "A year", "features": ["sales"], "duration": YEAR}),
            ("/customers", {"customer": "c-1", "fields": {"name": SECRET_NAME}}),
            ("/customers", {"customer": "c-2"}),
            ("/sites", {"site": "s-1", "customer": "c-1", "fields": {"address": "1 Main Street"}}),
        ):
            made = client.post(path, json=body)
            assert made.status_code == 200, made.text
            assert SECRET_NAME not in made.text and made.headers["etag"] == '"1"'
        yield client


def test_a_change_needs_the_tag_of_what_was_read(clerk: httpx.Client) -> None:
    for path, change in (
        ("/products/till", {"name": "Till"}),
        ("/policies/year", {"features": ["sales", "returns"]}),
        ("/customers/c-1", {"fields": {"contact": "Grace Hopper"}}),
        ("/sites/s-1", {"fields": {"note": "back door"}}),
    ):
        tag = clerk.get(path).headers["etag"]
        problem(clerk.patch(path, json=change), 428, "precondition-required")
        changed = clerk.patch(path, json=change, headers={"if-match": tag})
        assert changed.status_code == 200 and changed.headers["etag"] != tag
        problem(clerk.patch(path, json=change, headers={"if-match": tag}), 412, "precondition-failed")


def test_what_is_not_for_the_sender_cannot_be_set(clerk: httpx.Client) -> None:
    sold = {"policy": "year", "license_id": "mass"}
    for more in (
        {"state": "active"},
        {"revision": 9},
        {"product": "till"},
        {"suspended_at": 1},
        {"trial": True},
        {"token": "x"},
    ):
        problem(clerk.post("/licenses", json=sold | more), 400, "malformed")
    for more in ({"created_at": 1}, {"erased_at": 1}, {"key": "x"}, {"fields": {"password": "x"}}, {"name": "x"}):
        problem(clerk.post("/customers", json={"customer": "mass"} | more), 400, "malformed")
    item = {"license_id": "mass", "policy": "year"}
    for wrong in ({"state": "active"}, {"secret_version": 1}, {"token": "x"}):
        problem(clerk.post("/licenses/import", json={"items": [item | wrong]}), 400, "malformed")
    assert clerk.get("/licenses/mass").status_code == clerk.get("/customers/mass").status_code == 404


def test_a_site_of_another_customer_is_refused_by_its_id(clerk: httpx.Client) -> None:
    wrong = clerk.post("/licenses", json={"policy": "year", "customer": "c-2", "site": "s-1"})
    assert SECRET_NAME not in problem(wrong, 409, "conflict")
    assert [each["site"] for each in clerk.get("/sites", params={"customer": "c-2"}).json()["items"]] == []
    problem(clerk.get("/sites", params={"customer": "c-9"}), 404, "not-found")
    problem(clerk.get("/customers/c-9/details"), 404, "not-found")
    problem(clerk.get("/customers/..%2Faccounts"), 400, "malformed")


def test_a_table_that_has_a_bad_line_is_not_issued(clerk: httpx.Client) -> None:
    table = "license_id,policy,customer,subject\nt-1,year,c-1,shop 1\nt-2,year,c-9,\nt-3,never,,\n"
    refused = clerk.post("/licenses/import", json={"table": table})
    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (422, "rows-refused")
    assert [(row["line"], row["id"]) for row in refused.json()["rows"]] == [(3, "t-2"), (4, "t-3")]
    problem(clerk.get("/licenses/t-1"), 404, "not-found")
    done = clerk.post("/licenses/import", json={"table": table, "row_by_row": True}).json()
    assert (done["issued"], done["bad"]) == (1, 2)
    lines = [{"policy": "year"}] * 1001
    problem(clerk.post("/licenses/import", json={"items": lines, "batch": "b"}), 422, "invalid")
    problem(clerk.post("/licenses/import", json={"table": "x" * (1024 * 1024)}), 413, "too-large")


def test_what_a_spreadsheet_would_run_is_defused_and_comes_back_as_it_was(clerk: httpx.Client) -> None:
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", "'=1"]
    items = [{"license_id": f"f-{n}", "policy": "year", "subject": text} for n, text in enumerate(formulas)]
    assert clerk.post("/licenses/import", json={"items": items}).json()["issued"] == len(formulas)
    exported = clerk.get("/exports/licenses", params={"policy": "year"}, headers={"accept": "text/csv"})
    assert exported.headers["content-type"].startswith("text/csv") and "next-cursor" not in exported.headers
    rows = {row["license_id"]: row for row in csv.DictReader(io.StringIO(exported.text))}
    for number, formula in enumerate(formulas):
        assert rows[f"f-{number}"]["subject"] == "'" + formula
    again = clerk.post("/licenses/import", json={"table": exported.text})
    assert again.status_code == 200 and again.json()["unchanged"] == len(rows)
    until = {"until": int(time.time()) + 2 * YEAR}
    report = clerk.get("/reports/expiry", params=until, headers={"accept": "text/csv"}).text
    assert "'=1+1" in report and ",=1+1" not in report
    names = [{"customer": f"f-{n}", "name": text} for n, text in enumerate(formulas[:4])]
    assert clerk.post("/customers/import", json={"items": names}).json()["created"] == 4
    assert clerk.get("/customers/f-0/details").json()["fields"]["name"] == "=1+1"


def test_the_pages_of_a_report_are_one_table(clerk: httpx.Client) -> None:
    clerk.post("/licenses/issue-many", json={"count": 25, "batch": "pages", "policy": "year", "customer": "c-2"})
    text, cursor = "", ""
    while cursor is not None:
        params = {"customer": "c-2", "limit": "10"} | ({"cursor": cursor} if cursor else {})
        page = clerk.get("/exports/licenses", params=params, headers={"accept": "text/csv"})
        assert page.status_code == 200, page.text
        text, cursor = text + page.text, page.headers.get("next-cursor")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["license_id"] for row in rows] == [f"pages-{number:04d}" for number in range(1, 26)]
    problem(clerk.get("/reports/devices", params={"cursor": "x.y"}, headers={"accept": "text/csv"}), 400, "cursor-refused")
    assert clerk.get("/reports/devices", headers={"accept": "text/csv"}).text.startswith("agent_id,serial,status")


def test_names_are_for_those_who_help_and_sell(operators: Operators, clerk: httpx.Client) -> None:
    for name, role, allowed in (
        ("vera", Role.VIEWER, False), ("sam", Role.SUPPORT, True), ("olga", Role.SECURITY_OFFICER, False),
    ):  # fmt: skip
        with operators.client(operators.person(name, role)) as client:
            for path in ("/customers", "/customers/c-1", "/sites", "/sites/s-1", "/licenses", "/events", "/reports/expiry"):
                shown = client.get(path)
                assert shown.status_code == 200 and SECRET_NAME not in shown.text and "Main Street" not in shown.text, path
            for path in ("/customers/c-1/details", "/customer-details", "/sites/s-1/details", "/site-details"):
                shown = client.get(path)
                assert (shown.status_code == 200) is allowed, (name, path)
                assert (SECRET_NAME in shown.text or "Main Street" in shown.text) is allowed, (name, path)


def test_a_token_that_writes_licenses_reads_no_customer(operators: Operators, clerk: httpx.Client) -> None:
    token = operators.program("web", Role.ISSUER, ["licenses:write"])
    with operators.client(token=token) as client:
        assert client.post("/licenses", json={"policy": "year", "site": "s-1", "license_id": "web-1"}).status_code == 200
        for path in (
            "/customers", "/customers/c-1", "/customers/c-1/details", "/customer-details", "/sites", "/sites/s-1",
            "/sites/s-1/details", "/site-details", "/licenses", "/exports/licenses", "/reports/expiry", "/events", "/audit",
        ):  # fmt: skip
            assert SECRET_NAME not in problem(client.get(path), 403, "not-allowed")
        for path in ("/customers/c-1/erase", "/customers/import", "/customers", "/sites"):
            body = {"customer": "c-1"} if path == "/sites" else {}
            problem(client.post(path, json=body), 403, "not-allowed")


def test_the_command_line_sells_at_a_server_that_is_elsewhere(
    operators: Operators, clerk: httpx.Client, tmp_path: Path
) -> None:
    ina = operators.person("ina", Role.ISSUER)
    base = operators.server.operators.removesuffix("/operator/v1")
    mine = [
        "--server",
        base,
        "--auth-root",
        str(operators.root),
        "--auth-cert",
        str(ina.certificate),
        "--auth-key",
        str(ina.key),
    ]
    assert run(*mine, "issue", "--policy", "year", "--site", "s-1", "--license-id", "far-1") == "far-1\n"
    assert json.loads(run(*mine, "licenses", "renew", "far-1", "--json"))["revision"] == 2
    assert json.loads(run(*mine, "licenses", "list", "--site", "s-1", "--status", "unassigned", "--json"))
    out, tokens = tmp_path / "out.csv", tmp_path / "tokens.csv"
    run(*mine, "licenses", "export", "--out", str(out))
    run(*mine, "licenses", "import", str(out))
    out.write_text(out.read_text().replace("far-1", "far-2", 1).replace(",year,", ",never,"))
    refused = subprocess.run([COMMAND, *mine, "licenses", "import", str(out)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "policy 'never'" in refused.stderr
    run(*mine, "enrollment-token", "make", "--count", "3", "--out", str(tokens))
    lines = list(csv.DictReader(io.StringIO(tokens.read_text())))
    assert len({line["token"] for line in lines}) == 3 and tokens.stat().st_mode & 0o777 == 0o600
    assert SECRET_NAME in run(*mine, "customers", "show", "c-1")
    run(*mine, "customers", "change", "c-2", "--note", "pays late")
    assert run(*mine, "reports", "devices", "--csv").startswith("agent,serial,status")


def test_no_log_and_no_record_has_a_name(server: ApiServer, operators: Operators, clerk: httpx.Client) -> None:
    clerk.post("/customers/import", json={"items": [{"customer": "c-1", "name": "Barbara Liskov"}]})
    clerk.post("/customers/import", json={"table": "Barbara Liskov,x\n1,2\n"})
    clerk.post("/customers", json={"customer": "c-1", "fields": {"name": "Barbara Liskov"}})
    clerk.post("/customers", json={"customer": "Barbara Liskov"})
    with operators.client(operators.person("root", Role.ADMINISTRATOR)) as root:
        records = "".join(root.get("/audit", params={"limit": 500}).text for _ in range(1)) + root.get("/events").text
    assert "c-1" in records
    for name in (SECRET_NAME, "Liskov", "Hopper", "Main Street"):
        assert name not in records + server.log(), name
    root_file = Path(server.directory) / "server.db"
    if root_file.exists() and root_file.stat().st_size:
        kept = b"".join(path.read_bytes() for path in root_file.parent.glob("server.db*"))
        assert b"till" in kept and SECRET_NAME.encode() not in kept and b"Liskov" not in kept
