"""Columns in uncompressed Arrow files: numbers come back as memory-mapped arrays, ids as series."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from isthmus.errors import SourceError
from isthmus.storage import whole_file


def write(path: str | Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns of one length, whole or not at all.

    Args:
        path: the file.
        columns: one-dimensional integer or float arrays by name.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    _write(path, pa.record_batch([pa.array(np.ascontiguousarray(values)) for values in columns.values()], names=list(columns)))


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Memory-maps the columns of a file that ``write`` wrote; nothing is copied.

    Returns:
        Read-only arrays by name.

    Raises:
        SourceError: the file is missing, truncated or foreign.
    """
    batch = _read(path)
    try:
        return {name: batch.column(name).to_numpy(zero_copy_only=True) for name in batch.schema.names}
    except pa.ArrowException as error:
        raise SourceError(f"{path} holds no numbers ({error})", "a file of numbers that Isthmus wrote", "encode the data again") from error


def write_series(path: str | Path, values: pl.Series) -> None:
    """Writes text or whole numbers, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    column = values.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
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
