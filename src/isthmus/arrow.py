"""Columns in uncompressed Arrow files: numbers come back as memory-mapped arrays, ids as series."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from isthmus.errors import SourceError
from isthmus.storage import whole_file

VALUE = "value"  # the name of the only column of a file that is written piece by piece
SOME = 1 << 10  # a number of numbers; what stands before them is as long for any number but none
MUCH = 1 << 25  # bytes of a file that wait for the disk


class Column:
    """An Arrow file of one column, written piece by piece; nothing of it stays in memory.

    Places are given out in one thread; what comes to them may be written in others, at the same time and in any order.

    Args:
        file: open for writing, and empty.
        dtype: of its numbers.
        behind: the disk gets them while more come, so that neither what waits for it nor what it has pushes other things out of the
            machine's memory; for what is not read back at once.

    Attributes:
        size: how many places have been given out.
    """

    def __init__(self, file: int, dtype: Any, *, behind: bool = False) -> None:
        self.size, self._file, self._dtype, self._behind, self._waiting = 0, file, np.dtype(dtype), behind, 0
        self._before = len(self._frame(SOME)[0])

    def room(self, numbers: int) -> int:
        """The first of so many places at the end."""
        at, self.size = self.size, self.size + numbers
        return at

    def put(self, at: int, values: np.ndarray) -> None:
        """Numbers (n,) to the places from ``at`` on, which ``room`` gave out."""
        self._write(self._before + at * self._dtype.itemsize, np.ascontiguousarray(values, self._dtype))
        self._waiting += values.nbytes
        if self._behind and self._waiting > MUCH and hasattr(os, "posix_fadvise"):
            self._waiting = 0
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write what is new, and forgets what is written

    def append(self, values: np.ndarray) -> None:
        """Numbers (n,) to the end."""
        self.put(self.room(len(values)), values)

    def get(self, begin: int, end: int) -> np.ndarray:
        """The numbers (end - begin,) of places that were written.

        Raises:
            SourceError: the file ends before them.
        """
        values = np.empty(end - begin, self._dtype)
        left, place = values.view(np.uint8).data, self._before + begin * self._dtype.itemsize
        while left:
            if not (read := os.preadv(self._file, [left], place)):
                raise SourceError(f"a file of {self.size:,} numbers ends early", "what was written there", "check the disk")
            place, left = place + read, left[read:]
        return values

    def cut(self, size: int) -> None:
        """Leaves so many places, the first ones; what the others hold is gone, and the disk's room for it free."""
        self.size = size
        os.ftruncate(self._file, self._before + size * self._dtype.itemsize)

    def finish(self) -> None:
        """Writes what stands around the numbers."""
        before, after = self._frame(self.size)
        self._write(0, before)
        self._write(self._before + self.size * self._dtype.itemsize, after)

    def _frame(self, size: int) -> tuple[bytes, bytes]:
        """What an Arrow file of so many numbers holds before and after them."""
        batch = pa.record_batch([_array(np.zeros(size, self._dtype))], names=[VALUE])  # zeros that nobody looks at take no memory
        frame = _Frame()
        with pa.PythonFile(frame, mode="w") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return bytes(frame.before), bytes(frame.after)

    def _write(self, place: int, values: Any) -> None:
        left = memoryview(values).cast("B") if len(values) else memoryview(b"")
        while left:
            written = os.pwrite(self._file, left, place)
            place, left = place + written, left[written:]


Piece = tuple[Column, int, np.ndarray]


def put(pieces: Iterable[Piece]) -> None:
    """Numbers to places of columns: what ``Column.put`` takes."""
    for file, at, values in pieces:
        file.put(at, values)


class _Frame(io.RawIOBase):
    """A file that keeps what is written before and after the first buffer of numbers, and throws the numbers away."""

    def __init__(self) -> None:
        self.before, self.after, self._place, self._met = bytearray(), bytearray(), 0, False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        self._place += len(data)
        if isinstance(data, pa.Buffer):
            self._met = True
        else:
            (self.after if self._met else self.before).extend(data)
        return len(data)


@contextmanager
def column(path: str | Path, dtype: Any) -> Iterator[Column]:
    """A file of one column, ``value``, to write into in the block; whole or not at all.  ``read`` reads it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with whole_file(path) as temporary, open(temporary, "r+b") as file:
        found = Column(file.fileno(), dtype, behind=True)
        yield found
        found.finish()


def write(path: str | Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns of one length, whole or not at all.

    Args:
        path: the file.
        columns: one-dimensional integer or float arrays by name.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    _write(path, pa.record_batch([_array(values) for values in columns.values()], names=list(columns)))


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Memory-maps the columns of a file that ``write`` wrote; nothing is copied.

    Returns:
        Read-only arrays by name.

    Raises:
        SourceError: the file is missing, truncated or foreign.
    """
    batch = _read(path)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name, column in columns.items():
        if column.null_count or not _numeric(column.type):
            came = f"{path} holds no numbers (column {name!r} of type {column.type})"
            raise SourceError(came, "a file of numbers that Isthmus wrote", "encode the data again")
    return {name: _numbers(column) for name, column in columns.items()}


def write_series(path: str | Path, values: pl.Series | pa.Array) -> None:
    """Writes text or whole numbers, whole or not at all.

    Args:
        path: the file.
        values: a series, or an array as ``read_series`` finds it: whole numbers or ``large_string``.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    column = values.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()) if isinstance(values, pl.Series) else values
    _write(path, pa.record_batch([column], names=["id"]))


def read_series(path: str | Path) -> pl.Series:
    """Memory-maps what ``write_series`` wrote.

    Raises:
        SourceError: the file is missing, truncated or foreign.
    """
    batch = _read(path)
    if batch.schema.names != ["id"]:
        raise SourceError(f"{path} holds columns {batch.schema.names}", "ids that Isthmus wrote", "encode the data again")
    return pl.Series("id", batch.column("id"))


def _array(values: np.ndarray) -> pa.Array:
    """Numbers (n,) as Arrow has them, not copied; Arrow's own conversions look whether they are pandas', and load it."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _numbers(column: pa.Array) -> np.ndarray:
    """What ``_array`` made."""
    kind = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)


def _write(path: str | Path, batch: pa.RecordBatch) -> None:
    with whole_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: str | Path) -> pa.RecordBatch:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except FileNotFoundError:
        raise SourceError(f"{path} is missing", "a file that Isthmus wrote", "check the folder, or encode the data again") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read ({error})", "a whole file that Isthmus wrote", "encode the data again") from error
