"""A vendor's day at the command line: from a product to reports. On both databases."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.contact.usage import MeterTotal
from server.cli.base.options import utc
from server.licensing.licenses import usage
from tests.server.cli.test_commands import Done, Run, enrolled, place, run
from tests.support.serverside import open_server

__all__ = ["enrolled", "place", "run"]

Told = Callable[..., Any]


@pytest.fixture
def told(run: Run) -> Told:
    """Runs a command with --json and returns what it printed."""

    def told(*arguments: object, **named: Any) -> Any:
        return json.loads(run(*arguments, "--json", **named).out)

    return told


@pytest.fixture
def shop(enrolled: Path, run: Run) -> Path:
    run("products", "create", "till", "--name", "Till software", "--reason", "spring")
    run("entitlements", "create", "base", "--name", "Base", "--feature", "sales")
    run("policies", "create", "year", "--product", "till", "--name", "A year", "--entitlements", "base", "--duration", "365d")
    run("customers", "create", "c-1", "--name", "Corner Shop Ltd")
    run("sites", "create", "s-1", "--customer", "c-1", "--name", "Main street")
    return enrolled


def test_from_a_sale_to_a_revocation(shop: Path, run: Run, told: Told) -> None:
    done = run("licenses", "issue", "--policy", "year", "--site", "s-1", "--license-id", "l")
    assert done.out == "l\n" and "license l: valid from" in done.err
    assigned = run("licenses", "assign", "l", "--agent", "till-1")
    assert "customer:" in assigned.out and "'license-server reissue --agent till-1' prints its token" in assigned.err
    assert run("reissue", "--agent", "till-1").out.count(".") == 4
    suspended = run("licenses", "suspend", "l", "--reason", "invoice 4711")
    assert "NOTICE: agent till-1 does not say that it learns of this" in suspended.err
    assert run("reissue", "--agent", "till-1").out.strip() == ""
    assert "is suspended, so it cannot be suspended: 'license-server licenses reinstate' ends that" in run(
        "licenses", "suspend", "l", code=1
    ).err  # fmt: skip
    run("licenses", "reinstate", "l")
    before = told("licenses", "show", "l")
    assert told("licenses", "renew", "l")["expires"] == before["expires"] + 365 * 86_400
    assert told("licenses", "upgrade", "l", "--feature", "kiosk")["features"] == ["sales", "kiosk"]
    assert "Give what changes" in run("licenses", "upgrade", "l", code=2).err
    assert told("licenses", "release", "l")["state"] == "unassigned"
    run("licenses", "revoke", "l", "--reason", "sold back")
    history = told("licenses", "history", "l")
    assert [row["event"] for row in history] == [
        "issued", "assigned", "suspended", "reinstated", "renewed", "upgraded", "released", "revoked",
    ]  # fmt: skip
    assert history[2]["fields"]["why"] == "invoice 4711"
    table = run("licenses", "history", "l").out
    assert f"was_until={utc(before['expires'])}" in table and "why=invoice 4711" in table
    assert "via=" not in table and "credential=" not in table
    assert "trial:" in (shown := run("policies", "show", "year").out) and "no\n" in shown.partition("trial:")[2]
    (record,) = [each for each in told("audit", "-n", "100") if each["event"] == "license.suspended"]
    assert record["fields"]["why"] == "invoice 4711" and "os_user" in record["fields"]
    assert [row["kind"] for row in told("events", "--subject", "l")][-1] == "license.revoked"


def test_many_are_issued_imported_exported_and_reported(shop: Path, run: Run, told: Told, tmp_path: Path) -> None:
    report, file, exported = tmp_path / "report.csv", tmp_path / "orders.csv", tmp_path / "out.csv"
    many = ("licenses", "issue-many", "--count", "30", "--batch", "o", "--policy", "year", "--customer", "c-1")
    assert "30 issued" in run(*many, "--report", report).err
    assert report.stat().st_mode & 0o777 == 0o600 and len(report.read_text().splitlines()) == 31
    assert "30 unchanged" in run(*many).err
    file.write_text("\ufefflicense_id;agent;policy;expires;subject\nx1;till-1;year;;=1+1\nx2;nobody;year;;\nx3;;;soon;\n")
    done = run("licenses", "import", file, code=1)
    for said in ("nothing was done: 2 bad, 1 not issued", "line 3: no agent 'nobody'", "line 4: expires"):
        assert said in done.err
    counts = told("licenses", "import", file, "--row-by-row", "--report", tmp_path / "r.json", code=1)["counts"]
    assert counts == {"issued": 1, "unchanged": 0, "bad": 2, "not issued": 0}
    assert json.loads((tmp_path / "r.json").read_text())[0]["token"].count(".") == 4
    run("licenses", "export", "--out", exported)
    rows = {row["license_id"]: row for row in csv.DictReader(io.StringIO(exported.read_text()))}
    assert len(rows) == 31 and rows["x1"]["subject"] == "'=1+1" and rows["x1"]["features"] == "sales"
    assert "31 unchanged" in run("licenses", "import", exported).err, "an export is an import of the same"
    assert len(json.loads(run("licenses", "export", "--format", "json", "--customer", "c-1").out)) == 30
    assert len(told("licenses", "list")) == 31 and len(told("licenses", "list", "--status", "unassigned")) == 30
    assert len(told("reports", "expiry", "--until", "+400d", "--customer", "c-1", "--limit", "7")) == 7
    assert told("reports", "expiry") == []
    (device,) = csv.DictReader(io.StringIO(run("reports", "devices", "--csv").out))
    assert (device["agent"], device["active"], device["last contact"]) == ("till-1", "1", "")


def test_a_license_by_a_policy_is_for_its_product_at_the_till(shop: Path, run: Run, told: Told) -> None:
    """Tills and `[pos.licenses]` go by the metadata `product`, which nobody thinks of who has named the product already."""

    def metadata(*words: object) -> Any:
        return told(*words)["metadata"]

    assert metadata("policies", "show", "year") == {"product": "till"}
    run("issue", "--policy", "year", "--license-id", "l")
    assert metadata("licenses", "show", "l") == {"product": "till"}
    assert metadata("policies", "change", "year", "--metadata", "tier=1") == {"product": "till", "tier": "1"}
    assert metadata("policies", "change", "year", "--name", "Year") == {"product": "till", "tier": "1"}
    plan = ("--product", "till", "--name", "x")
    assert metadata("policies", "create", "other", *plan, "--metadata", "product=kiosk") == {"product": "kiosk"}
    assert metadata("policies", "create", "none", *plan, "--metadata", "product=") == {"product": ""}


def test_what_cannot_be_meant_is_said(shop: Path, run: Run, tmp_path: Path) -> None:
    """Times in the wrong order and an empty file are no report or table without lines."""
    turned = ("--from", "2027-02-01", "--until", "2027-01-01")
    assert "--until must be later than --from" in run("reports", "expiry", *turned, code=2).err
    assert "of a later day than --from" in run("reports", "usage", *turned, code=2).err
    done = run("issue", "--not-before", "2027-02-01", "--expires", "2027-01-01", code=1)
    assert "would end at 2027-01-02 00:00:00Z, and begin at 2027-02-01 00:00:00Z: give a later end" in done.err
    empty = tmp_path / "empty.csv"
    empty.write_text("\n")
    for words in (("licenses", "import"), ("customers", "import"), ("sites", "import")):
        assert "empty.csv is empty: its first line names the columns" in run(*words, empty, code=1).err
    empty.write_text("site,customer\ns-5,nobody\n")
    done = run("sites", "import", empty, code=1)
    assert done.err.startswith("nothing was done: 1 bad\nline 2: there is no customer 'nobody'")


def test_a_customer_is_erased(shop: Path, run: Run, told: Told) -> None:
    assert "Corner Shop Ltd" in run("customers", "show", "c-1").out
    assert "Corner Shop Ltd" in run("customers", "list").out and "Main street" in run("sites", "list").out
    run("customers", "erase", "c-1", "--yes")
    for words in (("customers", "list"), ("sites", "list"), ("audit", "-n", "100"), ("events",)):
        said: Done = run(*words)
        assert "Corner" not in said.out and "Main" not in said.out and "c-1" in said.out
    assert "was erased, and gets no licenses" in run("issue", "--policy", "year", "--customer", "c-1", code=1).err


def test_what_does_not_exist_is_no_empty_list(shop: Path, run: Run) -> None:
    for words, text in (
        (("licenses", "list", "--customer", "x"), "'license-server customers list' lists them"),
        (("licenses", "export", "--policy", "x"), "'license-server policies list' lists them"),
        (("reports", "expiry", "--site", "x"), "'license-server sites list' lists them"),
        (("policies", "list", "--product", "x"), "'license-server products list' lists them"),
        (("licenses", "show", "x"), "'license-server licenses list' lists them"),
        (("licenses", "history", "x"), "'license-server licenses list' lists them"),
    ):
        assert text in run(*words, code=1).err


def test_usage_is_reported_by_day_and_in_sums(shop: Path, run: Run, told: Told) -> None:
    run("issue", "--agent", "till-1", "--license-id", "=l", "--feature", "meter:sales", "--expires", "+9d")
    day, at = 20_000, 20_000 * 86_400
    server = open_server(shop)
    with server.database.write() as session:
        for amount, now in ((3, at), (8, at + 86_400)):
            total = MeterTotal(license="=l", meter="sales", epoch="0f" * 16, total=amount)
            assert usage.take(session, "till-1", [total], now, now).refused == ()
    server.close()
    first, second = told("reports", "usage")
    assert first == {
        "day": "2024-10-04", "license_id": "=l", "meter": "sales", "agent_id": "till-1", "amount": 3, "since": None
    }  # fmt: skip
    assert (second["day"], second["amount"], second["since"]) == ("2024-10-05", 5, at)
    assert told("reports", "usage", "--from", "2024-10-05") == [second] == told("reports", "usage", "--limit", "9")[1:]
    assert told("reports", "usage", "--until", "2024-10-05") == [first] == told("reports", "usage", "--limit", "1")
    assert told("reports", "usage", "--customer", "c-1") == [] == told("reports", "usage", "--agent", "other")
    (both,) = told("reports", "usage", "--sum", "--meter", "sales", "--license", "=l")
    assert (both["amount"], both["first_day"], both["last_day"]) == (8, "2024-10-04", "2024-10-05")
    rows = list(csv.reader(io.StringIO(run("reports", "usage", "--csv").out)))
    assert rows[0][:2] == ["day", "license"] and rows[1] == ["2024-10-04", "'=l", "sales", "till-1", "3", ""]
    assert "2024-10-05" in run("reports", "usage").out and day == at // 86_400
    for wrong in (("--csv", "--json"), ("--sum", "--agent", "x")):
        run("reports", "usage", *wrong, code=2)


def test_a_policy_has_the_terms_of_seats(shop: Path, run: Run, told: Told) -> None:
    terms = ("--seats", 2, "--mode", "soft", "--grace", "7d")
    made = told("policies", "create", "shop", "--product", "till", "--name", "Shop", "--duration", "365d", *terms)
    assert made["floating"] == {"seats": 2, "mode": "soft", "lease": 4 * 3600, "grace": 7 * 86_400, "idle": 12 * 3600}
    assert "soft" in run("policies", "show", "shop").out and "seats" in run("policies", "list").out
    run("issue", "--policy", "shop", "--site", "s-1", "--license-id", "pool")
    assert [(row["license_id"], row["seats"]) for row in told("seats", "list")] == [("pool", 2)]
    assert "name a site, and no agent" in run("issue", "--policy", "shop", "--agent", "till-1", code=1).err
    assert "--grace belongs to --seats N" in run("policies", "change", "shop", "--grace", "1d", code=2).err
    assert told("policies", "change", "shop", "--seats", 3)["floating"]["mode"] == "hard"
