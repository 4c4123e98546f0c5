"""Values of settings, held against the types that their owner declares: what comes from a file or a command line may be anything."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

from isthmus.errors import ConfigError, nearest

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "none"}


def require_arguments(owner: Callable[..., Any], given: Mapping[str, Any], of: str, *others: str, word: str = "argument") -> None:
    """Refuses a name that its owner does not take, and a value of another type than it declares.

    Args:
        owner, given, of: see ``require_types``.
        others: names that are not the user's to give.
        word: what the names are called, for the message.

    Raises:
        ConfigError: such a name (tells the nearest one) or value.
    """
    known = [name for name in inspect.signature(owner).parameters if name not in others]
    for name in given:
        if name not in known:
            raise ConfigError(f"{of} has no {word} {name!r}", f"one of {', '.join(known)}", nearest(name, known))
    require_types(owner, given, of)


def require_types(owner: Callable[..., Any], given: Mapping[str, Any], of: str = "") -> None:
    """Refuses a value of another type than its owner declares.

    A whole number is a number, numpy's numbers are Python's, and a list is a sequence, which a text is not.  What is not annotated, or
    with a type that is not about plain values, is not judged; nor are names that the owner does not have.

    Args:
        owner: a function or class; its signature declares the types.
        given: values by name.
        of: whose they are, for the message: ``model 'dnn'``.

    Raises:
        ConfigError: a value that does not fit; says what would, and the default.
    """
    declared = _declared(owner)
    for name, value in given.items():
        if name in declared and not _fits(value, declared[name]):
            default = inspect.signature(owner).parameters[name].default
            choices = get_args(declared[name]) if get_origin(declared[name]) is Literal else ()
            do = nearest(str(value), choices) if choices else "correct it"
            do += "" if default is inspect.Parameter.empty else f", or leave it out for {default!r}"
            raise ConfigError(f"{of and f'{of}: '}{name} = {value!r}", _words(declared[name]), do)


@lru_cache(maxsize=256)
def _declared(owner: Callable[..., Any]) -> dict[str, Any]:
    """Types by name, but for those with a name in them that the module has for type checkers alone."""
    function: Any = inspect.unwrap(owner.__init__ if inspect.isclass(owner) else owner)
    found: dict[str, Any] = {}
    for name, kind in getattr(function, "__annotations__", {}).items():
        with suppress(NameError):
            one = types.SimpleNamespace(__annotations__={name: kind})
            found |= typing.get_type_hints(one, getattr(function, "__globals__", {}))
    return found


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    truth = type(value).__name__ in ("bool", "bool_")  # numpy's has no abstract class
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (Sequence, list, tuple):
        return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(_fits(one, inner[0]) for one in value)
    if origin is Mapping or kind is Mapping:
        return isinstance(value, Mapping)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not truth
    if kind is bool:
        return truth
    return isinstance(value, kind) if kind in (str, types.NoneType) else True


def _words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(_words(one) for one in inner)
    if origin is Literal:
        return f"one of {inner}"
    if origin in (Sequence, list, tuple):
        return f"a list, each {_words(inner[0])}"
    if origin is Mapping or kind is Mapping:
        return "a table such as {name = value}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
