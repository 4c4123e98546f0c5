"""``Insight``: one look inside a fitted model, as plain values that a report can draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from isthmus.errors import ConfigError, nearest

Kind = Literal["heatmap", "bars", "lines", "scatter"]
NUMERIC = {"heatmap": ("value", "beside"), "bars": ("value",), "lines": ("x", "value"), "scatter": ("x", "y")}
OPTIONAL = {"heatmap": ("beside",), "bars": ("y",), "lines": ("y",), "scatter": ("value",)}


@dataclass(frozen=True)
class Insight:
    """Something that a fitted model knows: attention by source domain, gates by field, points of a projection.

    Attributes:
        name: short, unique within a model, such as ``item_fields``.
        title: one line above the figure.
        kind: how it is drawn.

            - ``heatmap``: column ``x`` x row ``y``, shaded by the number ``value``;
            - ``bars``: a bar of height ``value`` for each ``x``, beside each other for each series ``y``;
            - ``lines``: ``value`` over the number ``x``, a line for each series ``y``;
            - ``scatter``: a point at the numbers (``x``, ``y``), coloured by ``value``, a name or a number.
        rows: one mapping per cell, bar or point; plain numbers and strings.
        x, y, value: names of columns of ``rows``; they also name the axes.  ``bars`` and ``lines`` of one series have
            y = "", points of one colour value = "".
        note: what a reader must know to read it right.
        beside: of a heatmap, the column of a number to hold ``value`` against, written in brackets; "": none.

    Raises:
        ConfigError: an unknown kind, no rows, a row without a named column, or a value that cannot be drawn.
    """

    name: str
    title: str
    kind: Kind
    rows: list[dict[str, float | str]]
    x: str
    y: str
    value: str
    note: str = ""
    beside: str = ""

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise ConfigError(f"insight {self.name!r} of kind {self.kind!r}", f"one of {kinds}", nearest(self.kind, kinds))
        roles = ("x", "y", "value", "beside") if self.kind == "heatmap" else ("x", "y", "value")
        used = {role: column for role in roles if (column := getattr(self, role)) or role not in OPTIONAL[self.kind]}
        if not self.rows:
            raise ConfigError(f"insight {self.name!r} without rows", "at least one", "leave the insight out")
        for number, row in enumerate(self.rows):
            for role, column in used.items():
                self._drawable(number, row, column, role in NUMERIC[self.kind])

    def _drawable(self, number: int, row: Mapping[str, float | str], column: str, numeric: bool) -> None:
        where = f"insight {self.name!r}, row {number}"
        if column not in row:
            raise ConfigError(f"{where}: no column {column!r}", f"one of {sorted(row)}", nearest(column, row))
        value = row[column]
        plain = isinstance(value, int | float) and math.isfinite(value)
        if not plain and (numeric or not isinstance(value, str)):
            expected = "a finite number" if numeric else "a string or a finite number"
            raise ConfigError(f"{where}: {column} = {value!r}", expected, "convert tensors and arrays with .tolist()")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Insight:
        """The inverse of ``to_dict``."""
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})
