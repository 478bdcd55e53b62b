"""Makes a route of the operator API from each act of the catalog. Nothing is decided here."""

import inspect
import json
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi import Response as HttpResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.fields import FieldInfo

from server.acts.act import Act, Form, Line, Listed, PageForm, Sheet
from server.acts.approvals import ApprovalNeeded
from server.acts.caller import Caller
from server.acts.operators.safeguards import Approval
from server.acts.runner import Runner
from server.acts.tables import BadRow
from server.licensing.lists.sheets import csv_lines

from . import cursors, paths
from .gate import OPERATOR
from .problems import KINDS, MEDIA_TYPE, TYPE

PREFIX = "/operator/v1"
CSV = "text/csv"
NEXT_CURSOR = "next-cursor"
"""A header of a reply in CSV: the cursor of the next page; missing behind the last one."""
_PATH_PART = re.compile(r"\{(\w+)\}")
_ALWAYS = ("malformed", "not-signed-in", "not-allowed", "rate-limited", "internal", "unavailable")
_OF_LISTS = ("cursor-refused",)
_OF_CHANGES = ("too-slow", "conflict", "too-large", "unsupported-media-type", "invalid")


class ProblemReply(BaseModel):
    """A problem (RFC 9457). `type` says which kind it is; `next` says what to do."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"title": "Problem"})

    type: Annotated[str, Field(pattern=f"^{TYPE}[a-z-]+$")]
    title: str
    status: int
    detail: str
    next: str
    rows: list[BadRow] | None = Field(default=None, description="The bad lines of a table (rows-refused).")


class _Query(BaseModel):
    """What a query may have: nothing that is not declared, so that no filter is lost by a typing error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Body(Form):
    """What a body is read with. Built at once: FastAPI gives an unfinished validator the name of its own parameter."""

    model_config = ConfigDict(defer_build=False)


IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
IfMatch = Annotated[str | None, Header(max_length=160, pattern=r"^(\*|\"[!#-~]*\")$")]
ApprovalId = Annotated[str | None, Header(max_length=64, pattern=r"^[0-9a-f]+$")]
Cursor = Annotated[str, Field(min_length=1, max_length=cursors.MAX_CHARS, pattern=r"^[A-Za-z0-9_.-]+$")]


def add_routes(
    app: FastAPI, acts: tuple[Act, ...], runner: Runner, cursor_key: bytes, wall: Callable[[], float] = time.time
) -> None:
    """Adds a route for each act.

    Args:
        app: of the operator API; its requests have passed `gate.Gate`.
        acts: of the catalog.
        runner: performs them.
        cursor_key: 32 bytes.
        wall: seconds since 1970 UTC.
    """
    for act in acts:
        _add(app, act, runner, cursor_key, wall)


def _add(app: FastAPI, act: Act, runner: Runner, cursor_key: bytes, wall: Callable[[], float]) -> None:
    in_path = _PATH_PART.findall(act.path)
    lists = issubclass(act.body, PageForm)
    form = _query_of(act, in_path) if act.reads else _body_of(act, in_path)

    def endpoint(**given: Any) -> HttpResponse:
        request: Request = given["request"]
        caller: Caller = request.scope["extensions"][OPERATOR]
        values = {name: given[name] for name in in_path}
        asked = given["asked"].model_dump(exclude_unset=True)
        reason, cursor = asked.pop("reason", None) or "", asked.pop("cursor", None)
        values |= asked
        filters = json.dumps({name: value for name, value in values.items() if name != "limit"}, sort_keys=True)
        if cursor is not None:
            values["after"] = cursors.open_(cursor_key, act.name, filters, cursor)
        # What it names in the path may be a number; the form itself is strict.
        body = act.body.model_validate(values)
        try:
            result = runner.perform(
                act,
                caller,
                body,
                int(wall()),
                reason,
                idempotency_key=given.get("idempotency_key"),
                if_match=_untagged(given.get("if_match")),
                approval=given.get("approval_id"),
            )
        except ApprovalNeeded as needed:
            return _json(202, TypeAdapter(Approval).dump_python(Approval.model_validate(needed.approval), mode="json"))
        content = TypeAdapter(act.result).dump_python(result, mode="json")
        if lists or isinstance(result, Listed):
            after = content.pop("after")
            content["next"] = None if after is None else cursors.seal(cursor_key, act.name, filters, after)
            if act.sheet is not None and CSV in request.headers.get("accept", "").lower():
                return _csv(act.sheet, result, first=cursor is None, following=content["next"])
        return _json(200, content, {"etag": f'"{act.etag(result)}"'} if act.etag is not None else {})

    endpoint.__name__ = act.name.replace(".", "_")
    endpoint.__doc__ = inspect.getdoc(act.run)
    endpoint.__signature__ = _signature(act, in_path, form)  # type: ignore[attr-defined]
    app.add_api_route(
        PREFIX + _PATH_PART.sub(rf"{{\1:{paths.KIND}}}", act.path),
        endpoint,
        methods=[act.method],
        name=act.name,
        operation_id=act.name.replace(".", "_"),
        summary=act.summary,
        tags=[act.name.partition(".")[0]],
        response_model=_result_of(act),
        responses=_responses(act, in_path),
        openapi_extra={"x-scope": act.scope, "x-roles": sorted(act.needed)},
    )


def _signature(act: Act, in_path: list[str], form: type[BaseModel]) -> inspect.Signature:
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("request", kind, annotation=Request)]
    for name in in_path:
        parameters.append(inspect.Parameter(name, kind, annotation=Annotated[_whole(act.body.model_fields[name]), Path()]))
    if act.reads:
        parameters.append(inspect.Parameter("asked", kind, annotation=Annotated[form, Query()]))
        return inspect.Signature(parameters)
    parameters.append(inspect.Parameter("asked", kind, annotation=form))
    parameters.append(inspect.Parameter("idempotency_key", kind, default=None, annotation=IdempotencyKey))
    if act.etag is not None and act.present is not None:
        parameters.append(inspect.Parameter("if_match", kind, default=None, annotation=IfMatch))
    if act.approval:
        parameters.append(inspect.Parameter("approval_id", kind, default=None, annotation=ApprovalId))
    return inspect.Signature(parameters)


def _whole(field: FieldInfo) -> Any:
    """The type of a field, with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _query_of(act: Act, in_path: list[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (_whole(field), field.get_default(call_default_factory=True))
        for name, field in act.body.model_fields.items()
        if name not in in_path and name != "after"
    }
    if issubclass(act.body, PageForm):
        fields["cursor"] = (Cursor | None, None)
    return create_model(f"{_title(act)}Query", __base__=_Query, **fields)


def _body_of(act: Act, in_path: list[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in act.body.model_fields.items()}
    for name in in_path:
        del fields[name]
    fields["reason"] = (Line | None, Field(default=None, description="Why, for the audit log."))
    return create_model(f"{_title(act)}Body", __base__=_Body, __doc__=act.body.__doc__, **fields)


def _title(act: Act) -> str:
    return "".join(part.capitalize() for part in re.split(r"[._]", act.name))


def _result_of(act: Act) -> Any:
    """The form of the reply: a list has a cursor where the act has a place."""
    if not (isinstance(act.result, type) and issubclass(act.result, Listed)):
        return act.result
    item = act.result.model_fields["items"].annotation
    assert get_origin(item) is tuple
    name = get_args(item)[0].__name__
    following = (str | None, Field(description="The cursor of the next page; null behind the last one."))
    fields: dict[str, Any] = {"items": (item, ...), "next": following}
    return create_model(f"{name}Page", __base__=Form, **fields)


def _responses(act: Act, in_path: list[str]) -> dict[int | str, dict[str, Any]]:
    names = [*_ALWAYS, *(_OF_LISTS if issubclass(act.body, PageForm) else ()), *(() if act.reads else _OF_CHANGES)]
    # A filter may name what does not exist: a typing error is not an empty list.
    filters = set(act.body.model_fields) - set(PageForm.model_fields)
    names += ["not-found"] if in_path or filters or not act.reads else []
    names += ["invalid"] if act.reads and filters and not issubclass(act.body, PageForm) else []
    names += ["rows-refused"] if "row_by_row" in act.body.model_fields else []
    names += [] if act.reads else ["idempotency-key-reused"]
    names += ["precondition-failed"] if act.present is not None else []
    names += ["precondition-required"] if act.match_required else []
    found: dict[int | str, dict[str, Any]] = {}
    for name in names:
        kind = KINDS[name]
        known = found.get(kind.status)
        text = kind.title + "." if known is None else f"{known['description']} {kind.title}."
        schema = {"$ref": "#/components/schemas/ProblemReply"}
        found[kind.status] = {"description": text, "content": {MEDIA_TYPE: {"schema": schema}}}
    if act.sheet is not None:
        text = "A page of the list; as text/csv, with the next page's cursor in Next-Cursor, for who accepts that."
        found[200] = {"description": text, "content": {CSV: {"schema": {"type": "string"}}}}
    if act.approval:
        found[202] = {"model": Approval, "description": "A second person must approve; then send the request again."}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _untagged(if_match: str | None) -> str | None:
    return None if if_match is None else if_match.strip('"')


def _csv(sheet: Sheet, result: Listed[Any], *, first: bool, following: str | None) -> HttpResponse:
    """A page as CSV. Only the first one names the columns, so that pages behind each other are one table."""
    lines = [sheet.cells(item) for item in result.items]
    text = csv_lines([sheet.columns, *lines] if first else lines)
    return HttpResponse(text, 200, {} if following is None else {NEXT_CURSOR: following}, f"{CSV}; charset=utf-8")


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> HttpResponse:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return HttpResponse(text, status, headers, "application/json")
