"""Metrics judge tables of scores, never models.

One file per metric, found by its name: ``get("ndcg@10")`` reads ``ndcg.py``.  Adding a metric is adding a file with
one final subclass of ``Metric`` (or ``PerGroup``); its docstring gives the equation, its symbols and an example.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path

from isthmus.errors import ConfigError, nearest
from isthmus.metrics._base import Metric, PerGroup, Statistic
from isthmus.metrics._table import Table

__all__ = ["Metric", "PerGroup", "Statistic", "Table", "available", "get"]


def available() -> tuple[str, ...]:
    """Names of all metrics, by file name; nothing is imported."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py")))


def get(name: str) -> Metric:
    """A metric by name, such as ``auc`` or ``ndcg@10``.

    Raises:
        ConfigError: no such metric (tells the nearest one), or a cutoff that is missing, out of place or no number.
    """
    base, at, cutoff = name.partition("@")
    if base not in available():
        raise ConfigError(f"unknown metric {name!r}", f"one of {', '.join(available())}", nearest(base, available()))
    if at and not cutoff.isdecimal():
        raise ConfigError(f"metric {name!r}", f"a whole number after '{base}@'", f"write {base}@10, for example")
    return _class(base)(int(cutoff) if at else None)


@functools.cache
def _class(base: str) -> type[Metric]:
    """The one metric that a file defines."""
    module = importlib.import_module(f"{__name__}.{base}")
    found = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Metric) and c.__module__ == module.__name__]
    if len(found) != 1:
        raise ConfigError(f"metrics/{base}.py defines {len(found)} metrics", "one", "give each metric a file of its own")
    return found[0]
