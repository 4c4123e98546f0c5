"""``Profiles``: what every user had done when a model was made, in order of time; ``Past``: what one user has done, live events too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus import arrow
from isthmus.errors import SourceError

COLUMNS = ("item", "domain", "time", "behaviour", "label")


@dataclass(frozen=True, slots=True)
class Past:
    """Events of one user, oldest first.

    Attributes:
        item: (n,) int64 codes.
        domain: (n,) int64 indices.
        time: (n,) int64, or None where events have no times.
        behaviour: (n,) int64 codes from 1, or None.
        label: (n,) float32 ratings, or None.
    """

    item: np.ndarray
    domain: np.ndarray
    time: np.ndarray | None = None
    behaviour: np.ndarray | None = None
    label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.item)

    def take(self, places: np.ndarray | slice) -> Past:
        """Some of the events."""
        columns: list[Any] = [column if column is None else column[places] for _, column in self._columns()]
        return Past(*columns)

    def before(self, time: int | None) -> Past:
        """The events strictly before a moment; None, or events without times: all."""
        return self if time is None or self.time is None else self.take(slice(0, int(np.searchsorted(self.time, time))))

    def joined(self, later: Past) -> Past:
        """Both, in order of time; of one moment these come first.

        Of events alike in item, domain and time the first stays; without times, where a history is a set, of those alike in item and
        domain the last.
        """
        if not len(later):
            return self
        if not len(self):
            return later
        pairs = zip(self._columns(), later._columns(), strict=True)
        columns: list[Any] = [None if a is None or b is None else np.concatenate([a, b]) for (_, a), (_, b) in pairs]
        whole = Past(*columns)
        if whole.time is None:
            key = np.stack([whole.domain, whole.item])[:, ::-1]
            return whole.take(np.sort(len(whole) - 1 - np.unique(key, axis=1, return_index=True)[1]))
        order = np.argsort(whole.time, kind="stable")
        key = np.stack([whole.time, whole.domain, whole.item])[:, order]
        _, first = np.unique(key, axis=1, return_index=True)
        return whole.take(order[np.sort(first)])

    def _columns(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in COLUMNS]


@dataclass(frozen=True, eq=False)
class Profiles:
    """The events of all users by code.

    Attributes:
        offsets: (users + 1,) int64: user u has the events ``offsets[u]:offsets[u + 1]``.
        item: (N,) int32, in order of time for each user.
        domain: (N,) int16.
        time: (N,) int64, or None.
        behaviour: (N,) int8, or None.
        label: (N,) float32, or None.
    """

    offsets: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    time: np.ndarray | None = None
    behaviour: np.ndarray | None = None
    label: np.ndarray | None = None

    def of(self, user: int) -> Past:
        """What a user had done; nothing for codes that are no user's."""
        if not 0 <= user < len(self.offsets) - 1:
            user = 0
        own = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        wide = {"item": np.int64, "domain": np.int64, "behaviour": np.int64, "time": np.int64, "label": np.float32}
        columns: list[Any] = [None if (column := getattr(self, name)) is None else column[own].astype(wide[name]) for name in COLUMNS]
        return Past(*columns)

    @property
    def until(self) -> int | None:
        """The time of the latest event, or None."""
        return None if self.time is None or not len(self.time) else int(self.time.max())

    def save(self, folder: Path) -> None:
        """Writes two Arrow files into a folder (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        arrow.write(folder / "offsets.arrow", {"offset": self.offsets})
        arrow.write(folder / "events.arrow", {name: column for name in COLUMNS if (column := getattr(self, name)) is not None})

    @classmethod
    def load(cls, folder: Path) -> Profiles:
        """Memory-maps what ``save`` wrote.

        Raises:
            SourceError: a file is missing, truncated or foreign.
        """
        try:
            return cls(arrow.read(folder / "offsets.arrow")["offset"], **arrow.read(folder / "events.arrow"))
        except (KeyError, TypeError) as error:
            raise SourceError(
                f"{folder} holds other columns ({error})", "profiles that Isthmus wrote", "export the bundle again"
            ) from error
