"""The operators of the workflow language: ``from helium import ops``."""

from helium.dsl.operators import (
    Msg,
    apply,
    concat,
    data,
    fmt,
    format,
    input,
    llm,
    output,
    placeholder,
    scope,
    slice,
)

__all__ = [
    "Msg",
    "apply",
    "concat",
    "data",
    "fmt",
    "format",
    "input",
    "llm",
    "output",
    "placeholder",
    "scope",
    "slice",
]
