"""Strict conversion of JSON from unknown authors to dataclasses."""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def typed(cls: type[T], data: Mapping[str, Any]) -> T:
    """Make a dataclass from a JSON object; lists become tuples where the fields are tuples.

    Raises:
        TypeError: fields are missing or unknown, or a value is not of its field's type; the message names them.
    """
    hints = get_type_hints(cls)
    values = {k: tuple(v) if isinstance(v, list) and get_origin(hints.get(k)) is tuple else v for k, v in dict(data).items()}
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise TypeError(f"{name} cannot be {short(value)}")
    return cls(**values)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type `hint` (an annotation of a dataclass field); numbers must be finite."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple and args[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(fits, value, args))
    if origin in (tuple, list):
        return isinstance(value, origin) and all(fits(one, args[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def short(value: Any) -> str:
    """The value's repr, shortened so that it fits into a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
