"""Metrics judge tables of scores, never models.

One file per metric, found by its name: ``get("ndcg@10")`` reads ``ndcg.py``.  Adding a metric is adding a file with
one final subclass of ``Metric`` (or ``PerGroup``); its docstring gives the equation, its symbols and an example.
"""

from __future__ import annotations

from isthmus.errors import ConfigError
from isthmus.metrics._base import Metric, PerGroup, Statistic
from isthmus.metrics._table import Table
from isthmus.registry import Registry

__all__ = ["Metric", "PerGroup", "Statistic", "Table", "available", "get"]

_REGISTRY = Registry(__name__, __file__, "metric")


def available() -> tuple[str, ...]:
    """Names of all metrics, by file name; nothing is imported."""
    return tuple(_REGISTRY.available())


def get(name: str) -> Metric:
    """A metric by name, such as ``auc`` or ``ndcg@10``.

    Raises:
        ConfigError: no such metric (tells the nearest one), or a cutoff that is missing, out of place or no number.
    """
    base, at, cutoff = name.partition("@")
    metric = _class(base, name)
    if at and not cutoff.isdecimal():
        raise ConfigError(f"metric {name!r}", f"a whole number after '{base}@'", f"write {base}@10, for example")
    return metric(int(cutoff) if at else None)


def _class(base: str, asked: str | None = None) -> type[Metric]:
    """The one metric that a file defines."""
    return _REGISTRY.one_class(Metric, base, asked)
