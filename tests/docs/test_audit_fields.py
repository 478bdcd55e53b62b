"""The page of the audit log's events and fields has what the code has, and the code has nothing that it cannot explain."""

import ast
from pathlib import Path

import pytest

from scripts import audit_events, docs_tables
from tests.docs.test_operations_doc import EVENTS

PAGE = docs_tables.AUDIT_PAGE.read_text("utf-8")
FOUND = audit_events.found_events()


def test_the_page_is_what_the_code_declares() -> None:
    assert docs_tables.rendered(PAGE, docs_tables.AUDIT_TABLES) == PAGE, "run scripts/docs-tables"


def test_the_reference_says_of_each_event_when_it_is_logged() -> None:
    assert set(FOUND) == EVENTS


def test_every_field_is_explained_and_no_other_is() -> None:
    used = {field for outcomes in FOUND.values() for fields in outcomes.values() for field in fields}
    assert used == set(audit_events.MEANINGS)
    assert not used & set(audit_events.COMMON)


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ('self._audit.record(name, "ok")', "which event"),
        ('self._audit.record("a.b", outcome)', "OUTCOMES"),
        ('self._audit.record("a.b", "ok", **extra)', "SPREAD"),
        ("self._store.keep(name, {})", "which event"),
    ],
)
def test_a_call_that_nobody_understands_is_an_error(call: str, missing: str) -> None:
    tree = ast.parse(f"class A:\n    def f(self, name, outcome, extra):\n        {call}\n")
    with pytest.raises(audit_events.Unexplained, match=missing):
        list(audit_events._Module(Path("agentd/x.py"), tree).records())
