"""The page of the server's audit events has what the code has, and the code has nothing that it cannot explain."""

import ast
import re

import pytest

from scripts import docs_tables, server_audit_events
from server.acts.caller import local

PAGE = docs_tables.SERVER_AUDIT_PAGE.read_text("utf-8")
FOUND = server_audit_events.found_events()


def test_the_page_is_what_the_code_declares() -> None:
    assert docs_tables.rendered(PAGE, docs_tables.SERVER_AUDIT_TABLES) == PAGE, "run scripts/docs-tables"


def test_each_event_is_there_once_with_its_words() -> None:
    named = re.findall(r"^\| `([a-z_.]+)` \| ([^|]{10,}) \| [a-z, ]+ \| `", PAGE, re.MULTILINE)
    assert dict(named) == server_audit_events.MEANINGS and len(named) == len(FOUND)


def test_every_actor_is_explained() -> None:
    explained = {cell.split()[0] for cell in re.findall(r"^\| `([a-zA-Z_ ]+)` \| ", PAGE, re.MULTILINE) if "." not in cell}
    assert {actor for each in FOUND.values() for actor in each.actors} == explained


def test_the_fields_of_the_operator_are_those_of_callers() -> None:
    caller = local({"os_user": "x", "login_user": "x", "sudo_user": "x"})
    assert caller.audit_fields("reason", "approval").keys() <= set(server_audit_events.OPERATOR)
    assert all(f"`{name}`" in PAGE for name in server_audit_events.OPERATOR)


def test_no_explanation_is_left_of_code_that_is_gone() -> None:
    for file, text in server_audit_events.COMPUTED:
        if text != "event of a change":
            source = (server_audit_events.ROOT / "server" / file).read_text("utf-8")
            tree = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr)}
            assert text.removeprefix("**") in tree, (file, text)


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ('audit.record(session, "admin", name, "ok", now)', "'name'"),
        ('audit.record(session, "admin", "a.b", how, now)', "'how'"),
        ('audit.record(session, who, "a.b", "ok", now)', "'who'"),
        ('audit.record(session, "admin", "a.b", "ok", now, **more)', "more"),
    ],
)
def test_a_call_that_nobody_understands_is_an_error(call: str, missing: str) -> None:
    node = ast.parse(call).body[0]
    assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    with pytest.raises(server_audit_events.Unexplained, match=f"server/x.py:1: add to COMPUTED .*{missing}"):
        server_audit_events._Call("x.py", node.value, node).add_to({})


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("x = {'a': 1, 'b': 2}", {"a", "b"}),
        ("x: dict = {'a': 1} if now else {}", {"a"}),
    ],
)
def test_the_members_of_a_dict_that_the_function_makes_are_fields(body: str, fields: set[str]) -> None:
    call = 'audit.record(session, f"agent {now}", "a.b", "ok" if now else "not", now, c=1, **x)'
    function = ast.parse(f"def f():\n    {body}\n    {call}\n").body[0]
    node = next(node for node in ast.walk(function) if isinstance(node, ast.Call))
    found: dict[str, server_audit_events.Found] = {}
    server_audit_events._Call("x.py", node, function).add_to(found)
    assert found == {"a.b": server_audit_events.Found({"agent"}, {"ok", "not"}, {*fields, "c"})}
