"""JSON from outside: whatever is wrong with it is one kind of error."""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

_T = TypeVar("_T")


@overload
def decode_json(raw: bytes | str, kind: type[_T]) -> _T: ...
@overload
def decode_json(raw: bytes | str, kind: Any = Any) -> Any: ...
def decode_json(raw: bytes | str, kind: Any = Any) -> Any:
    """Decodes JSON into a type, ``Any`` for plain values.

    Raises:
        msgspec.DecodeError: It is no JSON, or no UTF-8, for which msgspec alone has an error of
            another kind; ``msgspec.ValidationError`` where it does not fit the type.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None
