"""What a data set holds, as arrays: rows of a part, and coded tables of users and items."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isthmus import arrow
from isthmus.data.fields import load_column
from isthmus.schema import Schema


@dataclass(frozen=True)
class EntityTable:
    """Coded fields of all users, or items.  Row 0 is padding, row 1 is unknown.

    Columns are in the order of the schema's fields of that kind.

    Attributes:
        categorical: (size, F) int32 codes.
        numeric: (size, G) float32 standardised on training entities, NaN for null.
        multi: by field name, offsets (size + 1,) int64 and flat codes int32.
    """

    categorical: np.ndarray
    numeric: np.ndarray
    multi: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Rows:
    """N rows of one part, ordered by domain, and within a domain as the events came.

    Attributes:
        user, item: (N,) int32 codes.
        domain: (N,) int8 or int16.
        offsets: (D + 1,) int64; domain d has rows ``offsets[d]:offsets[d + 1]``.
        row: (N,) int32 or int64 places in the events.
        time: (N,) int32 or int64, or None.
        label: (N,) float32, or None.
        behaviour: (N,) int8 codes from 1, or None.
        weight: (N,) float32, or None.
        context: by field name (N,) codes or numbers, or offsets and flat codes when multi-valued.
    """

    user: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    offsets: np.ndarray
    row: np.ndarray
    time: np.ndarray | None = None
    label: np.ndarray | None = None
    behaviour: np.ndarray | None = None
    weight: np.ndarray | None = None
    context: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def load(cls, folder: Path, schema: Schema) -> Rows:
        """Memory-maps a part's columns.

        Raises:
            SourceError: a file is missing, truncated or foreign.
        """
        has = {"time": schema.timed, "label": schema.label != "implicit", "behaviour": bool(schema.behaviours)}
        names = ["user", "item", "domain", "offsets", "row", *(name for name, present in has.items() if present)]
        context = {f.name: load_column(folder, f"context.{n}", f) for n, f in enumerate(schema.context)}
        return cls(**{name: arrow.read(folder / f"{name}.arrow")["value"] for name in names}, context=context)

    def of(self, domain: int | None) -> slice:
        """The rows of a domain; None: all."""
        return slice(0, len(self)) if domain is None else slice(int(self.offsets[domain]), int(self.offsets[domain + 1]))

    def positive(self, kind: str, where: slice) -> np.ndarray:
        """Mask of the positive rows in a slice, given the label kind: every row, or clicks with label 1."""
        if kind == "click" and self.label is not None:
            return self.label[where] == 1
        return np.ones(where.stop - where.start, bool)
