"""Columns of ids that may be larger than memory: series whose text lies in temporary files where it would fill the memory.

Text is kept as Arrow's string views do it (Arrow columnar format, "Variable-size Binary View Layout"): 16 bytes an id, with the text itself
where it has up to 12 bytes, and else with its place in a buffer.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from isthmus.data.chunks import Growing, chunks

VIEW = np.complex128  # 16 bytes that numpy copies as one number
INLINE = 12  # bytes of text that a view itself holds
BUFFER, STEP = (1 << 31) - 1, 1 << 30  # most bytes of a buffer of text; a buffer begins at every step, so that any text lies whole in one


class GrowingIds:
    """Ids that come piece after piece.

    Args:
        dtype: text, or 64-bit whole numbers.
    """

    def __init__(self, dtype: pl.DataType) -> None:
        self.dtype = dtype
        self._values, self._text = Growing(VIEW if dtype == pl.String else np.uint64 if dtype == pl.UInt64 else np.int64), Growing(np.uint8)

    def __len__(self) -> int:
        return self._values.size

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._values.values.nbytes + self._text.size

    def append(self, ids: pl.Series) -> None:
        """Ids (n,), none null, to the end.

        Raises:
            StorageError: no room for the file.
        """
        for rows in chunks(len(ids)):
            if self.dtype == pl.String:
                self._append_text(ids[rows])
            else:
                self._values.append(ids[rows].to_numpy())

    def _append_text(self, ids: pl.Series) -> None:
        array, _, text = _end_to_end(ids)
        view = np.frombuffer(array.cast(pa.string_view()).buffers()[1], np.int32).reshape(-1, 4).copy()
        if len(apart := np.flatnonzero(view[:, 0] > INLINE)):
            place = view[apart, 3] + np.int64(self._text.size)
            view[apart, 2], view[apart, 3] = place // STEP, place % STEP
            self._text.append(text)
        self._values.append(view.reshape(-1).view(VIEW))

    def series(self) -> pl.Series:
        """All of them, not copied: to be used until more come."""
        values, text = self._values.values, self._text.values
        if self.dtype != pl.String:
            return pl.Series("id", pa.array(values))
        return _views(values, [pa.py_buffer(text[begin : begin + BUFFER]) for begin in range(0, len(text), STEP)])


def gathered(ids: pl.Series, rows: np.ndarray) -> pl.Series:
    """The ids of some rows, which share the text: ``ids.gather`` for more of them than fit into memory.

    Args:
        ids: none null.
        rows: (n,) places.

    Raises:
        StorageError: no room for the file.
    """
    if not len(ids):
        return ids
    array = ids.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    before = np.frombuffer(array.buffers()[1], VIEW)[array.offset :] if ids.dtype == pl.String else ids.to_numpy()
    after = Growing(before.dtype)
    for some in chunks(len(rows)):
        after.append(before.take(rows[some]))
    return _views(after.done(), array.buffers()[2:]) if ids.dtype == pl.String else pl.Series("id", pa.array(after.done()))


def contiguous(ids: pl.Series) -> pa.Array:
    """Ids, none null, as they lie in files: text end to end.

    Raises:
        StorageError: no room for a temporary file.
    """
    if ids.dtype != pl.String:
        return ids.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    offsets, text = Growing(np.int64), Growing(np.uint8)
    offsets.append(np.zeros(1, np.int64))
    for rows in chunks(len(ids)):
        _, ends, piece = _end_to_end(ids[rows])
        offsets.append(ends[1:] + text.size)
        text.append(piece)
    return pa.Array.from_buffers(pa.large_string(), len(ids), [None, pa.py_buffer(offsets.done()), pa.py_buffer(text.done())])


def _end_to_end(ids: pl.Series) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Some texts (n,), at least one: as an Arrow array, and its (n + 1,) offsets and (bytes,) text."""
    array = ids.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, text = array.buffers()
    return array, np.frombuffer(offsets, np.int64)[: len(ids) + 1], np.frombuffer(text or b"", np.uint8)


def _views(values: np.ndarray, text: list[pa.Buffer]) -> pl.Series:
    """A series of views (n,) into some text."""
    return pl.Series("id", pa.Array.from_buffers(pa.string_view(), len(values), [None, pa.py_buffer(values), *text]))
