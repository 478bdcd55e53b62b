"""Makes the OpenAPI 3.1 document from the table of routes: what is answered and what is documented cannot differ."""

from collections.abc import Sequence
from typing import Any

import msgspec

from common.version import VERSION

from .forms import ProblemForm
from .problems import KINDS, MEDIA_TYPE
from .routes import Route

DESCRIPTION = (
    "Manages the license agent of this machine. TLS lets in certificates of the admin CA; it gives no authority. Each act is "
    "signed: the agent gives a challenge, the administrator's key signs it together with the act, and the agent judges. How "
    "the text that is signed is made: 'Signed requests of administrators' in the agent's protocol."
)
_TEXT = {"description": "what was asked for"}


def make_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document.

    Args:
        routes: every route.
    """
    forms = {form for route in routes for form in (route.body, route.reply) if form is not None} | {ProblemForm}
    ordered = sorted(forms, key=lambda form: form.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    references = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "License agent: management", "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": "https://127.0.0.1:8470"}],
        "security": [{"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "certificate": {"type": "mutualTLS", "description": "a certificate of the admin CA"},
                "session": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "License-Agent-Session",
                    "description": "id of a session",
                },
            },
        },
    }


def _operation(route: Route, references: dict[Any, Any]) -> dict[str, Any]:
    problems: dict[str, list[str]] = {}
    for kind in KINDS:
        if kind in route.problems:
            problems.setdefault(str(kind.status), []).append(kind.title)
    answers: dict[str, Any] = {str(route.status): _answer(route, references)}
    for status, titles in sorted(problems.items()):
        content = {MEDIA_TYPE: {"schema": references[ProblemForm]}}
        answers[status] = {"description": " Or: ".join(titles), "content": content}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": route.description,
        "responses": answers,
    }
    if route.parameters:
        operation["parameters"] = [each.document() for each in route.parameters]
    if route.session:
        operation["security"] = [{"certificate": [], "session": []}]
    if route.body is not None:
        content = {"application/json": {"schema": references[route.body]}}
        operation["requestBody"] = {"required": route.body_required, "content": content}
    return operation


def _answer(route: Route, references: dict[Any, Any]) -> dict[str, Any]:
    if route.status == 204:
        return {"description": "done"}
    if route.media_type != "application/json":
        return {**_TEXT, "content": {route.media_type: {"schema": {"type": "string"}}}}
    return {**_TEXT, "content": {"application/json": {"schema": references.get(route.reply, {"type": "object"})}}}
