"""Dataclasses read from JSON and checked against their own type hints; errors name the field."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar


class ConfigError(ValueError):
    """A configuration that cannot describe a model; the text names the field."""


Part = TypeVar("Part")


def read_part(kind: type[Part], name: str, value: Any) -> Part:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is a {type(value).__name__}; it needs an object of fields")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise ConfigError(unknown(name, str(key), set(fields)))
    missing = [
        key
        for key, f in fields.items()
        if key not in value
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{name} has no field {missing[0]!r}; it needs {sorted(fields)}")
    return kind(**value)


def unknown(part: str, name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known fields: {sorted(known)}"
    return f"unknown field {part + '.' if part else ''}{name}; {hint}"


def check_types(part: Any, name: str) -> None:
    kind: Any = type(part)
    hints = _hints(kind)
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if not _fits(value, hints[f.name]):
            label = f"{name}.{f.name}" if name else f.name
            raise ConfigError(f"{label} is {value!r}; it needs {_words(hints[f.name])}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return real and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        count = "any number" if args[-1] is Ellipsis else str(len(args))
        return f"a list of {count} x {_words(args[0])}"
    if hint is type(None):
        return "null"
    if origin is not None or hint not in (int, float, bool, str):
        return "an object"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def check_positive(part: Any, name: str, *fields: str) -> None:
    for f in fields:
        if getattr(part, f) <= 0:
            raise ConfigError(f"{name}.{f} is {getattr(part, f)}; it must be above zero")


def check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    if whole % part:
        raise ConfigError(
            f"{whole_name} is {whole}, which {part_name} {part} does not divide; "
            f"{whole_name} must be a multiple of {part_name}"
        )
