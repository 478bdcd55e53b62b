"""A well-formed request of any operation of the admin socket, made from its declaration: a new one needs no row."""

import re
from typing import Any, get_args

import msgspec

from ipc.messages import Request, SignableRequest

SIGNABLE: tuple[type[Request], ...] = get_args(SignableRequest)


def op_of(request: type[Request]) -> str:
    return str(request.__struct_config__.tag)


def params_of(request: type[Request]) -> dict[str, Any]:
    """The members besides `v`, `id` and `op`, each the least that it may be."""
    info = msgspec.inspect.type_info(request)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: _least(field.type) for field in info.fields if field.name not in ("v", "id")}


def _least(kind: Any) -> Any:
    if isinstance(kind, msgspec.inspect.StrType) and kind.pattern is not None:
        # A digest, or a name.
        return next(text for text in ("ab" * 32, "ab") if re.search(kind.pattern, text))
    if isinstance(kind, msgspec.inspect.StrType):
        return "ab"[: max(1, kind.min_length or 0)] * max(1, kind.min_length or 0)
    if isinstance(kind, msgspec.inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, msgspec.inspect.IntType):
        return kind.ge or 0
    if isinstance(kind, msgspec.inspect.BoolType):
        return False
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return [_least(kind.item_type)] * (kind.min_length or 0)
    if isinstance(kind, msgspec.inspect.UnionType):
        return None
    raise AssertionError(f"no sample of {kind}")


def body_of(op: str, params: dict[str, Any], number: int = 1, **more: Any) -> bytes:
    """A request's MessagePack body."""
    return msgspec.msgpack.encode({"v": 1, "id": number, "op": op, **params, **more})
