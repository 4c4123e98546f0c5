"""Sources: one file per public data set, and ``table`` and ``sql`` for the user's own.  Found by file name.

Every source has ``load(...) -> Loaded`` and ``ORIGIN``, a sentence that says where to get the data.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from isthmus.data.sources._files import ENVIRONMENT, Loaded
from isthmus.errors import ConfigError
from isthmus.registry import Registry
from isthmus.values import require_arguments

__all__ = ["ENVIRONMENT", "Loaded", "available", "get_source", "load"]

_REGISTRY = Registry(__name__, __file__, "source")


def available() -> dict[str, Path]:
    """Name and file of every source; nothing is imported."""
    return _REGISTRY.available()


def get_source(name: str) -> ModuleType:
    """The module of a source.

    Raises:
        ConfigError: no such source; names the nearest one.
    """
    return _REGISTRY.module(name)


def load(name: str, /, **arguments: Any) -> Loaded:
    """Loads events by a source's name.

    Args:
        name: see ``available``.
        arguments: what the source's own ``load`` takes.

    Raises:
        ConfigError: no such source, or an argument that its ``load`` does not take or lacks.
        SourceError: a file is missing or damaged.
        DataError: the data are not what was declared.
    """
    function = get_source(name).load
    known = inspect.signature(function).parameters
    require_arguments(function, arguments, f"source {name!r}")
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in arguments]
    if missing:
        raise ConfigError(f"source {name!r} was not given {', '.join(missing)}", f"{name}.load({', '.join(known)})", f"add {missing[0]}")
    return function(**arguments)
