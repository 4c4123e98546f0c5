"""``Candidates``: lists of items to rank that come with the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.errors import SourceError, SplitError
from isthmus.storage import read_json, write_json


@dataclass(frozen=True)
class Candidates:
    """Lists of items to rank, given with the data: Q queries, list q is ``item[offsets[q]:offsets[q + 1]]``.

    Attributes:
        user: (Q,) int32, indices of the events' users (codes, once encoded).
        domain: (Q,) int16.
        offsets: (Q + 1,) int64.
        item: int32, flat.
        label: uint8, flat; 1 for the query's positives.
        name: what the lists are, e.g. "real lists": printed wherever numbers stand on them.
        names: the same by domain name, where domains differ.
    """

    user: np.ndarray
    domain: np.ndarray
    offsets: np.ndarray
    item: np.ndarray
    label: np.ndarray
    name: str
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in (("user", np.int32), ("domain", np.int16), ("offsets", np.int64), ("item", np.int32), ("label", np.uint8)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        queries = len(self.offsets) - 1
        whole = queries >= 0 and self.offsets[0] == 0 and self.offsets[-1] == len(self.item) and bool((np.diff(self.offsets) >= 0).all())
        if not whole or {len(self.user), len(self.domain)} != {queries} or len(self.label) != len(self.item):
            raise SplitError(
                f"candidate lists {self.name!r} whose columns do not fit together",
                "Q users and domains, Q + 1 ascending offsets from 0 to the number of items, a label for every item",
                "check how the lists were read",
            )

    def __len__(self) -> int:
        return len(self.user)

    def save(self, folder: Path) -> None:
        """Writes the lists into a folder (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        arrow.write(folder / "queries.arrow", {"user": self.user, "domain": self.domain})
        arrow.write(folder / "offsets.arrow", {"offsets": self.offsets})
        arrow.write(folder / "items.arrow", {"item": self.item, "label": self.label})
        write_json(folder / "names.json", {"name": self.name, "names": self.names})

    @classmethod
    def load(cls, folder: Path) -> Candidates:
        """Memory-maps what ``save`` wrote.

        Raises:
            SourceError: a file is missing, truncated or foreign.
        """
        columns = [arrow.read(folder / f"{name}.arrow") for name in ("queries", "offsets", "items")]
        try:
            return cls(**{name: values for part in columns for name, values in part.items()}, **read_json(folder / "names.json"))
        except (TypeError, SplitError) as error:
            raise SourceError(f"{folder} holds no candidate lists ({error})", "lists that Isthmus wrote", "make the split again") from error
